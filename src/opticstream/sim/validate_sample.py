"""The sample's stacks against the maps that went into them, and against the truth through all slices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.canvas import Canvas
from opticstream.io.nifti import read_nifti, voxel_size_mm
from opticstream.io.nifti_stack import stack_canvas
from opticstream.io.zarr import SliceStore, planes_of_slice, shrunk_planes, volume_reader, volume_voxel_um
from opticstream.model.errors import InputError, MissingInputError
from opticstream.sim.truth_reader import MosaicTruth

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StackedSlice:
    """Where the pixels of a stack come from in one slice."""

    slice_id: int
    matrix: Array
    """Pixel of the slice's map = `matrix` @ pixel of the sample + `offset`; indices from 0."""
    offset: Array

    @property
    def moved(self) -> bool:
        """Whether the slice was aligned, so that its planes are not its maps any more."""
        return not (np.array_equal(self.matrix, np.eye(2)) and not self.offset.any())

    @property
    def rotation_deg(self) -> float:
        """How far the alignment turned the slice's map, and with it the angles in it."""
        return float(
            np.degrees(np.arctan2(self.matrix[1, 0] - self.matrix[0, 1], self.matrix[0, 0] + self.matrix[1, 1]))
        )

    def pixels(self, canvas: Canvas) -> Array:
        """Return the place in the slice's map of every pixel of a stack, shape (2, x, y)."""
        every = (np.arange(low, high) for low, high in zip(canvas.low, canvas.high, strict=True))
        grid = np.stack(np.meshgrid(*every, indexing="ij")).astype(float)
        return np.asarray(np.einsum("ab,bij->aij", self.matrix, grid) + self.offset[:, None, None])


def stacked_slices(folder: Path, /) -> list[StackedSlice]:
    """Return the slices that the ledger of the stacks says are there.

    Raises
    ------
    MissingInputError
        There are no stacks.
    """
    path = folder / "slices.json"
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file, the ledger of the sample's stacks")
    slices: Mapping[str, Any] = json.loads(path.read_bytes())["slices"]
    found = []
    for number, entry in slices.items():
        if entry["state"] == "present":
            pose = entry.get("pose", {"matrix": np.eye(2), "offset": np.zeros(2)})
            found.append(StackedSlice(int(number), np.array(pose["matrix"], float), np.array(pose["offset"], float)))
    return sorted(found, key=lambda entry: entry.slice_id)


def plane_of_stack(folder: Path, name: str, slice_id: int, /, *, thickness_um: float) -> tuple[Array, Canvas]:
    """Return the plane of a slice in a stack of maps, (x, y), from its NIfTI or else its OME-Zarr, and its pixels.

    Raises
    ------
    MissingInputError, InputError
        There is no such stack, it ends before the slice, or its planes are not `thickness_um` apart.
    """
    nifti, store = folder / f"{name}.nii", folder / f"{name}.ome.zarr"
    if nifti.is_file():
        path, stack, apart_um = nifti, read_nifti(nifti, mmap=True), 1000 * voxel_size_mm(nifti)[2]
        canvas = stack_canvas(nifti)
    elif store.is_dir():
        shape, read = volume_reader(store)
        path, stack, apart_um = store, read(slice(0, shape[0]), slice(0, shape[1])), volume_voxel_um(store)[2]
        canvas = SliceStore.opened(store).canvas()
    else:
        raise MissingInputError(f"{nifti}: no such stack, nor {store.name}")
    if stack.shape[2] < slice_id:
        raise InputError(f"{path}: holds {stack.shape[2]} slices, expected slice {slice_id}")
    if abs(apart_um - thickness_um) > 1e-3 * thickness_um:
        raise InputError(f"{path}: its planes are {apart_um:g} um apart, expected {thickness_um:g}")
    return np.asarray(stack[:, :, slice_id - 1], dtype=float), canvas


def axes_of_stack(folder: Path, name: str, slice_id: int, /) -> tuple[Array, Canvas]:
    """Return the axes of a slice in a stack of vectors, shape (x, y, 3), and the pixels of the stack.

    Raises
    ------
    MissingInputError, InputError
        There is no such stack, or it ends before the slice.
    """
    path = folder / f"{name}.ome.zarr"
    if not path.is_dir():
        raise MissingInputError(f"{path}: no such stack")
    store = SliceStore.opened(path)
    axes = store.plane(slice_id - 1)
    if axes is None or axes.ndim != 3:
        raise InputError(f"{path}: expected axes of at least {slice_id} slices, got none of slice {slice_id}")
    return axes.astype(float), store.canvas()


BOUNDARY_PLANES = 4
"""Planes on either side of a boundary between sections that are compared."""


@dataclass(frozen=True)
class Section:
    """One section of the sample's intensity volume beside the truth; maps are means over squares of pixels, (x, y)."""

    made_db: Array
    """Mean over the section."""
    true_db: Array
    """Likewise; NaN outside the tissue."""
    first: tuple[Array, Array]
    """Made and true brightness of the first planes."""
    last: tuple[Array, Array]
    """Made and true brightness of the last planes."""

    @property
    def likeness(self) -> float:
        """Correlation of the section with the truth over the tissue; NaN where hardly anything can be compared."""
        good = np.isfinite(self.made_db) & np.isfinite(self.true_db)
        if good.sum() < 30 or np.ptp(self.true_db[good]) == 0 or np.ptp(self.made_db[good]) == 0:
            return float("nan")
        return float(np.corrcoef(self.made_db[good], self.true_db[good])[0, 1])


def boundary_step_db(above: Section, below: Section, /) -> float:
    """Return by how much brightness steps up from one section to the next more than the tissue does, in dB."""
    made = below.first[0] - above.last[0]
    true = below.first[1] - above.last[1]
    off = (made - true)[np.isfinite(made) & np.isfinite(true)]
    return float(np.median(off)) if off.size >= 30 else float("nan")


def section_of_sample(
    path: Path, slice_id: int, mosaic: MosaicTruth, x: Array, y: Array, /, *, depths_um: list[float], factor: int = 4
) -> Section:
    """Return a slice's section of an intensity volume beside its truth.

    Parameters
    ----------
    path : Path
        The sample's volume, in dB.
    slice_id : int
        The slice.
    mosaic : MosaicTruth
        Its mosaic.
    x, y : ndarray, shape (x, y)
        Place of each pixel of the volume in the mosaic's frame.
    depths_um : list of float
        Depths of the truth's maps at depth; empty where the tissue does not change along depth.
    factor : int
        Side of the squares of pixels that are averaged.

    Raises
    ------
    MissingInputError, FileFormatError
        There is no volume, or the truth has no brightness.
    """
    if not path.is_dir():
        raise MissingInputError(f"{path}: no such volume of the sample")
    if "brightness" not in mosaic.entry["files"]:
        raise MissingInputError(
            f"{mosaic.folder}: the truth of mosaic {mosaic.mosaic_id} has no map of brightness, as that of earlier "
            "versions; remove the folder and run the rig again"
        )
    planes = planes_of_slice(path)
    made = shrunk_planes(path, slice((slice_id - 1) * planes, slice_id * planes), factor=factor).astype(float)
    inside, known = mosaic.at("inside", x, y)
    tissue = known & (inside > 0)

    def squares(values: Array) -> Array:
        size = tuple(n // factor for n in x.shape)
        cut = np.where(tissue, values, np.nan)[: size[0] * factor, : size[1] * factor]
        return np.asarray(cut.reshape(size[0], factor, size[1], factor).mean((1, 3)))

    face = squares(np.asarray(mosaic.at("brightness", x, y)[0], dtype=float))
    bottom_um = planes * volume_voxel_um(path)[2]
    within = [k for k, depth in enumerate(depths_um) if depth < bottom_um]
    layers = [face]
    if within and "brightness_at_depth" in mosaic.entry["files"]:
        at_depth, _ = mosaic.at("brightness_at_depth", x, y)
        layers = [squares(np.asarray(at_depth[..., k], dtype=float)) for k in within]
    return Section(
        _mean_db(made),
        np.asarray(np.mean(layers, axis=0)),
        (_mean_db(made[:, :, :BOUNDARY_PLANES]), layers[0]),
        (_mean_db(made[:, :, -BOUNDARY_PLANES:]), layers[-1]),
    )


def _mean_db(planes: Array) -> Array:
    """Return the mean over planes, NaN where one of them has no value."""
    return np.asarray(planes.mean(2))
