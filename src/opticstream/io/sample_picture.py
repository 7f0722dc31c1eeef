"""A preview of the whole sample: three orthogonal views through its stacks, in true proportions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io import orientation_pictures as pictures
from opticstream.io.zarr import SampleViews

_THINNEST_PX = 6


def write_sample_picture(path: Path, views: Mapping[str, SampleViews], /) -> Path:
    """Write a preview: one row of three views for each stack, vectors as colours, others in grey."""
    rows = []
    for name, view in views.items():
        panels = [_panel(view.enface, 1.0, view)]
        for plane, size in ((view.along_x, view.voxel_um[0]), (view.along_y, view.voxel_um[1])):
            panels.append(_panel(plane, max(view.voxel_um[2] / size, _THINNEST_PX), view))
        row = pictures.side_by_side(
            panels[0],
            pictures.side_by_side(panels[1], panels[2], titles=("x-z", "y-z")),
            titles=(f"{name}, slice {view.slice_id}", ""),
        )
        rows.append(row)
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=64) for row in rows]
    return pictures.write_picture(path, np.concatenate(rows))


def _panel(plane: NDArray[Any], stretch: float, view: SampleViews) -> pictures.Picture:
    """Return a plane as a picture; its second axis is repeated to get the true proportions."""
    if plane.ndim == 3:
        colours = pictures.axis_colours(plane)
    else:
        good = view.enface[np.isfinite(view.enface)]
        low, high = np.percentile(good, [1, 99]) if good.size else (0.0, 1.0)
        grey = np.nan_to_num(np.clip((plane - low) / max(float(high - low), 1e-30), 0, 1))
        colours = np.repeat(grey[..., None], 3, axis=-1)
    picture = pictures.picture_from_colours(colours)
    return np.repeat(picture, max(1, round(stretch)), axis=0)
