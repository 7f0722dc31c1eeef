"""Which estimators come nearest to the truth: surface, birefringence, axis, retardance over signal and birefringence.

    python benchmarks/estimators.py [--seeds 3] [--size 48] [--picture FILE.png] [--json FILE]

Tiles of the phantom (uniform white matter in the plane, vessels, speckle, shot and intensity noise, 12-bit counts) are
simulated for a range of signal levels and birefringences and reconstructed once; every method then works on the same
complex profiles and the same surface. Errors are medians over all pixels and seeds: of birefringence relative to the
truth, of the axis in degrees, of retardance in degrees against what a noise-free instrument would measure over the same
window. The surfaces are compared on tiles twice as wide, with bubbles and with grey and white matter.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from opticstream.config import ProcessingSettings
from opticstream.sim.validate import axial_difference_deg
from opticstream.stages.tile import arrays_from_jones, options_from_settings
from opticstream.testing.tile_phantom import (
    TilePhantom,
    one_tile_config,
    tile_from_phantom,
    uniform_white_matter,
    vessels_and_bubbles,
)

SIGNALS_DB = (-36.0, -44.0, -52.0, -60.0)
"""Power that one depth sample returns, against the reference arm; -36 is the demo's."""
BIREFRINGENCES = (1e-4, 2e-4, 4e-4, 7e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3)
METHODS = {
    "biref": ("stokes", "slope", "unwrap"),
    "ori": ("stokes", "mean", "histogram"),
    "ret": ("stokes", "mean"),
}
SETTINGS = {"biref": "birefringence_method", "ori": "orientation_method", "ret": "retardance_method"}
TITLES = {"biref": "birefringence, % of the truth", "ori": "axis, degrees", "ret": "retardance, degrees"}
SURFACES = ("robust", "gradient", "gradient_threshold")
FIRST_SEED = 201


def made(tile: TilePhantom, config: Any, modality: str, **enface: Any) -> np.ndarray:
    """Return one map of a tile, made as the settings say."""
    settings = config.processing.enface.model_copy(update={"modalities": (modality,), **enface})
    processing: ProcessingSettings = config.processing.model_copy(update={"enface": settings})
    return arrays_from_jones(tile.jones, options_from_settings(config.scan, processing)).maps[modality]


def estimator_errors(size: int, seeds: int) -> list[dict[str, Any]]:
    config = one_tile_config(a_lines=size, b_lines=size)
    rows = []
    for signal_db in SIGNALS_DB:
        for birefringence in BIREFRINGENCES:
            errors: dict[tuple[str, str], list[np.ndarray]] = {}
            for seed in range(FIRST_SEED, FIRST_SEED + seeds):
                tile = tile_from_phantom(
                    config, uniform_white_matter(birefringence, scattering_db=signal_db, seed=seed)
                )
                for modality, methods in METHODS.items():
                    for method in methods:
                        found = made(tile, config, modality, surface="robust", **{SETTINGS[modality]: method})
                        errors.setdefault((modality, method), []).append(error(modality, found, tile)[tile.white])
            rows.append(
                {
                    "signal_db": signal_db,
                    "birefringence": birefringence,
                    "median": {
                        f"{modality}/{method}": float(np.nanmedian(np.concatenate(parts)))
                        for (modality, method), parts in errors.items()
                    },
                }
            )
            print(f"{signal_db:5.0f} dB, {birefringence:.1e}: " + shown(rows[-1]["median"]), flush=True)
    return rows


def error(modality: str, found: np.ndarray, tile: TilePhantom) -> np.ndarray:
    match modality:
        case "biref":
            truth = tile.truth["apparent_birefringence"]
            return 100 * np.abs(found - truth) / truth
        case "ori":
            return np.abs(axial_difference_deg(found, tile.truth["apparent_orientation"]))
        case _:
            return np.abs(found - tile.truth["visible_retardance"])


def shown(median: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in median.items())


def surface_errors(size: int, seeds: int) -> list[dict[str, Any]]:
    config = one_tile_config(a_lines=size, b_lines=size)
    rows = []
    for signal_db in SIGNALS_DB:
        row: dict[str, Any] = {"signal_db": signal_db}
        tiles = [
            tile_from_phantom(config, vessels_and_bubbles(bubbles_per_mm2=5.0, scattering_db=signal_db, seed=seed))
            for seed in range(FIRST_SEED, FIRST_SEED + seeds)
        ]
        for method in SURFACES:
            maps = [made(t, config, "surf", surface=method) for t in tiles]
            off = np.concatenate([np.abs(m - t.surface)[t.tissue] for m, t in zip(maps, tiles, strict=True)])
            row[method] = [float(v) for v in np.percentile(off, [50, 95])]
        rows.append(row)
        print(f"{signal_db:5.0f} dB, surface (median, 95 %): " + str({m: np.round(row[m], 2) for m in SURFACES}))
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw one curve a method: error over birefringence, one column a signal level, one row a quantity."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(METHODS), len(SIGNALS_DB), figsize=(13, 8.5), sharex=True, sharey="row")
    colours = {"stokes": "C3", "slope": "C0", "mean": "C0", "unwrap": "C2", "histogram": "C1"}
    for row, (modality, methods) in zip(axes, METHODS.items(), strict=True):
        for panel, signal_db in zip(row, SIGNALS_DB, strict=True):
            these = [r for r in rows if r["signal_db"] == signal_db]
            for method in methods:
                values = [r["median"][f"{modality}/{method}"] for r in these]
                panel.loglog(
                    [r["birefringence"] for r in these], values, "o-", ms=3, color=colours[method], label=method
                )
            panel.grid(True, which="major", alpha=0.3)
            if modality == "biref":
                panel.set_title(f"signal {signal_db:.0f} dB")
            if modality == "ret":
                panel.set_xlabel("birefringence")
        row[0].set_ylabel(f"{TITLES[modality]}\n(median error)")
        row[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="phantoms for each point")
    parser.add_argument("--size", type=int, default=48, help="A-lines and B-lines of a tile")
    parser.add_argument("--picture", type=Path, help="draw the curves into this PNG file")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN columns where a method has nothing to say
    rows = estimator_errors(options.size, options.seeds)
    surfaces = surface_errors(2 * options.size, options.seeds)  # bubbles are large
    if options.picture:
        draw(rows, options.picture)
    if options.json:
        options.json.write_text(json.dumps({"estimators": rows, "surfaces": surfaces}, indent=1))


if __name__ == "__main__":
    main()
