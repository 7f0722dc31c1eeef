"""Server, workers and rig are killed in the middle, again and again; the result is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.io.atomic import TEMPORARY_MARK
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.sim.demo import demo_phantom, write_demo
from opticstream.sim.rig import VirtualRig
from opticstream.testing.bus import LocalBus

pytestmark = [pytest.mark.server, pytest.mark.timeout(1500)]
KILLS = 10


def results(folder: Path) -> dict[str, str]:
    """Checksums of everything under a final name but the facts, by path."""
    base = folder / "project"
    return {
        str(path.relative_to(base)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(base.rglob("*"))
        if path.is_file()
        and "state" not in path.relative_to(base).parts
        and "validation" not in path.relative_to(base).parts
        and not any(TEMPORARY_MARK in part for part in path.relative_to(base).parts)
    }


def start(folder: Path, *, resume: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "opticstream", "demo", "--small", "--slices", "1", "--out", str(folder)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"OPTICSTREAM_CRASHES": "100", "OPTICSTREAM_COLLAPSE_S": "3"}
    with (folder.parent / "demo.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--resume"] if resume else command,
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def wait_for_work(log: Path, demo: subprocess.Popen[bytes]) -> None:
    """Wait until the demo that was started last has shown its first mosaic."""
    end = time.monotonic() + 120
    while demo.poll() is None and time.monotonic() < end:
        if "mosaic 1" in log.read_text().rpartition("phantom and project file")[2]:
            return
        time.sleep(0.1)


def kill_everything(demo: subprocess.Popen[bytes], folder: Path) -> None:
    groups = [demo.pid]  # the rig is in the demo's group
    for name in ("server", "workers"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            groups.append(json.loads((folder / "prefect" / f"{name}.pid").read_text())["pid"])
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    demo.wait()


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that still have to do with a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in command and int(entry.name) != os.getpid():
                found.append(command)
    return found


def test_killed_ten_times_the_demo_ends_with_the_undisturbed_result(tmp_path):
    calm = tmp_path / "calm"
    project_file, _ = write_demo(calm, slices=1, small=True)
    config = load_project(project_file)
    VirtualRig(config, demo_phantom(slices=1), calm / "raw", calm / "truth", calibration_folder=calm).run()
    bus = LocalBus(Project.open(config, deployment=DeploymentSettings()))
    bus.feed(calm / "raw")
    bus.run()
    expected = results(calm)
    assert expected

    folder = tmp_path / "demo"
    rng = random.Random(20)
    for kill in range(KILLS):
        demo = start(folder, resume=kill > 0)
        if kill == 0:
            time.sleep(rng.uniform(1.0, 10.0))  # while everything is being started
        else:
            wait_for_work(tmp_path / "demo.log", demo)
            time.sleep(rng.uniform(0.0, 6.0))
        assert demo.poll() is None, (tmp_path / "demo.log").read_text()[-3000:]
        kill_everything(demo, folder)
        left = {path: sum_ for path, sum_ in results(folder).items() if path in expected}
        # Whatever carries a final name is whole; folders of stores may still be filling their small metadata last.
        wrong = [p for p, sum_ in left.items() if sum_ != expected[p] and ".zarr" not in p and "sample" not in p]
        assert wrong == [], f"after kill {kill + 1}"

    demo = start(folder, resume=True)
    demo.wait(timeout=600)
    project = Project.open(load_project(folder / "project.toml"))
    log = (tmp_path / "demo.log").read_text()
    assert is_finished(project, project.facts.snapshot()), log[-3000:]
    progress = project_progress(project)
    assert progress.failures == ()
    assert [s.state for s in progress.slices] == ["registered"]
    assert results(folder) == expected

    counts: dict[str, int] = {}
    for entry in project.facts.journal.entries():
        if entry.event == "computed":
            counts[f"{entry.item.key} {entry.fact}"] = counts.get(f"{entry.item.key} {entry.fact}", 0) + 1
    assert max(counts.values()) == 1
    # A kill can fall between a record and the journal's line on it, so a few lines may be missing.
    expected_works = {f"{e.item.key} {e.fact}" for e in bus.project.facts.journal.entries() if e.event == "computed"}
    assert set(counts) <= expected_works
    assert len(expected_works - set(counts)) <= KILLS
    assert processes_of(folder) == []
    shutil.rmtree(folder)
