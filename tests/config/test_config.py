"""Project files: what they may say, and how they are refused."""

from __future__ import annotations

import tomllib

import pytest

from opticstream.config import config_from_mapping, load_project, parameters_hash
from opticstream.config.template import project_template, reference
from opticstream.model.errors import ConfigurationError

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
    assert c.processing.mask.mask_file_type == "aip"
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
        ("scan.sample", 5, ["scan.sample", "no such setting", "5"]),
        ("scan.samples", "many", ["scan.samples", "'many'"]),
        ("scan.channels", 3, ["scan.channels", "3"]),
        ("scan.channels", 1, ["processing.enface.modalities", "scan.channels = 1"]),
        ("scan.tile_overlap", 100, ["tile_overlap", "100"]),
        ("processing.reconstruction.background", "file", ["background_file", "not set"]),
        ("processing.coordinates.method", "fiji", ["tile_configuration", "not set"]),
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
    assert "mask_file_type" in tomllib.loads(text)["processing"]["mask"]


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
