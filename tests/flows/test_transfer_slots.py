"""Transfers of all hosts stay within a limit of the server, and none waits for ever."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time

import httpx
import pytest
from tests.flows.fake_api import HTML, as_json, fake_api

from opticstream.config import DeploymentSettings
from opticstream.flows.transfer_slots import LIMIT, TransferSlots, sets_transfer_limit, transfer_limit
from opticstream.model.errors import TargetUnavailable


def nothing() -> None:
    pass


@pytest.fixture
def limit(prefect_server):
    """Set the limit of a real server; its taken slots are in `active_slots`."""
    with httpx.Client(base_url=prefect_server, timeout=30, trust_env=False) as client:

        def ask(method: str, path: str = "", **body):
            return client.request(method, f"/v2/concurrency_limits/{path}", json=body or None)

        def set_to(value: int):
            ask("DELETE", LIMIT)
            ask("POST", name=LIMIT, limit=value, active=True, slot_decay_per_second=0.0).raise_for_status()
            return lambda: ask("GET", LIMIT).json()["active_slots"]

        yield set_to
        ask("DELETE", LIMIT)


def test_the_limit_follows_from_the_runs_and_their_transfers_unless_it_is_set(monkeypatch):
    assert transfer_limit(DeploymentSettings(upload_limit=3, upload_transfers=4)) == 12
    assert transfer_limit(DeploymentSettings(upload_limit=3, upload_transfer_limit=7)) == 7
    assert not sets_transfer_limit(DeploymentSettings())
    monkeypatch.setenv("OPTICSTREAM_UPLOAD_TRANSFER_LIMIT", "7")
    assert sets_transfer_limit(DeploymentSettings())
    assert transfer_limit(DeploymentSettings()) == 7


@pytest.mark.server
def test_hosts_share_the_slots_and_give_them_back(prefect_server, limit):
    taken = limit(6)
    with TransferSlots(prefect_server) as first, TransferSlots(prefect_server) as second:
        with first(5, nothing) as mine:
            assert (mine, taken()) == (5, 5)
            with second(5, nothing) as theirs:
                assert (theirs, taken()) == (1, 6)
            assert taken() == 5
        assert taken() == 0
        with pytest.raises(RuntimeError, match="of the upload"), second(2, nothing):
            raise RuntimeError("of the upload")
        assert taken() == 0


@pytest.mark.server
def test_who_finds_no_slot_waits_for_one_and_stays_busy_meanwhile(prefect_server, limit):
    limit(2)
    looks, given_back = [], threading.Event()

    def look() -> None:
        looks.append(given_back.is_set())
        if len(looks) == 3:
            hold.__exit__(None, None, None)
            given_back.set()

    with TransferSlots(prefect_server) as first, TransferSlots(prefect_server) as second:
        hold = first(2, nothing)
        hold.__enter__()
        with second(5, look) as theirs:
            assert theirs in (1, 2), "as many as were free at that moment"
        assert looks[:3] == [False] * 3
        with first(1, nothing), first(1, nothing), pytest.raises(KeyboardInterrupt), second(1, stop):
            pytest.fail("has no slot")


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.server
def test_waiting_for_a_slot_ends_with_the_name_of_the_limit_and_its_setting(prefect_server, limit):
    taken = limit(1)
    with TransferSlots(prefect_server, wait_s=0.3) as slots, slots(1, nothing):
        with pytest.raises(TargetUnavailable, match=rf"{LIMIT}.*OPTICSTREAM_UPLOAD_TRANSFER_LIMIT"), slots(3, nothing):
            pytest.fail("has no slot")
        assert taken() == 1


@pytest.mark.server
def test_without_the_limit_there_is_no_bound(prefect_server, limit):
    limit(1)
    httpx.delete(f"{prefect_server}/v2/concurrency_limits/{LIMIT}", trust_env=False)
    with TransferSlots(prefect_server) as slots, slots(4, nothing) as mine:
        assert mine == 4


ANSWERS = {
    "away": None,
    "busy": (503, "text/plain", b"busy"),
    "unknown path": as_json({"detail": "Not Found"}, 404),
    "wrong password": as_json({"exception_message": "Unauthorized"}, 401),
    "another program": HTML,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_server_that_does_not_answer_holds_up_no_upload(caplog, answer):
    caplog.set_level(logging.WARNING)
    with fake_api({"*": answer or HTML}) as api:
        url = api.url if answer else "http://127.0.0.1:9/api"
        with TransferSlots(url, away_s=0.2) as slots:
            with slots(4, nothing) as mine:
                assert mine == 4
            begin = time.monotonic()
            with slots(4, nothing) as mine:  # is not waited for again
                assert mine == 4
            assert time.monotonic() - begin < 0.2
    assert "go on without them" in caplog.text


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_slots_of_a_killed_host_come_free(prefect_server, limit):
    taken = limit(2)
    code = (
        "import sys, time; from opticstream.flows.transfer_slots import TransferSlots\n"
        "with TransferSlots(sys.argv[1]) as slots, slots(2, lambda: None): print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, prefect_server], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert taken() == 2
    finally:
        process.kill()
        process.communicate()
    with TransferSlots(prefect_server, wait_s=500.0) as slots, slots(2, nothing) as mine:
        assert mine == 2
