"""Two hosts whose clocks differ by days work on one project; one of them dies, and the other finishes its work."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from opticstream.config import load_project
from opticstream.pipeline.project import Project
from opticstream.testing.chaos.lab import kill
from opticstream.testing.chaos.outcome import differences

HOST = """
import sys, time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from opticstream.config import DeploymentSettings, load_project
from opticstream.pipeline.progress import is_finished
from opticstream.pipeline.project import Project
from opticstream.state import Facts
from opticstream.state.facts import utc_now
from opticstream.system.host import HostIdentity
from opticstream.testing.bus import LocalBus

folder, name, days = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
project = Project.open(load_project(folder / "project.toml"), deployment=DeploymentSettings(attempts=1, lease_s=2))
# Another boot: neither host can look whether a process of the other one lives, only the leases tell.
host = replace(HostIdentity.current(), host=name, boot_id=name)
facts = Facts(project.paths.base, host=host, roots=project.facts.roots, clock=lambda: utc_now() + timedelta(days=days))
bus = LocalBus(replace(project, facts=facts))
bus.feed(folder / "raw")
print("up", flush=True)
while not is_finished(bus.project, facts.snapshot()):
    bus.run()
    bus.sweep()
    time.sleep(0.05)
"""


def start(folder, name: str, days: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOST, str(folder), name, str(days)]
    host = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert host.stdout.readline() == "up\n"
    return host


@pytest.mark.slow
@pytest.mark.parametrize("days", [2.0, -2.0])
def test_a_host_with_a_wrong_clock_takes_over_from_another_and_not_too_early(acquisition, calm, days):
    project = Project.open(load_project(acquisition / "project.toml"))
    doomed = start(acquisition, "opal", 0.0)
    other = start(acquisition, "quartz", days)
    mosaics = [mosaic for mosaic, fact in calm.facts if fact == "stitched"]
    while not any((held := project.facts.holder(m)) and held.host.host == "opal" for m in mosaics):
        assert doomed.poll() is None, "opal was to stitch a mosaic"
        time.sleep(0.005)
    kill(doomed.pid)
    doomed.communicate()
    other.communicate(timeout=120)
    assert other.returncode == 0
    assert differences(project, calm, unwritten=1) == []
    entries = list(project.facts.journal.entries())
    assert {entry.host for entry in entries if entry.event == "computed"} == {"opal", "quartz"}
    assert not [entry for entry in entries if entry.event == "lost"], "a living holder was robbed"
