"""A picture for deep zoom has all resolutions in tiles, and any program can open it."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from opticstream.io.zoom import TILE_PX, ZoomFile, size_of_zoom, write_zoom
from opticstream.model.errors import FileFormatError

WIDTH, HEIGHT = 700, 530


@pytest.fixture
def picture():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, (x + y) % 97], axis=-1).astype(np.uint8)


@pytest.fixture
def path(tmp_path, picture):
    strips = (picture[top : top + 200] for top in range(0, HEIGHT, 200))
    return write_zoom(tmp_path / "map.szi", (WIDTH, HEIGHT), strips)


def tile(path, level, column, row):
    return np.asarray(Image.open(io.BytesIO(ZoomFile(path).read(f"map_files/{level}/{column}_{row}.jpg"))), int)


def test_the_finest_level_is_the_picture(path, picture):
    rows = [np.concatenate([tile(path, 10, c, r) for c in range(3)], axis=1) for r in range(3)]
    whole = np.concatenate(rows)
    assert whole.shape == picture.shape
    assert np.abs(whole[..., :2] - picture[..., :2]).mean() < 6


def test_each_coarser_level_is_half_as_large(path, picture):
    sizes = {level: tile(path, level, 0, 0).shape[:2] for level in range(9)}
    assert sizes[8] == (133, 175)
    assert sizes[0] == (1, 1)
    small = np.asarray(Image.fromarray(picture).resize((175, 133), Image.Resampling.BOX), int)
    assert np.abs(tile(path, 8, 0, 0)[..., :2] - small[..., :2]).mean() < 6


def test_a_program_that_knows_only_zip_and_dzi_can_open_it(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        assert {"map/map.dzi", "map/map_files/10/2_2.jpg"} <= names
        assert f'TileSize="{TILE_PX}"' in archive.read("map/map.dzi").decode()
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_STORED}
    assert size_of_zoom(path) == (WIDTH, HEIGHT)


def test_the_same_picture_is_the_same_file(path, tmp_path, picture):
    again = write_zoom(tmp_path / "again" / "map.szi", (WIDTH, HEIGHT), [picture])
    assert again.read_bytes() == path.read_bytes()


def test_other_files_and_parts_are_refused(path, tmp_path):
    with pytest.raises(FileFormatError, match="no part"):
        ZoomFile(path).read("map_files/10/9_9.jpg")
    (tmp_path / "no.szi").write_bytes(b"no")
    with pytest.raises(FileFormatError, match="cannot be read"):
        ZoomFile(tmp_path / "no.szi")
