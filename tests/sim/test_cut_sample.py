"""The sample of slices: every slice shows the block where its truth says, with the faults that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from opticstream.sim.cut_sample import CutSample, CutSampleSettings, benchmark_settings
from opticstream.sim.cutting import Cutting
from opticstream.sim.fields import Grid
from opticstream.sim.settings import CuttingSettings

SMALL = {"slots": 3, "shape": (90, 80), "imaged_um": 120.0, "cut_um": 50.0, "vignette": 0.0, "looks": 0}


def made(**changes: object) -> CutSample:
    cutting = CuttingSettings(**changes.pop("cutting", {}))  # type: ignore[arg-type]
    return CutSample(CutSampleSettings(**{**SMALL, "cutting": cutting, **changes}))  # type: ignore[arg-type]


def test_a_slice_shows_the_tissue_where_its_pose_says() -> None:
    sample = made(cutting={"rotation_deg": 3.0, "shift_px": 6.0, "jump_px": 10.0})
    matrix, offset = sample.pose(3)
    face = sample.volume_db(3)[:, :, 0]
    q = np.stack(np.meshgrid(np.arange(90.0), np.arange(80.0), indexing="ij"))
    where = np.einsum("ab,bij->aij", matrix, q) + offset[:, None, None]
    tissue = sample.tissue_db(slice(10, 11))[:, :, 0]
    good = (tissue > -8) & (np.minimum(where[0], where[1]) > 2) & (where[0] < 87) & (where[1] < 77)
    found = ndimage.map_coordinates(face, where, order=1)
    inner = ndimage.binary_erosion(good, iterations=3)
    away = ndimage.map_coordinates(face, where + 2, order=1)
    off = [np.std((image - tissue)[inner]) for image in (found, away, face)]
    assert off[0] < 0.25 < 3 * off[0] < min(off[1:])


def test_missing_bad_incomplete_and_wedge_slices_are_what_they_say() -> None:
    cutting = {"missing": (1,), "bad": (2,), "incomplete": (3,), "incomplete_share": 0.5}
    sample = made(cutting=cutting)
    assert sample.slices == (2, 3)
    plain = made()
    middle = np.s_[35:45, 30:50, 0]
    assert np.mean(plain.volume_db(2)[middle]) - np.mean(sample.volume_db(2)[middle]) == pytest.approx(12, abs=1.5)
    part = sample.volume_db(3)
    assert np.isfinite(part[:45]).all()
    assert np.isnan(part[45:]).all()
    wedge = made(cutting={"wedge": (2,), "wedge_um": 60.0})
    flat, inclined = plain.volume_db(2), wedge.volume_db(2)
    np.testing.assert_allclose(inclined[0, :, 0], flat[0, :, 0], atol=0.2)
    assert np.abs(inclined[60:80, 20:60, 0] - flat[60:80, 20:60, 0]).mean() > 0.5


def test_a_jump_lasts_and_the_log_knows_it_but_not_the_tissue() -> None:
    cutting = Cutting(CuttingSettings(shift_px=9.0, jump_px=42.0, jump_at=3, log_glitches=(4,)), seed=2)
    assert [np.hypot(*cutting.jump_px(n)).round(6) for n in (1, 2, 3, 9)] == [0, 0, 42, 42]
    np.testing.assert_allclose(cutting.log_px(9), cutting.jump_px(9))
    assert np.hypot(*(cutting.log_px(4) - cutting.jump_px(4))) == pytest.approx(200)
    own = cutting.shift_px(9) - cutting.jump_px(9)
    assert 0 < np.abs(own).max() <= 9
    assert not cutting.shift_px(1).any()


def test_a_bend_is_smooth_and_within_its_limit() -> None:
    cutting = Cutting(CuttingSettings(distortion_um=300.0), seed=3)
    bend = cutting.bend_um(2, Grid((0.0, 0.0), (20.0, 0.0), (0.0, 20.0), (200, 200)))
    assert bend is not None
    length = np.hypot(*bend)
    assert 60 < length.max() <= 300
    assert np.abs(np.diff(bend, axis=1)).max() < 20  # no fold: less than the step
    assert cutting.bend_um(1, Grid((0.0, 0.0), (20.0, 0.0), (0.0, 20.0), (4, 4))) is None


def test_gain_vignette_and_depth_response_are_what_they_say() -> None:
    plain = made()
    tissue = plain.tissue_db(slice(5, 5 + plain.planes)) > -8  # of the second slice, well above the floor
    louder = made(cutting={"gain_db": 2.0})
    gain = louder.cutting.gain_db(2)
    assert abs(gain) > 0.1
    np.testing.assert_allclose((louder.volume_db(2) - plain.volume_db(2))[tissue], gain, atol=0.05)
    shaded = made(vignette=0.35)
    shade = np.broadcast_to(10 * np.log10(shaded.vignette())[:, :, None], tissue.shape)
    assert shade.min() < -1 < 0.01 > shade.max() >= -0.01
    np.testing.assert_allclose((shaded.volume_db(2) - plain.volume_db(2))[tissue], shade[tissue], atol=0.05)
    deep = made(focus_um=400.0)
    depth_um = 10 * (np.arange(plain.planes) + 0.5)
    gates = [
        -10 * np.log10(1 + ((depth_um - s.focus_um) / s.rayleigh_um) ** 2) for s in (deep.settings, plain.settings)
    ]
    off = (deep.volume_db(2) - plain.volume_db(2)) - (gates[0] - gates[1])
    np.testing.assert_allclose(off[tissue], 0, atol=0.1)


@pytest.mark.parametrize(("imaged_um", "times"), [(50.0, 1), (100.0, 2), (150.0, 3)])
def test_tissue_is_seen_as_often_as_sections_overlap(imaged_um: float, times: int) -> None:
    sample = made(imaged_um=imaged_um, cut_um=50.0)
    tissue = sample.tissue_db(slice(10, 11))[:, :, 0]  # the face of the third slice
    seen = [sample.volume_db(n)[:, :, 10 - 5 * (n - 1) :] for n in (1, 2, 3)]
    found = [planes[:, :, 0] for planes in seen if planes.shape[2]]
    assert len(found) == times
    for face in found:
        assert np.corrcoef(face[tissue > -8], tissue[tissue > -8])[0, 1] > 0.7


def test_axes_turn_with_the_slice() -> None:
    sample = made(cutting={"rotation_deg": 20.0})
    turn = sample.cutting.turn_deg(2)
    axis, true = sample.axis(2)[45, 40], sample.true_axis()[45, 40]
    angles = [np.degrees(np.arctan2(v[1], v[0])) for v in (axis, true)]
    assert (angles[0] - angles[1] - turn + 90) % 180 - 90 == pytest.approx(0, abs=1.5)
    assert axis[2] == pytest.approx(true[2], abs=0.02)


def test_a_slice_is_the_same_whenever_it_is_made() -> None:
    np.testing.assert_array_equal(made(looks=4).volume_db(2), made(looks=4).volume_db(2))


def test_the_benchmark_knows_two_samples() -> None:
    settings = benchmark_settings("m", 4)
    faults = settings.cutting
    assert len({*faults.missing, *faults.bad, faults.jump_at}) == 3
    assert (settings.imaged_um, settings.cut_um) == (600.0, 200.0)
    with pytest.raises(ValueError, match="unknown sample 'x'; expected one of m, h"):
        benchmark_settings("x", 1)
