"""The compiled loops of the surface as a smooth sheet, against those in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from opticstream.compute.reconstruction import SurfaceSheet


@pytest.mark.parametrize("known", [1.0, 0.4, 0.02])
def test_compiled_trends_and_rivals_are_those_of_numpy(known):
    rng = np.random.default_rng(4)
    around = (100 + 20 * rng.normal(size=(13, 30))).astype(np.float32)
    around[rng.random(around.shape) > known] = np.nan
    compiled = SurfaceSheet(a_lines=4, b_lines=4, compiled=True)
    plain = SurfaceSheet(a_lines=4, b_lines=4)
    for got, expected in zip(compiled._trend_and_count(around), plain._trend_and_count(around), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    response = rng.normal(size=(30, 77)).astype(np.float32)
    surface = rng.integers(0, 77, 30)
    np.testing.assert_array_equal(compiled._rivals(response, surface), plain._rivals(response, surface))
    np.testing.assert_array_equal(compiled._spread(response), plain._spread(response))
