"""Figures of the fibre-axis solver: speed, optimality, the branch rule, errors against noise and inclination.

python benchmarks/axis.py [--pixels 200000] [--only speed] [--json FILE]

Times are medians over repeats, in which solver and search take turns, so that a machine whose clock varies treats both
alike; on a shared machine trust ratios and processor time more than wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from opticstream.compute.axis import AxisFlag, axis_from_projections, projections_from_axis
from opticstream.testing.axis_search import beam_directions, best_of_searches, measured_vectors, nelder_mead
from opticstream.testing.slice_phantom import axial_error_deg

TILTS = [0.0, -15.0]
REPEATS = 7
SEARCHED_AT_A_TIME = 60


def noisy(axes: np.ndarray, sigma: float, rng: np.random.Generator, **beams: Any) -> tuple[np.ndarray, np.ndarray]:
    angle, seen = projections_from_axis(axes, np.ones(axes.shape[:-1]), **beams)
    vector = seen * np.exp(1j * np.radians(angle))
    vector = vector + sigma * (rng.normal(size=vector.shape) + 1j * rng.normal(size=vector.shape))
    return np.degrees(np.angle(vector)).astype(np.float32), np.abs(vector).astype(np.float32)


def random_axes(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    axes = rng.normal(size=(*shape, 3))
    return axes / np.linalg.norm(axes, axis=-1, keepdims=True)


def speed(pixels: int, rng: np.random.Generator) -> dict[str, Any]:
    side = int(np.sqrt(pixels))
    angle, seen = noisy(random_axes((side, side), rng), 0.02, rng, tilt_deg=TILTS)
    start = time.perf_counter()
    axis_from_projections(angle[:, :4, :4], seen[:, :4, :4], tilt_deg=TILTS)
    first = time.perf_counter() - start
    beams, images = beam_directions(TILTS)
    chosen = rng.choice(side**2, (REPEATS, SEARCHED_AT_A_TIME), replace=False)
    measured = measured_vectors(angle.reshape(2, -1), seen.reshape(2, -1), images)
    wall, processor, search = [], [], []
    for pixels_of_search in chosen:
        start, cpu = time.perf_counter(), time.process_time()
        axis_from_projections(angle, seen, tilt_deg=TILTS)
        wall.append((time.perf_counter() - start) / side**2)
        processor.append((time.process_time() - cpu) / side**2)
        cpu = time.process_time()
        for pixel in measured[pixels_of_search]:
            nelder_mead(pixel, beams, np.array([1.0, 0.3, 0.3]))
        search.append((time.process_time() - cpu) / len(pixels_of_search))
    ratios = [one / other for one, other in zip(search, processor, strict=True)]
    return {
        "pixels": side**2,
        "pixels_searched": chosen.size,
        "cores": len(os.sched_getaffinity(0)),
        "first_call_s": first,
        "us_per_pixel_wall": 1e6 * statistics.median(wall),
        "us_per_pixel_processor": 1e6 * statistics.median(processor),
        "nelder_mead_ms_per_pixel": 1e3 * statistics.median(search),
        "times_faster_on_one_core": statistics.median(ratios),
        "times_faster_on_one_core_range": [min(ratios), max(ratios)],
        "times_faster_wall": statistics.median(search) / statistics.median(wall),
    }


def optimality(pixels: int, rng: np.random.Generator) -> dict[str, Any]:
    result = {}
    for kind in ("noisy", "unrelated", "uneven"):
        if kind == "noisy":
            angle, seen = noisy(random_axes((pixels,), rng), 0.03, rng, tilt_deg=TILTS)
        else:
            angle, seen = rng.uniform(-90, 90, (2, pixels)), rng.uniform(0, 1, (2, pixels))
            if kind == "uneven":
                seen = np.exp(2 * rng.normal(size=(2, pixels)))
        field = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=0.0)
        beams, images = beam_directions(TILTS)
        measured = measured_vectors(angle, seen, images)
        energy = (measured**2).sum((1, 2))
        _, reference = best_of_searches(measured, beams)
        excess = (field.residual.astype(float) ** 2 - reference) / energy
        result[kind] = {
            "pixels": pixels,
            "largest_excess_over_energy": float(excess.max()),
            "pixels_above_1e-6": int((excess > 1e-6).sum()),
            "pixels_where_the_searches_were_worse": int((excess < -1e-6).sum()),
        }
    return result


def branch_rule(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for from_plane in (0.0, 1.0, 2.0, 5.0, 10.0):
        for sigma in (0.005, 0.02):
            steep = np.radians(rng.uniform(-60, 60, 10_000))
            side = np.radians(from_plane) * rng.choice([-1.0, 1.0], 10_000)
            axes = np.stack([np.cos(steep) * np.cos(side), np.sin(side), np.sin(steep) * np.cos(side)], axis=1)
            angle, seen = noisy(axes, sigma, rng, tilt_deg=TILTS)
            row: dict[str, Any] = {"degrees_from_tilt_plane": from_plane, "noise": sigma}
            for name, rule in (("with_rule", 2.0), ("lowest_cost", 0.0)):
                field = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=sigma, branch_sigma=rule)
                error = axial_error_deg(field.axis, axes)
                row[f"{name}_wrong_by_30_deg"] = float(np.nanmean(error > 30))
                if rule:
                    row["flagged"] = float(((field.flags & AxisFlag.AMBIGUOUS) > 0).mean())
            rows.append(row)
    return rows


def errors(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for sigma in (0.005, 0.01, 0.02, 0.05):
        axes = random_axes((200, 200), rng)
        field = axis_from_projections(*noisy(axes, sigma, rng, tilt_deg=TILTS), tilt_deg=TILTS)
        error = axial_error_deg(field.axis, axes)
        steep = np.degrees(np.arcsin(np.abs(axes[..., 2])))
        row: dict[str, Any] = {
            "noise": sigma,
            "estimated_noise": float(np.nanmedian(field.noise)),
            "median_deg": float(np.nanmedian(error)),
            "p95_deg": float(np.nanpercentile(error, 95)),
            "left_out": float(np.isnan(error).mean()),
            "median_error_over_uncertainty": float(np.nanmedian((error / field.uncertainty_deg)[field.flags == 0])),
        }
        row |= {
            f"median_deg_at_{low}_{low + 15}": float(np.nanmedian(error[(steep >= low) & (steep < low + 15)]))
            for low in range(0, 90, 15)
        }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=200_000)
    parser.add_argument("--searched", type=int, default=10_000, help="pixels compared with per-pixel searches")
    parser.add_argument("--only", choices=("speed", "optimality", "branch_rule", "errors"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    parts = {
        "speed": lambda: speed(options.pixels, rng),
        "optimality": lambda: optimality(options.searched, rng),
        "branch_rule": lambda: branch_rule(rng),
        "errors": lambda: errors(rng),
    }
    result = {name: part() for name, part in parts.items() if options.only in (None, name)}
    text = json.dumps(result, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
