"""Volume stitching: blocks of many tiles blended plane by plane, with the first pyramid levels.

A separate package, because importing it loads the compiler. Volumes are arrays (z, y, x) in C order here: that is the
order of the bytes on disk, in tiles and in stores.
"""

from __future__ import annotations

from opticstream.compute.stitching.volume._blend import BlockTiles, blend_axial, blend_scalar
from opticstream.compute.stitching.volume._halving import angle_from_components, halved, halved_axis
from opticstream.compute.stitching.volume._shift import shift_from_focus
from opticstream.compute.stitching.volume._undistortion import Undistortion, undistortion

__all__ = [
    "BlockTiles",
    "Undistortion",
    "angle_from_components",
    "blend_axial",
    "blend_scalar",
    "halved",
    "halved_axis",
    "shift_from_focus",
    "undistortion",
]
