"""The files of a registered slice: transforms, maps and volumes on the fixed illumination, axes, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.axis import AxisField, IlluminationImages, SliceAxis, aligned_map
from opticstream.io import orientation_pictures as pictures
from opticstream.io.atomic import write_bytes, write_text
from opticstream.io.encoded_pictures import reduction_note
from opticstream.io.geometry import Geometry
from opticstream.io.nifti import write_nifti
from opticstream.model.errors import ConfigurationError, InputError
from opticstream.model.modalities import described
from opticstream.stages.slice._exchange_formats import itk_transform, mat_bytes
from opticstream.stages.slice._illuminations import SliceMosaic, read_image
from opticstream.stages.slice._resample_volume import BeamTilt, resample_volume
from opticstream.state.manifest import write_manifest


@dataclass(frozen=True)
class ResultNames:
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


def write_transforms(
    names: ResultNames, mosaics: Sequence[SliceMosaic], result: SliceAxis, geometries: Sequence[Geometry]
) -> dict[str, Path]:
    """Write each registration as a transform for ITK, with its displacements where it has any."""
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


def write_overlays(
    names: ResultNames, illuminations: Sequence[IlluminationImages], result: SliceAxis, notes: list[str]
) -> list[Path]:
    """Write a picture of each moving illumination over the fixed one, before and after."""
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


def write_aligned_maps(
    names: ResultNames,
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
                source = read_image(path)
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


def write_aligned_volumes(names: ResultNames, mosaics: Sequence[SliceMosaic], result: SliceAxis) -> dict[str, Path]:
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


def write_axis(names: ResultNames, axis: AxisField, geometry: Geometry) -> dict[str, Path]:
    """Write the axis and its angles, birefringence, uncertainty and flags, as NIfTI and for MATLAB."""

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


def write_axis_pictures(names: ResultNames, axis: AxisField, notes: list[str]) -> dict[str, Path]:
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


def _write_preview(path: Path, picture: NDArray[np.uint8], notes: list[str]) -> Path:
    """Write a picture, and note where it had to be made smaller."""
    if path.suffix == ".jpg" and (note := reduction_note(path.name, picture.shape)):
        notes.append(note)
    return pictures.write_picture(path, picture)
