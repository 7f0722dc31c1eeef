"""Sections of the report: through the tissue, wherever it lies in the stack, and without what is empty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opticstream.io.zarr import SliceStore, section_through
from opticstream.stages.sample._report import _middle_of_tissue, _without_empty_ends


def test_a_section_passes_through_the_middle_of_the_tissue_and_shows_nothing_empty(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(160), np.arange(120), indexing="ij")
    inside = np.hypot(x - 110, y - 70) < 35
    image = np.where(inside, 60 + 5 * np.sin(x / 7), 20) + np.random.default_rng(1).normal(size=x.shape)
    store = SliceStore(tmp_path / "s.ome.zarr", 4, (10.0, 10.0, 50.0), margin_px=64)
    store.put(0, (160, 120), lambda xs, ys: np.repeat(image[xs, ys][:, :, None], 4, axis=2).astype(np.float32))
    at = _middle_of_tissue(store.path)
    size = store.canvas().size
    assert at[0] * size[0] - 64 == pytest.approx(110, abs=6)
    assert at[1] * size[1] - 64 == pytest.approx(70, abs=6)
    section = _without_empty_ends(section_through(store.path, "x", at))
    assert section.plane.shape == (160, 4)
    assert section.size_um == pytest.approx((1600, 200))
    assert section.plane[110, 0] > 50 > section.plane[10, 0]
