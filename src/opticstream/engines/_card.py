"""Look whether this host has a graphics card that can make tiles."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.array_engine import ArrayDevice, ArrayEngine, CupyCard, HostDevice
from opticstream.compute.reconstruction import TileOptions, spectral_plan, window_mean
from opticstream.model.errors import CardError

_TEST_DB = 0.01


@functools.lru_cache(maxsize=1)
def why_no_card() -> str:
    """Return why this process cannot use a graphics card; empty where it can. It is tried once."""
    try:
        check_card()
    except CardError as error:
        return str(error)
    return ""


def check_card() -> str:
    """Make a very small tile on the card, and return the name of the card and its free memory.

    Raises
    ------
    CardError
        There is no card that can be used.
    """
    card = CupyCard()
    free = card.free_bytes
    on_host, on_card = (_test_tile(device) for device in (HostDevice(np), card))
    card.release()
    apart = float(np.abs(on_host - on_card).max())
    if not apart < _TEST_DB:
        raise CardError(f"{card.name}: the mean intensity of a test tile differs by {apart:.3g} dB from ours")
    return f"{card.name}, {free / 1e9:.1f} GB free"


def _test_tile(device: ArrayDevice) -> NDArray[np.float32]:
    """Return the mean intensity of a small tile, which needs a Fourier transform and every kind of kernel."""
    a_lines, b_lines, samples = 8, 4, 128
    plan = spectral_plan(samples=samples, dispersion_rad=np.linspace(0, 3, samples) ** 2)
    maps = {"aip": lambda source: window_mean(source.in_window.intensity_db, source.window.valid)}
    engine = ArrayEngine(
        TileOptions(maps=("aip",), functions=maps, depth=20),
        a_lines=a_lines,
        b_lines=b_lines,
        channels=2,
        depth=plan.depth,
        cut=plan.cut,
        plan=plan,
        device=device,
    )
    rng = np.random.default_rng(0)
    engine.add_spectra(rng.integers(0, 4096, (b_lines, 2, a_lines, samples), dtype=np.uint16))
    return engine.finish()["aip"]
