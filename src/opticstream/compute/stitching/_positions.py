"""Positions of the tiles of a mosaic from their overlaps and a model of the stage.

Every link's correlation surface is kept as evidence instead of its highest peak alone (`_evidence`). The stage model (a
lattice and its jitter, estimated from the clear links, `_stage_model`) says which peaks are plausible; the weighted
correlation (maximum likelihood for the coherence that the tiles really have) says where exactly (`_ruler`); a robust
least squares over all tiles decides (`_solution`), and looks at every link again around the position that all others
predict. Blank tiles end on the lattice by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.stitching._evidence import evidence_from_spectra, likelihood_weight, link_spectra, pick, smooth
from opticstream.compute.stitching._grid import neighbour_pairs
from opticstream.compute.stitching._ruler import Ruler
from opticstream.compute.stitching._solution import (
    TilePositions,
    is_sharp,
    link_beliefs,
    says_something,
    solved,
    without_links,
)
from opticstream.compute.stitching._solver import LinkSystem, lines_from_positions
from opticstream.compute.stitching._stage_model import StageModel, stage_features
from opticstream.compute.stitching._tilefilter import FilteredTiles
from opticstream.system.cores import one_blas_thread

Array = NDArray[np.float64]
FloatArray = NDArray[np.float32]

FAINT_SHARE = 0.5
"""Frequency weights are estimated again where more than this share of the links with information are not sharp."""


def positions_from_tiles(
    images: Sequence[FilteredTiles],
    nominal_px: ArrayLike,
    /,
    *,
    margin_px: int = 16,
    line_parity: ArrayLike | None = None,
    workers: int = 2,
) -> TilePositions:
    """Return the positions of tiles from their overlaps.

    Parameters
    ----------
    images : sequence of FilteredTiles
        One or more kinds of image of the same tiles; their evidence is added.
    nominal_px : array_like, shape (tiles, 2)
        Where the stage was sent.
    margin_px : int
        Largest error of the nominal displacement of two neighbours. It is cut to leave 4 px of the nominal overlap.
    line_parity : array_like, shape (tiles,), optional
        -0.5 or +0.5 by the direction of travel when the tile was taken; lets a backlash of the stage be recognised.
    workers : int
        Threads of the Fourier transforms.

    Returns
    -------
    TilePositions
        The mean deviation from `nominal_px`'s own frame is zero; without any link all tiles stay nominal.
    """
    with one_blas_thread():
        return _positions(images, nominal_px, margin_px, line_parity, workers)


def _positions(
    images: Sequence[FilteredTiles], nominal_px: ArrayLike, margin_px: int, line_parity: ArrayLike | None, workers: int
) -> TilePositions:
    nominal = np.asarray(nominal_px, np.float64).reshape(-1, 2)
    tile_shape = images[0].tile_shape
    pairs, axis = neighbour_pairs(nominal, tile_shape=tile_shape, min_overlap_px=5.0)
    features = stage_features(nominal, line_parity)
    if len(pairs) == 0:
        return without_links(nominal, pairs, axis, float(margin_px))
    spectra = [link_spectra(image.values, nominal, pairs, axis, margin_px, workers) for image in images]
    evidence = evidence_from_spectra(
        spectra, pairs, axis, nominal, [[smooth() for _ in channel] for channel in spectra]
    )
    stage = StageModel.from_surfaces(evidence, nominal, features)
    for _ in range(2):
        pick(evidence, *stage.prediction(evidence))
        stage = StageModel.from_links(evidence, nominal, features, stage)
    weights = [[likelihood_weight(s, evidence) for s in channel] for channel in spectra]
    evidence = evidence_from_spectra(spectra, pairs, axis, nominal, weights)
    pick(evidence, *stage.prediction(evidence))
    stage = StageModel.from_links(evidence, nominal, features, stage)
    system = LinkSystem(pairs, features, lines_from_positions(nominal, pairs, tile_shape))
    beliefs = link_beliefs(evidence, system, nominal, stage)
    telling = says_something(beliefs)
    if (telling & ~is_sharp(beliefs)).sum() > FAINT_SHARE * telling.sum():
        # The few clear links give a poor estimate of the coherence; now the shifts of all links are known.
        evidence.shift, evidence.accepted = beliefs.believed_px, telling
        weights = [[likelihood_weight(s, evidence) for s in channel] for channel in spectra]
        evidence = evidence_from_spectra(spectra, pairs, axis, nominal, weights)
        beliefs = link_beliefs(evidence, system, nominal, stage)
    del spectra

    ruler = Ruler(images, pairs, axis, workers)
    return solved(evidence, nominal, features, system, beliefs, ruler)
