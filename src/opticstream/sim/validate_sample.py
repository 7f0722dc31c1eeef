"""The sample's stacks against the maps that went into them, and against the truth through all slices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.nifti import read_nifti, voxel_size_mm
from opticstream.io.zarr import volume_reader, volume_voxel_um
from opticstream.model.errors import InputError, MissingInputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StackedSlice:
    """Where the pixels of a stack come from in one slice."""

    slice_id: int
    matrix: Array
    """Pixel of the slice's map = `matrix` @ pixel of the stack + `offset`; indices from 0."""
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

    def pixels(self, shape: tuple[int, ...]) -> Array:
        """Return the place in the slice's map of every pixel of a stack, shape (2, x, y)."""
        grid = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")).astype(float)
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


def plane_of_stack(folder: Path, name: str, slice_id: int, /, *, thickness_um: float) -> Array:
    """Return the plane of a slice in a stack of maps, shape (x, y), from its NIfTI file or else its OME-Zarr.

    Raises
    ------
    MissingInputError, InputError
        There is no such stack, it ends before the slice, or its planes are not `thickness_um` apart.
    """
    nifti, store = folder / f"{name}.nii", folder / f"{name}.ome.zarr"
    if nifti.is_file():
        path, stack, apart_um = nifti, read_nifti(nifti, mmap=True), 1000 * voxel_size_mm(nifti)[2]
    elif store.is_dir():
        shape, read = volume_reader(store)
        path, stack, apart_um = store, read(slice(0, shape[0]), slice(0, shape[1])), volume_voxel_um(store)[2]
    else:
        raise MissingInputError(f"{nifti}: no such stack, nor {store.name}")
    if stack.shape[2] < slice_id:
        raise InputError(f"{path}: holds {stack.shape[2]} slices, expected slice {slice_id}")
    if abs(apart_um - thickness_um) > 1e-3 * thickness_um:
        raise InputError(f"{path}: its planes are {apart_um:g} um apart, expected {thickness_um:g}")
    return np.asarray(stack[:, :, slice_id - 1], dtype=float)
