"""Faces that share only large structures: their place is found, with an uncertainty that tells how well."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from opticstream.compute.registration import PlanarTransform, resample_image, rigid_map
from opticstream.compute.sample._faint_likeness import faint_match

SHAPE, CENTRE = (210, 190), np.array([104.5, 94.5])


def faces(seed: int, alike: float, shift: tuple[float, float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two faces with a share of large structures in common, the second one turned by 1 degree and shifted."""
    rng = np.random.default_rng(seed)
    common, one, two = (ndimage.gaussian_filter(rng.normal(size=(270, 250)), 8.0, mode="wrap") for _ in range(3))
    parts = [np.sqrt(alike) * common + np.sqrt(1 - alike) * own for own in (one, two)]
    first, second = (part / part.std() + 0.7 * rng.normal(size=part.shape) for part in parts)
    mapping = rigid_map(1.0, shift, CENTRE).inverse()
    moved = resample_image(second.astype(np.float32), _padded(mapping), shape=SHAPE)
    return first[30:240, 30:220].astype(np.float32), moved


def _padded(mapping: PlanarTransform) -> PlanarTransform:
    return PlanarTransform(mapping.matrix, mapping.offset + 30.0)


def matched(seed: int, alike: float, shift: tuple[float, float]) -> tuple[float, float]:
    """Return the error and the stated uncertainty in px."""
    inside = np.ones(SHAPE, bool)
    found = faint_match(faces(seed, alike, shift), (inside, inside))
    assert found is not None
    off = found.mapping.points(CENTRE) - CENTRE - shift
    return float(np.sqrt((off**2).mean())), found.sigma_px


def test_a_weak_likeness_of_large_structures_tells_the_place_and_how_surely() -> None:
    results = np.array([matched(seed, 0.5, (12.0, -9.0)) for seed in range(8)])
    assert np.median(results[:, 0]) < 4
    assert np.median(results[:, 1]) < 5
    ratio = np.sqrt((results[:, 0] ** 2).mean() / (results[:, 1] ** 2).mean())
    assert 0.4 < ratio < 2


def test_unrelated_faces_tell_next_to_nothing() -> None:
    assert np.median([matched(seed, 0.0, (12.0, -9.0))[1] for seed in range(4)]) > 12


def test_without_tissue_there_is_nothing_to_compare() -> None:
    nothing = np.zeros(SHAPE, bool)
    assert faint_match(faces(1, 0.5, (0.0, 0.0)), (nothing, nothing)) is None
