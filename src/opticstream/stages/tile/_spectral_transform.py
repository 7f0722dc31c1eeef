"""The Fourier transform that a project asks for, for tiles of every size."""

from __future__ import annotations

import numpy as np

from opticstream.compute.reconstruction import Transform
from opticstream.config.processing import ReconstructionSettings
from opticstream.model.errors import ConfigurationError


def transform_from_settings(settings: ReconstructionSettings, /) -> Transform | None:
    """Return the Fourier transform of the chosen library; None where the settings leave the choice open.

    Raises
    ------
    ConfigurationError
        The library is not installed.
    """
    try:
        match settings.fft:
            case "native":
                return None
            case "numpy":
                return np.fft.fft
            case "scipy":
                from scipy.fft import fft

                return fft
            case "pyfftw":
                from importlib import import_module  # optional: not among the dependencies

                fftw: Transform = import_module("pyfftw.interfaces.numpy_fft").fft
                return fftw
    except ImportError as error:
        raise ConfigurationError(
            f'processing.reconstruction.fft = "{settings.fft}" is not installed: {error}'
        ) from error
