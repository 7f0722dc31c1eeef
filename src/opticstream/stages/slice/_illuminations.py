"""The stitched maps of the illuminations of one slice: read, and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.axis import IlluminationImages
from opticstream.compute.stitching import tissue_mask
from opticstream.config.processing import MaskSettings, RegistrationSettings
from opticstream.io.geometry import SAME_DIRECTION, SAME_SIZE, Geometry, voxel_text
from opticstream.io.nifti import map_from_nifti, nifti_geometry
from opticstream.model.errors import InputError, MissingInputError
from opticstream.model.modalities import mosaic_names

_DETAILS = ("aip",)
"""Maps that sharpen the registration where both illuminations have them."""

_LARGEST_BIREFRINGENCE = 0.5
"""Far above that of any tissue; a map whose median is larger holds something else."""


@dataclass(frozen=True)
class SliceMosaic:
    """Stitched maps of one illumination of the slice and the direction of its beam."""

    name: str
    """Name of the illumination."""
    maps: Mapping[str, Path]
    """File of each map by modality; `ori` and `biref` are needed, `mask` is used where it is there, all others are
    brought onto the fixed illumination."""
    tilt_deg: float = 0.0
    """Tilt of the beam inside the tissue, in degrees (`scan.illuminations[...].tilt_deg`)."""
    tilt_axis_deg: float = 90.0
    """Direction of the axis it is tilted about, in degrees in the image plane."""
    volumes: Mapping[str, Path] = field(default_factory=dict)
    """OME-Zarr of each stitched volume by modality; resampled if `processing.registration.resample_volumes` is on."""


def geometries_of_mosaics(mosaics: Sequence[SliceMosaic], slice_id: int) -> list[Geometry]:
    """Return where the pixels of each illumination lie; its maps must agree, and pixels have one size in the slice."""
    found: list[Geometry] = []
    for mosaic in mosaics:
        _check_names(mosaic, slice_id)
        for modality in ("ori", "biref"):
            path = mosaic.maps.get(modality)
            if path is None or not path.is_file():
                raise MissingInputError(
                    f"slice {slice_id}: the {modality} mosaic of the {mosaic.name} illumination is missing"
                    + (f" ({path})" if path else "")
                )
        found.append(_geometry(mosaic, slice_id))
        first = found[0]
        path, first_path = mosaic.maps["biref"], mosaics[0].maps["biref"]
        if not np.allclose(found[-1].voxel_size_mm[:2], first.voxel_size_mm[:2], rtol=SAME_SIZE):
            raise InputError(
                f"slice {slice_id}: {path.name} has pixels of {voxel_text(found[-1].voxel_size_mm[:2])}, "
                f"{first_path.name} of {voxel_text(first.voxel_size_mm[:2])}; mosaics of one slice must have one pixel "
                "size (scan.scan_resolution_3d)"
            )
        if found[-1].positioned != first.positioned or (
            first.positioned and ((found[-1].directions * first.directions).sum(axis=0)[:2] < 0.7).any()
        ):
            raise InputError(
                f"slice {slice_id}: the header of {path} has {_way(found[-1])}, that of {first_path} {_way(first)}; "
                "bring both maps into one orientation first, angles included"
            )
    return found


def _way(geometry: Geometry) -> str:
    return f"axes {geometry.says()}" if geometry.positioned else "no orientation"


def _geometry(mosaic: SliceMosaic, slice_id: int) -> Geometry:
    """Return where the pixels of an illumination lie, by its birefringence map; its other maps must agree.

    Raises
    ------
    InputError
        They do not, or a header cannot be put into a transform for ITK.
    """
    base_path = mosaic.maps["biref"]
    base = nifti_geometry(base_path)
    for path in filter(Path.is_file, mosaic.maps.values()):
        geometry = nifti_geometry(path)
        if geometry.other_affine_mm is not None:
            raise InputError(
                f"slice {slice_id}: sform and qform of {path} lay it at two places; set them to the same, or the code "
                "of one of them to 0"
            )
        if geometry.positioned:
            geometry.check_right_angles(path)
        if geometry.axes == 2 and not np.allclose(geometry.directions[2, :2], 0, atol=SAME_DIRECTION):
            raise InputError(
                f"slice {slice_id}: {path} has two axes, which its header lays out of the x-y plane "
                f"({geometry.says()}); save it as (x, y, 1)"
            )
        if base.sized and not geometry.sized:
            continue  # its header gives no place
        if problem := _difference(geometry, base):
            raise InputError(
                f"slice {slice_id}: {path} and {base_path.name} have {problem} in their headers; maps of one "
                "illumination must lie at one place"
            )
    return base


def _difference(one: Geometry, other: Geometry) -> str:
    """Return what tells two geometries apart; empty where nothing does."""
    if not np.allclose(one.voxel_size_mm[:2], other.voxel_size_mm[:2], rtol=SAME_SIZE):
        return f"pixels of {voxel_text(one.voxel_size_mm[:2])} and {voxel_text(other.voxel_size_mm[:2])}"
    if one.positioned != other.positioned:
        return f"{_way(one)} and {_way(other)}"
    if not one.positioned:
        return ""
    if not np.allclose(one.directions[:, :2], other.directions[:, :2], atol=SAME_DIRECTION):
        return f"{_way(one)} and {_way(other)}"
    apart = float(np.linalg.norm(np.subtract(one.origin_mm, other.origin_mm)))
    if apart > 0.5 * min(other.voxel_size_mm[:2]):
        return f"origins that lie {apart:g} mm apart"
    return ""


def _check_names(mosaic: SliceMosaic, slice_id: int) -> None:
    """Raise InputError for a map whose file name names another modality."""
    known = mosaic_names()
    for modality, path in mosaic.maps.items():
        named = path.name.split(".")[0].rsplit("_", 1)[-1]
        if named in known and modality in known and named != modality:
            raise InputError(
                f"slice {slice_id}: {path} is given as the {modality} map of the {mosaic.name} illumination, its "
                f"name says {named}"
            )


def read_image(path: Path) -> NDArray[np.float32]:
    """Return a map, shape (x, y)."""
    return np.asarray(map_from_nifti(path), np.float32)


def _mask(mosaic: SliceMosaic, modality: str, making: MaskSettings | None) -> NDArray[np.bool_] | None:
    """Return the mask for the registration: the file that came with the mosaic, or one made from a map; or none."""
    source = mosaic.maps.get("mask") if modality else None
    if source is not None and source.is_file():
        mask = np.nan_to_num(read_image(source)) != 0
    elif modality in mosaic.maps and making is not None:
        source = mosaic.maps[modality]
        mask = tissue_mask(
            read_image(source),
            threshold=making.threshold_for(mosaic.name),
            sigma_px=making.sigma_px,
            min_fraction=making.min_fraction,
        )
    else:
        return None
    if not mask.any():
        raise InputError(f"{source}: the mask is empty (processing.mask.threshold_db of {mosaic.name!r}?)")
    return np.asarray(mask)


def read_illumination(
    mosaic: SliceMosaic, options: RegistrationSettings, making: MaskSettings | None
) -> IlluminationImages:
    details = {name: read_image(mosaic.maps[name]) for name in _DETAILS if name in mosaic.maps}
    orientation, birefringence = read_image(mosaic.maps["ori"]), read_image(mosaic.maps["biref"])
    mask = _mask(mosaic, options.mask_file_type, making)
    for modality, image in (("ori", orientation), ("biref", birefringence)):
        path = mosaic.maps[modality]
        if not np.isfinite(image).any():
            raise InputError(f"{path}: holds no finite value")
        if image.shape != birefringence.shape or (mask is not None and image.shape != mask.shape):
            raise InputError(
                f"{path}: shape {image.shape}, but birefringence {birefringence.shape}"
                + (f" and mask {mask.shape}" if mask is not None else "")
                + f" of the {mosaic.name} illumination; maps of one mosaic must have one size"
            )
    typical = float(np.nanmedian(np.abs(birefringence)))
    if typical > _LARGEST_BIREFRINGENCE:
        raise InputError(
            f"{mosaic.maps['biref']}: half of its values exceed {typical:.3g}, which no birefringence does; is it a "
            "map of another modality, or in other units?"
        )
    return IlluminationImages(
        mosaic.name, orientation, birefringence, mosaic.tilt_deg, mosaic.tilt_axis_deg, mask, details
    )
