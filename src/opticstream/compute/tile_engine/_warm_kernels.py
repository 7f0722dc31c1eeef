"""Kernels compiled, or loaded from numba's cache, before the first tile needs them."""

from __future__ import annotations

import contextlib
import functools

import numpy as np

from opticstream.compute.reconstruction import TileOptions, spectral_plan
from opticstream.compute.tile_engine._engine import TileEngine
from opticstream.model.modalities import volume_names
from opticstream.system.compiled import DISABLED
from opticstream.system.locks import locked
from opticstream.system.places import private_folder

_LONGEST_WAIT_S = 300.0
"""How long a process waits while another one compiles, before it does so itself, in seconds."""


@functools.cache
def warm_kernels() -> None:
    """Run a tile of a few A-lines through the engine, so that all that a large tile of spectra needs is in memory.

    The first time on a machine this compiles for a minute; later it loads what numba has cached, in a second.
    One process of an account compiles; others wait and load what it has made. A second call does nothing, also in a
    process that is forked from this one.
    """
    folder = None if DISABLED else private_folder()
    with contextlib.ExitStack() as stack:
        if folder is not None:
            with contextlib.suppress(OSError, TimeoutError):  # to compile twice costs time only
                stack.enter_context(locked(folder / "compiling.lock", timeout_s=_LONGEST_WAIT_S))
        if not DISABLED:
            _run_a_few_lines()


def _run_a_few_lines() -> None:
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
