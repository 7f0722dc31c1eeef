"""Brightness of a sample's slices against the truth: steps at boundaries, likeness with the truth, anatomy along z.

Slices of the synthetic sample are placed by the truth, so that brightness alone is measured.

    python benchmarks/sample_intensity.py --kind m --seeds 1 2 3
    python benchmarks/sample_intensity.py --kind h --coarse --seeds 201 202 203 204 205 206 207 208
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
    layer_levels,
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
    profile_correlation: float
    gain_rms_db: float
    excluded: list[int]
    gaps: list[int]
    seconds: float


@dataclass
class BlockSample:
    """A sample as levels of blocks of A-lines, slices placed by the truth."""

    slots: int
    planes: int
    section_planes: int
    levels: dict[int, SliceLevels]
    gains_db: dict[int, float]
    missing: tuple[int, ...]
    bad: tuple[int, ...]
    truth_db: Single
    """Shape (x, y, planes of the sample); NaN outside the tissue."""


def blocks_of(sample: CutSample) -> BlockSample:
    """Return the blocks of a sample that is made A-line by A-line."""
    shape = tuple(n // BLOCK_PX for n in sample.settings.shape)
    levels = {}
    for n in sample.slices:
        mapping = PlanarTransform(*sample.pose(n))
        levels[n] = levels_in_sample(block_power(sample.volume_db(n)), mapping, shape=(shape[0], shape[1]))
    truth_db = sample.tissue_db(slice(0, round(sample.settings.slots * sample.section_planes)))
    truth = 10 * np.log10(block_power(np.where(truth_db > -50, truth_db, np.nan)))
    cutting = sample.settings.cutting
    gains = {n: sample.cutting.gain_db(n) for n in sample.slices}
    section = round(sample.section_planes)
    return BlockSample(
        sample.settings.slots, sample.planes, section, levels, gains, cutting.missing, cutting.bad, truth
    )


def coarse_sample(kind: str, seed: int, *, coupled: bool = True) -> BlockSample:
    """Return a sample that is made of blocks straight away, in seconds, with the statistics of the other one.

    Slices are not moved, and speckle is drawn for whole blocks. Without `coupled`, brightness tells no attenuation.
    """
    rng = np.random.default_rng([seed, *b"coarse"])
    section, planes, slots, across = {"m": (20, 60, 12, (70, 63)), "h": (40, 44, 12, (70, 63))}[kind]
    shape = (*across, slots * section + planes)

    def noise(blocks: float, along: float) -> Single:
        from scipy import ndimage

        step = max(1, int(along / 3))
        rough = rng.standard_normal((shape[0], shape[1], -(-shape[2] // step) + 1), dtype=np.float32)
        smooth = ndimage.gaussian_filter(rough, (blocks, blocks, along / step), mode="wrap")
        at = np.arange(shape[2]) / step
        low, share = at.astype(int), np.asarray(at % 1, np.float32)
        return np.asarray((smooth[:, :, low] * (1 - share) + smooth[:, :, low + 1] * share) / smooth.std(), np.float32)

    def white_matter() -> Single:
        return np.asarray(1 / (1 + np.exp(-8 * (noise(7.5, 40) + 0.3))), np.float32)

    white = white_matter()
    bright = -5 * (1 - white) + 0.9 * noise(0.7, 6) + 1.1 * noise(1.5, 12) + 2 * noise(3, 50)
    bright -= 3 * np.exp(-((noise(2, 15) / 0.06) ** 2))
    x = (np.arange(shape[0])[:, None, None] - (shape[0] - 1) / 2) / (0.42 * shape[0])
    y = (np.arange(shape[1])[None, :, None] - (shape[1] - 1) / 2) / (0.42 * shape[1])
    inside = np.hypot(x, y) + 0.06 * noise(5, 30) < 1
    loss_db = np.where(inside, 20 * np.log10(np.e) * 10 * (2.5e-3 + 2.5e-3 * (white if coupled else white_matter())), 0)
    depth_um = 10 * (np.arange(planes) + 0.5)
    gate_db = -10 * np.log10(1 + ((depth_um - 150) / 350) ** 2)
    missing, bad = (int(n) for n in rng.permutation(np.arange(3, 11))[:2])
    levels, gains = {}, {}
    for n in (n for n in range(1, slots + 1) if n != missing):
        seen = slice((n - 1) * section, (n - 1) * section + planes)
        gains[n] = float(rng.normal(0, 0.8)) - (12.0 if n == bad else 0.0)
        lost = np.cumsum(loss_db[:, :, seen], axis=2) - loss_db[:, :, seen] / 2
        power = np.where(inside[:, :, seen], 10 ** ((bright[:, :, seen] - lost + gate_db + gains[n]) / 10), 0)
        power = (power + 10**-3.8) * rng.standard_gamma(100, power.shape) / 100
        levels[n] = levels_in_sample(power, PlanarTransform.identity(), shape=across)
    truth = np.where(inside, bright, np.nan)[:, :, : slots * section]
    return BlockSample(slots, planes, section, levels, gains, (missing,), (bad,), truth.astype(np.float32))


def corrections(sample: BlockSample) -> Intensity:
    """Return the corrections of a sample."""
    levels = sample.levels
    pairs: list[PairLevels] = []
    facing = {}
    slices = sorted(levels)
    for i in slices:
        for j in (n for n in slices if i < n <= i + REACH):
            pair = pair_levels(i, j, levels[i], levels[j], (j - i) * sample.section_planes)
            if pair is not None:
                pairs.append(pair)
            elif j == min(n for n in slices if n > i):
                found = facing_levels(i, j, levels[i], levels[j])
                if found is not None:
                    facing[i, j] = found
    profiles = {n: level.profile_db for n, level in levels.items()}
    return solve_intensity(
        profiles,
        pairs,
        section_planes=sample.section_planes,
        facing=facing,
        layers=lambda n: layer_levels(levels[n], sample.section_planes),
    )


def rendered_blocks(sample: BlockSample, intensity: Intensity | None) -> Single:
    """Return the sample's planes in dB as block means; NaN where nothing saw them. None: slices as they are."""
    levels, planes = sample.levels, sample.slots * sample.section_planes
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


def figures(kind: str, seed: int, sample: BlockSample, *, correct: bool = True) -> Brightness:
    """Return the figures of one sample."""
    started = time.process_time()
    intensity = corrections(sample)
    seconds = time.process_time() - started
    made, truth, section = (
        rendered_blocks(sample, intensity if correct else None),
        sample.truth_db,
        sample.section_planes,
    )
    where = np.broadcast_to(np.isfinite(truth).all(2, keepdims=True), truth.shape)
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
    ordinary: list[float] = []
    missing: list[float] = []
    bad: list[float] = []
    gaps: list[int] = []
    levels_made: list[float] = []
    levels_true: list[float] = []
    for n in range(1, sample.slots + 1):
        part = slice((n - 1) * section, n * section)
        a, b = made[:, :, part], truth[:, :, part]
        good = where[:, :, part] & np.isfinite(a) & np.isfinite(b)
        if good.sum() < 0.5 * where[:, :, part].sum():
            gaps.append(n)
            continue
        value = float(np.corrcoef(a[good], b[good])[0, 1])
        (missing if n in sample.missing else bad if n in sample.bad else ordinary).append(value)
        levels_made.append(float(np.median(a[good])))
        levels_true.append(float(np.median(b[good])))
    used = [n for n in sample.levels if n not in sample.bad]
    off = np.array([intensity.gains_db[n] - sample.gains_db[n] for n in used])
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
        float(np.corrcoef(levels_true, levels_made)[0, 1]),
        float(np.std(off)),
        sorted(intensity.excluded),
        gaps,
        seconds,
    )


def main() -> None:
    """Print one line of JSON for each sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="m", choices=("m", "h"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--raw", action="store_true", help="without corrections")
    parser.add_argument("--vignette", type=float, default=0.0, help="what the flat field of tiles has left")
    parser.add_argument("--coarse", action="store_true", help="samples that are made of blocks straight away")
    parser.add_argument("--uncoupled", action="store_true", help="coarse, attenuation unrelated to brightness")
    choices = parser.parse_args()
    rows = []
    for seed in choices.seeds:
        if choices.coarse or choices.uncoupled:
            sample = coarse_sample(choices.kind, seed, coupled=not choices.uncoupled)
        else:
            sample = blocks_of(CutSample(benchmark_settings(choices.kind, seed, vignette=choices.vignette)))
        rows.append(asdict(figures(choices.kind, seed, sample, correct=not choices.raw)))
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
    for name in (key for key, value in rows[0].items() if isinstance(value, float)):
        values = [row[name] for row in rows if np.isfinite(row[name])]
        if values:
            print(f"{name}: median {np.median(values):.3f}, from {min(values):.3f} to {max(values):.3f}")


if __name__ == "__main__":
    main()
