"""Open Zarr arrays and OME-Zarr images of any program, with axes, units and origin from their metadata."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opticstream.io.geometry import Geometry, geometry_from_sizes
from opticstream.io.nifti_header import check_real
from opticstream.io.reading import reading_errors
from opticstream.io.zarr._files import file_store
from opticstream.model.errors import FileFormatError, MissingInputError

_MM_OF_UNIT = {
    "angstrom": 1e-7, "nanometer": 1e-6, "micrometer": 1e-3, "millimeter": 1.0, "centimeter": 10.0, "decimeter": 100.0,
    "meter": 1e3, "inch": 25.4, "nm": 1e-6, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3, "microns": 1e-3,
    "mm": 1.0, "cm": 10.0, "m": 1e3, "nanometre": 1e-6, "micrometre": 1e-3, "millimetre": 1.0, "metre": 1e3,
}  # fmt: skip
_DEFAULT_UNIT = "micrometer"
"""Unit of an OME-Zarr image whose axes have none."""
_SPACE = "zyx"


@dataclass(frozen=True)
class ZarrImage:
    """The finest level of an image, opened.

    Attributes
    ----------
    array : tensorstore.TensorStore
        Values with the axes (z, y, x) or (y, x); nothing is read yet. Further axes of length 1 are dropped.
    geometry : Geometry or None
        Voxel size and origin; None if the metadata have none.
    """

    array: Any
    geometry: Geometry | None


def open_zarr_image(path: Path, /) -> ZarrImage:
    """Open a Zarr array, or the finest level of an OME-Zarr image (0.1 to 0.5).

    Raises
    ------
    MissingInputError, FileFormatError
        It does not exist; has no real numbers, or more than one time point or channel; or its metadata cannot be read.
    """
    if not path.exists():
        raise MissingInputError(f"{path}: no such file")
    with readable_zarr(path):
        attributes = image_attributes(path)
        block = _multiscales(attributes)
        if block is None:
            array = opened_array(path)
            names = _plain_names(array, attributes)
            return ZarrImage(_spatial(array, names, path), None)
        level = block["datasets"][0]
        array = opened_array(path / level["path"])
        axes = _axes(block, array.rank, path)
        view = _spatial(array, [axis["name"] for axis in axes], path)
        return ZarrImage(view, _geometry(block, level, axes, array.rank, path))


@contextlib.contextmanager
def readable_zarr(path: Path, /) -> Iterator[None]:
    """Raise errors of a Zarr array as OpticStream errors that name it."""
    with reading_errors(path, "Zarr"):
        yield


def image_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a Zarr v3 or v2 group or array; empty if it has none."""
    if (path / "zarr.json").exists():
        content = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        return dict(content.get("attributes", {}))
    if (path / ".zattrs").exists():
        return dict(json.loads((path / ".zattrs").read_text(encoding="utf-8")))
    return {}


def _multiscales(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    found = (attributes.get("ome") or attributes).get("multiscales")
    return dict(found[0]) if found else None


def opened_array(folder: Path) -> Any:
    import tensorstore as ts

    driver = "zarr3" if (folder / "zarr.json").exists() else "zarr"
    return ts.open({"driver": driver, "kvstore": file_store(folder)}, open=True, read=True).result()


def _plain_names(array: Any, attributes: Mapping[str, Any]) -> list[str] | None:
    """Return the names of a plain array's axes, or None if they are not those of space, time and channel."""
    names = [str(label).lower() for label in attributes.get("_ARRAY_DIMENSIONS", array.domain.labels)]
    known = len(set(names)) == array.rank and set(names) <= {*"xyzct"} and {"x", "y"} <= set(names)
    return names if known else None


def _axes(block: Mapping[str, Any], rank: int, path: Path) -> list[dict[str, Any]]:
    """Return the axes of an image; NGFF 0.3 gives names only, 0.1 and 0.2 have none, which means t, c, z, y, x."""
    axes = block.get("axes") or list("tczyx"[-rank:])
    axes = [dict(axis) if isinstance(axis, Mapping) else {"name": axis} for axis in axes]
    for axis in axes:
        axis["name"] = str(axis["name"]).lower()
    if len(axes) != rank or len({axis["name"] for axis in axes}) != rank:
        raise FileFormatError(
            f"{path}: its metadata name the axes {[a['name'] for a in axes]}, but the array has {rank} axes"
        )
    return axes


def _spatial(array: Any, names: Sequence[str] | None, path: Path) -> Any:
    """Return a view with the axes (z, y, x) or (y, x): axes of length 1 beyond space dropped, the others in order."""
    check_real(np.dtype(array.dtype.numpy_dtype), name=str(path))
    shape = tuple(int(n) for n in array.shape)
    if names is None:
        extra = range(max(array.rank - 3, 0))
        names = [f"{i + 1}" for i in extra] + list(_SPACE[-min(array.rank, 3) :])
    if {"y", "x"} - set(names):
        raise FileFormatError(f"{path}: expected the axes z, y, x or y, x, got {list(names)}")
    kept = [name for name in names if name in _SPACE]
    for axis in reversed(range(array.rank)):
        if names[axis] in _SPACE:
            continue
        if shape[axis] != 1:
            kind = {"c": "channel (c)", "t": "time (t)"}.get(names[axis], names[axis])
            raise FileFormatError(
                f"{path}: axis {kind} has {shape[axis]} entries in the shape {shape}; expected one: "
                "save the one that is meant as an image of its own"
            )
        array = array[(*[slice(None)] * axis, 0)]
    order = [kept.index(name) for name in _SPACE if name in kept]
    return array.transpose(order)


def _geometry(
    block: Mapping[str, Any], level: Mapping[str, Any], axes: Sequence[Mapping[str, Any]], rank: int, path: Path
) -> Geometry | None:
    scale, shift = np.ones(rank), np.zeros(rank)
    steps = [*(level.get("coordinateTransformations") or ()), *(block.get("coordinateTransformations") or ())]
    has_scale = has_shift = False
    for step in steps:
        kind = step.get("type")
        if kind == "scale":
            factors = np.asarray(step["scale"], float)
            scale, shift, has_scale = scale * factors, shift * factors, True
        elif kind == "translation":
            shift, has_shift = shift + np.asarray(step["translation"], float), True
        elif kind != "identity":
            raise FileFormatError(
                f"{path}: coordinate transformation {kind!r} is not known; expected scale or translation"
            )
    if not has_scale:
        return None
    units = {axis["name"]: axis.get("unit") for axis in axes}
    in_space = [value for axis, value in zip(axes, scale, strict=True) if axis["name"] in _SPACE]
    if not any(units.get(name) for name in _SPACE) and np.allclose(in_space, 1):
        return None  # written by programs without a voxel size
    sizes, origin = [], []
    for name in "xyz":
        at = next((i for i, axis in enumerate(axes) if axis["name"] == name), None)
        to_mm = _mm_of(units.get(name) or _DEFAULT_UNIT, path)
        sizes.append(1.0 if at is None else float(f"{scale[at]:.9g}") * to_mm)
        origin.append(0.0 if at is None else float(shift[at]) * to_mm)
    spatial = 3 if "z" in units else 2
    return geometry_from_sizes(sizes, name=str(path), origin_mm=origin if has_shift else None, axes=spatial)


def _mm_of(unit: Any, path: Path) -> float:
    try:
        return _MM_OF_UNIT[str(unit).strip().lower()]
    except KeyError as error:
        raise FileFormatError(
            f"{path}: the unit {unit!r} of its axes is not known; expected a length such as micrometer or millimeter"
        ) from error
