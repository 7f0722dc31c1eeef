"""A project with the layout `bids`: what is published where, and that the real validator accepts the tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.io.nifti import write_nifti
from opticstream.io.zarr import SliceStore
from opticstream.model.ids import BatchId, MosaicId, SliceId
from opticstream.pipeline.project import Project
from opticstream.pipeline.uploads import upload_pending
from opticstream.stages.tile import archive_tile, checksum_path, spectra_of_nifti
from opticstream.state.manifest import records_of_store, write_manifest
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

RAW = "sub-01/micr/sub-01_sample-slice001_acq-normal_chunk-0002_OCT"
RESULTS = "derivatives/opticstream/sub-01/micr/sub-01_sample-slice001"


@pytest.fixture
def project(project_file: Path) -> Project:
    """A project with results of one slice, published as BIDS."""
    text = project_file.read_text() + '[publish]\nlayout = "bids"\n'
    project_file.write_text(text)
    project = Project.open(load_project(project_file), deployment=DeploymentSettings())
    facts, paths = project.facts, project.paths
    for batch in (BatchId(1, 1), BatchId(1, 2)):
        outputs = []
        for tile in project.layout.tiles(batch):
            raw = project_file.parent / f"{tile.tile_id}.nii"
            write_spectral_nifti(raw, fringe_counts(samples=64, a_lines=2, b_lines=2))
            form = ".nii.zarr.zip" if batch.batch_id == 2 else ".nii.gz"
            content = spectra_of_nifti(raw)
            copy = archive_tile(raw, paths.archived_tile(tile, form), content=content).archive
            outputs += [facts.file_record(copy), facts.file_record(checksum_path(copy))]
        facts.record(batch, "archived", {"outputs": outputs})
    write_nifti(paths.mosaic_product(MosaicId(1), "aip"), np.ones((4, 3, 1)), voxel_size_mm=(0.01, 0.02, 0.5))
    paths.mosaic_product(MosaicId(1), "aip", ".jpg").write_bytes(b"picture")
    tilemap = paths.tilemap("normal")
    tilemap.write_text("tiles")
    made = [paths.mosaic_product(MosaicId(1), "aip", suffix) for suffix in (".nii.gz", ".jpg")]
    facts.record(MosaicId(1), "stitched", {"outputs": [facts.file_record(path) for path in [*made, tilemap]]})
    volume = paths.mosaic_volume(MosaicId(1), "dBI")
    SliceStore(volume, 2, (10.0, 20.0, 2.5), "scalar").put(
        0, (4, 4), lambda xs, ys: np.ones((xs.stop - xs.start, ys.stop - ys.start, 2), np.float32)
    )
    write_manifest(volume)
    facts.record(MosaicId(1), "volume_stitched", {"outputs": records_of_store(facts.file_record, volume)})
    axis = write_nifti(
        paths.registered_folder / "slice_001_axis.nii.gz", np.ones((4, 3, 1)), voxel_size_mm=(0.01, 0.02, 0.5)
    )
    facts.record(SliceId(1), "registered", {"outputs": [facts.file_record(axis)]})
    list(upload_pending(project))
    return project


def sidecar(project: Project, name: str) -> dict[str, object]:
    return json.loads((project.paths.archive_root / f"{name}.json").read_bytes())


def test_everything_has_its_name_and_its_sidecar(project):
    root = project.paths.archive_root
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    names = {name.partition(".ome.zarr/")[0] for name in names if not name.endswith(".lock")}
    tiles = {
        f"sub-01/micr/sub-01_sample-slice001_acq-normal_chunk-{n:04d}_OCT{suffix}"
        for n in range(1, 5)
        for suffix in (".nii.gz" if n < 3 else ".nii.zarr.zip", ".nii.sha256", ".json")
    }
    dataset = {"dataset_description.json", "README.md", ".bidsignore", "participants.tsv", "samples.tsv"}
    assert names == {
        *tiles,
        *dataset,
        *(f"derivatives/opticstream/{name}" for name in dataset),
        *(f"{RESULTS}_acq-normal_desc-aip_map{suffix}" for suffix in (".nii.gz", ".jpg", ".json")),
        f"{RESULTS}_acq-normal_desc-tilemapNormal_data.j2",
        *(f"{RESULTS}_acq-normal_desc-dBI_OCT{suffix}" for suffix in ("", ".json", ".ome.zarr.sha256")),
        *(f"{RESULTS}_desc-axis_map{suffix}" for suffix in (".nii.gz", ".json")),
    }
    assert sidecar(project, f"{RESULTS}_acq-normal_desc-dBI_OCT") == {
        "Description": "dBI of mosaic 1",
        "PixelSize": [10.0, 20.0, 2.5],
        "PixelSizeUnits": "um",
    }
    assert sidecar(project, f"{RESULTS}_desc-axis_map")["PixelSize"] == [10.0, 20.0, 500.0]
    tile = sidecar(project, RAW)
    assert (tile["PixelSize"], tile["PixelSizeUnits"]) == ([10.0, 10.0, 2.5], "um")
    matrix = np.array(tile["ChunkTransformationMatrix"])
    assert matrix[:, 3].tolist() == [0.0, 2800.0, 0.0, 1.0], "the second tile of the column: 350 B-lines, 20 % overlap"
    assert tile["ChunkTransformationMatrixAxis"] == ["X", "Y", "Z"]


def test_results_of_the_project_are_links_to_the_names_of_bids(project):
    volume = project.paths.mosaic_volume(MosaicId(1), "dBI")
    assert volume.readlink().name == "sub-01_sample-slice001_acq-normal_desc-dBI_OCT.ome.zarr"
    assert (volume / "zarr.json").is_file()
    links = {path.name for path in project.paths.archived_folder(MosaicId(1)).iterdir()}
    assert f"{Path(RAW).name}.nii.gz" in links


def test_the_real_validator_accepts_the_tree(project):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    for folder in (project.paths.archive_root, project.paths.archive_root / "derivatives" / "opticstream"):
        done = subprocess.run(
            [validator, "--json", folder],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"},
        )
        issues = json.loads(done.stdout)["issues"]["issues"]
        assert [issue for issue in issues if issue["severity"] == "error"] == []
        assert done.returncode == 0, done.stderr


def test_a_layout_that_changes_has_results_published_again_and_nothing_computed_again(project, project_file):
    from opticstream.pipeline.redo import apply_plan
    from opticstream.pipeline.stale import stale_plan, stale_results

    project_file.write_text(project_file.read_text().replace('layout = "bids"', 'layout = "opticstream"'))
    changed = Project.open(load_project(project_file), deployment=project.deployment)
    plan = stale_plan(changed, stale_results(changed))
    assert set(plan.withdraw) == {
        (MosaicId(1), "published"), (MosaicId(1), "volume_published"), (SliceId(1), "published")
    }  # fmt: skip
    apply_plan(changed, plan, reason="test")
    list(upload_pending(changed))
    link = changed.paths.mosaic_volume(MosaicId(1), "dBI")
    assert link.resolve() == (changed.paths.derivative_folder / link.name).resolve()
    assert (link / "zarr.json").is_file()
