"""Axes turn with the slice; coarser levels average what is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opticstream.compute.pyramid import halved
from opticstream.compute.registration import PlanarTransform, resampled, turned_axis
from opticstream.testing.slice_phantom import make_slice


def test_turning_an_axis_there_and_back_changes_nothing() -> None:
    axes = make_slice(seed=41).axis[::20, ::20].reshape(-1, 3)
    back = turned_axis(turned_axis(axes, 37.0), -37.0)
    np.testing.assert_allclose(np.abs((back * axes).sum(-1)), 1, atol=1e-9)


DEFORMATIONS = {
    "none": ((0.0, 0.0), (0.0, 0.0)),
    "stretch": ((0.2, 0.0), (0.0, 0.0)),
    "shear": ((0.0, -0.1), (0.0, 0.0)),
    "rotation": ((np.cos(0.2) - 1, -np.sin(0.2)), (np.sin(0.2), np.cos(0.2) - 1)),
    "all": ((0.07, -0.12), (0.2, -0.15)),
}


@pytest.mark.parametrize("how", ["axes", "vectors"])
@pytest.mark.parametrize("deformation", DEFORMATIONS.values(), ids=DEFORMATIONS)
def test_axes_follow_the_lines_of_deformed_tissue(how: str, deformation: Any) -> None:
    # Fibres of the sample, drawn as lines of points, are where the mapping says in the slice, which is also turned.
    shape, turn = (12, 11), np.radians(25.0)
    x, y = np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")
    (a, b), (c, d) = deformation
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    mapping = PlanarTransform(matrix, np.zeros(2), np.stack([a * x + b * y, c * x + d * y]).astype(np.float32))
    for fibre in np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, -0.64, 0.48], [0.36, 0.48, 0.8]]):
        start, end = np.array([3.0, 4.0]), np.array([3.0, 4.0]) + fibre[:2]
        ends = [matrix @ (q + np.array(deformation) @ q) for q in (start, end)]
        seen = np.array([*(ends[1] - ends[0]), fibre[2]])
        if how == "vectors":
            out = resampled(
                np.full((60, 60, 3), seen / np.linalg.norm(seen)), _inside(mapping), how="vectors", shape=shape
            )
            apart = np.linalg.norm(np.cross(out, fibre), axis=-1)
        else:
            angle = np.degrees(np.arctan2(seen[1], seen[0]))
            out = resampled(np.full((60, 60), angle), _inside(mapping), how="axes", shape=shape)
            apart = np.sin(np.radians(out - np.degrees(np.arctan2(fibre[1], fibre[0]))))
        assert np.abs(apart).max() < np.radians(0.01)


def _inside(mapping: PlanarTransform) -> PlanarTransform:
    return PlanarTransform(mapping.matrix, np.array([25.0, 25.0]), mapping.displacement)


def test_axes_do_not_follow_the_foreshortening_of_a_beam() -> None:
    # A picture that is shorter because the beam is tilted shows the same axis: polarization knows nothing of it.
    short = PlanarTransform(np.diag([0.9, 1.0]), np.zeros(2))
    assert resampled(np.full((9, 9), 30.0), short, how="axes", shape=(9, 9))[4, 4] == pytest.approx(30.0, abs=1e-4)


def test_a_fold_of_the_tissue_has_no_axis() -> None:
    fold = np.zeros((2, 8, 8), np.float32)
    fold[0] = -1.5 * np.maximum(np.arange(8) - 4, 0)[:, None]
    out = resampled(np.full((8, 8), 30.0), PlanarTransform(np.eye(2), np.zeros(2), fold), how="axes", shape=(8, 8))
    np.testing.assert_allclose(out[:3], 30.0, atol=1e-4)
    assert np.isnan(out[5:]).all()


def test_axes_between_pixels_are_the_axes_between() -> None:
    # Two neighbours 20 degrees apart, one of them written with the other sign, and one that is not there.
    axes = np.array([[[np.cos(t), np.sin(t), 0.0]] for t in np.radians([10.0, 30.0])], np.float32)
    axes[1] *= -1
    axes = np.concatenate([axes, np.full((1, 1, 3), np.nan, np.float32)])
    out = resampled(axes, PlanarTransform(np.eye(2), np.array([0.25, 0.0])), how="vectors", shape=(3, 1))
    np.testing.assert_allclose(np.degrees(np.arctan2(out[0, 0, 1], out[0, 0, 0])), 14.84, atol=0.05)
    np.testing.assert_allclose(np.degrees(np.arctan2(out[1, 0, 1], out[1, 0, 0])), 30.0, atol=1e-3)
    assert np.isnan(out[2]).all()
    np.testing.assert_allclose(np.linalg.norm(out[:2], axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["scalar", "axial", "vector"])
def test_boxes_of_one_value_keep_it(kind: str) -> None:
    block = np.full((6, 4, 2, 3) if kind == "vector" else (6, 4, 2), np.sqrt(1 / 3) if kind == "vector" else 77.0)
    out = halved(block, (2, 2, 2), kind=kind)  # type: ignore[arg-type]
    np.testing.assert_allclose(out, block[:3, :2, :1], atol=1e-9)


def test_means_leave_out_what_is_not_there() -> None:
    block = np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan]).reshape(6, 1, 1)
    np.testing.assert_array_equal(halved(block, (2, 1, 1)).ravel(), [1.0, 3.0, np.nan])
    np.testing.assert_array_equal(halved(np.arange(5).reshape(5, 1, 1), (2, 1, 1), kind="label").ravel(), [0, 2, 4])


def test_opposite_vectors_are_one_axis() -> None:
    block = np.array([[0.6, 0.8, 0.0], [-0.6, -0.8, 0.0]]).reshape(2, 1, 1, 3)
    np.testing.assert_allclose(halved(block, (2, 1, 1), kind="vector").ravel(), [0.6, 0.8, 0.0], atol=1e-9)
