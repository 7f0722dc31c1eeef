"""Commands as a person uses them: help, exit codes, errors that say what to turn."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import DeploymentSettings, load_project
from opticstream.model.ids import TileId
from opticstream.pipeline.project import Project
from opticstream.testing.bus import LocalBus

runner = CliRunner()


def call(*arguments: str | Path):
    return runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def processed(acquired, tmp_path_factory) -> Path:
    """A processed acquisition in which one tile is damaged."""
    folder = Path(shutil.copytree(acquired, tmp_path_factory.mktemp("processed") / "acquisition"))
    os.truncate(next((folder / "raw").glob("mosaic_001_image_0003_*")), 100)
    config = load_project(folder / "project.toml")
    bus = LocalBus(Project.open(config, deployment=DeploymentSettings(attempts=1)))
    bus.feed(folder / "raw")
    bus.run()
    return folder


def test_help_names_every_command_and_is_quick():
    answer = call("--help")
    assert answer.exit_code == 0
    commands = (
        "demo run watch status retry failures history state project stitch register sample validate sim import up "
        "server worker doctor tile archive calibrate notify"
    )
    for command in commands.split():
        assert f" {command} " in answer.output, command
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, opticstream.cli; print(sorted(sys.modules))"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for heavy in ("prefect", "numba", "scipy", "matplotlib", "SimpleITK", "tensorstore"):
        assert f"'{heavy}'" not in loaded, heavy


def test_compute_can_be_imported_without_prefect():
    code = "import sys; sys.modules['prefect'] = None; import opticstream.compute; import opticstream.stages.tile"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_project_file_is_written_once_and_passes_its_check(tmp_path):
    file = tmp_path / "brain.toml"
    assert call("project", "init", file).exit_code == 0
    assert call("project", "check", file).exit_code == 0
    again = call("project", "init", file)
    assert again.exit_code == 2
    assert "was not changed" in again.output


def test_wrong_settings_end_with_status_2_and_name_the_key(tmp_path):
    file = tmp_path / "brain.toml"
    file.write_text('[project]\nproject_name = "p"\nproject_base_path = "o"\n[scan]\nsample = 3\n')
    answer = call("project", "check", file)
    assert answer.exit_code == 2
    assert "scan.sample: unknown setting" in answer.output


def test_a_missing_calibration_file_is_found_by_the_check(tmp_path):
    file = tmp_path / "brain.toml"
    file.write_text(
        '[project]\nproject_name = "p"\nproject_base_path = "o"\n'
        '[scan.calibration]\ndispersion_files = ["nowhere.npy"]\n'
    )
    answer = call("project", "check", file)
    assert answer.exit_code == 2
    assert "nowhere.npy" in answer.output


def test_show_resolves_overrides(acquired):
    answer = call("project", "show", acquired / "project.toml", "--set", "depth=33", "--json")
    assert json.loads(answer.output)["processing"]["enface"]["depth"] == 33


def test_status_tells_what_failed_and_ends_with_status_1(processed):
    answer = call("status", processed / "project.toml")
    assert answer.exit_code == 1
    assert "tile 3 of mosaic 1" in answer.output
    assert "mosaic_001_image_0003" in answer.output
    data = json.loads(call("status", processed / "project.toml", "--json").output)
    assert [f["item"] for f in data["failures"]] == ["mosaic-001/tile-0003"]
    assert [m["state"] for m in data["mosaics"]] == ["stitched", "stitched"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["status", "nowhere.toml"], 2, "nowhere.toml"),
        (["failures", "nowhere.toml"], 2, "nowhere.toml"),
        (["history", "{project}", "mosaic-one"], 2, "mosaic-one"),
        (["retry", "{project}", "mosaic-one"], 2, "mosaic-one"),
        (["notify", "test", "--target", "nobody"], 2, "nobody"),
    ],
)
def test_an_error_of_a_command_that_prints_json_is_json_too(processed, arguments, status, words):
    given = [one.replace("{project}", str(processed / "project.toml")) for one in arguments]
    answer = call(*given, "--json")
    assert answer.exit_code == status
    told = json.loads(answer.stdout)
    assert words in told["error"]
    assert told["exit_status"] == status
    plain = call(*given)
    assert plain.exit_code == status
    assert plain.stdout == ""


def test_status_that_watches_prints_a_line_of_json_for_each_change(processed):
    copy = Path(shutil.copytree(processed, processed.parent / "watched"))
    command = [sys.executable, "-m", "opticstream", "status", str(copy / "project.toml"), "--watch", "--json"]
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    every = [*command, "--every", "0.2"]
    with subprocess.Popen(every, stdout=subprocess.PIPE, text=True, preexec_fn=restore) as watching:
        try:
            assert watching.stdout is not None
            lines = map(json.loads, watching.stdout)
            assert next(lines)["failures"]
            Project.open(load_project(copy / "project.toml")).facts.withdraw(TileId(1, 3), "failed", reason="test")
            assert any(not later["failures"] for later in lines)  # other things may have changed before
            watching.send_signal(signal.SIGINT)
            assert watching.wait(60) == 0
        finally:
            watching.kill()
    shown = call("status", copy / "project.toml")
    assert "mosaic" in shown.output


def test_status_names_what_a_changed_setting_has_put_out_of_date(processed):
    file = processed / "changed.toml"
    text = (processed / "project.toml").read_text()
    assert "[processing.stitch]" not in text
    file.write_text(text + "\n[processing.stitch]\nshading_correction = true\n")
    data = json.loads(call("status", file, "--json").output)
    assert {(one["item"], one["fact"]) for one in data["stale"]} == {
        (mosaic, fact) for mosaic in ("mosaic-001", "mosaic-002") for fact in ("stitched", "volume_stitched")
    }
    answer = call("status", file)
    assert "out of date 2 x mosaic stitched: processing.stitch.shading_correction: False -> True" in answer.output
    assert "run PROJECT --stale" in answer.output
    assert "out of date" not in call("status", processed / "project.toml").output


def test_run_without_a_folder_is_wrong_use_unless_it_is_for_what_is_stale(processed):
    answer = call("run", processed / "project.toml")
    assert answer.exit_code == 2
    assert "--stale" in answer.output


def test_retry_says_what_it_would_take_back(processed):
    answer = call("retry", processed / "project.toml", "--dry-run", "--json")
    plan = json.loads(answer.output)
    assert (
        "mosaic-001/batch-002.processed" in plan["withdrawn"] or "mosaic-001/batch-001.processed" in plan["withdrawn"]
    )
    assert "slice-001.registered" in plan["withdrawn"]
    assert not any(name.startswith("mosaic-002") for name in plan["withdrawn"])
    assert json.loads(call("status", processed / "project.toml", "--json").output)["failures"]


def test_history_tells_what_happened_to_an_item(processed):
    answer = call("history", processed / "project.toml", "mosaic-001")
    assert answer.exit_code == 0
    assert "recorded ready" in answer.output
    assert "computed stitched" in answer.output
    wrong = call("history", processed / "project.toml", "mosaik-1")
    assert wrong.exit_code == 2


def test_validate_compares_with_the_truth(processed):
    answer = call("validate", processed / "project.toml", "--json")
    assert answer.exit_code in (0, 1)
    assert "orientation" in answer.output


def test_the_demo_does_not_remove_what_it_has_not_made(tmp_path):
    (tmp_path / "months-of-work.nii").write_text("precious")
    answer = call("demo", "--out", tmp_path)
    assert answer.exit_code == 2
    assert (tmp_path / "months-of-work.nii").read_text() == "precious"


def test_an_array_becomes_a_raw_tile(shared_data, tmp_path):
    import numpy as np

    from opticstream.io.raw import SpectralShape, SpectralTile

    file = tmp_path / "p.toml"
    file.write_text(
        '[project]\nproject_name = "p"\nproject_base_path = "o"\n[scan]\nsamples = 1024\nchannels = 1\nb_lines = 100\n'
        'grid_size_y = 1\nilluminations = [{ name = "normal", columns = 1, a_lines = 100 }]\n'
        '[processing.enface]\nmodalities = ["aip"]\n[processing.reconstruction]\nvolume_modalities = ["dBI"]\n'
        '[processing.volume]\nmodalities = ["dBI"]\n'
    )
    source = shared_data / "sdoct_cscan" / "cscan_counts_u16.npy"
    assert call("import", source, file, tmp_path / "raw").exit_code == 0
    (tile,) = (tmp_path / "raw").glob("*.nii")
    with SpectralTile.open(tile, SpectralShape(1024, 100, 1, 100)) as opened:
        ((_, counts),) = opened.blocks(100)
        np.testing.assert_array_equal(counts[:, 0], np.load(source))
    wrong = call("import", source, file, tmp_path / "raw", "--tile", "mosaic-001")
    assert wrong.exit_code == 2
