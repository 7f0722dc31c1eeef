"""Where a person has a slice lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from opticstream.compute.sample import Edge, moved_edge
from opticstream.model.errors import InputError
from opticstream.stages.sample._ledger import Ledger
from opticstream.stages.sample._pose_book import FILE_NAME, PoseBook


def edge_of_moved_slice(
    folder: Path,
    slice_id: int,
    against: int | None,
    /,
    *,
    shift_px: tuple[float, float],
    turn_deg: float,
    sigma_px: float,
) -> Edge:
    """Return the edge that has a slice lie elsewhere: from another slice to it, after a motion from where it lies now.

    Parameters
    ----------
    folder : Path
        Folder of the stacks.
    slice_id : int
        The slice that is moved.
    against : int, optional
        The slice that it is placed against; default: the nearest one before it, or else behind it.
    shift_px : (float, float)
        By how much its tissue is moved along x and y in pictures of the sample.
    turn_deg : float
        By how much it is turned about the middle of the picture, from x towards y.
    sigma_px : float
        Standard deviation of the edge.

    Raises
    ------
    InputError
        One of the slices is not there, is excluded or has no pose, or a number is not finite.
    StateError
        The poses cannot be read.
    """
    if not np.isfinite([*shift_px, turn_deg, sigma_px]).all() or sigma_px <= 0:
        raise InputError(
            f"slice {slice_id}: expected a shift, a turn and a positive standard deviation, got --shift "
            f"{shift_px[0]:g},{shift_px[1]:g} --turn {turn_deg:g} --sigma {sigma_px:g}"
        )
    ledger, book = Ledger.read(folder / "slices.json"), PoseBook.read(folder / FILE_NAME)
    there = [n for n in ledger.present() if n in book.poses]
    if against is None:
        near = [n for n in there if n < slice_id][-1:] or [n for n in there if n > slice_id][:1]
        against = near[0] if near else slice_id
    for n in (slice_id, against):
        if n in ledger.excluded():
            raise InputError(f"slice {n} is excluded ({ledger.excluded()[n]}); include it first")
        if n not in there:
            told = ", ".join(map(str, there)) or "none"
            raise InputError(f"slice {n} has no place in the sample ({folder / FILE_NAME}); those that have: {told}")
    if slice_id == against:
        raise InputError(f"slice {slice_id}: expected another slice to place it against (--against), there is none")
    levers = [edge["lever_px"] for edge in book.edges.values()]
    assert book.centre_px is not None
    return moved_edge(
        against,
        slice_id,
        book.poses,
        shift_px=shift_px,
        turn_deg=turn_deg,
        sigma_px=sigma_px,
        centre_px=book.centre_px,
        lever_px=float(np.median(levers)) if levers else 100.0,
    )
