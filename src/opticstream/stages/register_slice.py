"""Register the illuminations of one slice and solve its fibre axes: stitched maps in, axes and pictures out."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.axis import AxisField, AxisFlag
from opticstream.compute.registration import Registration
from opticstream.compute.slice_axis import (
    AlignedIllumination,
    IlluminationImages,
    SliceAxis,
    aligned_map,
    slice_axis_from_illuminations,
)
from opticstream.compute.stitching.mask import tissue_mask
from opticstream.config.processing import MaskSettings, RegistrationSettings
from opticstream.io import orientation_pictures as pictures
from opticstream.io.atomic import write_bytes, write_text
from opticstream.io.nifti import read_nifti, voxel_size_mm, write_nifti
from opticstream.model.errors import ConfigurationError, InputError, MissingInputError
from opticstream.stages.resample_volumes import BeamTilt, resample_volume
from opticstream.state.manifest import write_manifest

_DETAILS = ("aip",)
"""Maps that sharpen the registration where both illuminations have them."""

_MODALITIES = frozenset({"aip", "mip", "ret", "ori", "biref", "surf", "mus", "mask"})
_LARGEST_BIREFRINGENCE = 0.5
"""No tissue comes near it; the median of a map above it means that the map holds something else."""

MAT_HEADER = b"MATLAB 5.0 MAT-file, written by OpticStream"


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


@dataclass(frozen=True)
class RegisteredSlice:
    """What was made of a slice."""

    outputs: dict[str, Path]
    """File of each product."""
    pictures: tuple[Path, ...] = ()
    """Pictures for people (JPEG)."""
    failures: tuple[str, ...] = ()
    """Illuminations that could not be registered, and why."""
    has_axis: bool = True
    """Whether at least two illuminations were registered, so that there are fibre axes."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What stands in the transform file: figures of each registration, shares of flagged pixels."""

    @property
    def why_no_axis(self) -> str:
        """Why there are no fibre axes; empty where there are some."""
        return "" if self.has_axis else "no fibre axis: " + "; ".join(self.failures)


def register_slice(
    mosaics: Sequence[SliceMosaic],
    folder: Path,
    /,
    *,
    slice_id: int,
    settings: RegistrationSettings | None = None,
    mask: MaskSettings | None = None,
    subject_id: str = "01",
    project_name: str = "",
    threads: int = 0,
) -> RegisteredSlice:
    """Register the mosaics of one slice onto the first of them and write everything that follows.

    Parameters
    ----------
    mosaics : sequence of SliceMosaic
        Two or more illuminations; the first one is the fixed one.
    folder : Path
        Folder of the results (`registered/` of the project).
    slice_id : int
        Slice, for the file names.
    settings : RegistrationSettings, optional
        `processing.registration`.
    mask : MaskSettings, optional
        `processing.mask`: makes the mask of a mosaic that comes without one, from the map that
        `settings.mask_file_type` names. Without it such a mosaic has no mask.
    subject_id, project_name : str
        For the template of file names.
    threads : int
        Threads for the axis; 0 takes all. The results do not depend on it.

    Returns
    -------
    RegisteredSlice
        Also where the registration failed: then the transform file and the overlays say why, and there is no axis.

    Raises
    ------
    MissingInputError, InputError
        Fewer than two illuminations, a map is missing, empty, of another size or voxel size than the others of its
        illumination, or has no valid pixel.
    """
    options = settings or RegistrationSettings()
    if len(mosaics) < 2:
        raise InputError(
            f"slice {slice_id}: the fibre axis needs at least two illuminations, got {[m.name for m in mosaics]}"
        )
    voxel = _voxel_size(mosaics, slice_id)
    names = _Names(folder, options.file_name, slice_id, subject_id, project_name)
    try:
        illuminations = [_read(mosaic, options, mask) for mosaic in mosaics]
        result = slice_axis_from_illuminations(
            illuminations,
            freedom=options.transform,
            bend_sigma_px=options.bend_sigma_px,
            sigma_px=options.smoothing_sigma_px,
            axis_sigma_px=options.axis_smoothing_sigma_px,
            use_mask=bool(options.mask_file_type),
            min_birefringence=options.min_birefringence,
            branch_sigma=options.branch_sigma,
            max_uncertainty_deg=options.max_uncertainty_deg,
            min_overlap=options.min_overlap,
            min_confidence=options.min_confidence,
            max_residual_px=options.max_residual_px,
            threads=threads,
        )
    except InputError as error:
        raise type(error)(f"slice {slice_id}: {error}") from error
    except ValueError as error:
        files = ", ".join(m.maps["biref"].name for m in mosaics)
        raise InputError(f"slice {slice_id} ({files}): {error}") from error

    outputs: dict[str, Path] = {}
    shown: list[Path] = []
    outputs |= _write_transforms(names, mosaics, result, voxel)
    shown += _write_overlays(names, illuminations, result)
    outputs |= _write_aligned_maps(names, mosaics, illuminations, result, voxel)
    if options.resample_volumes:
        outputs |= _write_aligned_volumes(names, mosaics, result)
    summary = _summary(mosaics, result)
    if result.axes is not None:
        outputs |= _write_axis(names, result.axes, voxel)
        made = _write_axis_pictures(names, result.axes)
        outputs |= made
        shown += [path for path in made.values() if path.suffix == ".jpg"]
    outputs["transform"] = write_text(names("transform", ".json"), json.dumps(summary, indent=1, sort_keys=True) + "\n")
    return RegisteredSlice(
        outputs=outputs,
        pictures=tuple(shown),
        failures=result.failures,
        has_axis=result.axes is not None,
        summary=summary,
    )


@dataclass(frozen=True)
class _Names:
    """Names of the outputs of one slice, by the template `processing.registration.file_name`."""

    folder: Path
    template: str
    slice_id: int
    subject_id: str
    project_name: str

    def __call__(self, product: str, suffix: str) -> Path:
        try:
            name = self.template.format(
                slice=self.slice_id, product=product, subject=self.subject_id, project=self.project_name
            )
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigurationError(
                f"processing.registration.file_name = {self.template!r}: {error!r}; known fields are slice, product, "
                "subject, project"
            ) from error
        if "{product" not in self.template or "{slice" not in self.template:
            raise ConfigurationError(
                f"processing.registration.file_name = {self.template!r} must hold {{slice}} and {{product}}, "
                "or outputs would overwrite each other"
            )
        return self.folder / f"{name}{suffix}"


def _voxel_size(mosaics: Sequence[SliceMosaic], slice_id: int) -> tuple[float, ...]:
    sizes: dict[Path, tuple[float, ...]] = {}
    for mosaic in mosaics:
        _check_names(mosaic, slice_id)
        for modality in ("ori", "biref"):
            path = mosaic.maps.get(modality)
            if path is None or not path.is_file():
                raise MissingInputError(
                    f"slice {slice_id}: the {modality} mosaic of the {mosaic.name} illumination is missing"
                    + (f" ({path})" if path else "")
                )
            # NIfTI keeps 32 bits; what was written as 0.01 is to be read as 0.01.
            sizes[path] = tuple(float(f"{size:.6g}") for size in voxel_size_mm(path))
    first_path, first = next(iter(sizes.items()))
    for path, size in sizes.items():
        if not np.allclose(size[:2], first[:2], rtol=1e-3):
            raise InputError(
                f"slice {slice_id}: {path.name} has pixels of {size[:2]} mm, {first_path.name} of {first[:2]} mm; "
                "mosaics of one slice must have one pixel size (scan.scan_resolution_3d)"
            )
    return first


def _check_names(mosaic: SliceMosaic, slice_id: int) -> None:
    """Refuse a map whose file name says that it is one of another modality."""
    for modality, path in mosaic.maps.items():
        named = path.name.split(".")[0].rsplit("_", 1)[-1]
        if named in _MODALITIES and modality in _MODALITIES and named != modality:
            raise InputError(
                f"slice {slice_id}: {path} is given as the {modality} map of the {mosaic.name} illumination, its "
                f"name says {named}"
            )


def _image(path: Path) -> NDArray[np.float32]:
    array = read_nifti(path)
    flat = array.reshape(array.shape[:2]) if array.ndim > 2 and array.size == np.prod(array.shape[:2]) else array
    if flat.ndim != 2:
        raise InputError(f"{path}: expected a map (x, y), got the shape {array.shape}")
    return np.asarray(flat, np.float32)


def _mask(mosaic: SliceMosaic, modality: str, making: MaskSettings | None) -> NDArray[np.bool_] | None:
    """Return the mask for the registration: the file that came with the mosaic, or one made from a map; or none."""
    source = mosaic.maps.get("mask") if modality else None
    if source is not None and source.is_file():
        mask = np.nan_to_num(_image(source)) != 0
    elif modality in mosaic.maps and making is not None:
        source = mosaic.maps[modality]
        mask = tissue_mask(
            _image(source),
            threshold=making.threshold_for(mosaic.name),
            sigma_px=making.sigma_px,
            min_fraction=making.min_fraction,
        )
    else:
        return None
    if not mask.any():
        raise InputError(f"{source}: the mask is empty (processing.mask.threshold_db of {mosaic.name!r}?)")
    return np.asarray(mask)


def _read(mosaic: SliceMosaic, options: RegistrationSettings, making: MaskSettings | None) -> IlluminationImages:
    details = {name: _image(mosaic.maps[name]) for name in _DETAILS if name in mosaic.maps}
    orientation, birefringence = _image(mosaic.maps["ori"]), _image(mosaic.maps["biref"])
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


def _summary(mosaics: Sequence[SliceMosaic], result: SliceAxis) -> dict[str, Any]:
    """Return the content of the transform file."""
    fixed = mosaics[0].name
    registrations = []
    for mosaic, image in zip(mosaics[1:], result.aligned[1:], strict=True):
        r = image.registration
        assert r is not None
        registrations.append(
            {
                "moving": mosaic.name,
                "matrix_px": r.mapping.matrix.tolist(),
                "offset_px": r.mapping.offset.tolist(),
                "rotation_deg": _json(r.mapping.rotation_deg if r.good else float("nan")),
                "residual_px": _json(r.residual_px),
                "confidence": _json(r.confidence),
                "overlap": _json(r.overlap),
                "correlation": _json(r.correlation),
                "mutual_information_before": _json(r.information_before),
                "mutual_information": _json(r.information),
                "good": r.good,
                "failures": list(r.failures),
            }
        )
    summary: dict[str, Any] = {
        "fixed": fixed,
        "meaning": "p_moving = matrix_px @ (p_fixed + displacement, where there is one) + offset_px; indices from 0",
        "beams": [{"name": m.name, "tilt_deg": m.tilt_deg, "tilt_axis_deg": m.tilt_axis_deg} for m in mosaics],
        "registrations": registrations,
        "has_axis": result.axes is not None,
    }
    if result.axes is not None:
        f = result.axes
        known = np.isfinite(f.thruplane_deg)
        seen = (f.flags & AxisFlag.NO_DATA) == 0
        summary["axis"] = {
            "share_of_pixels_with_axis": _json(float(known.sum() / max(1, seen.sum()))),
            "median_uncertainty_deg": _json(float(np.median(f.uncertainty_deg[known])) if known.any() else np.nan),
            "median_noise": _json(float(np.nanmedian(f.noise)) if seen.any() else float("nan")),
            "flagged": {
                flag.name.lower(): _json(float(((f.flags & flag) > 0).sum() / f.flags.size))
                for flag in AxisFlag
                if flag.name
            },
            "flag_bits": {flag.name.lower(): int(flag) for flag in AxisFlag if flag.name},
        }
    return summary


def _json(value: float) -> float | None:
    """Return a number rounded so that it reads well; None for NaN, which JSON lacks."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _write_transforms(
    names: _Names, mosaics: Sequence[SliceMosaic], result: SliceAxis, voxel: tuple[float, ...]
) -> dict[str, Path]:
    outputs = {}
    for mosaic, image in zip(mosaics[1:], result.aligned[1:], strict=True):
        assert image.registration is not None
        product = "transform" if len(mosaics) == 2 else f"transform_{mosaic.name}"
        text = itk_transform(image.registration, voxel_mm=voxel)
        outputs[f"{product}_itk"] = write_text(names(product, ".tfm"), text)
        bend = image.registration.mapping.displacement
        if bend is not None:
            product = "displacement" if len(mosaics) == 2 else f"displacement_{mosaic.name}"
            outputs[product] = write_nifti(
                names(product, ".nii.gz"),
                np.moveaxis(bend, 0, -1)[:, :, None, :],
                voxel_size_mm=voxel,
                description="displacement (x, y) of fixed pixels, in px",
            )
    return outputs


def itk_transform(registration: Registration, /, *, voxel_mm: tuple[float, ...]) -> str:
    """Return a registration as text of an ITK transform file, in mm in ITK's axes (left, posterior, superior).

    It maps points of the fixed NIfTI image to points of the moving one, as ITK, ANTs and 3D Slicer expect it.
    """
    size = np.diag(voxel_mm[:2])
    matrix = np.eye(3)
    matrix[:2, :2] = size @ registration.mapping.matrix @ np.linalg.inv(size)
    offset = np.append(-size @ registration.mapping.offset, 0.0)  # NIfTI's x and y point the other way in ITK
    parameters = " ".join(f"{value:.12g}" for value in [*matrix.ravel(), *(offset + 0.0)])
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {parameters}\nFixedParameters: 0 0 0\n"
    )


def _write_overlays(names: _Names, illuminations: Sequence[IlluminationImages], result: SliceAxis) -> list[Path]:
    made = []
    fixed = illuminations[0].birefringence
    shape = (fixed.shape[0], fixed.shape[1])
    for item, image in zip(illuminations[1:], result.aligned[1:], strict=True):
        before = np.full(shape, np.nan, np.float32)
        common = np.s_[: min(shape[0], item.birefringence.shape[0]), : min(shape[1], item.birefringence.shape[1])]
        before[common] = item.birefringence[common]
        product = "overlay" if len(illuminations) == 2 else f"overlay_{item.name}"
        picture = pictures.side_by_side(
            pictures.overlay(fixed, before),
            pictures.overlay(fixed, image.birefringence),
            titles=("before", "after" if image.registration and image.registration.good else "after: FAILED"),
        )
        made.append(pictures.write_picture(names(product, ".jpg"), picture))
    return made


def _write_aligned_maps(
    names: _Names,
    mosaics: Sequence[SliceMosaic],
    illuminations: Sequence[IlluminationImages],
    result: SliceAxis,
    voxel: tuple[float, ...],
) -> dict[str, Path]:
    """Write every 2-D map of the moving illuminations, and the mask that was used, on the pixels of the fixed one."""
    outputs = {}
    fixed = illuminations[0].birefringence
    shape = (fixed.shape[0], fixed.shape[1])
    for mosaic, item, image in zip(mosaics[1:], illuminations[1:], result.aligned[1:], strict=True):
        if image.registration is None or not image.registration.good:
            continue
        for modality in sorted(mosaic.maps.keys() | ({"mask"} if item.mask is not None else set())):
            path = mosaic.maps.get(modality)
            if modality == "biref":
                aligned = image.birefringence
            elif modality == "ori":
                aligned = image.orientation_deg
            elif modality == "mask" and item.mask is not None:
                source = item.mask.astype(np.float32)
                aligned = aligned_map(modality, source, image.registration.mapping, shape=shape)
            elif path is not None and path.is_file():
                source = _image(path)
                if source.shape != item.birefringence.shape:
                    raise InputError(f"{path}: shape {source.shape}, but biref {item.birefringence.shape}")
                aligned = aligned_map(modality, source, image.registration.mapping, shape=shape)
            else:
                continue
            product = f"{mosaic.name}_{modality}"
            data: NDArray[Any] = np.nan_to_num(aligned).astype(np.uint8) if modality == "mask" else aligned
            outputs[product] = write_nifti(
                names(product, ".nii.gz"), data[..., None], voxel_size_mm=voxel, description=f"{modality}, registered"
            )
    return outputs


def _write_aligned_volumes(names: _Names, mosaics: Sequence[SliceMosaic], result: SliceAxis) -> dict[str, Path]:
    """Write the volumes of the moving illuminations on the voxels of the fixed one."""
    outputs = {}
    height, width = result.aligned[0].birefringence.shape
    for mosaic, image in zip(mosaics[1:], result.aligned[1:], strict=True):
        if image.registration is None or not image.registration.good:
            continue
        for modality, path in sorted(mosaic.volumes.items()):
            product = f"{mosaic.name}_{modality}"
            outputs[product] = resample_volume(
                path,
                names(product, ".ome.zarr"),
                image.registration.mapping,
                modality=modality,
                shape=(height, width),
                tilt=BeamTilt(mosaic.tilt_deg, mosaic.tilt_axis_deg),
            )
            write_manifest(outputs[product])
    return outputs


def _write_axis(names: _Names, axis: AxisField, voxel: tuple[float, ...]) -> dict[str, Path]:
    def nifti(product: str, data: NDArray[Any], description: str) -> Path:
        return write_nifti(names(product, ".nii.gz"), data, voxel_size_mm=voxel, description=description)

    outputs = {
        "axis": nifti("axis", axis.axis[:, :, None, :], "fibre axis, unit vector (x, y, z)"),
        "inplane": nifti("inplane", axis.inplane_deg[..., None], "in-plane angle, degrees"),
        "thruplane": nifti("thruplane", axis.thruplane_deg[..., None], "through-plane angle, degrees"),
        "biref": nifti("biref", axis.birefringence[..., None], "true birefringence"),
        "uncertainty": nifti("uncertainty", axis.uncertainty_deg[..., None], "axis standard deviation, degrees"),
        "flags": nifti("flags", axis.flags[..., None], "sum of AxisFlag bits"),
    }
    common: dict[str, NDArray[Any]] = {
        "birefringence": axis.birefringence,
        "uncertainty_deg": axis.uncertainty_deg,
        "flags": axis.flags,
        "voxel_size_mm": np.array(voxel[:2], float),
    }
    outputs["inplane_mat"] = write_bytes(
        names("inplane", ".mat"), mat_bytes({"inplane_deg": axis.inplane_deg, **common})
    )
    outputs["thruplane_mat"] = write_bytes(
        names("thruplane", ".mat"), mat_bytes({"thruplane_deg": axis.thruplane_deg, "axis": axis.axis, **common})
    )
    return outputs


def mat_bytes(variables: Mapping[str, NDArray[Any]], /) -> bytes:
    """Return variables as a MATLAB 5 file whose header holds no time, so that the same data gives the same bytes."""
    from scipy import io as scipy_io

    stream: Any = io.BytesIO()
    scipy_io.savemat(stream, dict(variables), do_compression=True)
    data = bytearray(stream.getvalue())
    data[:116] = MAT_HEADER.ljust(116)
    return bytes(data)


def _write_axis_pictures(names: _Names, axis: AxisField) -> dict[str, Path]:
    """Write in-plane angle, through-plane angle and axis as colours, dimmed where the birefringence is low."""
    known = np.isfinite(axis.thruplane_deg)
    full = float(np.percentile(axis.birefringence[known], 90)) if known.any() else 1.0
    brightness = 0.25 + 0.75 * np.clip(np.nan_to_num(axis.birefringence) / max(full, 1e-30), 0, 1)
    drawn = {
        "inplane": (pictures.hue_colours(axis.inplane_deg, brightness=brightness), pictures.inplane_legend),
        "thruplane": (pictures.hue_colours(axis.thruplane_deg, brightness=brightness), pictures.thruplane_legend),
        "axis": (pictures.axis_colours(axis.axis, brightness=brightness), pictures.axis_legend),
    }
    outputs = {}
    for product, (colours, legend) in drawn.items():
        picture = pictures.picture_from_colours(colours)
        picture = pictures.with_legend(picture, legend(pictures.legend_size(picture)))
        for suffix, kind in ((".jpg", "jpeg"), (".tif", "tiff")):
            outputs[f"{product}_{kind}"] = pictures.write_picture(names(product, suffix), picture)
    return outputs


__all__ = ["AlignedIllumination", "RegisteredSlice", "SliceMosaic", "itk_transform", "mat_bytes", "register_slice"]
