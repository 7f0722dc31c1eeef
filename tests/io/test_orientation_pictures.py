"""Pictures of axes: fixed colours, legends that show directions as the picture does, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opticstream.io import orientation_pictures as pictures


def test_an_axis_and_its_opposite_have_one_colour() -> None:
    np.testing.assert_allclose(pictures.hue_colours([-70.0]), pictures.hue_colours([110.0]), atol=1e-5)
    np.testing.assert_array_equal(pictures.axis_colours([[0.6, -0.8, 0.0]]), pictures.axis_colours([[-0.6, 0.8, 0.0]]))


def test_x_y_z_are_red_green_blue() -> None:
    np.testing.assert_array_equal(pictures.axis_colours(np.eye(3)), np.eye(3))


def test_no_axis_is_black() -> None:
    assert (pictures.hue_colours([np.nan]) == 0).all()
    assert (pictures.axis_colours([[np.nan] * 3]) == 0).all()


def test_the_wheel_has_the_colour_of_each_direction_where_it_points() -> None:
    size = 200
    wheel = pictures.inplane_legend(size)
    for angle in (20.0, 70.0, 110.0, 160.0):
        t = np.radians(angle)
        x, y = (round(size / 2 + 0.6 * 0.44 * size * float(c)) for c in (np.cos(t), np.sin(t)))
        expected = pictures.hue_colours([angle])[0] * 255
        np.testing.assert_allclose(wheel[y, x], expected, atol=12)


def test_pictures_have_x_to_the_right_and_y_downwards() -> None:
    colours = np.zeros((5, 3, 3))
    colours[4, 0] = 1
    assert (pictures.picture_from_colours(colours)[0, 4] == 255).all()


def test_the_legend_covers_nothing() -> None:
    picture = np.full((300, 400, 3), 77, np.uint8)
    out = pictures.with_legend(picture, pictures.axis_legend(pictures.legend_size(picture)))
    np.testing.assert_array_equal(out[:300, :400], picture)
    assert out.shape[1] > 400


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png"])
def test_files_hold_the_picture_and_no_time(tmp_path: Path, suffix: str) -> None:
    picture = pictures.inplane_legend(120)
    one = pictures.write_picture(tmp_path / f"a{suffix}", picture)
    other = pictures.write_picture(tmp_path / f"b{suffix}", picture)
    assert one.read_bytes() == other.read_bytes()
    with Image.open(one) as image:
        read = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read - picture).mean() < (3 if suffix == ".jpg" else 1e-9)
