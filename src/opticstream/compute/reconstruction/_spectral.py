"""Raw spectra to complex depth profiles: background, k-linearization, dispersion, Fourier transform.

`SpectralPlan` holds everything that is the same for all A-lines of a tile; `jones_from_spectra` is the plain chain in
NumPy, which the compiled engine must reproduce. It is made of `profiles_from_spectra`, for arrays of any library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.arrays import library_of
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
        tables = spectral_tables(plan, c)
        for line in range(lines):  # one B-line at a time stays in cache
            jones[c, line] = profiles_from_spectra(spectra[line, c], plan, tables)
    return jones.transpose(0, 2, 1, 3)


def counts_to_work_on(counts: NDArray[Any], /) -> NDArray[Any]:
    """Return counts as uint16 or float32, in the byte order of this machine and contiguous."""
    if counts.dtype not in (np.uint16, np.float32) or not counts.dtype.isnative:
        counts = counts.astype(np.uint16 if counts.dtype.kind == "u" and counts.dtype.itemsize <= 2 else np.float32)
    return np.ascontiguousarray(counts)


@dataclass(frozen=True, slots=True, eq=False)
class SpectralTables:
    """What `profiles_from_spectra` needs of a plan for one channel, as arrays of one library."""

    is_reversed: bool
    reference: Any
    """Shape (samples,), or None."""
    left: Any
    """Recorded samples on the left of the wanted positions, shape (samples,), or None: taken as they are."""
    right: Any
    fraction: Any
    """Position between left and right, 0..1, and beyond where the spectrum is extrapolated."""
    phasor: Any
    """Shape (samples,), or None."""


def spectral_tables(plan: SpectralPlan, channel: int, /, *, xp: Any = np) -> SpectralTables:
    """Return the tables of one channel, as arrays of the library `xp`."""

    def known(values: NDArray[Any] | None) -> Any:
        return None if values is None else xp.asarray(np.ascontiguousarray(values[channel]))

    left = right = fraction = None
    if plan.positions is not None:
        position = plan.positions[channel]
        index = np.clip(np.floor(position), 0, plan.samples - 2).astype(np.int64)
        left, right = xp.asarray(index), xp.asarray(index + 1)
        fraction = xp.asarray((position - index).astype(np.float32))
    is_reversed = channel in plan.reversed_channels
    return SpectralTables(is_reversed, known(plan.reference), left, right, fraction, known(plan.phasor))


def median_over_lines(spectra: Any, /) -> Any:
    """Return the median over the A-lines of arrays (..., A-lines, samples) as (..., 1, samples).

    In NumPy, sorting whole columns with vector instructions takes a fifth of the time of `numpy.median`. Elsewhere see
    `median_by_halving`.
    """
    if not isinstance(spectra, np.ndarray):
        return median_by_halving(spectra)
    columns = np.ascontiguousarray(spectra.swapaxes(-1, -2))
    columns.sort(axis=-1)
    n = spectra.shape[-2]
    middle = columns[..., (n - 1) // 2] + columns[..., n // 2]
    middle *= np.float32(0.5)
    return middle[..., np.newaxis, :]


_HALVINGS = 20


def median_by_halving(spectra: Any, /) -> Any:
    """Return the same as `median_over_lines` by counting, as sorting is slow on graphics cards.

    A median lies within one standard deviation of the mean. This interval, a little wider, is halved twenty times
    around the value that half of the samples do not exceed; the largest sample in it, and the next one, are the median.
    Samples that lie closer together than two millionths of the standard deviation may be taken for each other.

    Examples
    --------
    >>> median_by_halving(np.float32([[1, 9], [2, 8], [4, 0], [30, 7]]))
    array([[3. , 7.5]], dtype=float32)
    """
    xp = library_of(spectra)
    n = spectra.shape[-2]
    rank = (n - 1) // 2 + 1  # of the lower of the two in the middle, from 1
    mean = xp.mean(spectra, axis=-2, keepdims=True)
    reach = 1.001 * xp.std(spectra, axis=-2, keepdims=True) + 1e-4 * xp.abs(mean)  # sums are rounded
    low, high = mean - reach, mean + reach
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        enough = xp.count_nonzero(spectra <= middle, axis=-2, keepdims=True) >= rank
        low, high = xp.where(enough, low, middle), xp.where(enough, middle, high)
    below = spectra <= high
    lower = xp.max(xp.where(below, spectra, -np.inf), axis=-2, keepdims=True)
    if n % 2:
        return lower
    following = xp.min(xp.where(below, np.inf, spectra), axis=-2, keepdims=True)
    more = xp.count_nonzero(below, axis=-2, keepdims=True) > rank
    return 0.5 * (lower + xp.where(more, lower, following))


def profiles_from_spectra(counts: Any, plan: SpectralPlan, tables: SpectralTables, /) -> Any:
    """Return the complex depth profiles of raw spectra of one channel.

    Parameters
    ----------
    counts : array of any library, shape (..., A-lines, samples)
        Raw counts as on disk; the A-lines of a B-line together.
    plan : SpectralPlan
        Options.
    tables : SpectralTables
        Those of the channel, as arrays of the same library.

    Returns
    -------
    array of complex64, shape (..., A-lines, z)
        Depth samples from `plan.cut` on.
    """
    xp = library_of(counts)
    spectra = xp.astype(counts, xp.float32)
    if plan.subtract_mean:
        mean = xp.sum(spectra, axis=-2, keepdims=True, dtype=xp.float64) / spectra.shape[-2]
        spectra -= xp.astype(mean, xp.float32)
    elif tables.reference is not None:
        spectra -= tables.reference
    if tables.is_reversed:
        spectra = spectra[..., ::-1]
    if tables.left is not None:
        recorded, spectra = spectra, xp.take(spectra, tables.left, axis=-1)
        slope = xp.take(recorded, tables.right, axis=-1)
        slope -= spectra
        slope *= tables.fraction
        spectra += slope
    if plan.residual_background:
        spectra = spectra - median_over_lines(spectra)
    length = plan.transform_length
    if plan.fft is not None:
        padded = np.zeros((len(spectra), length), np.complex64)
        padded[:, : plan.samples] = spectra if tables.phasor is None else spectra * tables.phasor
        profiles = plan.fft(padded)
    elif tables.phasor is not None:
        profiles = xp.fft.fft(spectra * tables.phasor, n=length, axis=-1)
    else:  # real input: half the work, the same bins
        profiles = xp.fft.rfft(spectra, n=length, axis=-1)
    kept = profiles[..., plan.cut : plan.cut + plan.depth]
    return xp.astype(xp.conj(kept), xp.complex64, copy=False)
