"""Stacks grow to all sides: the same bytes whatever comes first, and after a kill at any step."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from opticstream.io.canvas import Canvas
from opticstream.io.nifti import nifti_geometry, read_nifti
from opticstream.io.nifti_stack import put_slice, stack_canvas
from opticstream.io.zarr import BlockReader, SliceStore, _growth, open_zarr_image, volume_reader, write_isotropic
from opticstream.testing.checksums import tree_checksums

SIZE = (200, 110)
LOWS = {0: (0, 0), 1: (-70, 5), 2: (30, -400)}
"""Where the slices lie: beyond the margin of 64 px, on both sides, and at once further than one step."""


def picture(n: int, planes: int = 4) -> np.ndarray:
    return np.random.default_rng(n).normal(60, 5, (*SIZE, planes)).astype(np.float32)


def block_reader(n: int, values: np.ndarray) -> BlockReader:
    x, y = LOWS[n]
    return lambda xs, ys: values[xs.start - x : xs.stop - x, ys.start - y : ys.stop - y]


def put(store: SliceStore, n: int) -> None:
    values = picture(n, store.planes)
    if store.kind == "vector":
        values = np.repeat(values[..., None], 3, axis=3)
    store.put(n, SIZE, block_reader(n, values), low_px=LOWS[n])


def grown(folder: Path, order: tuple[int, ...], *, planes: int = 4, kind: str = "scalar", all_at_once: bool = False):
    store = SliceStore(folder / "s.ome.zarr", planes, (10.0, 10.0, 10.0), kind, margin_px=64)  # type: ignore[arg-type]
    if all_at_once:
        put(store, 0)
        store.fit(Canvas((-70, -400), (230, 115)))
    for n in order:
        put(store, n)
    return store


@pytest.mark.parametrize(("planes", "kind"), [(4, "scalar"), (1, "scalar"), (1, "vector")])
def test_the_end_does_not_depend_on_what_came_first(tmp_path: Path, planes: int, kind: str) -> None:
    kinds = {"planes": planes, "kind": kind}
    first = grown(tmp_path / "a", (0, 1, 2), **kinds)  # type: ignore[arg-type]
    assert first.canvas() == Canvas((-320, -576), (256, 128))
    grown(tmp_path / "b", (2, 1, 0), **kinds)  # type: ignore[arg-type]
    grown(tmp_path / "c", (0, 1, 2), all_at_once=True, **kinds)  # type: ignore[arg-type]
    sums = tree_checksums(tmp_path / "a")
    assert len(sums) > 10
    assert tree_checksums(tmp_path / "b") == tree_checksums(tmp_path / "c") == sums


def test_slices_lie_where_they_belong_at_all_levels(tmp_path: Path) -> None:
    store = grown(tmp_path, (0, 1, 2))
    shape, read = volume_reader(store.path)
    stack = read(slice(0, shape[0]), slice(0, shape[1]))
    for n, (x, y) in LOWS.items():
        slab = stack[:, :, 4 * n : 4 * n + 4]
        part = slab[320 + x : 320 + x + SIZE[0], 576 + y : 576 + y + SIZE[1]]
        np.testing.assert_array_equal(part, picture(n))
        assert np.isfinite(slab).sum() == part.size
    # The translation says where the middle of the first voxel of each level lies.
    datasets = json.loads((store.path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"]
    places = [dataset["coordinateTransformations"][1]["translation"] for dataset in datasets]
    assert places == [[0, -5760, -3200], [5, -5755, -3195]]


def test_levels_are_coarser_along_z_too_and_never_mix_slices(tmp_path: Path) -> None:
    store = SliceStore(tmp_path / "s.ome.zarr", 4, (10.0, 10.0, 4.0))
    for n in (0, 1):
        store.put(n, (200, 30), lambda xs, ys, n=n: picture(n)[xs, ys])
    assert store.level_factors(2) == [(1, 1, 1), (2, 2, 2)]
    coarse = np.asarray(open_zarr_image(store.path / "1").array.read().result()).transpose(2, 1, 0)
    means = [picture(n)[:200, :30].reshape(100, 2, 15, 2, 2, 2).mean((1, 3, 5)) for n in (0, 1)]
    np.testing.assert_allclose(coarse, np.concatenate(means, axis=2), rtol=1e-5)


def test_growing_to_the_left_rewrites_no_chunk(tmp_path: Path) -> None:
    store = grown(tmp_path, (0, 2))

    def inodes() -> dict[int, int]:
        return {p.stat().st_ino: p.stat().st_mtime_ns for p in store.path.rglob("c/**/*") if p.is_file()}

    before = inodes()
    put(store, 1)
    after = inodes()
    assert before.items() <= after.items()


class Killed(BaseException):
    """The process ends here."""


def die_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Have the process die before a growth's next change of a name or file, after some of them."""
    left = [steps]

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return original(*args, **options)

        return call

    patch.setattr(_growth, "os", SimpleNamespace(rename=counted(os.rename)))
    patch.setattr(_growth, "write_text", counted(_growth.write_text))
    for name in ("rename", "rmdir", "unlink"):
        patch.setattr(Path, name, counted(getattr(Path, name)))


def test_a_kill_at_any_step_of_a_growth_changes_no_byte_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = grown(tmp_path / "begun", (0,)).path
    grown(tmp_path / "straight", (0, 1))
    sums, extent = tree_checksums(tmp_path / "straight"), Canvas((-70, 0), (130, 115))
    for steps in itertools.count():
        path = shutil.copytree(begun, tmp_path / "killed" / "s.ome.zarr")
        died = False
        with monkeypatch.context() as patch:
            die_after(steps, patch)
            try:
                SliceStore.opened(path).fit(extent)
            except Killed:
                died = True
        put(SliceStore.opened(path), 1)
        assert tree_checksums(tmp_path / "killed") == sums, steps
        shutil.rmtree(tmp_path / "killed")
        if not died:
            break
    assert steps > 10


def test_cubes_grow_with_their_stack(tmp_path: Path) -> None:
    one = grown(tmp_path / "a", (0,), planes=20)
    write_isotropic(one.path, tmp_path / "a" / "cubes.ome.zarr", [1])
    for n in (1, 2):
        put(one, n)
        write_isotropic(one.path, tmp_path / "a" / "cubes.ome.zarr", [n + 1])
    other = grown(tmp_path / "b", (2, 1, 0), planes=20)
    cubes = write_isotropic(other.path, tmp_path / "b" / "cubes.ome.zarr", [1, 2, 3])
    assert tree_checksums(tmp_path / "a") == tree_checksums(tmp_path / "b")
    coarse = np.asarray(open_zarr_image(cubes / "2").array.read().result()).transpose(2, 1, 0)
    # The margin is 7 cubes, a step 32; what begins at -70 px begins in cube -7, at -400 px in cube -40.
    where = np.isfinite(coarse)
    assert [int(np.flatnonzero(where.any((1, 2)))[0]), int(np.flatnonzero(where.any((0, 2)))[0])] == [39 - 7, 71 - 40]
    expected = picture(1, 20)[70 + 20 : 70 + 30, 15:25, :10].mean()  # the cube at 20 and 20 px of the sample
    assert coarse[39 + 2, 71 + 2, 2] == pytest.approx(expected, abs=1e-3)


def test_a_nifti_stack_grows_to_all_sides_and_its_affine_follows(tmp_path: Path) -> None:
    affine = np.diag([-0.01, -0.01, 0.5, 1.0])
    affine[:3, 3] = 1.0, 2.0, 3.0
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        for n in order:
            put_slice(
                tmp_path / f"{name}.nii",
                n,
                SIZE,
                block_reader(n, picture(n)),
                affine_mm=affine,
                low_px=LOWS[n],
                margin_px=64,
            )
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()
    canvas = stack_canvas(tmp_path / "a.nii")
    assert canvas == Canvas((-128, -448), (256, 128))
    stack = read_nifti(tmp_path / "a.nii")
    for n in (0, 1, 2):
        x, y = LOWS[n][0] + 128, LOWS[n][1] + 448
        np.testing.assert_array_equal(stack[x : x + SIZE[0], y : y + SIZE[1], n], picture(n)[:, :, 0])
    origin = nifti_geometry(tmp_path / "a.nii").affine_mm @ [128, 448, 0, 1]
    np.testing.assert_allclose(origin[:3], [1.0, 2.0, 3.0], atol=1e-6)
