"""Twelve real confocal tiles: positions agree with each overlap's own best match, whatever is in the others."""

from __future__ import annotations

import numpy as np

from opticstream.stages.mosaic._find_coordinates import measured_positions, verdict_from_positions
from opticstream.stages.mosaic._tiles import tiles_from_configuration


def best_integer_shift(first, second, nominal, reach=12):
    """Return the displacement near `nominal` at which the raw overlap correlates best, tried one by one."""
    best, where = -2.0, None
    size = np.array(first.shape)
    for dx in range(-reach, reach + 1):
        for dy in range(-reach, reach + 1):
            step = nominal + np.array([dx, dy])
            low, high = np.maximum(step, 0), np.minimum(size, size + step)
            one = first[low[0] : high[0], low[1] : high[1]]
            other = second[low[0] - step[0] : high[0] - step[0], low[1] - step[1] : high[1] - step[1]]
            one, other = one - one.mean(), other - other.mean()
            ncc = float((one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum()))
            if ncc > best:
                best, where = ncc, step
    return np.asarray(where)


def test_every_neighbour_link_lies_within_a_pixel_of_the_best_match_of_its_own_overlap(shared_data):
    tiles = tiles_from_configuration(shared_data / "tiles_lscm" / "TileConfiguration.txt")
    found, missing = measured_positions(tiles, modalities=("image",), margin_px=16)
    assert missing == ()
    assert verdict_from_positions(found).grade == "good"
    images = {k: tiles.read(n, "image").astype(np.float32) for k, n in enumerate(tiles.numbers)}
    assert len(found.links.pairs) == 17
    for a, b in found.links.pairs:
        displacement = found.positions_px[b] - found.positions_px[a]
        nominal = np.rint(tiles.nominal_px[b] - tiles.nominal_px[a]).astype(int)
        best = best_integer_shift(images[a], images[b], nominal)
        off = displacement - best
        assert np.abs(off).max() <= 1.0, f"tiles {tiles.numbers[a]} and {tiles.numbers[b]}: {off} px from {best}"
