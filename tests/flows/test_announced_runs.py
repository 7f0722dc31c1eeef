"""Workers ask for runs when the server announces one, and by themselves when it announces nothing."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest
from prefect.events import Event
from prefect.workers.process import ProcessWorker

from opticstream.flows import announced_runs, worker_type
from opticstream.flows.announced_runs import tell_workers
from opticstream.flows.worker_type import WarmWorker


def event_of(pool):
    return Event(
        event="prefect.flow-run.Scheduled",
        resource={"prefect.resource.id": f"prefect.flow-run.{uuid4()}"},
        related=[
            {
                "prefect.resource.id": f"prefect.work-pool.{uuid4()}",
                "prefect.resource.role": "work-pool",
                "prefect.resource.name": pool,
            }
        ],
    )


class Pool:
    def __init__(self):
        self.is_told, self.told = False, 0

    def tell(self):
        self.told += 1


class Stream:
    """A subscription that yields some events and then breaks, or stays silent."""

    def __init__(self, events, *, breaks):
        self.events, self.breaks = list(events), breaks

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_error):
        pass

    def __aiter__(self):
        return self

    async def __anext__(self):
        while not self.events:
            if self.breaks:
                raise ConnectionError("gone")
            await asyncio.Event().wait()
        return self.events.pop(0)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def run_beside(task, checks):
    running = asyncio.ensure_future(task)
    try:
        await checks
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_an_event_tells_the_worker_of_its_pool_and_no_other(monkeypatch):
    tile, state = Pool(), Pool()
    stream = Stream([event_of("tile"), event_of("tile"), event_of("elsewhere")], breaks=False)
    monkeypatch.setattr(announced_runs, "get_events_subscriber", lambda *_args, **_options: stream)

    async def checks():
        await until(lambda: not stream.events and tile.told == 3)  # once for what was scheduled before
        assert state.told == 1
        assert tile.is_told
        assert state.is_told

    asyncio.run(run_beside(tell_workers({"tile": tile, "state": state}), checks()))
    assert not tile.is_told


def test_a_broken_subscription_is_made_again_and_workers_ask_by_themselves_meanwhile(monkeypatch):
    pool, seen = Pool(), []
    streams = [Stream([], breaks=True), Stream([event_of("state")], breaks=False)]
    monkeypatch.setattr(announced_runs, "get_events_subscriber", lambda *_args, **_options: streams.pop(0))
    monkeypatch.setattr(announced_runs, "_AGAIN_S", 0.05)

    async def checks():
        await until(lambda: seen.append(pool.is_told) or (not streams and pool.is_told))

    asyncio.run(run_beside(tell_workers({"state": pool}), checks()))
    assert False in seen[1:]


@pytest.mark.parametrize("is_told", [True, False])
def test_a_worker_that_is_told_asks_at_once(monkeypatch, is_told):
    asked = asyncio.run(asking(monkeypatch, is_told=is_told, poll_s=600.0, asks_anyway_s=600.0, tells=3))
    assert asked == 4  # the first time unasked


def test_a_worker_asks_now_and_then_though_nobody_tells(monkeypatch):
    assert asyncio.run(asking(monkeypatch, is_told=True, poll_s=0.0, asks_anyway_s=0.05, tells=0)) == 3


def test_a_worker_without_a_subscription_asks_as_often_as_set(monkeypatch):
    assert asyncio.run(asking(monkeypatch, is_told=False, poll_s=0.05, asks_anyway_s=600.0, tells=0)) == 3


async def asking(monkeypatch, *, is_told, poll_s, asks_anyway_s, tells):
    """Return how often a worker has asked after some calls of `tell`, or after three queries where none comes."""
    asked = []

    async def ask(_self):
        asked.append(time.monotonic())

    monkeypatch.setattr(ProcessWorker, "get_and_submit_flow_runs", ask)
    monkeypatch.setattr(worker_type, "_ASK_ANYWAY_S", asks_anyway_s)
    worker = WarmWorker("state")
    worker.is_told, worker.poll_s = is_told, poll_s

    async def loop():
        while len(asked) < 3 or tells:
            await worker.get_and_submit_flow_runs()

    if not tells:
        async with asyncio.timeout(60):
            await loop()
        return len(asked)

    async def checks():
        for number in range(tells + 1):
            await until(lambda number=number: len(asked) == number + 1)
            if number < tells:
                worker.tell()

    await run_beside(loop(), checks())
    return len(asked)
