"""A server shows how many flow runs wait and run, and never fails for its figures."""

from __future__ import annotations

import json
import socket
import urllib.request

import httpx
import pytest
from tests.flows.fake_api import as_json, fake_api
from tests.servers import ServerProcess, running

from opticstream.config import DeploymentSettings
from opticstream.flows.pools import POOLS
from opticstream.flows.server_figures import STATES, figures_of_runs, show_figures


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_runs_are_counted_by_pool_and_state():
    counts = iter(range(100))
    with fake_api({"/flow_runs/count": lambda: as_json(next(counts))}) as api:
        samples = figures_of_runs(api.url, headers={"authorization": "Basic x"}).samples
        asked = [headers["authorization"] for _, headers in api.seen]
    assert [(one.labels["pool"], one.labels["state"], one.value) for one in samples] == [
        (pool, state.lower(), float(number))
        for number, (pool, state) in enumerate((pool, state) for pool in POOLS for state in STATES)
    ]
    assert asked == ["Basic x"] * len(samples)


@pytest.mark.parametrize("reply", [as_json({}, 503), as_json({}, 401)])
def test_a_server_that_does_not_answer_has_no_runs_to_show(reply):
    with fake_api({"*": reply}) as api:
        assert figures_of_runs(api.url, headers={}).samples == []
    assert figures_of_runs("http://127.0.0.1:9/api", headers={}).samples == []


def test_a_port_that_is_taken_is_no_reason_to_fail(caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = DeploymentSettings(server_metrics_port=taken.getsockname()[1])
        show_figures(settings, api_url="http://127.0.0.1:9/api", auth=None)()
    assert "OPTICSTREAM_SERVER_METRICS_PORT" in caplog.text


@pytest.mark.server
@pytest.mark.slow
def test_a_server_shows_its_figures_behind_its_password(tmp_path):
    port = free_port()
    server = ServerProcess(
        tmp_path, OPTICSTREAM_API_AUTH="opticstream:secret", OPTICSTREAM_SERVER_METRICS_PORT=str(port)
    )
    with running(server):
        made = httpx.post(
            f"{server.url}/variables/", json={"name": "broken-oct-config", "value": json.dumps({"project": 1})},
            auth=("opticstream", "secret"), trust_env=False, timeout=60,
        )  # fmt: skip
        assert made.status_code < 500
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=120) as answer:
            shown = answer.read().decode()
    assert 'opticstream_flow_runs{pool="tile",state="scheduled"} 0.0' in shown
    assert "opticstream_host_cpus" in shown
