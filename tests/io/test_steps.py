"""Numbers as whole steps of 16 bits: the same by compiled code and by NumPy, and within half a step of the values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from opticstream.io import steps
from opticstream.io.steps import LARGEST, steps_from_planes, values_from_steps

SLOPE, MIDDLE = 0.005, 90.0


@pytest.fixture(params=["compiled", "NumPy"])
def _engine(request, monkeypatch):
    monkeypatch.setattr(steps, "_COMPILED_FROM", 0 if request.param == "compiled" else 1 << 62)


BLOCKS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=3, max_dims=3, max_side=5),
    elements=st.floats(-(2.0**20), 2.0**20, width=32),
)


@pytest.mark.usefixtures("_engine")
class TestSteps:
    @settings(deadline=None)  # the first example compiles
    @given(BLOCKS, st.integers(0, 4), st.integers(1, 6))
    def test_integers_are_those_of_the_formula(self, lines, first, count):
        found = steps_from_planes(lines, first, count, slope=SLOPE, intercept=MIDDLE)
        wanted = np.rint((lines - np.float32(MIDDLE)) * np.float32(1 / SLOPE)).clip(-LARGEST, LARGEST)
        assert found.dtype == np.int16
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, wanted.transpose(1, 0, 2)[first : first + count])

    def test_values_come_back_within_half_a_step(self):
        lines = np.random.default_rng(1).uniform(-70, 250, (4, 9, 11)).astype(np.float32)
        integers = steps_from_planes(lines, 0, 9, slope=SLOPE, intercept=MIDDLE)
        for plane, line in zip(integers, lines.transpose(1, 0, 2), strict=True):
            out = np.empty(plane.shape, np.float32)
            values_from_steps(plane, slope=np.float32(SLOPE), intercept=np.float32(MIDDLE), out=out)
            np.testing.assert_allclose(out, line, rtol=0, atol=SLOPE / 2 * 1.01)

    def test_blocks_that_do_not_lie_in_one_piece_give_the_same(self):
        lines = np.random.default_rng(2).normal(90, 20, (6, 8, 10)).astype(np.float32)
        spread = np.empty((6, 8, 20), np.float32)[:, :, ::2]
        spread[:] = lines
        for one in (lines, spread):
            found = steps_from_planes(one, 2, 3, slope=SLOPE, intercept=MIDDLE)
            np.testing.assert_array_equal(found, steps_from_planes(lines, 0, 8, slope=SLOPE, intercept=MIDDLE)[2:5])


def test_compiled_values_are_those_of_numpy():
    integers = np.random.default_rng(3).integers(-LARGEST, LARGEST, (300, 300)).astype(np.int16)
    compiled, plain = np.empty(integers.shape, np.float32), np.empty(integers.shape, np.float32)
    values_from_steps(integers, slope=np.float32(SLOPE), intercept=np.float32(MIDDLE), out=compiled)
    for row, out in zip(integers, plain, strict=True):  # too small for compiled code
        values_from_steps(row[None], slope=np.float32(SLOPE), intercept=np.float32(MIDDLE), out=out[None])
    np.testing.assert_array_equal(compiled, plain)
