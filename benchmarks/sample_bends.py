"""Slices that are bent: place of the tissue, axes and likeness with the truth, by poses alone and with bends.

    python benchmarks/sample_bends.py [--kinds m h] [--bends 0 100 300] [--seeds 701 702 703 704 705 706 707 708]

Samples of 4 sections of 300 x 260 px of 10 um from `opticstream.sim.cut_sample`: turned, shifted, and bent by up to so
many um over lengths of about 2.5 mm (`--scale`). The first slice is straight, and the sample has its shape. Errors are
taken over the tissue 30 px from the border: place in um, 3-D axes in degrees (their truth at the place that is shown),
and the correlation of the first planes with the truth. Seeds from 701 on were not looked at while it was written.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from opticstream.compute.registration import PlanarTransform, resample_image, resampled
from opticstream.compute.sample import SliceBend, band_image, solve_bends, solve_poses, tissue_mask
from opticstream.sim.cut_sample import CutSample, CutSampleSettings
from opticstream.sim.settings import CuttingSettings
from sample import measured_edges

Array = NDArray[np.float64]
DEPTHS = {"m": (600.0, 200.0), "h": (440.0, 400.0)}
PLANES = 4


def bent_sample(kind: str, seed: int, bend_um: float, scale_um: float) -> CutSample:
    imaged, cut = DEPTHS[kind]
    cutting = CuttingSettings(
        rotation_deg=0.7, shift_px=9.0, gain_db=0.8, distortion_um=bend_um, distortion_scale_um=scale_um
    )
    return CutSample(
        CutSampleSettings(seed=seed, slots=4, shape=(300, 260), imaged_um=imaged, cut_um=cut, cutting=cutting)
    )


def with_bend(mapping: PlanarTransform, bend: SliceBend | None, shape: tuple[int, int]) -> PlanarTransform:
    if bend is None:
        return mapping
    return PlanarTransform(mapping.matrix, mapping.offset, bend.on(slice(0, shape[0]), slice(0, shape[1])))


def errors(sample: CutSample, slice_id: int, mapping: PlanarTransform, first: Array) -> dict[str, Array]:
    """Return errors of place (um) and axes (degrees) of a slice in the sample, and what it shows beside the truth."""
    shape = sample.settings.shape
    shown, _ = sample._where(slice_id)
    at = mapping.coordinates(shape)
    place = np.stack([ndimage.map_coordinates(part, at, order=1, cval=np.nan) for part in shown])
    q = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    top = (slice_id - 1) * round(sample.section_planes)
    true = band_image(sample.tissue_db(slice(top, top + PLANES)))
    inner = np.zeros(shape, bool)
    inner[30:-30, 30:-30] = True
    good = inner & (true > -20) & np.isfinite(place).all(0)
    axis = resampled(sample.axis(slice_id), mapping, how="vectors", shape=shape).astype(float)
    goal = sample.true_axis().astype(float)
    good &= np.isfinite(axis).all(-1)
    cross = np.linalg.norm(np.cross(axis[good], goal[good]), axis=-1)
    seen = resample_image(first, mapping, shape=shape)
    return {
        "place": np.linalg.norm((place - q)[:, good], axis=0) * sample.settings.pixel_um,
        "axis": np.degrees(np.arctan2(cross, np.abs((axis[good] * goal[good]).sum(-1)))),
        "likeness": np.array([np.corrcoef(seen[good], true[good])[0, 1]]),
    }


def one_sample(kind: str, seed: int, bend_um: float, scale_um: float) -> dict[str, object]:
    sample = bent_sample(kind, seed, bend_um, scale_um)
    volumes = {n: sample.volume_db(n) for n in sample.slices}
    start = time.process_time()
    measured = measured_edges(sample, volumes)
    cpu = (time.process_time() - start) / len(measured)
    poses = solve_poses(sample.slices, [e.edge for e in measured], centre_px=sample.centre_px).poses
    sure = [e for e in measured if e.common and e.confidence >= 0.4]
    found = {(e.edge.first, e.edge.second): e.bend for e in sure if e.bend is not None}
    bends = solve_bends([e.edge for e in sure], found, poses, centre_px=sample.centre_px)
    row: dict[str, object] = {"kind": kind, "seed": seed, "bend_um": bend_um, "edge_cpu_s": round(cpu, 1)}
    row["bent"], row["bent_pairs"] = sorted(bends), len(found)
    if bends:
        stated = np.sqrt(2 * np.mean([b.sigma_px**2 for b in bends.values()]))
        row["stated_um"] = round(float(stated) * sample.settings.pixel_um, 2)
    for way in ("poses", "bends"):
        parts = []
        for n in sample.slices[1:]:
            mapping = with_bend(
                poses[n].mapping(sample.centre_px), bends.get(n) if way == "bends" else None, sample.settings.shape
            )
            planes = volumes[n][:, :, :PLANES]
            parts.append(errors(sample, n, mapping, band_image(planes, tissue=tissue_mask(planes))))
        for name in ("place", "axis"):
            every = np.concatenate([part[name] for part in parts])
            row[f"{name}_{way}"] = round(float(np.sqrt(np.mean(every**2))), 3)
        row[f"likeness_{way}"] = round(float(np.mean([part["likeness"] for part in parts])), 3)
    return row


def main() -> None:
    """Print one line of JSON for each sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["m", "h"])
    parser.add_argument("--bends", type=float, nargs="+", default=[0.0, 100.0, 300.0])
    parser.add_argument("--scale", type=float, default=2500.0, help="typical length of the bends in um")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(701, 709)))
    args = parser.parse_args()
    for kind in args.kinds:
        for bend_um in args.bends:
            for seed in args.seeds:
                print(json.dumps(one_sample(kind, seed, bend_um, args.scale)), flush=True)


if __name__ == "__main__":
    main()
