"""The en face maps of a tile: one function each, found by the name of the modality.

A function gets the profiles with the window below the surface, and the settings; it returns the map, shape (x, y), each
value from its own A-line. Small tiles are made by these functions alone. Large tiles take a compiled kernel where there
is one (`compiled`), which gives the same values, and the function itself for all other maps. On a graphics card,
functions for arrays of any library (`any_library`) work there, and the others get NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from opticstream.compute.reconstruction import (
    Floats,
    MapFunction,
    MapSource,
    attenuation_from_intensity,
    axis_window_mean,
    axis_window_mode,
    birefringence_slope,
    birefringence_unwrapped,
    from_numpy,
    retardance_without_noise,
    window_maximum,
    window_mean,
)
from opticstream.config.processing import EnfaceSettings
from opticstream.model.errors import ConfigurationError
from opticstream.model.modalities import SURFACE, enface_names

Function = Callable[[MapSource, EnfaceSettings], Floats]


class Maker(NamedTuple):
    """How a map is made."""

    function: Function
    compiled: bool
    """Whether the engine of large tiles has a kernel of its own for it."""
    any_library: bool = False
    """Whether the function takes arrays of any library, as on a graphics card."""


_MAKERS: dict[str, Maker] = {}

MAKERS: Mapping[str, Maker] = MappingProxyType(_MAKERS)
"""The maker of each en face map but the surface."""


def makes(name: str, /, *, compiled: bool = False, any_library: bool = False) -> Callable[[Function], Function]:
    """Return a decorator that makes a function the maker of the map `name`.

    Parameters
    ----------
    name : str
        A modality.
    compiled : bool
        The compiled engine has a kernel that gives the same values.
    any_library : bool
        The function takes arrays of any library that follows the Python array API, not of NumPy alone.

    Raises
    ------
    ValueError
        The table of modalities has no such en face map, or the map has a maker already.
    """
    if name not in enface_names():
        raise ValueError(f"{name!r} is not an en face map in opticstream.model.modalities; expected {enface_names()}")
    if name in _MAKERS:
        raise ValueError(f"the map {name!r} is made by {_MAKERS[name].function.__name__} already")

    def keep(function: Function) -> Function:
        _MAKERS[name] = Maker(function, compiled, any_library)
        return function

    return keep


def functions_in_numpy(enface: EnfaceSettings, /) -> dict[str, MapFunction]:
    """Return the functions of the maps that the settings ask for, by name, without the surface.

    Raises
    ------
    ConfigurationError
        One of them has no maker.
    """
    return {name: _bound(maker.function, enface) for name, maker in _wanted(enface)}


def functions_on_card(enface: EnfaceSettings, /) -> dict[str, MapFunction]:
    """Return the functions of the maps that the settings ask for, for arrays of any library.

    Raises
    ------
    ConfigurationError
        One of them has no maker.
    """
    return {
        name: _bound(maker.function, enface) if maker.any_library else from_numpy(_bound(maker.function, enface))
        for name, maker in _wanted(enface)
    }


def functions_without_kernel(enface: EnfaceSettings, /) -> dict[str, MapFunction]:
    """Return the functions of those maps that the settings ask for and large tiles have no compiled kernel for.

    Raises
    ------
    ConfigurationError
        One of the maps has no maker.
    """
    return {name: _bound(maker.function, enface) for name, maker in _wanted(enface) if not maker.compiled}


def _bound(function: Function, enface: EnfaceSettings) -> MapFunction:
    return lambda source: function(source, enface)


def _wanted(enface: EnfaceSettings) -> Iterator[tuple[str, Maker]]:
    for name in enface.modalities:
        if name == SURFACE:
            continue
        if name not in MAKERS:
            raise ConfigurationError(
                f"processing.enface.modalities asks for {name!r}, which no function makes; "
                f"expected one with @makes({name!r}) in opticstream.stages.tile._enface_maps"
            )
        yield name, MAKERS[name]


@makes("aip", compiled=True, any_library=True)
def average_intensity(source: MapSource, enface: EnfaceSettings) -> Floats:
    """Return the mean intensity in dB."""
    return window_mean(source.in_window.intensity_db, source.window.valid)


@makes("mip", compiled=True, any_library=True)
def maximum_intensity(source: MapSource, enface: EnfaceSettings) -> Floats:
    """Return the largest intensity in dB."""
    return window_maximum(source.in_window.intensity_db, source.window.valid)


@makes("ret", compiled=True, any_library=True)
def retardance(source: MapSource, enface: EnfaceSettings) -> Floats:
    """Return the mean retardance in degrees, by `enface.retardance_method`."""
    if enface.retardance_method == "stokes":
        return retardance_without_noise(source.profiles.jones, source.window)
    return window_mean(source.in_window.retardance_deg, source.window.valid)


@makes("ori", compiled=True, any_library=True)
def orientation(source: MapSource, enface: EnfaceSettings) -> Floats:
    """Return the optic axis orientation in degrees, by `enface.orientation_method`."""
    match enface.orientation_method:
        case "stokes":
            return source.circle[0]
        case "mean":
            return axis_window_mean(source.in_window.orientation_deg, source.window.valid)
        case "histogram":
            return axis_window_mode(source.in_window.orientation_deg, source.window.valid)


@makes("biref", compiled=True, any_library=True)
def birefringence(source: MapSource, enface: EnfaceSettings) -> Floats:
    """Return the apparent birefringence, by `enface.birefringence_method`; `unwrap` looks at neighbours as well."""
    profiles = source.profiles
    scale = {"depth_step_um": profiles.depth_step_um, "wavelength_um": profiles.wavelength_um}
    match enface.birefringence_method:
        case "stokes":
            return source.circle[1]
        case "slope":
            return birefringence_slope(source.in_window.retardance_deg, source.window.valid, **scale)
        case "unwrap":
            return birefringence_unwrapped(profiles.retardance_deg, profiles.orientation_deg, source.window, **scale)


@makes("mus", compiled=True, any_library=True)
def attenuation(source: MapSource, enface: EnfaceSettings) -> Floats:
    """Return the attenuation coefficient in 1/mm."""
    profiles = source.profiles
    return attenuation_from_intensity(profiles.intensity_db, source.window, depth_step_mm=profiles.depth_step_um / 1000)
