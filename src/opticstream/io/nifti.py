"""NIfTI in and out: whole arrays with voxel sizes in mm, deterministic bytes, atomic names."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.io.atomic import atomic_path
from opticstream.model.errors import FileFormatError, MissingInputError
from opticstream.system.disk import mapped_or_read


def write_nifti(
    path: Path,
    data: ArrayLike,
    /,
    *,
    voxel_size_mm: tuple[float, ...] = (1.0, 1.0, 1.0),
    origin_mm: tuple[float, ...] = (0.0, 0.0, 0.0),
    description: str = "",
) -> Path:
    """Write an array as NIfTI-1 (`.nii` or `.nii.gz`) and return the path.

    Parameters
    ----------
    path : Path
        Target; it appears only when complete. The same data gives the same bytes.
    data : array_like, shape (x, y[, z[, c]])
        Values; x varies fastest on disk.
    voxel_size_mm, origin_mm : tuple
        Size of a voxel and position of voxel (0, 0, 0), in mm, along x, y, z.
    description : str
        At most 79 characters, e.g. the unit of the values.
    """
    import nibabel as nib

    array = np.asarray(data)
    affine = np.diag([*(tuple(voxel_size_mm) + (1.0,) * 3)[:3], 1.0])
    affine[:3, 3] = (tuple(origin_mm) + (0.0,) * 3)[:3]
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:79]
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_path(path) as temporary:
        if path.name.endswith(".gz"):
            with temporary.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
                image.to_stream(packed)
        else:
            with temporary.open("wb") as plain:
                image.to_stream(plain)
    return path


def read_nifti(path: Path, /, *, mmap: bool = False) -> NDArray[Any]:
    """Return the array of a NIfTI file, shape (x, y[, z[, c]]), read-only where memory-mapped.

    Raises
    ------
    MissingInputError
        There is no such file.
    FileFormatError
        It is damaged or no NIfTI file.
    """
    with _readable(path):
        return mapped_or_read(lambda: _array(path, "r"), lambda: _array(path, False)) if mmap else _array(path, False)


def _array(path: Path, mmap: Literal["r", False]) -> NDArray[Any]:
    import nibabel as nib

    image: Any = nib.load(path, mmap=mmap)
    return np.asanyarray(image.dataobj)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise what is wrong with a NIfTI file as an error of ours that names it."""
    import nibabel as nib

    try:
        yield
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such file") from error
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise FileFormatError(f"{path}: cannot be read as NIfTI: {error}") from error


def voxel_size_mm(path: Path, /) -> tuple[float, ...]:
    """Return the voxel size of a NIfTI file in mm, one number per spatial axis.

    Raises
    ------
    MissingInputError, FileFormatError
        As `read_nifti`.
    """
    import nibabel as nib

    with _readable(path):
        image: Any = nib.load(path)
    return tuple(float(size) for size in image.header.get_zooms()[:3])
