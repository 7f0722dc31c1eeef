"""Pictures that are too large for their format are made smaller, and TIFF counts its bytes in 64 bits where needed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from opticstream.io import orientation_pictures, pictures
from opticstream.io.encoded_pictures import MOST_JPEG_PX, needs_bigtiff, reduction_note, reduction_step


@pytest.mark.parametrize("shape", [(66_000, 20, 3), (20, 131_500, 3), (65_500, 10, 3), (9_500, 9_600, 3)])
@pytest.mark.parametrize("write", [pictures.write_jpeg, orientation_pictures.write_picture])
def test_a_jpeg_of_any_size_can_be_written_and_opened_without_a_warning(tmp_path, shape, write):
    picture = np.zeros(shape, np.uint8)
    write(tmp_path / "a.jpg", picture)
    step = reduction_step(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Image.open(tmp_path / "a.jpg") as opened:
            assert opened.size == (-(-shape[1] // step), -(-shape[0] // step))
            assert opened.size[0] * opened.size[1] <= MOST_JPEG_PX
    assert bool(reduction_note("a.jpg", shape)) == (step > 1)


def test_a_long_png_and_tiff_keep_all_pixels(tmp_path):
    picture = np.zeros((66_000, 4, 3), np.uint8)
    picture[-1] = 255
    for name in ("a.png", "a.tif"):
        path = orientation_pictures.write_picture(tmp_path / name, picture)
        with Image.open(path) as opened:
            np.testing.assert_array_equal(np.asarray(opened), picture)


def test_a_tiff_beyond_four_gigabytes_is_a_bigtiff():
    assert not needs_bigtiff(4_000_000_000)
    assert needs_bigtiff(4_300_000_000)
