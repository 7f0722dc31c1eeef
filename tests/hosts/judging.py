"""Waits for, and judges, what several hosts have done together, from the project's folder and from the server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from tests.hosts.namespaces import Host
from tests.hosts.walk import ACCOUNT, ADDRESSES, Walk

from opticstream.config import load_project
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.testing.chaos.outcome import Outcome

_HEALTH = r"""
until (exec 3<>/dev/tcp/{address}/4200 && printf 'GET /api/health HTTP/1.0\r\n\r\n' >&3 && head -1 <&3 | grep -q 200) 2>/dev/null
do sleep 0.2; done
"""  # noqa: E501
_ASK = """
import base64, sys, urllib.request
who = "Basic " + base64.b64encode(sys.argv[3].encode()).decode()
headers = {"Content-Type": "application/json", "Authorization": who}
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), headers)
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


def wait_for_server(host: Host) -> None:
    """Wait until the server answers a host."""
    host.run(f"timeout 600 bash -c {_quoted(_HEALTH.format(address=ADDRESSES['A']))}", timeout_s=630)


def flow_runs(host: Host, python: Path, *states: str, deployment: str | None = None) -> list[dict[str, object]]:
    """Return the flow runs that the server knows in some states, of all deployments or one, as a host asks for them."""
    query: dict[str, object] = {"flow_runs": {"state": {"type": {"any_": list(states)}}}, "limit": 200}
    body = json.dumps(query | ({"deployments": {"name": {"any_": [deployment]}}} if deployment else {}))
    url = f"http://{ADDRESSES['A']}:4200/api/flow_runs/filter"
    answer = host.run(f"{python} -c {_quoted(_ASK)} {url} {_quoted(body)} {ACCOUNT}").stdout
    found: list[dict[str, object]] = json.loads(answer)
    return found


def opened(folder: Path) -> Project:
    """Return the project of a folder as this machine sees it."""
    return Project.open(load_project(folder / "project.toml"))


def wait_until(done: Callable[[], bool], walk: Walk, what: str, *, timeout_s: float) -> None:
    """Wait until something has come true; AssertionError with what the services have said last if it does not."""
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            said = [f"--- {s.name}\n{s.text()[-2500:]}" for h in walk.hosts.values() for s in h.services.values()]
            raise AssertionError(f"{what}: not within {timeout_s:g} s\n" + "\n".join(said))
        time.sleep(0.2)


def has_all(project: Project, calm: Outcome) -> bool:
    """Return whether every fact of a calm run is recorded."""
    return calm.facts <= frozenset(project.facts.snapshot())


def wait_until_finished(project: Project, calm: Outcome, walk: Walk, *, timeout_s: float) -> None:
    """Wait until every fact of a calm run is recorded; AssertionError also where something has failed for good."""

    def finished() -> bool:
        failures = project_progress(project).failures
        assert not failures, failures
        return has_all(project, calm)

    wait_until(finished, walk, "everything is done", timeout_s=timeout_s)


def hosts_of(project: Project) -> dict[str, set[str]]:
    """Return the hosts on which each kind of fact was computed."""
    found: dict[str, set[str]] = {}
    for entry in project.facts.journal.entries():
        if entry.event == "computed":
            found.setdefault(str(entry.fact), set()).add(str(entry.host))
    return found


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
