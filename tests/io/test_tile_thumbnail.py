"""The thumbnail of a tile shows its maps as small as the dashboard does, in colours that every tile shares."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from opticstream.io.tile_thumbnail import maps_in_thumbnail, small_map, thumbnail_size, tile_thumbnail

NOISE_DB = 50.0
SHAPE = (90, 120)


@pytest.fixture
def maps():
    x, y = np.meshgrid(np.linspace(0, 1, SHAPE[0]), np.linspace(0, 1, SHAPE[1]), indexing="ij")
    return {
        "aip": (55 + 30 * x).astype(np.float32),
        "surf": (100 + 30 * y).astype(np.float32),
        "mus": (1 + x).astype(np.float32),
        "ret": (90 * y).astype(np.float32),
        "ori": (180 * x - 90).astype(np.float32),
    }


@pytest.fixture
def file(tmp_path, maps):
    path = tmp_path / "thumbnail.jpg"
    path.write_bytes(tile_thumbnail(maps, noise_db=NOISE_DB))
    return path


@pytest.mark.parametrize("name", ["aip", "ret", "ori"])
def test_each_map_is_found_again(file, maps, name):
    size = thumbnail_size(*SHAPE)
    shown = maps_in_thumbnail(file, size)[name]
    wanted = small_map(name, maps[name], noise_db=NOISE_DB, intensity=maps["aip"])
    assert shown.shape == wanted.shape == (size[1], size[0], 3)
    assert np.abs(shown.astype(int) - wanted).mean() < 6


def test_maps_whose_range_differs_from_tile_to_tile_are_left_out(file):
    for name in ("surf", "mus", "biref", "nonsense"):
        assert name not in maps_in_thumbnail(file, thumbnail_size(*SHAPE))


def test_without_a_thumbnail_there_is_no_map(tmp_path):
    assert maps_in_thumbnail(tmp_path / "absent.jpg", (54, 72)) == {}
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    assert maps_in_thumbnail(tmp_path / "cut.jpg", (54, 72)) == {}


def test_a_thumbnail_is_small(file):
    assert file.stat().st_size < 20_000
    with Image.open(io.BytesIO(file.read_bytes())) as picture:
        assert picture.height == 72


def test_a_tile_without_a_map_of_fixed_range_has_no_thumbnail():
    assert tile_thumbnail({"surf": np.zeros(SHAPE, np.float32)}, noise_db=NOISE_DB) == b""
    assert tile_thumbnail({"aip": np.zeros(SHAPE, np.float32)}, noise_db=float("nan")) == b""
