"""Flagged results can be looked up afterwards: who missed the notification still sees them in `status`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import load_project
from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.pipeline.project import Project
from opticstream.pipeline.quality_flags import FlaggedResult, flagged_results

BLANK = "91 % of the A-lines show no tissue (processing.quality.blank_fraction)"


@pytest.fixture
def project(project_file):
    opened = Project.open(load_project(project_file))
    tiles = {"1": {"outcome": "ok"}, "2": {"outcome": "ok", "flags": [BLANK]}}
    opened.facts.record(BatchId(1, 1), "processed", {"detail": {"tiles": tiles}})
    opened.facts.record(MosaicId(1), "stitched", {"detail": {"doubts": ["stitched without tiles 3"]}})
    opened.facts.record(MosaicId(2), "stitched", {"detail": {"doubts": []}})
    opened.facts.record(SliceId(1), "registered", {"detail": {}})  # as earlier versions wrote it
    return opened


def test_flagged_tiles_and_mosaics_are_found_in_the_facts(project):
    assert set(flagged_results(project, project.facts.snapshot())) == {
        FlaggedResult(TileId(1, 2), (BLANK,)),
        FlaggedResult(MosaicId(1), ("stitched without tiles 3",)),
    }


def test_a_damaged_flag_hides_nothing_else(project):
    flags = (file for file in project.facts.project_dir.rglob("*") if file.is_file())
    next(file for file in flags if "stitched without" in file.read_text()).write_text("{")
    assert [one.item for one in flagged_results(project, project.facts.snapshot())] == [TileId(1, 2)]


def test_status_lists_what_is_doubtful(project, project_file):
    shown = CliRunner().invoke(app, ["status", str(project_file)])
    assert f"doubtful tile 2 of mosaic 1: {BLANK}" in " ".join(shown.output.split())
    listed = json.loads(CliRunner().invoke(app, ["status", str(project_file), "--json"]).output)["doubtful"]
    assert {one["item"] for one in listed} == {MosaicId(1).key, TileId(1, 2).key}
