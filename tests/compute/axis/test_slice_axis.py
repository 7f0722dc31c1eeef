"""From maps of two or more illuminations to the fibre axis, on phantoms."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opticstream.compute.axis import (
    AxisFlag,
    IlluminationImages,
    aligned_map,
    axis_from_projections,
    projections_from_axis,
    slice_axis_from_illuminations,
)
from opticstream.compute.axis import _slice_axis as slice_axis
from opticstream.compute.registration import PlanarTransform, Registration, register_images
from opticstream.testing.slice_phantom import Picture, SlicePhantom, axial_error_deg, make_slice

TILTED = Picture(tilt_deg=-15.0, rotation_deg=3.0, shift_px=(12.0, -8.0), shape=(190, 170), scale=(0.97, 1.0))


def images(phantom: SlicePhantom) -> list[IlluminationImages]:
    return [
        IlluminationImages(
            f"beam {k}",
            beam.orientation_deg,
            beam.birefringence,
            beam.tilt_deg,
            beam.tilt_axis_deg,
            details={"aip": beam.intensity},
        )
        for k, beam in enumerate(phantom.beams)
    ]


def test_white_matter_is_right_to_five_degrees_and_ten_percent() -> None:
    phantom = make_slice((Picture(), TILTED), seed=1)
    result = slice_axis_from_illuminations(images(phantom), axis_sigma_px=1.0)
    assert result.axes is not None
    assert not result.failures
    error = axial_error_deg(result.axes.axis, phantom.axis)
    known = phantom.white & np.isfinite(error)
    assert known.sum() > 0.7 * phantom.white.sum()
    assert np.median(error[known]) < 5
    assert np.quantile(error[known], 0.95) < 15
    relative = np.abs(result.axes.birefringence / phantom.birefringence - 1)
    assert np.median(relative[known]) < 0.1


def test_without_turning_or_registration_it_is_wrong() -> None:
    phantom = make_slice((Picture(), TILTED), seed=1)
    fixed, moving = images(phantom)
    # The same pictures laid over each other as they are.
    cut = np.s_[:190, :160]

    raw = axis_from_projections(
        np.stack([fixed.orientation_deg[cut], moving.orientation_deg[cut]]),
        np.stack([fixed.birefringence[cut], moving.birefringence[cut]]),
        tilt_deg=[0.0, -15.0],
    )
    error = axial_error_deg(raw.axis, phantom.axis[cut])
    assert np.nanmedian(error[phantom.white[cut]]) > 10


def test_three_beams_beat_two() -> None:
    third = Picture(tilt_deg=15.0, tilt_axis_deg=0.0, rotation_deg=-2.0, shift_px=(-6.0, 5.0), shape=(200, 160))
    phantom = make_slice((Picture(), TILTED, third), seed=2, noise=4e-5)
    every = images(phantom)
    two = slice_axis_from_illuminations(every[:2])
    three = slice_axis_from_illuminations(every)
    assert two.axes is not None
    assert three.axes is not None
    errors = [np.nanmedian(axial_error_deg(r.axes.axis, phantom.axis)[phantom.white]) for r in (two, three)]
    assert errors[1] < 0.85 * errors[0]


def test_an_illumination_that_cannot_be_registered_is_left_out() -> None:
    third = Picture(tilt_deg=15.0, tilt_axis_deg=0.0)
    phantom = make_slice((Picture(), TILTED, third), seed=3)
    every = images(phantom)
    stranger = images(make_slice(seed=77))[1]
    result = slice_axis_from_illuminations([every[0], stranger, every[2]])
    assert result.axes is not None
    assert all(reason.startswith("beam 1 onto beam 0") for reason in result.failures)
    assert result.failures
    alone = slice_axis_from_illuminations([every[0], stranger])
    assert alone.axes is None
    assert alone.failures


def test_axes_stay_inside_the_mask_of_the_fixed_illumination() -> None:
    phantom = make_slice((Picture(), TILTED), seed=4)
    fixed, moving = images(phantom)
    mask = np.zeros(fixed.birefringence.shape, bool)
    mask[30:170, 20:140] = True
    masked = IlluminationImages(
        fixed.name, fixed.orientation_deg, fixed.birefringence, 0.0, mask=mask, details=fixed.details
    )
    result = slice_axis_from_illuminations([masked, moving])
    assert result.axes is not None
    assert np.isnan(result.axes.axis[~mask]).all()
    assert ((result.axes.flags[~mask] & AxisFlag.NO_DATA) > 0).all()


def test_maps_that_do_not_belong_together_are_named() -> None:
    fixed, moving = images(make_slice(seed=5))
    small = IlluminationImages("beam 1", moving.orientation_deg[:50], moving.birefringence, -15.0)
    with pytest.raises(ValueError, match=r"beam 1: orientation has the shape \(50, 160\)"):
        slice_axis_from_illuminations([fixed, small])
    blank = IlluminationImages("beam 1", np.full_like(moving.orientation_deg, np.nan), moving.birefringence, -15.0)
    with pytest.raises(ValueError, match="beam 1: orientation has no finite value"):
        slice_axis_from_illuminations([fixed, blank])
    empty = IlluminationImages(
        "beam 1", moving.orientation_deg, moving.birefringence, -15.0, mask=np.zeros(moving.birefringence.shape, bool)
    )
    with pytest.raises(ValueError, match="beam 1: the mask is empty"):
        slice_axis_from_illuminations([fixed, empty])
    with pytest.raises(ValueError, match="at least two illuminations"):
        slice_axis_from_illuminations([fixed])


def test_real_fibre_directions_survive_two_beams_and_a_turned_picture(shared_data: Path) -> None:
    """Directions of real optic tracts, given inclinations; the tilted picture is turned by 4 degrees."""
    import tifffile

    from opticstream.compute.axis import projections_from_axis
    from opticstream.compute.registration import PlanarTransform, resample_image, resample_orientation

    direction = tifffile.imread(shared_data / "fibre_directions" / "cluster_dir_1.tiff").T.astype(float)
    mean = tifffile.imread(shared_data / "fibre_directions" / "cluster_avg.tiff").T.astype(float)
    known = (direction >= 0) & (mean > 0)
    strength = np.where(known, 2e-4 + 1e-3 * mean / np.percentile(mean[known], 95), 0)
    steep = np.radians(40 * np.sin(np.arange(direction.shape[0]) / 25))[:, None] * np.ones(direction.shape)
    t = np.radians(np.where(known, direction, 0))
    axis = np.stack([np.cos(steep) * np.cos(t), np.cos(steep) * np.sin(t), np.sin(steep)], axis=-1)
    angle, seen = projections_from_axis(axis, strength, tilt_deg=[0.0, -15.0])
    turn = np.radians(4.0)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = (np.array(direction.shape) - 1) / 2
    there = PlanarTransform(matrix, middle - matrix @ middle)
    # The second picture is turned: its pixels come by the inverse, its axes turn along.
    moving_angle = resample_orientation(angle[1], there.inverse(), shape=direction.shape, weight=seen[1])
    moving_seen = resample_image(np.where(known, seen[1], np.nan), there.inverse(), shape=direction.shape)
    moving_mean = resample_image(np.where(known, mean, np.nan), there.inverse(), shape=direction.shape)
    fixed = [np.where(known, image, np.nan).astype(np.float32) for image in (angle[0], seen[0], mean)]
    result = slice_axis_from_illuminations(
        [
            IlluminationImages("normal", fixed[0], fixed[1], 0.0, details={"aip": fixed[2]}),
            IlluminationImages("tilted", moving_angle, moving_seen, -15.0, details={"aip": moving_mean}),
        ]
    )
    assert result.axes is not None, result.failures
    registration = result.aligned[1].registration
    assert registration is not None
    assert registration.mapping.rotation_deg == pytest.approx(4.0, abs=0.5)
    # Real directions jump from pixel to pixel at crossings; interpolated twice, these are lost.
    error = axial_error_deg(result.axes.axis, axis)
    assert np.nanmedian(error[known]) < 4


# --- one step at a time, on pictures of some pixels: the registration is given ---------------------------------------

SHAPE = (7, 6)
AXIS = np.array([0.6, 0.48, 0.64])


def small(name: str, tilt_deg: float, **more: Any) -> IlluminationImages:
    """Return what one beam sees of a sample of one fibre direction."""
    angle, seen = projections_from_axis(AXIS, 1e-3, tilt_deg=[tilt_deg])
    maps = (np.full(SHAPE, float(value[0]), np.float32) for value in (angle, seen))
    return IlluminationImages(name, *maps, tilt_deg, **more)


def registration(matrix: Any = ((1.0, 0.0), (0.0, 1.0)), failures: tuple[str, ...] = ()) -> Registration:
    return Registration(PlanarTransform(np.array(matrix), np.zeros(2)), 0.1, 1.0, 1.0, 1.0, 0.0, 1.0, failures)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let every illumination lie on the first one as it is, and return the options of each registration."""
    given: list[dict[str, Any]] = []

    def register(fixed: Any, moving: Any, /, **options: Any) -> Registration:
        given.append(options | {"fixed": fixed, "moving": moving})
        return registration()

    monkeypatch.setattr(slice_axis, "register_images", register)
    return given


def test_the_axis_of_a_uniform_sample_is_found_at_every_pixel(registered: list[dict[str, Any]]) -> None:
    result = slice_axis_from_illuminations([small("a", 0.0), small("b", -15.0)])
    assert result.axes is not None
    assert result.failures == ()
    np.testing.assert_allclose(result.axes.axis, np.broadcast_to(AXIS, (*SHAPE, 3)), atol=1e-3)
    np.testing.assert_allclose(result.axes.birefringence, 1e-3, rtol=1e-3)
    assert [image.name for image in result.aligned] == ["a", "b"]
    assert result.aligned[0].registration is None


def test_registration_has_the_defaults_of_register_images_and_gets_what_is_asked_for(
    registered: list[dict[str, Any]],
) -> None:
    mask = np.ones(SHAPE, bool)
    detail = {"aip": np.ones(SHAPE, np.float32), "mip": np.zeros(SHAPE, np.float32)}
    fixed, moving = small("a", 0.0, mask=mask, details=detail), small("b", -15.0, mask=mask, details=detail)
    slice_axis_from_illuminations([fixed, dataclasses.replace(moving, details={"mip": detail["mip"], "x": mask * 1.0})])
    (given,) = registered
    usual = {name: parameter.default for name, parameter in inspect.signature(register_images).parameters.items()}
    names = ("freedom", "bend_sigma_px", "sigma_px", "min_overlap", "min_confidence", "max_residual_px")
    assert {name: given[name] for name in names} == {name: usual[name] for name in names}
    assert given["fixed_mask"] is mask
    assert given["moving_mask"] is mask
    assert [one is detail["mip"] and other is detail["mip"] for one, other in given["details"]] == [True]
    asked = {"freedom": "rigid", "bend_sigma_px": 9.0, "sigma_px": 2.0, "min_overlap": 0.4, "min_confidence": 0.1}
    slice_axis_from_illuminations([fixed, moving], use_mask=False, max_residual_px=8.0, **asked)
    assert {name: registered[1][name] for name in asked} == asked
    assert registered[1]["max_residual_px"] == 8.0
    assert registered[1]["fixed_mask"] is None
    assert registered[1]["moving_mask"] is None


@pytest.mark.parametrize(
    ("tilts", "axes", "scale"),
    [
        ((0.0, 60.0), (90.0, 90.0), (0.5, 1.0)),  # about y: shorter along x
        ((0.0, 60.0), (90.0, 0.0), (1.0, 0.5)),
        ((60.0, 0.0), (90.0, 90.0), (2.0, 1.0)),
        ((-60.0, 60.0), (90.0, 0.0), (2.0, 0.5)),
        ((0.0, 60.0), (0.0, 45.0), (0.75, 0.75)),
    ],
)
def test_a_tilted_beam_is_expected_to_see_the_sample_foreshortened(
    registered: list[dict[str, Any]], tilts: tuple[float, float], axes: tuple[float, float], scale: tuple[float, float]
) -> None:
    pair = [small(name, tilt, tilt_axis_deg=a) for name, tilt, a in zip("ab", tilts, axes, strict=True)]
    slice_axis_from_illuminations(pair)
    assert registered[0]["scale_guess"] == pytest.approx(scale)


def test_pixels_outside_either_mask_have_no_axis_unless_masks_are_not_used(registered: list[dict[str, Any]]) -> None:
    left, low = np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    left[5:] = 0
    left[0, 0] = np.nan
    low[:, 4:] = 0
    pair = [small("a", 0.0, mask=left), small("b", -15.0, mask=low)]
    known = np.isfinite(slice_axis_from_illuminations(pair).axes.axis[..., 0])
    expected = (np.nan_to_num(left) != 0) & (low != 0)
    assert known[expected & (np.arange(6) < 3)].all()  # the pixel beside a mask is interpolated or not
    assert not known[~expected].any()
    assert np.isfinite(slice_axis_from_illuminations(pair, use_mask=False).axes.axis).all()


def test_what_is_asked_of_the_axis_reaches_it(registered: list[dict[str, Any]]) -> None:
    pair = [small("a", 0.0), small("b", -15.0)]
    high = slice_axis_from_illuminations(pair, min_birefringence=2e-3).axes
    assert high is not None
    assert ((high.flags & AxisFlag.LOW_BIREFRINGENCE) > 0).all()
    for options in ({"branch_sigma": 1e6}, {"max_uncertainty_deg": 1e-6}):
        noisy = dataclasses.replace(pair[1], birefringence=pair[1].birefringence * np.linspace(0.9, 1.1, 6, dtype="f4"))
        plain, asked = (slice_axis_from_illuminations([pair[0], noisy], **o).axes for o in ({}, options))
        assert plain is not None
        assert asked is not None
        flag = AxisFlag.AMBIGUOUS if "branch_sigma" in options else AxisFlag.UNCERTAIN
        assert ((asked.flags & flag) > 0).sum() > ((plain.flags & flag) > 0).sum()
    rough = dataclasses.replace(pair[0], orientation_deg=pair[0].orientation_deg + np.float32([[-5, 5] * 3]))
    smooth = slice_axis_from_illuminations([rough, pair[1]], axis_sigma_px=3.0).axes
    plain = slice_axis_from_illuminations([rough, pair[1]]).axes
    assert smooth.inplane_deg.std() < 0.5 * np.nanstd(plain.inplane_deg)


def test_a_failed_registration_leaves_its_illumination_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    results = {1e-3: registration(failures=("too little overlap", "low confidence")), 0.0: registration()}
    third = small("c", 20.0)
    every = [small("a", 0.0), small("b", -15.0), third]
    by_map = {id(every[1].birefringence): results[1e-3], id(third.birefringence): results[0.0]}
    monkeypatch.setattr(slice_axis, "register_images", lambda _fixed, moving, **_options: by_map[id(moving)])
    result = slice_axis_from_illuminations(every)
    assert result.failures == ("b onto a: too little overlap", "b onto a: low confidence")
    assert result.axes is not None
    np.testing.assert_allclose(result.axes.axis, np.broadcast_to(AXIS, (*SHAPE, 3)), atol=1e-3)
    assert np.isfinite(result.aligned[1].birefringence).all()  # shown all the same
    alone = slice_axis_from_illuminations(every[:2])
    assert alone.axes is None
    assert len(alone.aligned) == 2


def test_a_registration_that_mirrors_is_not_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored = registration(((-1.0, 0.0), (0.0, 1.0)), ("mirrored",))
    monkeypatch.setattr(slice_axis, "register_images", lambda *_images, **_options: mirrored)
    result = slice_axis_from_illuminations([small("a", 0.0), small("b", -15.0)])
    assert np.isnan(result.aligned[1].birefringence).all()
    assert np.isnan(result.aligned[1].orientation_deg).all()


def test_pixels_of_no_birefringence_give_way_to_their_neighbours_when_resampled() -> None:
    item = small("b", 0.0)
    angle, seen = item.orientation_deg.copy(), item.birefringence.copy()
    angle[:, 2:] = 80.0
    seen[:, 3:] = 0
    half = Registration(PlanarTransform(np.eye(2), np.array([0.0, 0.5])), 0.1, 1.0, 1.0, 1.0, 0.0, 1.0)
    moved = dataclasses.replace(item, orientation_deg=angle, birefringence=seen)
    aligned = slice_axis._align(moved, half, (7, 5), use_mask=True)
    assert aligned.birefringence[3, 0] == pytest.approx(item.birefringence[0, 0], rel=1e-4)
    assert aligned.birefringence[3, 2] == pytest.approx(0.5 * item.birefringence[0, 0], rel=1e-4)
    assert aligned.orientation_deg[3, 2] == pytest.approx(80, abs=0.1)
    assert aligned.orientation_deg[3, 3] == pytest.approx(80, abs=0.1)  # without any birefringence, still an angle


def test_a_map_is_resampled_as_its_modality_says() -> None:
    half = PlanarTransform(np.eye(2), np.array([0.0, 0.5]))
    angles = np.float32([[80, -80, -80]] * 3)
    assert aligned_map("ori", angles, half, shape=(3, 2))[1, 0] == pytest.approx(90, abs=0.1)
    assert aligned_map("ret", angles, half, shape=(3, 2))[1, 0] == pytest.approx(0, abs=0.1)


def test_details_belong_to_their_illumination() -> None:
    good = small("a", 0.0)
    wrong = small("b", -15.0, details={"aip": np.ones((3, 3), np.float32)})
    with pytest.raises(ValueError, match=r"b: map aip has the shape \(3, 3\)"):
        slice_axis_from_illuminations([good, wrong])
    with pytest.raises(ValueError, match="b: mask has the shape"):
        slice_axis_from_illuminations([good, small("b", -15.0, mask=np.ones((2, 2), bool))])
    with pytest.raises(ValueError, match="b onto a: unknown freedom 'nonsense'"):
        slice_axis_from_illuminations([good, small("b", -15.0)], freedom="nonsense")  # type: ignore[arg-type]
