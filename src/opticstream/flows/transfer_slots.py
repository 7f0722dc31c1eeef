"""The bound on transfers to remote targets over all hosts: slots of a global concurrency limit of the Prefect server.

A host that is killed gives its slots back by the end of their lease. A server that does not answer holds up no upload:
after a while it goes on without slots, and tries again later.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx

from opticstream.config import DeploymentSettings
from opticstream.flows.pool_state import api_client
from opticstream.model.errors import TargetUnavailable

LIMIT = "opticstream-transfers"
"""Name of the limit at the server."""
LEASE_S = 60.0
"""Slots whose holder does not renew their lease come free after this time, in seconds; Prefect allows no less."""
_AWAY_S = 60.0
_ASK_AGAIN_S = 300.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 1.0
_LONG_S = 5.0
_log = logging.getLogger(__name__)


def transfer_limit(settings: DeploymentSettings, /) -> int:
    """Return how many transfers may be under way, on all hosts together."""
    return settings.upload_transfer_limit or settings.upload_limit * settings.upload_transfers


def sets_transfer_limit(settings: DeploymentSettings, /) -> bool:
    """Return whether the environment sets the limit, or numbers that it follows from."""
    return not {"upload_transfer_limit", "upload_limit", "upload_transfers"}.isdisjoint(settings.model_fields_set)


@dataclass(frozen=True)
class _Lease:
    id: str
    slots: int
    is_all: bool
    """Whether nobody else can have one meanwhile."""


class TransferSlots:
    """Slots for the transfers of one process; see `opticstream.pipeline.uploads.TakeSlots`.

    Parameters
    ----------
    api_url : str
        The server's API.
    headers : mapping, optional
        By which the server knows us.
    wait_s : float
        Time after which waiting for a free slot is given up, in seconds.
    away_s : float
        Time after which a server that does not answer is no longer waited for, in seconds.
    """

    def __init__(
        self,
        api_url: str,
        /,
        *,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 600.0,
        away_s: float = _AWAY_S,
    ) -> None:
        self._client = api_client(api_url, headers, timeout_s=10.0)
        self._wait_s = wait_s
        self._away_s = away_s
        self._not_before = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._client.close()

    @contextmanager
    def __call__(self, wanted: int, meanwhile: Callable[[], object], /) -> Iterator[int]:
        """Hold as many slots as are free, at least one and at most `wanted`, and yield their number.

        Parameters
        ----------
        wanted : int
            Transfers that are wanted.
        meanwhile : callable
            Called now and then while none is free; may raise an error to stop.

        Raises
        ------
        TargetUnavailable
            No slot came free in time.
        """
        lease = self._taken(wanted, meanwhile)
        if lease is None:
            yield wanted
            return
        begin, done = time.monotonic(), threading.Event()
        renewing = threading.Thread(target=self._renew, args=(lease, done), name="renew transfer slots", daemon=True)
        renewing.start()
        try:
            yield lease.slots
        finally:
            done.set()
            renewing.join()
            self._give_back(lease)
            if lease.is_all and time.monotonic() - begin > _LONG_S:
                time.sleep(random.uniform(0.0, _LONGEST_WAIT_S / 2))  # another host that waits may be next

    def _taken(self, wanted: int, meanwhile: Callable[[], object]) -> _Lease | None:
        """Return slots; None where the server sets no limit or does not answer."""
        begin, silent_since, wait_s, slots = time.monotonic(), None, _FIRST_WAIT_S, wanted
        while True:
            meanwhile()
            if time.monotonic() < self._not_before:
                return None
            answer = self._asked("increment-with-lease", self._request(slots))
            if answer is not None and answer.status_code == 200:
                with contextlib.suppress(ValueError, KeyError, TypeError):  # another program has answered
                    return self._lease(answer.json(), slots)
            if answer is None or answer.status_code not in (422, 423):
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since >= self._away_s:
                    self._not_before = time.monotonic() + _ASK_AGAIN_S
                    said = "no answer" if answer is None else f"answer {answer.status_code}"
                    _log.warning("%s of the server about transfer slots; uploads go on without them for now", said)
                    return None
            elif slots > 1:  # not that many are free, or the limit is lower
                slots, silent_since = slots // 2, None
                continue
            elif time.monotonic() - begin >= self._wait_s:
                raise TargetUnavailable(
                    f"no slot of the concurrency limit {LIMIT} came free for {self._wait_s:g} s: other uploads hold "
                    "them, or it is 0; see Concurrency in Prefect's page (OPTICSTREAM_UPLOAD_TRANSFER_LIMIT)"
                )
            else:
                silent_since = None
            slots = wanted
            time.sleep(random.uniform(0.5, 1.0) * wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _lease(self, granted: Mapping[str, Any], slots: int) -> _Lease | None:
        lease_id, limits = str(granted["lease_id"]), [limit["limit"] for limit in granted["limits"]]
        if not limits:  # there is no such limit, or it is switched off
            self._asked("decrement-with-lease", {"lease_id": lease_id})
            return None
        return _Lease(lease_id, slots, is_all=slots >= min(limits))

    def _request(self, slots: int) -> dict[str, Any]:
        return {"names": [LIMIT], "slots": slots, "mode": "concurrency", "lease_duration": LEASE_S}

    def _renew(self, lease: _Lease, done: threading.Event) -> None:
        while not done.wait(LEASE_S / 3):
            answer = self._asked(f"leases/{lease.id}/renew", {"lease_duration": LEASE_S})
            if answer is not None and answer.status_code in (404, 410):
                _log.warning("the server has ended the lease of %d transfer slots; the upload goes on", lease.slots)
                return

    def _give_back(self, lease: _Lease) -> None:
        answer = self._asked("decrement-with-lease", {"lease_id": lease.id})
        if answer is None or answer.is_error:
            _log.warning("%d transfer slots could not be given back; they come free in %g s", lease.slots, LEASE_S)

    def _asked(self, path: str, body: Mapping[str, Any]) -> httpx.Response | None:
        """Return the server's answer; None if there is none."""
        try:
            return self._client.post(f"/v2/concurrency_limits/{path}", json=body)
        except httpx.HTTPError:
            return None
