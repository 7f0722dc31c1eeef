"""The pose in which a slice is written, and the pixels of the sample that show it then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opticstream.compute.registration import PlanarTransform
from opticstream.io.canvas import Canvas

_MOVED_PX = 0.25
"""Displacement of a corner from which a slice is written again."""


@dataclass(frozen=True)
class PlacedSlice:
    """The pose in which a slice is written."""

    mapping: PlanarTransform
    """From pixels of the sample to pixels of the slice."""
    shape: tuple[int, int]
    """Size of the slice along x and y."""
    sigma_px: float
    """Uncertainty of the place."""
    sigma_deg: float
    """Uncertainty of the angle."""
    failure: str = ""
    """Why it lies between its neighbours only; empty where pictures place it."""


def mapping_from_facts(facts: Mapping[str, Any]) -> PlanarTransform:
    return PlanarTransform(np.array(facts["matrix"], float), np.array(facts["offset"], float))


def pose_from_facts(facts: Mapping[str, Any], placed: PlacedSlice) -> PlacedSlice:
    """Return the pose in which a slice was written, with what is known of it now."""
    return replace(placed, mapping=mapping_from_facts(facts))


def pose_facts(placed: PlacedSlice) -> dict[str, Any]:
    return {
        "matrix": placed.mapping.matrix.tolist(),
        "offset": placed.mapping.offset.tolist(),
        "rotation_deg": round(placed.mapping.rotation_deg, 6),
        "shape": list(placed.shape),
        "sigma_px": round(placed.sigma_px, 4),
        "sigma_deg": round(placed.sigma_deg, 5),
        "failure": placed.failure,
    }


def is_moved(entry: Mapping[str, Any], placed: PlacedSlice) -> bool:
    """Whether a slice that the stacks hold lies elsewhere than it was written, or was not written to its end."""
    if "pose" not in entry or entry.get("moving"):
        return True
    before = mapping_from_facts(entry["pose"])
    width, height = placed.shape
    corners = np.array([[x, y] for x in (0, width - 1) for y in (0, height - 1)], float)
    return bool(np.abs(before.points(corners) - placed.mapping.points(corners)).max() > _MOVED_PX)


def extent_in_sample(mapping: PlanarTransform | None, shape: tuple[int, int]) -> Canvas:
    """Return the pixels of the sample that show a picture in its pose: those that lie on one of its pixels."""
    if mapping is None:
        return Canvas.of(shape)
    corners = np.array([[x, y] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1)], float)
    there = mapping.inverse().points(corners).round(6)
    low, high = np.ceil(there.min(0) - 0.5).astype(int), np.floor(there.max(0) + 0.5).astype(int) + 1
    return Canvas((int(low[0]), int(low[1])), (int(high[0]), int(high[1])))
