"""A finished output is damaged: `verify` names it, and after a reset it is made again as it was."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId
from opticstream.pipeline.project import Project
from opticstream.state.reset import apply_reset, plan_reset
from opticstream.state.verify import verify
from opticstream.testing.bus import LocalBus
from opticstream.testing.chaos.outcome import differences


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    """Remove a result itself, where it is a link into the archive."""
    shutil.rmtree(path.resolve(strict=True))


DAMAGES: list[tuple[str, object, str, ItemId]] = [
    ("mosaic-01/processed/mosaic_001_image_0003_aip.nii", flip_a_bit, "checksum", BatchId(1, 2)),
    ("mosaic-02/processed/mosaic_002_image_0001_dBI.nii", cut, "size", BatchId(2, 1)),
    ("mosaic-02/stitched/mosaic_002_ret.nii.gz", flip_a_bit, "checksum", MosaicId(2)),
    ("mosaic-01/stitched/mosaic_001_O3D.ome.zarr", remove, "missing", MosaicId(1)),
    ("registered/slice_001_axis.nii.gz", flip_a_bit, "checksum", SliceId(1)),
]


@pytest.fixture
def finished(calm_folder, tmp_path) -> Path:
    folder = tmp_path / "finished"
    subprocess.run(["cp", "-a", str(calm_folder), str(folder)], check=True)  # keeps hard links, as publishing makes
    return folder


QUICK = DAMAGES[0], DAMAGES[2]


@pytest.mark.parametrize(
    ("name", "damage", "problem", "item"),
    [pytest.param(*d, id=d[0].split("/")[-1], marks=() if d in QUICK else pytest.mark.slow) for d in DAMAGES],
)
def test_a_damaged_output_is_found_reset_and_made_again_with_the_same_bytes(
    finished, calm, name, damage, problem, item
):
    project = Project.open(load_project(finished / "project.toml"), deployment=DeploymentSettings(lease_s=5))
    damage(project.paths.base / name)
    findings = verify(project.facts, layout=project.layout)
    assert (item, problem) in {(f.item, f.problem) for f in findings if name in f.message}
    apply_reset(
        project.facts,
        plan_reset(project.facts, item, project.layout, downstream=True),
        project.layout,
        reason="damaged",
    )
    bus = LocalBus(project)
    bus.run_until_nothing_is_pending()
    assert differences(project, calm) == []
