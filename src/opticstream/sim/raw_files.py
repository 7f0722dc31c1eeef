"""Raw tile files as rigs write them: under their final name from the first byte, a few lines at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.config.scan import ScanSettings
from opticstream.sim.onboard import complex_depth

Counts = NDArray[np.uint16]


def packed_from_counts(counts: Counts, /) -> bytes:
    """Return 12-bit packed samples: three bytes hold two of them.

    Examples
    --------
    >>> packed_from_counts(np.array([0xABC, 0x123], dtype=np.uint16)).hex()
    'bc3a12'
    """
    flat = counts.reshape(-1, 2)
    out = np.empty((len(flat), 3), dtype=np.uint8)
    out[:, 0] = flat[:, 0] & 0xFF
    out[:, 1] = (flat[:, 0] >> 8) | ((flat[:, 1] & 0x0F) << 4)
    out[:, 2] = flat[:, 1] >> 4
    return out.tobytes()


def nifti_header(dims: tuple[int, ...], dtype: str, voxel_size_mm: tuple[float, ...], /) -> bytes:
    """Return the 352 bytes before the data of a NIfTI-1 file; dims beyond the format's limit are folded."""
    import nibabel as nib

    header: Any = nib.Nifti1Header()
    header.set_data_dtype(np.dtype(dtype))
    if max(dims) > 32767:  # a rig's software writes something; readers go by the product
        total = int(np.prod(dims))
        factor = next(f for f in range(1, 32768) if total % f == 0 and total // f <= 32767**2 and f > 1)
        rest = total // factor
        second = next(f for f in range(-(-rest // 32767), 32768) if rest % f == 0)
        dims = (factor, second, rest // second)
    header.set_data_shape(dims)
    header.set_zooms((tuple(voxel_size_mm) + (1.0,) * 4)[: len(dims)])
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return bytes(header.binaryblock) + b"\0" * 4


def raw_size(scan: ScanSettings, illumination: int, /, *, cut: int = 24, zero_padding: int = 1) -> int:
    """Return the number of bytes of a complete raw file."""
    a_lines, b_lines = scan.tile_shape(illumination)
    samples = scan.samples * scan.channels * a_lines * b_lines
    match scan.raw_format:
        case "nifti":
            return 352 + 2 * samples
        case "packed12":
            return samples // 2 * 3
    depth = complex_depth(scan.samples, cut=cut, zero_padding=zero_padding)
    return 352 + 4 * 2 * scan.channels * a_lines * b_lines * depth


def spectral_pieces(blocks: Iterable[Counts], scan: ScanSettings, illumination: int, /) -> Iterator[tuple[bytes, int]]:
    """Yield the bytes of a raw spectral file in order, each with the number of A-lines that it stands for."""
    a_lines, b_lines = scan.tile_shape(illumination)
    x_mm, y_mm, _ = scan.scan_resolution_3d
    packed = scan.raw_format == "packed12"
    if not packed:
        yield nifti_header((scan.samples, a_lines, scan.channels, b_lines), "uint16", (1.0, x_mm, 1.0, y_mm)), 0
    for block in blocks:
        yield (packed_from_counts(block) if packed else block.astype("<u2").tobytes()), block.shape[0] * a_lines


def complex_pieces(
    volume: NDArray[np.complex64], scan: ScanSettings, illumination: int, /, *, planes: int = 16
) -> Iterator[tuple[bytes, int]]:
    """Yield the bytes of a complex tile file in order.

    Parameters
    ----------
    volume : ndarray, shape (channels, A-lines, B-lines, depth)
        Complex depth profiles, shallow first; the file holds them deep first.
    scan, illumination
        Voxel size, and which illumination it is.
    planes : int
        Depth planes per piece.
    """
    channels, a_lines, b_lines, depth = volume.shape
    yield nifti_header((2 * channels * a_lines, b_lines, depth), "float32", scan.scan_resolution_3d), 0
    total, done = a_lines * b_lines, 0
    for start in range(0, depth, planes):
        part = volume[..., ::-1][..., start : start + planes]
        rows = np.concatenate([p for c in range(channels) for p in (part[c].real, part[c].imag)])
        reached = total * min(start + planes, depth) // depth
        yield rows.astype("<f4").tobytes(order="F"), reached - done
        done = reached


def write_slowly(
    path: Path,
    pieces: Iterable[tuple[bytes, int]],
    /,
    *,
    pace: Callable[[int], None] = lambda a_lines: None,
    limit_bytes: int | None = None,
) -> None:
    """Write pieces under the final name, so that readers meet the file while it grows.

    `pace` is called with the A-lines of each piece after it has been flushed; `limit_bytes` breaks the file off.
    """
    written = 0
    with path.open("wb", buffering=0) as handle:
        for data, a_lines in pieces:
            if limit_bytes is not None:
                data = data[: limit_bytes - written]
            handle.write(data)
            written += len(data)
            pace(a_lines)
