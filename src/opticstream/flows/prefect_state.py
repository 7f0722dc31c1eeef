"""The state of projects in Prefect Variables, under a Prefect global concurrency limit as lock.

A Variable holds 5000 bytes, so a project's state lies in shards (`opticstream.state.shards`) that never change, named
by one manifest Variable: ``i80-oct-state`` is the manifest, ``i80-oct-state--slices-1-...`` are shards. A save writes
the new shards first and the manifest last, so that a reader, or a crash in the middle, meets the old state or the new
one. The lock is the limit ``i80-oct-state`` with one slot and a lease, which ends by itself when its holder dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, cast

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL
from pydantic import ValidationError

from opticstream.flows.surroundings import refusal
from opticstream.model.errors import LockTimeout, ServerError, StateError
from opticstream.state.file_store import FileProjectLock
from opticstream.state.lsm_state import LSMProjectState, LSMStateService
from opticstream.state.oct_state import OCTProjectState, OCTStateService
from opticstream.state.record import time_to_text
from opticstream.state.shards import is_intact, references_in, shards_from_tree, tree_from_shards
from opticstream.state.slugs import state_name
from opticstream.state.store import DEFAULT_TIMEOUT_S, BaseProjectStateStore, TState
from opticstream.system.host import HostIdentity
from opticstream.system.places import private_folder

VARIABLE_LIMIT = 5000
SHARD_LIMIT = 4900
ROOT_LIMIT = 4000
PAGE = 200
LEASE_S = 60.0
"""Shortest lease that the server grants: so long a lock stays taken after its holder was killed."""
TIDY_EVERY = 100
"""Generations between two searches for shards that killed writers left."""
_ANNOUNCE_AFTER_S = 0.25
_FIRST_WAIT_S = 0.03
_LONGEST_WAIT_S = 0.5
_LONG_WAIT_S = 2.0

_log = logging.getLogger(__name__)


class PrefectApi:
    """A kept connection to a Prefect server; setting one up costs more than most calls.

    Parameters
    ----------
    api_url : str, optional
        Address of the API; that of Prefect's settings by default, looked up at the first call.
    """

    def __init__(self, api_url: str | None = None, /) -> None:
        self._api_url = api_url

    @property
    def url(self) -> str:
        """Address of the API.

        Raises
        ------
        ServerError
            None is set.
        """
        url = self._api_url or PREFECT_API_URL.value()
        if not url:
            raise ServerError("no Prefect server is set; set PREFECT_API_URL, or `opticstream server` starts one")
        return str(url)

    def call(
        self,
        method: Literal["GET", "POST", "PATCH", "DELETE"],
        path: str,
        body: Mapping[str, Any] | None = None,
        /,
        *,
        also: Iterable[int] = (),
    ) -> httpx.Response:
        """Return the answer to a request; the client beneath repeats it while the server is restarting or busy.

        Parameters
        ----------
        method, path, body
            The request; `path` is relative to the API.
        also : iterable of int
            Codes of failures that are returned instead of raised.

        Raises
        ------
        ServerError
            The server refused or did not answer.
        """
        try:
            return _client(os.getpid(), self.url).request(method, cast(Any, path), json=body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code in also:
                return error.response
            if message := refusal(error.response.status_code, self.url):
                raise ServerError(message) from None
            raise ServerError(f"{method} {self.url}{path} was refused: {error.response.text[:500]}") from error
        except (httpx.HTTPError, OSError) as error:
            raise ServerError(f"{method} {self.url}{path} had no answer: {error!r}") from error


@lru_cache(maxsize=4)
def _client(pid: int, url: str) -> SyncPrefectClient:
    """Return the client of this process; a forked child must not share its parent's connections."""
    client = SyncPrefectClient(url, auth_string=PREFECT_API_AUTH_STRING.value(), api_key=PREFECT_API_KEY.value())
    return client.__enter__()


class PrefectStateRepository(Generic[TState]):
    """Keeps the states of projects in Prefect Variables.

    Parameters
    ----------
    state_type : type
        Type of the states.
    pipeline : str
        ``oct`` or ``lsm``; part of the names.
    api : PrefectApi, optional
        Where the server is.
    """

    def __init__(self, state_type: type[TState], /, *, pipeline: str, api: PrefectApi | None = None) -> None:
        self.state_type = state_type
        self.pipeline = pipeline
        self.api = api or PrefectApi()
        self._shards: dict[str, dict[str, Any]] = {}

    def load(self, project_name: str, /) -> TState | None:
        """Return a project's state, None when there is none.

        Raises
        ------
        StateError
            A shard is missing or damaged, or the state was written by a version that knows more.
        """
        found = self._read(project_name)
        if found is None:
            return None
        manifest, shards = found
        try:
            state = self.state_type.model_validate(tree_from_shards(manifest["tree"], shards.__getitem__))
        except ValidationError as error:
            raise StateError(
                f"the Variables {self.name(project_name)}* hold no state that this version knows: {error}"
            ) from error
        state._origin = (manifest, frozenset(shards))
        return state

    def warm(self, project_name: str, /) -> None:
        """Fetch the shards once, so that under the lock only those are fetched that have changed since."""
        if self._shards.get(project_name):
            return
        with contextlib.suppress(StateError):
            self._read(project_name)

    def save(self, project_name: str, state: TState, /, *, still_held: Callable[[], None]) -> None:
        """Keep a state: create the shards that are new, replace the manifest, delete the shards that are left over."""
        name = self.name(project_name)
        tree = state.model_dump(mode="json", exclude_defaults=True)
        root, shards = shards_from_tree(tree, limit=SHARD_LIMIT, root_limit=ROOT_LIMIT)
        manifest, old = state._origin or self._origin(project_name)
        state._origin = None
        if manifest is not None and manifest["tree"] == root and shards.keys() == old:
            return
        for shard in sorted(shards.keys() - old):
            _create_variable(self.api, f"{name}--{shard}", shards[shard])
        generation = 1 if manifest is None else int(manifest["generation"]) + 1
        value = {
            "format": 1,
            "project": project_name,
            "generation": generation,
            "saved_at": time_to_text(datetime.now(UTC)),
            "saved_by": str(HostIdentity.current()),
            "tree": root,
        }
        still_held()
        _set_variable(self.api, name, value)
        self._shards[project_name] = shards
        for shard in sorted(old - shards.keys()):
            self._delete(f"{name}--{shard}")
        if generation % TIDY_EVERY == 0:
            self.tidy(project_name)

    def delete(self, project_name: str, /) -> None:
        """Forget a project's state: first the manifest, then the shards."""
        self._shards.pop(project_name, None)
        self._delete(self.name(project_name))
        for variable in self._variables(project_name):
            self._delete(variable)

    def tidy(self, project_name: str, /) -> list[str]:
        """Delete the shards that no manifest names, and return their names; hold the project's lock.

        Without the lock it would take away what another writer is about to name.
        """
        found = self._read(project_name)
        name = self.name(project_name)
        kept = {_holder_name(name)} | (set() if found is None else {f"{name}--{shard}" for shard in found[1]})
        stray = [variable for variable in self._variables(project_name) if variable not in kept]
        for variable in stray:
            self._delete(variable)
        return stray

    def _origin(self, project_name: str) -> tuple[dict[str, Any] | None, frozenset[str]]:
        """Return the manifest and the names of the shards that are to be replaced, readable or not."""
        try:
            found = self._read(project_name)
        except StateError:
            return self._manifest(self.name(project_name)), frozenset()
        return (None, frozenset()) if found is None else (found[0], frozenset(found[1]))

    def name(self, project_name: str, /) -> str:
        """Return the name of a project's manifest, with which the names of its shards begin."""
        return state_name(project_name, self.pipeline)

    def _manifest(self, name: str) -> dict[str, Any] | None:
        answer = self.api.call("GET", f"/variables/name/{name}", also={404})
        if answer.status_code == 404:
            return None
        value = answer.json()["value"]
        if not isinstance(value, dict) or value.get("format") != 1:
            raise StateError(f"the Variable {name} is no manifest of a project's state that this version knows")
        return value

    def _read(self, project_name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return the manifest and all shards that it names, directly or through others."""
        name = self.name(project_name)
        missing: set[str] = set()
        for _ in range(8):
            manifest = self._manifest(name)
            if manifest is None:
                return None
            shards, missing = self._gather(name, manifest["tree"], self._shards.get(project_name, {}))
            self._shards[project_name] = shards
            if not missing:
                return manifest, shards
            # A writer has replaced the manifest and deleted these meanwhile; the new manifest does not name them.
        raise StateError(
            f"the Variables {', '.join(sorted(f'{name}--{shard}' for shard in missing)[:3])} are missing or damaged; "
            f"`opticstream state rebuild` restores the state of {project_name!r} from its flag files"
        )

    def _gather(self, name: str, root: Any, known: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
        shards: dict[str, Any] = {}
        pending = references_in(root)
        while pending:
            fetched = {shard: known[shard] for shard in pending if shard in known}
            fetched |= self._fetch(name, sorted(pending - fetched.keys()))
            shards |= fetched
            if missing := pending - fetched.keys():
                return shards, missing
            pending = set().union(*map(references_in, fetched.values())) - shards.keys()
        return shards, set()

    def _fetch(self, name: str, shards: list[str]) -> dict[str, Any]:
        fetched: dict[str, Any] = {}
        for start in range(0, len(shards), PAGE):
            names = [f"{name}--{shard}" for shard in shards[start : start + PAGE]]
            body = {"variables": {"name": {"any_": names}}, "limit": PAGE}
            for variable in self.api.call("POST", "/variables/filter", body).json():
                shard = variable["name"].removeprefix(f"{name}--")
                if is_intact(shard, variable["value"]):
                    fetched[shard] = variable["value"]
        return fetched

    def _variables(self, project_name: str) -> list[str]:
        """Return the names of all Variables of the project but the manifest, strays too."""
        prefix = f"{self.name(project_name)}--"
        found: list[str] = []
        for page in range(1_000_000):
            body = {"variables": {"name": {"like_": prefix}}, "limit": PAGE, "offset": page * PAGE}
            names = [variable["name"] for variable in self.api.call("POST", "/variables/filter", body).json()]
            found += [name for name in names if name.startswith(prefix)]
            if len(names) < PAGE:
                break
        return found

    def _delete(self, variable: str) -> None:
        self.api.call("DELETE", f"/variables/name/{variable}", also={404})


class PrefectProjectLock:
    """Keeps all but one writer away from a project, over all hosts of a Prefect server.

    The processes of one host queue at a file lock first, which is quick and fair, so that only one of them at a time
    asks the server. A holder that dies leaves the server's lease, which ends after `LEASE_S`; who waits that long gets
    the lock. A holder that keeps the lock for more than a moment writes its name into a Variable.

    Parameters
    ----------
    pipeline : str
        ``oct`` or ``lsm``; part of the names.
    api : PrefectApi, optional
        Where the server is.
    queue_on_host : bool, default True
        Whether to queue at a file lock first.
    """

    def __init__(self, *, pipeline: str, api: PrefectApi | None = None, queue_on_host: bool = True) -> None:
        self.pipeline = pipeline
        self.api = api or PrefectApi()
        self._queue_on_host = queue_on_host
        self._known: set[str] = set()

    @contextmanager
    def hold(self, project_name: str, /, *, timeout_s: float) -> Iterator[HeldLease]:
        """Hold the project's lock inside a `with` block.

        Raises
        ------
        LockTimeout
            It stayed taken for `timeout_s`; the message names the holder.
        ServerError
            The server did not answer.
        StateError
            Somebody changed the limit, so that it keeps nobody out.
        """
        name = state_name(project_name, self.pipeline)
        deadline = time.monotonic() + timeout_s
        with self._queue(project_name, timeout_s):
            held = self._acquire(project_name, name, timeout_s, deadline)
            try:
                with held:
                    yield held
            finally:
                self._release(name, held)

    def holder(self, project_name: str, /) -> str | None:
        """Return who announced last that they hold the lock; None when nobody held it for long."""
        variable = _holder_name(state_name(project_name, self.pipeline))
        answer = self.api.call("GET", f"/variables/name/{variable}", also={404})
        if answer.status_code == 404:
            return None
        value = answer.json()["value"]
        flow_run = f", flow run {value['flow_run_id']}" if value.get("flow_run_id") else ""
        return f"{value['host']} (process {value['pid']}{flow_run}), since {value['since']}"

    def free(self, project_name: str, /) -> None:
        """Free a lock by force; for a maintainer who knows that no writer lives.

        Needed only after a server was restarted that keeps its leases in memory (Prefect's default): it forgets the
        lease, but not that the slot is taken.
        """
        name = state_name(project_name, self.pipeline)
        self.api.call("PATCH", f"/v2/concurrency_limits/{name}", {"active_slots": 0}, also={404})
        self.api.call("DELETE", f"/variables/name/{_holder_name(name)}", also={404})

    @contextmanager
    def _queue(self, project_name: str, timeout_s: float) -> Iterator[None]:
        if not self._queue_on_host:
            yield
            return
        server = hashlib.sha256(self.api.url.encode()).hexdigest()[:12]
        folder = private_folder()
        if folder is None:  # the server's lock alone keeps writers apart, only less quickly
            yield
            return
        with _host_queue(folder / f"locks-{server}", self.pipeline).hold(project_name, timeout_s=timeout_s):
            yield

    def _acquire(self, project_name: str, name: str, timeout_s: float, deadline: float) -> HeldLease:
        begin = time.monotonic()
        wait_s = _FIRST_WAIT_S
        while True:
            if name not in self._known:
                self._ensure_limit(name)
                self._known.add(name)
            asked = time.monotonic()
            body = {"names": [name], "slots": 1, "mode": "concurrency", "lease_duration": LEASE_S}
            answer = self.api.call("POST", "/v2/concurrency_limits/increment-with-lease", body, also={423})
            if answer.status_code != 423:
                granted = answer.json()
                if [limit["limit"] for limit in granted["limits"]] == [1]:
                    break
                self._return_lease(granted["lease_id"])
                self._known.discard(name)  # somebody deleted or changed it; look, and say so
                continue
            if time.monotonic() >= deadline:
                holder = self.holder(project_name)
                known = f"now by {holder}" if holder else "by a writer that did not live long enough to give its name"
                raise LockTimeout(
                    f"the state of {project_name!r} stayed locked for {timeout_s:g} s, {known}; the lease of a dead "
                    f"holder ends after {LEASE_S:g} s (concurrency limit {name} at {self.api.url})"
                )
            # The server's own advice is many seconds long, while holders need a tenth of one.
            time.sleep(random.uniform(0.5, 1.0) * min(wait_s, max(0.0, deadline - time.monotonic())))
            wait_s = min(wait_s * 1.5, _LONGEST_WAIT_S)
        if time.monotonic() - begin > _LONG_WAIT_S:  # the former holder may have died and left its name
            self.api.call("DELETE", f"/variables/name/{_holder_name(name)}", also={404})
        return HeldLease(self.api, name, granted["lease_id"], valid_until_s=asked + LEASE_S)

    def _ensure_limit(self, name: str) -> None:
        answer = self.api.call("GET", f"/v2/concurrency_limits/{name}", also={404})
        if answer.status_code == 404:
            body = {"name": name, "limit": 1, "active": True, "slot_decay_per_second": 0.0}
            self.api.call("POST", "/v2/concurrency_limits/", body, also={409, 422})
            answer = self.api.call("GET", f"/v2/concurrency_limits/{name}")
        limit = answer.json()
        if limit["limit"] != 1 or not limit["active"] or limit["slot_decay_per_second"]:
            raise StateError(
                f"the concurrency limit {name} at {self.api.url} keeps nobody out: limit {limit['limit']}, active "
                f"{limit['active']}, decay {limit['slot_decay_per_second']}; set it to 1, active, without decay"
            )

    def _release(self, name: str, held: HeldLease) -> None:
        try:
            if held.announced:
                self.api.call("DELETE", f"/variables/name/{_holder_name(name)}", also={404})
            self._return_lease(held.lease_id)
        except ServerError as error:  # the state is saved; the lease ends by itself
            _log.warning("the lock %s could not be given back and stays taken for up to %g s: %s", name, LEASE_S, error)

    def _return_lease(self, lease_id: str) -> None:
        self.api.call("POST", "/v2/concurrency_limits/decrement-with-lease", {"lease_id": lease_id})


class HeldLease:
    """A lock that is held; a thread renews its lease and announces a holder that takes long."""

    def __init__(self, api: PrefectApi, name: str, lease_id: str, /, *, valid_until_s: float) -> None:
        self.lease_id = lease_id
        self.announced = False
        self._api = api
        self._name = name
        self._valid_until_s = valid_until_s
        self._lost: str | None = None
        self._stop = threading.Event()
        self._flow_run_id = _current_flow_run_id()
        self._since = time_to_text(datetime.now(UTC))
        self._thread = threading.Thread(target=self._keep, name=f"renew lock {name}", daemon=True)

    def __enter__(self) -> HeldLease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def ensure_held(self) -> None:
        """Raise StateError when the lease has ended, so that somebody else may be writing."""
        if self._lost is None and time.monotonic() >= self._valid_until_s:
            self._lost = f"its lease of {LEASE_S:g} s could not be renewed in time"
        if self._lost is not None:
            raise StateError(f"the lock {self._name} was lost ({self._lost}); nothing was saved")

    def _keep(self) -> None:
        if self._stop.wait(_ANNOUNCE_AFTER_S):
            return
        host = HostIdentity.current()
        value = {"host": host.host, "pid": host.pid, "since": self._since, "flow_run_id": self._flow_run_id}
        with contextlib.suppress(ServerError):  # the name is a courtesy
            self.announced = True
            _set_variable(self._api, _holder_name(self._name), value)
        while not self._stop.wait(LEASE_S / 3):
            asked = time.monotonic()
            try:
                answer = self._api.call(
                    "POST",
                    f"/v2/concurrency_limits/leases/{self.lease_id}/renew",
                    {"lease_duration": LEASE_S},
                    also={404, 410},
                )
            except ServerError as error:
                _log.warning("the lease of the lock %s could not be renewed: %s", self._name, error)
                continue
            if answer.status_code in (404, 410):
                self._lost = "the server has ended its lease"
                return
            self._valid_until_s = asked + LEASE_S


def oct_state_service(*, api_url: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> OCTStateService:
    """Return the service for the state of OCT projects in Prefect Variables."""
    return OCTStateService(prefect_store(OCTProjectState, pipeline="oct", api_url=api_url, timeout_s=timeout_s))


def lsm_state_service(*, api_url: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> LSMStateService:
    """Return the service for the state of light-sheet projects in Prefect Variables."""
    return LSMStateService(prefect_store(LSMProjectState, pipeline="lsm", api_url=api_url, timeout_s=timeout_s))


def prefect_store(
    state_type: type[TState], /, *, pipeline: str, api_url: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> BaseProjectStateStore[TState]:
    """Return a store in Prefect Variables, under a global concurrency limit."""
    api = PrefectApi(api_url)
    repository = PrefectStateRepository(state_type, pipeline=pipeline, api=api)
    return BaseProjectStateStore(repository, PrefectProjectLock(pipeline=pipeline, api=api), timeout_s=timeout_s)


OCT_STATE_SERVICE = oct_state_service()
LSM_STATE_SERVICE = lsm_state_service()


@lru_cache(maxsize=16)
def _host_queue(folder: Path, pipeline: str) -> FileProjectLock:
    return FileProjectLock(folder, pipeline=pipeline)


def _holder_name(name: str) -> str:
    return f"{name}--holder"


def _set_variable(api: PrefectApi, name: str, value: Mapping[str, Any]) -> None:
    answer = api.call("PATCH", f"/variables/name/{name}", {"value": value}, also={404})
    if answer.status_code == 404:
        api.call("POST", "/variables/", {"name": name, "value": value})


def _create_variable(api: PrefectApi, name: str, value: Mapping[str, Any]) -> None:
    answer = api.call("POST", "/variables/", {"name": name, "value": value}, also={409})
    if answer.status_code == 409:  # a writer who was killed left it, or somebody has changed it by hand
        api.call("PATCH", f"/variables/name/{name}", {"value": value})


def _current_flow_run_id() -> str | None:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else None
