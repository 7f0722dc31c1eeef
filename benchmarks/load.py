"""An acquisition replayed through the real engine, without its numerics: what one server can carry.

``python benchmarks/load.py``: PostgreSQL (Debian's, started here; ``--sqlite`` without it), a Prefect server, one
worker of all pools, our deployments and project state. A batch is announced every so often, as the watcher does it;
what follows is the chain of events. Only the bodies of the numerical stages are replaced, in every process of the
worker, by ones that write a small file: tiles, stitching, registration, and the stacking of the sample.

Printed are the batches per minute; the delay from a batch's event to its first tile (median, 99th percentile);
processor time and memory of server, database and worker; the first quarter of the run beside the last one, for leaks
and slowdowns; the latency of the project state; and how many microscopes one server can carry, with the arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from opticstream.flows.server import end_group, free_port, is_healthy
from start import processor_seconds

PROJECT = """
[project]
project_name = "load"
project_base_path = "project"

[scan]
grid_size_y = {rows}
scan_resolution_3d = [0.01, 0.01, 0.0025]
illuminations = [
    {{ name = "normal", columns = {columns}, a_lines = 8 }},
    {{ name = "tilted", columns = {columns}, a_lines = 8, tilt_deg = -15.0 }},
]

[processing.archive]
enabled = false
"""
# Found by every interpreter of the worker, and so by the process that its flow runs are forked from.
WITHOUT_NUMERICS = """
import importlib.abc, importlib.machinery, json, os, sys, time


def batches(module):
    from opticstream.stages.tile import TileResult
    from opticstream.stages.tile._process_tile import OutputFile

    def process_tile(source, tile, *, out_dir, **_options):
        with open(os.environ["LOAD_LOG"], "a") as log:
            log.write(json.dumps([tile.mosaic_id, tile.tile_id, time.time()]) + "\\n")
        path = out_dir / "load" / (tile.key.replace("/", "-") + ".txt")
        path.parent.mkdir(exist_ok=True)
        path.write_text(tile.key)
        return TileResult(tile, source, source.stat().st_size, None, {"aip": OutputFile(path, path.stat().st_size)})

    module.process_tile = process_tile


def _does(step):
    def work(project, event, *, attempt=None):
        from opticstream.pipeline.jobs import Result, announcements, perform

        def compute(_claim):
            name = f"{event.item.key.replace('/', '-')}-{step.done}.txt"
            path = project.paths.base / "load" / name
            attempt(step.name, lambda: path.write_text(step.name))
            return Result(outputs=[project.facts.file_record(path)], detail={"products": {}, "doubts": [], "notes": []})

        return announcements(project, event.item, step, perform(project, event.item, step, compute))

    return work


def mosaics(module):
    from opticstream.pipeline.jobs import STITCH_MOSAIC, STITCH_VOLUME

    module.stitch_mosaic, module.stitch_volume = _does(STITCH_MOSAIC), _does(STITCH_VOLUME)


def slices(module):
    from opticstream.pipeline.jobs import REGISTER_SLICE

    module.register_slice = _does(REGISTER_SLICE)


def stacking(module):
    module.update_sample = lambda _project, **_options: iter(())


def picture(module):
    module.publish_mosaic_quality = lambda *_about: None  # made from maps, of which there are none


CHANGED = {
    "opticstream.pipeline.batches": batches, "opticstream.pipeline.mosaics": mosaics,
    "opticstream.pipeline.slices": slices, "opticstream.pipeline.stacking": stacking,
    "opticstream.flows.picture": picture,
}


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in CHANGED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            CHANGED[name](module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""
_LONGEST_S = 3600.0
_IDLE_S = 15.0
_POSTGRESQL = Path("/usr/lib/postgresql")


def wait_for(what: str, condition: Callable[[], bool], longest_s: float = _LONGEST_S) -> None:
    """Wait until a condition holds.

    Raises
    ------
    RuntimeError
        It does not come true.
    """
    end = time.monotonic() + longest_s
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not in {longest_s:.0f} s: {what}")
        time.sleep(0.2)


@contextmanager
def running(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A process in a group of its own, whose id this gives."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process.pid
    finally:
        end_group(process.pid, process)


@contextmanager
def postgresql(log: Path) -> Iterator[tuple[str, int]]:
    """An empty PostgreSQL of our own: the URL of its database and its process group."""
    programs = sorted(_POSTGRESQL.glob("*/bin"))[-1]
    owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="optic-pg-", ignore_cleanup_errors=True) as name:
        if owner:
            account = pwd.getpwnam("postgres")
            os.chown(name, account.pw_uid, account.pw_gid)
        data, port = f"{name}/db", free_port()
        made = subprocess.run(
            [*owner, programs / "initdb", "-D", data, "-U", "optic", "--auth=trust", "--no-sync", "-E", "UTF8",
             "--locale=C"], cwd="/", capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"initdb: {made.stderr}")
        command = [*owner, str(programs / "postgres"), "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", name]
        with running(command, log) as group:
            make = [str(programs / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "optic", "prefect"]
            wait_for("PostgreSQL", lambda: subprocess.run(make, capture_output=True, check=False).returncode == 0, 60)
            yield f"postgresql+asyncpg://optic@127.0.0.1:{port}/prefect", group


@dataclass(frozen=True)
class Groups:
    """Process groups that are measured."""

    server: int
    worker: int
    database: int | None


@dataclass(frozen=True)
class Sample:
    """Processor seconds and memory in MiB so far."""

    server_s: float
    worker_s: float
    database_s: float
    server_mib: float
    worker_mib: float


def sample(groups: Groups) -> Sample:
    """Return what the processes have used."""
    return Sample(
        processor_seconds(groups.server),
        processor_seconds(groups.worker),
        processor_seconds(groups.database) if groups.database else 0.0,
        memory_mib(groups.server),
        memory_mib(groups.worker),
    )


def memory_mib(pid: int) -> float:
    """Return the resident memory of a process, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@dataclass
class Replay:
    """What was seen while an acquisition was replayed."""

    announced: list[float]
    """When each batch was announced."""
    samples: list[Sample]
    """One before each batch, and one after the last was processed."""
    peeks_s: list[float]
    reads_s: list[float]
    lasted_s: float
    idle: float = 0.0
    """Processor seconds a second of the server before the first batch."""


def replay(folder: Path, options: argparse.Namespace, groups: Groups) -> Replay:
    """Announce the batches of the acquisition, one after the other, and wait for the end of its chain."""
    from opticstream.config import load_project
    from opticstream.flows.events import announce_automatically
    from opticstream.flows.parameters import save_parameters
    from opticstream.flows.prefect_state import OCT_STATE_SERVICE
    from opticstream.model.events import BatchReady
    from opticstream.model.ids import MosaicId
    from opticstream.pipeline.project import Project
    from opticstream.pipeline.raw_folders import ready_content

    (folder / "project.toml").write_text(PROJECT.format(columns=options.batches, rows=options.tiles))
    config = load_project(folder / "project.toml")
    save_parameters(config)
    project = Project.open(config)
    raw = folder / "raw"
    raw.mkdir()
    mosaics = [MosaicId(number + 1) for number in range(options.mosaics)]
    batches = [batch for mosaic in mosaics for batch in project.layout.batches(mosaic)]
    seen = Replay([], [], [], [], 0.0)
    before = sample(groups)
    time.sleep(_IDLE_S)
    seen.idle = (sample(groups).server_s - before.server_s) / _IDLE_S
    begin = time.time()
    for number, batch in enumerate(batches):
        time.sleep(max(0.0, begin + number * options.every_s - time.time()))
        files = {}
        for tile in project.layout.tiles(batch):
            files[tile.tile_id] = f"{tile.key.replace('/', '-')}.raw"
            (raw / files[tile.tile_id]).write_bytes(b"raw")
        event = project.event(BatchReady, batch, raw_folder=str(raw), files=files)
        project.facts.record(batch, "ready", ready_content(project, event))
        seen.samples.append(sample(groups))
        seen.announced.append(time.time())
        announce_automatically([event])
        if number % 10 == 9:
            for latencies, look in (
                (seen.peeks_s, OCT_STATE_SERVICE.peek_project), (seen.reads_s, OCT_STATE_SERVICE.read_project)
            ):  # fmt: skip
                start = time.perf_counter()
                look(config.name)
                latencies.append(time.perf_counter() - start)
    wait_for("every batch is processed", lambda: all(project.facts.has(batch, "processed") for batch in batches))
    seen.lasted_s = time.time() - begin
    seen.samples.append(sample(groups))
    wait_for("every mosaic is stitched", lambda: all(project.facts.has(mosaic, "stitched") for mosaic in mosaics))
    slices = {project.layout.slice_of(mosaic) for mosaic in mosaics[: len(mosaics) // 2 * 2]}
    wait_for("every slice is registered", lambda: all(project.facts.has(one, "registered") for one in slices))
    return seen


def delays(log: Path, seen: Replay, options: argparse.Namespace) -> list[float]:
    """Return the seconds from each batch's event to its first tile, in the order of the events."""
    began: dict[int, float] = {}
    for mosaic, tile, when in map(json.loads, log.read_text().splitlines()):
        number = (mosaic - 1) * options.batches + (tile - 1) // options.tiles
        began[number] = min(when, began.get(number, when))
    return [began[number] - when for number, when in enumerate(seen.announced)]


def report(seen: Replay, waited: list[float], options: argparse.Namespace) -> None:
    """Print the figures."""
    count = len(waited)
    first, last = seen.samples[0], seen.samples[-1]
    server_s, database_s, worker_s = (
        (getattr(last, name) - getattr(first, name)) / count for name in ("server_s", "database_s", "worker_s")
    )
    server_s = max(0.01, server_s - seen.idle * seen.lasted_s / count)
    print(
        f"{count} batches of {options.tiles} tiles, one every {options.every_s:g} s, in {seen.lasted_s:.0f} s: "
        f"{60 * count / seen.lasted_s:.1f} batches a minute; load average {os.getloadavg()[0]:.1f}"
    )
    late = sorted(waited)[int(0.99 * (count - 1))]
    print(f"event to first tile {statistics.median(waited):.2f} s (median), {late:.2f} s (99th percentile)")
    print(
        f"processor time of a batch, with what follows from it: server {server_s:.2f} s, database {database_s:.2f} s, "
        f"worker {worker_s:.2f} s; the idle server takes {100 * seen.idle:.0f} % of a core, which is not counted"
    )
    quarter = max(1, count // 4)
    for name, begin, end in (("first", 0, quarter), ("last", count - 1 - quarter, count - 1)):
        a, b = seen.samples[begin], seen.samples[end]
        used = b.server_s - a.server_s - seen.idle * (seen.announced[end] - seen.announced[begin])
        print(
            f"{name} quarter: delay {statistics.median(waited[begin:end]):.2f} s (median), server "
            f"{used / (end - begin):.2f} s of processor a batch, {a.server_mib:.0f} to "
            f"{b.server_mib:.0f} MiB, worker {a.worker_mib:.0f} to {b.worker_mib:.0f} MiB"
        )
    grown = (last.server_mib - seen.samples[quarter].server_mib) / max(1, count - quarter)
    whole = 100 * 2 * options.batches
    print(
        f"server memory after the first quarter {1000 * grown:+.0f} MiB for 1000 batches; extrapolated to 100 slices "
        f"of two mosaics ({whole} batches) {whole * grown:+.0f} MiB, {whole * server_s / 3600:.1f} h of processor time"
    )
    if seen.peeks_s:
        peek, read, worst = statistics.median(seen.peeks_s), statistics.median(seen.reads_s), max(seen.reads_s)
        print(
            f"project state: {1e3 * peek:.0f} ms without its lock, {1e3 * read:.0f} ms with it (medians), "
            f"{1e3 * worst:.0f} ms (worst)"
        )
    # The API of a server has one thread; at more than 70 % of it, delays grow quickly.
    most, one = 60 * (0.7 - seen.idle) / server_s, 60 / options.batch_every_s
    print(
        f"one server: 60 s x (70 % - {100 * seen.idle:.0f} % idle) / {server_s:.2f} s = {most:.0f} batches a minute; "
        f"a microscope makes one every "
        f"{options.batch_every_s:g} s, {one:.2g} a minute (20 tiles of 350 x 350 A-lines at 76 kHz are 32 s, and 8 s "
        f"of moving the stage): {most / one:.0f} microscopes"
    )


def main() -> None:
    """Replay an acquisition and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mosaics", type=int, default=10, help="mosaics, two to a slice (default 10)")
    parser.add_argument("--batches", type=int, default=40, help="batches of a mosaic (default 40)")
    parser.add_argument("--tiles", type=int, default=4, help="tiles of a batch (default 4)")
    parser.add_argument("--every-s", type=float, default=3.0, help="time between two batches (default 3)")
    parser.add_argument("--batch-every-s", type=float, default=40.0, help="time a microscope takes (default 40)")
    parser.add_argument("--sqlite", action="store_true", help="SQLite instead of PostgreSQL")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="optic-load-", ignore_cleanup_errors=True))
        )
        database, url = None, f"sqlite+aiosqlite:///{folder}/prefect.db"
        if not options.sqlite:
            url, database = stack.enter_context(postgresql(folder / "postgresql.log"))
        port = free_port()
        api_url = f"http://127.0.0.1:{port}/api"
        (folder / "sitecustomize.py").write_text(WITHOUT_NUMERICS)
        base = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        ours = {
            "PREFECT_HOME": str(folder / "server"), "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING", "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": url,
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }  # fmt: skip
        command = [sys.executable, "-m", "opticstream.flows.server_process", "--host", "127.0.0.1", "--port", str(port)]
        server = stack.enter_context(running(command, folder / "server.log", base | ours))
        wait_for("the server", lambda: is_healthy(api_url), 600)
        environment = base | {
            "OPTICSTREAM_API_URL": api_url, "OPTICSTREAM_HOME": str(folder / "home"), "LOAD_LOG": str(folder / "tiles"),
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }  # fmt: skip
        (folder / "tiles").touch()
        program = [sys.executable, "-m", "opticstream"]
        subprocess.run([*program, "deploy"], env=environment, check=True, capture_output=True)
        worker = stack.enter_context(running([*program, "worker"], folder / "worker.log", environment))
        wait_for("the worker", lambda: "ready" in (folder / "worker.log").read_text(), 600)
        os.environ.update({"PREFECT_API_URL": api_url, "PREFECT_HOME": str(folder / "home")})
        try:
            seen = replay(folder, options, Groups(server, worker, database))
        except RuntimeError:
            for log in ("server.log", "worker.log"):
                print(f"--- {log}\n{(folder / log).read_text()[-4000:]}", file=sys.stderr)
            raise
        report(seen, delays(folder / "tiles", seen, options), options)
        shutil.rmtree(folder / "project", ignore_errors=True)


if __name__ == "__main__":
    main()
