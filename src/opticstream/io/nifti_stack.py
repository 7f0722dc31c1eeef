"""A NIfTI stack that grows: slice N is written in its own place, and slices 1..N-1 are not touched.

The file is uncompressed, so that every slice lies at a known offset. The data are written first and the header's slice
count last, so that a reader never counts a missing slice. Missing slices are NaN (0 for whole numbers). The first pixel
need not be that of the sample: `intent_p1` and `intent_p2` say which one it is, and the affine follows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from opticstream.io.atomic import atomic_path
from opticstream.io.canvas import MARGIN_PX, BlockReader, Canvas, Pair
from opticstream.io.geometry import SAME_DIRECTION, SAME_SIZE, Affine, Geometry, voxel_text
from opticstream.io.nifti_header import LONGEST_AXIS_NIFTI1, read_nifti_header
from opticstream.model.errors import FileFormatError
from opticstream.system.disk import sync_handle

_NIFTI1_BYTES, _NIFTI2_BYTES = 352, 544
_STEP = (MARGIN_PX, MARGIN_PX)
_STRIP_BYTES = 8 << 20


@dataclass(frozen=True)
class _Stack:
    """A stack's header, and the offset of its slice count."""

    canvas: Canvas
    count: int
    dtype: np.dtype[Any]
    header_bytes: int
    geometry: Geometry

    @property
    def plane_bytes(self) -> int:
        return self.canvas.size[0] * self.canvas.size[1] * self.dtype.itemsize

    def place(self, index: int) -> int:
        """Return the first byte of a slice."""
        return self.header_bytes + index * self.plane_bytes

    def write_count(self, file: BinaryIO, count: int) -> None:
        """Write the slice count, dim[3]."""
        old = self.header_bytes == _NIFTI1_BYTES
        file.seek(46 if old else 40)
        file.write(struct.pack("<h" if old else "<q", count))

    def check_count(self, path: Path, count: int) -> None:
        """Raise FileFormatError if the header cannot count so many slices."""
        if self.header_bytes == _NIFTI1_BYTES and count > LONGEST_AXIS_NIFTI1:
            raise FileFormatError(f"{path}: counts at most {LONGEST_AXIS_NIFTI1} slices; remove it to start again")


def put_slice(
    path: Path,
    slice_index: int,
    shape: Pair,
    read: BlockReader,
    /,
    *,
    affine_mm: Affine,
    dtype: str = "float32",
    description: str = "",
    low_px: Pair = (0, 0),
    margin_px: int = 0,
) -> None:
    """Write one slice of a stack, making or growing the stack where needed.

    Parameters
    ----------
    path : Path
        Stack, `.nii`.
    slice_index : int
        Place in the stack, 0-based.
    shape : (int, int)
        Size of the slice along x and y. A slice smaller than the stack is padded; for a larger one the whole stack is
        rewritten once, under a temporary name, with the larger size.
    read : callable
        Returns blocks (x, y, 1) of the slice for ranges of pixels of the sample, so that it never has to be in memory
        as a whole.
    dtype : str
        Type of the values, `float32` or `uint8`.
    affine_mm : ndarray, shape (4, 4)
        Maps the index (x, y, slice, 1) in the sample to mm, in NIfTI's axes; it is written when the stack is created.
    description : str
        At most 79 characters.
    low_px : (int, int)
        Pixel of the sample where the image begins.
    margin_px : int
        Room that a stack leaves around its slices, so that it rarely has to be rewritten.

    Raises
    ------
    FileFormatError
        The existing file is not a stack of this type, or of other voxels.
    """
    kind, extent = np.dtype(dtype), Canvas.of(shape, low_px)
    if not path.exists():
        canvas = Canvas.start(margin_px).grown(extent, step_px=_STEP, margin_px=margin_px)
        header = _header(canvas, slice_index + 1, kind, affine_mm, description.encode()[:79])
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.write(header)
            for _ in range(slice_index):
                file.writelines(_blank_plane(canvas, kind))
            file.writelines(_plane(canvas, kind, extent, read))
        return
    stack = _opened(path)
    if stack.dtype != kind:
        raise FileFormatError(f"{path}: holds {stack.dtype}, the new slice {kind}; remove it to start again")
    given, held = Geometry(affine_mm, positioned=True), stack.geometry
    if not np.allclose(held.voxel_size_mm, given.voxel_size_mm, rtol=SAME_SIZE):
        raise FileFormatError(
            f"{path}: holds voxels of {voxel_text(held.voxel_size_mm)}, the new slice has "
            f"{voxel_text(given.voxel_size_mm)}; remove it to start again"
        )
    if not np.allclose(held.directions, given.directions, atol=SAME_DIRECTION):
        raise FileFormatError(f"{path}: has axes {held.says()}, the new slice {given.says()}; remove it to start again")
    fit_stack(path, extent, margin_px=margin_px)
    stack = _opened(path)
    stack.check_count(path, slice_index + 1)
    with path.open("r+b") as file:
        for index in range(stack.count, slice_index):
            file.seek(stack.place(index))
            file.writelines(_blank_plane(stack.canvas, stack.dtype))
        file.seek(stack.place(slice_index))
        file.writelines(_plane(stack.canvas, stack.dtype, extent, read))
        file.flush()
        sync_handle(file.fileno(), path)
        if slice_index >= stack.count:
            stack.write_count(file, slice_index + 1)
            file.flush()
            sync_handle(file.fileno(), path)


def fit_stack(path: Path, extent: Canvas, /, *, margin_px: int = 0) -> None:
    """Have a stack hold a part of the sample, blank where nothing is; it is rewritten once where it has to grow.

    Raises
    ------
    FileFormatError
        The file is not a stack of this type.
    """
    stack = _opened(path)
    wanted = stack.canvas.grown(extent, step_px=_STEP, margin_px=margin_px)
    if wanted != stack.canvas:
        _enlarge(path, stack, wanted)


def stack_canvas(path: Path, /) -> Canvas:
    """Return the pixels of the sample that a stack holds.

    Raises
    ------
    FileFormatError
        The file is not a stack of this type.
    """
    return _opened(path).canvas


def blank_slice(path: Path, slice_index: int, /) -> None:
    """Clear a slice (NaN, 0 for whole numbers); a shorter stack is not changed.

    Raises
    ------
    FileFormatError
        The file is not a stack of this type.
    """
    stack = _opened(path)
    if slice_index >= stack.count:
        return
    with path.open("r+b") as file:
        file.seek(stack.place(slice_index))
        file.writelines(_blank_plane(stack.canvas, stack.dtype))
        file.flush()
        sync_handle(file.fileno(), path)


def _plane(canvas: Canvas, dtype: np.dtype[Any], extent: Canvas, read: BlockReader) -> Iterator[bytes]:
    """Yield the bytes of a slice, a few rows at a time: what `read` returns within its extent, blank around it."""
    rows = max(1, _STRIP_BYTES // (canvas.size[0] * dtype.itemsize))
    xs = slice(extent.low[0], extent.high[0])
    for y in range(canvas.low[1], canvas.high[1], rows):
        strip = np.full((canvas.size[0], min(rows, canvas.high[1] - y)), np.nan if dtype.kind == "f" else 0, dtype)
        ys = slice(max(y, extent.low[1]), min(y + rows, extent.high[1]))
        if xs.stop > xs.start and ys.stop > ys.start:
            x = xs.start - canvas.low[0]
            strip[x : x + xs.stop - xs.start, ys.start - y : ys.stop - y] = read(xs, ys)[:, :, 0]
        yield strip.tobytes(order="F")


def _blank_plane(canvas: Canvas, dtype: np.dtype[Any]) -> Iterator[bytes]:
    """Yield the bytes of a slice that shows nothing."""
    return _plane(canvas, dtype, Canvas(canvas.low, canvas.low), lambda _xs, _ys: np.empty((0, 0, 1), dtype))


def _moved(affine: Affine, px: Pair) -> Affine:
    """Return the affine of an image that begins `px` pixels further."""
    moved = np.array(affine, float)
    moved[:, 3] = moved @ [*px, 0, 1]
    return moved


def _header(canvas: Canvas, count: int, dtype: np.dtype[Any], affine_mm: Affine, description: bytes) -> bytes:
    """Return the bytes before the slices; NIfTI-2 if an axis is too long for NIfTI-1. The affine is of the sample."""
    import nibabel as nib

    shape, affine = (*canvas.size, count), _moved(affine_mm, canvas.low)
    short = max(shape) <= LONGEST_AXIS_NIFTI1
    kind: Any = nib.Nifti1Header if short else nib.Nifti2Header
    header = kind(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_zooms(Geometry(affine).voxel_size_mm)
    header.set_xyzt_units("mm")
    header["intent_p1"], header["intent_p2"] = canvas.low
    header["descrip"] = description
    header["magic"] = b"n+1" if short else b"n+2"
    header["vox_offset"] = _NIFTI1_BYTES if short else _NIFTI2_BYTES
    return bytes(header.binaryblock) + b"\0" * 4


def _opened(path: Path) -> _Stack:
    try:
        header = read_nifti_header(path)
    except FileFormatError as error:
        raise FileFormatError(f"{error}; remove the stack to start again") from error
    expected = _NIFTI1_BYTES if int(header.fields["sizeof_hdr"]) == 348 else _NIFTI2_BYTES
    types = (np.dtype("<f4"), np.dtype("u1"))
    if len(header.shape) != 3 or header.dtype not in types or header.offset != expected or header.scaled:
        raise FileFormatError(f"{path}: is not a stack that can grow; remove it to start again")
    x, y, count = header.shape
    canvas = Canvas.of((x, y), (int(header.fields["intent_p1"]), int(header.fields["intent_p2"])))
    return _Stack(canvas, count, header.dtype, expected, header.geometry)


def _enlarge(path: Path, old: _Stack, canvas: Canvas) -> None:
    """Rewrite a stack with larger slices."""
    header, low = read_nifti_header(path), old.canvas.low
    of_sample = _moved(header.geometry.affine_mm, (-low[0], -low[1]))
    content = _header(canvas, old.count, old.dtype, of_sample, bytes(header.fields["descrip"].item()))
    with path.open("rb") as source, atomic_path(path) as temporary, temporary.open("wb") as target:

        def read(_xs: slice, ys: slice) -> NDArray[Any]:
            """Return rows of the slice, which are asked for in the order of the file."""
            rows = ys.stop - ys.start
            held = source.read(rows * old.canvas.size[0] * old.dtype.itemsize)
            return np.frombuffer(held, old.dtype).reshape((old.canvas.size[0], rows, 1), order="F")

        source.seek(old.header_bytes)
        target.write(content)
        for _ in range(old.count):
            target.writelines(_plane(canvas, old.dtype, old.canvas, read))
