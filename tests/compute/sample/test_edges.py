"""Edges between slices: the depths that both saw, and what is said where there is nothing to compare."""

from __future__ import annotations

import numpy as np
import pytest

from opticstream.compute.registration import rigid_map
from opticstream.compute.sample import band_image, depths_to_compare, depths_to_read, edge_between, tissue_mask
from opticstream.sim.cut_sample import CutSample, CutSampleSettings
from opticstream.sim.settings import CuttingSettings


def sample(**cutting: object) -> CutSample:
    settings = CuttingSettings(rotation_deg=1.0, shift_px=8.0, **cutting)  # type: ignore[arg-type]
    return CutSample(
        CutSampleSettings(seed=5, slots=2, shape=(200, 180), imaged_um=400.0, cut_um=200.0, cutting=settings)
    )


def test_common_planes_are_compared_and_facing_ones_where_there_are_none() -> None:
    assert depths_to_compare(20, (60, 60)) == (slice(20, 32), slice(0, 12), True)
    assert depths_to_compare(52.4, (60, 60)) == (slice(52, 60), slice(0, 8), True)
    assert depths_to_compare(55, (60, 60)) == (slice(48, 60), slice(0, 12), False)
    assert depths_to_compare(400, (60, 5)) == (slice(48, 60), slice(0, 5), False)
    assert depths_to_compare(1, (1, 1)) == (slice(0, 1), slice(0, 1), False)
    depths = depths_to_compare(4, (60, 60))
    assert depths_to_read(depths, 60) == slice(0, 26)


def test_the_motion_between_two_slices_is_found_from_nothing() -> None:
    made = sample()
    one, two = (made.volume_db(n) for n in (1, 2))
    depths = depths_to_compare(made.section_planes, (40, 40))
    found = edge_between(1, 2, one[:, :, depths_to_read(depths, 40)], two[:, :, depths.second], depths)
    matrix, offset = made.pose(2)
    about = np.array(found.edge.about_px)
    off = np.array(found.edge.shift_px) - (matrix @ about + offset - about)
    turn = found.edge.turn_deg - float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    assert np.hypot(*off) < 0.12
    assert abs(np.radians(turn)) * found.edge.lever_px < 0.12
    assert found.confidence > 0.8
    assert abs(found.deeper_planes) < 1


def test_an_incomplete_slice_is_compared_where_it_shows_tissue_and_says_less() -> None:
    """A bend makes another turn of a part than of the whole, so that a part must not say that it is as sure."""
    made = sample(incomplete=(2,), incomplete_share=0.5, distortion_um=40.0)
    one, two = (made.volume_db(n) for n in (1, 2))
    depths = depths_to_compare(made.section_planes, (40, 40))
    part = edge_between(1, 2, one[:, :, depths_to_read(depths, 40)], two[:, :, depths.second], depths)
    matrix, offset = made.pose(2)
    cut = (np.linalg.inv(matrix) @ (np.array([100.0, 90.0]) - offset))[0]
    assert 16 < part.edge.about_px[0] < cut - 20, "the middle of the part, not of the whole at 100"
    assert part.edge.lever_px < 0.9 * 56, "56 px is that of the whole"
    as_sure = np.hypot(0.06, 0.15 * part.residual_px) / part.confidence
    assert part.edge.sigma_px > 1.2 * as_sure


def test_slices_bent_against_each_other_give_the_motion_nearest_to_the_bend() -> None:
    made = sample(distortion_um=60.0, distortion_scale_um=1500.0)
    one, two = (made.volume_db(n) for n in (1, 2))
    depths = depths_to_compare(made.section_planes, (40, 40))
    found = edge_between(1, 2, one[:, :, depths_to_read(depths, 40)], two[:, :, depths.second], depths)
    # The first slice is straight; the second one's picture shows at p the tissue at q.
    p = np.argwhere(tissue_mask(two[:, :, depths.second]))[::5]
    q = made._where(2)[0][:, p[:, 0], p[:, 1]].T
    mapping = rigid_map(found.edge.turn_deg, found.edge.shift_px, found.edge.about_px)
    off = mapping.points(q) - p
    arm = q - q.mean(0)
    turn = float((arm[:, 0] * off[:, 1] - arm[:, 1] * off[:, 0]).mean() / np.sqrt((arm**2).sum(1).mean()))
    error = np.array([*off.mean(0), turn])
    assert np.sqrt((off**2).sum(1).mean()) > 2, "the bend is there"
    assert np.sqrt((error**2).mean()) < 2 * found.edge.sigma_px
    assert np.sqrt((error**2).mean()) < 0.45, "a rigid comparison alone is 0.51 off"


def test_slices_without_likeness_give_an_edge_that_says_next_to_nothing() -> None:
    rng = np.random.default_rng(0)
    one, two = (rng.normal(0, 3, (90, 80, 12)).astype(np.float32) for _ in range(2))
    depths = depths_to_compare(60, (12, 12))
    found = edge_between(3, 4, one, two, depths)
    assert found.confidence < 0.3
    assert found.edge.sigma_px > 5
    nothing = edge_between(3, 4, np.full_like(one, np.nan), two, depths)
    assert nothing.failure
    assert nothing.confidence == 0
    assert nothing.edge.sigma_px >= 80


def test_a_band_holds_no_attenuation_and_no_gaps() -> None:
    structure = np.random.default_rng(1).normal(0, 2, (30, 20)).astype(np.float32)
    planes = np.stack([structure - 3.0 * z for z in range(8)], axis=2)
    planes[4, 5, :] = np.nan
    planes[6, 7, 2] = np.nan
    out = band_image(planes)
    assert np.isnan(out[4, 5])
    assert np.isfinite(out[6, 7])
    good = np.isfinite(out) & (np.arange(30)[:, None] != 6)
    np.testing.assert_allclose((out - structure)[good], (out - structure)[good][0], atol=1e-4)


@pytest.mark.parametrize("contrast", [20.0, 2.0])
def test_tissue_is_told_from_what_surrounds_it_only_where_they_differ(contrast: float) -> None:
    planes = np.full((80, 60, 4), -contrast, np.float32)
    planes[20:60, 15:45] = 0
    planes += np.random.default_rng(2).normal(0, 0.5, planes.shape).astype(np.float32)
    share = tissue_mask(planes).mean()
    assert share == pytest.approx(0.25, abs=0.05) if contrast > 6 else share == 1
