"""How fast tiles are reconstructed and archived, against bounds that the machine itself gives.

    python benchmarks/reconstruct.py [--a-lines 350] [--b-lines 350] [--samples 2048] [--threads 0] [--repeats 3]

Compared within one run, medians over the repeats, page cache warm:

* the chain from a file on the disk to all maps, without and with volumes, on one thread and on all, for a quarter, a
  half and the whole of the tile. Its surface is `robust` and its maps are those of `stokes`; once more it makes what
  the reference makes: surface `gradient`, mean retardance, axial mean, slope;
* a plain vectorised float64 chain (NumPy and SciPy, `opticstream.testing`: interp1d, median, fft, gaussian_filter1d,
  `gradient`, mean retardance, axial mean, slope) on a few B-lines, in memory, and extrapolated. It reads no file, and
  its estimators are the cheaper ones;
* the bare complex64 transforms by each library that is installed, ours included, on the same cores; ducc0 and pyfftw
  are no dependencies, and their rows say so where they are missing;
* writing the bytes of the volumes to the same disk, synced, as ours are;
* the archive pass against gzip level 3 (on a part of the file, extrapolated).

The tile is noise with the statistics of a tile: counts of a 12-bit camera with speckle-like fringes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from opticstream.compute.reconstruction import positions_from_wavelengths
from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.io.nifti_stream import open_volume
from opticstream.model.ids import TileId
from opticstream.stages.tile import archive_tile, available_threads, process_tile
from opticstream.testing.raw_tiles import nifti_header
from opticstream.testing.reconstruction_reference import (
    jones_reference,
    k_linear_interpolators,
    maps_vectorised,
    surface_vectorised,
    volumes_reference,
)

LINE_RATE_HZ = 76_000
_PLANNING = threading.Lock()  # the planner of FFTW serves one thread at a time


def median_s(action: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def write_tile(path: Path, samples: int, a_lines: int, b_lines: int) -> None:
    """Write a tile whose B-lines repeat after eight, so that making it does not take longer than measuring."""
    rng = np.random.default_rng(1)
    p = np.arange(samples)
    source = 2000 * np.exp(-(((p - samples / 2) / (samples / 2.5)) ** 2))
    bins = np.arange(samples // 32, samples // 32 + 96)
    wave = np.exp(2j * np.pi * np.outer(bins, p) / samples).astype(np.complex64)
    decay = np.exp(-np.arange(96) / 40)
    blocks = []
    for _ in range(8):
        speckle = (rng.normal(size=(2, a_lines, 96, 2)) @ np.array([1, 1j])).astype(np.complex64) * decay
        fringe = ((speckle.reshape(-1, 96) @ wave).real * 3).reshape(2, a_lines, samples)
        noise = rng.normal(scale=12, size=fringe.shape)
        blocks.append(np.clip(source * (1 + fringe / 400) + noise + 200, 0, 4095).astype("<u2"))
    with path.open("wb") as file:
        file.write(nifti_header((samples, a_lines, 2, b_lines)))
        for line in range(b_lines):
            file.write(blocks[line % 8].tobytes())


def fft_seconds(samples: int, lines: int, threads: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the wall and the processor seconds for `lines` transforms of each library, on `threads` threads.

    NaN for a library that is not installed.
    """
    rng = np.random.default_rng(0)
    batch = (rng.normal(size=(256, samples)) + 1j * rng.normal(size=(256, samples))).astype(np.complex64)
    libraries: dict[str, Callable[[], Any]] = {"numpy": lambda: np.fft.fft(batch, axis=1)}
    if find_spec("scipy"):
        import scipy.fft

        libraries["scipy"] = lambda: scipy.fft.fft(batch, axis=1)
    if find_spec("ducc0"):
        import ducc0

        libraries["ducc0"] = lambda: ducc0.fft.c2c(batch, axes=(1,), nthreads=1)
    if find_spec("pyfftw"):
        import pyfftw
        from pyfftw.interfaces import cache, numpy_fft

        cache.enable()
        libraries["pyfftw"] = lambda: numpy_fft.fft(batch, axis=1)
        plans = threading.local()

        def planned() -> None:  # as whoever tunes for speed uses it: measured plans, aligned memory, one a thread
            if not hasattr(plans, "fft"):
                source, goal = (pyfftw.empty_aligned(batch.shape, np.complex64) for _ in range(2))
                with _PLANNING:
                    plans.fft = pyfftw.FFTW(source, goal, axes=(1,), flags=("FFTW_MEASURE",))
            plans.fft.input_array[...] = batch
            plans.fft.execute()

        libraries["pyfftw, planned"] = planned
    from opticstream.compute.lanes import LANES, profile_of_strip, split_of, split_rows, split_twiddles_of

    if split_of(samples) is not None:
        factors, phasor = split_twiddles_of(samples), np.ones(samples, np.float32)
        strip = rng.normal(size=samples * LANES).astype(np.float32)

        def ours() -> None:
            work, out = np.zeros(split_rows(samples) * 2 * LANES, np.float32), np.zeros(samples * LANES, np.float32)
            for _ in range(256 // LANES):
                profile_of_strip(strip, phasor, phasor, work, factors, out)

        libraries["opticstream"] = ours
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in libraries}
    jobs = 4 * threads
    with ThreadPoolExecutor(threads) as pool:
        for turn in range(10):  # in turns, so that other work on the machine meets all of them
            for name, action in libraries.items():
                begin, begin_cpu = time.perf_counter(), time.process_time()
                for future in [pool.submit(action) for _ in range(jobs)]:
                    future.result()
                if turn:  # in the first one every thread plans, compiles and warms up
                    times[name].append((time.perf_counter() - begin, time.process_time() - begin_cpu))
    share = lines / (256 * jobs)
    missing = [name for name in ("ducc0", "pyfftw") if name not in libraries]
    wall, processor = (
        {name: statistics.median(pair[which] for pair in pairs) * share for name, pairs in times.items()}
        | dict.fromkeys(missing, math.nan)
        for which in (0, 1)
    )
    return wall, processor


def print_transforms(wall: dict[str, float], processor: dict[str, float]) -> None:
    ours = processor.get("opticstream", math.nan)
    for name, value in wall.items():
        shown = f"{value:7.3f} s  processor {processor[name]:7.3f} s, {processor[name] / ours:5.2f} x ours"
        print(f"transforms alone, {name:16} {'not installed' if math.isnan(value) else shown}")


def vectorised_seconds(counts: np.ndarray, wavelengths: np.ndarray, dispersion: np.ndarray) -> float:
    """Return the time of the whole chain in float64 without a loop over A-lines."""
    begin = time.perf_counter()
    jones = jones_reference(counts, resample=k_linear_interpolators(wavelengths), dispersion=dispersion)
    volumes = volumes_reference(jones)
    maps_vectorised(volumes, surface_vectorised(volumes["dBI"]))
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed of reconstruction and archive pass.")
    for name, value in (("samples", 2048), ("a-lines", 350), ("b-lines", 350), ("threads", 0), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, default=None, help="where the tile and its products go")
    parser.add_argument("--transforms-only", action="store_true", help="compare the bare transforms and nothing else")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads = available_threads(options.threads)
    samples, a_lines, b_lines = options.samples, options.a_lines, options.b_lines
    report: dict[str, Any] = {"samples": samples, "a_lines": a_lines, "b_lines": b_lines, "threads": threads}

    if options.transforms_only:
        print_transforms(*fft_seconds(samples, 2 * a_lines * b_lines, threads))
        return 0

    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        raw = folder / "tile.nii"
        write_tile(raw, samples, a_lines, b_lines)
        pixel = np.arange(samples)
        wavelengths = np.stack([1250 + 0.05 * pixel + 2e-6 * pixel**2, 1250.5 + 0.05 * pixel + 2e-6 * pixel**2])
        dispersion = np.stack([20 * np.linspace(-1, 1, samples) ** 2] * 2)
        assert np.isfinite(positions_from_wavelengths(*wavelengths)).all()
        for c in (0, 1):
            np.save(folder / f"w{c}.npy", wavelengths[c])
            np.save(folder / f"d{c}.npy", dispersion[c])
        calibration = {
            "linearization": {"method": "wavelengths", "files": [str(folder / f"w{c}.npy") for c in (0, 1)]},
            "dispersion_files": [str(folder / f"d{c}.npy") for c in (0, 1)],
        }
        cheap = {
            "surface": "gradient",
            "retardance_method": "mean",
            "orientation_method": "mean",
            "birefringence_method": "slope",
        }

        def chain(
            volumes: bool = False,
            *,
            archive: Path | None = None,
            n: int = threads,
            enface: dict[str, str] | None = None,
            source: Path = raw,
            b: int = b_lines,
        ) -> None:
            scan = ScanSettings.model_validate(
                {
                    "samples": samples,
                    "b_lines": b,
                    "illuminations": [{"name": "normal", "columns": 1, "a_lines": a_lines}],
                    "calibration": calibration,
                }
            )
            processing = ProcessingSettings.model_validate(
                {"reconstruction": {"save_volumes": volumes, "threads": n}, "enface": enface or {}}
            )
            process_tile(
                source, TileId(1, 1), scan=scan, processing=processing, out_dir=folder / "out", archive_to=archive
            )

        chain(True)  # compiles, and warms the page cache
        maps_s = median_s(chain, options.repeats)
        report["maps_s"] = maps_s
        report["maps_of_the_reference_s"] = median_s(lambda: chain(enface=cheap), options.repeats)
        report["maps_one_thread_s"] = median_s(lambda: chain(n=1), options.repeats)
        report["volumes_s"] = median_s(lambda: chain(True), options.repeats)
        report["maps_and_archive_s"] = median_s(lambda: chain(archive=folder / "a.nii.gz"), options.repeats)
        for part in (4, 2):
            smaller = folder / f"tile_{part}.nii"
            write_tile(smaller, samples, a_lines, b_lines // part)
            report[f"maps_1/{part}_tile_s"] = median_s(
                lambda smaller=smaller, part=part: chain(source=smaller, b=b_lines // part), options.repeats
            )
            smaller.unlink()

        few = min(b_lines, 8)
        counts = np.memmap(raw, "<u2", "r", 352, (b_lines, 2, a_lines, samples))[:few]
        report["float64_numpy_s"] = vectorised_seconds(np.array(counts), wavelengths, dispersion) * b_lines / few
        report["float64_note"] = f"measured on {few} B-lines and extrapolated"
        ffts, report["fft_processor_s"] = fft_seconds(samples, 2 * a_lines * b_lines, threads)
        report["fft_s"] = ffts
        measured = {name: value for name, value in ffts.items() if not math.isnan(value)}
        fastest = min(measured.values())
        report["fft_fastest_other_s"] = min(value for name, value in measured.items() if name != "opticstream")

        depth = samples // 2 - 24
        plane = np.zeros((depth, 16, a_lines), np.float32)

        def write_volumes() -> None:
            for name in "abc":
                with open_volume(folder / f"{name}.nii", (a_lines, b_lines, depth), voxel_size_mm=(1, 1, 1)) as volume:
                    for first in range(0, b_lines, 16):
                        volume.write(first, plane[:, : min(16, b_lines - first)])

        def write_plainly() -> None:
            block = bytes(8 << 20)
            for name in "abc":
                with (folder / f"{name}.bin").open("wb") as file:
                    left = depth * a_lines * b_lines * 4
                    while left > 0:
                        left -= file.write(block[: min(left, len(block))])
                    file.flush()
                    os.fsync(file.fileno())

        report["write_volumes_s"] = median_s(write_plainly, options.repeats)
        report["write_volumes_our_way_s"] = median_s(write_volumes, options.repeats)

        with raw.open("rb") as opened:
            part = opened.read(64 << 20)
        size = raw.stat().st_size
        packed: list[bytes] = []
        gzip_s = median_s(lambda: packed.append(zlib.compress(part, 3)), 1) * size / len(part)
        report["gzip3_s"], report["gzip3_ratio"] = gzip_s, len(packed[0]) / len(part)
        results = []
        report["archive_s"] = median_s(
            lambda: results.append(archive_tile(raw, folder / "b.nii.gz", level=1, threads=threads)), options.repeats
        )
        report["archive_ratio"] = results[0].archive_bytes / size

    lines = a_lines * b_lines
    report["goals"] = {
        "a: times faster than float64 NumPy (25)": report["float64_numpy_s"] / maps_s,
        "a: the same, both with the reference's estimators": report["float64_numpy_s"]
        / report["maps_of_the_reference_s"],
        "a: times the bare transforms, fastest library, ours included (4)": maps_s / fastest,
        "a: times the bare transforms, fastest other library (4)": maps_s / report["fft_fastest_other_s"],
        "b: with volumes, of 1.5 x writing + maps (1)": report["volumes_s"]
        / (1.5 * report["write_volumes_s"] + maps_s),
        "c: archive times faster than gzip -3 (5)": report["gzip3_s"] / report["archive_s"],
        "c: archive size over gzip -3 (1.08)": report["archive_ratio"] / report["gzip3_ratio"],
        "d: A-lines/s": lines / maps_s,
        "d: of the camera's line rate": lines / maps_s / LINE_RATE_HZ,
        "1 to n threads": report["maps_one_thread_s"] / maps_s,
        "a quarter of the tile: A-lines/s": a_lines * (b_lines // 4) / report["maps_1/4_tile_s"],
        "half of the tile: A-lines/s": a_lines * (b_lines // 2) / report["maps_1/2_tile_s"],
    }
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    for key, value in report.items():
        if key not in ("goals", "fft_s", "fft_processor_s"):
            print(f"{key:28} {value:.3f}" if isinstance(value, float) else f"{key:28} {value}")
    print_transforms(report["fft_s"], report["fft_processor_s"])
    for name, value in report["goals"].items():
        print(f"{name:66} {value:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
