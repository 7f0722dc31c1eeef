"""The compiled loops of the surface as a smooth sheet, against those in NumPy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from opticstream.compute.reconstruction import SurfaceSheet
from opticstream.compute.reconstruction._robust_surface import cell_means


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


def test_the_surface_does_not_depend_on_how_many_rows_of_cells_come_at_a_time():
    random = np.random.default_rng(0)
    x, y = np.mgrid[:40, :120]
    true = 40 + 10 * np.sin(x / 15) + 15 * np.cos(y / 20)
    tile = (40 + 6 * random.normal(size=(40, 120, 120))).astype(np.float32)
    tile[np.arange(120) >= true[..., np.newaxis]] += 14
    tile[4:12, 88:96, 10:15] += 40  # a bubble, far from the first rows
    cells = cell_means(np.ascontiguousarray(cell_means(tile).swapaxes(0, 1)))
    found = []
    for rows in (1, 4, len(cells)):
        sheet = SurfaceSheet(a_lines=40, b_lines=120)
        for first in range(0, len(cells), rows):
            sheet.add(cells[first : first + rows])
        found.append(sheet.lines(0, 120)[0])
    assert np.abs(found[1] - found[0]).max() < 0.1
    assert np.abs(found[2] - found[0]).max() < 0.1
    assert np.sqrt(np.mean((found[0] - true) ** 2)) < 1.5


@pytest.mark.parametrize("compiled", [False, True])
def test_the_surface_is_the_same_to_the_bit_on_one_thread_and_on_several(compiled):
    cells = (40 + 6 * np.random.default_rng(1).normal(size=(22, 9, 90))).astype(np.float32)
    cells[..., 50:] += 15
    found = []
    with ThreadPoolExecutor(3) as pool:
        for executor in (None, pool):
            sheet = SurfaceSheet(a_lines=35, b_lines=87, compiled=compiled, executor=executor)
            for first in range(0, 22, 8):
                sheet.add(cells[first : first + 8])
            found.append(sheet.lines(0, 87))
    for one, several in zip(*found, strict=True):
        np.testing.assert_array_equal(one, several)
