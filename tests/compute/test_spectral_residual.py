"""Residuals of spectra: they give every count back, the same by compiled and plain code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from opticstream.compute import spectral_residual
from opticstream.compute.spectral_residual import counts_from_residual, residual_from_counts


@pytest.fixture(params=["plain", "compiled"])
def code(request, monkeypatch):
    monkeypatch.setattr(spectral_residual, "_COMPILED_FROM", 0 if request.param == "compiled" else 1 << 60)


def camera(a_lines=40, samples=96, *, smooth):
    """Return counts of a 12-bit camera; fringes of a smooth spectrum change little from sample to sample."""
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 40, (a_lines, samples))
    if smooth:
        noise = np.cumsum(rng.normal(0, 8, (a_lines, samples)), axis=1)
    return (2000 + np.linspace(0, 900, samples) + noise).clip(0, 4095).astype(np.uint16)


@pytest.mark.usefixtures("code")
class TestResidual:
    @settings(max_examples=60, deadline=None)
    @given(arrays.arrays(np.uint16, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)))
    def test_any_counts_come_back(self, counts):
        mean, differences, residual = residual_from_counts(counts)
        np.testing.assert_array_equal(counts_from_residual(residual, mean, differences), counts)

    @pytest.mark.parametrize("smooth", [False, True])
    def test_differences_are_taken_where_neighbouring_samples_are_alike(self, smooth):
        counts = camera(smooth=smooth)
        mean, differences, residual = residual_from_counts(counts)
        assert differences == smooth
        np.testing.assert_array_equal(counts_from_residual(residual, mean, differences), counts)
        np.testing.assert_allclose(mean, counts.mean(axis=0), atol=0.51)
        assert np.median(residual) < 100

    def test_the_input_is_unchanged(self):
        counts = camera(smooth=True)
        before = counts.copy()
        residual_from_counts(counts)
        np.testing.assert_array_equal(counts, before)


@pytest.mark.parametrize("smooth", [False, True])
def test_compiled_and_plain_code_give_the_same_numbers(monkeypatch, smooth):
    counts = camera(smooth=smooth)
    counts[3, :7] = 65535
    counts[4, 5:9] = 0
    found = []
    for limit in (0, 1 << 60):
        monkeypatch.setattr(spectral_residual, "_COMPILED_FROM", limit)
        found.append(residual_from_counts(counts))
    assert found[0][1] == found[1][1]
    for one, other in zip(found[0][::2], found[1][::2], strict=True):
        np.testing.assert_array_equal(one, other)
