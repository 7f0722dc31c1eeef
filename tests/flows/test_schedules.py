"""The server makes the runs of a schedule, without which no sweep would ever begin (see `sqlalchemy` in pyproject)."""

from __future__ import annotations

import httpx
import pytest
from tests.flows.conftest import ask_again_if_busy

pytestmark = [pytest.mark.server, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]


def test_a_deployment_with_an_interval_gets_its_runs(prefect_server):
    with httpx.Client(base_url=prefect_server, timeout=60) as http:
        flow = ask_again_if_busy(http, "POST", "/flows/", {"name": "every-hour"})
        schedule = {"schedule": {"interval": 3600}, "active": True}
        deployment = {"name": "every-hour", "flow_id": flow["id"], "schedules": [schedule]}
        id_ = ask_again_if_busy(http, "POST", "/deployments/", deployment)["id"]
        try:
            ask_again_if_busy(http, "POST", f"/deployments/{id_}/schedule", {"min_runs": 2})
            runs = ask_again_if_busy(http, "POST", "/flow_runs/filter", {"deployments": {"id": {"any_": [id_]}}})
        finally:
            ask_again_if_busy(http, "DELETE", f"/deployments/{id_}")
    assert len(runs) >= 2
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}
