"""The pictures that an operator looks at: what fits looks as if it fits, what does not stands out."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from opticstream.compute.stitching import Seam
from opticstream.io.pictures import picture_of_map
from opticstream.io.zoom import ZoomFile, size_of_zoom
from opticstream.stages.mosaic._captions import TEXT, with_lines_below, with_title
from opticstream.stages.mosaic._find_coordinates import measured_positions
from opticstream.stages.mosaic._pictures import overlap_picture, write_links_picture
from opticstream.stages.mosaic._tiles import MosaicTiles, tiles_of_mosaic
from opticstream.stages.mosaic._zoom import write_zoom_of_map
from opticstream.testing.stitching_cases import MOSAIC, make_case


def two_tiles() -> MosaicTiles:
    nominal = np.array([[0.0, 0.0], [60.0, 0.0]])
    return MosaicTiles("two", (1, 2), nominal, (100, 80), {}, np.array([[0, 0], [1, 0]]), grid=(2, 1))


def colours_in_overlap(error_px: int) -> np.ndarray:
    """Return red and green (rows, columns, 2) of the overlap of two tiles, the second off by some pixels."""
    rng = np.random.default_rng(0)
    scene = np.kron(rng.uniform(0, 1, (60, 20)), np.ones((4, 4)))
    images = {1: scene[:100, :80], 2: scene[60 + error_px : 160 + error_px, :80]}
    picture = overlap_picture(two_tiles(), two_tiles().nominal_px, images.get, [])
    scale = picture.shape[1] // 160
    return picture[10 * scale : 70 * scale, 62 * scale : 98 * scale, :2].astype(int)


def test_overlaps_are_yellow_where_tiles_fit_and_have_fringes_where_they_do_not():
    apart = {error: np.abs(np.diff(colours_in_overlap(error), axis=-1)).mean() for error in (0, 1, 3)}
    assert apart[0] < 1
    assert apart[1] > 10
    assert apart[3] > 2 * apart[1]


def test_a_seam_shows_its_correlation_and_one_that_is_not_known_shows_nothing():
    images = {k: np.full((100, 80), 0.5) for k in (1, 2)}
    plain = overlap_picture(two_tiles(), two_tiles().nominal_px, images.get, [])
    for ncc, shown in ((0.9, True), (float("nan"), False)):
        seam = Seam((0, 1), ncc, 0.0, 100)
        picture = overlap_picture(two_tiles(), two_tiles().nominal_px, images.get, [seam])
        assert (picture != plain).any() == shown


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    case = make_case(tmp_path_factory.mktemp("qc"), products=("aip",))
    tiles = tiles_of_mosaic(MOSAIC, scan=case.scan, folder=case.tiles, modalities=("aip",))
    return tiles, measured_positions(tiles, modalities=("aip",), margin_px=16)[0]


def blue_pixels(path, tiles, found, *, residual_px: float) -> int:
    """Return how much of the picture arrows take up when every clear link is off by `residual_px`."""
    residual = np.where(np.isfinite(found.links.residual_px), residual_px / np.sqrt(2), np.nan)
    shown = replace(found, links=replace(found.links, residual_px=residual))
    with Image.open(write_links_picture(path, tiles, shown, modality="aip")) as image:
        picture = np.asarray(image).astype(int)[:-45]
    return int(((picture @ (-1, 0.5, 0.5)) > 60).sum())


def test_arrows_are_short_where_a_mosaic_fits_and_never_longer_than_a_quarter_of_a_tile(measured, tmp_path):
    tiles, found = measured
    assert found.links.clear.any()
    dots, small, pixel, large = (
        blue_pixels(tmp_path / "p.jpg", tiles, found, residual_px=px) for px in (0.0, 0.05, 1.0, 30.0)
    )
    assert small - dots < 0.2 * (pixel - dots)
    assert large == pytest.approx(pixel, rel=0.1)


def test_words_cover_no_pixel_of_a_picture():
    picture = np.full((30, 40, 3), 77, np.uint8)
    below = with_lines_below(picture, [[("links: ", TEXT), ("12 clear", (60, 200, 90))], [("a longer line", TEXT)]])
    assert np.array_equal(below[:30, :40], picture)
    assert ((below[30:] @ (-1, 2, -1)) > 100).any()  # green words
    titled = with_title(picture, "a title")
    assert np.array_equal(titled[-30:, :40], picture)


def test_a_picture_at_full_size_has_the_colours_of_the_reduced_one(tmp_path):
    random = np.random.default_rng(3)
    x, y = np.meshgrid(np.linspace(0, 3, 420), np.linspace(0, 3, 310), indexing="ij")
    image = (60 * np.sin(x + y)).astype(np.float32)
    image[:40, :50] = np.nan
    light = (40 + 30 * np.cos(2 * x) + random.normal(0, 0.1, x.shape)).astype(np.float32)
    small, dim = image[::2, ::2], light[::2, ::2]
    path = write_zoom_of_map(tmp_path / "m_ori.szi", "ori", image, small=small, light=dim)
    assert size_of_zoom(path) == (420, 310)
    tile = np.asarray(Image.open(io.BytesIO(ZoomFile(path).read("m_ori_files/9/0_0.jpg"))), int)
    wanted = picture_of_map("ori", small, brightness=dim)[:128, :128].repeat(2, 0).repeat(2, 1)
    assert np.abs(tile - wanted).mean() < 8
    assert (tile[:20, :20] < 10).all()
