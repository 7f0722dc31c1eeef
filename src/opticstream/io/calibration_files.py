"""Read and check the calibration vectors of a project."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.config.scan import (
    Chirp,
    KLinearPositions,
    PhaseVectors,
    ScanSettings,
    WavelengthFit,
    WavelengthVector,
)
from opticstream.io.matlab import arrays_from_matlab
from opticstream.io.reading import check_regular_file
from opticstream.model.errors import CalibrationError, InputError
from opticstream.model.text import text_from_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The vectors of a spectrometer as the project gives them, one row per channel."""

    method: str
    """Which form `coordinate` (and `targets`) has: none, wavelengths, phase, klinear or chirp."""
    coordinate: NDArray[np.float64] | None
    targets: NDArray[np.float64] | None
    dispersion_rad: NDArray[np.float64] | None
    background: NDArray[np.float64] | None


def read_vector(reference: str, /, *, setting: str = "") -> NDArray[np.float64]:
    """Return the array that a data reference (``file.npy``, ``file.mat#name``, ...) names, as float64, squeezed.

    Raises
    ------
    CalibrationError
        The file is absent or unreadable, lacks the variable, or has values that are not finite numbers. The
        message names file and setting.
    """
    name, _, variable = reference.partition("#")
    path = Path(name)
    where = f"{path}" + (f" ({setting})" if setting else "")
    try:
        arrays = _arrays_in(path, where)
    except FileNotFoundError as error:
        raise CalibrationError(f"{where}: no such calibration file") from error
    except CalibrationError:
        raise
    except InputError as error:
        raise CalibrationError(
            str(error) if where in str(error) else str(error).replace(str(path), where, 1)
        ) from error
    except Exception as error:  # a damaged file can make its reader fail in any way
        raise CalibrationError(f"{where}: cannot be read: {error}") from error
    if variable:
        if variable not in arrays:
            raise CalibrationError(f"{where}: has no variable {variable!r}; expected one of {sorted(arrays)}")
        array = arrays[variable]
    else:
        vectors = {key: value for key, value in arrays.items() if value.size > 1 and value.dtype.kind in "fiu"}
        if len(vectors) != 1:
            raise CalibrationError(
                f"{where}: holds {sorted(arrays) or 'nothing'}; name one of them, as in {path.name}#NAME"
            )
        (array,) = vectors.values()
    if array.dtype.kind not in "fiu" or array.size == 0:
        raise CalibrationError(f"{where}: expected real numbers, got {array.dtype} of shape {array.shape}")
    result = np.squeeze(np.asarray(array, dtype=np.float64))
    if not np.isfinite(result).all():
        first = int(np.flatnonzero(~np.isfinite(result.ravel()))[0])
        raise CalibrationError(f"{where}: holds {result.ravel()[first]} at index {first}; all values must be finite")
    return result


def _arrays_in(path: Path, where: str) -> dict[str, NDArray[Any]]:
    suffix = path.suffix.lower()
    check_regular_file(path)
    if suffix == ".npy":
        return {path.stem: np.load(path, allow_pickle=False)}
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    if suffix == ".dat":
        data = path.read_bytes()
        if _is_text(data):
            return {path.stem: _numbers_in_text(data, where)}
        if len(data) % 8:
            raise CalibrationError(f"{where}: holds {len(data)} bytes, expected a multiple of 8 (float64 values)")
        return {path.stem: np.frombuffer(data, "<f8")}
    if suffix == ".mat":
        return arrays_from_matlab(path)
    if suffix in (".txt", ".csv"):
        return {path.stem: _numbers_in_text(path.read_bytes(), where)}
    raise CalibrationError(
        f"{where}: expected a .npy, .npz, .mat, .txt, .csv or .dat file (.dat: raw float64, or text like the others)"
    )


_TEXT = frozenset(b"0123456789+-.,;eEdDnaNiIfF \t\r\n")


def _is_text(data: bytes) -> bool:
    """Return whether a .dat file is a list of numbers in text rather than raw values."""
    body = data.removeprefix(codecs.BOM_UTF8)
    return bool(body) and (_TEXT.issuperset(body) or data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _numbers_in_text(data: bytes, where: str) -> NDArray[np.float64]:
    """Return the numbers in a text, one row per line, separated by blanks, commas or semicolons; # or %: comment."""
    rows: list[list[float]] = []
    for number, line in enumerate(text_from_bytes(data, name=where, other_encodings=True).split("\n"), start=1):
        words = re.split(r"[#%]", line, maxsplit=1)[0].replace(",", " ").replace(";", " ").split()
        try:
            row = [float(word) for word in words]
        except ValueError as error:
            raise CalibrationError(f"{where}, line {number}: {line.strip()!r} is not a list of numbers") from error
        if row:
            rows.append(row)
    if len({len(row) for row in rows}) > 1:
        raise CalibrationError(f"{where}: its lines hold different numbers of values; expected the same on each")
    return np.array(rows, np.float64)


def _rows(references: tuple[str, ...], *, channels: int, length: int, setting: str, wanted: str) -> NDArray[np.float64]:
    if len(references) not in (1, channels):
        raise CalibrationError(
            f"{setting}: expected 1 or {channels} files for {channels} channels, got {len(references)}"
        )
    rows: list[NDArray[np.float64]] = []
    for reference in references:
        vector = read_vector(reference, setting=setting)
        vectors = vector[np.newaxis] if vector.ndim == 1 else vector
        if vectors.ndim != 2 or vectors.shape[-1] != length:
            raise CalibrationError(
                f"{reference} ({setting}): expected {length} values ({wanted}), got shape {vector.shape}"
            )
        rows.extend(vectors)
    if len(rows) not in (1, channels):
        raise CalibrationError(f"{setting}: expected 1 or {channels} vectors for {channels} channels, got {len(rows)}")
    return np.stack(rows * (channels if len(rows) == 1 else 1))


def load_calibration(scan: ScanSettings, /, *, needs_background: bool = False) -> Calibration:
    """Return the calibration vectors that the scan settings name, checked for length and finite values.

    Parameters
    ----------
    scan : ScanSettings
        Their `calibration` names the files; relative paths must have been made absolute.
    needs_background : bool
        Also read `scan.calibration.background_file`.

    Raises
    ------
    CalibrationError
        Names file, value and setting.
    """
    settings = scan.calibration
    channels, samples = scan.channels, scan.samples
    key = "scan.calibration"
    per_sample = f"scan.samples = {samples}"

    def rows(references: tuple[str, ...], name: str) -> NDArray[np.float64]:
        return _rows(references, channels=channels, length=samples, setting=f"{key}.{name}", wanted=per_sample)

    coordinate = targets = None
    method = "none"
    match settings.linearization:
        case WavelengthFit(coefficients_nm=lines, files=files):
            name = "linearization.coefficients_nm" if lines is not None else "linearization.files"
            if lines is None:
                pairs = _rows(files, channels=channels, length=2, setting=f"{key}.{name}", wanted="offset and step")
            elif len(lines) not in (1, channels):
                raise CalibrationError(f"{key}.{name}: expected 1 or {channels} lines, got {len(lines)}")
            else:
                pairs = np.array(lines * (channels if len(lines) == 1 else 1), dtype=np.float64)
            method = "wavelengths"
            coordinate = pairs[:, :1] + pairs[:, 1:] * np.arange(samples)
        case WavelengthVector(files=files):
            method, coordinate = "wavelengths", rows(files, "linearization.files")
        case PhaseVectors(measured_files=measured, linear_files=linear):
            method = "phase"
            coordinate, targets = (
                rows(measured, "linearization.measured_files"),
                rows(linear, "linearization.linear_files"),
            )
        case KLinearPositions(files=files):
            method, coordinate = "klinear", rows(files, "linearization.files")
        case Chirp(files=files):
            method, coordinate = "chirp", rows(files, "linearization.files")
    background = None
    if needs_background:
        if settings.background_file is None:
            raise CalibrationError(
                f'{key}.background_file is not set; processing.reconstruction.background = "file" needs it'
            )
        background = rows((settings.background_file,), "background_file")
    dispersion = rows(settings.dispersion_files, "dispersion_files") if settings.dispersion_files else None
    return Calibration(method, coordinate, targets, dispersion, background)
