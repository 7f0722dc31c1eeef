"""Accuracy, time and memory of tile positions on synthetic PS-OCT-like tiles, ours beside three public tools.

    python benchmarks/stitch.py [--cases std10 hard10] [--peers ashlar m2stitch multiview-stitcher] [--repeat 3]
    python benchmarks/stitch.py --cases --tissues all --seeds 401 402 [--settings standard "10 %"] [--peers ashlar]

`--tissues` takes mosaics from a second generator, written without looking at the first nor at the code: six textures,
ragged tissue, an instrument's shading and pattern, correlated speckle. Errors are then counted over the largest group
of tiles that are connected by links with at least 0.3 tissue, after the median shift is removed; `outside` are the
other tiles, blank ones included. Seeds below 100 served while the code was written; report others. The run ends with
a table of the spread over all tissues and seeds, and `--out` holds all figures after every mosaic. With all peers a
mosaic takes minutes; what `--out` holds of the peers already is taken from there, ours is always run. `--peers` without
names runs ours alone.

Every tool runs as a process of its own (its imports count) on the same tiles with its best settings that we know; the
peers' environments are made from PyPI under build/peers. Errors are over tiles with tissue that touch
another such tile, after the mean shift is removed; blank tiles are compared with the true lattice of the stage, since
their own jitter cannot be seen.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from opticstream.compute.stitching import neighbour_pairs
from opticstream.testing.synthetic_mosaic import SyntheticMosaic, position_errors, synthetic_mosaic
from opticstream.testing.tissue_mosaic import TEXTURES, TissueMosaic, placement_errors, tissue_mosaic

ENVIRONMENTS = Path(__file__).parents[1] / "build" / "peers"
RUNNERS = Path(__file__).parent / "peers"
PEERS = ("ashlar", "m2stitch", "multiview-stitcher")
STANDARD: dict[str, Any] = {"tile_shape": (350, 350), "contrast": 0.33, "speckle": 0.5, "blank_fraction": 0.2}
CASES: dict[str, dict[str, Any]] = {
    "easy10": {**STANDARD, "columns": 10, "rows": 10, "contrast": 0.6},
    "std10": {**STANDARD, "columns": 10, "rows": 10},
    "easy20": {**STANDARD, "columns": 20, "rows": 20, "contrast": 0.6},
    "std20": {**STANDARD, "columns": 20, "rows": 20},
    "hard10": {**STANDARD, "columns": 10, "rows": 10, "contrast": 0.11, "speckle": 1.0, "blank_fraction": 0.5},
    "narrow10": {**STANDARD, "columns": 10, "rows": 10, "tile_shape": (200, 350)},
    "thin10": {**STANDARD, "columns": 10, "rows": 10, "overlap": 0.1},
    "row8": {**STANDARD, "columns": 8, "rows": 1, "blank_fraction": 0},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "standard": {},
    "20 x 20": {"columns": 20, "rows": 20},
    "10 %": {"overlap": 0.1, "jitter_px": 4.0},
    "white speckle": {"speckle_px": 0.0},
    "coarse speckle": {"speckle_px": 1.0},
    "easy": {"speckle": 0.125},
    "hard": {"speckle": 0.45, "contrast": 0.104},
    "uneven focus": {"defocus_px": 2.0},
    "turned": {"turn_deg": 0.5},
    "barrel": {"barrel_px": 1.0},
}


def second_map(mosaic: SyntheticMosaic, seed: int) -> np.ndarray:
    """Return another map of the same tiles, as retardance is beside intensity: other contrast, speckle of its own."""
    speckle = np.random.default_rng(seed).standard_exponential(mosaic.clean.shape, dtype=np.float32)
    contrast = 1 / mosaic.clean
    contrast[mosaic.blank] = mosaic.clean[mosaic.blank]
    return contrast * speckle


def peer_python(name: str) -> Path:
    """Return the interpreter of a peer's environment, made from PyPI where it is not there."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", name], check=True)
    return python


def timed(command: list[str]) -> tuple[float, float, str]:
    """Run a command; return wall seconds, processor seconds and what it said."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        said.seek(0)
        text = said.read().decode(errors="replace")
    return wall, usage.ru_utime + usage.ru_stime, text


def with_neighbour(mosaic: SyntheticMosaic) -> np.ndarray:
    """Return the tiles with tissue that share an edge with another one: of the others nobody can know the jitter."""
    pairs, _ = neighbour_pairs(mosaic.nominal_px, tile_shape=mosaic.tiles.shape[1:])
    linked = np.zeros(len(mosaic.blank), bool)
    linked[pairs[~mosaic.blank[pairs].any(axis=1)].ravel()] = True
    return linked


def figures(
    positions: np.ndarray, mosaic: SyntheticMosaic | TissueMosaic, uncertainty: list[list[float]] | None = None
) -> dict[str, float]:
    if isinstance(mosaic, TissueMosaic):
        return figures_of_tissue(positions, mosaic, uncertainty)
    tissue = with_neighbour(mosaic)
    error = position_errors(positions, mosaic.true_px, tissue)[tissue]
    told = {"rms_px": float(np.sqrt((error**2).mean())), "worst_px": float(error.max())}
    if mosaic.blank.any():
        off = positions - mosaic.lattice_px
        off -= off[tissue].mean(axis=0) - (mosaic.true_px - mosaic.lattice_px)[tissue].mean(axis=0)
        told["blank_px"] = float(np.hypot(*off[mosaic.blank].T).max())
    told["textured_px"] = worst_textured(positions, mosaic)
    return told


def figures_of_tissue(
    positions: np.ndarray, mosaic: TissueMosaic, uncertainty: list[list[float]] | None
) -> dict[str, float]:
    error = placement_errors(positions, mosaic)
    told = {"rms_px": float(np.sqrt((error**2).mean())), "worst_px": float(error.max())}
    off = positions - mosaic.true_px
    off -= np.median(off[mosaic.scored], axis=0)
    holding = mosaic.links[mosaic.link_tissue_fraction >= 0.3]
    between = off[holding[:, 1]] - off[holding[:, 0]]
    told["linked_px"] = float(np.sqrt((between**2).sum(axis=1).mean()))
    empty = mosaic.tissue_fraction < 0.01
    if empty.any():
        lattice = positions - mosaic.lattice_px
        lattice -= np.median(lattice[mosaic.scored], axis=0)
        told["blank_px"] = float(np.hypot(*lattice[empty].T).max())
    outside = ~mosaic.scored
    if outside.any():
        told["outside_px"] = float(np.hypot(*off[outside].T).max())
    if uncertainty is not None:
        ratio = off / np.array(uncertainty)
        told["error_over_stated"] = float(np.sqrt((ratio[mosaic.scored] ** 2).mean()))
        if outside.any():
            told["outside_over_stated"] = float(np.sqrt((ratio[outside] ** 2).mean()))
    return told


def worst_textured(positions: np.ndarray, mosaic: SyntheticMosaic, share: float = 0.5) -> float:
    """Return the worst error, relative to a neighbour, over pairs that share visible texture.

    Visible: the clean overlap's contrast, seen through the speckle, reaches a signal-to-noise ratio of `share` after
    smoothing by 2 px.
    """
    from scipy import ndimage

    size = np.array(mosaic.clean.shape[1:])
    pairs, _ = neighbour_pairs(mosaic.true_px, tile_shape=tuple(size))
    worst = 0.0
    for a, b in pairs:
        if mosaic.blank[a] or mosaic.blank[b]:
            continue
        step = np.rint(mosaic.true_px[b] - mosaic.true_px[a]).astype(int)
        low, high = np.maximum(step, 0), np.minimum(size, size + step)
        clean = np.log(mosaic.clean[a][low[0] : high[0], low[1] : high[1]])
        noisy = np.log(mosaic.tiles[a][low[0] : high[0], low[1] : high[1]] + 0.3)
        signal = ndimage.gaussian_filter(clean - ndimage.gaussian_filter(clean, 7), 2)
        noise = ndimage.gaussian_filter(noisy - ndimage.gaussian_filter(noisy, 7), 2)
        if signal.std() < share * noise.std():
            continue
        off = (positions[b] - positions[a]) - (mosaic.true_px[b] - mosaic.true_px[a])
        worst = max(worst, float(np.hypot(*off)))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=["easy10", "std10", "hard10"], choices=list(CASES))
    parser.add_argument("--tissues", nargs="*", default=[], choices=["all", *TEXTURES], metavar="TISSUE")
    parser.add_argument("--settings", nargs="*", default=["standard"], choices=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--seeds", nargs="*", type=int, default=[201, 202])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--second-map", action="store_true", help="tissues also with a second map of the same tiles")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=900)
    parser.add_argument("--out", type=Path)
    choices = parser.parse_args()
    choices.known = known_of_peers(choices.out)
    rows: list[dict[str, Any]] = []
    for case in choices.cases:
        mosaic = synthetic_mosaic(**CASES[case], seed=choices.seed)
        rows.append({"case": case, "tool": "nominal grid", **figures(mosaic.nominal_px, mosaic)})
        # Where one map leaves links faint, the stage looks at a second one.
        second = second_map(mosaic, choices.seed) if case.startswith("hard") else None
        rows += compared(case, mosaic, second, choices)
    for tissue in list(TEXTURES) if choices.tissues == ["all"] else choices.tissues:
        for setting in choices.settings:
            for seed in choices.seeds:
                tiles = tissue_mosaic(tissue, **SETTINGS[setting], with_second=choices.second_map, seed=seed)
                rows += compared(f"{tissue}, {setting}, {seed}", tiles, tiles.second, choices)
                keep(rows, choices)
    if choices.tissues:
        show_spread(rows)
    keep(rows, choices)


def known_of_peers(out: Path | None) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what an earlier run has kept of the peers, by case and tool; failures are tried again."""
    rows = json.loads(out.read_text()) if out and out.exists() else []
    return {(row["case"], row["tool"]): row for row in rows if row["tool"] in PEERS and "error" not in row}


def keep(rows: list[dict[str, Any]], choices: argparse.Namespace) -> None:
    """Write what was found so far, and what is known of cases to come."""
    if choices.out:
        found = {(row["case"], row["tool"]) for row in rows}
        to_come = [row for key, row in choices.known.items() if key not in found]
        choices.out.write_text(json.dumps([*rows, *to_come], indent=1) + "\n")


def compared(
    case: str, mosaic: SyntheticMosaic | TissueMosaic, second: np.ndarray | None, choices: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return one row for every tool that was given the tiles."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.save(folder / "tiles.npy", mosaic.tiles)
        task = {"nominal": mosaic.nominal_px.tolist(), "cells": mosaic.cells.tolist(), "margin": 16}
        (folder / "task.json").write_text(json.dumps(task))
        ours = ["opticstream"]
        if second is not None:
            np.save(folder / "second.npy", second)
            ours.append("opticstream two maps")
        for tool in (*ours, *choices.peers):
            if (case, tool) in choices.known:
                rows.append(choices.known[case, tool])
                show(rows[-1])
                continue
            python = sys.executable if tool in ours else str(peer_python(tool))
            runner = RUNNERS / f"run_{'opticstream' if tool in ours else tool.replace('-', '_')}.py"
            result = folder / f"{tool}.json"
            command = [python, str(runner), str(folder / "tiles.npy"), str(folder / "task.json"), str(result)]
            if tool == "opticstream two maps":
                command.append(str(folder / "second.npy"))
            runs = []
            for _ in range(choices.repeat if tool in ours else 1):
                result.unlink(missing_ok=True)
                runs.append(timed(["timeout", str(choices.timeout), *command]))
            row: dict[str, Any] = {
                "case": case,
                "tool": tool,
                "seconds": statistics.median(r[0] for r in runs),
                "cpu_s": statistics.median(r[1] for r in runs),
            }
            found: dict[str, Any] = {"error": runs[-1][2].strip()[-200:]}
            if result.exists():
                found = json.loads(result.read_text())
            row["peak_mb"] = found.get("peak_mb", float("nan"))
            if "positions" in found:
                row |= figures(np.array(found["positions"]), mosaic, found.get("uncertainty"))
            else:
                row["error"] = found["error"]
            rows.append(row)
            show(row)
    return rows


def show_spread(rows: list[dict[str, Any]]) -> None:
    """Print a table of the spread over all mosaics of the second generator, setting by setting and tool by tool."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["case"].count(", ") == 2:
            groups.setdefault((row["case"].split(", ")[1], row["tool"]), []).append(row)
    print(
        "\n| setting, tool | mosaics | RMS px, median (range) | worst px, median (range) | worst below 1 px "
        "| error over stated, scored; outside | processor s |\n|---|---|---|---|---|---|---|"
    )
    for (setting, tool), every in groups.items():
        some = [row for row in every if "linked_px" in row]
        if not some:
            print(f"| {setting}, {tool} | 0 of {len(every)} | | | | | |")
            continue
        below = sum(row["worst_px"] < 1 for row in some)
        rms, worst, scored, outside, cpu = (
            spread(some, name) for name in ("rms_px", "worst_px", "error_over_stated", "outside_over_stated", "cpu_s")
        )
        print(
            f"| {setting}, {tool} | {len(some)} of {len(every)} | {rms} | {worst} | {below} of {len(some)} "
            f"| {scored}; {outside} | {cpu} |"
        )


def spread(rows: list[dict[str, Any]], name: str) -> str:
    """Return median and range of a figure, or a dash where no row has it."""
    values = sorted(row[name] for row in rows if name in row)
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})" if values else "-"


def show(row: dict[str, Any]) -> None:
    if "error" in row:
        print(f"{row['case']:9s} {row['tool']:19s} failed: {row['error'][-120:]!r}", flush=True)
        return
    further = {"blank_px": "blank", "textured_px": "textured", "linked_px": "linked", "error_over_stated": "ratio"}
    further |= {"outside_px": "outside", "outside_over_stated": "ratio there"}
    more = "".join(f" {name} {row[key]:.2f}" for key, name in further.items() if key in row)
    print(
        f"{row['case']:9s} {row['tool']:20s} RMS {row['rms_px']:.2f} worst {row['worst_px']:.2f}{more} px, "
        f"{row['seconds']:.1f} s ({row['cpu_s']:.1f} CPU), {row['peak_mb']:.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
