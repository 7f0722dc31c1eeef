"""What one slice brings to the sample, and the state of the stacks after it was added."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from opticstream.compute.sample import Edge, Pose, SliceFigures
from opticstream.config.processing import SampleSettings
from opticstream.io.canvas import MARGIN_PX
from opticstream.io.nifti import nifti_geometry
from opticstream.io.zarr import volume_voxel_um
from opticstream.model.modalities import described_stack
from opticstream.stages.sample._isotropic import note_changed


@dataclass(frozen=True)
class SampleInput:
    """What one slice brings to the sample."""

    folder: Path
    """Folder of the stacks (`sample/` of the project)."""
    slice_id: int
    """Slice, 1-based; it takes place `slice_id - 1` in every stack."""
    maps: Mapping[str, Path]
    """NIfTI map, (x, y), (x, y, 1) or (x, y, 1, 3), by name of the stack, e.g. `normal_aip`, `registered_axis`."""
    volumes: Mapping[str, Path] = field(default_factory=dict)
    """OME-Zarr volume by name of the stack, e.g. `normal_dBI`."""
    settings: SampleSettings = field(default_factory=SampleSettings)
    """`processing.sample`."""
    slice_thickness_um: float = 500.0
    """`scan.slice_thickness_um`."""
    without_axis: str = ""
    """Why the slice has no fibre axes; empty where it has some."""
    failed: Mapping[int, str] = field(default_factory=dict)
    """Why slices that are missing are missing, as far as it is known."""
    expected: int = 0
    """Number of slices that the sample is to have, if known; later ones that are not there count as missing."""
    excluded: Mapping[int, str] = field(default_factory=dict)
    """Slices that a person has excluded, and why: they hand nothing on, and their places are filled or gaps."""
    placed: Sequence[Edge] = ()
    """Where a person has placed slices (`second`) against others (`first`)."""
    title: str = ""
    """Name of the project, for people."""


@dataclass(frozen=True)
class UpdatedSample:
    """State of the stacks after an update."""

    outputs: dict[str, Path]
    """File or store of each stack, the ledger (`slices`) and the preview."""
    slices: tuple[int, ...]
    """Slices that the stacks hold."""
    missing: tuple[int, ...]
    """Slices that are gaps."""
    without_axis: Mapping[int, str] = field(default_factory=dict)
    """Slices that are there without fibre axes, and why."""
    changed: bool = True
    """False where the slice was there already, from the same input."""
    preview: Path | None = None
    """Picture of the sample in three orthogonal views."""
    moved: tuple[int, ...] = ()
    """Other slices that were written again, because the new one showed that they lie elsewhere."""
    poses: Mapping[int, Pose] = field(default_factory=dict)
    """Poses of the slices; none without alignment."""
    poses_version: int = 0
    """Version of `poses.json`."""
    unplaced: Mapping[int, str] = field(default_factory=dict)
    """Slices that were placed between their neighbours only, and why."""
    left_out: Mapping[int, str] = field(default_factory=dict)
    """Slices that the intensity volume leaves out, and why."""
    filled: tuple[int, ...] = ()
    """Slots of the intensity volume that deeper planes of earlier slices fill."""
    excluded: Mapping[int, str] = field(default_factory=dict)
    """Slices that a person has excluded, and why, as the stacks show them."""
    placed: Sequence[Edge] = ()
    """Where a person has placed slices, as the poses follow it."""
    figures: Mapping[int, SliceFigures] = field(default_factory=dict)
    """Quality figures of the slices that are there."""


def pixel_um(new: SampleInput) -> tuple[float, float]:
    if new.maps:
        x_mm, y_mm, _ = nifti_geometry(min(new.maps.items())[1]).voxel_size_mm
        return x_mm * 1000, y_mm * 1000
    x_um, y_um, _ = volume_voxel_um(min(new.volumes.items())[1])
    return x_um, y_um


def margin_px(new: SampleInput) -> int:
    return MARGIN_PX if new.settings.align != "none" else 0


def corrected_volumes(new: SampleInput) -> list[str]:
    """Return the volumes of which one evenly bright volume is made."""
    if not (new.settings.intensity.enabled and new.settings.volumes):
        return []
    known = {name: described_stack(name) for name in new.volumes}
    return sorted(name for name, modality in known.items() if modality.intensity and modality.in_db)


def stack_files(new: SampleInput, name: str, *, only_existing: bool = True) -> list[tuple[str, Path]]:
    files = {"nifti": new.folder / f"{name}.nii", "zarr": new.folder / f"{name}.ome.zarr"}
    formats = files if only_existing else {f: files[f] for f in new.settings.formats}
    return [(form, path) for form, path in formats.items() if path.exists() or not only_existing]


def have_cubes_follow(new: SampleInput, name: str, slots: Collection[int]) -> None:
    """Have the cubes of a stack of scalars or angles follow it, where they are asked for."""
    if new.settings.isotropic and described_stack(name).kind in ("scalar", "axial"):
        note_changed(new.folder, name, slots)
