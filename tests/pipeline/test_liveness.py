"""Whatever the raw folder lacks, the run ends, what does not rest on it is finished, and the reason is told.

For each raw file of a small project in turn: missing, cut short, and late. What a late file brings is byte for byte
what an undisturbed run makes. The maps are so small that some registrations cannot be believed: those slices end
without their axes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.io.tilemap import read_tilemap
from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.pipeline.milestones import milestones
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.sim.demo import demo_phantom, project_text
from opticstream.sim.rig import VirtualRig
from opticstream.testing.bus import LocalBus
from opticstream.testing.checksums import tree_checksums, without_stacks

SETTINGS = DeploymentSettings(lease_s=5, attempts=1, stable_s=0, stall_s=0.01, sweep_s=0.01)
FILES = [(mosaic, tile) for mosaic in (1, 2, 3, 4) for tile in (1, 2, 3, 4)]
"""Two slices of two illuminations of 2 x 2 tiles."""
CHOSEN = [(1, 3)]
"""Those of `make test`: one that a template rests on."""

ENDED = {"registered", "axis failed"}

each_file = pytest.mark.parametrize(
    ("mosaic", "tile"), [pytest.param(*f, marks=() if f in CHOSEN else pytest.mark.slow) for f in FILES]
)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scanned")
    text = project_text(
        name="liveness", slices=2, samples=256, b_lines=36, a_lines=36, a_lines_tilted=32, columns=2, rows=2
    )
    (folder / "project.toml").write_text(text)
    config = load_project(folder / "project.toml")
    VirtualRig(config, demo_phantom(slices=2), folder / "raw", folder / "truth", calibration_folder=folder).run()
    return folder


@pytest.fixture
def folder(scanned, tmp_path) -> Path:
    return Path(shutil.copytree(scanned, tmp_path / "scan"))


@pytest.fixture(scope="module")
def undisturbed(scanned, tmp_path_factory) -> Path:
    folder = Path(shutil.copytree(scanned, tmp_path_factory.mktemp("undisturbed") / "scan"))
    LocalBus(opened(folder)).run_folder(folder / "raw")
    return folder


def opened(folder: Path) -> Project:
    return Project.open(load_project(folder / "project.toml"), deployment=SETTINGS)


def raw_file(folder: Path, mosaic: int, tile: int) -> Path:
    (path,) = (folder / "raw").glob(f"mosaic_{mosaic:03d}_image_{tile:04d}_*")
    return path


def results(folder: Path) -> dict[str, str]:
    """Checksums of all results but the sample's stacks."""
    return without_stacks(tree_checksums(folder / "project", without="state"))


def of_tiles(progress) -> list:
    return [f for f in progress.failures if isinstance(f.item, TileId)]


def check_ended_without(project: Project, mosaic: int, tile: int, text: str) -> None:
    """Everything that does not rest on the tile is finished, and people are told what is wrong with it."""
    progress = project_progress(project)
    (failure,) = of_tiles(progress)
    assert failure.item == TileId(mosaic, tile)
    assert text in failure.reason
    assert [m.state for m in progress.mosaics] == ["stitched"] * 4
    assert [m.volume for m in progress.mosaics] == ["stitched"] * 4
    assert {s.state for s in progress.slices} <= ENDED
    assert all(s.stacked for s in progress.slices)
    lost = {m: project.facts.read(MosaicId(m), "stitched").detail["missing_tiles"] for m in (1, 2, 3, 4)}
    assert lost == {m: [tile] if m == mosaic else [] for m in (1, 2, 3, 4)}
    assert [m.key for m in milestones(project, progress) if m.failure and text in m.text]


@each_file
def test_a_file_that_is_cut_short_costs_its_tile_and_nothing_else(folder, mosaic, tile):
    path = raw_file(folder, mosaic, tile)
    os.truncate(path, path.stat().st_size // 2)
    project = opened(folder)
    LocalBus(project).run_folder(folder / "raw")
    check_ended_without(project, mosaic, tile, path.name)


@each_file
def test_a_missing_file_costs_its_tile_only_and_is_taken_when_it_comes(folder, undisturbed, mosaic, tile):
    path = raw_file(folder, mosaic, tile)
    late = path.rename(folder / path.name)
    project = opened(folder)
    bus = LocalBus(project)
    bus.run_folder(folder / "raw")
    check_ended_without(project, mosaic, tile, "no raw file arrived")
    late.rename(path)
    bus.run_folder(folder / "raw")
    progress = project_progress(project)
    assert of_tiles(progress) == []
    assert results(folder) == results(undisturbed)


@pytest.mark.slow
def test_a_template_found_without_a_tile_is_renewed_for_it_and_all_slices_take_the_new_one(acquisition):
    for raw in list((acquisition / "raw").iterdir()):  # the same slice once more
        number = int(raw.name.split("_")[1])
        shutil.copy(raw, raw.with_name(raw.name.replace(f"mosaic_{number:03d}", f"mosaic_{number + 2:03d}")))
    raw = raw_file(acquisition, 1, 3)
    late = raw.rename(acquisition / "late")
    project = opened(acquisition)
    bus = LocalBus(project)
    bus.run_folder(acquisition / "raw")
    template = project.paths.tilemap("normal")
    assert 3 in [p.tile for p in read_tilemap(template).places if p.by_stage_only]
    late.rename(raw)
    bus.run_folder(acquisition / "raw")
    assert 3 not in [p.tile for p in read_tilemap(template).places if p.by_stage_only]
    now = project.facts.file_record(template).sha256
    assert {project.facts.read(MosaicId(m), "stitched").inputs[0].sha256 for m in (1, 3)} == {now}
    assert [m.state for m in project_progress(project).mosaics] == ["stitched"] * 4


def test_a_later_slice_does_not_wait_for_one_that_is_not_in_the_folder(folder):
    for path in (folder / "raw").glob("mosaic_00[12]_*"):
        path.rename(folder / path.name)
    project = opened(folder)
    bus = LocalBus(project)
    bus.run_folder(folder / "raw")
    progress = project_progress(project)
    assert of_tiles(progress) == []
    assert [(m.mosaic_id, m.state) for m in progress.mosaics] == [(3, "stitched"), (4, "stitched")]
    assert [s.slice_id for s in progress.slices if s.state in ENDED] == [2]
    for path in folder.glob("mosaic_00[12]_*"):
        path.rename(folder / "raw" / path.name)
    bus.run_folder(folder / "raw")
    progress = project_progress(project)
    assert [m.state for m in progress.mosaics] == ["stitched"] * 4
    assert {s.state for s in progress.slices} <= ENDED
    assert read_tilemap(project.paths.tilemap("normal")).source["mosaic_id"] == 3


def test_a_whole_column_and_a_whole_mosaic_may_be_missing(folder):
    for pattern in ("mosaic_001_image_000[34]_*", "mosaic_002_*"):
        for path in (folder / "raw").glob(pattern):
            path.unlink()
    project = opened(folder)
    LocalBus(project).run_folder(folder / "raw")
    progress = project_progress(project)
    assert [m.state for m in progress.mosaics] == ["stitched", "failed", "stitched", "stitched"]
    assert progress.slices[0].state == "skipped"
    assert progress.slices[1].state in ENDED
    assert "mosaic 2 (tilted)" in progress.slices[0].reason
    assert project.facts.read(BatchId(1, 2), "processed").detail["failed_tiles"] == [3, 4]
    assert project.facts.has(SliceId(1), "stacked"), "its first mosaic is good"


def test_a_ready_flag_that_cannot_be_read_is_written_anew(folder):
    project = opened(folder)
    flag = project.facts.path(BatchId(1, 1), "ready")
    flag.parent.mkdir(parents=True)
    flag.touch()
    LocalBus(project).run_folder(folder / "raw")
    assert [m.state for m in project_progress(project).mosaics] == ["stitched"] * 4


def test_results_outlive_raw_files_that_were_moved_away(folder):
    project = opened(folder)
    late = raw_file(folder, 1, 2).rename(folder / "late.nii")
    bus = LocalBus(project)
    bus.run_folder(folder / "raw")
    results = project.facts.read(TileId(1, 1), "processed").time
    raw_file(folder, 1, 1).rename(folder / "elsewhere")
    late.rename(folder / "raw" / "mosaic_001_image_0002_spectral_0002.nii")
    bus.run_folder(folder / "raw")
    assert of_tiles(project_progress(project)) == []
    assert project.facts.read(TileId(1, 1), "processed").time == results
