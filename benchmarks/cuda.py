"""Tiles on a graphics card: are they right, and how fast from the memory of the host to maps in the memory of the host.

    python benchmarks/cuda.py [--samples 2048] [--a-lines 350] [--b-lines 350] [--repeats 5] [--json FILE]

One command, some five minutes on a machine with a card and 16 cores. Needed there: this repository, `pip install -e
.[cuda,dev]`, and a driver. In this order:

1. the card is tried, as `opticstream engines check` does; without one the script ends with status 1 and measures
   nothing;
2. the tests of tests/compute/array_engine run on the card: volumes, maps, blocks, phantom. If one fails, the script
   goes on to measure, says so, and ends with status 1;
3. the limit: plain copies of the same counts from pinned memory to the card, and back, in the same run;
4. the card, end to end: counts in pinned memory of the host, by the engine that makes tiles, to maps in the memory of
   the host. Surface `gradient` (all but the 3 x 3 median on the card) and `robust` (its smooth sheet on the cores of
   the host), without volumes and with three; by the size of blocks; and with counts in ordinary memory;
5. the compiled engine on the cores of the same machine, from the same memory, with the same surface and maps, on all
   threads and on one.

Medians over the repeats. A-lines/s count an A-line of both channels once. The counts of a tile repeat after eight
B-lines; no step depends on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from opticstream.compute.array_engine import ArrayEngine, CupyCard
from opticstream.compute.reconstruction import SpectralPlan, TileOptions, positions_from_wavelengths, spectral_plan
from opticstream.compute.tile_engine import TileEngine
from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.engines import check_card
from opticstream.model.errors import CardError
from opticstream.stages.tile import options_from_settings
from opticstream.system.cores import available_cores, one_blas_thread
from opticstream.testing.raw_tiles import fringe_counts

ROOT = Path(__file__).parents[1]
LINE_RATE_HZ = 76_000
GOAL = 10_000_000
OCTPROZ = 3_400_000  # A-lines/s of 1024 samples on a GTX 1080, as published; one channel, no maps


def seconds(action: Callable[[], Any], repeats: int) -> float:
    """Return the median time of an action; the first call, which compiles and plans, does not count."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def plan_of(samples: int) -> SpectralPlan:
    """Return a plan with everything that a rig needs: k-linearization, dispersion, both backgrounds."""
    pixel = np.arange(samples)
    wavelengths = [start + 0.05 * pixel + 2e-6 * pixel**2 for start in (1250.0, 1250.5)]
    return spectral_plan(
        samples=samples,
        positions=positions_from_wavelengths(*wavelengths),
        dispersion_rad=np.stack([20 * np.linspace(-1, 1, samples) ** 2] * 2),
    )


def options_of(surface: str, volumes: tuple[str, ...], engine: Any) -> TileOptions:
    scan = ScanSettings.model_validate({"illuminations": [{"name": "normal", "columns": 1, "a_lines": 350}]})
    processing = ProcessingSettings.model_validate({"enface": {"surface": surface}})
    return options_from_settings(scan, processing, volumes=volumes, engine=engine)


def tests_pass() -> tuple[bool, str]:
    """Return whether the inherited tests pass on the card, and the last line of what they say."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/compute/array_engine", "-k", "TestCard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-6000:])
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
    return done.returncode == 0 and "skipped" not in last, last


def copies(card: CupyCard, counts: np.ndarray, repeats: int) -> dict[str, float]:
    """Return the speed of plain copies to the card and back, in bytes/s."""
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    there = cupy.empty(counts.shape, counts.dtype)

    def to_card() -> None:
        there.set(counts, stream=stream)
        stream.synchronize()

    def back() -> None:
        there.get(stream=stream, out=counts, blocking=False)
        stream.synchronize()

    return {"to_card": counts.nbytes / seconds(to_card, repeats), "back": counts.nbytes / seconds(back, repeats)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Tiles on a graphics card: right, and how fast.")
    for name, value in (("samples", 2048), ("a-lines", 350), ("b-lines", 350), ("repeats", 5), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--skip-tests", action="store_true", help="measure only")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    arguments = parser.parse_args()
    samples, a_lines, b_lines = arguments.samples, arguments.a_lines, arguments.b_lines
    threads = arguments.threads or available_cores()
    try:
        print(f"card: {check_card()}")
        card = CupyCard()
    except CardError as error:
        print(f"nothing was measured: {error}")
        return 1
    report: dict[str, Any] = {
        "card": card.name,
        "host": f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads",
        "samples": samples,
        "a_lines": a_lines,
        "b_lines": b_lines,
    }
    right = True
    if not arguments.skip_tests:
        right, report["tests"] = tests_pass()

    plan, lines = plan_of(samples), a_lines * b_lines
    few = fringe_counts(samples=samples, a_lines=a_lines, b_lines=8, surface_bin=samples // 16)
    pinned = card.room((b_lines, 2, a_lines, samples), np.uint16)
    pinned[:] = np.resize(few, (b_lines, *few.shape[1:]))
    speed = copies(card, pinned, arguments.repeats)
    pinned[:] = np.resize(few, (b_lines, *few.shape[1:]))
    per_line = 2 * samples * 2
    report |= {f"copy {name} GB/s": value / 1e9 for name, value in speed.items()}
    report["limit of the copy, A-lines/s"] = speed["to_card"] / per_line

    shape = {"a_lines": a_lines, "b_lines": b_lines, "channels": 2, "depth": plan.depth, "cut": plan.cut, "plan": plan}

    def nowhere(_first: int, _volumes: dict[str, Any]) -> None:
        """Volumes have arrived; nothing is written."""

    def on_card(counts: np.ndarray, surface: str, volumes: tuple[str, ...], block: int) -> Callable[[], Any]:
        options = options_of(surface, volumes, "card")

        def work() -> None:
            with ThreadPoolExecutor(threads) as pool:
                engine = ArrayEngine(options, **shape, device=card, executor=pool, sink=nowhere)
                for first in range(0, b_lines, block):
                    engine.add_spectra(counts[first : first + block])
                engine.finish()

        return work

    def on_cores(counts: np.ndarray, surface: str, volumes: tuple[str, ...], n: int) -> Callable[[], Any]:
        options = options_of(surface, volumes, "compiled")
        block = 16 if volumes else max(4, 2 * n)

        def work() -> None:
            with ThreadPoolExecutor(n) as pool:
                engine = TileEngine(options, **shape, block=block, executor=pool, threads=n, sink=nowhere)
                for first in range(0, b_lines, block):
                    engine.add_spectra(counts[first : first + block])
                engine.finish()

        return work

    three = ("dBI", "R3D", "O3D")
    ordinary = np.array(pinned)
    runs: dict[str, Callable[[], Any]] = {}
    for surface in ("gradient", "robust"):
        for block in (8, 16, 32, 64):
            runs[f"card, {surface}, maps, blocks of {block}"] = on_card(pinned, surface, (), block)
        runs[f"card, {surface}, maps and volumes"] = on_card(pinned, surface, three, 32)
        runs[f"card, {surface}, maps, from ordinary memory"] = on_card(ordinary, surface, (), 32)
    for surface in ("gradient", "robust"):
        runs[f"cores, {surface}, maps"] = on_cores(ordinary, surface, (), threads)
        runs[f"cores, {surface}, maps and volumes"] = on_cores(ordinary, surface, three, threads)
    runs["one core, gradient, maps"] = on_cores(ordinary, "gradient", (), 1)
    found: dict[str, float] = {}
    with one_blas_thread():
        for name, action in runs.items():
            try:
                repeats = 1 if name.startswith("one core") else arguments.repeats
                found[name] = lines / seconds(action, repeats)
            except CardError as error:
                print(f"{name}: {error}")
                continue
            finally:
                card.release()
            print(f"{name:45} {found[name]:12,.0f} A-lines/s   {found[name] / LINE_RATE_HZ:7.1f} x the camera")
    report["A-lines/s"] = found
    limit = report["limit of the copy, A-lines/s"]
    best = {
        s: max((v for n, v in found.items() if n.startswith(f"card, {s}")), default=0.0) for s in ("gradient", "robust")
    }
    for surface, value in best.items():
        cores = found[f"cores, {surface}, maps"]
        print(f"{surface}: best on the card {value:,.0f} A-lines/s, {value / cores:.1f} x the cores of this machine")
        goal = min(GOAL, limit)
        print(f"  goal {goal:,.0f} (10 million, or the limit of the copy, {limit:,.0f}): {value / goal:.0%}")
        print(f"  OCTproZ reports {OCTPROZ:,} of 1024 samples, one channel, on a GTX 1080")
    print(f"copies: {speed['to_card'] / 1e9:.1f} GB/s to the card, {speed['back'] / 1e9:.1f} GB/s back")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not right:
        print(f"THE TESTS DID NOT PASS on this card: {report['tests']}; the figures are of results that may be wrong")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
