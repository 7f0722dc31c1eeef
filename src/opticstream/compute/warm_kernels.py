"""Kernels compiled, or loaded from numba's cache, before the first tile needs them."""

from __future__ import annotations

import numpy as np

from opticstream.compute.spectral import spectral_plan
from opticstream.compute.tile_engine import TileEngine, TileOptions
from opticstream.model.modalities import volume_names


def warm_kernels() -> None:
    """Run a tile of a few A-lines through the engine, so that all that a large tile of spectra needs is in memory.

    The first time on a machine this compiles for half a minute; later it loads what numba has cached, in a second.
    """
    samples, a_lines, b_lines = 64, 5, 5
    plan = spectral_plan(samples=samples, cut=0)
    volumes = volume_names()
    engine = TileEngine(
        TileOptions(surface="robust", volumes=volumes),
        a_lines=a_lines,
        b_lines=b_lines,
        channels=2,
        depth=plan.depth,
        plan=plan,
        sink=lambda _first, _volumes: None,
    )
    counts = np.random.default_rng(0).integers(0, 4096, (b_lines, 2, a_lines, samples), dtype=np.uint16)
    engine.add_spectra(counts)
    engine.finish()
