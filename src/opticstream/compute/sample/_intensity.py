"""The brightness of slices: response over depth, gain of each slice, local attenuation, and what is left out.

A slice shows tissue at depth d with the level ``true + c(d) + g - loss``: c is the response over depth that all slices
share (confocal gate and mean attenuation), g the slice's gain, and the loss what the tissue above takes away more than
the mean, section by section. Tissue that two slices saw at different depths gives the differences, from which all
three follow.

What pairs of slices cannot tell: whether a slice is brighter, or the section below its face takes away less. The tissue
tells: brighter tissue takes away more (or less), and how much is learnt from places beside each other (`_losses`). That
places sections one below the other, too: a level that is too high would have to grow from section to section. How much
sections may differ at all, parts of the tissue tell, since a section is a mean over many parts. Where brightness and
loss have nothing to do with each other, the prior of the gains (about 0, each for itself) decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.sample._levels import PairLevels
from opticstream.compute.sample._losses import (
    LAYERS,
    NO_CURVE,
    brightness_spread,
    layer_planes,
    local_losses,
    loss_curve,
)

Array = NDArray[np.float64]
Single = NDArray[np.float32]

DARK_DB = 6.0
"""A slice that is darker than the others by so much is left out."""

_GAIN_PRIOR_DB = 1.0
_SECTION_PRIOR_DB = 1.0
_BEND_DB = 0.05
_SLOPE_PRIOR_DB = 10.0
_FACING_ERROR_DB = 1.0
_PROFILE_ERROR_DB = 0.3
_TISSUE_FREEDOM = 3.0
_TISSUE_STEP_DB = 0.25
_KNOT_PLANES = 4
_USUAL_LOSS_DB = 10.0
_ROUNDS = 4
_UNLIKE = 0.5
_HUBER = 1.5


@dataclass(frozen=True)
class Intensity:
    """The corrections of a sample."""

    response_db: Array
    """c(d): level of the same tissue at depth plane d against the face, shape (planes,)."""
    gains_db: Mapping[int, float]
    """g by slice; also of slices that are left out."""
    section_db: Mapping[int, float]
    """By how many dB more than the mean a section takes away; section s lies between the faces of s and s + 1."""
    local_db: Mapping[int, Single] = field(default_factory=dict)
    """What the layers of a section, one below the other, take away more at each block, shape (x, y, layers)."""
    excluded: Mapping[int, str] = field(default_factory=dict)
    """Why slices are left out."""
    section_planes: float = 1.0
    """Planes of a section."""

    def level_db(self, slice_id: int, depth: int, /) -> float:
        """Return ``c(d) + g - loss`` of a slice at a depth plane, without what differs from place to place."""
        loss = sum(share * self.section_db.get(s, 0.0) for s, share in self.sections_above(slice_id, depth))
        depth = min(depth, len(self.response_db) - 1)
        return float(self.response_db[depth] + self.gains_db.get(slice_id, 0.0) - loss)

    def sections_above(self, slice_id: int, depth: int, /) -> list[tuple[int, float]]:
        """Return the sections that light crosses from the face of a slice to a depth plane, and which share of each."""
        return _crossed(slice_id, depth, self.section_planes)


def _crossed(slice_id: int, depth: int, section_planes: float) -> list[tuple[int, float]]:
    crossed = (depth + 0.5) / section_planes
    return [(slice_id + k, min(crossed - k, 1.0)) for k in range(int(np.ceil(crossed)))]


def solve_intensity(
    profiles_db: Mapping[int, ArrayLike],
    pairs: Sequence[PairLevels],
    /,
    *,
    section_planes: float,
    facing: Mapping[tuple[int, int], tuple[float, int]] | None = None,
    layers: Callable[[int], Single] | None = None,
    dark_db: float = DARK_DB,
    smooth_blocks: float = 1.5,
    gains: bool = True,
    exclude: bool = True,
) -> Intensity:
    """Return the response over depth, the gains of slices and the attenuation of sections.

    Parameters
    ----------
    profiles_db : mapping of int to array_like, shape (planes,)
        Median level over the tissue by depth, by slice; NaN where it is unknown.
    pairs : sequence of PairLevels
        What slices say of each other.
    section_planes : float
        Planes of a section.
    facing : mapping, optional
        Where two slices have no depth in common: by how many dB a deep plane of the first exceeds the face of the
        second, and which plane; one section apart or more, so other tissue: it counts little.
    layers : callable, optional
        Returns the levels of the layers of a slice (`layer_levels`). None: brightness says nothing of losses.
    dark_db : float
        Slices that are darker than the others by more are left out.
    smooth_blocks : float
        Standard deviation of the smoothing of local attenuation, in blocks.
    gains : bool
        False: slices are taken to be equally bright.
    exclude : bool
        False: no slice is left out.

    Returns
    -------
    Intensity
        All zeros where nothing can be compared.

    Examples
    --------
    Without a pair the response follows the mean profile:

    >>> alone = solve_intensity({1: [0.0, -1.0, -2.0]}, [], section_planes=2.0)
    >>> alone.response_db.round(2).tolist()
    [0.0, -1.0, -2.0]
    """
    profiles = {n: np.asarray(p, float) for n, p in sorted(profiles_db.items())}
    planes = max((len(p) for p in profiles.values()), default=1)
    excluded: dict[int, str] = {}
    around = dict(facing or {})
    sections = _sections(profiles)
    local = local_losses(pairs, sections, curve=NO_CURVE, tissue={}, smooth_blocks=smooth_blocks)
    seen = _views(profiles, (), section_planes) if layers is not None and pairs else {}
    flat = Intensity(np.zeros(planes), {}, {}, local, {}, section_planes)
    told = _Told(brightness_spread(_tissue(seen, layers, flat)))
    solved = _solved(profiles, pairs, around, planes, section_planes, gains, told)
    dark: dict[int, float] = {}
    if exclude:
        excluded = _left_out(solved.gains, pairs, dark_db)
        unlike = set(excluded) - set(_too_dark(solved.gains, dark_db))
        if unlike:
            # A dark slice still tells of those above and below it; one that is like none of them does not.
            dark = {n: solved.gains[n] for n in unlike}
            profiles = {n: p for n, p in profiles.items() if n not in unlike}
            pairs = [p for p in pairs if not {p.first, p.second} & unlike]
            around = {pair: value for pair, value in around.items() if not set(pair) & unlike}
            local = local_losses(pairs, sections, curve=NO_CURVE, tissue={}, smooth_blocks=smooth_blocks)
            solved = _solved(profiles, pairs, around, planes, section_planes, gains, told)
    seen = _views(profiles, excluded, section_planes) if seen else {}
    for _ in range(_ROUNDS if seen else 0):
        now = Intensity(solved.response, solved.gains, solved.sections, local, {}, section_planes)
        tissue = _tissue(seen, layers, now)
        curve = loss_curve(tissue, pairs)
        if curve is None:
            break
        local = local_losses(pairs, sections, curve=curve, tissue=tissue, smooth_blocks=smooth_blocks)
        told = _Told(
            brightness_spread(tissue),
            {s: curve.mean_loss(level) for s, level in tissue.items()},
            {s: curve.slope(level) for s, level in tissue.items()},
            solved.levels,
            curve.mean_error_db,
        )
        solved = _solved(profiles, pairs, around, planes, section_planes, gains, told)
    return Intensity(solved.response, solved.gains | dark, solved.sections, local, excluded, section_planes)


def _sections(profiles: Mapping[int, Array]) -> list[int]:
    return list(range(min(profiles), max(profiles) + 1)) if profiles else []


def _views(profiles: Mapping[int, Array], excluded: Collection[int], section_planes: float) -> dict[int, int]:
    """Return which slice shows the whole of each section: its own, or an earlier one where that is left out."""
    views = {}
    for section in _sections(profiles):
        for n in sorted((n for n in profiles if n <= section), reverse=True):
            reach = layer_planes((section - n + 1) * LAYERS - 1, section_planes)[1]
            if n not in excluded and reach <= len(profiles[n]):
                views[section] = n
                break
    return views


def _tissue(views: Mapping[int, int], layers: Callable[[int], Single] | None, found: Intensity) -> dict[int, Single]:
    """Return the brightness of the layers of each section that has tissue, shape (x, y, layers)."""
    tissue: dict[int, Single] = {}
    if layers is None:
        return tissue
    for section, n in views.items():
        shown = layers(n)
        if not np.isfinite(shown).any():
            continue
        lost = np.zeros(shown.shape[:2], np.float32)
        level = []
        for k in range((section - n + 1) * LAYERS):
            own = found.local_db[n + k // LAYERS][:, :, k % LAYERS]
            if n + k // LAYERS == section:
                mean = np.mean([found.level_db(n, d) for d in range(*layer_planes(k, found.section_planes))])
                level.append(shown[:, :, k] - np.float32(mean) + lost + own / 2)
            lost = lost + own
        tissue[section] = np.stack(level, 2).astype(np.float32)
    return tissue


@dataclass(frozen=True)
class _Told:
    """What the brightness of the tissue tells of sections."""

    spread_db: float = _SECTION_PRIOR_DB
    """By how much the brightness of sections may differ."""
    loss_db: Mapping[int, float] = field(default_factory=dict)
    """What sections take away, of the brightness `level_db`, but for what is common to all."""
    slope: Mapping[int, float] = field(default_factory=dict)
    """By how much that grows with the brightness of a section."""
    level_db: Mapping[int, float] = field(default_factory=dict)
    error_db: float = _SECTION_PRIOR_DB
    """Standard deviation of `loss_db`."""


class _Solved(NamedTuple):
    response: Array
    gains: dict[int, float]
    sections: dict[int, float]
    levels: dict[int, float]
    """Brightness of sections."""


def _solved(
    profiles: Mapping[int, Array],
    pairs: Sequence[PairLevels],
    facing: Mapping[tuple[int, int], tuple[float, int]],
    planes: int,
    section_planes: float,
    with_gains: bool,
    told: _Told,
) -> _Solved:
    """Return response, gains and mean attenuation of sections by one robust linear solve."""
    slices = sorted(profiles)
    if not slices:
        return _Solved(np.zeros(planes), {}, {}, {})
    sections = _sections(profiles)
    gain_at = {n: planes + k for k, n in enumerate(slices)}
    section_at = {s: planes + len(slices) + k for k, s in enumerate(sections)}
    mean_at = planes + len(slices) + len(sections)
    faces = {n: (n - slices[0]) * section_planes for n in slices}
    knots = int((faces[slices[-1]] + planes) // _KNOT_PLANES) + 2
    usual_at = mean_at + 1 + knots
    unknowns = usual_at + 1
    rows: list[dict[int, float]] = []
    values: list[float] = []
    errors: list[float] = []
    robust: list[bool] = []

    def add(row: dict[int, float], value: float, error: float, doubted: bool = False) -> None:
        rows.append(row)
        values.append(value)
        errors.append(error)
        robust.append(doubted)

    for pair in pairs:
        between = {section_at[s]: -1.0 for s in range(pair.first, pair.second)}
        for d in np.flatnonzero(np.isfinite(pair.difference_db)).tolist():
            row = {gain_at[pair.first]: 1.0, gain_at[pair.second]: -1.0, **between}
            row[d + pair.apart_planes] = 1.0
            row[d] = -1.0
            add(row, float(pair.difference_db[d]), float(pair.error_db[d]), True)
    for (first, second), (difference, depth) in facing.items():
        row = {gain_at[first]: 1.0, gain_at[second]: -1.0, depth: 1.0}
        row |= {section_at[s]: -share for s, share in _crossed(first, depth, section_planes) if s in section_at}
        add(row, difference, _FACING_ERROR_DB, True)
    add({0: 1.0}, 0.0, 1e-3)
    # What each slice shows is tissue, too, and what slices show at the same place is the same tissue.
    for n, profile in profiles.items():
        for d in range(0, len(profile), _KNOT_PLANES):
            if np.isfinite(profile[d]):
                knot, rest = divmod((faces[n] + d) / _KNOT_PLANES, 1.0)
                row = {d: 1.0, gain_at[n]: 1.0, mean_at: 1.0}
                row[mean_at + 1 + int(knot)] = 1.0 - rest
                row[mean_at + 2 + int(knot)] = rest
                row |= {section_at[s]: -share for s, share in _crossed(n, d, section_planes) if s in section_at}
                add(row, float(profile[d]), _PROFILE_ERROR_DB, True)
    add(dict.fromkeys(range(mean_at + 1, usual_at), 1 / knots), 0.0, 1e-3)
    for k in range(mean_at + 1, usual_at):
        add({k: 1.0}, 0.0, _TISSUE_FREEDOM * told.spread_db * float(np.sqrt(max(section_planes / _KNOT_PLANES, 1))))
        if k > mean_at + 1:
            add({k: 1.0, k - 1: -1.0}, 0.0, _TISSUE_STEP_DB)
    shape = _mean_profile(list(profiles.values()), planes)
    for d in range(1, planes - 1):
        add({d - 1: 1.0, d: -2.0, d + 1: 1.0}, 0.0, _BEND_DB)
    if planes > 1:
        add({planes - 1: 1.0}, float(shape[-1]), _SLOPE_PRIOR_DB)
    for n in slices:
        add({gain_at[n]: 1.0}, 0.0, _GAIN_PRIOR_DB if with_gains else 1e-3, with_gains)
    within: dict[int, range] = {}
    for s in sections:
        top = mean_at + 1 + (s - slices[0]) * section_planes / _KNOT_PLANES
        within[s] = range(round(top), min(max(round(top) + 1, round(top + section_planes / _KNOT_PLANES)), usual_at))
        if s in told.loss_db:
            slope = told.slope[s]
            tissue = {k: -slope / len(within[s]) for k in within[s]}
            row = {section_at[s]: 1.0, usual_at: -1.0, **tissue}
            add(row, told.loss_db[s] - slope * told.level_db[s], told.error_db)
        else:
            add({section_at[s]: 1.0}, 0.0, _SECTION_PRIOR_DB)
    add({usual_at: 1.0}, 0.0, _USUAL_LOSS_DB)
    found = _robust_fit(rows, np.array(values), np.array(errors), np.array(robust), unknowns)
    response = found[:planes] - found[0]
    return _Solved(
        np.asarray(response),
        {n: float(found[gain_at[n]]) for n in slices},
        {s: float(found[section_at[s]]) for s in sections},
        {s: float(found[list(within[s])].mean()) for s in sections},
    )


def _robust_fit(
    rows: Sequence[Mapping[int, float]], values: Array, errors: Array, robust: NDArray[np.bool_], unknowns: int
) -> Array:
    """Return the solution of a sparse linear system; rows that may be wrong count less the further off they are."""
    from scipy import sparse
    from scipy.sparse import linalg

    at = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    columns = np.concatenate([list(row) for row in rows])
    shares = np.concatenate([list(row.values()) for row in rows])
    system = sparse.csr_matrix((shares, (at, columns)), shape=(len(rows), unknowns))
    weight = 1 / errors**2
    found = np.zeros(unknowns)
    for _ in range(12):
        normal = (system.T @ system.multiply(weight[:, None])).tocsc() + 1e-9 * sparse.identity(unknowns, format="csc")
        found = np.asarray(linalg.spsolve(normal, system.T @ (weight * values)))
        off = np.abs(values - system @ found) / errors
        weight = np.where(robust, 1 / np.maximum(off / _HUBER, 1), 1) / errors**2
    return found


def _mean_profile(profiles: Sequence[Array], planes: int) -> Array:
    """Return the usual fall of the level with depth, shape (planes,), 0 at the face; straight where it is unknown."""
    stack = np.full((len(profiles), planes), np.nan)
    for row, profile in zip(stack, profiles, strict=True):
        known = profile[np.isfinite(profile)]
        if known.size:
            row[: len(profile)] = profile - known[0]
    there = np.isfinite(stack).any(0)
    if there.sum() < 2:
        return np.zeros(planes)
    middle = np.nanmedian(stack[:, there], axis=0)
    return np.asarray(np.interp(np.arange(planes), np.flatnonzero(there), middle - middle[0]))


def _too_dark(gains: Mapping[int, float], dark_db: float) -> dict[int, str]:
    usual = float(np.median(list(gains.values()))) if gains else 0.0
    return {
        n: f"{usual - g:.1f} dB darker than the others (limit {dark_db:g} dB)"
        for n, g in gains.items()
        if usual - g > dark_db
    }


def _left_out(gains: Mapping[int, float], pairs: Sequence[PairLevels], dark_db: float) -> dict[int, str]:
    """Return the slices that are too dark, or like none of their neighbours, and why."""
    reasons = _too_dark(gains, dark_db)
    likeness = [p.likeness for p in pairs]
    if not likeness:
        return reasons
    middle = float(np.median(likeness))
    for n in gains:
        mine = [p.likeness for p in pairs if n in (p.first, p.second)]
        others = [p for p in pairs if n not in (p.first, p.second)]
        if n not in reasons and mine and others and max(mine) < _UNLIKE * middle:
            reasons[n] = f"like none of its neighbours (correlation {max(mine):.2f}; usual {middle:.2f})"
    return reasons
