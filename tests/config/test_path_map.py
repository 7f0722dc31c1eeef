"""Where this host sees folders that others name otherwise."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opticstream.config import DeploymentSettings, config_from_mapping, load_project
from opticstream.config.loading import moved_config
from opticstream.config.path_map import PathMapping, path_here, position_from
from opticstream.model.errors import ConfigurationError


def mapping(**folders: str) -> tuple[PathMapping, ...]:
    return tuple(PathMapping(from_=folder, to=Path(here)) for here, folder in folders.items())


def where(path: str, *folders: tuple[str, str]) -> str:
    return path_here(path, [PathMapping(from_=folder, to=Path(here)) for folder, here in folders]).as_posix()


RIG = (r"\\rig\data", "/mnt/rig")
ACQ = ("D:/acq", "/mnt/acq")


@pytest.mark.parametrize(
    ("path", "here"),
    [
        (r"\\rig\data\I80\raw", "/mnt/rig/I80/raw"),
        ("//rig/data/I80/raw", "/mnt/rig/I80/raw"),
        (r"\\RIG\Data\I80", "/mnt/rig/I80"),
        ("\\\\rig\\data\\", "/mnt/rig"),
        (r"\\rig\data", "/mnt/rig"),
        (r"\\?\UNC\rig\data\I80", "/mnt/rig/I80"),
        (r"d:\ACQ\I80\x.nii", "/mnt/acq/I80/x.nii"),
        (r"D:\acq/I80", "/mnt/acq/I80"),
        (r"\\?\D:\acq\I80", "/mnt/acq/I80"),
        (r"D:\acq\..\acq\I80", "/mnt/acq/I80"),
    ],
)
def test_windows_paths_compare_without_case_and_with_either_slash(path, here):
    assert where(path, RIG, ACQ) == here


@pytest.mark.parametrize(
    "path",
    [r"\\rig\database\I80", r"\\rig2\data", r"D:\acquired", r"E:\acq", r"D:\acq\..\other", "/mnt/rig/I80", "acq/I80",
     "/D:/acq", r"\acq", "D:acq", "/data\\acq"],
)  # fmt: skip
def test_what_no_mapping_names_stays_as_it_is(path):
    assert str(path_here(path, mapping(**{"/mnt/rig": RIG[0], "/mnt/acq": ACQ[0]}))) == path


def test_the_longest_folder_counts_in_any_order():
    nested = [("/data", "/a"), ("/data/I80", "/b"), ("/data/I80/raw", "/c")]
    for order in (nested, nested[::-1]):
        assert where("/data/x", *order) == "/a/x"
        assert where("/data/I80/x", *order) == "/b/x"
        assert where("/data/I80/raw", *order) == "/c"
        assert where("/data/I800", *order) == "/a/I800"


def test_a_drive_alone_is_its_root():
    assert where(r"D:\acq", ("D:", "/mnt/d")) == "/mnt/d/acq"
    assert where("/anything/at/all", ("/", "/mnt/root")) == "/mnt/root/anything/at/all"


NAMES = st.text(st.characters(codec="utf-8", exclude_characters='/\\:*?"<>|\0', exclude_categories=["Cc"]), min_size=1,
                max_size=8).filter(lambda name: name.strip(" .") == name)  # fmt: skip
PARTS = st.lists(NAMES, max_size=4)


@given(PARTS, st.sampled_from(["\\", "/"]), st.booleans())
def test_whatever_lies_below_a_windows_folder_lies_below_its_place(parts, slash, loud):
    head = r"\\RIG\DATA" if loud else r"\\rig\data"
    path = slash.join([head.replace("\\", slash), *parts])
    assert path_here(path, mapping(**{"/mnt/rig": RIG[0]})) == Path("/mnt/rig", *parts)


@given(PARTS, PARTS)
def test_a_folder_of_this_kind_of_host_maps_by_whole_names(folder, parts):
    where_it_is = [PathMapping(from_="/" + "/".join(["data", *folder]), to=Path("/mnt/here"))]
    assert path_here(Path("/data", *folder, *parts), where_it_is) == Path("/mnt/here", *parts)
    beside = Path("/data", *folder[:-1], folder[-1] + "x") if folder else Path("/data2")
    assert path_here(beside / "y", where_it_is) == beside / "y"


@given(PARTS)
def test_without_a_map_every_path_is_its_own(parts):
    for path in (Path("/data", *parts), Path(str(PureWindowsPath("D:\\", *parts)))):
        assert path_here(path, ()) == path


@given(PARTS, PARTS)
def test_the_position_of_a_raw_folder_leads_back_to_it(base, raw):
    project = Path("/share", *base, "project")
    for folder in (project.joinpath(*raw), project.parent.joinpath("raw", *raw)):
        position = position_from(project, folder)
        assert position
        moved = Path("/moved/project")
        assert position_from(moved, moved / position) == position


class TestSetting:
    """`OPTICSTREAM_PATH_MAP` holds JSON or TOML, and a wrong value is refused with its place."""

    @staticmethod
    def read(monkeypatch, text: str):
        monkeypatch.setenv("OPTICSTREAM_PATH_MAP", text)
        return DeploymentSettings().path_map

    @pytest.mark.parametrize(
        "text",
        [
            r"""[{ from = "\\\\rig\\data", to = "/mnt/rig" }, { from = 'D:\acq', to = "/mnt/acq" }]""",
            r'[{"from": "\\\\rig\\data", "to": "/mnt/rig"}, {"from": "D:\\acq", "to": "/mnt/acq"}]',
        ],
    )
    def test_it_is_read_from_the_environment(self, monkeypatch, text):
        first, second = self.read(monkeypatch, text)
        assert (first.from_, first.to) == (r"\\rig\data", Path("/mnt/rig"))
        assert (second.from_, second.to) == (r"D:\acq", Path("/mnt/acq"))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("/a=/b", "OPTICSTREAM_PATH_MAP = /a=/b: expected a list in JSON or TOML"),
            ('[{from = "acq", to = "/a"}]', r"PATH_MAP\[0\].from = acq: expected an absolute path such as D:\\acq"),
            ('[{from = "//rig", to = "/a"}]', r"PATH_MAP\[0\].from = //rig: expected an absolute path"),
            ('[{from = "/a", to = "b"}]', r"PATH_MAP\[0\].to = b: expected an absolute path of this host"),
            ("""[{from = "/a", to = 'D:\\b'}]""", r"PATH_MAP\[0\].to = D:\\b: expected an absolute path of this host"),
            ('[{from = "/a", to = "/b"}, {from = "/c"}]', r"PATH_MAP\[1\].to: "),
            ('[{from = "/a", to = "/b", drive = "D"}]', r"PATH_MAP\[0\].drive = D: unknown setting"),
            ("""[{from = "//rig/data", to = "/b"}, {from = '\\\\RIG\\Data', to = "/c"}]""", "the same `from`"),
        ],
    )
    def test_a_wrong_value_is_refused_with_its_place(self, monkeypatch, text, words):
        with pytest.raises(ConfigurationError, match=words):
            self.read(monkeypatch, text)


class TestProjectFile:
    """A project file that one host has written holds on every other."""

    FILE = r"""
[project]
project_name = "p"
project_base_path = '\\rig\data\I80\out'
archive_path = '\\rig\data\dandi'
raw_path = "raw"
[scan.calibration]
background_file = '\\rig\data\cal\b.mat#v'
[processing.enface]
surface = '\\rig\data\I80\surf.nii'
[processing.coordinates]
method = "fiji"
tile_configuration = 'D:\acq\tiles.txt'
"""

    def test_its_paths_are_those_of_this_host_and_what_is_registered_stays_as_configured(self, tmp_path):
        (tmp_path / "p.toml").write_text(self.FILE)
        path_map = [PathMapping(from_=RIG[0], to=Path("/mnt/rig")), PathMapping(from_="D:", to=Path("/mnt/d"))]
        config = load_project(tmp_path / "p.toml", path_map=path_map)
        assert config.base_path == Path("/mnt/rig/I80/out")
        assert config.project.archive_root == Path("/mnt/rig/dandi")
        assert config.project.raw_path == tmp_path / "raw"
        assert config.scan.calibration.background_file == "/mnt/rig/cal/b.mat#v"
        assert config.processing.enface.surface == "/mnt/rig/I80/surf.nii"
        assert config.processing.coordinates.tile_configuration == Path("/mnt/d/acq/tiles.txt")

        stored = config.as_configured.model_dump(mode="json")
        assert stored["project"]["project_base_path"] == r"\\rig\data\I80\out"
        elsewhere = [PathMapping(from_=RIG[0], to=Path("/srv"))]
        assert config_from_mapping(stored, path_map=elsewhere).base_path == Path("/srv/I80/out")

    def test_without_a_map_nothing_changes(self, tmp_path):
        (tmp_path / "p.toml").write_text('[project]\nproject_name = "p"\nproject_base_path = "out"\n')
        config = load_project(tmp_path / "p.toml", path_map=[PathMapping(from_="D:", to=Path("/mnt/d"))])
        assert config == load_project(tmp_path / "p.toml")
        assert config.as_configured is config

    def test_what_lies_in_a_project_moves_with_it(self, tmp_path):
        config = config_from_mapping(
            {"project": {"project_name": "p", "project_base_path": "/data/p", "archive_path": "/data/p/dandi",
                         "raw_path": "/data/raw"}}
        )  # fmt: skip
        moved = moved_config(config, Path("/mnt/p"), configured=r"D:\p")
        assert (moved.base_path, moved.project.archive_root) == (Path("/mnt/p"), Path("/mnt/p/dandi"))
        assert moved.project.raw_path == Path("/data/raw")
        assert str(moved.as_configured.base_path) == r"D:\p"
