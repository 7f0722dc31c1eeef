"""Surfaces, focus maps and masks that a person hands over: scaled, of any byte order, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from opticstream.compute.stitching import canvas_from_positions
from opticstream.model.errors import InputError
from opticstream.stages.mosaic import focus_for_volume, read_focus
from opticstream.stages.tile import read_surface
from opticstream.stages.volume import _inputs

SHAPE = (4, 3)
VALUES = np.arange(12).reshape(SHAPE) * 0.5 + 10


def scaled(path: Path) -> Path:
    """Write VALUES as big-endian whole numbers with slope and intercept."""
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    header.set_data_shape((*SHAPE, 1))
    header["scl_slope"], header["scl_inter"], header["magic"], header["vox_offset"] = 0.5, 10, b"n+1", 352
    numbers = np.arange(12).reshape(SHAPE).astype(">i2")
    path.write_bytes(header.binaryblock + b"\0" * 4 + numbers.tobytes(order="F"))
    return path


def read_mask(path, shape):
    return _inputs.read_mask(path, canvas_from_positions([(0, 0)], tile_shape=shape))


@pytest.mark.parametrize("read", [read_surface, read_focus, focus_for_volume])
def test_slope_and_byte_order_of_a_given_map_are_honoured(tmp_path, read):
    path = scaled(tmp_path / "a.nii")
    found = read(path, SHAPE)
    np.testing.assert_array_equal(found, VALUES)
    assert found.dtype == np.float32


@pytest.mark.parametrize("read", [read_surface, read_focus, read_mask])
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (np.zeros((*SHAPE, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colour picture"),
        (np.zeros(SHAPE, np.complex64), "complex numbers"),
        (np.zeros((*SHAPE, 2), np.float32), "axis 3"),
        (np.zeros((*SHAPE, 1, 2), np.float32), "axis 4"),
        (np.zeros((3, 4), np.float32), "shape|tiles of"),
    ],
)
def test_what_is_no_map_is_one_line(tmp_path, read, data, told):
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match=told) as caught:
        read(tmp_path / "a.nii", SHAPE)
    assert "\n" not in str(caught.value)


def test_missing_values_of_a_mask_are_outside(tmp_path):
    mask = np.ones(SHAPE, np.float32)
    mask[0, 0], mask[1, 1] = np.nan, 0
    nib.save(nib.Nifti1Image(mask[..., None], np.eye(4)), tmp_path / "a.nii")
    found = read_mask(tmp_path / "a.nii", SHAPE)
    assert not found[0, 0]
    assert not found[1, 1]
    assert found.sum() == 10


@pytest.mark.parametrize("read", [read_surface, read_focus, read_mask])
def test_a_map_that_its_header_mirrors_is_refused(tmp_path, read):
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), np.diag([-0.01, 0.01, 1, 1])), tmp_path / "a.nii")
    with pytest.raises(InputError, match="has axes x to left, y to anterior; expected x to right"):
        read(tmp_path / "a.nii", SHAPE)
