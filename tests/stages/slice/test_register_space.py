"""Registration in space: ITK lays the moving map where we lay it, whatever the headers say, or they are refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from opticstream.io.nifti import nifti_geometry
from opticstream.model.errors import InputError
from opticstream.stages.slice import SliceMosaic, register_slice
from opticstream.testing.slice_phantom import Picture, make_slice

TILTED = Picture(tilt_deg=-15.0, rotation_deg=2.0, shift_px=(10.0, -7.0), shape=(190, 170))


@pytest.fixture(scope="module")
def beams():
    return make_slice((Picture(), TILTED)).beams


def turned(angle_deg: float, axis: int = 2) -> np.ndarray:
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    matrix = np.eye(4)
    i, j = [k for k in range(3) if k != axis]
    matrix[np.ix_([i, j], [i, j])] = [[c, -s], [s, c]]
    return matrix


def placed(signs=(1, 1, 1), *, origin=(0.0, 0.0, 0.0), first=None, size=(0.01, 0.01, 0.0025)) -> np.ndarray:
    affine = (np.eye(4) if first is None else first) @ np.diag([*(np.array(size) * signs), 1.0])
    affine[:3, 3] = origin
    return affine


PERMUTED = np.array([[0, 1.0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
UPRIGHT = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])

CASES = {
    "plain": (placed(), placed(), {}),
    "micrometres": (placed(size=(10, 10, 2.5)), placed(size=(10, 10, 2.5)), {"unit": "micron"}),
    "metres": (placed(size=(1e-5, 1e-5, 2.5e-6)), placed(size=(1e-5, 1e-5, 2.5e-6)), {"unit": "meter"}),
    "origins": (placed(origin=(5, -3, 1)), placed(origin=(4.9, -3.1, 1.2)), {}),
    "x flipped": (placed((-1, 1, 1), origin=(5, 0, 0)), placed((-1, 1, 1), origin=(5.2, 0.1, 0)), {}),
    "ITK's own axes": (placed((-1, -1, 1)), placed((-1, -1, 1), origin=(-0.1, 0.2, 0)), {}),
    "permuted": (placed(first=PERMUTED, origin=(1, 2, 3)), placed(first=PERMUTED), {}),
    "oblique": (placed(first=turned(20)), placed(first=turned(25), origin=(0.1, 0.3, 0)), {}),
    "out of plane": (placed(first=turned(30, axis=0)), placed(first=turned(30, axis=0), origin=(0, 0, 1)), {}),
    "upright": (placed(first=UPRIGHT), placed(first=UPRIGHT), {}),
    "qform only": (placed((-1, 1, 1)), placed((-1, 1, 1), origin=(0.3, 0, 0)), {"forms": "q"}),
    "sform only": (placed((-1, 1, 1)), placed((-1, 1, 1), origin=(0.3, 0, 0)), {"forms": "s"}),
    "no position": (placed(), placed(), {"forms": ""}),
    "no position, micrometres": (
        placed(size=(10, 10, 2.5)),
        placed(size=(10, 10, 2.5)),
        {"forms": "", "unit": "micron"},
    ),
    "two axes": (placed((-1, 1, 1), origin=(5, 0, 0)), placed((-1, 1, 1), origin=(5.2, 0.1, 0)), {"axes": 2}),
    "two axes, oblique": (placed(first=turned(20)), placed(first=turned(25), origin=(0.1, 0.3, 0)), {"axes": 2}),
    "two axes, no position": (placed(), placed(), {"axes": 2, "forms": ""}),
}


def write(path: Path, data, affine, *, unit="mm", forms="qs", axes=3, scale=(1.0, 0.0)) -> Path:
    data = np.asarray(data, np.float32)
    data = data[..., None] if axes == 3 else data
    image = nib.Nifti1Image(data, None)
    image.header.set_zooms(np.linalg.norm(affine[:3, :axes], axis=0))
    image.header.set_xyzt_units(unit)
    if "q" in forms:
        image.set_qform(affine, 1)
    if "s" in forms:
        image.set_sform(affine, 1)
    nib.save(image, path)
    return path


def mosaics(folder: Path, beams, affines, **options) -> list[SliceMosaic]:
    made = []
    for name, beam, affine in zip(("normal", "tilted"), beams, affines, strict=True):
        maps = {
            key: write(folder / f"{name}_{key}.nii", data, affine, **options)
            for key, data in (("ori", beam.orientation_deg), ("biref", beam.birefringence), ("aip", beam.intensity))
        }
        made.append(SliceMosaic(name, maps, beam.tilt_deg, beam.tilt_axis_deg))
    return made


@pytest.mark.parametrize("case", CASES)
def test_itk_lays_the_moving_map_where_we_lay_it(beams, tmp_path, case):
    import SimpleITK as sitk  # noqa: N813

    fixed_affine, moving_affine, options = CASES[case]
    files = mosaics(tmp_path, beams, (fixed_affine, moving_affine), **options)
    made = register_slice(files, tmp_path / "out", slice_id=1)
    fixed, moving = (sitk.ReadImage(str(m.maps["aip"]), sitk.sitkFloat32) for m in files)
    transform = sitk.ReadTransform(str(made.outputs["transform_itk"]))
    by_itk = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear, float("nan"))).T.squeeze()
    path = made.outputs["tilted_aip"]
    ours = np.asarray(nib.load(path).dataobj).squeeze()
    known = np.isfinite(by_itk) & np.isfinite(ours)
    assert known.mean() > 0.8
    assert np.corrcoef(by_itk[known], ours[known])[0, 1] > 0.999
    # The registered map lies where the fixed one lay, in millimetres.
    geometry, before = nifti_geometry(path), nifti_geometry(files[0].maps["aip"])
    assert geometry.positioned == before.positioned
    np.testing.assert_allclose(geometry.affine_mm[:, [0, 1, 3]], before.affine_mm[:, [0, 1, 3]], atol=1e-6)
    assert nib.load(path).header.get_xyzt_units()[0] == "mm"
    if options.get("axes", 3) == 3:
        again = sitk.ReadImage(str(path), sitk.sitkFloat32)
        np.testing.assert_allclose(again.GetOrigin(), fixed.GetOrigin(), atol=1e-5)
        np.testing.assert_allclose(again.GetDirection(), fixed.GetDirection(), atol=1e-5)
        np.testing.assert_allclose(again.GetSpacing()[:2], fixed.GetSpacing()[:2], rtol=1e-5)


@pytest.mark.parametrize(
    ("moving", "options", "told"),
    [
        (placed((-1, 1, 1)), {}, "has axes x to left, y to anterior, z to superior, that of"),
        (placed(first=PERMUTED), {}, "has axes x to anterior, y to right, z to superior, that of"),
        (placed(size=(0.02, 0.02, 0.0025)), {}, "has pixels of 0.02 x 0.02 mm"),
        (placed(first=turned(90, axis=0)), {"axes": 2}, "out of the x-y plane"),
    ],
)
def test_headers_that_cannot_be_honoured_are_one_line(beams, tmp_path, moving, options, told):
    files = mosaics(tmp_path, beams, (placed(), moving), **options)
    with pytest.raises(InputError) as caught:
        register_slice(files, tmp_path / "out", slice_id=4)
    text = str(caught.value)
    assert text.startswith("slice 4: ") or "two voxel sizes" in text
    assert told in text
    assert "\n" not in text
    assert not (tmp_path / "out").exists()


def test_a_sheared_map_is_refused(beams, tmp_path):
    shear = np.array([[1, 0.3, 0, 0], [0, np.sqrt(1 - 0.09), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    files = mosaics(tmp_path, beams, (placed(), placed(first=shear)), forms="s")
    with pytest.raises(InputError, match="not at right angles"):
        register_slice(files, tmp_path / "out", slice_id=4)


def test_sform_and_qform_that_contradict_each_other_are_refused(beams, tmp_path):
    files = mosaics(tmp_path, beams, (placed(), placed()))
    path = files[1].maps["aip"]
    image = nib.load(path, mmap=False)
    image.set_qform(placed(origin=(1, 0, 0)), 1)
    nib.save(image, path)
    with pytest.raises(InputError, match=r"sform and qform of .*tilted_aip.nii lay it at two places"):
        register_slice(files, tmp_path / "out", slice_id=4)


@pytest.mark.parametrize(
    ("affine", "told"),
    [
        (placed(origin=(1, 0, 0)), "origins that lie 1 mm apart"),
        (placed((1, -1, 1)), "axes x to right, y to posterior"),
        (placed(size=(0.02, 0.02, 0.01)), "pixels of 0.02 x 0.02 mm and 0.01 x 0.01 mm"),
    ],
)
def test_maps_of_one_illumination_must_lie_at_one_place(beams, tmp_path, affine, told):
    files = mosaics(tmp_path, beams, (placed(), placed()))
    write(files[1].maps["aip"], beams[1].intensity, affine)
    with pytest.raises(InputError, match="maps of one illumination must lie at one place") as caught:
        register_slice(files, tmp_path / "out", slice_id=4)
    assert told in str(caught.value)


def test_a_mask_that_tells_nothing_of_space_is_taken_as_it_is(beams, tmp_path):
    files = mosaics(tmp_path, beams, (placed(origin=(3, 0, 0)), placed()))
    nib.save(nib.Nifti1Image(np.ones(beams[0].intensity.shape, np.uint8), np.eye(4)), tmp_path / "mask.nii")
    with_mask = SliceMosaic("normal", {**files[0].maps, "mask": tmp_path / "mask.nii"})
    assert register_slice([with_mask, files[1]], tmp_path / "out", slice_id=1).has_axis


def test_scaled_whole_numbers_are_maps_like_any_other(beams, tmp_path):
    files = mosaics(tmp_path, beams, (placed(), placed()))
    plain = register_slice(files, tmp_path / "out", slice_id=1)
    path = files[1].maps["ori"]
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    header.set_data_shape((*beams[1].orientation_deg.shape, 1))
    header.set_zooms((0.01, 0.01, 0.0025))
    header.set_sform(placed(), 1)
    header.set_qform(placed(), 1)
    header["scl_slope"], header["scl_inter"], header["magic"], header["vox_offset"] = 0.005, 10, b"n+1", 352
    numbers = np.rint((np.nan_to_num(beams[1].orientation_deg) - 10) / 0.005).astype(">i2")
    path.write_bytes(header.binaryblock + b"\0" * 4 + numbers.tobytes(order="F"))
    scaled = register_slice(files, tmp_path / "scaled", slice_id=1)
    a, b = (np.asarray(nib.load(m.outputs["tilted_ori"]).dataobj) for m in (plain, scaled))
    apart = np.abs((a - b + 90) % 180 - 90)
    assert np.nanmedian(apart) < 0.01
