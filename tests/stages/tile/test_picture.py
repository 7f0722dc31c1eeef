"""The quality picture of a tile and the pictures of mosaics and slices tell the same by the same colours."""

from __future__ import annotations

import numpy as np

from opticstream.io.orientation_pictures import hue_colours, picture_from_colours
from opticstream.io.pictures import picture_of_map
from opticstream.stages.tile._picture import hue


def test_an_axis_has_one_colour_in_pictures_of_tiles_mosaics_and_slices():
    angles = np.linspace(-180, 180, 361, dtype=np.float32).reshape(1, -1)
    of_tile = hue(angles, np.ones_like(angles))
    of_mosaic = picture_of_map("ori", angles).transpose(1, 0, 2)
    of_slice = picture_from_colours(hue_colours(angles)).transpose(1, 0, 2)
    np.testing.assert_array_equal(of_tile, of_mosaic)
    np.testing.assert_array_equal(of_tile, of_slice)
    by_angle = {int(a): tuple(c) for a, c in zip(angles[0], of_tile[0].tolist(), strict=True)}
    assert by_angle[0] == by_angle[180] == (255, 0, 0)
    assert by_angle[60] == by_angle[-120] == (0, 255, 0)
    assert by_angle[120] == by_angle[-60] == (0, 0, 255)
    assert len({by_angle[a] for a in range(-89, 91)}) == 180  # no two axes share a colour


def test_an_axis_that_is_not_known_is_black():
    angles = np.array([[np.nan, 30.0]], np.float32)
    assert hue(angles, np.ones_like(angles))[0, 0].tolist() == [0, 0, 0]
    assert picture_of_map("ori", angles)[0, 0].tolist() == [0, 0, 0]
