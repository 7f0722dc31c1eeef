"""The walk of the page on three hosts, with PostgreSQL and Redis, while everything goes wrong that it tells of."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from tests.hosts.conftest import outcome_on_one_host
from tests.hosts.judging import (
    flow_runs,
    hosts_of,
    opened,
    wait_for_server,
    wait_until,
    wait_until_finished,
)
from tests.hosts.namespaces import Host
from tests.hosts.services import start_services
from tests.hosts.walk import THREE_HOSTS

from opticstream.config import load_project
from opticstream.sim.demo import demo_phantom, write_demo
from opticstream.sim.rig import VirtualRig
from opticstream.testing.chaos.outcome import Outcome, differences

pytestmark = [
    pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.filterwarnings("default"),
]  # fmt: skip

CUT_S = 60.0


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The outcome of the phantom of the page on one host."""
    folder = tmp_path_factory.mktemp("calm") / "trial"
    project_file, _ = write_demo(folder, slices=1, small=True)
    config = load_project(project_file)
    VirtualRig(config, demo_phantom(slices=1), folder / "raw", folder / "truth", calibration_folder=folder).run()
    outcome = outcome_on_one_host(folder)
    shutil.rmtree(folder)
    return outcome


def workers_of(host: Host) -> list[str]:
    """Return the commands of the processes of workers on a host, flow runs included."""
    commands = host.run("for each in /proc/[0-9]*; do tr '\\0' ' ' <$each/cmdline || true; echo; done 2>/dev/null")
    return [line for line in commands.stdout.splitlines() if "worker --pool" in line or "opticstream.flows" in line]


def test_three_hosts_in_trouble_come_to_the_result_of_one(walk_on, share: Path, calm):
    walk = walk_on("ABC", settings=["settings", "settings of the database"])
    python = walk.programs / "python"
    a, b, c = (walk.hosts[letter] for letter in "ABC")
    start_services(a)
    walk.run("A", "database")
    server = walk.start("A", "server")
    for host in (a, b, c):
        wait_for_server(host)
    walk.run("A", "deploy")
    workers = {letter: walk.start(letter, "worker") for letter in "BC"}
    for worker in workers.values():
        worker.wait_for("ready")
    assert workers_of(c)
    walk.run("A", "project")
    walk.start("C", "watch")
    walk.run("C", "microscope", timeout_s=1500)
    project = opened(share / "trial")
    raw = {path.name: path.stat().st_mtime_ns for path in (share / "trial" / "raw").iterdir()}

    wait_until(lambda: "processed" in hosts_of(project), walk, "B has processed a tile", timeout_s=1500)
    b.cut()
    time.sleep(CUT_S)
    for service in (server, *workers.values()):
        service.check()
    b.join()

    wait_until(lambda: "stitched" in hosts_of(project), walk, "B has stitched a mosaic", timeout_s=1500)
    workers["C"].kill()
    wait_until(lambda: not workers_of(c), walk, "C runs no worker and no flow run", timeout_s=300)
    workers["C"].start()
    workers["C"].wait_for("ready", count=2)

    server.kill()
    server.start()
    wait_until_finished(project, calm, walk, timeout_s=1500)
    wait_for_server(c)
    assert "slice 1: registered, in the sample" in walk.run("A", "look")
    assert "slice_001_axis.nii.gz" in walk.run("A", "result")

    def ended() -> bool:
        return not flow_runs(a, python, "RUNNING", "PENDING", "CANCELLING")

    wait_until(ended, walk, "every flow run has ended", timeout_s=1500)
    assert differences(project, calm, unwritten=1) == []
    hosts = hosts_of(project)
    assert hosts["processed"] == hosts["stitched"] == {"tiles"}
    assert hosts["registered"] == {"slices"}
    assert not [entry for entry in project.facts.journal.entries() if entry.event == "lost"], "a holder was robbed"
    assert raw == {path.name: path.stat().st_mtime_ns for path in (share / "trial" / "raw").iterdir()}
    assert set(walk.done) == THREE_HOSTS
