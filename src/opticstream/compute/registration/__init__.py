"""Mappings between pictures of one slice or of neighbouring slices: finding, judging and applying them."""

from __future__ import annotations

from opticstream.compute.registration._blocks import BendReader, Slant, resampled_blocks
from opticstream.compute.registration._by_kind import resampled
from opticstream.compute.registration._checks import BlockShifts
from opticstream.compute.registration._planar_transform import Freedom, PlanarTransform
from opticstream.compute.registration._registration import (
    MappingFinder,
    MappingTask,
    Registration,
    register_images,
    sharpened_by_details,
    shifts_of_blocks,
)
from opticstream.compute.registration._resampling import resample_image, resample_orientation, smooth_orientation
from opticstream.compute.registration._rigid import rigid_map, turned_axis

__all__ = [
    "BendReader",
    "BlockShifts",
    "Freedom",
    "MappingFinder",
    "MappingTask",
    "PlanarTransform",
    "Registration",
    "Slant",
    "register_images",
    "resample_image",
    "resample_orientation",
    "resampled",
    "resampled_blocks",
    "rigid_map",
    "sharpened_by_details",
    "shifts_of_blocks",
    "smooth_orientation",
    "turned_axis",
]
