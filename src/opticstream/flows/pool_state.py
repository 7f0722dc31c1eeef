"""The work pools at a server as its workers find them: missing, of another type, paused, or in order.

Does not import Prefect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import httpx

from opticstream.flows.contact import is_passing, wait_for_server
from opticstream.flows.pools import POOL_TYPE
from opticstream.flows.surroundings import is_this_machine
from opticstream.model.errors import ServerError

LOOK_S = 15.0
"""Time between two looks at whether pools are paused, in seconds."""
_PAGE = 200


def pools_at(api_url: str, /, *, headers: Mapping[str, str] | None = None, timeout_s: float = 30.0) -> dict[str, Any]:
    """Return the work pools of a server by name, as it describes them."""
    found: dict[str, Any] = {}
    with api_client(api_url, headers, timeout_s=timeout_s) as client:
        while True:
            query = {"limit": _PAGE, "offset": len(found)}
            page = client.post("/work_pools/filter", json=query).raise_for_status().json()
            found.update({pool["name"]: pool for pool in page})
            if len(page) < _PAGE:
                return found


def api_client(api_url: str, headers: Mapping[str, str] | None = None, /, *, timeout_s: float = 30.0) -> httpx.Client:
    """Return a client of a server's API that reaches addresses of this machine directly, whatever proxies are set."""
    return httpx.Client(base_url=api_url, headers=headers, timeout=timeout_s, trust_env=not is_this_machine(api_url))


def trouble_of_pools(names: Collection[str], pools: Mapping[str, Any], /) -> str | None:
    """Return why a worker cannot serve some pools, None where it can.

    Examples
    --------
    >>> trouble_of_pools(["tile"], {})
    'the server has no work pool tile; run `opticstream deploy` once'
    >>> trouble_of_pools(["tile"], {"tile": {"type": "docker"}}).partition(";")[0]
    "work pool tile is of type 'docker', expected 'opticstream'"
    """
    if missing := [name for name in names if name not in pools]:
        return f"the server has no work pool {', '.join(missing)}; run `opticstream deploy` once"
    for name in names:
        if (kind := pools[name].get("type")) != POOL_TYPE:
            return (
                f"work pool {name} is of type {kind!r}, expected {POOL_TYPE!r}; somebody else may have made it: delete "
                f"it (`prefect work-pool delete {name}`) and run `opticstream deploy`, or use a server of its own"
            )
    return None


def check_pools(
    names: Sequence[str], api_url: str, /, *, headers: Mapping[str, str] | None, say: Callable[[str], object]
) -> None:
    """Do nothing where a worker can serve some pools; a server that is away meanwhile is waited for.

    Raises
    ------
    ServerError
        A pool is missing, or of another type.
    """
    pools = until_answered(lambda: pools_at(api_url, headers=headers), api_url, headers=headers, say=say)
    if trouble := trouble_of_pools(names, pools):
        raise ServerError(trouble)


def until_answered(
    call: Callable[[], Any], api_url: str, /, *, headers: Mapping[str, str] | None, say: Callable[[str], object]
) -> Any:
    """Return what a request to the server returns, asked again for as long as the server is away or busy."""
    while True:
        try:
            return call()
        except httpx.HTTPError as error:
            if not is_passing(error):
                raise
            wait_for_server(api_url, say=say, headers=headers)
            time.sleep(1.0)


class PauseTeller:
    """Says once that a pool is paused, missing or of another type, and once that it goes on."""

    def __init__(self, names: Sequence[str], say: Callable[[str], object], /) -> None:
        self._names = names
        self._say = say
        self._since: dict[str, tuple[str, float]] = {}

    def look(self, pools: Mapping[str, Any], /, *, now: float | None = None) -> None:
        """Say what has changed, given the server's pools by name; `now` is in seconds since 1970."""
        now = time.time() if now is None else now
        for name in self._names:
            state = self._state(name, pools)
            before, since = self._since.get(name, ("", now))
            if state == before:
                continue
            if state:
                self._say(f"{state}; waiting since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))}")
                self._since[name] = (state, now)
            else:
                self._say(f"work pool {name} goes on, after {now - since:.0f} s")
                del self._since[name]

    def _state(self, name: str, pools: Mapping[str, Any]) -> str:
        if trouble := trouble_of_pools([name], pools):
            return trouble
        if pools[name].get("is_paused"):
            return (
                f"work pool {name} is paused: no run of it starts until it is resumed in Prefect's page, or by "
                f"`prefect work-pool resume {name}`"
            )
        return ""


async def tell_of_pauses(
    names: Sequence[str],
    api_url: str,
    /,
    *,
    headers: Mapping[str, str] | None,
    say: Callable[[str], object],
    every_s: float = LOOK_S,
) -> None:
    """Say when pools are paused and when they go on, until this is cancelled; nothing is said while none answers."""
    teller = PauseTeller(names, say)
    while True:
        try:
            teller.look(await asyncio.to_thread(pools_at, api_url, headers=headers, timeout_s=10.0))
        except (httpx.HTTPError, ValueError, KeyError, TypeError):  # the worker itself tells of a server that is away
            pass
        await asyncio.sleep(every_s)
