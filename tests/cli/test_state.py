"""`opticstream state`: shown, verified and taken back as a person does it, and restored after a server was lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opticstream.cli import app, state
from opticstream.config import load_project
from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.pipeline.project import Project

runner = CliRunner()
PROJECT = """
[project]
project_name = "Brain 7"
project_base_path = "out"
[scan]
grid_size_y = 2
illuminations = [{ name = "normal", columns = 2, a_lines = 350 }, { name = "tilted", columns = 1, a_lines = 200 }]
"""


def call(*arguments, **options):
    return runner.invoke(app, [str(argument) for argument in arguments], **options)


def output(project: Project, name: str):
    path = project.paths.base / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
    return project.facts.file_record(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A project file whose first slice is registered; one tile is parked, one mosaic is published."""
    path = tmp_path / "brain.toml"
    path.write_text(PROJECT)
    project = Project.open(load_project(path))
    facts = project.facts
    for mosaic in project.layout.mosaics(SliceId(1)):
        for batch in project.layout.batches(mosaic):
            facts.record(batch, "ready")
            for tile in project.layout.tiles(batch):
                made = output(project, f"{mosaic.folder}/processed/tile-{tile.tile_id}.nii")
                facts.record(tile, "processed", {"outputs": [made]})
            with facts.claim(batch):
                facts.record(batch, "processed")
        facts.record(mosaic, "ready")
        facts.record(mosaic, "stitched", {"outputs": [output(project, f"{mosaic.folder}/stitched/aip.nii")]})
    facts.withdraw(TileId(1, 3), "processed", reason="test")
    facts.record(TileId(1, 3), "failed", {"detail": {"reason": "cut short"}})
    published = project.paths.archive_root / "derivative" / "aip.nii"
    published.parent.mkdir(parents=True)
    published.write_text("published")
    facts.record(MosaicId(1), "published", {"outputs": [facts.file_record(published)]})
    facts.record(SliceId(1), "ready")
    facts.record(SliceId(1), "registered", {"outputs": [output(project, "registered/axis.nii")]})
    return path


def facts_of(file: Path):
    return Project.open(load_project(file)).facts


def test_show_draws_the_tree_and_lists_what_is_not_done(file):
    answer = call("state", "show", file)
    assert answer.exit_code == 0
    lines = [" ".join(line.strip("│├└─ ").split()) for line in answer.output.splitlines()]
    assert lines[0].startswith("Brain 7")
    assert "slice 1 ready registered" in lines
    assert "mosaic 1 ready stitched published 2 of 2 batches done" in lines
    assert "batch 2 ready processed failed tiles 3" in lines
    assert not any(line.startswith("batch 1") for line in lines)
    assert call("state", "show", file, "--batches").output.count("batch 1 ") == 2


def test_show_as_json_holds_every_fact(file):
    data = json.loads(call("state", "show", file, "--json").output)
    mosaic = data["slices"]["1"]["mosaics"]["1"]
    assert mosaic["batches"]["2"]["failed_tiles"] == [3]
    assert {"ready_at", "stitched_at", "published_at"} <= mosaic.keys()
    assert data["slices"]["1"]["registered_at"].endswith("Z")


def test_verify_finds_nothing_wrong_and_ends_with_status_0(file):
    answer = call("state", "verify", file)
    assert answer.exit_code == 0, answer.output
    assert "compared 9 files (existence, size and checksum): no problems" in answer.output


def test_verify_names_what_is_damaged_and_ends_with_status_1(file):
    out = file.parent / "out"
    (out / "registered/axis.nii").unlink()
    damaged = out / "mosaic-02/stitched/aip.nii"
    damaged.write_text(damaged.read_text()[::-1])
    answer = call("state", "verify", file)
    assert answer.exit_code == 1
    assert "missing slice 1 registered" in answer.output
    assert "checksum mosaic 2 stitched" in answer.output
    quick = call("state", "verify", file, "--no-checksums", "--json")
    assert quick.exit_code == 1
    (finding,) = json.loads(quick.output)["findings"]
    assert (finding["item"], finding["problem"]) == ("slice-001", "missing")
    assert finding["path"].endswith("registered/axis.nii")


def test_reset_says_what_goes_and_what_stays_and_changes_nothing_in_a_dry_run(file):
    before = facts_of(file).snapshot()
    answer = call("state", "reset", file, "mosaic-001", "--downstream", "--dry-run")
    assert answer.exit_code == 0
    assert "slice 1: withdraw ready, registered" in answer.output
    assert "remove mosaic-01/stitched/aip.nii" in answer.output
    assert "aip.nii is published and stays until the new result replaces it" in answer.output
    assert facts_of(file).snapshot() == before


def test_reset_is_not_done_unasked(file):
    before = facts_of(file).snapshot()
    answer = call("state", "reset", file, "mosaic-001")
    assert answer.exit_code == 2
    assert "--yes" in answer.output
    assert facts_of(file).snapshot() == before


@pytest.mark.parametrize(("reply", "done"), [("y\n", True), ("n\n", False)])
def test_reset_asks(file, monkeypatch, reply, done):
    monkeypatch.setattr(state, "_has_terminal", lambda: True)
    answer = call("state", "reset", file, "slice-001", input=reply)
    assert answer.exit_code == 0
    assert facts_of(file).has(SliceId(1), "registered") is not done
    assert ("withdrew" in answer.output) is done


def test_reset_leaves_published_files_and_the_parts_of_a_mosaic_alone(file):
    answer = call("state", "reset", file, "mosaic-001", "--downstream", "--yes", "--json")
    assert answer.exit_code == 0, answer.output
    plan = json.loads(answer.output)
    assert plan["done"] is True
    assert set(plan["remove"]) == {"mosaic-01/stitched/aip.nii", "registered/axis.nii"}
    facts = facts_of(file)
    assert facts.facts_of(MosaicId(1)) == {"ready"}
    assert facts.facts_of(MosaicId(2)) == {"ready", "stitched"}
    assert facts.has(BatchId(1, 1), "processed")
    assert (file.parent / "out/mosaic-01/processed/tile-1.nii").exists()
    assert not (file.parent / "out/mosaic-01/stitched/aip.nii").exists()
    (published,) = plan["published"]
    assert facts.roots["archive"].joinpath(published.removeprefix("archive:")).read_text() == "published"
    again = call("state", "reset", file, "mosaic-001", "--yes")
    assert "nothing to undo for mosaic 1" in again.output


def test_an_unknown_item_is_wrong_use(file):
    answer = call("state", "reset", file, "mosaik-1", "--yes")
    assert answer.exit_code == 2
    assert "mosaik-1" in answer.output


@pytest.mark.server
@pytest.mark.filterwarnings("default")
def test_after_the_server_lost_everything_rebuild_restores_the_same_state(file, prefect_server, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from opticstream.flows.parameters import load_parameters
    from opticstream.flows.prefect_state import OCT_STATE_SERVICE

    monkeypatch.setenv("OPTICSTREAM_API_URL", prefect_server)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        lost = call("state", "show", file, "--server")
        assert lost.exit_code == 1
        assert "opticstream state rebuild" in lost.output
        assert call("state", "rebuild", file).exit_code == 0
        before = OCT_STATE_SERVICE.peek_project("Brain 7")
        OCT_STATE_SERVICE.store.repository.delete("Brain 7")
        assert OCT_STATE_SERVICE.peek_project("Brain 7") is None
        answer = call("state", "rebuild", file, "--json")
        assert json.loads(answer.stdout)["batches"] == 3
        assert OCT_STATE_SERVICE.peek_project("Brain 7") == before
        assert load_parameters("Brain 7") == load_project(file)
        shown = json.loads(call("state", "show", file, "--server", "--json").stdout)
        assert shown == json.loads(call("state", "show", file, "--json").stdout)
