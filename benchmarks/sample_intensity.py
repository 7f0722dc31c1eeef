"""Brightness of a sample's slices against the truth: steps at boundaries, likeness with the truth, anatomy along z.

Slices of the synthetic sample are placed by the truth, so that brightness alone is measured.

    python benchmarks/sample_intensity.py --kind m --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import PlanarTransform
from opticstream.compute.sample import (
    BLOCK_PX,
    Intensity,
    PairLevels,
    SliceLevels,
    blended_power,
    block_power,
    correction_map,
    facing_levels,
    levels_in_sample,
    pair_levels,
    plane_sources,
    solve_intensity,
)
from opticstream.sim.cut_sample import CutSample, benchmark_settings

Single = NDArray[np.float32]
REACH = 3


@dataclass
class Brightness:
    """Figures of one sample."""

    kind: str
    seed: int
    step_rms_db: float
    step_worst_db: float
    profile_rms_db: float
    correlation_ordinary: float
    correlation_missing: float
    correlation_bad: float
    profile_slope: float
    gain_rms_db: float
    excluded: list[int]
    gaps: list[int]
    seconds: float


def corrections(sample: CutSample, volumes: dict[int, Single]) -> tuple[Intensity, dict[int, SliceLevels]]:
    """Return the corrections of a sample whose slices lie where the truth says."""
    shape = tuple(n // BLOCK_PX for n in sample.settings.shape)
    levels = {}
    for n, volume in volumes.items():
        mapping = PlanarTransform(*sample.pose(n))
        levels[n] = levels_in_sample(block_power(volume), mapping, shape=(shape[0], shape[1]))
    pairs: list[PairLevels] = []
    facing = {}
    slices = sorted(levels)
    for i in slices:
        for j in (n for n in slices if i < n <= i + REACH):
            apart = round((j - i) * sample.section_planes)
            pair = pair_levels(i, j, levels[i], levels[j], apart)
            if pair is not None:
                pairs.append(pair)
            elif j == min(n for n in slices if n > i):
                found = facing_levels(i, j, levels[i], levels[j])
                if found is not None:
                    facing[i, j] = found
    profiles = {n: level.profile_db for n, level in levels.items()}
    return solve_intensity(profiles, pairs, section_planes=sample.section_planes, facing=facing), levels


def rendered_blocks(sample: CutSample, intensity: Intensity | None, levels: dict[int, SliceLevels]) -> Single:
    """Return the sample's planes in dB as block means; NaN where nothing saw them. None: slices as they are."""
    planes = round(sample.settings.slots * sample.section_planes)
    there = {n: sample.planes for n in levels if intensity is None or n not in intensity.excluded}
    shape = next(iter(levels.values())).tissue.shape
    out = np.full((*shape, planes), np.nan, np.float32)
    for z in range(planes):
        correct = intensity is not None
        sources = plane_sources(
            z, there, section_planes=sample.section_planes, fade_planes=6 if correct else 0, fill=correct
        )
        parts = []
        for n, depth, weight in sources:
            power = levels[n].power[:, :, depth]
            if intensity is not None:
                everywhere = np.ones(shape, np.float32)
                blocks = slice(0, shape[0]), slice(0, shape[1])
                off = correction_map(intensity, n, depth, xs=blocks[0], ys=blocks[1], tissue=everywhere, side=1)
                power = np.asarray(power * 10 ** (-off / 10), np.float32)
            parts.append((power, weight))
        if parts:
            out[:, :, z] = blended_power(parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10 * np.log10(out)


def figures(kind: str, seed: int, *, correct: bool = True, **changes: object) -> Brightness:
    """Return the figures of one sample."""
    sample = CutSample(benchmark_settings(kind, seed, **changes))
    return figures_of(kind, seed, sample, {n: sample.volume_db(n) for n in sample.slices}, correct=correct)


def figures_of(
    kind: str, seed: int, sample: CutSample, volumes: dict[int, Single], *, correct: bool = True
) -> Brightness:
    """Return the figures of one sample whose slices are there."""
    started = time.process_time()
    intensity, levels = corrections(sample, volumes)
    seconds = time.process_time() - started
    made = rendered_blocks(sample, intensity if correct else None, levels)
    truth_db = sample.tissue_db(slice(0, made.shape[2]))
    inside = np.asarray(truth_db > -50)
    share = block_power(np.where(inside, 0.0, np.nan), side=BLOCK_PX)
    full = np.isfinite(share)
    truth = 10 * np.log10(block_power(np.where(inside, truth_db, np.nan)))
    where = full & full.all(2, keepdims=True)
    section = round(sample.section_planes)
    error = np.where(where, made - truth, np.nan)
    with np.errstate(invalid="ignore"):
        profile = np.array(
            [
                np.nanmedian(error[:, :, z]) if np.isfinite(error[:, :, z]).any() else np.nan
                for z in range(made.shape[2])
            ]
        )
    steps = []
    for z in range(section, made.shape[2], section):
        before, after = profile[z - 4 : z], profile[z : z + 4]
        if np.isfinite(before).all() and np.isfinite(after).all():
            steps.append(after.mean() - before.mean())
    cutting = sample.settings.cutting
    ordinary: list[float] = []
    missing: list[float] = []
    bad: list[float] = []
    gaps: list[int] = []
    levels_made: list[float] = []
    levels_true: list[float] = []
    for n in range(1, sample.settings.slots + 1):
        part = slice((n - 1) * section, n * section)
        a, b = made[:, :, part], truth[:, :, part]
        good = where[:, :, part] & np.isfinite(a) & np.isfinite(b)
        if good.sum() < 0.5 * where[:, :, part].sum():
            gaps.append(n)
            continue
        value = float(np.corrcoef(a[good], b[good])[0, 1])
        (missing if n in cutting.missing else bad if n in cutting.bad else ordinary).append(value)
        levels_made.append(float(np.median(a[good])))
        levels_true.append(float(np.median(b[good])))
    true_gain = np.array([sample.cutting.gain_db(n) for n in sample.slices if n not in cutting.bad])
    gain = np.array([intensity.gains_db[n] for n in sample.slices if n not in cutting.bad])
    off = (gain - true_gain) - (gain - true_gain).mean()
    return Brightness(
        kind,
        seed,
        float(np.sqrt(np.mean(np.square(steps)))),
        float(np.abs(steps).max()),
        float(np.nanstd(profile)),
        min(ordinary),
        min(missing, default=float("nan")),
        min(bad, default=float("nan")),
        float(np.polyfit(levels_true, levels_made, 1)[0]),
        float(np.sqrt(np.mean(off**2))),
        sorted(intensity.excluded),
        gaps,
        seconds,
    )


def main() -> None:
    """Print one line of JSON for each sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="m", choices=("m", "h"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--raw", action="store_true", help="without corrections")
    parser.add_argument("--vignette", type=float, default=0.0, help="what the flat field of tiles has left")
    choices = parser.parse_args()
    for seed in choices.seeds:
        found = figures(choices.kind, seed, correct=not choices.raw, vignette=choices.vignette)
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(found).items()}))


if __name__ == "__main__":
    main()
