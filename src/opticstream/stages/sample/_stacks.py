"""Slices in their poses in the stacks of maps and volumes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import PlanarTransform, resampled, resampled_blocks
from opticstream.io.canvas import Canvas
from opticstream.io.nifti import nifti_geometry, read_nifti
from opticstream.io.nifti_stack import blank_slice, fit_stack, put_slice
from opticstream.io.zarr import SliceStore, planes_of_slice, volume_reader, volume_voxel_um
from opticstream.model.errors import InputError
from opticstream.model.modalities import described_stack
from opticstream.stages.sample._brightness import CorrectedStack, SliceVolume, correct_stack, forget_stack
from opticstream.stages.sample._ledger import Ledger
from opticstream.stages.sample._placed_slice import Place, extent_in_sample, place_from_facts
from opticstream.stages.sample._sample_input import (
    SampleInput,
    corrected_volumes,
    have_cubes_follow,
    margin_px,
    stack_files,
)
from opticstream.system.memory import return_freed_memory

_STRIP_PX = 256


def put_maps(new: SampleInput, place: Place | None, names: Collection[str]) -> None:
    for name, path in sorted(new.maps.items()):
        if name not in names:
            continue
        image = _map(path)
        shape = (image.shape[0], image.shape[1])
        extent = extent_in_sample(place, shape)
        read = _image_reader(image)
        if place is not None:
            read = _moved_image_reader(name, image, place)
        geometry = nifti_geometry(path)
        x_mm, y_mm, _ = geometry.voxel_size_mm
        planes = geometry.with_voxel_size((x_mm, y_mm, new.slice_thickness_um / 1000))
        for form, target in stack_files(new, name, only_existing=False):
            if form == "nifti":
                if image.ndim == 2:  # vectors lie in the Zarr only: NIfTI cannot grow along an inner axis
                    put_slice(
                        target,
                        new.slice_id - 1,
                        extent.size,
                        read,
                        affine_mm=planes.affine_mm,
                        dtype=str(image.dtype),
                        description=f"{name}, one plane per slice",
                        low_px=extent.low,
                        margin_px=margin_px(new),
                    )
            else:
                voxel = (_clean(x_mm * 1000), _clean(y_mm * 1000), new.slice_thickness_um)
                kind, dtype = described_stack(name).kind, str(image.dtype)
                store = SliceStore(target, 1, voxel, kind, dtype, margin_px=margin_px(new))
                store.put(new.slice_id - 1, extent.size, read, low_px=extent.low)
        return_freed_memory()


def put_volumes(new: SampleInput, place: Place | None, names: Collection[str]) -> None:
    later = corrected_volumes(new)
    for name, path in sorted(new.volumes.items()):
        if name not in names or name in later:
            continue
        voxel = volume_voxel_um(path)
        planes = max(1, round(new.slice_thickness_um / voxel[2]))
        shape, read = volume_reader(path, slice(planes))
        if place is not None:
            resample = functools.partial(resampled, how=described_stack(name).resampling)
            read = resampled_blocks(read, place.mapping, size=shape, resample=resample, bend=place.bend_reader)
        extent, kind = extent_in_sample(place, shape[:2]), described_stack(name).kind
        store = SliceStore(new.folder / f"{name}.ome.zarr", planes, voxel, kind, margin_px=margin_px(new))
        have_cubes_follow(new, name, [new.slice_id])
        store.put(new.slice_id - 1, extent.size, read, low_px=extent.low)


def correct_volumes(new: SampleInput, ledger: Ledger) -> list[CorrectedStack]:
    """Write what the intensity volumes have to show of all slices; without the correction, forget what was filled."""
    done = []
    wanted = corrected_volumes(new)
    for name, path in sorted(new.volumes.items()):
        target = new.folder / f"{name}.ome.zarr"
        if name not in wanted:
            if forget_stack(new.folder, name) and (target / "zarr.json").exists():
                have_cubes_follow(new, name, ledger.missing(0))
                store = SliceStore.opened(target)
                for slot in ledger.missing(0):
                    store.remove(slot - 1)
            continue
        voxel = volume_voxel_um(path)
        planes, kind = max(1, round(new.slice_thickness_um / voxel[2])), described_stack(name).kind
        store = SliceStore(target, planes, voxel, kind, margin_px=margin_px(new))
        volumes = {}
        for n in ledger.present():
            entry = ledger.slices[n]
            if name in entry.get("stacks", {}) and name in entry.get("sources", {}):
                pose = entry.get("pose")
                place = None if pose is None else place_from_facts(pose)
                source = new.folder / entry["sources"][name]
                held = volume_reader(source)[0][:2] if source.exists() else (0, 0)
                extent = extent_in_sample(place, held)
                where = place or Place(PlanarTransform.identity())
                volumes[n] = SliceVolume(source, entry["stacks"][name], where, extent)
        slots = max(ledger.slices, default=0)
        if any(volume.path.exists() for volume in volumes.values()):
            settings = new.settings.intensity
            note = functools.partial(have_cubes_follow, new, name)
            done.append(
                correct_stack(new.folder, name, volumes, store, settings=settings, slots=slots, before_writing=note)
            )
        elif not volumes and (target / "zarr.json").exists():  # all are excluded
            forget_stack(new.folder, name)
            have_cubes_follow(new, name, range(1, slots + 1))
            for slot in range(1, slots + 1):
                store.remove(slot - 1)
    return done


def fit_stacks(new: SampleInput, ledger: Ledger) -> None:
    """Have all stacks hold all slices, also those that a slice has nothing for, so that they have the same pixels."""
    poses = [entry["pose"] for entry in ledger.slices.values() if "pose" in entry]
    extents = [extent_in_sample(place_from_facts(pose), tuple(pose["shape"])) for pose in poses]
    if not extents:
        return
    extent = functools.reduce(Canvas.united, extents)
    for name in ledger.stacks():
        for form, path in stack_files(new, name):
            if form == "nifti":
                fit_stack(path, extent, margin_px=margin_px(new))
            else:
                SliceStore.opened(path).fit(extent)


def is_stack_of_maps(new: SampleInput, name: str) -> bool:
    return any(form == "nifti" or planes_of_slice(path) == 1 for form, path in stack_files(new, name))


def blank_map(new: SampleInput, name: str) -> None:
    """Make the place of the slice in a stack of maps a gap."""
    for _form, path in stack_files(new, name):
        blank(path, new.slice_id)


def blank(path: Path, slice_id: int) -> None:
    """Make the place of a slice in a stack a gap."""
    if path.suffix == ".nii":
        blank_slice(path, slice_id - 1)
    else:
        SliceStore.opened(path).remove(slice_id - 1)


def _map(path: Path) -> NDArray[Any]:
    """Return a map as (x, y) or (x, y, 3)."""
    array = read_nifti(path)
    if array.ndim in (3, 4) and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise InputError(f"{path}: expected a map (x, y) or axis vectors (x, y, 1, 3), got the shape {array.shape}")
    return np.asarray(array, np.uint8 if array.dtype == np.uint8 else np.float32)


def _image_reader(image: NDArray[Any]) -> Callable[[slice, slice], NDArray[Any]]:
    def read(xs: slice, ys: slice) -> NDArray[Any]:
        return image[xs, ys][:, :, None]

    return read


def _moved_image_reader(name: str, image: NDArray[Any], place: Place) -> Callable[..., NDArray[Any]]:
    """Return a reader of a map in its place in the sample; it works by strips, since vectors take much memory."""
    modality = described_stack(name)
    resample = functools.partial(resampled, how=modality.resampling)
    size = (image.shape[0], image.shape[1], 1)
    blocks = resampled_blocks(_image_reader(image), place.mapping, size=size, resample=resample, bend=place.bend_reader)

    def read(xs: slice, ys: slice) -> NDArray[Any]:
        out = np.zeros((xs.stop - xs.start, ys.stop - ys.start, 1, *image.shape[2:]), image.dtype)
        for x in range(xs.start, xs.stop, _STRIP_PX):
            strip = blocks(slice(x, min(x + _STRIP_PX, xs.stop)), ys)
            strip = strip.reshape(*strip.shape, *(1,) * (out.ndim - strip.ndim))  # nothing there has no components
            out[x - xs.start : x - xs.start + strip.shape[0]] = (
                np.nan_to_num(strip) if modality.kind == "label" else strip
            )
        return out

    return read


def _clean(value_um: float) -> float:
    """Return a size in um without the rounding of NIfTI's 32-bit millimetres."""
    return float(f"{value_um:.6g}")
