"""Raw spectra to complex depth profiles: background, k-linearization, dispersion, Fourier transform.

`SpectralPlan` holds everything that is the same for all A-lines of a tile; `jones_from_spectra` is the plain NumPy
chain, which the compiled engine must reproduce.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.reconstruction._calibration import validated_positions

CUT_PER_PADDING = 24
"""Depth samples next to zero delay that are dropped by default, per unit of zero padding."""

WindowName = Literal["none", "hann", "gaussian"]


def spectral_window(name: WindowName, samples: int, /) -> NDArray[np.float64]:
    """Return a spectral window with maximum 1.

    `hann` is the symmetric Hann window; `gaussian` falls to exp(-2.5**2 / 2) = 0.044 at both ends.

    Examples
    --------
    >>> spectral_window("hann", 5).tolist()
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if name == "none":
        return np.ones(samples)
    if name == "hann":
        return np.hanning(samples)
    if name == "gaussian":
        return np.exp(-0.5 * (2.5 * np.linspace(-1, 1, samples)) ** 2)
    raise ValueError(f"window must be none, hann or gaussian, got {name!r}")


def depth_samples(samples: int, /, *, zero_padding: int = 1, cut: int | None = None) -> int:
    """Return the number of depth samples Z that `samples` spectral samples give.

    Examples
    --------
    >>> depth_samples(2048), depth_samples(512, zero_padding=2)
    (1000, 464)
    """
    cut = CUT_PER_PADDING * zero_padding if cut is None else cut
    depth = samples * zero_padding // 2 - cut
    if depth < 1:
        raise ValueError(f"cut = {cut} leaves no depth of {samples * zero_padding // 2} samples")
    return depth


def _per_channel(values: ArrayLike, channels: int, samples: int, what: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim == 1:
        array = array[np.newaxis]
    if array.shape[-1] != samples or array.ndim != 2 or array.shape[0] not in (1, channels):
        raise ValueError(
            f"{what} must have {samples} samples, for one or for all {channels} channels; got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{what} holds values that are not finite")
    return np.broadcast_to(array, (channels, samples))


Transform = Callable[[NDArray[np.complex64]], NDArray[np.complexfloating[Any, Any]]]
"""Fourier transform along the last axis, shape (n, length); from any library."""


@dataclass(frozen=True, slots=True, eq=False)
class SpectralPlan:
    """The processing of every spectrum of a tile; made by `spectral_plan`."""

    samples: int
    channels: int
    reversed_channels: tuple[int, ...]
    subtract_mean: bool
    reference: NDArray[np.float32] | None
    """Shape (channels, samples), in the camera's own read-out order."""
    positions: NDArray[np.float64] | None
    """Shape (channels, samples)."""
    residual_background: bool
    phasor: NDArray[np.complex64] | None
    """Window times exp(-1j phi), shape (channels, samples)."""
    zero_padding: int
    cut: int
    fft: Transform | None = None
    """The transform of another library; None: the fastest for the code that uses the plan."""

    @property
    def transform_length(self) -> int:
        return self.samples * self.zero_padding

    @property
    def depth(self) -> int:
        """Number of depth samples that come out."""
        return self.transform_length // 2 - self.cut


def spectral_plan(
    *,
    samples: int,
    channels: int = 2,
    flip_channel2: bool = True,
    background: Literal["mean", "none"] | ArrayLike = "mean",
    positions: ArrayLike | None = None,
    residual_background: bool = True,
    dispersion_rad: ArrayLike | None = None,
    window: WindowName = "none",
    zero_padding: int = 1,
    cut: int | None = None,
    fft: Transform | None = None,
) -> SpectralPlan:
    """Return the plan of a reconstruction.

    Parameters
    ----------
    samples, channels : int
        Spectral samples per A-line; polarization channels (1 or 2).
    flip_channel2 : bool
        The second channel is read out reversed.
    background : "mean", "none" or array_like, shape (samples,) or (channels, samples)
        What is subtracted from the counts: each B-line's own mean, nothing, or a recorded spectrum (counts, in the
        camera's read-out order).
    positions : array_like, shape (samples,) or (channels, samples), optional
        Fractional pixels that make the spectrum linear in wavenumber (see `positions_from_wavelengths`).
    residual_background : bool
        Subtract the median over the A-lines of a B-line after k-linearization.
    dispersion_rad : array_like, shape (samples,) or (channels, samples), optional
        Phase `phi` over the linear samples; the spectra are multiplied by exp(-1j phi).
    window, zero_padding, cut
        Spectral window; factor by which spectra are lengthened with zeros; depth samples dropped at zero delay.
    fft : callable, optional
        Another library's Fourier transform, for tiles of every size.

    Raises
    ------
    ValueError
        An option is impossible; the message names it and its value.

    Examples
    --------
    >>> spectral_plan(samples=512, zero_padding=2).depth
    464
    """
    if channels not in (1, 2):
        raise ValueError(f"channels must be 1 or 2, got {channels}")
    if zero_padding < 1:
        raise ValueError(f"zero_padding must be 1 or more, got {zero_padding}")
    cut = CUT_PER_PADDING * zero_padding if cut is None else cut
    depth_samples(samples, zero_padding=zero_padding, cut=cut)
    reference = None
    if not isinstance(background, str):
        reference = _per_channel(background, channels, samples, "the background spectrum").astype(np.float32)
    elif background not in ("mean", "none"):
        raise ValueError(f"background must be mean, none or a spectrum, got {background!r}")
    phasor = None
    if dispersion_rad is not None or window != "none":
        phi = np.zeros(samples) if dispersion_rad is None else np.asarray(dispersion_rad, dtype=np.float64)
        phi = _per_channel(phi, channels, samples, "the dispersion phase")
        phasor = (spectral_window(window, samples) * np.exp(-1j * phi)).astype(np.complex64)
    if positions is not None:
        rows = _per_channel(positions, channels, samples, "the positions")
        positions = np.stack([validated_positions(row, samples=samples) for row in rows])
    return SpectralPlan(
        samples=samples,
        channels=channels,
        reversed_channels=(1,) if flip_channel2 and channels == 2 else (),
        subtract_mean=isinstance(background, str) and background == "mean",
        reference=reference,
        positions=positions,
        residual_background=residual_background,
        phasor=phasor,
        zero_padding=zero_padding,
        cut=cut,
        fft=fft,
    )


def jones_from_spectra(spectra: NDArray[Any], plan: SpectralPlan, /) -> NDArray[np.complex64]:
    """Return the complex depth profiles of raw spectra.

    Parameters
    ----------
    spectra : ndarray, shape (B-lines, channels, A-lines, samples)
        Raw counts as on disk.
    plan : SpectralPlan
        Options, from `spectral_plan`.

    Returns
    -------
    ndarray of complex64, shape (channels, x, y, z)
        x = A-line, y = B-line, z = depth sample from `plan.cut` on; z lies contiguous in memory.

    Examples
    --------
    A mirror at bin 40 of a spectrum that is linear in wavenumber:

    >>> counts = 2000 + 100 * np.cos(2 * np.pi * 40 * np.arange(256) / 256)
    >>> plan = spectral_plan(samples=256, channels=1, background="none", residual_background=False)
    >>> jones = jones_from_spectra(counts.reshape(1, 1, 1, 256), plan)
    >>> jones.shape, int(abs(jones[0, 0, 0]).argmax()) + plan.cut
    ((1, 1, 1, 104), 40)
    """
    lines, channels, a_lines, samples = spectra.shape
    if (channels, samples) != (plan.channels, plan.samples):
        raise ValueError(
            f"spectra have {channels} channels of {samples} samples, the plan {plan.channels} of {plan.samples}"
        )
    jones = np.empty((channels, lines, a_lines, plan.depth), np.complex64)
    for c in range(channels):
        for line in range(lines):  # one B-line at a time stays in cache
            jones[c, line] = _profiles_from_b_line(spectra[line, c], plan, c)
    return jones.transpose(0, 2, 1, 3)


def median_over_lines(spectra: NDArray[np.float32], /) -> NDArray[np.float32]:
    """Return the median over the first axis of an (A-lines, samples) array.

    Sorting whole columns with vector instructions takes a fifth of the time of `numpy.median`.
    """
    columns = np.ascontiguousarray(spectra.T)
    columns.sort(axis=1)
    n = spectra.shape[0]
    middle: NDArray[np.float32] = columns[:, (n - 1) // 2] + columns[:, n // 2]
    middle *= np.float32(0.5)
    return middle


def _profiles_from_b_line(counts: NDArray[Any], plan: SpectralPlan, channel: int) -> NDArray[np.complex64]:
    spectra = counts.astype(np.float32)
    if plan.subtract_mean:
        spectra -= spectra.mean(axis=0, dtype=np.float64).astype(np.float32)
    elif plan.reference is not None:
        spectra -= plan.reference[channel]
    if channel in plan.reversed_channels:
        spectra = spectra[:, ::-1]
    if plan.positions is not None:
        position = plan.positions[channel]
        index = np.clip(np.floor(position), 0, plan.samples - 2).astype(np.intp)
        fraction = (position - index).astype(np.float32)
        left = spectra.take(index, axis=1)
        right = spectra.take(index + 1, axis=1)
        right -= left
        right *= fraction
        left += right
        spectra = left
    if plan.residual_background:
        spectra = spectra - median_over_lines(spectra)
    if plan.fft is not None:
        padded = np.zeros((len(spectra), plan.transform_length), np.complex64)
        padded[:, : plan.samples] = spectra if plan.phasor is None else spectra * plan.phasor[channel]
        profiles = plan.fft(padded)
    elif plan.phasor is not None:
        spectra = spectra * plan.phasor[channel]
        profiles = np.fft.fft(spectra, n=plan.transform_length, axis=1)
    else:  # real input: half the work, the same bins
        profiles = np.fft.rfft(spectra, n=plan.transform_length, axis=1)
    kept = profiles[:, plan.cut : plan.cut + plan.depth]
    return np.conj(kept, dtype=np.complex64)
