"""The worker type of our pools, apart from what `test_pools` sees of it at a real server."""

from __future__ import annotations

import asyncio
from importlib.metadata import entry_points

import httpx
import pytest
from prefect.workers.process import ProcessWorker

from opticstream.flows import worker_type
from opticstream.flows.worker_type import WarmWorker


def test_prefect_finds_the_type_by_its_entry_point():
    names = {point.name: point.value for point in entry_points(group="prefect.collections")}
    assert names["opticstream"] == "opticstream.flows.worker_type"
    assert ProcessWorker.get_worker_class_from_type("opticstream") is WarmWorker


@pytest.mark.parametrize("call", ["get_and_submit_flow_runs", "sync_with_backend"])
def test_a_server_that_is_away_ends_no_worker(monkeypatch, call):
    answers = [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), None]

    async def answer(_self):
        if error := answers.pop(0):
            raise error

    waits = []

    async def wait(seconds):
        waits.append(seconds)

    monkeypatch.setattr(ProcessWorker, call, answer)
    monkeypatch.setattr(worker_type.anyio, "sleep", wait)
    worker = WarmWorker("state")

    async def ask():
        for _ in range(3):
            await getattr(worker, call)()

    asyncio.run(ask())
    assert answers == []
    assert len(waits) == 2


def test_a_worker_does_not_read_the_metadata_of_all_packages_to_introduce_itself(monkeypatch):
    asked = []
    monkeypatch.setattr("prefect.workers.base.distributions", lambda: asked.append(1) or [])
    assert asyncio.run(ProcessWorker("state")._worker_metadata()) is None
    assert asked == [1], "another Prefect: its workers introduce themselves otherwise"
    assert asyncio.run(WarmWorker("state")._worker_metadata()) is None
    assert asked == [1]
