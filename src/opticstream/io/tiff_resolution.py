"""Pixel size of a TIFF file: from OME-XML, ImageJ's metadata or the resolution tags."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from opticstream.io.geometry import Geometry, geometry_from_sizes
from opticstream.model.errors import FileFormatError, OpticStreamError

_MM_OF_UNIT = {
    "nm": 1e-6, "µm": 1e-3, "μm": 1e-3, "um": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3,
    "mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1e3, "in": 25.4, "inch": 25.4, "å": 1e-7,
}  # fmt: skip
_MM_OF_TAG = {2: 25.4, 3: 10.0}
"""Inch and centimetre; 1 means no unit."""
_OF_PRINTERS = frozenset({72, 96, 100, 150, 200, 300, 400, 600, 1200})
"""Default dots per inch of picture programs, which are not the pixel size in the specimen."""


def tiff_geometry(path: Path, /) -> Geometry | None:
    """Return the geometry of a TIFF file, or None if it has no voxel size.

    Raises
    ------
    FileFormatError
        It is not a TIFF file, or has a size that is zero or not finite.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            found = _of_ome(tiff) or _of_imagej(tiff) or _of_tags(tiff)
    except OpticStreamError:
        raise
    except Exception as error:  # damaged files, and metadata of unknown programs
        raise FileFormatError(f"{path}: cannot be read as TIFF: {error}") from error
    if found is None:
        return None
    x, y, z = found
    return geometry_from_sizes((x, y, 1.0 if z is None else z), name=str(path), axes=2 if z is None else 3)


Sizes = tuple[float, float, float | None]


def _of_ome(tiff: Any) -> Sizes | None:
    if not tiff.is_ome or not tiff.ome_metadata:
        return None
    from xml.etree import ElementTree

    pixels = next(
        (e for e in ElementTree.fromstring(tiff.ome_metadata).iter() if e.tag.rsplit("}", 1)[-1] == "Pixels"), None
    )
    if pixels is None or not {"PhysicalSizeX", "PhysicalSizeY"} <= set(pixels.keys()):
        return None

    def size(axis: str) -> float:
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm").strip()
        if unit.lower() not in _MM_OF_UNIT:
            raise FileFormatError(
                f"{tiff.filename}: PhysicalSize{axis}Unit {unit!r} is not known; expected a length such as µm or mm"
            )
        return float(pixels.get(f"PhysicalSize{axis}", "nan")) * _MM_OF_UNIT[unit.lower()]

    return size("X"), size("Y"), None if pixels.get("PhysicalSizeZ") is None else size("Z")


def _of_imagej(tiff: Any) -> Sizes | None:
    metadata = tiff.imagej_metadata if tiff.is_imagej else None
    if not metadata:
        return None
    to_mm = _MM_OF_UNIT.get(str(metadata.get("unit", "")).strip().lower())
    resolution = _resolution(tiff)
    if to_mm is None or resolution is None:
        return None
    spacing = metadata.get("spacing")
    z = float(spacing) * to_mm if spacing is not None else None
    return to_mm / resolution[0], to_mm / resolution[1], z


def _of_tags(tiff: Any) -> Sizes | None:
    tag = tiff.pages[0].tags.get("ResolutionUnit")
    unit = int(tag.value) if tag is not None else 2
    resolution = _resolution(tiff)
    if unit not in _MM_OF_TAG or resolution is None:
        return None
    if unit == 2 and {round(r, 3) for r in resolution} <= _OF_PRINTERS:
        return None
    return _MM_OF_TAG[unit] / resolution[0], _MM_OF_TAG[unit] / resolution[1], None


def _resolution(tiff: Any) -> tuple[float, float] | None:
    """Return pixels per unit along x and y; None if missing or zero."""
    found = []
    for name in ("XResolution", "YResolution"):
        tag = tiff.pages[0].tags.get(name)
        if tag is None:
            return None
        above, below = tag.value
        if below == 0 or above == 0 or not math.isfinite(above / below):
            return None
        found.append(above / below)
    return found[0], found[1]
