"""A distorted field of view, from the tiles' maps through the pipeline to what people read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import DeploymentSettings, load_project
from opticstream.io.nifti import write_nifti
from opticstream.model.events import MosaicFlagged, MosaicReady
from opticstream.model.ids import MosaicId
from opticstream.pipeline.project import Project
from opticstream.testing.bus import LocalBus
from opticstream.testing.tissue_mosaic import tissue_mosaic

SIDE, COLUMNS, ROWS = 160, 5, 5
MOSAIC = MosaicId(1)
PROJECT = f"""
[project]
project_name = "barrel"
project_base_path = "out"
[scan]
samples = 64
b_lines = {SIDE}
grid_size_y = {ROWS}
tile_overlap = 20.0
scan_order = "column by column"
scan_resolution_3d = [0.01, 0.01, 0.0025]
illuminations = [{{ name = "normal", columns = {COLUMNS}, a_lines = {SIDE} }}]
[processing.coordinates]
further_modalities = []
[processing.enface]
modalities = ["aip"]
[processing.mask]
made_from = ""
[processing.volume]
enabled = false
"""


def stitched(folder: Path, barrel_px: float) -> tuple[Path, LocalBus]:
    """Return a project's file, and the bus on which tiles seen through a field with that barrel were stitched."""
    file = folder / "project.toml"
    file.write_text(PROJECT)
    project = Project.open(load_project(file), deployment=DeploymentSettings())
    tiles = tissue_mosaic(
        "fibres", columns=COLUMNS, rows=ROWS, tile_shape=(SIDE, SIDE), coverage=1.0, speckle=0.05, jitter_px=1.0,
        barrel_px=barrel_px, seed=7,
    ).tiles  # fmt: skip
    for tile, values in zip(project.layout.tiles(MOSAIC), tiles, strict=True):
        level_db = 10 * np.log10(np.maximum(values, 1e-3))
        write_nifti(project.paths.tile_product(tile, "aip"), level_db.astype(np.float32))
        write_nifti(project.paths.tile_product(tile, "surf"), np.full_like(values, 10.0, np.float32))
    for batch in project.layout.batches(MOSAIC):
        project.facts.record(batch, "processed")
    bus = LocalBus(project)
    bus.announce([project.event(MosaicReady, MOSAIC)])
    bus.run()
    return file, bus


def status(file: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["status", str(file), *options])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(("barrel_px", "is_told"), [(2.0, True), (0.0, False)])
def test_status_says_that_the_overlaps_disagree_in_a_pattern(tmp_path: Path, barrel_px: float, is_told: bool) -> None:
    file, bus = stitched(tmp_path, barrel_px)
    shown = json.loads(status(file, "--json"))
    assert [one["state"] for one in shown["mosaics"]] == ["stitched"]
    reasons = [reason for one in shown["doubtful"] for reason in one["reasons"]]
    assert any("overlaps disagree in a pattern" in reason for reason in reasons) == is_told
    assert ("overlaps disagree in a pattern" in " ".join(status(file).split())) == is_told
    assert any(isinstance(event, MosaicFlagged) for event in bus.seen) == is_told
