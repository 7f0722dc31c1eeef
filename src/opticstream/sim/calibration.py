"""The calibration files of the virtual rig, in the form that the project's configuration names."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.config.scan import ScanSettings
from opticstream.io.atomic import write_bytes
from opticstream.model.errors import ConfigurationError
from opticstream.sim.instrument import Spectrometer, calibration_arrays

_DEFAULT_VARIABLE = "values"


def write_calibration(
    spectrometer: Spectrometer, scan: ScanSettings, folder: Path, /, *, reverse_channel2: bool = True
) -> list[Path]:
    """Write the calibration files that `scan.calibration` names, and return them.

    Parameters
    ----------
    spectrometer : Spectrometer
        The instrument to describe.
    scan : ScanSettings
        Names and form of the files.
    folder : Path
        Where relative names start.
    reverse_channel2 : bool
        The second channel is read out from its long-wavelength end.

    Raises
    ------
    ConfigurationError
        One shared dispersion file is named for two channels that differ.
    """
    calibration = scan.calibration
    wanted: dict[str, NDArray[Any]] = {}
    for setting, vectors in calibration_arrays(spectrometer, calibration.linearization.method).items():
        for reference, vector in zip(getattr(calibration.linearization, setting, ()), vectors, strict=False):
            wanted[reference] = vector
    phases = [spectrometer.dispersion_phase(c) for c in range(spectrometer.channels)]
    if len(calibration.dispersion_files) == 1 and any(not np.array_equal(phases[0], p) for p in phases[1:]):
        raise ConfigurationError(
            "scan.calibration.dispersion_files names one file for both channels, but "
            "instrument.dispersion_rad differs between them"
        )
    wanted.update(zip(calibration.dispersion_files, phases, strict=False))
    if calibration.background_file is not None:
        # As recorded with the sample arm blocked, in the order of the camera's read-out.
        light = [r + d for r, d in zip(spectrometer.reference, spectrometer.dark, strict=True)]
        wanted[calibration.background_file] = np.stack(
            [line[::-1] if c == 1 and reverse_channel2 else line for c, line in enumerate(light)]
        ).astype(float)
    by_file: dict[Path, dict[str, NDArray[Any]]] = {}
    for reference, array in wanted.items():
        name, _, variable = reference.partition("#")
        by_file.setdefault(folder / name, {})[variable or _DEFAULT_VARIABLE] = np.asarray(array, dtype=np.float64)
    return [write_bytes(path, _encoded(path, arrays)) for path, arrays in by_file.items()]


def _encoded(path: Path, arrays: dict[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    match path.suffix.lower():
        case ".npy":
            np.save(buffer, next(iter(arrays.values())))
        case ".npz":
            np.savez(buffer, **arrays)  # type: ignore[arg-type]
        case ".mat":
            from scipy.io import savemat

            savemat(buffer, arrays)
            # The header text carries the time of day; equal data must give equal bytes.
            buffer.seek(0)
            buffer.write(b"MATLAB 5.0 MAT-file, Platform: posix, Created by OpticStream".ljust(116))
        case _:
            return next(iter(arrays.values())).astype("<f8").tobytes()
    return buffer.getvalue()
