"""The hosts that the other tests build: apart from each other, joined by a network, and gone without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.hosts.namespaces import Network, namespaces_or_skip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

PING = "timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{port}'"


@pytest.fixture(autouse=True)
def _can_make_namespaces():
    namespaces_or_skip()


@pytest.fixture
def network(tmp_path):
    with Network(tmp_path / "hosts") as network:
        yield network


@pytest.fixture
def pair(network, tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    return (
        network.host("alpha", "10.9.0.1", mounts={"/srv/share": share}),
        network.host("beta", "10.9.0.2", mounts={"/mnt/share": share}),
    )


def can_connect(host, address: str) -> bool:
    try:
        host.run(PING.format(address=address, port=8000), timeout_s=20)
    except AssertionError:
        return False
    return True


def test_hosts_share_one_folder_and_nothing_else(pair, tmp_path):
    alpha, beta = pair
    alpha.run("echo hello > /srv/share/word; echo own > /srv/own")
    assert beta.run("cat /mnt/share/word; ls /srv; hostname").stdout == "hello\nbeta\n"
    assert beta.run("ls -d /proc/[0-9]* | wc -l; test ! -e /mnt/own").stdout.strip().isdigit()
    assert (tmp_path / "share" / "word").read_text() == "hello\n"
    assert not Path("/srv/own").exists()
    assert not Path("/srv/share").exists()


def test_a_cut_link_lets_nothing_through_until_it_is_joined(pair):
    alpha, beta = pair
    service = alpha.start("listen", "cd /srv; exec python3 -m http.server 8000")
    end = time.monotonic() + 30
    while not can_connect(beta, alpha.address):
        service.check()
        assert time.monotonic() < end
    beta.cut()
    assert not can_connect(beta, alpha.address)
    beta.join()
    assert can_connect(beta, alpha.address)


def test_a_killed_service_takes_its_group_with_it_and_no_zombie_stays(pair):
    alpha, _ = pair
    service = alpha.start("tree", "sleep 1000 & sleep 1000 & echo up; wait")
    service.wait_for("up")
    service.kill()
    end = time.monotonic() + 10
    while "sleep" in alpha.run("cat /proc/[0-9]*/comm").stdout:
        assert time.monotonic() < end
        time.sleep(0.05)


DIES = """
import sys, time
from pathlib import Path
from tests.hosts.namespaces import Network
with Network(Path(sys.argv[1])) as network:
    host = network.host("gamma", "10.9.0.3", mounts={})
    host.start("sleep", "exec -a sleep-of-gamma sleep 1000")
    print("up", flush=True)
    time.sleep(1000)
"""


def test_nothing_is_left_of_hosts_whose_test_was_killed(tmp_path):
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    test = subprocess.Popen(
        [sys.executable, "-c", DIES, str(tmp_path / "hosts")], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert test.stdout.readline() == "up\n"
    mark = str(tmp_path / "hosts")

    def left() -> list[str]:
        spaces = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "mountinfo").read_text():
                    spaces.append(entry.name)
            except OSError:
                continue
        return spaces

    assert left(), "the hosts see their folders"
    test.send_signal(signal.SIGKILL)
    test.communicate()
    end = time.monotonic() + 20
    while left():
        assert time.monotonic() < end, left()
        time.sleep(0.05)
