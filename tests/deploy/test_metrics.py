"""What `deploy/container/prometheus.yml` reads is there: figures of the API, behind its password, and of workers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]
FIGURES = "python_info"
"""In every page of figures that a Python program shows."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """Start a command of ours with the settings of the containers, until the end of the test."""
    processes = []
    (tmp_path / "api_auth").write_text("opticstream:secret\n")

    def started(*arguments, **environment):
        own = {
            "OPTICSTREAM_API_AUTH_FILE": str(tmp_path / "api_auth"),
            "OPTICSTREAM_HOME": str(tmp_path / arguments[0]),
        }
        command = [sys.executable, "-m", "opticstream", *arguments]
        with (tmp_path / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(command, env=os.environ | own | environment, stdout=log, stderr=log)
        processes.append(process)
        return process

    yield started
    for process in reversed(processes):
        process.terminate()
        process.wait(120)


def answer_of(url, **options):
    """Return the answer of an address, waited for."""
    end = time.monotonic() + 600
    while True:
        try:
            return httpx.get(url, trust_env=False, timeout=30, **options)
        except httpx.TransportError:
            assert time.monotonic() < end, f"no answer at {url}"
            time.sleep(0.5)


def test_the_api_shows_figures_to_who_has_the_password_and_a_worker_to_all(start):
    port, figures_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}/api"
    start("server", "--port", str(port), PREFECT_SERVER_METRICS_ENABLED="true")
    assert answer_of(f"{url}/metrics").status_code == 401
    shown = answer_of(f"{url}/metrics", auth=("opticstream", "secret"))
    assert shown.status_code == 200
    assert FIGURES in shown.text
    assert start("deploy", OPTICSTREAM_API_URL=url).wait(300) == 0
    start(
        "worker", "--pool", "upload,state", OPTICSTREAM_API_URL=url, PREFECT_CLIENT_METRICS_ENABLED="true",
        PREFECT_CLIENT_METRICS_PORT=str(figures_port),
    )  # fmt: skip
    assert FIGURES in answer_of(f"http://127.0.0.1:{figures_port}/metrics").text
