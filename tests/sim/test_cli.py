"""The commands: what a person types, what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.sim.settings import PhantomSettings

PROJECT = """
[project]
project_name = "tiny"
project_base_path = "project"
[scan]
samples = 128
b_lines = 10
grid_size_y = 1
scan_resolution_3d = [0.01, 0.01, 0.004]
illuminations = [{ name = "normal", columns = 2, a_lines = 12 }, { name = "tilted", columns = 1, a_lines = 12 }]
[scan.calibration]
dispersion_files = ["calibration/d1.npy", "calibration/d2.npy"]
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "project.toml").write_text(PROJECT)
    settings = PhantomSettings(slices=1, sample={"outline": "full"})
    (tmp_path / "phantom.json").write_text(settings.model_dump_json())
    return tmp_path


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_make_writes_a_project_that_check_accepts_once(tmp_path: Path) -> None:
    for preset in ("demo", "hard", "full-size"):
        code, text = call("sim", "make", tmp_path / preset, "--preset", preset)
        assert code == 0, text
        assert (tmp_path / preset / "phantom.json").is_file()
    code, text = call("sim", "make", tmp_path / "demo")
    assert code == 2
    assert "already exists" in text
    code, text = call("sim", "make", tmp_path / "other", "--preset", "moon")
    assert code == 2
    assert "expected one of demo, hard, optic-tract, full-size" in text


def test_rig_writes_tiles_truth_and_calibration_and_goes_on(tiny: Path) -> None:
    code, text = call("sim", "rig", tiny / "project.toml", tiny / "raw", "--rate", "50x")
    assert code == 0, text
    assert len(list((tiny / "raw").iterdir())) == 3
    assert (tiny / "truth" / "truth.json").is_file()
    assert (tiny / "calibration" / "d2.npy").is_file()
    code, text = call("sim", "rig", tiny / "project.toml", tiny / "raw")
    assert text.count("already complete") == 3


def test_the_rig_says_which_mosaics_meet_no_tissue(tiny: Path) -> None:
    assert "no tissue" not in call("sim", "rig", tiny / "project.toml", tiny / "raw")[1]
    notched = PhantomSettings(slices=1, sample={"outline": "notched", "blank_corners": ("left-down",)})
    (tiny / "phantom.json").write_text(notched.model_dump_json())
    code, text = call("sim", "rig", tiny / "project.toml", tiny / "bare", "--truth", tiny / "bare-truth")
    assert code == 0
    assert "no tissue in mosaic 2: sample.outline" in text.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "fast"], "expected a positive number such as 1x"),
        (["--misbehave", "sing:1"], "unknown misbehaviour"),
        (["--truth", "RAW/truth"], "where stages could read it"),
        (["--phantom", "RAW/none.json"], "cannot be read as phantom settings"),
    ],
)
def test_wrong_use_of_the_rig_ends_with_2_and_says_why(tiny: Path, options: list[str], message: str) -> None:
    options = [o.replace("RAW", str(tiny / "raw")) for o in options]
    code, text = call("sim", "rig", tiny / "project.toml", tiny / "raw", *options)
    assert code == 2
    assert message in text


def test_a_phantom_file_with_a_wrong_key_is_refused_by_name(tiny: Path) -> None:
    (tiny / "phantom.json").write_text('{"sample": {"colour": "pink"}}')
    code, text = call("sim", "rig", tiny / "project.toml", tiny / "raw")
    assert code == 2
    assert "sample.colour" in text


def test_show_draws_the_phantom(tiny: Path) -> None:
    code, text = call("sim", "show", tiny / "project.toml", tiny / "pictures", "--tile", "2/1")
    assert code == 0, text
    assert {p.name for p in (tiny / "pictures").iterdir()} == {"phantom-truth.png", "phantom-tile.png"}
    assert call("sim", "show", tiny / "project.toml", tiny / "pictures", "--tile", "9")[0] == 2


def test_validate_of_an_unprocessed_project_fails_and_lists_what_lacks(tiny: Path) -> None:
    call("sim", "rig", tiny / "project.toml", tiny / "raw")
    code, text = call("validate", tiny / "project.toml")
    assert code == 1
    assert "tilemap-normal.j2: no such tile map" in text
    code, text = call("validate", tiny / "project.toml", "--json", "--bound", "position=0.2")
    report = json.loads(text)
    assert report["passed"] is False
    assert [f["bound"] for f in report["figures"] if f["quantity"] == "position"] == [0.2]
    assert call("validate", tiny / "project.toml", "--bound", "beauty=1")[0] == 2
