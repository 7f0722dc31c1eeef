"""The registration stage on files: what it writes, that it says no, that it writes the same bytes again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from opticstream.config.processing import MaskSettings, RegistrationSettings
from opticstream.io.nifti import read_nifti, write_nifti
from opticstream.model.errors import ConfigurationError, InputError, MissingInputError
from opticstream.stages.slice import SliceMosaic, register_slice
from opticstream.testing.slice_phantom import Picture, SlicePhantom, axial_error_deg, make_slice, mapping_error_px

VOXEL = (0.01, 0.01, 0.0025)
TILTED = Picture(tilt_deg=-15.0, rotation_deg=2.0, shift_px=(10.0, -7.0), shape=(190, 170))


@pytest.fixture(scope="module")
def phantom() -> SlicePhantom:
    return make_slice((Picture(), TILTED), seed=21)


def write_maps(folder: Path, phantom: SlicePhantom, *, voxel: tuple[float, ...] = VOXEL) -> list[SliceMosaic]:
    mosaics = []
    for name, beam in zip(("normal", "tilted"), phantom.beams, strict=True):
        mask = np.ones(beam.birefringence.shape, np.uint8)
        mask[:4] = 0
        maps = {
            modality: write_nifti(folder / f"{name}_{modality}.nii.gz", image, voxel_size_mm=voxel)
            for modality, image in (
                ("ori", beam.orientation_deg),
                ("biref", beam.birefringence),
                ("aip", beam.intensity),
                ("mask", mask),
            )
        }
        mosaics.append(SliceMosaic(name, maps, beam.tilt_deg, beam.tilt_axis_deg))
    return mosaics


@pytest.fixture(scope="module")
def made(phantom: SlicePhantom, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("slice")
    return register_slice(write_maps(folder, phantom), folder / "registered", slice_id=7)


def test_every_product_of_the_design_is_there(made) -> None:  # type: ignore[no-untyped-def]
    names = {path.name for path in [*made.outputs.values(), *made.pictures]}
    for product in ("inplane", "thruplane", "axis"):
        assert {f"slice_007_{product}{s}" for s in (".nii.gz", ".jpg", ".tif")} <= names
    assert {"slice_007_inplane.mat", "slice_007_thruplane.mat", "slice_007_biref.nii.gz"} <= names
    assert {"slice_007_uncertainty.nii.gz", "slice_007_flags.nii.gz"} <= names
    assert {"slice_007_transform.json", "slice_007_transform.tfm", "slice_007_overlay.jpg"} <= names
    assert {f"slice_007_tilted_{m}.nii.gz" for m in ("ori", "biref", "aip", "mask")} <= names
    folder = made.outputs["axis"].parent
    assert {path.name for path in folder.iterdir()} == names


def test_the_axis_is_a_field_of_unit_vectors_and_right(made, phantom: SlicePhantom) -> None:  # type: ignore[no-untyped-def]
    axis = read_nifti(made.outputs["axis"])
    assert axis.shape == (200, 160, 1, 3)
    known = np.isfinite(axis[:, :, 0, 0])
    np.testing.assert_allclose(np.linalg.norm(axis[known], axis=-1), 1, atol=1e-5)
    assert not known[:4].any()
    error = axial_error_deg(axis[:, :, 0], phantom.axis)
    assert np.nanmedian(error[phantom.white]) < 5
    true = read_nifti(made.outputs["biref"])[..., 0] / phantom.birefringence
    assert np.nanmedian(np.abs(true - 1)[phantom.white]) < 0.1


def test_matlab_files_hold_the_angles(made) -> None:  # type: ignore[no-untyped-def]
    from scipy.io import loadmat

    thruplane = loadmat(made.outputs["thruplane_mat"])
    np.testing.assert_array_equal(thruplane["thruplane_deg"], read_nifti(made.outputs["thruplane"])[..., 0])
    assert thruplane["axis"].shape == (200, 160, 3)
    inplane = loadmat(made.outputs["inplane_mat"])
    np.testing.assert_array_equal(inplane["inplane_deg"], read_nifti(made.outputs["inplane"])[..., 0])


def test_the_itk_transform_maps_points_as_the_matrix_does(made, phantom: SlicePhantom) -> None:  # type: ignore[no-untyped-def]
    import SimpleITK as sitk  # noqa: N813

    folder = made.outputs["axis"].parent.parent
    facts = json.loads(made.outputs["transform"].read_text())["registrations"][0]
    matrix, offset = np.array(facts["matrix_px"]), np.array(facts["offset_px"])
    assert np.median(mapping_error_px(matrix, offset, phantom.beams[1], (200, 160))) < 0.5
    fixed = sitk.ReadImage(str(folder / "normal_aip.nii.gz"))
    moving = sitk.ReadImage(str(folder / "tilted_aip.nii.gz"))
    transform = sitk.ReadTransform(str(made.outputs["transform_itk"]))
    pixel = [37.0, 52.0]
    point = fixed.TransformContinuousIndexToPhysicalPoint(pixel)
    index = moving.TransformPhysicalPointToContinuousIndex(transform.TransformPoint(point))
    np.testing.assert_allclose(index, matrix @ pixel + offset, atol=1e-3)
    # The same in three dimensions, for programs that read a map as one plane.
    solid = sitk.ReadTransform(str(made.outputs["transform_3d_itk"]))
    np.testing.assert_allclose(solid.TransformPoint([*point, 0.0])[:2], transform.TransformPoint(point), atol=1e-9)


def test_the_same_maps_give_the_same_bytes(made, phantom: SlicePhantom, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    again = register_slice(write_maps(tmp_path, phantom), tmp_path / "registered", slice_id=7, threads=3)

    def sums(result) -> dict[str, str]:  # type: ignore[no-untyped-def]
        files = sorted({*result.outputs.values(), *result.pictures})
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert sums(again) == sums(made)


def test_strangers_are_not_given_an_axis(phantom: SlicePhantom, tmp_path: Path) -> None:
    stranger = make_slice((Picture(), TILTED), seed=99)
    mixed = SlicePhantom(phantom.axis, phantom.birefringence, phantom.white, (phantom.beams[0], stranger.beams[1]))
    result = register_slice(write_maps(tmp_path, mixed), tmp_path / "registered", slice_id=1)
    assert not result.has_axis
    assert result.failures
    assert "axis" not in result.outputs
    summary = json.loads(result.outputs["transform"].read_text())
    assert summary["registrations"][0]["good"] is False
    assert summary["registrations"][0]["failures"]
    assert (tmp_path / "registered" / "slice_001_overlay.jpg").exists()
    assert result.why_no_axis.startswith("no fibre axis: tilted onto normal: ")


def test_names_follow_the_template(phantom: SlicePhantom, tmp_path: Path) -> None:
    settings = RegistrationSettings(file_name="sub-{subject}_sample-slice{slice:03d}_desc-{product}_OCT")
    result = register_slice(write_maps(tmp_path, phantom), tmp_path, slice_id=2, settings=settings, subject_id="I55")
    assert result.outputs["axis"].name == "sub-I55_sample-slice002_desc-axis_OCT.nii.gz"
    with pytest.raises(ConfigurationError, match=r"must hold \{slice\} and \{product\}"):
        register_slice(
            write_maps(tmp_path, phantom),
            tmp_path,
            slice_id=2,
            settings=RegistrationSettings(file_name="result_{slice}"),
        )
    with pytest.raises(ConfigurationError, match="KeyError"):
        register_slice(
            write_maps(tmp_path, phantom),
            tmp_path,
            slice_id=2,
            settings=RegistrationSettings(file_name="{slice}_{product}_{colour}"),
        )


def test_bad_input_is_named(phantom: SlicePhantom, tmp_path: Path) -> None:
    normal, tilted = write_maps(tmp_path, phantom)

    def refused(maps: dict[str, Path], kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            register_slice([normal, SliceMosaic("tilted", maps, -15.0)], tmp_path / "out", slice_id=3)
        assert not (tmp_path / "out").exists()

    with pytest.raises(InputError, match=r"slice 3: the fibre axis needs at least two illuminations, got \['normal'\]"):
        register_slice([normal], tmp_path / "out", slice_id=3)
    maps = dict(tilted.maps)
    refused({**maps, "biref": tmp_path / "gone.nii.gz"}, MissingInputError, "biref mosaic of the tilted illumination")
    refused({k: v for k, v in maps.items() if k != "ori"}, MissingInputError, "the ori mosaic of the tilted")
    coarse = write_nifti(tmp_path / "c.nii.gz", phantom.beams[1].birefringence, voxel_size_mm=(0.02, 0.02, 0.0025))
    refused({**maps, "biref": coarse}, InputError, "tilted_ori.nii.gz and c.nii.gz have pixels of 0.01 x 0.01 mm and")
    empty = write_nifti(tmp_path / "m.nii.gz", np.zeros((190, 170), np.uint8), voxel_size_mm=VOXEL)
    refused({**maps, "mask": empty}, InputError, "m.nii.gz: the mask is empty")
    blank = write_nifti(tmp_path / "n.nii.gz", np.full((190, 170), np.nan, np.float32), voxel_size_mm=VOXEL)
    refused({**maps, "ori": blank}, InputError, "n.nii.gz: holds no finite value")
    small = write_nifti(tmp_path / "s.nii.gz", np.ones((19, 17), np.float32), voxel_size_mm=VOXEL)
    refused({**maps, "ori": small}, InputError, r"s.nii.gz: shape \(19, 17\)")


def test_maps_of_other_modalities_are_refused(phantom: SlicePhantom, tmp_path: Path) -> None:
    normal, tilted = write_maps(tmp_path, phantom)

    def refused(message: str, **maps: Path) -> None:
        with pytest.raises(InputError, match=message):
            register_slice([normal, SliceMosaic("tilted", {**tilted.maps, **maps}, -15.0)], tmp_path / "o", slice_id=3)
        assert not (tmp_path / "o").exists()

    swapped = {"ori": tilted.maps["biref"], "biref": tilted.maps["ori"]}
    refused("tilted_biref.nii.gz is given as the ori map of the tilted illumination, its name says biref", **swapped)
    unnamed = write_nifti(tmp_path / "map7.nii.gz", phantom.beams[1].orientation_deg, voxel_size_mm=VOXEL)
    refused("map7.nii.gz: half of its values exceed .* which no birefringence does", biref=unnamed)


@pytest.mark.parametrize("beams", [3, 4])
def test_any_number_of_illuminations(tmp_path: Path, beams: int) -> None:
    from opticstream.testing.stitched_project import illumination_name

    pictures = [
        Picture(),
        TILTED,
        Picture(tilt_deg=15.0, tilt_axis_deg=0.0, rotation_deg=-2.0, shift_px=(-6.0, 5.0)),
        Picture(tilt_deg=20.0, tilt_axis_deg=45.0, shift_px=(4.0, 9.0), shape=(210, 150)),
    ]
    phantom = make_slice(tuple(pictures[:beams]), seed=22)
    mosaics = []
    for k, beam in enumerate(phantom.beams):
        name = illumination_name(k)
        images = {"ori": beam.orientation_deg, "biref": beam.birefringence, "aip": beam.intensity}
        maps = {
            m: write_nifti(tmp_path / f"{name}_{m}.nii.gz", image, voxel_size_mm=VOXEL) for m, image in images.items()
        }
        mosaics.append(SliceMosaic(name, maps, beam.tilt_deg, beam.tilt_axis_deg))
    result = register_slice(mosaics, tmp_path / "registered", slice_id=4)
    assert result.failures == ()
    names = [illumination_name(k) for k in range(1, beams)]
    assert [r["moving"] for r in result.summary["registrations"]] == names
    for name, beam in zip(names, phantom.beams[1:], strict=True):
        assert result.outputs[f"transform_{name}_itk"].name == f"slice_004_transform_{name}.tfm"
        assert (tmp_path / "registered" / f"slice_004_overlay_{name}.jpg").is_file()
        facts = next(r for r in result.summary["registrations"] if r["moving"] == name)
        error = mapping_error_px(np.array(facts["matrix_px"]), np.array(facts["offset_px"]), beam, (200, 160))
        assert np.median(error) < 0.5
    axis = read_nifti(result.outputs["axis"])[:, :, 0]
    assert np.nanmedian(axial_error_deg(axis, phantom.axis)[phantom.white]) < 2


def test_volumes_follow_where_that_is_asked_for(phantom: SlicePhantom, tmp_path: Path) -> None:
    from opticstream.io.zarr import SliceStore, volume_reader

    normal, tilted = write_maps(tmp_path, phantom)
    source = np.repeat(phantom.beams[1].intensity[:, :, None], 8, axis=2)
    store = SliceStore(tmp_path / "tilted_dBI.ome.zarr", 8, (10.0, 10.0, 2.5))
    store.put(0, (190, 170), lambda xs, ys: source[xs, ys])
    mosaics = [normal, SliceMosaic("tilted", tilted.maps, tilted.tilt_deg, volumes={"dBI": store.path})]
    without = register_slice(mosaics, tmp_path / "a", slice_id=1)
    assert "tilted_dBI" not in without.outputs
    made = register_slice(mosaics, tmp_path / "b", slice_id=1, settings=RegistrationSettings(resample_volumes=True))
    shape, read = volume_reader(made.outputs["tilted_dBI"])
    assert shape == (200, 160, 8)
    volume = read(slice(0, 200), slice(0, 160))
    flat = read_nifti(made.outputs["tilted_aip"])[..., 0]
    both = np.isfinite(flat) & np.isfinite(volume[:, :, 0])
    np.testing.assert_allclose(volume[:, :, 0][both], flat[both], atol=1e-3)
    # Deeper planes were seen by beams that entered further along: sideways by z tan(15 degrees).
    assert np.isnan(volume[:, :, 7]).mean() < 0.3
    assert not np.array_equal(volume[:, :, 7][both], volume[:, :, 0][both])


class TestMaskOfTheRegistration:
    """`mask_file_type` chooses it; a file that comes with the mosaic is taken as it is."""

    MAKING = MaskSettings(made_from="", threshold_db={"normal": 0.5}, sigma_px=0.0, min_fraction=0.0)

    @staticmethod
    def without_mask_files(folder: Path, phantom: SlicePhantom) -> list[SliceMosaic]:
        """Mosaics whose mip tells another half of the picture than their aip."""
        mosaics = []
        for mosaic in write_maps(folder, phantom):
            shape = read_nifti(mosaic.maps["aip"]).shape[:2]
            maps = {name: path for name, path in mosaic.maps.items() if name in ("ori", "biref")}
            half = np.zeros(shape, np.float32)
            half[: shape[0] // 2] = 1
            maps["aip"] = write_nifti(folder / f"{mosaic.name}_all.nii.gz", np.ones(shape), voxel_size_mm=VOXEL)
            maps["mip"] = write_nifti(folder / f"{mosaic.name}_half.nii.gz", half, voxel_size_mm=VOXEL)
            mosaics.append(SliceMosaic(mosaic.name, maps, mosaic.tilt_deg, mosaic.tilt_axis_deg))
        return mosaics

    @pytest.mark.parametrize(("modality", "shares"), [("aip", (0.7, 1.0)), ("mip", (0.25, 0.6))])
    def test_it_is_made_from_the_map_that_was_chosen(self, phantom, tmp_path, modality, shares):
        settings = RegistrationSettings(mask_file_type=modality, min_overlap=0.1)
        mosaics = self.without_mask_files(tmp_path, phantom)
        result = register_slice(mosaics, tmp_path / "out", slice_id=1, settings=settings, mask=self.MAKING)
        least, most = shares
        assert least < (read_nifti(result.outputs["tilted_mask"]) != 0).mean() <= most

    def test_there_is_none_where_none_is_wanted(self, phantom, tmp_path):
        settings = RegistrationSettings(mask_file_type="")
        mosaics = [*self.without_mask_files(tmp_path, phantom)]
        result = register_slice(mosaics, tmp_path / "out", slice_id=1, settings=settings, mask=self.MAKING)
        assert "tilted_mask" not in result.outputs
        with_files = write_maps(tmp_path, phantom)
        result = register_slice(with_files, tmp_path / "out2", slice_id=1, settings=settings, mask=self.MAKING)
        assert np.isfinite(read_nifti(result.outputs["axis"])[:4]).any(), "the mask of the file leaves these rows out"

    def test_an_empty_one_names_the_map_and_the_threshold(self, phantom, tmp_path):
        making = MaskSettings(threshold_db={"normal": 9.0})
        mosaics = self.without_mask_files(tmp_path, phantom)
        with pytest.raises(
            InputError, match=r"normal_all\.nii\.gz: the mask is empty \(processing\.mask\.threshold_db"
        ):
            register_slice(mosaics, tmp_path / "out", slice_id=1, mask=making)
