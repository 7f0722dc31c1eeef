"""A burst of batch events on SQLite: worked off by few shared runs, against one plain run for each event.

``python benchmarks/burst.py``: an embedded server and one worker of the pool ``state``. The facts of mosaics of 40
batches are recorded, and a `linc.oct.batch.processed` event is posted for each batch, as the pipeline does it. The
burst is worked off when every mosaic is recorded as ready: no event was lost. The baseline, at the same server and
worker, is a deployment that every event starts once and that notes the event. Printed are the seconds from an event to
the record that counts it (median and worst), and the processor seconds of server and worker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opticstream.flows.server import EmbeddedServer
from start import processor_seconds, worker

PROJECT = """
[project]
project_name = "burst"
project_base_path = "project"

[scan]
grid_size_y = 2
scan_resolution_3d = [0.01, 0.01, 0.0025]
illuminations = [{{ name = "normal", columns = {columns}, a_lines = 8 }}]
"""
PLAIN = """
import json, time
from prefect import flow

@flow
def note(log, number):
    with open(log, "a") as file:
        file.write(json.dumps([number, time.time()]) + "\\n")
"""
COLUMNS = 40
_LONGEST_S = 1800.0


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds.

    Raises
    ------
    RuntimeError
        It does not come true.
    """
    end = time.monotonic() + _LONGEST_S
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not in {_LONGEST_S:.0f} s: {what}")
        time.sleep(0.1)


def shared(folder: Path, events: int) -> list[float]:
    """Post the events of the pipeline and return the delay of each until it was counted, in seconds."""
    from opticstream.config import load_project
    from opticstream.flows.events import announce_automatically
    from opticstream.flows.parameters import save_parameters
    from opticstream.model.events import BatchProcessed
    from opticstream.model.ids import MosaicId
    from opticstream.pipeline.project import Project

    columns = min(COLUMNS, events)
    (folder / "project.toml").write_text(PROJECT.format(columns=columns))
    config = load_project(folder / "project.toml")
    save_parameters(config)
    project = Project.open(config)
    mosaics = [MosaicId(number + 1) for number in range(events // columns)]
    batches = [batch for mosaic in mosaics for batch in project.layout.batches(mosaic)]
    posted = {}
    for batch in batches:
        project.facts.record(batch, "processed")
        posted[batch] = time.time()
        announce_automatically([project.event(BatchProcessed, batch)])
    ready: dict[MosaicId, float] = {}

    def is_counted() -> bool:
        ready.update({m: time.time() for m in mosaics if m not in ready and project.facts.has(m, "ready")})
        return len(ready) == len(mosaics)

    wait_for("every mosaic is ready", is_counted)
    return [ready[batch.mosaic] - posted[batch] for batch in batches]


def plain(folder: Path, events: int) -> list[float]:
    """Post as many events that start one run each, and return the delay of each until its run noted it, in seconds."""
    from prefect.client.orchestration import get_client
    from prefect.deployments.runner import RunnerDeployment
    from prefect.events import DeploymentEventTrigger

    log = folder / "notes"
    log.write_text("")
    trigger = DeploymentEventTrigger(
        expect={"burst.noted"}, parameters={"log": str(log), "number": "{{ event.resource.number }}"}
    )
    note = RunnerDeployment(
        name="note", flow_name="note", entrypoint="note_flow.note", work_pool_name="state", triggers=[trigger],
        enforce_parameter_schema=False,
    )  # fmt: skip
    asyncio.run(note.aapply())

    def noted() -> dict[int, float]:
        return {int(number): when for number, when in map(json.loads, log.read_text().splitlines())}

    posted: list[float] = []
    with get_client(sync_client=True) as client:

        def post(number: int) -> None:
            body: dict[str, Any] = {
                "id": str(uuid.uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": "burst.noted",
                "resource": {"prefect.resource.id": f"note.{number}", "number": str(number)}, "related": [],
                "payload": {},
            }  # fmt: skip
            client.request("POST", "/events", json=[body]).raise_for_status()

        # The server loads a new trigger a moment after it has taken it; events before that start nothing.
        trials = 0
        while not noted():
            trials += 1
            post(-trials)
            time.sleep(2)
        for number in range(events):
            posted.append(time.time())
            post(number)
    wait_for("every event is noted", lambda: set(noted()) >= set(range(events)))
    return [noted()[number] - when for number, when in enumerate(posted)]


def main() -> None:
    """Measure both at one server and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200, help="events of a burst (default 200)")
    parser.add_argument("--limit", type=int, default=10, help="runs at a time (default 10)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, EmbeddedServer(Path(name) / "server") as server:
        folder = Path(name)
        (folder / "note_flow.py").write_text(PLAIN)
        os.environ.update(server.environment)
        environment = {
            **os.environ, "OPTICSTREAM_API_URL": server.api_url, "OPTICSTREAM_HOME": str(folder / "home"),
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OPTICSTREAM_STATE_LIMIT": str(options.limit),
        }  # fmt: skip
        deploy = [sys.executable, "-m", "opticstream", "deploy"]
        subprocess.run(deploy, env=environment, check=True, capture_output=True)
        medians = {}
        with worker(folder, environment) as process:
            assert server.pid is not None
            for kind, burst in (("shared runs", shared), ("a run for each event", plain)):
                before = processor_seconds(process.pid), processor_seconds(server.pid)
                delays = burst(folder, options.events)
                used = [now - then for now, then in zip(
                    (processor_seconds(process.pid), processor_seconds(server.pid)), before, strict=True)]  # fmt: skip
                medians[kind] = statistics.median(delays)
                print(
                    f"{kind:20} {len(delays)} events, none lost; from event to count {medians[kind]:.1f} s (median), "
                    f"{max(delays):.1f} s (worst); processor: server {used[1]:.1f} s, worker {used[0]:.1f} s",
                    flush=True,
                )
        print(f"ratio of medians {medians['a run for each event'] / medians['shared runs']:.1f}")


if __name__ == "__main__":
    main()
