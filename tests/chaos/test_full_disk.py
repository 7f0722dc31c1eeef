"""The project's disk is full for a while: what cannot be written fails, and is made as ever once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.io.atomic import TEMPORARY_MARK
from opticstream.model.events import Event
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.retry import apply_plan, retry_plan
from opticstream.state.verify import verify
from opticstream.testing.bus import LocalBus
from opticstream.testing.chaos.outcome import checksums, differences
from opticstream.testing.checksums import while_at_work

DISK_MB = 400


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, *, free_kb: int) -> Path:
    """Leave little room on a disk."""
    ballast = disk / "ballast"
    room = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(room.f_bavail * room.f_bsize - (free_kb << 10), 1))
    return ballast


@pytest.mark.parametrize(
    ("moment", "free_kb"),
    [
        pytest.param("batch.ready", 900, marks=pytest.mark.slow),
        pytest.param("batch.ready", 0, marks=pytest.mark.slow),
        pytest.param("mosaic.ready", 300, marks=pytest.mark.slow),
        pytest.param("mosaic.stitched", 2000, marks=pytest.mark.slow),
        pytest.param("slice.ready", 200, marks=pytest.mark.slow),
        pytest.param("slice.registered", 500, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_is_full_for_a_while_leaves_no_trace(acquisition, disk, calm, moment, free_kb):
    config = load_project(acquisition / "project.toml", overrides={"project_base_path": str(disk / "project")})
    project = Project.open(config, deployment=DeploymentSettings(attempts=1))

    def fill_at_the_moment(event: Event) -> bool:
        if event.event_name() == f"linc.oct.{moment}" and not (disk / "ballast").exists():
            fill(disk, free_kb=free_kb)
        return False

    bus = LocalBus(project, lose=fill_at_the_moment, tolerate=OSError)
    bus.feed(acquisition / "raw")
    bus.run()
    failures = project_progress(project).failures
    troubles = [*map(str, bus.errors), *(failure.reason for failure in failures)]
    assert any("No space left on device" in trouble for trouble in troubles), troubles
    whole = while_at_work(checksums(project.paths.base))
    assert {path for path, sum_ in whole.items() if calm.checksums.get(path) not in (None, sum_)} == set()
    left = [path.name for path in project.paths.base.rglob(f"*{TEMPORARY_MARK}*") if "zarr" not in path.name]
    assert left == [], "what could not be written whole takes no room"
    assert verify(project.facts, layout=project.layout) == []

    (disk / "ballast").unlink()
    plan = retry_plan(project)
    apply_plan(project, plan, reason="there is room again")
    bus = LocalBus(project)
    bus.feed(acquisition / "raw")
    bus.announce(plan.announce)
    bus.run_until_nothing_is_pending()
    assert differences(project, calm, unwritten=100) == []
