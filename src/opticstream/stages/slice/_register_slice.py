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

from opticstream.compute.axis import (
    AlignedIllumination,
    AxisField,
    AxisFlag,
    IlluminationImages,
    SliceAxis,
    aligned_map,
    slice_axis_from_illuminations,
)
from opticstream.compute.registration import Registration
from opticstream.compute.stitching import tissue_mask
from opticstream.config.processing import MaskSettings, RegistrationSettings
from opticstream.io import orientation_pictures as pictures
from opticstream.io.atomic import write_bytes, write_text
from opticstream.io.encoded_pictures import reduction_note
from opticstream.io.geometry import SAME_DIRECTION, SAME_SIZE, Geometry, voxel_text
from opticstream.io.nifti import long_axis_notes, map_from_nifti, nifti_geometry, write_nifti
from opticstream.model.errors import ConfigurationError, InputError, MissingInputError
from opticstream.model.modalities import described, mosaic_names
from opticstream.stages.slice._resample_volume import BeamTilt, resample_volume
from opticstream.state.manifest import write_manifest

_DETAILS = ("aip",)
"""Maps that sharpen the registration where both illuminations have them."""

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
    notes: tuple[str, ...] = ()
    """What was made smaller, or in another format, because the usual one cannot hold it."""

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
        Fewer than two illuminations; a map is missing, empty, has no valid pixel, or is of another size, voxel size or
        place in space than the others of its illumination; or the headers of two illuminations give other directions.
    """
    options = settings or RegistrationSettings()
    if len(mosaics) < 2:
        raise InputError(
            f"slice {slice_id}: the fibre axis needs at least two illuminations, got {[m.name for m in mosaics]}"
        )
    geometries = _geometries(mosaics, slice_id)
    fixed = geometries[0]
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
    notes: list[str] = []
    outputs |= _write_transforms(names, mosaics, result, geometries)
    shown += _write_overlays(names, illuminations, result, notes)
    outputs |= _write_aligned_maps(names, mosaics, illuminations, result, fixed)
    if options.resample_volumes:
        outputs |= _write_aligned_volumes(names, mosaics, result)
    summary = _summary(mosaics, result)
    if result.axes is not None:
        outputs |= _write_axis(names, result.axes, fixed)
        made = _write_axis_pictures(names, result.axes, notes)
        outputs |= made
        shown += [path for path in made.values() if path.suffix == ".jpg"]
    outputs["transform"] = write_text(names("transform", ".json"), json.dumps(summary, indent=1, sort_keys=True) + "\n")
    return RegisteredSlice(
        outputs=outputs,
        pictures=tuple(shown),
        failures=result.failures,
        has_axis=result.axes is not None,
        summary=summary,
        notes=(*notes, *long_axis_notes((result.aligned[0].birefringence.shape,))),
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


def _geometries(mosaics: Sequence[SliceMosaic], slice_id: int) -> list[Geometry]:
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
    """Return where the pixels of an illumination lie, by its birefringence map; its other maps must not disagree.

    Raises
    ------
    InputError
        They do, or a header cannot be put into a transform for ITK.
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
            continue  # it tells nothing of where it lies
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
    """Refuse a map whose file name says that it is one of another modality."""
    known = mosaic_names()
    for modality, path in mosaic.maps.items():
        named = path.name.split(".")[0].rsplit("_", 1)[-1]
        if named in known and modality in known and named != modality:
            raise InputError(
                f"slice {slice_id}: {path} is given as the {modality} map of the {mosaic.name} illumination, its "
                f"name says {named}"
            )


def _image(path: Path) -> NDArray[np.float32]:
    return np.asarray(map_from_nifti(path), np.float32)


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
    names: _Names, mosaics: Sequence[SliceMosaic], result: SliceAxis, geometries: Sequence[Geometry]
) -> dict[str, Path]:
    outputs = {}
    fixed = geometries[0]
    for mosaic, image, moving in zip(mosaics[1:], result.aligned[1:], geometries[1:], strict=True):
        assert image.registration is not None
        product = "transform" if len(mosaics) == 2 else f"transform_{mosaic.name}"
        as_read = max(fixed.axes, moving.axes)  # ITK reads (x, y) as two-dimensional, Slicer as one plane of three
        for axes in sorted({as_read, 3}):
            text = itk_transform(image.registration, fixed=fixed, moving=moving, axes=axes)
            name = product if axes == as_read else f"{product}_3d"
            outputs[f"{name}_itk"] = write_text(names(name, ".tfm"), text)
        bend = image.registration.mapping.displacement
        if bend is not None:
            product = "displacement" if len(mosaics) == 2 else f"displacement_{mosaic.name}"
            outputs[product] = write_nifti(
                names(product, ".nii.gz"),
                np.moveaxis(bend, 0, -1)[:, :, None, :],
                geometry=fixed,
                description="displacement (x, y) of fixed pixels, in px",
            )
    return outputs


def itk_transform(registration: Registration, /, *, fixed: Geometry, moving: Geometry, axes: int = 3) -> str:
    """Return a registration as text of an ITK transform file, in mm in ITK's axes (left, posterior, superior).

    It maps points of the fixed NIfTI image to points of the moving one, as ITK, ANTs and 3D Slicer expect it, whatever
    origin, directions and voxel sizes the two files have.

    Parameters
    ----------
    registration : Registration
        What was found, in pixels.
    fixed, moving : Geometry
        Where the pixels of the two images lie.
    axes : int
        2 for images that ITK reads as (x, y), 3 for (x, y, 1).
    """
    index = np.eye(4)
    index[:2, :2] = registration.mapping.matrix
    index[:2, 3] = registration.mapping.offset
    points = _itk_affine(moving) @ index @ np.linalg.inv(_itk_affine(fixed))
    kept = [*range(axes), 3]
    points = points[np.ix_(kept, kept)]
    numbers = np.concatenate([points[:axes, :axes].ravel(), points[:axes, axes]]) + 0.0  # no minus before a zero
    parameters = " ".join(f"{value:.12g}" for value in numbers)
    return (
        f"#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_{axes}_{axes}\n"
        f"Parameters: {parameters}\nFixedParameters: {' '.join('0' * axes)}\n"
    )


def _itk_affine(geometry: Geometry) -> NDArray[np.float64]:
    """Return what takes indices to mm as ITK reads them; without a position ITK's own axes are those of the array."""
    if not geometry.positioned:
        return np.diag([*geometry.voxel_size_mm, 1.0])
    turned: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine_mm
    return turned


def _write_overlays(
    names: _Names, illuminations: Sequence[IlluminationImages], result: SliceAxis, notes: list[str]
) -> list[Path]:
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
        made.append(_write_preview(names(product, ".jpg"), picture, notes))
    return made


def _write_aligned_maps(
    names: _Names,
    mosaics: Sequence[SliceMosaic],
    illuminations: Sequence[IlluminationImages],
    result: SliceAxis,
    geometry: Geometry,
) -> dict[str, Path]:
    """Write every 2-D map of the moving illuminations, and the mask that was used, on the pixels of the fixed one."""
    outputs = {}
    fixed = illuminations[0].birefringence
    shape = (fixed.shape[0], fixed.shape[1])
    for mosaic, item, image in zip(mosaics[1:], illuminations[1:], result.aligned[1:], strict=True):
        if image.registration is None or not image.registration.good:
            continue
        mapping = image.registration.mapping
        aligned = {"ori": image.orientation_deg, "biref": image.birefringence}
        if item.mask is not None:
            aligned["mask"] = aligned_map("mask", item.mask.astype(np.float32), mapping, shape=shape)
        for modality in sorted(mosaic.maps.keys() | aligned.keys()):
            data: NDArray[Any]
            path = mosaic.maps.get(modality)
            if modality in aligned:
                data = aligned[modality]
            elif path is not None and path.is_file():
                source = _image(path)
                if source.shape != item.birefringence.shape:
                    raise InputError(f"{path}: shape {source.shape}, but biref {item.birefringence.shape}")
                data = aligned_map(modality, source, mapping, shape=shape)
            else:
                continue
            if described(modality).kind == "label":
                data = np.nan_to_num(data).astype(np.uint8)
            product = f"{mosaic.name}_{modality}"
            outputs[product] = write_nifti(
                names(product, ".nii.gz"), data[..., None], geometry=geometry, description=f"{modality}, registered"
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


def _write_axis(names: _Names, axis: AxisField, geometry: Geometry) -> dict[str, Path]:
    def nifti(product: str, data: NDArray[Any]) -> Path:
        return write_nifti(
            names(product, ".nii.gz"), data, geometry=geometry, description=described(product).slice_header
        )

    outputs = {
        "axis": nifti("axis", axis.axis[:, :, None, :]),
        "inplane": nifti("inplane", axis.inplane_deg[..., None]),
        "thruplane": nifti("thruplane", axis.thruplane_deg[..., None]),
        "biref": nifti("biref", axis.birefringence[..., None]),
        "uncertainty": nifti("uncertainty", axis.uncertainty_deg[..., None]),
        "flags": nifti("flags", axis.flags[..., None]),
    }
    common: dict[str, NDArray[Any]] = {
        "birefringence": axis.birefringence,
        "uncertainty_deg": axis.uncertainty_deg,
        "flags": axis.flags,
        "voxel_size_mm": np.array(geometry.voxel_size_mm[:2], float),
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


def _write_preview(path: Path, picture: NDArray[np.uint8], notes: list[str]) -> Path:
    """Write a picture, and note where it had to be made smaller."""
    if path.suffix == ".jpg" and (note := reduction_note(path.name, picture.shape)):
        notes.append(note)
    return pictures.write_picture(path, picture)


def _write_axis_pictures(names: _Names, axis: AxisField, notes: list[str]) -> dict[str, Path]:
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
            outputs[f"{product}_{kind}"] = _write_preview(names(product, suffix), picture, notes)
    return outputs


__all__ = ["AlignedIllumination", "RegisteredSlice", "SliceMosaic", "itk_transform", "mat_bytes", "register_slice"]
