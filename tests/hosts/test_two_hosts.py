"""Two hosts, as the page says under "Two hosts": the server's does half of the work, and the other one is cut off."""

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
from tests.hosts.walk import TWO_HOSTS

from opticstream.testing.chaos.outcome import Outcome, differences

pytestmark = [pytest.mark.server, pytest.mark.timeout(2400), pytest.mark.filterwarnings("default")]

CUT_S = 8.0


@pytest.fixture(scope="module")
def calm(acquired: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The outcome of a small acquisition on one host."""
    return outcome_on_one_host(Path(shutil.copytree(acquired, tmp_path_factory.mktemp("calm") / "trial")))


def test_two_hosts_with_a_link_that_is_cut_come_to_the_result_of_one(walk_on, share, acquired, calm):
    walk = walk_on("AB", settings=["settings"])
    # In place of the phantom of the page: a smaller one, which the microscope copies.
    shutil.copytree(acquired, share / "trial", ignore=shutil.ignore_patterns("raw", "truth"))
    walk.substitutions = {
        "opticstream sim make /srv/share/trial --small --slices 1": "",
        "opticstream sim rig /srv/share/trial/project.toml": f"cp {acquired}/raw/*.nii",
    }
    walk.start("A", "server")
    wait_for_server(walk.hosts["B"])
    walk.run("A", "deploy")
    workers = [walk.start("A", "worker"), walk.start("B", "worker")]
    for worker in workers:
        worker.wait_for("ready")
    walk.run("A", "project")
    walk.start("A", "watch")
    walk.run("A", "microscope")
    project = opened(share / "trial")
    wait_until(lambda: "processed" in hosts_of(project), walk, "B has processed a tile", timeout_s=600)
    walk.hosts["B"].cut()
    time.sleep(CUT_S)
    walk.hosts["B"].join()
    wait_until_finished(project, calm, walk, timeout_s=1500)
    assert "slice 1: registered, in the sample" in walk.run("A", "look")
    assert "slice_001_axis.nii.gz" in walk.run("A", "result")

    def ended() -> bool:
        return not flow_runs(walk.hosts["A"], walk.programs / "python", "RUNNING", "PENDING", "CANCELLING")

    wait_until(ended, walk, "every flow run has ended", timeout_s=600)
    assert flow_runs(walk.hosts["B"], walk.programs / "python", "COMPLETED", deployment="sweep"), "no sweep was made"
    assert differences(project, calm) == []
    hosts = hosts_of(project)
    assert hosts["processed"] == hosts["stitched"] == {"tiles"}
    assert hosts["registered"] == {"servers"}
    assert set(walk.done) == TWO_HOSTS
