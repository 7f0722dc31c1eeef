"""Batches of a project that asks for a graphics card, on a host that has none: what is recorded, and what is not."""

from __future__ import annotations

import pytest
from tests.pipeline.one_column import BATCH, PROJECT

from opticstream.config import DeploymentSettings, load_project
from opticstream.config.engines import CudaEngine
from opticstream.engines import why_no_card
from opticstream.model.events import BatchProcessed, BatchReady
from opticstream.model.ids import TileId
from opticstream.pipeline import batches
from opticstream.pipeline.parameters import slice_settings, tile_hash
from opticstream.pipeline.project import Project
from opticstream.pipeline.stale import stale_results
from opticstream.sim.demo import PROJECT_FILE, write_demo
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("opticstream.stages.tile._card_tile.why_no_card", lambda: "CuPy is not installed")
    (tmp_path / "raw").mkdir()
    (tmp_path / "p.toml").write_text(PROJECT, encoding="utf-8")
    for tile in (1, 2):
        write_spectral_nifti(
            tmp_path / "raw" / f"mosaic_001_image_{tile:04d}.nii", fringe_counts(channels=1, seed=tile)
        )
    return tmp_path


def _processed(folder, engine):
    config = load_project(folder / "p.toml", overrides={"processing.engine": engine})
    project = Project.open(config, deployment=DeploymentSettings(lease_s=30, attempts=1, stable_s=0.05, stall_s=60))
    files = {tile: f"mosaic_001_image_{tile:04d}.nii" for tile in (1, 2)}
    event = project.event(BatchReady, BATCH, raw_folder=str(folder / "raw"), files=files)
    if not project.facts.has(BATCH, "ready"):
        project.facts.record(BATCH, "ready", {"detail": {"event": event.payload()}})
    return project, batches.process_batch(project, event)


def test_records_say_what_made_a_tile_and_why_and_a_change_of_the_engine_makes_nothing_stale(folder):
    project, events = _processed(folder, "cuda")
    assert [event.failed_tiles for event in events if isinstance(event, BatchProcessed)] == [()]
    detail = project.facts.read(TileId(1, 2), "processed").detail
    assert detail["engine"] == "native"
    assert detail["engine_note"] == "no graphics card: CuPy is not installed"
    in_batch = project.facts.read(BATCH, "processed").detail["tiles"]["2"]
    assert in_batch["engine_note"] == detail["engine_note"]
    native, _ = _processed(folder, "native")
    assert not list(stale_results(native))
    assert tile_hash(native.config, 0) == tile_hash(project.config, 0)
    assert slice_settings(native.config).hash == slice_settings(project.config).hash


def test_a_card_that_is_required_parks_the_tiles_with_the_reason(folder):
    project, events = _processed(folder, {"kind": "cuda", "required": True})
    assert [event.failed_tiles for event in events if isinstance(event, BatchProcessed)] == [(1, 2)]
    failed = project.facts.read(TileId(1, 1), "failed")
    assert "CuPy is not installed; processing.engine.required = true" in failed.detail["reason"]
    assert failed.detail["kind"] == "engine"


def test_a_demo_can_ask_for_a_card(tmp_path):
    write_demo(tmp_path, small=True, engine="cuda")
    assert isinstance(load_project(tmp_path / PROJECT_FILE).processing.engine, CudaEngine)


def test_whether_there_is_a_card_is_tried_once_in_a_process():
    assert why_no_card() == why_no_card()
    assert why_no_card.cache_info().misses <= 1
