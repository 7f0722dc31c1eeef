"""Read and check the header of a NIfTI file: shape, type, scaling and geometry."""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from opticstream.io.geometry import SAME_SIZE, Affine, Geometry, voxel_text
from opticstream.io.reading import check_regular_file, reading_errors
from opticstream.model.errors import FileFormatError

HEADER_BYTES = 544
"""Bytes at the start of a file that hold the header of NIfTI-1 as of NIfTI-2."""
LONGEST_AXIS_NIFTI1 = 32767
"""Largest number of samples of an axis in NIfTI-1, which uses 16 bits; NIfTI-2 allows any number."""

_MM_OF_UNIT = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
"""Unknown, metre, millimetre, micrometre; unknown counts as mm, as in other programs."""
_LONGEST_HEADER = 1 << 20
_OF_RAW_TILES = frozenset({2, 4, 8, 16, 64, 256, 512, 768})
"""Codes of the types that raw tiles may hold: whole numbers of up to 32 bits, float32 and float64."""
_MOST_DEFLATE = 1032
"""Largest number of bytes that a deflate stream can hold for each of its own bytes."""


@dataclass(frozen=True)
class NiftiHeader:
    """Header of a single-file NIfTI-1 or NIfTI-2 image of real numbers.

    Attributes
    ----------
    name : str
        Name of the file in messages.
    shape : tuple of int
        Lengths of all axes, first axis fastest; axes of length 1 at the end are kept.
    dtype : dtype
        Of the numbers on disk, with byte order.
    offset : int
        First byte of the data.
    slope, intercept : float
        Values are ``slope * number + intercept``.
    fields : nibabel header
        The header as it is in the file, without corrections.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    fields: Any

    @property
    def scaled(self) -> bool:
        """Whether values differ from the numbers on disk."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def data_bytes(self) -> int:
        """Size of the data on disk, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    @cached_property
    def geometry(self) -> Geometry:
        """Geometry of the image.

        The sform is preferred to the qform, as in nibabel; without either only the voxel size (pixdim) is known.

        Raises
        ------
        FileFormatError
            A voxel size is zero or not finite, the unit is unknown to NIfTI, or sform and voxel sizes contradict each
            other.
        """
        with np.errstate(all="ignore"):  # values that are not finite are reported later
            return _geometry(self)


def read_nifti_header(path: Path, /) -> NiftiHeader:
    """Return the header of a NIfTI file, `.nii` or `.nii.gz`.

    Raises
    ------
    MissingInputError, FileFormatError, InputError
        There is no such file, it is not a NIfTI file of real numbers, or it is smaller than its header says.
    """
    size = check_regular_file(path).st_size
    packed = path.name.lower().endswith(".gz")
    with reading_errors(path, "NIfTI"), gzip.open(path, "rb") if packed else path.open("rb") as file:
        head = file.read(540)
    header = nifti_header_from_bytes(head, name=str(path))
    needed = header.offset + header.data_bytes
    if size < needed and not packed:
        raise FileFormatError(f"{path}: holds {size} bytes, its header asks for {needed} ({_axes_text(header.shape)})")
    if packed and needed > _MOST_DEFLATE * size + 1024:
        raise FileFormatError(
            f"{path}: {size} compressed bytes cannot hold the {needed} that its header asks for "
            f"({_axes_text(header.shape)})"
        )
    return header


def nifti_header_from_bytes(head: bytes, /, *, name: str) -> NiftiHeader:
    """Return a header from the first 540 bytes of a file (348 for NIfTI-1).

    Raises
    ------
    FileFormatError
        The bytes are not the header of a single-file image of real numbers.
    """
    fields, count = _fields_from_bytes(head, name)
    slope, intercept = scaling_from_fields(float(fields["scl_slope"]), float(fields["scl_inter"]), name=name)
    return NiftiHeader(
        name, _shape(fields, name), _dtype(fields, name), _offset(fields, name, count), slope, intercept, fields
    )


@dataclass(frozen=True, slots=True)
class NiftiLayout:
    """Position and type of the numbers of a raw tile, as written by acquisition software."""

    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    """Lengths in the header, first axis fastest; acquisition software often gets them wrong."""


def nifti_layout_from_bytes(head: bytes, /, *, name: str = "header") -> NiftiLayout:
    """Return the layout of a raw tile, from the first bytes of its file (at least 352, or 544 for NIfTI-2).

    The axes are not checked: the caller knows what the tile must contain.

    Raises
    ------
    FileFormatError
        The bytes are not a NIfTI header, or that of complex, RGB or other data, or of scaled numbers.

    Examples
    --------
    A length that did not fit into 16 bits has overflowed, and is returned as it is:

    >>> head = bytearray(352)
    >>> struct.pack_into("<i", head, 0, 348)
    >>> struct.pack_into("<8h", head, 40, 2, 2048, -1, 1, 1, 1, 1, 1)
    >>> struct.pack_into("<h", head, 70, 512)
    >>> struct.pack_into("<f", head, 108, 352.0)
    >>> head[344:347] = b"n+1"
    >>> layout = nifti_layout_from_bytes(bytes(head))
    >>> layout.shape, str(layout.dtype), layout.offset
    ((2048, -1), 'uint16', 352)
    """
    fields, count = _fields_from_bytes(head, name)
    offset, code = _whole_offset(fields, name), int(fields["datatype"])
    if not count <= offset <= _LONGEST_HEADER:
        raise FileFormatError(f"{name}: vox_offset {offset} is outside {count}..{_LONGEST_HEADER}")
    if code not in _OF_RAW_TILES:
        raise FileFormatError(f"{name}: unknown NIfTI data type code {code}; expected one of {sorted(_OF_RAW_TILES)}")
    scaling = float(fields["scl_slope"]), float(fields["scl_inter"])
    if not math.isnan(scaling[0]) and scaling[0] != 0 and scaling != (1.0, 0.0):
        raise FileFormatError(
            f"{name}: its header scales the numbers (scl_slope {scaling[0]:g}, scl_inter {scaling[1]:g}); a raw tile "
            "holds them as they are: expected slope 1 and intercept 0, or slope 0"
        )
    dim = [int(n) for n in fields["dim"]]
    axes = dim[0] if 1 <= dim[0] <= 7 else 7
    return NiftiLayout(_dtype(fields, name), offset, tuple(dim[1 : axes + 1]))


def _fields_from_bytes(head: bytes, name: str) -> tuple[Any, int]:
    """Return the fields of a header as they are in a file, and their number of bytes (348 or 540)."""
    import nibabel as nib

    for order in "<>":
        count = struct.unpack_from(order + "i", head)[0] if len(head) >= 4 else 0
        if count in (348, 540) and len(head) >= count:
            kind: Any = nib.Nifti1Header if count == 348 else nib.Nifti2Header
            fields: Any = kind(head[:count], endianness=order, check=False)
            break
    else:
        raise FileFormatError(f"{name}: is not a NIfTI file ({len(head)} bytes, starting {head[:4].hex() or 'empty'})")
    magic = bytes(fields["magic"].tobytes())
    if magic[:2] == b"ni":
        raise FileFormatError(f"{name}: its data are in another file (.hdr/.img); expected a single NIfTI file")
    if magic[:2] != b"n+":
        raise FileFormatError(f"{name}: is not a NIfTI file (magic {magic[:4]!r}, expected n+1 or n+2)")
    return fields, count


def scaling_from_fields(slope: float, intercept: float, /, *, name: str) -> tuple[float, float]:
    """Return slope and intercept of a header; a slope of 0 or NaN means that there is none.

    Raises
    ------
    FileFormatError
        They are not finite.

    Examples
    --------
    >>> scaling_from_fields(0.0, 7.0, name="a.nii")
    (1.0, 0.0)
    """
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise FileFormatError(f"{name}: scl_slope {slope:g} and scl_inter {intercept:g} must be finite numbers")
    return slope, intercept


def _shape(fields: Any, name: str) -> tuple[int, ...]:
    dim = [int(n) for n in fields["dim"]]
    if not 1 <= dim[0] <= 7:
        raise FileFormatError(f"{name}: its header gives {dim[0]} axes, expected 1 to 7")
    shape = tuple(dim[1 : dim[0] + 1])
    if min(shape) < 1:
        raise FileFormatError(f"{name}: its header gives axes of {_axes_text(shape)}; each must be at least 1")
    return shape


def _axes_text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _dtype(fields: Any, name: str) -> np.dtype[Any]:
    import nibabel as nib

    code = int(fields["datatype"])
    try:
        dtype: np.dtype[Any] = fields.get_data_dtype()
    except (nib.spatialimages.HeaderDataError, KeyError) as error:
        raise FileFormatError(f"{name}: NIfTI data type code {code} is not known") from error
    check_real(dtype, name=name)
    return dtype


def check_real(dtype: np.dtype[Any], /, *, name: str) -> None:
    """Raise FileFormatError if values are not real numbers: colours, complex numbers, text, times, records, objects.

    Raises
    ------
    FileFormatError
        Says what they are.
    """
    if dtype.kind in "biuf":
        return
    if dtype.names is not None and set(dtype.names) <= set("RGBA"):
        raise FileFormatError(f"{name}: is a colour picture ({''.join(dtype.names)}); expected grey values")
    if dtype.kind == "c":
        raise FileFormatError(
            f"{name}: holds complex numbers ({dtype}); expected real ones: save their magnitude, or levels in dB"
        )
    raise FileFormatError(f"{name}: holds values of type {dtype}; expected real numbers")


def _offset(fields: Any, name: str, header_bytes: int) -> int:
    least = header_bytes + 4
    offset = _whole_offset(fields, name) or least
    if offset < least:
        raise FileFormatError(f"{name}: vox_offset {offset} lies inside the header, which takes {least} bytes")
    return offset


def _whole_offset(fields: Any, name: str) -> int:
    value = float(fields["vox_offset"])
    if not math.isfinite(value) or value != int(value):
        raise FileFormatError(f"{name}: vox_offset {value:g} is not a position in the file")
    return int(value)


def _geometry(header: NiftiHeader) -> Geometry:
    fields, name = header.fields, header.name
    code = int(fields["xyzt_units"]) & 7
    if code not in _MM_OF_UNIT:
        raise FileFormatError(f"{name}: its header has the unknown code {code} for the unit of length")
    to_mm = _MM_OF_UNIT[code]
    axes = min(len(header.shape), 3)
    lengths = (*header.shape[:3], *(1,) * (3 - axes))
    sizes = np.abs(fields["pixdim"][1:4].astype(float))
    has_sform, has_qform = int(fields["sform_code"]) > 0, int(fields["qform_code"]) > 0
    needed = [axis for axis in range(3) if axis < min(2, axes) or lengths[axis] > 1]
    # Some files do not give the thickness of a single plane; any number will do there.
    sizes[[not (np.isfinite(s) and s > 0) and a not in needed for a, s in enumerate(sizes)]] = 1.0
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise FileFormatError(
            f"{name}: its header gives voxels of {voxel_text(sizes[:axes] * to_mm)} (pixdim); expected numbers above 0"
        )
    sform = _sform(fields, name) if has_sform else None
    qform = _qform(fields, sizes, name) if has_qform else None
    affine = sform if sform is not None else qform
    if affine is None:
        affine = _checked(np.diag([*sizes, 1.0]), "voxel size (pixdim)", name)
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    if sform is not None and not np.allclose(norms[needed], sizes[needed], rtol=SAME_SIZE):
        raise FileFormatError(
            f"{name}: its header gives two voxel sizes, {voxel_text(sizes[needed] * to_mm)} (pixdim) and "
            f"{voxel_text(norms[needed] * to_mm)} (sform); set both to the right one"
        )
    sized = code != 0 or not np.allclose(norms[needed], 1)
    # The third column does not change the position of a single plane.
    known = [*needed, 3]
    other = None
    if sform is not None and qform is not None:
        apart = np.abs(sform[:3, known] - qform[:3, known]) / norms[needed].min()
        other = qform if (apart > SAME_SIZE * 10).any() else None
    return Geometry(
        _in_mm(affine, to_mm),
        sized,
        sform is not None or qform is not None,
        axes,
        None if other is None else _in_mm(other, to_mm),
    )


def _in_mm(affine: Affine, to_mm: float) -> Affine:
    # NIfTI-1 stores 32 bits: 0.01 must be read as 0.01.
    clean = np.array([[float(f"{value:.7g}") for value in row] for row in affine])
    clean[:3] *= to_mm
    return clean


def _sform(fields: Any, name: str) -> Affine:
    affine: Affine = np.eye(4)
    affine[:3] = [fields[row].astype(float) for row in ("srow_x", "srow_y", "srow_z")]
    return _checked(affine, "sform", name)


def _checked(affine: Affine, kind: str, name: str) -> Affine:
    """Return an affine after checking that it is finite and invertible."""
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    finite = np.isfinite(affine).all() and np.isfinite(norms).all() and (norms > 0).all()
    if finite and abs(np.linalg.det(affine[:3, :3] / norms)) > 1e-6:
        return affine
    raise FileFormatError(f"{name}: its {kind} is not a valid mapping to space: {affine[:3].tolist()}")


def _qform(fields: Any, sizes: Affine, name: str) -> Affine:
    import nibabel as nib

    copy = fields.copy()
    copy["pixdim"][1:4] = sizes
    try:
        affine: Affine = np.asarray(copy.get_qform(), float)
    except (nib.spatialimages.HeaderDataError, ValueError) as error:
        raise FileFormatError(f"{name}: its qform is not a valid mapping to space: {error}") from error
    return _checked(affine, "qform", name)
