"""Checks of the server: reached, taken, of a fitting version; its clock, pools, workers, deployments and locks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from opticstream import __version__
from opticstream.flows.clock_skew import judged_skew
from opticstream.flows.contact import SETTING, shown_url
from opticstream.flows.doctor._checks import Finding
from opticstream.flows.doctor._scene import Scene
from opticstream.flows.pool_state import trouble_of_pools
from opticstream.system.host import HostIdentity, process_exists

_LOCK_LEASE_S = 60.0
_LOOKS_AT_LOCK = 4
"""How often a lock is looked at that is taken: most are held for a tenth of a second."""
_DEPLOY = "run `opticstream deploy` once, with this version of the package"


def server(scene: Scene) -> Iterator[Finding]:
    """See whether a server answers."""
    contact = scene.contact
    if contact is None:
        where = f"{SETTING} is not set, and none runs in {scene.home}"
        yield Finding("ok", f"{where}: `run`, `watch` and `up` start one of their own")
        return
    address = shown_url(str(scene.api_url))
    if contact.state in ("away", "no Prefect", "wrong address"):
        yield Finding("problem", f"{address}: {contact.said}", contact.advice)
        return
    slow = contact.round_trip_s > 2.0
    said = f"{address} answers in {contact.round_trip_s:.2f} s"
    yield Finding("warning" if slow else "ok", said, "see whether the server's host is overloaded" if slow else "")


def credentials(scene: Scene) -> Iterator[Finding]:
    """See whether the server takes this host's user and password, or key."""
    contact = scene.contact
    if contact is None or contact.state in ("away", "no Prefect", "wrong address"):
        return
    if contact.state == "refused":
        yield Finding("problem", contact.said, contact.advice)
    else:
        yield Finding("ok", "accepted" if scene.headers else "none are asked for")


def version(scene: Scene) -> Iterator[Finding]:
    """Compare the server's Prefect with this host's."""
    contact = scene.contact
    if contact is None or contact.state not in ("ready", "other version"):
        return
    if contact.state == "other version":
        yield Finding("problem", contact.said, contact.advice)
    else:
        yield Finding("warning" if contact.advice else "ok", contact.said, contact.advice)


def clock(scene: Scene) -> Iterator[Finding]:
    """Compare this host's clock with the server's."""
    if scene.contact is None or scene.contact.state not in ("ready", "refused", "other version"):
        return
    skew = judged_skew(scene.contact, lease_s=scene.settings.lease_s)
    if skew is None:
        yield Finding(
            "warning", "the server does not tell its time (no `Date` in its answers)", "compare by hand: `date`"
        )
    else:
        yield Finding(skew.level, skew.said, skew.advice)


def pools(scene: Scene) -> Iterator[Finding]:
    """See whether the work pools are there, of our type, and not paused."""
    known = scene.work_pools
    limits = []
    for name in scene.pools:
        if trouble := trouble_of_pools([name], known):
            said, _, advice = trouble.partition("; ")
            yield Finding("problem", said, advice)
            continue
        pool = known[name]
        limit = pool.get("concurrency_limit")
        if pool.get("is_paused"):
            advice = f"resume it in Prefect's page, or by `prefect work-pool resume {name}`"
            yield Finding("warning", f"work pool {name} is paused: no run of it starts", advice)
        elif limit == 0:
            yield Finding(
                "warning", f"work pool {name} has a limit of 0: no run of it starts", "raise it in Prefect's page"
            )
        else:
            limits.append(f"{name} {'without limit' if limit is None else limit}")
    if limits:
        yield Finding("ok", f"in order, with their limits: {', '.join(limits)}")


def workers(scene: Scene) -> Iterator[Finding]:
    """See whether each pool is served, and whether this host serves one several times."""
    host, fine = HostIdentity.current().host.replace("/", "-").replace("%", "-"), []
    for name in scene.pools:
        if trouble_of_pools([name], scene.work_pools):
            continue
        found = scene.ask("POST", f"/work_pools/{name}/workers/filter", {}) or []
        online = sorted(worker["name"] for worker in found if worker.get("status") == "ONLINE")
        if not online:
            last = max((worker["last_heartbeat_time"] or "" for worker in found), default="")
            seen = f"none since {_time(last)}" if last else "none"
            advice = f"start one: `opticstream worker --pool {name}`, on this host or another"
            yield Finding("warning", f"pool {name} has no worker online: {seen}", advice)
            continue
        own = [worker for worker in online if worker.startswith(f"{host} {name}")]
        if len(own) > 1:
            yield Finding(
                "warning",
                f"{len(own)} workers of this host serve pool {name} ({', '.join(own)}): each counts limit, cores and "
                f"memory for itself",
                "keep one; they are of different OPTICSTREAM_HOME, or one has just ended (it shows for a minute)",
            )
        else:
            fine.append(f"{name}: {', '.join(online)}")
    if fine:
        yield Finding("ok", "; ".join(fine))


def deployments(scene: Scene) -> Iterator[Finding]:
    """Compare the server's deployments with those of this package."""
    from opticstream.flows.deploying import version_of
    from opticstream.flows.deployments import runner_deployments

    collapse_s, sweep_s = scene.settings.collapse_s, scene.settings.sweep_s
    versions: dict[str, set[str]] = {}
    for every_s in (sweep_s, None):  # with and without sweeps, as where the process that feeds a project sweeps itself
        for wanted in asyncio.run(runner_deployments(collapse_s=collapse_s, sweep_s=every_s)):
            versions.setdefault(str(wanted.name), set()).add(version_of(wanted))
    found = {str(one["name"]): one for one in scene.deployments}
    problems = list(_troubles_of_deployments(found, versions))
    yield from problems
    if not problems:
        yield Finding("ok", f"{len(versions)} of version {__version__}, as in this package")


def _troubles_of_deployments(found: Mapping[str, Any], wanted: Mapping[str, set[str]]) -> Iterator[Finding]:
    if missing := sorted(wanted.keys() - found.keys()):
        yield Finding("problem", f"missing: {', '.join(missing)}", _DEPLOY)
    if gone := sorted(found.keys() - wanted.keys()):
        yield Finding("warning", f"of another version of the package: {', '.join(gone)}", _DEPLOY)
    present = sorted(wanted.keys() & found.keys())
    if paused := [name for name in present if found[name].get("paused")]:
        advice = f"resume them in Prefect's page, or by `prefect deployment resume {paused[0]}/{paused[0]}`"
        yield Finding("warning", f"paused, so that their runs do not start: {', '.join(paused)}", advice)
    others = {
        name: str(found[name].get("version") or "none")
        for name in present
        if found[name].get("version") not in wanted[name]
    }
    releases = sorted({version.partition("+")[0] for version in others.values()} - {__version__})
    if releases:
        said = f"made by OpticStream {', '.join(releases)}, and this host has {__version__}: {', '.join(others)}"
        yield Finding("problem", said, "install one version on all hosts, and run `opticstream deploy` once")
    elif others:
        said = f"made with other settings, or by another build, than this host's: {', '.join(others)}"
        yield Finding("warning", said, "run `opticstream deploy` with the settings that are to hold")


def triggers(scene: Scene) -> Iterator[Finding]:
    """See whether the events start the deployments: triggers are there and on, and the server looks at them."""
    from opticstream.flows.deployments import DEPLOYMENTS

    wanted = {deployment.name: bool(deployment.events) for deployment in DEPLOYMENTS}
    missing, off = [], []
    for one in scene.deployments:
        if not wanted.get(one["name"]):
            continue
        own = scene.ask("GET", f"/automations/related-to/prefect.deployment.{one['id']}") or []
        if not own:
            missing.append(one["name"])
        elif not all(automation.get("enabled", True) for automation in own):
            off.append(one["name"])
    if missing:
        yield Finding("problem", f"deployments without trigger, which no event starts: {', '.join(missing)}", _DEPLOY)
    if off:
        advice = "switch them on under Automations in Prefect's page"
        yield Finding("problem", f"triggers that are switched off: {', '.join(off)}", advice)
    settings = scene.ask("GET", "/admin/settings") or {}
    if _at(settings, "server", "services", "triggers", "enabled") is False:
        said = "the server that answers evaluates no triggers"
        advice = (
            "fine where its services run in a process of their own; else set PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED"
        )
        yield Finding("warning", said, advice)
    storage = _at(settings, "server", "concurrency", "lease_storage")
    if isinstance(storage, str) and storage.endswith(".memory"):
        said = (
            "the server keeps the leases of locks in memory: a lock that is held while it restarts stays taken for ever"
        )
        yield Finding("warning", said, "start it with `opticstream server`, which keeps them on disk")
    if not missing and not off:
        yield Finding("ok", "present and on")


def locks(scene: Scene) -> Iterator[Finding]:
    """See whether a lock on the state of a project is held by a process that has died."""
    taken = _taken_locks(scene)
    for _ in range(_LOOKS_AT_LOCK - 1):
        if not taken:
            break
        time.sleep(0.5)
        taken &= _taken_locks(scene)
    for name in sorted(taken):
        yield _finding_of_lock(scene, name)
    if not taken:
        yield Finding("ok", "none is held for long")


def _taken_locks(scene: Scene) -> set[str]:
    limits = scene.ask("POST", "/v2/concurrency_limits/filter", {"limit": 200}) or []
    ours = ("-oct-state", "-lsm-state")
    return {str(one["name"]) for one in limits if one.get("active_slots") and str(one["name"]).endswith(ours)}


def _finding_of_lock(scene: Scene, name: str) -> Finding:
    advice = "wait a minute; if it stays: `opticstream state unlock PROJECT`, when no writer lives"
    known = scene.ask("GET", f"/variables/name/{name}-holder")
    value = known.get("value") if isinstance(known, dict) else None
    if not isinstance(value, dict):
        return Finding("warning", f"lock {name} is taken by a writer that has not given its name", advice)
    host, pid, since = str(value.get("host")), value.get("pid"), str(value.get("since"))
    holder = f"{host} (process {pid}), since {_time(since)}"
    if host == HostIdentity.current().host and isinstance(pid, int) and not process_exists(pid):
        return Finding("problem", f"lock {name} is held by {holder}, which has ended", advice)
    begun = _moment(since)
    if begun is not None and (datetime.now(UTC) - begun).total_seconds() > 2 * _LOCK_LEASE_S:
        return Finding("warning", f"lock {name} is held by {holder}, which is long", advice)
    return Finding("ok", f"lock {name} is held by {holder}")


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _time(text: str) -> str:
    moment = _moment(text)
    return text if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"
