"""Bring stitched volumes of a tilted illumination onto the voxels of the fixed one, block by block."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opticstream.compute.axis import beam_frames
from opticstream.compute.registration import PlanarTransform, Slant, resampled, resampled_blocks
from opticstream.io.atomic import atomic_folder
from opticstream.io.zarr import SliceStore, volume_reader, volume_voxel_um
from opticstream.model.errors import InputError
from opticstream.model.modalities import described


@dataclass(frozen=True)
class BeamTilt:
    """Direction of the moving illumination's beam in the tissue."""

    tilt_deg: float = 0.0
    tilt_axis_deg: float = 90.0


def resample_volume(
    source: Path,
    target: Path,
    mapping: PlanarTransform,
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
    mapping : PlanarTransform
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
        resample = functools.partial(resampled, how=volume.resampling)
        slant = _slant(tilt, size[2], voxel)
        store.put(0, shape, resampled_blocks(read, mapping, size=size, resample=resample, slant=slant))
    return target


def _slant(tilt: BeamTilt | None, planes: int, voxel: tuple[float, float, float]) -> Slant | None:
    """Return where planes of equal depth in the tissue lie in a volume whose z axis is the beam."""
    if tilt is None or not tilt.tilt_deg:
        return None
    depth = np.arange(planes, dtype=float)
    beam = beam_frames(tilt.tilt_deg, tilt_axis_deg=tilt.tilt_axis_deg)[2]
    return Slant(depth / beam[2], -np.outer(depth * voxel[2], beam[:2] / beam[2] / np.array(voxel[:2])))
