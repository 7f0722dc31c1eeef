"""From submission to user code: how quickly a worker starts flow runs, and what a run costs.

``python benchmarks/start.py``: an embedded server, one worker of the pool ``state`` at a time, and a flow that does
nothing but write down when it began and how much memory it has. Prefect's process worker (fresh interpreters) is the
baseline; our worker forks runs from a warm process. Runs come one after the other, then all at once. Printed are the
seconds from the request for a run to its first line of user code, the processor seconds of the worker with all that it
started and of the server, for each run, and the memory that a run has for itself.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opticstream.flows.server import EmbeddedServer, end_group

FLOW = """
import json, time
from pathlib import Path
from prefect import flow

@flow
def begin(log):
    began = time.time()
    memory = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    own = sum(int(memory[key].split()[0]) for key in ("Private_Clean", "Private_Dirty"))
    with open(log, "a") as file:
        file.write(json.dumps([began, own / 1024]) + "\\n")
"""
_LONGEST_S = 300.0


def processor_seconds(group: int) -> float:
    """Return the processor time of a process group and of all that its living processes have waited for, in seconds."""
    ticks = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) == group:
                ticks += sum(map(int, (entry / "stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def worker(folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A worker of the pool `state`, ready."""
    command = [sys.executable, "-m", "opticstream", "worker", "--pool", "state"]
    with (folder / "worker.log").open("a") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError((folder / "worker.log").read_text())
        yield process
    finally:
        end_group(process.pid, process)  # type: ignore[arg-type]
        process.stdout.close()


async def measured(log: Path, deployment: Any, count: int, *, at_once: bool) -> list[tuple[float, float]]:
    """Return delay in seconds and own memory in MiB of some runs."""
    from prefect.client.orchestration import get_client

    log.write_text("")
    asked: list[float] = []
    async with get_client() as client:
        for number in range(count):
            asked.append(time.time())
            await client.create_flow_run_from_deployment(deployment, parameters={"log": str(log)})
            if not at_once:
                await _lines(log, number + 1)
                await asyncio.sleep(0.4)
        await _lines(log, count)
    began = [json.loads(line) for line in log.read_text().splitlines()]
    return [(start - (asked[0] if at_once else asked[n]), memory) for n, (start, memory) in enumerate(began)]


async def _lines(log: Path, count: int) -> None:
    end = time.monotonic() + _LONGEST_S
    while len(log.read_text().splitlines()) < count:
        if time.monotonic() > end:
            raise RuntimeError(f"only {len(log.read_text().splitlines())} of {count} runs began")
        await asyncio.sleep(0.02)


def main() -> None:
    """Measure both workers at one server and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="runs of each kind (default 10)")
    parser.add_argument("--poll-s", type=float, default=0.5, help="OPTICSTREAM_WORKER_POLL_S (default 0.5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, EmbeddedServer(Path(name) / "server") as server:
        folder = Path(name)
        (folder / "begin_flow.py").write_text(FLOW)
        os.environ.update(server.environment)
        environment = {
            **os.environ, "OPTICSTREAM_API_URL": server.api_url, "OPTICSTREAM_HOME": str(folder / "home"),
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OPTICSTREAM_WORKER_POLL_S": str(options.poll_s), "OPTICSTREAM_STATE_LIMIT": str(options.runs),
        }  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "opticstream", "deploy"], env=environment, check=True, capture_output=True
        )
        from prefect.deployments.runner import RunnerDeployment

        begin = RunnerDeployment(
            name="begin", flow_name="begin", entrypoint="begin_flow.begin", work_pool_name="state",
            enforce_parameter_schema=False,
        )  # fmt: skip
        deployment = asyncio.run(begin.aapply())
        medians = {}
        for kind, warm in (("process worker", "false"), ("warm worker", "true")):
            with worker(folder, environment | {"OPTICSTREAM_WARM_STARTS": warm}) as process:
                log = folder / "log"
                asyncio.run(measured(log, deployment, 1, at_once=False))  # the first run of each is not counted
                assert server.pid is not None
                before = processor_seconds(process.pid), processor_seconds(server.pid)
                single = asyncio.run(measured(log, deployment, options.runs, at_once=False))
                time.sleep(3)
                used = [(now - then) / options.runs for now, then in zip(
                    (processor_seconds(process.pid), processor_seconds(server.pid)), before, strict=True)]  # fmt: skip
                crowd = sorted(asyncio.run(measured(log, deployment, options.runs, at_once=True)))
            medians[kind] = statistics.median(delay for delay, _ in single)
            print(
                f"{kind:15} one at a time {medians[kind]:5.2f} s (median), {max(single)[0]:5.2f} s (worst); "
                f"{options.runs} at once {crowd[0][0]:5.2f} to {crowd[-1][0]:5.2f} s; a run takes {used[0]:.2f} s of "
                f"processor at the worker, {used[1]:.2f} s at the server; "
                f"{statistics.median(memory for _, memory in single):.0f} MiB",
                flush=True,
            )
        print(f"ratio of medians {medians['process worker'] / medians['warm worker']:.1f}")


if __name__ == "__main__":
    main()
