"""The whole sample: how its slices lie to each other."""

from __future__ import annotations

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
from opticstream.compute.sample._poses import (
    Edge,
    Pose,
    PoseSolution,
    pose_after,
    pose_before,
    pulled_back,
    solve_poses,
)

__all__ = [
    "REACH",
    "Depths",
    "Edge",
    "MeasuredEdge",
    "Pose",
    "PoseSolution",
    "band_image",
    "depths_to_compare",
    "depths_to_read",
    "edge_between",
    "pose_after",
    "pose_before",
    "pulled_back",
    "solve_poses",
    "tissue_mask",
]
