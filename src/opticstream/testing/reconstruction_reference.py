"""The chain from spectra to maps once more, in float64, one A-line after the other, straight from the formulas.

It shares no code with `opticstream.compute` and is slow on purpose: where both agree, two programs agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import interp1d
from scipy.ndimage import gaussian_filter1d, median_filter

EPS32 = np.finfo(np.float32).eps


def k_linear_interpolators(
    wavelengths: NDArray[np.float64],
) -> list[Callable[[NDArray[Any]], NDArray[Any]]]:
    """Return one function per channel that resamples spectra (..., samples) onto the common k-linear grid."""
    samples = wavelengths.shape[1]
    k_min = 2 * np.pi / min(w[-1] for w in wavelengths)
    k_max = 2 * np.pi / max(w[0] for w in wavelengths)
    target = 2 * np.pi / np.linspace(k_max, k_min, samples)

    def resampler(grid: NDArray[np.float64]) -> Callable[[NDArray[Any]], NDArray[Any]]:
        return lambda spectra: interp1d(grid, spectra, axis=-1, fill_value="extrapolate")(target)

    return [resampler(w) for w in wavelengths]


def jones_reference(
    counts: NDArray[Any],
    *,
    resample: list[Callable[[NDArray[Any]], NDArray[Any]]] | None = None,
    dispersion: NDArray[np.float64] | None = None,
    window: NDArray[np.float64] | None = None,
    flip_channel2: bool = True,
    background: str | NDArray[np.float64] = "mean",
    residual_background: bool = True,
    zero_padding: int = 1,
    cut: int | None = None,
) -> NDArray[np.complex128]:
    """Return J, shape (channels, x, y, z), of counts (B-lines, channels, A-lines, samples)."""
    b_lines, channels, a_lines, samples = counts.shape
    cut = 24 * zero_padding if cut is None else cut
    half = samples * zero_padding // 2
    out = np.empty((channels, a_lines, b_lines, half - cut), np.complex128)
    for b in range(b_lines):
        for c in range(channels):
            s = counts[b, c].astype(np.float64)
            if isinstance(background, str):
                if background == "mean":
                    s = s - s.mean(axis=0)
            else:
                s = s - background[c]
            if c == 1 and flip_channel2:
                s = s[:, ::-1]
            if resample is not None:
                s = resample[c](s)
            if residual_background:
                s = s - np.median(s, axis=0)
            if window is not None:
                s = s * window
            phi = np.zeros(samples) if dispersion is None else dispersion[c]
            profile = np.fft.fft(s * np.exp(-1j * phi), samples * zero_padding, axis=1)
            out[c, :, b] = np.conj(profile[:, cut:half])
    return out


def volumes_reference(
    jones: NDArray[np.complex128], *, phase_offset_deg: float = 100.0, flip_phase: bool = False
) -> dict[str, NDArray[np.float64]]:
    """Return dBI, R3D and O3D."""
    power = (np.abs(jones) ** 2).sum(axis=0)
    volumes = {"dBI": 10 * np.log10(np.maximum(power, EPS32))}
    if len(jones) == 2:
        volumes["R3D"] = np.degrees(np.arctan(np.abs(jones[0]) / np.maximum(np.abs(jones[1]), EPS32)))
        phi = np.angle(jones[0]) - np.angle(jones[1])
        phi = (-phi if flip_phase else phi) + 2 * np.radians(phase_offset_deg)
        phi = np.angle(np.exp(1j * phi))
        volumes["O3D"] = np.degrees(phi / 2)
    return volumes


def surface_reference(
    intensity_db: NDArray[Any], *, threshold_db: float | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the unfiltered and the filtered surface of method `gradient` (or `gradient_threshold`)."""
    smooth = gaussian_filter1d(intensity_db.astype(np.float64), 5, axis=-1, mode="nearest", truncate=4)
    x, y, depth = intensity_db.shape
    raw = np.zeros((x, y))
    for i in range(x):
        for j in range(y):
            line = intensity_db[i, j]
            if (line > 0).sum() < 10:
                continue
            if threshold_db is not None and line[:20].mean() >= threshold_db:
                raw[i, j] = np.flatnonzero(line >= threshold_db)[0]
                continue
            rise = [smooth[i, j, z : z + 5].mean() - smooth[i, j, z - 5 : z].mean() for z in range(5, depth - 4)]
            raw[i, j] = 5 + int(np.argmax(rise))
    return raw, median_filter(raw, size=3, mode="reflect")


def maps_reference(
    volumes: dict[str, NDArray[Any]],
    surface: NDArray[Any],
    *,
    offset: int = 0,
    depth: int = 80,
    z_um: float = 2.5,
    wavelength_um: float = 1.3,
) -> dict[str, NDArray[np.float64]]:
    """Return aip, mip, ret, ori (mean and histogram) and biref (slope)."""
    x, y, n = volumes["dBI"].shape
    names = ["aip", "mip"] + (["ret", "ori", "ori_histogram", "biref"] if "R3D" in volumes else [])
    maps = {name: np.zeros((x, y)) for name in names}
    for i in range(x):
        for j in range(y):
            z1 = int(np.clip(surface[i, j] + offset, 0, n - 1))
            z2 = min(z1 + depth, n - 1)
            inside = slice(z1, z2 + 1)
            maps["aip"][i, j] = volumes["dBI"][i, j, inside].mean()
            maps["mip"][i, j] = volumes["dBI"][i, j, inside].max()
            if "R3D" not in volumes:
                continue
            r, o = volumes["R3D"][i, j, inside], np.radians(volumes["O3D"][i, j, inside])
            maps["ret"][i, j] = r.mean()
            maps["ori"][i, j] = np.degrees(0.5 * np.arctan2(np.sin(2 * o).sum(), np.cos(2 * o).sum()))
            counts, edges = np.histogram(np.degrees(o), bins=180, range=(-90, 90))
            maps["ori_histogram"][i, j] = edges[counts.argmax()] + 0.5
            zeros = np.flatnonzero(r == 0)
            used = r[: zeros[0]] if zeros.size else r
            if used.size >= 3:
                z = np.arange(used.size) * z_um
                maps["biref"][i, j] = np.polyfit(z, used / 360 * wavelength_um, 1)[0]
    return maps


def surface_vectorised(intensity_db: NDArray[Any]) -> NDArray[Any]:
    """Return the filtered `gradient` surface without a loop over A-lines: a fair opponent in benchmarks."""
    smooth = gaussian_filter1d(intensity_db, 5, axis=-1, mode="nearest", truncate=4)
    total = np.concatenate([np.zeros((*smooth.shape[:2], 1)), np.cumsum(smooth, axis=-1)], axis=-1)
    depth = smooth.shape[-1]
    z = np.arange(5, depth - 4)
    rise = (total[..., z + 5] - total[..., z]) - (total[..., z] - total[..., z - 5])
    raw = 5 + rise.argmax(axis=-1)
    raw[(intensity_db > 0).sum(axis=-1) < 10] = 0
    return np.asarray(median_filter(raw, size=3, mode="reflect"))


def maps_vectorised(
    volumes: dict[str, NDArray[Any]],
    surface: NDArray[Any],
    *,
    depth: int = 80,
    z_um: float = 2.5,
    wavelength_um: float = 1.3,
) -> dict[str, NDArray[np.float64]]:
    """Return aip, mip, ret, ori and biref without a loop over A-lines (windows inside the volume, no exact zeros)."""
    n = volumes["dBI"].shape[-1]
    index = np.minimum(surface[..., np.newaxis].astype(np.intp) + np.arange(depth + 1), n - 1)
    window = {name: np.take_along_axis(volume, index, axis=-1) for name, volume in volumes.items()}
    double = np.radians(2 * window["O3D"])
    z = np.arange(depth + 1) * z_um
    z = z - z.mean()
    return {
        "aip": window["dBI"].mean(axis=-1),
        "mip": window["dBI"].max(axis=-1),
        "ret": window["R3D"].mean(axis=-1),
        "ori": np.degrees(0.5 * np.arctan2(np.sin(double).sum(axis=-1), np.cos(double).sum(axis=-1))),
        "biref": (window["R3D"] / 360 * wavelength_um) @ z / (z @ z),
    }
