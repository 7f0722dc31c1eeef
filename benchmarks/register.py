"""Figures of slice registration: error, residual, confidence, time over offsets, rotations, overlap and other slices.

python benchmarks/register.py [--size 330 250] [--seeds 3] [--json FILE]

With --large a mosaic of 3000 x 2000 pixels is registered too, for its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from opticstream.compute.registration import Registration, register_images
from opticstream.testing.slice_phantom import Picture, SlicePhantom, make_slice, mapping_error_px


def register(phantom: SlicePhantom, *, details: bool) -> tuple[Registration, float]:
    fixed, moving = phantom.beams
    cpu = time.process_time()
    result = register_images(
        fixed.birefringence,
        moving.birefringence,
        details=[(fixed.intensity, moving.intensity)] if details else [],
    )
    return result, time.process_time() - cpu


def sweep(size: tuple[int, int], seeds: int) -> list[dict[str, Any]]:
    cases = {
        "no offset": Picture(tilt_deg=-15.0, shape=size),
        "15 % offset": Picture(tilt_deg=-15.0, shape=size, shift_px=(0.15 * size[0], -0.15 * size[1])),
        "5 degrees": Picture(tilt_deg=-15.0, shape=size, rotation_deg=5.0),
        "15 % and -5 degrees": Picture(
            tilt_deg=-15.0, shape=size, rotation_deg=-5.0, shift_px=(-0.15 * size[0], 0.15 * size[1])
        ),
        "other size, foreshortened": Picture(
            tilt_deg=-15.0, shape=(size[0] - 40, size[1] + 20), scale=(0.966, 1.0), rotation_deg=2.0, shift_px=(20, 10)
        ),
        "half overlap": Picture(tilt_deg=-15.0, shape=size, shift_px=(0.35 * size[0], 0.25 * size[1])),
    }
    rows = []
    for name, picture in cases.items():
        for details in (True, False):
            found = []
            for seed in range(seeds):
                phantom = make_slice((Picture(shape=size), picture), seed=seed, margin_px=150)
                result, cpu = register(phantom, details=details)
                error = mapping_error_px(result.mapping.matrix, result.mapping.offset, phantom.beams[1], size)
                found.append((np.median(error), np.percentile(error, 95), result, cpu))
            rows.append(
                {
                    "case": name,
                    "maps": "birefringence and intensity" if details else "birefringence",
                    "median_error_px": float(np.median([f[0] for f in found])),
                    "worst_median_error_px": float(max(f[0] for f in found)),
                    "p95_error_px": float(np.median([f[1] for f in found])),
                    "residual_px": float(np.median([f[2].residual_px for f in found])),
                    "lowest_confidence": min(f[2].confidence for f in found),
                    "accepted": sum(f[2].good for f in found) / seeds,
                    "processor_s": statistics.median(f[3] for f in found),
                }
            )
    return rows


def unrelated(size: tuple[int, int], seeds: int) -> dict[str, Any]:
    results = []
    for seed in range(2 * seeds):
        one, other = (
            make_slice((Picture(shape=size), Picture(tilt_deg=-15.0, shape=size)), seed=s) for s in (seed, seed + 500)
        )
        mixed = SlicePhantom(one.axis, one.birefringence, one.white, (one.beams[0], other.beams[1]))
        results.append(register(mixed, details=True)[0])
    return {
        "pairs": len(results),
        "wrongly_accepted": sum(r.good for r in results),
        "highest_confidence": max(r.confidence for r in results),
    }


def large() -> dict[str, Any]:
    shape = (3000, 2000)
    picture = Picture(tilt_deg=-15.0, shape=shape, rotation_deg=2.0, shift_px=(150.0, -90.0))
    phantom = make_slice((Picture(shape=shape), picture), seed=1, grain_px=30, margin_px=200)
    start = time.perf_counter()
    result, cpu = register(phantom, details=True)
    wall = time.perf_counter() - start
    error = mapping_error_px(result.mapping.matrix, result.mapping.offset, phantom.beams[1], shape)
    return {"shape": shape, "median_error_px": float(np.median(error)), "wall_s": wall, "processor_s": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(330, 250))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = (options.size[0], options.size[1])
    result: dict[str, Any] = {"sweep": sweep(size, options.seeds), "unrelated": unrelated(size, options.seeds)}
    if options.large:
        result["large"] = large()
    text = json.dumps(result, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
