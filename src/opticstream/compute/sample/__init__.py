"""The whole sample: how its slices lie to each other, and how bright they are."""

from __future__ import annotations

from opticstream.compute.sample._bends import EdgeBend
from opticstream.compute.sample._blending import (
    FADE_PLANES,
    Source,
    blended_power,
    corrected_power,
    correction_map,
    pixels_from_blocks,
    plane_sources,
    share_of_correction,
)
from opticstream.compute.sample._edges import (
    REACH,
    Depths,
    MeasuredEdge,
    band_image,
    depths_to_compare,
    depths_to_read,
    edge_between,
    tissue_mask,
)
from opticstream.compute.sample._intensity import DARK_DB, Intensity, solve_intensity
from opticstream.compute.sample._levels import (
    BLOCK_PX,
    PairLevels,
    SliceLevels,
    block_power,
    facing_levels,
    levels_in_sample,
    noise_power,
    pair_levels,
    tissue_of_blocks,
)
from opticstream.compute.sample._losses import LAYERS, layer_levels
from opticstream.compute.sample._placed import PlacedSolution, moved_edge, solve_placed_poses
from opticstream.compute.sample._poses import (
    Edge,
    Pose,
    PoseSolution,
    pose_after,
    pose_before,
    pulled_back,
    solve_poses,
)
from opticstream.compute.sample._quality import SliceFigures, sharpness_db, slice_figures
from opticstream.compute.sample._slice_bends import SliceBend, solve_bends

__all__ = [
    "BLOCK_PX",
    "DARK_DB",
    "FADE_PLANES",
    "LAYERS",
    "REACH",
    "Depths",
    "Edge",
    "EdgeBend",
    "Intensity",
    "MeasuredEdge",
    "PairLevels",
    "PlacedSolution",
    "Pose",
    "PoseSolution",
    "SliceBend",
    "SliceFigures",
    "SliceLevels",
    "Source",
    "band_image",
    "blended_power",
    "block_power",
    "corrected_power",
    "correction_map",
    "depths_to_compare",
    "depths_to_read",
    "edge_between",
    "facing_levels",
    "layer_levels",
    "levels_in_sample",
    "moved_edge",
    "noise_power",
    "pair_levels",
    "pixels_from_blocks",
    "plane_sources",
    "pose_after",
    "pose_before",
    "pulled_back",
    "share_of_correction",
    "sharpness_db",
    "slice_figures",
    "solve_bends",
    "solve_intensity",
    "solve_placed_poses",
    "solve_poses",
    "tissue_mask",
    "tissue_of_blocks",
]
