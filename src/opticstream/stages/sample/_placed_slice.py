"""The pose in which a slice is written, and the pixels of the sample that show it then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from opticstream.compute.registration import BendReader, PlanarTransform
from opticstream.compute.sample import SliceBend
from opticstream.io.canvas import Canvas
from opticstream.stages.sample._pose_book import bend_from_facts, facts_of_bend

_MOVED_PX = 0.25
"""Displacement from which a slice is written again."""
_LOOKED_AT = 25
"""Places along each side at which bends are compared."""


class Place(NamedTuple):
    """Where the tissue at each pixel of the sample lies in a slice: its pose, and how it is bent beside that."""

    mapping: PlanarTransform
    """From pixels of the sample to pixels of the slice, without the bend."""
    bend: SliceBend | None = None

    @property
    def bend_reader(self) -> BendReader | None:
        """What tells the bend at pixels of the sample; None where there is none."""
        return None if self.bend is None else self.bend.on


@dataclass(frozen=True)
class PlacedSlice:
    """The place in which a slice is written."""

    place: Place
    shape: tuple[int, int]
    """Size of the slice along x and y."""
    sigma_px: float
    """Uncertainty of the place."""
    sigma_deg: float
    """Uncertainty of the angle."""
    failure: str = ""
    """Why it lies between its neighbours only; empty where pictures place it."""


def place_from_facts(facts: Mapping[str, Any]) -> Place:
    mapping = PlanarTransform(np.array(facts["matrix"], float), np.array(facts["offset"], float))
    return Place(mapping, bend_from_facts(facts["bend"]) if "bend" in facts else None)


def pose_from_facts(facts: Mapping[str, Any], placed: PlacedSlice) -> PlacedSlice:
    """Return the place in which a slice was written, with what is known of it now."""
    return replace(placed, place=place_from_facts(facts))


def pose_facts(placed: PlacedSlice) -> dict[str, Any]:
    mapping, bend = placed.place
    return {
        "matrix": mapping.matrix.tolist(),
        "offset": mapping.offset.tolist(),
        "rotation_deg": round(mapping.rotation_deg, 6),
        "shape": list(placed.shape),
        "sigma_px": round(placed.sigma_px, 4),
        "sigma_deg": round(placed.sigma_deg, 5),
        "failure": placed.failure,
        **({"bend": facts_of_bend(bend)} if bend is not None else {}),
    }


def is_moved(entry: Mapping[str, Any], placed: PlacedSlice) -> bool:
    """Whether a slice that the stacks hold lies elsewhere than it was written, or was not written to its end."""
    if "pose" not in entry or entry.get("moving"):
        return True
    before, now = place_from_facts(entry["pose"]), placed.place
    width, height = placed.shape
    corners = np.array([[x, y] for x in (0, width - 1) for y in (0, height - 1)], float)
    if np.abs(before.mapping.points(corners) - now.mapping.points(corners)).max() > _MOVED_PX:
        return True
    if before.bend is None and now.bend is None:
        return False
    grid = np.stack(np.meshgrid(*(np.linspace(0, n - 1, _LOOKED_AT) for n in placed.shape), indexing="ij"), -1)
    points = now.mapping.inverse().points(grid.reshape(-1, 2))
    were, are = (place.bend.at(points) if place.bend is not None else np.zeros_like(points) for place in (before, now))
    return bool(np.abs(were - are).max() > _MOVED_PX)


def extent_in_sample(place: Place | None, shape: tuple[int, int]) -> Canvas:
    """Return the pixels of the sample that show a picture in its place: those that lie on one of its pixels."""
    if place is None:
        return Canvas.of(shape)
    corners = np.array([[x, y] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1)], float)
    there = place.mapping.inverse().points(corners).round(6)
    reach = 0.0 if place.bend is None else float(np.abs(place.bend.nodes_px).max())
    low, high = np.ceil(there.min(0) - reach - 0.5).astype(int), np.floor(there.max(0) + reach + 0.5).astype(int) + 1
    return Canvas((int(low[0]), int(low[1])), (int(high[0]), int(high[1])))
