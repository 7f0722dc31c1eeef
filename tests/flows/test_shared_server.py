"""`opticstream server` as a service that is killed and started again, and the lock that must not stay taken by it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from opticstream.flows.prefect_state import LEASE_S, PrefectApi, PrefectProjectLock
from opticstream.flows.server import free_port, is_healthy
from opticstream.model.errors import LockTimeout

pytestmark = [pytest.mark.server, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

HOLDER = """
import sys, time
from opticstream.flows.prefect_state import PrefectApi, PrefectProjectLock
with PrefectProjectLock(pipeline="oct", api=PrefectApi(sys.argv[1]), queue_on_host=False).hold("p", timeout_s=60):
    print("held", flush=True)
    time.sleep(600)
"""
PROJECT = '[project]\nproject_name = "p"\nproject_base_path = "out"\n'


class Server:
    """An `opticstream server` of the command line."""

    def __init__(self, folder):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "OPTICSTREAM_"))}
        self.environment = {**plain, "OPTICSTREAM_HOME": str(folder / "home"), "OPTICSTREAM_API_URL": self.url}
        self.log = folder / "server.log"
        self.process = None

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "opticstream", "server", "--port", str(self.port)],
                env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + 240
        while not is_healthy(self.url):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.3)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
def test_a_lock_whose_holder_was_killed_is_free_within_its_lease_although_the_server_was_restarted(server):
    held = subprocess.Popen([sys.executable, "-c", HOLDER, server.url], stdout=subprocess.PIPE, text=True)
    assert held.stdout.readline() == "held\n"
    held.kill()
    held.communicate()
    server.kill()
    server.start()
    lock = PrefectProjectLock(pipeline="oct", api=PrefectApi(server.url), queue_on_host=False)
    with lock.hold("p", timeout_s=3 * LEASE_S):
        pass
    assert re.search(r"LEASE_STORAGE=\S+lease_storage\.filesystem +a lock that is held", server.log.read_text())


def test_a_lock_is_freed_by_hand_after_asking(server, tmp_path):
    held = subprocess.Popen([sys.executable, "-c", HOLDER, server.url], stdout=subprocess.PIPE, text=True)
    try:
        assert held.stdout.readline() == "held\n"
        lock = PrefectProjectLock(pipeline="oct", api=PrefectApi(server.url), queue_on_host=False)
        file = tmp_path / "p.toml"
        file.write_text(PROJECT)
        cli = [sys.executable, "-m", "opticstream", "state", "unlock", str(file)]
        asked = subprocess.run(cli, env=server.environment, input="n\n", capture_output=True, text=True, check=False)
        assert asked.returncode == 1
        assert "Free it?" in asked.stdout
        with pytest.raises(LockTimeout), lock.hold("p", timeout_s=1):
            pass
        freed = subprocess.run(cli, env=server.environment, input="y\n", capture_output=True, text=True, check=False)
        assert freed.returncode == 0, freed.stderr
        assert "freed the lock of p" in freed.stdout
        with lock.hold("p", timeout_s=20):
            pass
    finally:
        held.kill()
        held.communicate()
