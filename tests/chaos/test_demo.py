"""The whole demo is killed in the middle, again and again, and resumed; the result is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opticstream.config import load_project
from opticstream.pipeline.project import Project
from opticstream.testing.chaos.lab import kill, processes_of_group
from opticstream.testing.chaos.outcome import differences

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(1800)]
KILLS = 6


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
        if "mosaic 1" in log.read_text().rpartition("the phantom and the project file")[2]:
            return
        time.sleep(0.1)


def kill_everything(demo: subprocess.Popen[bytes], folder: Path) -> None:
    groups = [demo.pid]  # the rig is in the demo's group
    for name in ("server", "workers"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            groups.append(json.loads((folder / "prefect" / f"{name}.pid").read_text())["pid"])
    for group in groups:
        for pid in processes_of_group(group):
            kill(pid)
    demo.wait()


def test_the_demo_killed_and_resumed_ends_with_the_undisturbed_result(tmp_path, calm):
    folder = tmp_path / "demo"
    rng = random.Random(20)
    for number in range(KILLS):
        demo = start(folder, resume=number > 0)
        if number == 0:
            time.sleep(rng.uniform(1.0, 10.0))  # while everything is being started
        else:
            wait_for_work(tmp_path / "demo.log", demo)
            time.sleep(rng.uniform(0.0, 6.0))
        assert demo.poll() is None, (tmp_path / "demo.log").read_text()[-3000:]
        kill_everything(demo, folder)
    demo = start(folder, resume=True)
    demo.wait(timeout=600)
    project = Project.open(load_project(folder / "project.toml"))
    assert differences(project, calm, unwritten=KILLS) == [], (tmp_path / "demo.log").read_text()[-3000:]
    assert processes_naming(folder) == []


def processes_naming(folder: Path) -> list[str]:
    """Return the command lines of processes that still have to do with a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in command and int(entry.name) != os.getpid():
                found.append(command)
    return found
