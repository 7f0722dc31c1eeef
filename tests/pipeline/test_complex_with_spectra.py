"""A rig that writes complex tiles and their spectra: both go through the chain, each to its own use."""

from __future__ import annotations

import gzip

import pytest

from opticstream.config import DeploymentSettings
from opticstream.flows.driver import Driver
from opticstream.model.ids import BatchId, TileId
from opticstream.pipeline.project import Project
from opticstream.sim.rig import VirtualRig
from opticstream.testing.bus import LocalBus
from opticstream.testing.small_phantom import plain_phantom, small_project_config
from opticstream.watch import Watcher

COMPLEX, SPECTRAL = "mosaic_{mosaic:03d}_image_{tile:04d}_complex.nii", "mosaic_{mosaic:03d}_image_{tile:04d}_spec.nii"


@pytest.fixture
def rig(tmp_path):
    config = small_project_config(
        tmp_path / "project",
        raw_format="complex",
        file_name=COMPLEX,
        spectral_file_name=SPECTRAL,
        illuminations=[{"name": "normal", "columns": 2, "a_lines": 24}],
    )
    VirtualRig(config, plain_phantom(), tmp_path / "raw").run()
    project = Project.open(config, deployment=DeploymentSettings(archive_path=tmp_path / "archive"))
    return project, tmp_path / "raw"


def run(project, raw):
    bus = LocalBus(project)
    bus.feed(raw)
    bus.run()


def test_the_archive_holds_the_spectra_and_the_maps_come_from_the_complex_tiles(rig):
    project, raw = rig
    run(project, raw)
    for number in (1, 2, 3, 4):
        copy = project.paths.archived_tile(TileId(1, number), ".nii.gz")
        spectra = raw / SPECTRAL.format(mosaic=1, tile=number)
        assert gzip.decompress(copy.read_bytes()) == spectra.read_bytes()
        assert project.paths.tile_product(TileId(1, number), "aip").exists()
        (kept,) = (project.paths.base / TileId(1, number).mosaic.folder / "complex").glob(f"*image_{number:04d}_*")
        assert kept.resolve() == raw / COMPLEX.format(mosaic=1, tile=number)
    archived = project.facts.read(BatchId(1, 1), "archived")
    assert archived is not None
    assert len(archived.outputs) == 2


def test_links_to_complex_tiles_hold_when_project_and_raw_folder_are_moved_together(rig, tmp_path):
    project, raw = rig
    run(project, raw)
    moved = tmp_path / "elsewhere" / "2026"
    moved.mkdir(parents=True)
    for folder in (project.paths.base, raw):
        folder.rename(moved / folder.name)
    links = sorted((moved / "project" / "mosaic-01" / "complex").iterdir())
    assert len(links) == 4
    for tile, kept in enumerate(links, 1):
        assert kept.resolve() == moved / "raw" / COMPLEX.format(mosaic=1, tile=tile)


def test_a_tile_whose_spectra_did_not_come_is_parked_alone(rig):
    project, raw = rig
    (raw / SPECTRAL.format(mosaic=1, tile=2)).unlink()
    bus = LocalBus(project)
    driver = Driver(project, Watcher(raw, project.config.scan, stable_s=0, stall_s=0), announce=bus.announce)
    driver.step()
    for found in driver.watcher.give_up_waiting():
        driver.ready(found)
    bus.run()
    failed = project.facts.read(TileId(1, 2), "failed")
    assert failed is not None
    assert "no raw and spectral file arrived" in failed.detail["reason"]
    assert project.facts.has(TileId(1, 1), "processed")
    assert project.facts.has(BatchId(1, 2), "processed")
