"""From the last byte of a tile to its picture and its figures on the disk, and what that time consists of.

    python benchmarks/latency.py [--rates 1 0.1] [--size demo] [--slices 1]
    python benchmarks/latency.py --size full [--rates 1 0.2]

The virtual rig makes the tiles once, into a folder that is kept (``--cache``). For each rate their bytes are then
written to a raw folder as fast as a camera of that rate gives them (1: the line rate of the project), B-line by B-line,
and `opticstream watch` takes them on its embedded server. The rig's own computing is thus not measured.

Printed are, for each rate, the median and the 95th percentile over the tiles of the time from the last byte to:

* found: the watcher has noted that the tile is whole;
* begun: a run has begun to process it, after those that came before it; a first look may have been taken before;
* picture: its quality picture and its figures are on the disk, be it in a first look;
* record: all that is made of it is on the disk, volumes and archive copy, and its record.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chain import CACHE, environment_of_a_user, tissue_everywhere
from opticstream.config import ProjectConfig, config_from_mapping, load_project
from opticstream.io.atomic import write_text
from opticstream.io.names import FileNameGrammar
from opticstream.io.paths import LOOK_DESCRIPTION, ProjectPaths, look_folder
from opticstream.model.ids import TileId
from opticstream.sim.demo import demo_phantom, project_text, small_project_text
from opticstream.sim.rig import VirtualRig
from opticstream.state.facts import Facts
from opticstream.system.cores import available_cores

_LONGEST_S = 3600.0
_LOOK_S = 0.02
_STEPS = ("found", "begun", "picture", "record")


def make_tiles(options: argparse.Namespace) -> tuple[str, Path]:
    """Return the text of the project and the folder that holds its raw tiles and calibration."""
    key = f"latency-{options.size}-{options.slices}"
    if options.size != "full":
        make_text = project_text if options.size == "demo" else small_project_text
        text, phantom = make_text(name="latency", slices=options.slices), demo_phantom(slices=options.slices)
    else:
        key += f"-everywhere-{options.b_lines}"
        phantom = tissue_everywhere(slices=options.slices)
        text = project_text(
            name="latency", slices=options.slices, samples=2048, b_lines=options.b_lines, a_lines=350,
            a_lines_tilted=200, columns=2, rows=2, threshold_db=60.0,
        )  # fmt: skip
    cache = options.cache / key
    config = config_from_mapping(tomllib.loads(text), folder=cache)
    VirtualRig(config, phantom, cache / "raw", calibration_folder=cache, workers=available_cores()).run()
    return text, cache


@dataclass
class Seen:
    """When what has appeared, by tile, in seconds since 1970."""

    written: dict[TileId, float] = field(default_factory=dict)
    found: dict[TileId, float] = field(default_factory=dict)
    begun: dict[TileId, float] = field(default_factory=dict)
    picture: dict[TileId, float] = field(default_factory=dict)
    record: dict[TileId, float] = field(default_factory=dict)


def replay(config: ProjectConfig, cache: Path, raw: Path, rate: float, seen: Seen) -> None:
    """Write the tiles of the cache to a raw folder at the pace of a camera, and note when each is whole."""
    scan = config.scan
    grammar = FileNameGrammar(scan.file_name, scan.layout)
    due = time.monotonic()
    for path in sorted((cache / "raw").iterdir()):
        tile = grammar.tile_from_name(path.name)
        assert tile is not None
        a_lines, b_lines = scan.tile_shape(scan.layout.illumination_index(tile.mosaic))
        piece = -(-path.stat().st_size // b_lines)
        with path.open("rb") as source, (raw / path.name).open("wb", buffering=0) as target:
            while data := source.read(piece):
                due = max(due, time.monotonic() - 0.1) + a_lines / (scan.line_rate_hz * rate)
                time.sleep(max(0.0, due - time.monotonic()))
                target.write(data)
        seen.written[tile] = time.time()


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell has ignored in what it runs in the background


@contextlib.contextmanager
def watching(
    project_file: Path, raw: Path, folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """`opticstream watch` on a folder, with its server and workers."""
    command = [
        sys.executable,
        "-m",
        "opticstream",
        "watch",
        str(project_file),
        str(raw),
        "--home",
        str(folder / "home"),
    ]
    with (
        (folder / "watch.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_interruptible, env=environment) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def look(config: ProjectConfig, tiles: list[TileId], seen: Seen) -> None:
    """Note what has appeared since the last look."""
    for note in (config.base_path / "state" / "arriving").glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            mosaic = int(note.stem.partition("-")[0])
            for number, at in json.loads(note.read_bytes())["since"].items():
                seen.found.setdefault(TileId(mosaic, int(number)), at)
    for tile in tiles:
        if tile in seen.picture or tile not in seen.written:
            continue
        first = look_folder(config.base_path, tile) / LOOK_DESCRIPTION
        whole = ProjectPaths.of(config).tile_product(tile, "qc").with_suffix(".jpg")
        for path in (first, whole):
            with contextlib.suppress(OSError):
                seen.picture.setdefault(tile, path.stat().st_mtime)


def measured(text: str, cache: Path, rate: float, work: Path | None) -> Seen:
    """Replay the tiles once and return when what was there.

    Raises
    ------
    RuntimeError
        The command has ended, or tiles are not processed in an hour.
    """
    if work:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="opticstream-latency-", dir=work) as name:
        folder, raw = Path(name), Path(name) / "raw"
        raw.mkdir()
        project_file = write_text(folder / "project.toml", text)
        shutil.copytree(cache / "calibration", folder / "calibration")
        config, seen = load_project(project_file), Seen()
        grammar = FileNameGrammar(config.scan.file_name, config.scan.layout)
        tiles = [t for p in sorted((cache / "raw").iterdir()) if (t := grammar.tile_from_name(p.name)) is not None]
        with watching(project_file, raw, folder, environment_of_a_user(cache.parent)) as process:
            end = time.monotonic() + _LONGEST_S

            def wait_for(ready: Callable[[], bool]) -> None:
                while not ready():
                    if process.poll() is not None or time.monotonic() > end:
                        raise RuntimeError(f"opticstream watch did not go on:\n{(folder / 'watch.log').read_text()}")
                    time.sleep(_LOOK_S)
                    look(config, tiles, seen)

            wait_for(lambda: (config.base_path / "state" / "acquisition").is_dir())
            rig = threading.Thread(target=replay, args=(config, cache, raw, rate, seen), daemon=True)
            rig.start()
            wait_for(lambda: len(seen.written) == len(tiles) and len(seen.picture) == len(tiles))
            facts = Facts(config.base_path)
            wait_for(lambda: all(facts.has(tile, "processed") for tile in tiles))
        for entry in facts.journal.entries():
            if entry.event == "computed" and isinstance(entry.item, TileId) and entry.duration_s is not None:
                at = entry.time.timestamp()
                seen.record.setdefault(entry.item, at)
                seen.begun.setdefault(entry.item, at - entry.duration_s)
        return seen


def main() -> None:
    """Measure every rate and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.1], help="against the camera's line rate")
    parser.add_argument("--size", choices=("small", "demo", "full"), default="demo")
    parser.add_argument("--b-lines", type=int, default=350, help="of full-size tiles")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder that keeps the raw tiles ({CACHE})")
    parser.add_argument("--work", type=Path, help="folder for results, removed afterwards (default: a temporary one)")
    options = parser.parse_args()
    text, cache = make_tiles(options)
    print("| rate | tiles | s from tile to tile | " + " | ".join(f"{step} s" for step in _STEPS) + " |")
    print("|---" * (3 + len(_STEPS)) + "|")
    for rate in options.rates:
        seen = measured(text, cache, rate, options.work)
        order = sorted(seen.written.values())
        apart_s = (order[-1] - order[0]) / max(1, len(order) - 1)
        cells = []
        for step in _STEPS:
            delays = sorted(at - seen.written[tile] for tile, at in getattr(seen, step).items() if tile in seen.written)
            cells.append(
                f"{statistics.median(delays):.2f}, {delays[int(0.95 * (len(delays) - 1))]:.2f}" if delays else "-"
            )
        print(f"| {rate:g} | {len(order)} | {apart_s:.2f} | " + " | ".join(cells) + " |", flush=True)
    print(f"\nmedian, 95th percentile; load average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
