"""Project files: what they may say, and how they are refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import get_args

import pytest

from opticstream.config import DeploymentSettings, OptionText, config_from_mapping, load_project, parameters_hash
from opticstream.config.notify_targets import NotifyTarget
from opticstream.config.overrides import differences, flat_parameter_path, value_at
from opticstream.config.template import project_template, reference
from opticstream.model.errors import ConfigurationError
from opticstream.notify import TargetContext, open_targets
from opticstream.pipeline.parameters import current_name_and_value, sample_settings

MINIMAL = {"project": {"project_name": "p", "project_base_path": "out"}}


def config(**overrides):
    return config_from_mapping(MINIMAL, overrides=overrides)


def test_defaults_are_those_of_the_design():
    c = config()
    normal, tilted = c.scan.illuminations
    assert (normal.a_lines, tilted.a_lines, c.scan.b_lines, c.scan.samples, c.scan.channels) == (350, 200, 350, 2048, 2)
    assert tilted.tilt_deg == -15.0
    assert c.scan.tile_overlap == 20.0
    assert c.scan.scan_resolution_3d == (0.01, 0.01, 0.0025)
    assert c.processing.mask.threshold_for("normal") == 60.0
    assert c.processing.mask.threshold_for("tilted") == 55.0
    assert c.processing.mask.made_from == "aip"
    assert c.processing.registration.mask_file_type == "aip"
    assert c.processing.enface.depth == 80
    assert c.processing.enface.surface == "robust"  # better than the design's "find", which stays available
    assert c.processing.coordinates.force_refresh_coordinates is False


def test_the_designs_flat_parameter_names_reach_their_settings():
    data = MINIMAL | {"scan": {"illuminations": [
        {"name": "normal", "columns": 2, "a_lines": 10}, {"name": "tilted", "columns": 3, "a_lines": 8},
    ]}}  # fmt: skip
    c = config_from_mapping(
        data,
        overrides={
            "grid_size_x_normal": 5, "grid_size_x_tilted": 6, "grid_size_y": 7, "tile_overlap": 3.0,
            "tile_overlap_unit": "pixels", "mask_threshold_normal": 50.0, "mask_threshold_tilted": 45.0, "gamma": -12.5,
            "surface_finding_method": "robust", "mask_file_type": "mip", "force_refresh_coordinates": True,
            "scan_resolution_3d": [0.02, 0.02, 0.003],
        },
    )  # fmt: skip
    assert [i.columns for i in c.scan.illuminations] == [5, 6]
    assert c.scan.illuminations[1].tilt_deg == -12.5
    assert c.scan.overlap_px(0) == (3.0, 3.0)
    assert c.processing.mask.threshold_for("tilted") == 45.0
    assert c.processing.enface.surface == "robust"
    assert c.processing.coordinates.force_refresh_coordinates
    assert c.scan.scan_resolution_3d == (0.02, 0.02, 0.003)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("scan.sample", 5, ["scan.sample", "unknown setting", "5"]),
        ("scan.samples", "many", ["scan.samples", "'many'"]),
        ("scan.channels", 3, ["scan.channels", "3"]),
        ("scan.channels", 1, ["processing.enface.modalities", "scan.channels = 1"]),
        ("scan.tile_overlap", 100, ["tile_overlap", "100"]),
        ("processing.reconstruction.background", "file", ["background_file", "not set"]),
        ("processing.coordinates.method", "file", ["tile_configuration", "required"]),
        ("processing.coordinates.method", "guess", ["processing.coordinates", "guess"]),
        ("processing.engine", "matlap", ["processing.engine", "matlap"]),
        ("processing.engine", {"kind": "matlab", "functions": {"surface": "f"}}, ["functions", "'surface'"]),
        ("processing.engine", {"kind": "matlab", "functions": {"find_surface": "a b"}}, ["find_surface", "'a b'"]),
        ("processing.engine", {"kind": "cuda", "stages": ["axis"]}, ["processing.engine.cuda.stages", "axis"]),
        ("processing.enface.surface", "magic", ["processing.enface.surface", "magic"]),
        ("processing.enface.surface", -3, ["processing.enface.surface", "-3"]),
        ("processing.mask.threshold_db", {"sideways": 3}, ["sideways"]),
        ("scan.calibration.linearization", {"method": "guess"}, ["scan.calibration.linearization", "guess"]),
        ("scan.calibration.dispersion_files", ["phase.xls"], ["dispersion_files", "phase.xls"]),
        ("scan.scan_resolution_3d", [0.01, 0, 0.0025], ["scan_resolution_3d"]),
        ("colour", "red", ["colour"]),
        ("grid_size_x_sideways", 3, ["sideways"]),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_with_key_and_value(key, value, words):
    with pytest.raises(ConfigurationError) as refused:
        config(**{key: value})
    for word in words:
        assert word in str(refused.value)


def test_several_problems_are_told_together():
    with pytest.raises(ConfigurationError, match=r"scan\.samples.*processing\.enface\.depth"):
        config_from_mapping({**MINIMAL, "scan": {"samples": 1}, "processing": {"enface": {"depth": 0}}})


def test_the_written_template_is_a_valid_project_file_with_the_defaults(tmp_path):
    text = project_template(project_name="brain")
    file = tmp_path / "project.toml"
    file.write_text(text)
    written = load_project(file)
    assert written == config_from_mapping(
        {"project": {"project_name": "brain", "project_base_path": "project"}}, folder=tmp_path
    )
    assert tomllib.loads(text)["processing"]["mask"]["made_from"] == "aip"
    assert tomllib.loads(text)["processing"]["registration"]["mask_file_type"] == "aip"


def test_the_reference_names_every_key():
    text = reference()
    for key in ("project_base_path", "tile_overlap_unit", "coefficients_nm", "birefringence_method", "crop_depth"):
        assert f"`{key}`" in text


def test_relative_paths_start_at_the_project_file(tmp_path):
    file = tmp_path / "project.toml"
    file.write_text(
        '[project]\nproject_name = "p"\nproject_base_path = "out"\narchive_path = "../archive"\n'
        '[scan.calibration]\ndispersion_files = ["cal/d.mat#phase"]\n'
        '[scan.calibration.linearization]\nmethod = "klinear"\nfiles = ["cal/k.npz#klinear"]\n'
    )
    c = load_project(file)
    assert c.base_path == tmp_path / "out"
    assert c.scan.calibration.dispersion_files == (f"{tmp_path}/cal/d.mat#phase",)
    assert c.scan.calibration.linearization.files == (f"{tmp_path}/cal/k.npz#klinear",)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigurationError, match="opticstream project init"):
        load_project(tmp_path / "none.toml")


def test_hashes_do_not_depend_on_the_order_of_keys():
    assert parameters_hash({"a": 1, "b": [2, 3]}) == parameters_hash({"b": [2, 3], "a": 1})
    assert parameters_hash({"a": 1}) != parameters_hash({"a": 2})


class TestMaskForRegistration:
    def test_the_flat_name_of_the_design_chooses_the_mask_for_the_registration_only(self):
        chosen = config(mask_file_type="").processing
        assert (chosen.registration.mask_file_type, chosen.mask.made_from) == ("", "aip")

    def test_stitching_has_its_own_key(self):
        chosen = config(**{"processing.mask.made_from": "mip"}).processing
        assert (chosen.registration.mask_file_type, chosen.mask.made_from) == ("aip", "mip")

    @pytest.mark.parametrize("value", ["aip", "mip", ""])
    def test_the_old_key_keeps_its_old_effect_with_a_note(self, value, caplog):
        source = f"old file {value!r}"
        data = {**MINIMAL, "processing": {"mask": {"mask_file_type": value, "sigma_px": 1.0}}}
        for _ in range(2):
            old = config_from_mapping(data, source=source).processing
        assert (old.registration.mask_file_type, old.mask.made_from, old.mask.sigma_px) == (value, value, 1.0)
        (note,) = [record.getMessage() for record in caplog.records]
        assert source in note
        assert f'made_from = "{value}" in [processing.mask]' in note
        assert f'mask_file_type = "{value}" in [processing.registration]' in note

    def test_a_new_key_beside_the_old_one_wins(self):
        data = {"mask": {"mask_file_type": ""}, "registration": {"mask_file_type": "mip"}}
        chosen = config_from_mapping({**MINIMAL, "processing": data}).processing
        assert (chosen.registration.mask_file_type, chosen.mask.made_from) == ("mip", "")

    @pytest.mark.parametrize(("used", "expected"), [(True, "aip"), (False, ""), ("no", "")])
    def test_the_old_switch_of_the_registration_keeps_its_effect(self, used, expected):
        data = {**MINIMAL, "processing": {"registration": {"use_mask": used}}}
        assert config_from_mapping(data).processing.registration.mask_file_type == expected

    def test_a_choice_can_be_changed_although_settings_of_the_former_one_are_given(self):
        fiji = {"processing": {"coordinates": {"method": "fiji", "regression_threshold": 0.4, "margin_px": 9}}}
        for method, own in (("nominal", ()), ("native", ("correct_distortion",))):
            changed = config_from_mapping(MINIMAL | fiji, overrides={"processing.coordinates.method": method})
            assert changed.processing.coordinates.method == method
            assert changed.processing.coordinates.margin_px == 9
            assert {*type(changed.processing.coordinates).model_fields} >= {*own}
        whole = config().model_dump(mode="json")  # as a flow run keeps it: with every setting
        both = {"processing.coordinates.regression_threshold": 0.5, "processing.coordinates.method": "fiji"}
        assert config_from_mapping(whole, overrides=both).processing.coordinates.regression_threshold == 0.5

    def test_old_keys_work_as_overrides(self):
        chosen = config(**{"processing.mask.mask_file_type": OptionText("")}).processing
        assert (chosen.registration.mask_file_type, chosen.mask.made_from) == ("", "")
        chosen = config(**{"processing.registration.use_mask": OptionText("false")}).processing
        assert (chosen.registration.mask_file_type, chosen.mask.made_from) == ("", "aip")


class TestNewNames:
    def test_the_old_key_is_read_with_a_note_that_names_the_new_one(self, caplog):
        data = {**MINIMAL, "processing": {"sample": {"align_leash": 0.3}}}
        assert config_from_mapping(data, source="old file").processing.sample.align_pullback == 0.3
        (note,) = [record.getMessage() for record in caplog.records]
        assert "old file" in note
        assert "align_pullback in [processing.sample]" in note
        assert config(**{"processing.sample.align_leash": OptionText("0.2")}).processing.sample.align_pullback == 0.2

    def test_the_new_key_is_used_if_both_are_given(self):
        data = {"sample": {"align_leash": 0.3, "align_pullback": 0.1}}
        assert config_from_mapping({**MINIMAL, "processing": data}).processing.sample.align_pullback == 0.1

    def test_the_old_name_of_matlabs_function_for_axes_is_read(self, caplog):
        engine = {"kind": "matlab", "functions": {"thruplane_registration": "lab.axes"}}
        read = config_from_mapping({**MINIMAL, "processing": {"engine": engine}}, source="old file").processing.engine
        assert read.function("fibre_axes") == "lab.axes"
        assert "old file: processing.engine.functions.thruplane_registration has a new name: fibre_axes" in caplog.text

    def test_the_new_name_makes_no_result_out_of_date(self):
        recorded = sample_settings(config()).results["processing"]["sample"]
        assert recorded["align_leash"] == 0
        assert "align_pullback" not in recorded
        assert current_name_and_value("processing.sample.align_leash", 0.05) == (
            "processing.sample.align_pullback",
            0.05,
        )


class TestTypedValues:
    @pytest.mark.parametrize(
        ("key", "text", "expected"),
        [
            ("processing.volume.format", "0.4", "0.4"),
            ("project_name", "55", "55"),
            ("project_name", "true", "true"),
            ("project_name", "1e3", "1e3"),
            ("project_name", "2024-01-01", "2024-01-01"),
            ("project_name", "'quoted'", "quoted"),
            ("project_name", "a, b", "a, b"),
            ("project_name", "[draft]", "[draft]"),
            ("subject_id", "01", "01"),
            ("subject_id", "7", "7"),
            ("archive_path", "2024", Path("2024")),
            ("surface", "find", "find"),
            ("surface", "12", 12),
            ("processing.enface.depth", "'60'", 60),
            ("processing.archive.enabled", "no", False),
            ("processing.registration.file_name", "slice_{slice}_{product}", "slice_{slice}_{product}"),
            ("processing.enface.modalities", "aip,mip", ("aip", "mip")),
            ("processing.enface.modalities", "[aip, mip]", ("aip", "mip")),
            ("processing.enface.modalities", '["aip"]', ("aip",)),
            ("processing.enface.modalities", "aip", ("aip",)),
            ("scan_resolution_3d", "[0.02, 0.02, 0.003]", (0.02, 0.02, 0.003)),
            ("scan_resolution_3d", "0.02,0.02,0.003", (0.02, 0.02, 0.003)),
            ("processing.sample.products", "[7, 8]", ("7", "8")),
            ("processing.mask.threshold_db", "{normal = 5}", {"normal": 5.0}),
            ("scan.illuminations.tilted.columns", "9", 9),
        ],
    )
    def test_the_setting_decides_what_a_typed_text_means(self, key, text, expected):
        found = config(**{key: OptionText(text)}).model_dump()
        found["scan"]["illuminations"] = list(found["scan"]["illuminations"])
        assert value_at(found, flat_parameter_path(key, {}).replace("tilted", "1")) == expected

    def test_numbers_of_event_payloads_are_taken_as_text_where_text_is_expected(self):
        chosen = config(**{"processing.volume.format": 0.4, "project_name": 55, "subject_id": 7})
        assert (chosen.processing.volume.format, chosen.name, chosen.project.subject_id) == ("0.4", "55", "7")

    def test_a_wrong_value_is_told_as_it_was_typed(self):
        with pytest.raises(ConfigurationError, match=r"processing\.enface\.depth.*'deep'"):
            config(**{"processing.enface.depth": OptionText("deep")})
        with pytest.raises(ConfigurationError, match=r"processing\.volume\.format.*0\.7"):
            config(**{"processing.volume.format": OptionText("0.7")})

    def test_numbers_in_files_where_text_is_expected_are_told_to_stand_in_quotes(self):
        with pytest.raises(ConfigurationError, match=r"processing\.volume\.format.*0\.4.*in quotes"):
            config_from_mapping({**MINIMAL, "processing": {"volume": {"format": 0.4}}})

    @pytest.mark.parametrize(
        ("key", "nearest"),
        [
            ("depht", "depth"),
            ("format", "processing.archive.format"),
            ("mask_file_typ", "mask_file_type"),
            ("processing.depth", "processing.enface.depth"),
            ("processing.volume.fromat", "processing.volume.format"),
            ("processing.enfase.depth", "processing.enface"),
            ("proccesing.volume.format", "processing"),
            ("scan.illuminations.0.colums", "scan.illuminations.columns"),
            ("scan.calibration.linearization.file", "scan.calibration.linearization.files"),
        ],
    )
    def test_an_unknown_key_is_told_with_the_nearest_known_one(self, key, nearest):
        with pytest.raises(ConfigurationError) as refused:
            config(**{key: 5})
        assert f"did you mean {nearest}?" in str(refused.value)

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            ("scan.illuminations.7.columns", "unknown item '7'; items are 0 to 1"),
            ("scan.illuminations.sideways.columns", "named 'normal', 'tilted'"),
            ("processing..depth", "expected names separated by dots"),
            ("processing.enface.depth.more", "depth is not a table"),
        ],
    )
    def test_a_path_that_leads_nowhere_is_told(self, key, words):
        data = {**MINIMAL, "scan": {"illuminations": [{"name": "normal"}, {"name": "tilted"}]}}
        data["processing"] = {"enface": {"depth": 5}}
        with pytest.raises(ConfigurationError, match=words):
            config_from_mapping(data, overrides={key: 5})


def test_one_override_of_a_list_or_table_leaves_its_other_defaults():
    chosen = config(mask_threshold_normal=58, grid_size_x_tilted=7)
    assert chosen.processing.mask.threshold_db == {"normal": 58.0, "tilted": 55.0}
    assert [i.columns for i in chosen.scan.illuminations] == [config().scan.illuminations[0].columns, 7]


@pytest.mark.parametrize(
    "changes",
    [
        {"processing.enface.depth": 61},
        {"mask_threshold_normal": 50.0},
        {"processing.mask.threshold_db": {"normal": 1.0}},
        {"processing.enface.modalities": ["aip"], "scan.channels": 2},
        {
            "scan.illuminations": [{"name": "ab", "columns": 3, "a_lines": 9}],
            "processing.mask.threshold_db": {"ab": 4.0},
        },
        {"scan.calibration.linearization": {"method": "chirp", "files": ["/c.npy"]}},
        {"grid_size_x_tilted": 4, "gamma": -3.0, "archive_path": "/a"},
    ],
)
def test_differences_on_top_of_the_old_settings_give_the_new_ones(changes):
    before, after = config(), config(**changes)
    found = differences(before.model_dump(mode="json"), after.model_dump(mode="json"))
    assert found
    assert config_from_mapping(before.model_dump(mode="json"), overrides=found) == after
    back = differences(after.model_dump(mode="json"), before.model_dump(mode="json"))
    assert config_from_mapping(after.model_dump(mode="json"), overrides=back) == before


class TestNotifyTargets:
    """`OPTICSTREAM_NOTIFY_TARGETS` holds JSON or TOML, and a wrong value is refused with its place."""

    @staticmethod
    def read(monkeypatch, text: str):
        monkeypatch.setenv("OPTICSTREAM_NOTIFY_TARGETS", text)
        return DeploymentSettings().notify_targets

    def test_the_log_is_told_by_default(self):
        assert [(t.kind, t.target_name) for t in DeploymentSettings().notify_targets] == [("log", "log")]

    @pytest.mark.parametrize(
        "text",
        [
            '[{"kind": "log"}, {"kind": "file", "name": "a", "path": "/x/y.jsonl"}]',
            '[{ kind = "log" }, { kind = "file", name = "a", path = "/x/y.jsonl" }]',
        ],
    )
    def test_targets_are_read_from_the_environment(self, monkeypatch, text):
        log, file = self.read(monkeypatch, text)
        assert (log.target_name, file.target_name, file.path) == ("log", "a", Path("/x/y.jsonl"))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("log, file", "OPTICSTREAM_NOTIFY_TARGETS = log, file: expected a list of targets in JSON or TOML"),
            ('[{"kind": "slak"}]', r"NOTIFY_TARGETS\[0\]: unknown kind 'slak'; expected one of 'log', 'file'"),
            ('[{"path": "x"}]', r"NOTIFY_TARGETS\[0\]: `kind` is missing"),
            ('[{"kind": "log"}, {"kind": "file", "file": "x"}]', r"NOTIFY_TARGETS\[1\].file = x: unknown setting"),
            ('[{"kind": "file", "name": "A b"}]', r"NOTIFY_TARGETS\[0\].name = A b: String should match pattern"),
            ('[{"kind": "file"}, {"kind": "file"}]', "2 targets have the name 'file'; give each a `name` of its own"),
            ('[{"kind": "file", "name": "log"}]', "a target of kind 'file' cannot have the name 'log'"),
            ('{"kind": "log"}', "NOTIFY_TARGETS: "),
            ('[{"kind": "slack"}]', r"NOTIFY_TARGETS\[0\]: expected one of `token`, .* got none of them"),
            ('[{"kind": "slack", "token": "x"}]', r"NOTIFY_TARGETS\[0\]: `channel` is missing; expected the ID"),
            ('[{"kind": "slack", "channel": "#a"}]', r"NOTIFY_TARGETS\[0\].channel = #a: "),
            ('[{"kind": "file", "quiet_hours": "10-6"}]', r"NOTIFY_TARGETS\[0\].quiet_hours = 10-6: "),
            ('[{"kind": "apprise", "url": "json://a", "url_file": "b"}]', "expected one of `url` and `url_file`"),
        ],
    )
    def test_a_wrong_value_is_refused_with_its_place(self, monkeypatch, text, words):
        with pytest.raises(ConfigurationError, match=words):
            self.read(monkeypatch, text)

    @pytest.mark.parametrize(
        "text",
        [
            '[{"kind": "slack", "tokn": "S3CRET", "channel": "C0123456789"}]',
            '[{"kind": "slack", "token": ["S3CRET"]}]',
            '[{"kind": "slack", "token": "S3CRET"}]',
            '[{"kind": "slack", "token": "S3CRET",}',
            '[{"kind": "slack", "channel": "C0123456789", "token": "S3CRET", "api_url": "http://S3CRET@x"}]',
            '[{"kind": "apprise", "url": "json://S3CRET", "url_file": "S3CRET"}]',
            '[{"kind": "mail", "url": "S3CRET"}]',
        ],
    )
    def test_no_message_about_a_wrong_value_shows_a_secret(self, monkeypatch, text):
        with pytest.raises(ConfigurationError) as error:
            self.read(monkeypatch, text)
        assert "S3CRET" not in str(error.value)

    def test_every_kind_has_a_module_that_opens_it(self, tmp_path):
        needed = {"slack": {"token": "xoxb-1", "channel": "C0123456789"}, "apprise": {"url": "json://127.0.0.1/x"}}
        for kind in get_args(get_args(NotifyTarget)[0]):
            name = kind.model_fields["kind"].default
            (target,) = open_targets([kind(**needed.get(name, {}))], TargetContext(tmp_path, print))
            assert type(target).__module__ == f"opticstream.notify.{name}"
            assert target.name == name
