"""The whole chain on full-size tiles: where processor time, wall time and bytes go, and how fast it is as a whole.

    python benchmarks/chain.py [--b-lines 350] [--a-lines 350 200] [--columns 2] [--rows 2] [--slices 1] [--repeats 1]

The virtual rig writes the tiles once, into a folder that is kept (``--cache``). Then `opticstream run` takes them
through the real chain, with its embedded server and its workers, into a folder that is removed afterwards. Every step
writes what it took into the project's journal; what the other processes took is read from the kernel while they run.
In the same run, before the chain, the bare engine makes the maps of one tile of each illumination: spectra to maps, no
archive, no volumes, no picture.

Printed is a table in Markdown:

* processor and wall seconds of every step, added up over its items (steps of several items run side by side);
* Prefect: the server, the workers, the process that runs are forked from, and what flow runs take besides the steps:
  their starts, their reports to the server, and the flows that only look at the facts;
* Prefect's share is shown in two parts: what is taken before the first step, once for a command however many tiles
  there are, and what each flow run takes;
* waiting: the wall time during which no step is at work, and the cores that idle while one is;
* bytes read and written by all of it, asked for and at the disk, beside what is in the raw files and the results;
* A-lines per second, beside the camera and the bare engine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opticstream.config import ProjectConfig, config_from_mapping, load_project
from opticstream.io.atomic import write_text
from opticstream.io.names import FileNameGrammar
from opticstream.model.chain import chain
from opticstream.model.ids import MosaicId, TileId
from opticstream.sim.demo import project_text
from opticstream.sim.presets import full_size_phantom
from opticstream.sim.rig import VirtualRig
from opticstream.sim.settings import PhantomSettings
from opticstream.state.facts import Facts
from opticstream.system.cores import available_cores

_LOOK_S = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opticstream-benchmarks"


def tissue_everywhere(*, slices: int) -> PhantomSettings:
    """Return the phantom of full-size tiles with tissue in every tile, in mosaics of any size."""
    phantom = full_size_phantom(slices=slices)
    return phantom.model_copy(update={"sample": phantom.sample.model_copy(update={"outline": "full"})})


def make_project(folder: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Write the project into a folder, and its raw tiles into the cache; return the project file and the raw folder."""
    a_lines, tilted = options.a_lines
    text = project_text(
        name="chain", slices=options.slices, samples=options.samples, b_lines=options.b_lines, a_lines=a_lines,
        a_lines_tilted=tilted, columns=options.columns, rows=options.rows, threshold_db=60.0,
    )  # fmt: skip
    text = text.partition("[processing.volume]")[0]  # which keeps to the little memory that the demo's tiles need
    name = "-".join(str(n) for n in (options.samples, options.b_lines, a_lines, tilted, options.columns, options.rows,
                                     options.slices))  # fmt: skip
    cache = options.cache / f"chain-everywhere-{name}"
    rig = VirtualRig(
        config_from_mapping(tomllib.loads(text), folder=cache),
        tissue_everywhere(slices=options.slices),
        cache / "raw",
        calibration_folder=cache,
        workers=available_cores(),
    )
    rig.run(progress=lambda tile: print(f"\rtile {tile.number} of {tile.total}", end="", file=sys.stderr, flush=True))
    print(file=sys.stderr)
    shutil.copytree(cache / "calibration", folder / "calibration")
    return write_text(folder / "project.toml", text), cache / "raw"


# -- what processes take -------------------------------------------------------------------------------------------


@dataclass
class Processes:
    """Processor time of the processes below one, by what they are; read again and again while they run."""

    root: int
    seconds: dict[int, float] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)
    memory_mb: dict[int, float] = field(default_factory=dict)
    """Most memory of each process, as last seen, in MB."""
    seen: list[tuple[float, float]] = field(default_factory=list)
    """Time of each look, and the seconds that all processes had taken by then."""

    def look(self) -> None:
        """Read what every process below the root has taken so far."""
        parents: dict[int, int] = {}
        used: dict[int, float] = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    words = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                    parents[int(entry.name)] = int(words[1])
                    used[int(entry.name)] = sum(map(int, words[11:13])) / _TICKS
        for pid in parents:
            if self._is_below(pid, parents):
                self.seconds[pid] = used[pid]
                role = self._role(_command(pid), _command(parents[pid]))
                if role != "?":  # a process that has just ended has no command any more
                    self.roles[pid] = role
                self.memory_mb[pid] = max(self.memory_mb.get(pid, 0.0), _most_memory_mb(pid))
        self.seen.append((time.time(), sum(self.seconds.values())))

    def _is_below(self, pid: int, parents: dict[int, int]) -> bool:
        while pid in parents and pid != self.root:
            pid = parents[pid]
        return pid == self.root

    def _role(self, command: str, parent: str) -> str:
        for mark, role in _ROLES:
            if mark in command:
                return "runs" if role == "warm process" and mark in parent else role
        return "runs" if command else "?"

    def by_role(self) -> dict[str, float]:
        """Return the seconds that each kind of process has taken, as far as they were seen."""
        found: dict[str, float] = defaultdict(float)
        for pid, seconds in self.seconds.items():
            found[self.roles.get(pid, "runs")] += seconds
        return found

    def seconds_until(self, at: float) -> float:
        """Return the seconds that all processes had taken at a time."""
        return max((seconds for when, seconds in self.seen if when <= at), default=0.0)

    def most_memory_mb(self) -> float:
        """Return the most memory that a flow run has taken, in MB."""
        return max((mb for pid, mb in self.memory_mb.items() if self.roles.get(pid) == "runs"), default=0.0)


_ROLES = (
    ("opticstream.flows.warm", "warm process"),
    ("opticstream.flows.workers", "workers"),
    ("opticstream.flows.server_process", "server"),
    ("opticstream run", "command"),
    ("-m prefect.engine", "launchers"),
)
"""What stands in the command of a process -> what the process is; others are flow runs."""


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _most_memory_mb(pid: int) -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1e3
    return 0.0


@contextlib.contextmanager
def watched(root: int) -> Iterator[Processes]:
    """Read what the processes below one take, until the end of a `with` block."""
    processes, over = Processes(root), threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_S):
            processes.look()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield processes
    finally:
        over.set()
        thread.join()


def own_bytes() -> dict[str, int]:
    """Return the bytes that this process, and those that it has waited for, have read and written so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(count) for name, _, count in (line.partition(": ") for line in lines)}


def environment_of_a_user(cache: Path) -> dict[str, str]:
    """Return the environment of commands that are measured: compiled modules are kept, as pip does when it installs.

    Without them every interpreter compiles Prefect again, which takes many times as long as to load it.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return environment | {"PYTHONPYCACHEPREFIX": str(cache / "modules")}


_IMPORTS = "import prefect.server.api.server, prefect.engine, opticstream.flows.workers, opticstream.stages.project"
"""Compiles what has not been compiled yet, before anything is measured."""


# -- the chain -----------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """What one step has taken, over all its items."""

    items: int = 0
    processor_s: float = 0.0
    wall_s: float = 0.0


@dataclass
class ChainFigures:
    """What one run of the chain has taken."""

    a_lines: int
    raw_bytes: int
    wall_s: float
    processor_s: float
    steps: dict[str, Step]
    roles: dict[str, float]
    without_step_s: float
    """Wall time within the run during which no step was at work."""
    moved: dict[str, int]
    kept: dict[str, int]
    """Bytes of the results, by kind."""
    most_memory_mb: float
    """Most memory of a flow run."""
    start_wall_s: float
    start_processor_s: float
    """What was taken before the first step: the server, the workers, what they import and deploy."""
    flow_runs: int


def run_chain(
    project_file: Path, raw: Path, folder: Path, settings: list[str], environment: dict[str, str]
) -> ChainFigures:
    """Take the tiles of a folder through the chain and return what it took.

    Raises
    ------
    RuntimeError
        A step failed, or the command did.
    """
    command = [sys.executable, "-m", "opticstream", "run", str(project_file), str(raw), "--home", str(folder / "home")]
    command += [word for setting in settings for word in ("--set", setting)]
    subprocess.run([sys.executable, "-c", _IMPORTS], env=environment, check=True)
    before, moved, begin = os.times(), own_bytes(), time.time()
    with (
        (folder / "run.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
        watched(process.pid) as processes,
    ):
        process.wait()
    end, after, now = time.time(), os.times(), own_bytes()
    if process.returncode:
        raise RuntimeError(f"opticstream run ended with {process.returncode}:\n{(folder / 'run.log').read_text()}")
    config = load_project(project_file)
    steps, busy = _steps(config)
    return ChainFigures(
        a_lines=_a_lines(config),
        raw_bytes=sum(path.stat().st_size for path in raw.iterdir()),
        wall_s=end - begin,
        processor_s=after.children_user + after.children_system - before.children_user - before.children_system,
        steps=steps,
        roles=processes.by_role(),
        without_step_s=end - begin - _covered_s(busy),
        moved={name: now[name] - moved[name] for name in now},
        kept=_kept(config),
        most_memory_mb=processes.most_memory_mb(),
        start_wall_s=min(first for first, _ in busy) - begin,
        start_processor_s=processes.seconds_until(min(first for first, _ in busy)),
        flow_runs=_flow_runs(folder / "home"),
    )


def _flow_runs(home: Path) -> int:
    """Return how many flow runs the server knows; 0 where its database is not where it was."""
    for database in home.glob("*.db"):
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database)) as connection:
            return int(connection.execute("SELECT count(*) FROM flow_run").fetchone()[0])
    return 0


def _steps(config: ProjectConfig) -> tuple[dict[str, Step], list[tuple[float, float]]]:
    """Return what the journal says of every step, and when one was at work."""
    steps: dict[str, Step] = defaultdict(Step)
    busy = []
    for entry in Facts(config.base_path).journal.entries():
        if entry.event != "computed" or entry.fact is None or entry.duration_s is None:
            continue
        step = chain().step_of(entry.item, entry.fact)
        name = "tile" if isinstance(entry.item, TileId) else entry.fact if step is None else step.name
        found = steps[name]
        found.items += 1
        found.wall_s += entry.duration_s
        found.processor_s += float(entry.detail.get("processor_s", 0.0))
        busy.append((entry.time.timestamp() - entry.duration_s, entry.time.timestamp()))
    if "tile" in steps and "process batch" in steps:  # whose time holds that of its tiles
        steps["process batch"].wall_s -= steps["tile"].wall_s
        steps["process batch"].processor_s -= steps["tile"].processor_s
    return dict(steps), busy


def _covered_s(spans: list[tuple[float, float]]) -> float:
    total, until = 0.0, 0.0
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def _a_lines(config: ProjectConfig) -> int:
    scan, total = config.scan, 0
    slices = {record.parent.name for record in config.base_path.glob("mosaic-*/state")}
    for mosaic_id in range(1, len(slices) + 1):
        index = scan.layout.illumination_index(MosaicId(mosaic_id))
        a_lines, b_lines = scan.tile_shape(index)
        grid = scan.layout.illuminations[index]
        total += a_lines * b_lines * grid.columns * grid.rows
    return total


def _kept(config: ProjectConfig) -> dict[str, int]:
    kept: dict[str, int] = defaultdict(int)
    seen: set[tuple[int, int]] = set()
    for root in (config.base_path, config.project.archive_root):  # the one may lie in the other
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                parts, stat = path.relative_to(root).parts, path.stat()
                if (stat.st_dev, stat.st_ino) in seen:
                    continue
                seen.add((stat.st_dev, stat.st_ino))
                kind = (
                    "state" if "state" in parts
                    else "tiles: volumes and maps" if "processed" in parts
                    else "archive of raw tiles" if path.name.endswith((".nii.gz", ".raw.gz")) or "rawdata" in parts
                    else "stitched and registered"
                )  # fmt: skip
                kept[kind] += stat.st_size
    return dict(kept)


# -- the bare engine -----------------------------------------------------------------------------------------------

_BARE = """
import json, os, sys, tempfile, time
from pathlib import Path
from opticstream.config import load_project
from opticstream.model.ids import TileId
from opticstream.stages.tile import process_tile

config, given = load_project(sys.argv[1]), json.loads(sys.argv[2])
parts = config.processing
bare = parts.model_copy(update={"reconstruction": parts.reconstruction.model_copy(update={"volume_modalities": ()})})
for kind, processing, extras in (("maps", bare, False), ("tile", parts, True)):
    for turn in range(given["repeats"] + 1):  # the first one compiles and loads
        a_lines, before, begin = 0, os.times(), time.monotonic()
        for mosaic, tile, path in given["tiles"] if turn else given["tiles"][-1:]:
            with tempfile.TemporaryDirectory(dir=given["folder"]) as folder:
                source = Path(path)
                archive = Path(folder) / (source.name + ".gz") if extras else None
                process_tile(source, TileId(mosaic, tile), scan=config.scan, processing=processing,
                             out_dir=Path(folder), archive_to=archive, picture=extras)
            index = config.scan.layout.illumination_index(TileId(mosaic, tile).mosaic)
            width, height = config.scan.tile_shape(index)
            a_lines += width * height
        after, wall_s = os.times(), time.monotonic() - begin
        used_s = after.user + after.system - before.user - before.system
        if turn:
            print(json.dumps([kind, used_s / a_lines * 1e6, a_lines / wall_s]), flush=True)
"""


def bare_engine(project_file: Path, raw: Path, folder: Path, repeats: int) -> dict[str, tuple[float, float]]:
    """Return microseconds of processor time per A-line, and A-lines per second, of maps alone and of all of a tile.

    The medians over the repeats, of one tile of each illumination, in one process without a server.
    """
    config = load_project(project_file)
    grammar = FileNameGrammar(config.scan.file_name, config.scan.layout)
    first: dict[int, tuple[int, int, str]] = {}
    for path in sorted(raw.iterdir()):
        tile = grammar.tile_from_name(path.name)
        if tile is not None:
            first.setdefault(tile.mosaic_id, (tile.mosaic_id, tile.tile_id, str(path)))
    tiles = [first[mosaic] for mosaic in sorted(first)][: len(config.scan.layout.illuminations)]
    given = json.dumps({"tiles": tiles, "repeats": repeats, "folder": str(folder)})
    said = subprocess.run(
        [sys.executable, "-c", _BARE, str(project_file), given], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in said.splitlines():
        kind, used_us, rate = json.loads(line)
        found[kind].append((used_us, rate))
    return {kind: sorted(values)[len(values) // 2] for kind, values in found.items()}


_AFTER_AXIS = ("update sample", "publish", "upload")
"""How the names of steps begin that come after the axis of a slice, or beside it."""


# -- the table -----------------------------------------------------------------------------------------------------


def table(chain_: ChainFigures, bare: dict[str, tuple[float, float]], line_rate_hz: float) -> str:
    """Return the figures as a table in Markdown."""
    per_line = 1e6 / chain_.a_lines
    maps_us = bare["maps"][0]
    rows: list[tuple[str, Any, float | None, float | None]] = []
    steps_s = sum(step.processor_s for step in chain_.steps.values())
    for name, step in chain_.steps.items():
        rows.append((name, step.items, step.processor_s, step.wall_s))
    roles = dict(chain_.roles)
    seen = {name: roles.get(name, 0.0) for name in ("server", "workers", "warm process", "launchers", "command")}
    rest_s = chain_.processor_s - sum(seen.values()) - steps_s
    rows += [
        ("**all steps**", "", steps_s, None),
        ("Prefect: server", "", seen["server"], None),
        ("Prefect: workers, which poll and start runs", "", seen["workers"], None),
        ("process that runs are forked from, and launchers", "", seen["warm process"] + seen["launchers"], None),
        ("flow runs besides their steps: starts, reports, flows that look", "", rest_s, None),
        ("`opticstream run` itself: finding files, sweeps", "", seen["command"], None),
        ("**the whole chain**", "", chain_.processor_s, chain_.wall_s),
    ]
    lines = ["| what | items | processor s | us an A-line | x maps alone | wall s |", "|---|---|---|---|---|---|"]
    for name, items, used_s, wall_s in rows:
        each = "" if used_s is None else f"{used_s * per_line:.1f}"
        ratio = "" if used_s is None else f"{used_s * per_line / maps_us:.2f}"
        used = "" if used_s is None else f"{used_s:.1f}"
        lines.append(f"| {name} | {items} | {used} | {each} | {ratio} | {'' if wall_s is None else f'{wall_s:.1f}'} |")
    cores = available_cores()
    prefect_s = chain_.processor_s - steps_s - seen["command"]
    started_s = chain_.start_processor_s
    runs_s = max(0.0, prefect_s - started_s)
    axis_s = sum(step.processor_s for name, step in chain_.steps.items() if not name.startswith(_AFTER_AXIS))
    mb = {name: count / 1e6 for name, count in chain_.moved.items()}
    lines += [
        "",
        "| figure | value |",
        "|---|---|",
        f"| bare engine, maps alone | {maps_us:.1f} us of processor time an A-line, {bare['maps'][1]:,.0f} A-lines/s |",
        f"| all that is made of a tile, one process without a server | {bare['tile'][0]:.1f} us, "
        f"{bare['tile'][0] / maps_us:.2f} x maps alone, {bare['tile'][1]:,.0f} A-lines/s |",
        f"| the whole chain | {chain_.processor_s * per_line:.1f} us, {chain_.processor_s * per_line / maps_us:.2f} x "
        f"maps alone |",
        f"| A-lines/s of the whole chain | {chain_.a_lines / chain_.wall_s:,.0f}: "
        f"{chain_.a_lines / chain_.wall_s / line_rate_hz:.2f} of the camera's {line_rate_hz / 1e3:g} kHz, "
        f"{chain_.a_lines / chain_.wall_s / bare['maps'][1]:.2f} of the bare engine |",
        f"| steps up to stitched volumes and the axis | {axis_s * per_line:.1f} us, "
        f"{axis_s * per_line / maps_us:.2f} x maps alone |",
        f"| Prefect's share of the processor time, starts and forks included | {prefect_s / chain_.processor_s:.0%} |",
        f"| of it before the first step: server, workers, deployments | {started_s:.1f} s of processor time in "
        f"{chain_.start_wall_s:.1f} s |",
        f"| of it afterwards | {runs_s:.1f} s, {runs_s / chain_.processor_s:.0%}: "
        f"{runs_s / max(1, chain_.flow_runs):.2f} s for each of {chain_.flow_runs} flow runs |",
        f"| wall over processor seconds, {cores} cores | {chain_.wall_s / chain_.processor_s:.2f} |",
        f"| wall time without any step at work | {chain_.without_step_s:.1f} s of {chain_.wall_s:.1f} |",
        f"| cores idle, or at work for others | {cores * chain_.wall_s - chain_.processor_s:.1f} core seconds of "
        f"{cores * chain_.wall_s:.1f} |",
        f"| read | {mb['rchar']:,.0f} MB asked for, {mb['read_bytes']:,.0f} MB from the disk; raw tiles hold "
        f"{chain_.raw_bytes / 1e6:,.0f} MB |",
        f"| written | {mb['wchar']:,.0f} MB asked for, {mb['write_bytes']:,.0f} MB to the disk |",
        f"| most memory of a flow run | {chain_.most_memory_mb:,.0f} MB |",
        *(f"| kept: {kind} | {size / 1e6:,.0f} MB |" for kind, size in sorted(chain_.kept.items())),
    ]
    return "\n".join(lines)


def main() -> None:
    """Make the tiles, measure the bare engine and the chain, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--b-lines", type=int, default=350)
    parser.add_argument("--a-lines", type=int, nargs=2, default=[350, 200], help="of the straight and the tilted beam")
    parser.add_argument("--columns", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="of the bare engine; medians are shown")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `opticstream run`")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder that keeps the raw tiles ({CACHE})")
    parser.add_argument("--work", type=Path, help="folder for results, removed afterwards (default: a temporary one)")
    options = parser.parse_args()
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="opticstream-chain-", dir=options.work) as name:
        folder = Path(name)
        project_file, raw = make_project(folder, options)
        bare = bare_engine(project_file, raw, folder, options.repeats)
        for kind, (used_us, rate) in bare.items():
            print(f"{kind}: {used_us:.1f} us of processor time an A-line, {rate:,.0f} A-lines/s", file=sys.stderr)
        figures = run_chain(project_file, raw, folder, options.set, environment_of_a_user(options.cache))
        config = load_project(project_file)
        print(
            f"{options.samples} samples, {options.b_lines} B-lines of {options.a_lines[0]} and {options.a_lines[1]} "
            f"A-lines, {options.columns} x {options.rows} tiles, {options.slices} slices: {figures.a_lines:,} A-lines; "
            f"load average at the end {os.getloadavg()[0]:.1f}\n"
        )
        print(table(figures, bare, config.scan.line_rate_hz))


if __name__ == "__main__":
    main()
