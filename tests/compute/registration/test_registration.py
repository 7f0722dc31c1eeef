"""Registration of mosaics: large offsets, rotations, missing parts, other sizes, and failures that say so."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from opticstream.compute.registration import PlanarTransform, register_images, resample_image, resample_orientation
from opticstream.compute.registration._rough_search import correlation_peaks
from opticstream.testing.slice_phantom import BeamMaps, Picture, make_slice, mapping_error_px

SHAPE = (200, 160)


def registered(phantom: Any, **options: Any) -> Any:
    fixed, moving = phantom.beams
    return register_images(
        fixed.birefringence, moving.birefringence, details=[(fixed.intensity, moving.intensity)], **options
    )


def errors(result: Any, moving: BeamMaps) -> np.ndarray:
    return mapping_error_px(result.mapping.matrix, result.mapping.offset, moving, SHAPE)


@pytest.mark.parametrize(
    ("seed", "rotation_deg", "shift_px", "scale", "shape"),
    [
        (2, 0.0, (0.0, 0.0), (1.0, 1.0), (200, 160)),
        (12, 5.0, (30.0, -24.0), (0.966, 1.0), (190, 170)),
        (22, -5.0, (-30.0, 24.0), (1.03, 0.98), (220, 150)),
        (32, 3.0, (-30.0, -24.0), (1.0, 1.0), (150, 200)),
        (42, 5.0, (-30.0, 24.0), (1.0, 1.0), (200, 160)),
    ],
)
def test_offsets_of_15_percent_and_5_degrees_are_found_to_half_a_pixel(
    seed: int, rotation_deg: float, shift_px: tuple[float, float], scale: tuple[float, float], shape: tuple[int, int]
) -> None:
    picture = Picture(tilt_deg=-15.0, rotation_deg=rotation_deg, shift_px=shift_px, scale=scale, shape=shape)
    phantom = make_slice((Picture(), picture), seed=seed)
    result = registered(phantom)
    assert result.good, result.failures
    assert np.median(errors(result, phantom.beams[1])) < 0.5
    assert np.quantile(errors(result, phantom.beams[1]), 0.95) < 1.0
    assert result.residual_px < 1.0


def test_birefringence_alone_is_enough() -> None:
    picture = Picture(tilt_deg=-15.0, rotation_deg=2.0, shift_px=(15, 9))
    phantom = make_slice((Picture(), picture), seed=3)
    fixed, moving = phantom.beams
    result = register_images(fixed.birefringence, moving.birefringence)
    assert result.good
    assert np.median(errors(result, moving)) < 0.6


def test_missing_tiles_and_masks_do_not_pull_it_aside() -> None:
    picture = Picture(tilt_deg=-15.0, rotation_deg=2.0, shift_px=(18, -10))
    phantom = make_slice((Picture(), picture), seed=4)
    fixed, moving = phantom.beams
    for maps, holes in ((fixed, [np.s_[:60, :50], np.s_[100:140, 60:110]]), (moving, [np.s_[140:, 100:]])):
        for hole in holes:
            maps.birefringence[hole] = np.nan
            maps.intensity[hole] = np.nan
    mask = np.ones(SHAPE)
    mask[:, 140:] = 0
    result = registered(phantom, fixed_mask=mask)
    assert result.good, result.failures
    assert np.median(errors(result, moving)) < 0.5


def test_pictures_that_share_less_than_half_are_still_registered() -> None:
    picture = Picture(tilt_deg=-15.0, shape=(160, 130), shift_px=(85.0, 50.0))
    phantom = make_slice((Picture(shape=(200, 160)), picture), seed=5, margin_px=110)
    result = registered(phantom)
    assert 0.25 < result.overlap < 0.6
    assert result.good, result.failures
    assert np.median(errors(result, phantom.beams[1])) < 0.7


@pytest.mark.parametrize("seed", [6, 7, 8])
def test_pictures_of_different_slices_are_refused(seed: int) -> None:
    one, other = make_slice(seed=seed), make_slice(seed=seed + 100)
    result = register_images(
        one.beams[0].birefringence,
        other.beams[1].birefringence,
        details=[(one.beams[0].intensity, other.beams[1].intensity)],
    )
    assert not result.good
    assert result.confidence < 0.4
    assert any("confidence" in reason or "residual" in reason for reason in result.failures)


def test_noise_is_refused() -> None:
    rng = np.random.default_rng(0)
    result = register_images(rng.random((120, 100)), rng.random((120, 100)))
    assert not result.good


@pytest.mark.parametrize(("freedom", "expected"), [("translation", 0.0), ("rigid", 4.0)])
def test_freedom_is_kept(freedom: Any, expected: float) -> None:
    picture = Picture(tilt_deg=-15.0, rotation_deg=expected, shift_px=(10, -6))
    phantom = make_slice((Picture(), picture), seed=9)
    result = registered(phantom, freedom=freedom)
    singular = np.linalg.svd(result.mapping.matrix, compute_uv=False)
    np.testing.assert_allclose(singular, 1, atol=1e-6)
    assert result.mapping.rotation_deg == pytest.approx(expected, abs=0.3)
    assert np.median(errors(result, phantom.beams[1])) < 0.6


def test_bending_follows_what_an_affine_mapping_cannot() -> None:
    phantom = make_slice(seed=10, grain_px=8.0)
    fixed, moving = phantom.beams
    x, y = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    bend = np.stack([2.5 * np.sin(2 * np.pi * y / 160), 2.0 * np.sin(2 * np.pi * x / 130)])
    # The moving picture shows at p what lies at p - bend(p) in the fixed one.
    from scipy import ndimage

    where = np.stack([x, y]) - bend
    bent = [
        ndimage.map_coordinates(image, where, order=1, mode="nearest")
        for image in (moving.birefringence, moving.intensity)
    ]
    options = {"details": [(fixed.intensity, bent[1])]}
    straight = register_images(fixed.birefringence, bent[0], **options)  # type: ignore[arg-type]
    free = register_images(fixed.birefringence, bent[0], bend_sigma_px=12, **options)  # type: ignore[arg-type]
    assert free.mapping.displacement is not None

    def error(mapping: PlanarTransform) -> float:
        found = mapping.coordinates(SHAPE)
        true = np.stack([x, y]) + bend  # to first order
        return float(np.median(np.linalg.norm(found - true, axis=0)[15:-15, 15:-15]))

    assert error(free.mapping) < 0.5 * error(straight.mapping)
    assert error(free.mapping) < 0.8


def test_larger_pictures_are_registered_on_smaller_copies() -> None:
    picture = Picture(tilt_deg=-15.0, rotation_deg=2.0, shift_px=(15, 9))
    phantom = make_slice((Picture(), picture), seed=11)
    result = registered(phantom, max_pixels=20_000)
    assert np.median(errors(result, phantom.beams[1])) < 0.7


def test_a_known_start_replaces_the_search() -> None:
    picture = Picture(tilt_deg=-15.0, rotation_deg=12.0, shift_px=(20, 10))
    phantom = make_slice((Picture(), picture), seed=12)
    moving = phantom.beams[1]
    start = PlanarTransform(moving.matrix, moving.offset + 3)
    result = registered(phantom, start=start)
    assert np.median(errors(result, moving)) < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, m: (np.full_like(f, np.nan), m, None), "fixed image: the image has no finite value"),
        (lambda f, m: (f, np.zeros_like(m), None), "moving image: the image is constant"),
        (lambda f, m: (f, m, np.zeros(f.shape)), "fixed image: the mask is empty"),
        (lambda f, m: (f, m, np.ones((3, 3))), r"fixed image: the mask has the shape \(3, 3\)"),
    ],
)
def test_images_that_cannot_be_registered_are_named(change: Any, message: str) -> None:
    phantom = make_slice(seed=13)
    fixed, moving, mask = change(phantom.beams[0].birefringence.copy(), phantom.beams[1].birefringence.copy())
    with pytest.raises(ValueError, match=message):
        register_images(fixed, moving, fixed_mask=mask)


def test_every_process_finds_the_same_bits() -> None:
    code = (
        "from opticstream.testing.slice_phantom import make_slice; from opticstream.compute.registration import "
        "register_images; p = make_slice(seed=1).beams; "
        "r = register_images(p[0].birefringence, p[1].birefringence); "
        "print(r.mapping.matrix.tobytes().hex(), r.mapping.offset.tobytes().hex())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    assert len(runs) == 1


def test_the_shift_of_highest_correlation_is_found_over_all_shifts() -> None:
    rng = np.random.default_rng(1)
    whole = rng.random((90, 80)).astype(np.float32)
    score, shift = correlation_peaks(whole[:60, :60], np.ones((60, 60), bool), whole[25:, 10:], count=1)[0]
    np.testing.assert_array_equal(shift, [25, 10])
    assert score > 50


@pytest.mark.parametrize("offset", [(0, 0), (3, -2), (-5, 4), (40, 0), (0, -60)])
def test_a_shift_by_whole_pixels_gives_what_the_interpolation_gives(offset) -> None:
    image = np.random.default_rng(5).normal(size=(21, 17)).astype(np.float32)
    image[4:6, 3] = np.nan
    whole = PlanarTransform(np.eye(2), np.array(offset, float))
    nearly = PlanarTransform(np.eye(2), np.array(offset) + 1e-9)
    assert whole.is_whole_pixel_shift
    assert not nearly.is_whole_pixel_shift
    shape = (25, 19)
    np.testing.assert_allclose(
        resample_image(image, whole, shape=shape), resample_image(image, nearly, shape=shape), atol=1e-6
    )
    angle = np.asarray(80 * image / np.nanmax(np.abs(image)), np.float32)
    np.testing.assert_allclose(
        resample_orientation(angle, whole, shape=shape), resample_orientation(angle, nearly, shape=shape), atol=1e-3
    )
