"""Fourier transform and median of vectors of A-lines, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from opticstream.compute.lanes import (
    LANES,
    SPARE,
    median_of,
    profile_of_strip,
    radices_of,
    split_of,
    split_rows,
    split_twiddles_of,
    transform_lanes,
    twiddles_of,
)


@pytest.mark.parametrize("length", [32, 64, 96, 128, 160, 192, 240, 256, 512, 640, 1000, 1024, 1152, 2048])
def test_the_transform_agrees_with_numpy(length):
    rng = np.random.default_rng(length)
    lines = rng.normal(size=(LANES, length)) + 1j * rng.normal(size=(LANES, length))
    radices = radices_of(length)
    a = np.stack([lines.real.T, lines.imag.T], axis=1).astype(np.float32).ravel()
    out = np.zeros(length * LANES, np.float32)
    transform_lanes(a, np.zeros_like(a), out, np.array(radices), twiddles_of(radices))
    got = out.reshape(-1, 2, LANES)
    expected = np.conj(np.fft.fft(lines, axis=1)[:, : length // 2]).T
    np.testing.assert_allclose(got[:, 0] + 1j * got[:, 1], expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("length", "samples"), [(512, 512), (1024, 700), (2048, 2048), (4096, 2048), (4096, 4000)])
def test_the_transform_in_two_steps_agrees_with_numpy(length, samples):
    rng = np.random.default_rng(length)
    spectra = rng.normal(size=(LANES, samples)).astype(np.float32)
    phasor = np.exp(2j * np.pi * rng.random(samples))
    assert split_of(length) == length // 64
    out = np.zeros(length * LANES, np.float32)
    profile_of_strip(
        spectra.T.ravel().copy(),
        phasor.real.astype(np.float32),
        phasor.imag.astype(np.float32),
        np.zeros(split_rows(length) * 2 * LANES, np.float32),
        split_twiddles_of(length),
        out,
    )
    got = out.reshape(-1, 2, LANES)
    expected = np.conj(np.fft.fft(spectra * phasor, length, axis=1)[:, : length // 2]).T
    np.testing.assert_allclose(got[:, 0] + 1j * got[:, 1], expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 96, 351])
@pytest.mark.parametrize("kind", ["normal", "integers", "heavy tails", "constant", "two values", "far off"])
def test_the_median_is_numpys_to_the_last_bit(n, kind):
    rng = np.random.default_rng(n)
    for _ in range(20):
        values = {
            "normal": rng.normal(size=n),
            "integers": np.round(rng.normal(size=n) * 2),
            "heavy tails": np.exp(5 * rng.normal(size=n)),
            "constant": np.full(n, 7.0),
            "two values": rng.choice([-1.0, 5.0], n),
            "far off": 1e6 + rng.normal(size=n),
        }[kind].astype(np.float32)
        padded = np.full(-(-n // LANES) * LANES, np.inf, np.float32)
        padded[:n] = values
        for mean, scale in (
            (values.mean(), values.std()),
            (np.float32(0), np.float32(0)),
            (np.float32(50), np.float32(9)),
        ):
            assert median_of(padded, n, np.float32(mean), np.float32(scale), np.zeros(SPARE, np.float32)) == np.median(
                values
            )
