"""Maps that do not fit the mosaic, and masks that divide noise, show in the figures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from opticstream.compute.stitching import seams_from_tiles
from opticstream.stages.mosaic._quality import mask_figures, seam_ncc_of_map

OFFSET = np.array([[0, 0], [40, 0], [0, 40], [40, 40]])
PAIRS = np.array([[0, 1], [2, 3], [0, 2], [1, 3]])
NUMBERS = (1, 2, 3, 4)


def scene(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((110, 110))
    return ndimage.gaussian_filter(noise, 3).astype(np.float32)


def cut(image: np.ndarray) -> dict[int, np.ndarray]:
    return {n: image[x : x + 60, y : y + 60] for n, (x, y) in zip(NUMBERS, OFFSET, strict=True)}


AIP = cut(scene(1))
SEAMS = seams_from_tiles(list(AIP.values()), OFFSET, PAIRS)


def test_a_map_of_the_same_tiles_agrees():
    assert seam_ncc_of_map("ret", cut(scene(2)), NUMBERS, OFFSET, SEAMS) > 0.95


def test_axes_agree_across_the_fold_of_180_degrees():
    angles = 400 * scene(3)
    wrapped = {n: (tile + 90 + 180 * (n % 2)) % 180 - 90 for n, tile in cut(angles).items()}
    assert seam_ncc_of_map("ori", wrapped, NUMBERS, OFFSET, SEAMS) > 0.95


def test_a_map_that_is_mirrored_or_of_other_tiles_does_not_agree():
    mirrored = {n: tile[::-1, ::-1] for n, tile in cut(scene(2)).items()}
    assert seam_ncc_of_map("ret", mirrored, NUMBERS, OFFSET, SEAMS) < 0.5
    opposed = {n: tile if n in (1, 4) else -tile for n, tile in cut(scene(2)).items()}
    assert seam_ncc_of_map("ret", opposed, NUMBERS, OFFSET, SEAMS) < -0.9


def test_nothing_is_said_where_the_first_map_shows_nothing_or_tiles_are_missing():
    noise = {n: np.random.default_rng(n).standard_normal((60, 60)).astype(np.float32) for n in NUMBERS}
    unclear = seams_from_tiles(list(noise.values()), OFFSET, PAIRS)
    assert np.isnan(seam_ncc_of_map("ret", AIP, NUMBERS, OFFSET, unclear))
    assert np.isnan(seam_ncc_of_map("ret", {1: AIP[1]}, NUMBERS, OFFSET, SEAMS))
    assert np.isnan(seam_ncc_of_map("surf", AIP, NUMBERS, OFFSET, SEAMS))


@pytest.mark.parametrize(("level", "least", "most"), [(20.0, 19, 21), (0.0, 0, 3)])
def test_the_contrast_of_a_mask_is_that_of_the_levels_it_divides(level, least, most):
    image = np.random.default_rng(0).standard_normal((80, 80)).astype(np.float32)
    image[20:60, 20:60] += level
    tissue = np.zeros(image.shape, bool)
    tissue[20:60, 20:60] = True
    figures = mask_figures(image, tissue)
    assert least <= figures["mask_contrast_db"] + (level == 0) <= most
    assert figures["mask_parts"] == 1
    assert mask_figures(image, np.ones(image.shape, bool))["mask_contrast_db"] is None
