"""Angles of axes after slices are brought into the sample, against the truth: turned, and turned and bent.

    python benchmarks/sample_axes.py --seeds 101 102 103 104 105 106 107 108

Slices of `opticstream.sim.cut_sample`, of 420 x 380 px of 10 um, are placed by the truth, so that angles alone are
measured: of orientations (in degrees, averaged as axes) and of 3-D axes. `bent` also bends each slice by up to 30 um,
which stretches it as 0.3 mm stretch a slice of 4 cm.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from opticstream.compute.registration import PlanarTransform, resampled
from opticstream.sim.cut_sample import CutSample, CutSampleSettings
from opticstream.sim.settings import CuttingSettings

Array = NDArray[np.float64]


def true_mapping(sample: CutSample, slice_id: int) -> PlanarTransform:
    """Return where each pixel of the sample lies in a slice, with its bend."""
    matrix, offset = sample.pose(slice_id)
    straight = PlanarTransform(matrix, offset)
    shape = sample.settings.shape
    shown, _ = sample._where(slice_id)
    bend = shown - straight.inverse().coordinates(shape)  # at pixels of the slice
    if np.abs(bend).max() < 1e-9:
        return straight
    moved = np.zeros((2, *shape), np.float32)
    for _ in range(8):  # the bend is looked up where the pixel lies because of it
        at = PlanarTransform(matrix, offset, moved).coordinates(shape)
        moved = np.stack([-ndimage.map_coordinates(part, at, order=1, mode="nearest") for part in bend])
        moved = moved.astype(np.float32)
    return PlanarTransform(matrix, offset, moved)


def errors_deg(sample: CutSample) -> tuple[Array, Array]:
    """Return the errors of orientations and of 3-D axes of all slices, in degrees."""
    true = sample.true_axis().astype(float)
    along = np.degrees(np.arctan2(true[..., 1], true[..., 0]))
    inner = np.zeros(true.shape[:2], bool)
    inner[30:-30, 30:-30] = True
    flat, solid = [], []
    for n in sample.slices[1:]:
        axis, mapping = sample.axis(n), true_mapping(sample, n)
        shape = sample.settings.shape
        seen = np.degrees(np.arctan2(axis[..., 1], axis[..., 0]))
        turned = resampled(seen, mapping, how="axes", shape=shape)
        vectors = resampled(axis, mapping, how="vectors", shape=shape).astype(float)
        good = inner & np.isfinite(turned) & np.isfinite(vectors).all(-1)
        flat.append(np.abs((turned - along + 90) % 180 - 90)[good & (np.abs(true[..., 2]) < 0.9)])
        cross = np.linalg.norm(np.cross(vectors[good], true[good]), axis=-1)
        solid.append(np.degrees(np.arctan2(cross, np.abs((vectors[good] * true[good]).sum(-1)))))
    return np.concatenate(flat), np.concatenate(solid)


def main() -> None:
    """Print one line of JSON for each sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(101, 109)))
    for seed in parser.parse_args().seeds:
        for name, bend_um in (("turned", 0.0), ("bent", 30.0)):
            cutting = CuttingSettings(rotation_deg=2.0, shift_px=9.0, distortion_um=bend_um)
            row = {"kind": name, "seed": seed}
            found = errors_deg(CutSample(CutSampleSettings(seed=seed, slots=3, cutting=cutting)))
            for kind, off in zip(("orientation", "axis"), found, strict=True):
                row[f"{kind}_rms_deg"] = float(np.sqrt(np.mean(off**2)))
                row[f"{kind}_p95_deg"] = float(np.percentile(off, 95))
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
