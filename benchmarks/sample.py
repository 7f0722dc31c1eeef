"""Errors of the poses of a whole sample: global solve, the chain of earlier versions, and no alignment at all.

python benchmarks/sample.py [--seeds 1 2 3 4 5 6 7 8] [--sets m h] [--steps 200] [--chain] [--linumpy FOLDER]
                            [--results FOLDER]

Set m is imaged 600 um deep and cut every 200 um, set h 440 and 400; both have 12 sections of 420 x 380 px, a jump of
the stage that lasts, a missing and a bad slice (blurred, 12 dB down). They come from `opticstream.sim.cut_sample`,
which shares nothing with what places the slices. Seeds from 101 on were never looked at while it was written.
`--steps` also solves a long sample with a jump, whole and with missing slices, from edges drawn at random.
`--linumpy` names a checkout of https://github.com/linum-uqam/linumpy, whose functions are run beside; they need
SimpleITK and scikit-image. With `--results`, what was measured of each sample is kept in a file of its own, so that a
run that was stopped goes on where it was, and the same command prints the table again.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import PlanarTransform, register_images, resample_image, rigid_map
from opticstream.compute.sample import (
    REACH,
    Edge,
    MeasuredEdge,
    Pose,
    depths_to_compare,
    depths_to_read,
    edge_between,
    pose_after,
    solve_poses,
)
from opticstream.sim.cut_sample import CutSample, benchmark_settings

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """True poses and the pixels at which errors are taken."""

    mappings: Mapping[int, PlanarTransform]
    points: Array

    @staticmethod
    def of(sample: CutSample) -> Truth:
        x, y = sample.settings.shape
        grid = np.stack(np.meshgrid(np.arange(0, x, 20), np.arange(0, y, 20), indexing="ij"), -1).reshape(-1, 2)
        off = (grid - sample.centre_px) / (0.42 * np.array([x, y]))
        return Truth(
            {n: PlanarTransform(*sample.pose(n)) for n in sample.slices}, grid[np.hypot(*off.T) < 1].astype(float)
        )


def errors(found: Mapping[int, PlanarTransform], truth: Truth) -> tuple[dict[int, float], dict[int, float]]:
    """Return the error of each slice, RMS over the tissue in px, and of its angle, up to one motion of the sample."""
    numbers = sorted(found)
    middle = truth.points.mean(0)
    off = np.array([found[n].inverse().points(truth.mappings[n].points(truth.points)) - truth.points for n in numbers])
    arm = truth.points - middle
    one, zero = np.ones(len(arm)), np.zeros(len(arm))
    design = np.stack([np.stack([one, zero, -arm[:, 1]], 1), np.stack([zero, one, arm[:, 0]], 1)], 1).reshape(-1, 3)
    motion = np.linalg.lstsq(np.tile(design, (len(numbers), 1)), off.ravel(), rcond=None)[0]
    left = off - (design @ motion).reshape(1, -1, 2)
    turn = np.array([found[n].rotation_deg - truth.mappings[n].rotation_deg for n in numbers])
    turn = turn - turn.mean()
    place = np.sqrt((left**2).sum(2).mean(1))
    return dict(zip(numbers, place.tolist(), strict=True)), dict(zip(numbers, turn.tolist(), strict=True))


def figures(found: Mapping[int, PlanarTransform], truth: Truth, bad: Sequence[int]) -> dict[str, float]:
    place, turn = errors(found, truth)
    ordinary = [n for n in place if n not in bad]
    return {
        "rms_px": float(np.sqrt(np.mean(np.square([place[n] for n in ordinary])))),
        "worst_px": max(place[n] for n in ordinary),
        "bad_px": max((place[n] for n in place if n in bad), default=float("nan")),
        "turn_rms_deg": float(np.sqrt(np.mean(np.square([turn[n] for n in ordinary])))),
    }


def measured_edges(sample: CutSample, volumes: Mapping[int, NDArray[np.float32]]) -> list[MeasuredEdge]:
    """Return the edges of a sample as the stage measures them: slice after slice, to up to three sections before."""
    centre = sample.centre_px
    edges: list[MeasuredEdge] = []
    poses: dict[int, Pose] = {sample.slices[0]: Pose()}
    for j in sample.slices[1:]:
        guess: tuple[float, Pose] | None = None
        for i in sorted((n for n in sample.slices if 0 < j - n <= REACH), reverse=True):
            depths = depths_to_compare((j - i) * sample.section_planes, (sample.planes, sample.planes))
            one = volumes[i][:, :, depths_to_read(depths, sample.planes)]
            starts = () if guess is None else ((poses[i], guess[1]),)
            edge = edge_between(i, j, one, volumes[j][:, :, depths.second], depths, starts=starts, centre_px=centre)
            edges.append(edge)
            if guess is None or edge.confidence > guess[0]:
                guess = edge.confidence, pose_after(edge.edge, poses[i], centre_px=centre)
        known = [n for n in sample.slices if n <= j]
        poses = dict(solve_poses(known, [e.edge for e in edges], centre_px=centre, previous=poses).poses)
    return edges


def chained(volumes: Mapping[int, NDArray[np.float32]], pullback: float) -> dict[int, PlanarTransform]:
    """Return the poses of earlier versions: each slice from its neighbour alone, by AIPs over the whole depth."""
    maps = {n: 10 * np.log10(np.mean(10 ** (volume / 10), axis=2)) for n, volume in volumes.items()}
    numbers = sorted(maps)
    shape = (maps[numbers[0]].shape[0], maps[numbers[0]].shape[1])
    centre = (np.array(shape) - 1) / 2
    poses = {numbers[0]: PlanarTransform.identity()}
    for before, n in pairwise(numbers):
        reference = resample_image(maps[before], poses[before], shape=shape)
        limits: dict[str, Any] = {"freedom": "rigid", "sigma_px": 2.0, "min_confidence": 0.4, "max_residual_px": 6.0}
        step = register_images(reference, maps[n], start=PlanarTransform.identity(), **limits)
        if not step.good:
            step = register_images(reference, maps[n], **limits)
        if not step.good:
            poses[n] = poses[before]
            continue
        keep = (1 - pullback) ** (n - before)
        poses[n] = rigid_map(step.mapping.rotation_deg * keep, (step.mapping.points(centre) - centre) * keep, centre)
    return poses


def chained_by_linumpy(
    volumes: Mapping[int, NDArray[np.float32]], section_planes: float, checkout: Path
) -> dict[int, PlanarTransform]:
    """Return the poses by linumpy's functions, as its `linum_register_pairwise.py` calls them, slice after slice.

    The face of a slice is sought where it lies in the slice before, 10 planes up and down (the script's 0.1 mm).
    """
    tools = _module_from(checkout / "linumpy" / "registration" / "refinement.py")
    numbers = sorted(volumes)
    poses = {numbers[0]: PlanarTransform.identity()}
    for before, n in pairwise(numbers):
        # linumpy's volumes are (z, y, x), linear, and 0 where there is nothing.
        fixed, moving = (np.nan_to_num(10 ** (volumes[k].T / 20)) for k in (before, n))
        at, _ = tools.find_best_z(fixed, moving[0], round((n - before) * section_planes), 10)
        one, two = (_between_percentiles(image) for image in (fixed[at], moving[0]))
        start = next(
            (
                off
                for off in (tools.gradient_magnitude_alignment(one, two), tools.centre_of_mass_offset(one, two))
                if np.hypot(*off) > 1.0
            ),
            None,
        )
        x, y, turn_deg, _ = tools.register_refinement(one, two, initial_offset=start)
        step = rigid_map(float(turn_deg), (float(x), float(y)), (one.shape[1] / 2, one.shape[0] / 2))
        last = poses[before]
        poses[n] = PlanarTransform(step.matrix @ last.matrix, step.points(last.offset))
    return poses


def _between_percentiles(image: NDArray[Any]) -> NDArray[np.float32]:
    """Return an image between its percentiles 5 and 95, as the script of linumpy does it."""
    low, high = np.percentile(image[image > 0], [5, 95])
    return np.clip((image.astype(np.float32) - low) / max(high - low, 1e-30), 0, 1)


def _module_from(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: expected a module of linumpy")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_sample(kind: str, seed: int, known: dict[str, Any], *, chain: bool, linumpy: Path | None) -> dict[str, Any]:
    """Return the figures of a sample; what takes long is measured where it is not in `known`, and put there."""
    sample = CutSample(benchmark_settings(kind, seed))
    truth, bad = Truth.of(sample), sample.settings.cutting.bad
    volumes = {}
    asked = ["edges", *(("chain 0.05", "chain 0") if chain else ()), *(("linumpy",) if linumpy else ())]
    if not set(asked) <= set(known):
        volumes = {n: sample.volume_db(n) for n in sample.slices}
    if "edges" not in known:
        cpu = time.process_time()
        edges = measured_edges(sample, volumes)
        known["edge_cpu_s"] = (time.process_time() - cpu) / len(edges)
        known["edges"] = [asdict(e) for e in edges]
    for way, pullback in (("chain 0.05", 0.05), ("chain 0", 0.0)):
        if chain and way not in known:
            known[way] = figures(chained(volumes, pullback), truth, bad)
    if linumpy and "linumpy" not in known:
        known["linumpy"] = figures(chained_by_linumpy(volumes, sample.section_planes, linumpy), truth, bad)
    edges = [_edge_from(facts["edge"]) for facts in known["edges"]]
    start = time.process_time()
    solution = solve_poses(sample.slices, edges, centre_px=sample.centre_px)
    solved = time.process_time() - start
    found = {n: pose.mapping(sample.centre_px) for n, pose in solution.poses.items()}
    place, _ = errors(found, truth)
    row: dict[str, Any] = {"set": kind, "seed": seed, "solve": figures(found, truth, bad)}
    stated = float(np.sqrt(np.mean([solution.poses[n].sigma_px ** 2 for n in place])))
    row["solve"]["error_over_stated"] = float(np.sqrt(np.mean(np.square(list(place.values()))))) / stated
    row["solve"]["edge_cpu_s"], row["solve"]["solve_cpu_s"] = known["edge_cpu_s"], solved
    row["none"] = figures({n: PlanarTransform.identity() for n in sample.slices}, truth, bad)
    log = {n: rigid_map(0.0, sample.cutting.log_px(n), sample.centre_px) for n in sample.slices}
    row["log"] = figures(log, truth, bad)
    return row | {way: known[way] for way in ("chain 0.05", "chain 0", "linumpy") if way in known}


def _edge_from(facts: Mapping[str, Any]) -> Edge:
    """Return an edge from JSON values."""
    return Edge(**{name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()})


def long_sample(seed: int, count: int, *, missing: int = 0) -> dict[str, Any]:
    """Return the errors of a long sample with a jump, from edges drawn at random; one in twenty is wrong.

    Of missing slices, one lies at the jump, and none beside another.
    """
    rng = np.random.default_rng([seed, 200])
    centre, about, lever = np.array([209.5, 189.5]), (215.0, 185.0), 115.0
    turns = rng.normal(0, 0.7, count)
    shifts = rng.uniform(-9, 9, (count, 2)) + np.where(np.arange(count) >= count // 2, 30.0, 0.0)[:, None]
    slots = np.random.default_rng([seed, 201]).permutation(np.arange(3, count - 2, 2))[: max(missing - 1, 0)]
    gone = {count // 2 + 1, *slots.tolist()} if missing else set()
    true = {n + 1: rigid_map(turns[n], shifts[n], centre) for n in range(count) if n + 1 not in gone}
    edges = []
    for i in true:
        for j in [n for n in true if 0 < n - i <= REACH]:
            sigma = 0.045 * (j - i)
            there = true[i].inverse()
            step = PlanarTransform(true[j].matrix @ there.matrix, true[j].points(there.offset))
            off = rng.normal(0, 20.0 if rng.random() < 0.05 else sigma, 3)
            shift = step.points(about) - about + off[1:]
            turn = step.rotation_deg + float(np.degrees(off[0] / lever))
            edges.append(Edge(i, j, turn, (float(shift[0]), float(shift[1])), 0.13 * (j - i), about, lever))
    start = time.process_time()
    solution = solve_poses(sorted(true), edges, centre_px=centre)
    cpu = time.process_time() - start
    grid = np.stack(np.meshgrid(np.arange(60, 360, 30.0), np.arange(60, 320, 30.0), indexing="ij"), -1).reshape(-1, 2)
    truth = Truth(true, grid)
    found = {n: pose.mapping(centre) for n, pose in solution.poses.items()}
    stated = float(np.sqrt(np.mean([pose.sigma_px**2 for pose in solution.poses.values()])))
    one = figures(found, truth, ())
    one["error_over_stated"] = one["rms_px"] / stated
    one["solve_cpu_s"] = cpu
    return {"set": f"{count} slices" + (f", {missing} missing" if missing else ""), "seed": seed, "solve": one}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(101, 109)))
    parser.add_argument("--sets", nargs="*", default=["m", "h"])
    parser.add_argument("--steps", type=int, default=200, help="slices of the long sample; 0: none")
    parser.add_argument("--chain", action="store_true", help="also the chain of earlier versions")
    parser.add_argument("--linumpy", type=Path, help="checkout of linumpy, to run its functions, too")
    parser.add_argument("--results", type=Path, help="folder that keeps what was measured")
    args = parser.parse_args()
    rows = []
    for kind in args.sets:
        for seed in args.seeds:
            file = None if args.results is None else args.results / f"{kind}-{seed}.json"
            known = json.loads(file.read_text()) if file is not None and file.exists() else {}
            try:
                rows.append(one_sample(kind, seed, known, chain=args.chain, linumpy=args.linumpy))
            finally:  # what took minutes is kept, whatever stopped the rest
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(known))
            _tell(rows[-1])
    if args.steps:
        for missing, seed in itertools.product((0, 5), args.seeds):
            rows.append(long_sample(seed, args.steps, missing=missing))
            _tell(rows[-1])
    print("\nover all seeds: median (worst)")
    for kind in dict.fromkeys(row["set"] for row in rows):
        chosen = [row for row in rows if row["set"] == kind]
        for way in [key for key in chosen[0] if key not in ("set", "seed")]:
            values = {name: [row[way][name] for row in chosen] for name in chosen[0][way]}
            known = {k: v for k, v in values.items() if not np.isnan(v).all()}
            text = "  ".join(f"{k} {np.nanmedian(v):.3f} ({np.nanmax(v):.3f})" for k, v in known.items())
            print(f"{kind} {way}: {text}")


def _tell(row: Mapping[str, Any]) -> None:
    for way, values in row.items():
        if isinstance(values, dict):
            text = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            print(f"{row['set']} seed {row['seed']} {way}: {text}", flush=True)


if __name__ == "__main__":
    main()
