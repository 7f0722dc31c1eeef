"""Bring stitched volumes of a tilted illumination onto the voxels of the fixed one, block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.axis import beam_frames
from opticstream.compute.plane_map import PlaneMap
from opticstream.compute.resampling import resampled
from opticstream.io.atomic import atomic_folder
from opticstream.io.slice_store import SliceStore
from opticstream.io.volume_reading import volume_reader, volume_voxel_um
from opticstream.model.errors import InputError
from opticstream.model.modalities import Resampling, described


@dataclass(frozen=True)
class BeamTilt:
    """Direction of the moving illumination's beam in the tissue."""

    tilt_deg: float = 0.0
    tilt_axis_deg: float = 90.0


def resample_volume(
    source: Path,
    target: Path,
    mapping: PlaneMap,
    /,
    *,
    modality: str,
    shape: tuple[int, int],
    tilt: BeamTilt | None = None,
) -> Path:
    """Write a moving volume on the fixed illumination's pixels as OME-Zarr and return its path.

    Parameters
    ----------
    source, target : Path
        OME-Zarr of the moving illumination, and the one to make; it appears only when complete.
    mapping : PlaneMap
        From fixed to moving pixels, as the registration of the en face maps found it.
    modality : str
        Angles of axes are resampled as axes and turned with the picture, numbers linearly.
    shape : (int, int)
        Size of the fixed mosaic.
    tilt : BeamTilt, optional
        Undo the beam's slant: a point at depth z lies z / cos(tilt) along the beam, and sideways from where the beam
        entered. Planes of the result then are planes of equal depth in the tissue. None: leave depth as it is.

    Raises
    ------
    FileFormatError
        The source is no OME-Zarr volume.
    InputError
        The mapping has a displacement of another size than `shape`.
    """
    size, read = volume_reader(source)
    voxel = volume_voxel_um(source)
    if mapping.displacement is not None and mapping.displacement.shape[1:] != shape:
        raise InputError(f"{source}: displacement of {mapping.displacement.shape[1:]} px for a mosaic of {shape} px")
    volume = described(modality)
    with atomic_folder(target) as temporary:
        store = SliceStore(temporary, size[2], voxel, volume.kind, name=target.name)
        store.put(0, shape, _reader(read, size, mapping, volume.resampling, voxel, shape, tilt))
    return target


def _reader(
    read: Callable[[slice, slice], NDArray[Any]],
    size: tuple[int, int, int],
    mapping: PlaneMap,
    how: Resampling,
    voxel: tuple[float, float, float],
    shape: tuple[int, int],
    tilt: BeamTilt | None,
) -> Callable[[slice, slice], NDArray[Any]]:
    depth = np.arange(size[2], dtype=float)
    along, sideways = depth, np.zeros((size[2], 2))
    if tilt is not None and tilt.tilt_deg:
        beam = beam_frames(tilt.tilt_deg, tilt_axis_deg=tilt.tilt_axis_deg)[2]
        along = depth / beam[2]
        sideways = -np.outer(depth * voxel[2], beam[:2] / beam[2] / np.array(voxel[:2]))

    def block(xs: slice, ys: slice) -> NDArray[np.float32]:
        out_shape = (xs.stop - xs.start, ys.stop - ys.start)
        corners = np.array([[x, y] for x in (xs.start, xs.stop - 1) for y in (ys.start, ys.stop - 1)], float)
        slack = np.abs(mapping.displacement).max() if mapping.displacement is not None else 0.0
        reach = np.concatenate([mapping.points(corners + sideways[k]) for k in (0, -1)])
        low = np.maximum(np.floor(reach.min(0) - slack).astype(int) - 1, 0)
        high = np.minimum(np.ceil(reach.max(0) + slack).astype(int) + 2, size[:2])
        if (high <= low).any():
            return np.full((*out_shape, 1), np.nan, np.float32)
        part = read(slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))).astype(np.float32)
        bend = mapping.displacement[:, xs, ys] if mapping.displacement is not None else None
        planes = []
        for z in range(size[2]):
            start = mapping.points(np.array([xs.start, ys.start]) + sideways[z]) - low
            local = PlaneMap(mapping.matrix, start, bend)
            # The nearest plane will do: planes lie closer together than anything that changes with depth.
            index = round(along[z])
            plane = part[:, :, index] if index < size[2] else np.full(part.shape[:2], np.nan, np.float32)
            planes.append(resampled(plane, local, how=how, shape=out_shape))
        return np.stack(planes, axis=2)

    return block
