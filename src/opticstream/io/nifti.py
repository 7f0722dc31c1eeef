"""Read and write NIfTI files: whole arrays with voxel sizes in mm, written atomically with deterministic bytes."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.io.atomic import atomic_path
from opticstream.io.geometry import SAME_DIRECTION, Geometry
from opticstream.io.gzipped import gzip_in_pieces
from opticstream.io.nifti_header import LONGEST_AXIS_NIFTI1, NiftiHeader, read_nifti_header
from opticstream.io.reading import reading_errors
from opticstream.model.errors import FileFormatError
from opticstream.system.disk import mapped_or_read


def write_nifti(
    path: Path,
    data: ArrayLike,
    /,
    *,
    voxel_size_mm: tuple[float, ...] = (1.0, 1.0, 1.0),
    origin_mm: tuple[float, ...] = (0.0, 0.0, 0.0),
    geometry: Geometry | None = None,
    description: str = "",
) -> Path:
    """Write an array as NIfTI-1 (`.nii` or `.nii.gz`) and return the path; NIfTI-2 where an axis is too long for it.

    Parameters
    ----------
    path : Path
        Target; it appears only when complete. The same data gives the same bytes.
    data : array_like, shape (x, y[, z[, c]])
        Values; x varies fastest on disk. Booleans become uint8.
    voxel_size_mm, origin_mm : tuple
        Size of a voxel and position of voxel (0, 0, 0), in mm, along x, y, z.
    geometry : Geometry, optional
        Instead of both: size, directions and origin. Without a position, the file has none.
    description : str
        At most 79 characters, e.g. the unit of the values.
    """
    import nibabel as nib

    array = np.asarray(data)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if geometry is None:
        affine = np.diag([*(tuple(voxel_size_mm) + (1.0,) * 3)[:3], 1.0])
        affine[:3, 3] = (tuple(origin_mm) + (0.0,) * 3)[:3]
        geometry = Geometry(affine, positioned=True)
    kind: Any = nib.Nifti1Image if max(array.shape, default=1) <= LONGEST_AXIS_NIFTI1 else nib.Nifti2Image
    image = kind(array, geometry.affine_mm if geometry.positioned else None)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:79]
    if geometry.positioned:
        image.set_sform(geometry.affine_mm, code=1)
        image.set_qform(geometry.affine_mm, code=1)
    else:
        image.header["pixdim"][1:4] = geometry.voxel_size_mm
    with atomic_path(path) as temporary:
        if path.name.endswith(".gz"):
            with temporary.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
                image.to_stream(packed)
        else:
            with temporary.open("wb") as plain:
                image.to_stream(plain)
    return path


def long_axis_notes(shapes: Iterable[tuple[int, ...]], /) -> tuple[str, ...]:
    """Return a note on arrays with an axis too long for NIfTI-1; empty if all fit.

    Examples
    --------
    >>> long_axis_notes([(300, 200)])
    ()
    """
    longest = max((max(shape) for shape in shapes), default=1)
    if longest <= LONGEST_AXIS_NIFTI1:
        return ()
    return (
        f"an axis has {longest} pixels, more than the {LONGEST_AXIS_NIFTI1} of NIfTI-1: the NIfTI files are NIfTI-2 "
        "(ITK and ANTs cannot read it)",
    )


def read_nifti(path: Path, /, *, mmap: bool = False) -> NDArray[Any]:
    """Return the values of a NIfTI file, shape (x, y[, z[, c]]), read-only where memory-mapped.

    Slope and intercept are applied, and the byte order is the machine's.

    Raises
    ------
    MissingInputError
        There is no such file.
    FileFormatError
        It is damaged, not a NIfTI file, or contains colours, complex numbers or other values that are not real numbers.
    """
    return nifti_values(path, read_nifti_header(path), mmap=mmap)


def nifti_values(path: Path, header: NiftiHeader, /, *, mmap: bool = False) -> NDArray[Any]:
    """Return the values of a file whose header is known, as `read_nifti`.

    Raises
    ------
    MissingInputError, FileFormatError
        As `read_nifti`.
    """
    from nibabel.arrayproxy import ArrayProxy

    def read(source: Any, mmap: Literal["r", False] = False) -> NDArray[Any]:
        return np.asanyarray(ArrayProxy(source, spec, mmap=mmap))

    spec: Any = (header.shape, header.dtype, header.offset, header.slope, header.intercept)
    with reading_errors(path, "NIfTI"):
        with np.errstate(all="ignore"):  # a slope may cause an overflow; the values are infinite then
            if path.name.lower().endswith(".gz"):
                with gzip_in_pieces(path) as stream:
                    array = read(stream)
                    stream.read(1)  # the checksum is compared at the end
            else:
                array = mapped_or_read(lambda: read(path, "r"), lambda: read(path)) if mmap else read(path)
        return array if array.dtype.isnative or mmap else array.astype(array.dtype.newbyteorder("="))


def map_from_nifti(path: Path, /, *, straight: bool = False) -> NDArray[Any]:
    """Return a map of a NIfTI file, shape (x, y): further axes must have length 1.

    With `straight`, a map whose header rotates or mirrors its axes is refused, because those of the tiles do not.

    Raises
    ------
    MissingInputError, FileFormatError
        As `read_nifti`; there is more than one plane, time point or channel; or the axes are turned.
    """
    header = read_nifti_header(path)
    check_single(header.shape, 2, path)
    if straight:
        place = header.geometry
        if place.positioned and not np.allclose(place.directions[:, :2], np.eye(3)[:, :2], atol=SAME_DIRECTION):
            raise FileFormatError(
                f"{path}: its header has axes {place.says()}; expected x to right, y to anterior, as in the tiles: "
                "turn the map and save it with a plain affine"
            )
    array = nifti_values(path, header)
    return array.reshape((*array.shape, 1)[:2])


def check_single(shape: tuple[int, ...], spatial: int, path: Path, /) -> None:
    """Raise FileFormatError if an array has more than one plane, time point or channel beyond its `spatial` axes.

    Raises
    ------
    FileFormatError
        Names the axis and its length.
    """
    for axis, length in enumerate(shape):
        if axis >= spatial and length > 1:
            kind = ("x", "y", "depth (z)", "time", "channel")[axis] if axis < 5 else "further"
            raise FileFormatError(
                f"{path}: axis {axis + 1} ({kind}) has {length} entries in the shape {shape}; expected one: "
                "save the one that is meant as a file of its own"
            )


def nifti_geometry(path: Path, /) -> Geometry:
    """Return the geometry of a NIfTI file.

    Raises
    ------
    MissingInputError, FileFormatError
        As `read_nifti`; or a voxel size is zero or not finite.
    """
    return read_nifti_header(path).geometry


def voxel_size_mm(path: Path, /) -> tuple[float, float, float]:
    """Return the voxel size of a NIfTI file in mm along x, y and z, whatever unit its header has.

    Raises
    ------
    MissingInputError, FileFormatError
        As `nifti_geometry`.
    """
    return nifti_geometry(path).voxel_size_mm
