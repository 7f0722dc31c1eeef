"""The hook to other spaces: a command gets the sample and leaves a transform, which is checked, kept and told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from opticstream.config.processing import SampleHookSettings
from opticstream.io.nifti import nifti_geometry, read_nifti, write_nifti
from opticstream.io.zarr import PlacedVolume, SliceStore, write_isotropic, write_scene
from opticstream.model.errors import ConfigurationError, InputError, OpticStreamError, ProcessingError
from opticstream.stages.sample import other_spaces
from opticstream.stages.sample._other_space import register_to_other_space, scene_transforms

EXAMPLE = Path(__file__).parents[3] / "examples" / "register_to_mri.py"
SHIFT = (
    "import sys, SimpleITK as s; t=s.TranslationTransform(3,(1.0,2.0,3.0)); s.WriteTransform(t, sys.argv[1]+'/t.tfm')"
)


@pytest.fixture
def cubes(tmp_path: Path) -> Path:
    return cubes_of(tmp_path, np.random.default_rng(1).normal(size=(12, 10, 8)).astype(np.float32))


def cubes_of(folder: Path, values: np.ndarray) -> Path:
    """Return the cubes of a stack whose voxels are cubes of 100 um."""
    store = SliceStore(folder / "stack.ome.zarr", values.shape[2], (100.0, 100.0, 100.0))
    store.put(0, values.shape[:2], lambda xs, ys: values[xs, ys])
    return write_isotropic(store.path, folder / "cubes.ome.zarr", [1])


def hook(*command: str, **options: object) -> SampleHookSettings:
    return SampleHookSettings.model_validate({"command": (sys.executable, "-c", *command), "name": "mri", **options})


def test_an_affine_transform_is_kept_with_its_provenance_and_joins_the_scene(tmp_path: Path, cubes: Path) -> None:
    made = register_to_other_space(tmp_path, cubes, hook(SHIFT, "{output}"), poses_version=7)
    assert made.transform == tmp_path / "transforms" / "mri.tfm"
    assert made.facts["poses_version"] == 7
    assert made.facts["kind"] == "affine"
    # ITK's x and y point against those of NIfTI.
    (entry,), fields = scene_transforms(tmp_path)
    assert fields == {}
    assert (entry["input"], entry["output"]) == ({"name": "sample"}, {"name": "mri"})
    assert entry["affine"] == [[1, 0, 0, 3000], [0, 1, 0, -2000], [0, 0, 1, -1000]]
    assert [space.name for space in other_spaces(tmp_path)] == ["mri"]
    assert sorted(p.name for p in (tmp_path / "transforms").iterdir()) == ["mri.json", "mri.tfm"]


def test_the_command_gets_the_sample_in_its_space(tmp_path: Path, cubes: Path) -> None:
    code = "import sys, shutil; shutil.copy(sys.argv[1], sys.argv[3]); " + SHIFT.replace("argv[1]", "argv[2]")
    register_to_other_space(tmp_path, cubes, hook(code, "{image}", "{output}", str(tmp_path / "seen.nii.gz")))
    seen = read_nifti(tmp_path / "seen.nii.gz")
    assert seen.shape == (12, 10, 8)
    np.testing.assert_allclose(nifti_geometry(tmp_path / "seen.nii.gz").voxel_size_mm, 0.1, rtol=1e-6)


def test_a_displacement_field_on_the_grid_of_the_sample_is_kept(tmp_path: Path, cubes: Path) -> None:
    field = np.zeros((12, 10, 8, 3), np.float32)
    good = write_nifti(tmp_path / "field.nii.gz", field, voxel_size_mm=(0.1, 0.1, 0.1))
    copy = "import sys, shutil; shutil.copy(sys.argv[1], sys.argv[2])"
    made = register_to_other_space(tmp_path, cubes, hook(copy, str(good), "{output}"))
    assert made.facts["kind"] == "displacements"
    wrong = write_nifti(tmp_path / "wrong.nii.gz", field[1:], voxel_size_mm=(0.1, 0.1, 0.1))
    with pytest.raises(ProcessingError, match="expected displacements of the shape"):
        register_to_other_space(tmp_path, cubes, hook(copy, str(wrong), "{output}"))
    assert json.loads(made.record.read_text())["kind"] == "displacements"
    register_to_other_space(tmp_path, cubes, hook(SHIFT, "{output}"))
    assert sorted(p.name for p in (tmp_path / "transforms").iterdir()) == ["mri.json", "mri.tfm"]


BENT = """
import sys, SimpleITK as s
image = s.ReadImage(sys.argv[1])
corner = image.TransformIndexToPhysicalPoint((0, 0, 0))
bend = s.BSplineTransformInitializer(image, (3, 3, 3))
bend.SetParameters([0.02 * ((7 * k) % 11 - 5) for k in range(len(bend.GetParameters()))])
whole = s.CompositeTransform([s.Euler3DTransform(corner, 0.05, -0.04, 0.1, (0.5, -0.4, 0.3)), bend])
s.WriteTransform(whole, sys.argv[3])
if sys.argv[4] == "field":
    field = s.TransformToDisplacementField(whole, s.sitkVectorFloat64, image.GetSize(), image.GetOrigin(),
                                           image.GetSpacing(), image.GetDirection())
    s.WriteImage(field, sys.argv[2] + "/bend.nii.gz")
else:
    s.WriteTransform(whole, sys.argv[2] + "/bend.h5")
"""


@pytest.mark.parametrize("form", ["field", "transform"])
def test_a_bent_transform_joins_the_scene_as_displacements_that_plain_zarr_applies(
    tmp_path: Path, cubes: Path, form: str
) -> None:
    import SimpleITK as sitk  # noqa: N813
    import zarr
    from scipy.ndimage import map_coordinates

    original = tmp_path / "original.h5"
    register_to_other_space(tmp_path, cubes, hook(BENT, "{image}", "{output}", str(original), form))
    transforms, fields = scene_transforms(tmp_path)
    volume = PlacedVolume(tmp_path / "stack.ome.zarr", np.eye(3, 4))
    write_scene(tmp_path / "x_scene.ome.zarr", {"slice_001": volume}, more=transforms, fields=fields)
    # From here on a reader that knows the specification only.
    root = zarr.open_group(tmp_path / "x_scene.ome.zarr", mode="r")
    scene = root.attrs["ome"]["scene"]
    entry = next(one for one in scene["coordinateTransformations"] if one["type"] == "displacements")
    assert (entry["input"], entry["output"]) == ({"name": "sample"}, {"name": "mri"})
    assert [system["name"] for system in scene["coordinateSystems"]] == ["sample", "mri"]
    group = root[entry["path"]]
    multiscale = group.attrs["ome"]["multiscales"][0]
    assert multiscale["coordinateSystems"][0]["axes"][0] == {"name": "c", "type": "displacement", "discrete": True}
    (placed,) = multiscale["datasets"][0]["coordinateTransformations"]
    (scale,), (shift,) = ([s[k] for s in placed["transformations"] if k in s] for k in ("scale", "translation"))
    vectors = group[multiscale["datasets"][0]["path"]][:]
    points = np.random.default_rng(2).uniform(150, 600, (3, 20))  # um along z, y, x
    at = (points - np.array(shift[1:])[:, None]) / np.array(scale[1:])[:, None]
    moved = points + np.stack([map_coordinates(component, at, order=1) for component in vectors])
    transform = sitk.ReadTransform(str(original))
    flip = np.array([-1.0, -1.0, 1.0])  # ITK's x and y point against those of NIfTI
    expected = [flip * transform.TransformPoint((flip * point[::-1] / 1000).tolist()) for point in points.T]
    np.testing.assert_allclose(moved.T[:, ::-1] / 1000, expected, atol=0.003)
    assert np.abs(moved - points).max() > 100


@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        (("import sys; sys.exit('no such MRI')",), ProcessingError, "ended with status 1 .*no such MRI"),
        (("pass",), ProcessingError, "left nothing"),
        (("import sys; open(sys.argv[1]+'/t.tfm','w').write('x')", "{output}"), ProcessingError, "is not a transform"),
        (("pass", "{volume}"), ConfigurationError, "known placeholders are {image}"),
    ],
)
def test_what_goes_wrong_is_told_and_the_earlier_transform_stays(
    tmp_path: Path, cubes: Path, command: tuple[str, ...], error: type[OpticStreamError], message: str
) -> None:
    kept = register_to_other_space(tmp_path, cubes, hook(SHIFT, "{output}"))
    before = kept.transform.read_bytes()
    with pytest.raises(error, match=message):
        register_to_other_space(tmp_path, cubes, hook(*command))
    assert kept.transform.read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "transforms").iterdir()) == ["mri.json", "mri.tfm"]


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path, cubes: Path) -> None:
    with pytest.raises(ProcessingError, match=r"was ended after 0\.5 s"):
        register_to_other_space(tmp_path, cubes, hook("import time; time.sleep(600)", time_limit_s=0.5))


def test_without_a_command_or_cubes_the_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"processing\.sample\.hook\.command is empty"):
        register_to_other_space(tmp_path, tmp_path / "none", SampleHookSettings())
    with pytest.raises(InputError, match="not there in cubes"):
        register_to_other_space(tmp_path, tmp_path / "none", hook("pass"))


@pytest.mark.slow
def test_the_example_finds_a_known_motion_to_a_volume_like_an_mri(tmp_path: Path) -> None:
    import SimpleITK as sitk  # noqa: N813
    from scipy import ndimage

    rng = np.random.default_rng(3)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 56, 48)), indexing="ij")
    inside = ndimage.gaussian_filter((x**2 + y**2 + z**2 < 0.6).astype(float), 1.0)
    tissue = (inside * (2 + ndimage.gaussian_filter(rng.normal(size=x.shape), 3.0) * 15)).astype(np.float32)
    cubes = cubes_of(tmp_path, tissue)
    sample = sitk.GetImageFromArray(tissue.T)
    sample.SetSpacing((0.1,) * 3)
    sample.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # as ITK reads our NIfTI
    # From points of the sample to points of the MRI, and the MRI as the sample seen through its inverse.
    true = sitk.Euler3DTransform((-3.2, -2.8, 2.4), 0.1, -0.06, 0.14, (0.5, -0.4, 0.3))
    mri = sitk.Resample(sample, true.GetInverse(), sitk.sitkLinear, 0.0)
    contrast = sitk.Exp(mri * -0.6)  # what is bright here is dark there
    sitk.WriteImage(contrast, str(tmp_path / "mri.nii.gz"))
    command = (sys.executable, str(EXAMPLE), "{image}", str(tmp_path / "mri.nii.gz"), "{output}")
    made = register_to_other_space(tmp_path, cubes, SampleHookSettings(command=command, name="mri"))
    found = sitk.ReadTransform(str(made.transform))
    off = []
    for corner in ((-1.5, -1.5, 1.0), (-5.0, -1.5, 1.0), (-1.5, -4.0, 3.8), (-5.0, -4.0, 3.8)):
        off.append(np.subtract(found.TransformPoint(corner), true.TransformPoint(corner)))
    assert np.linalg.norm(off, axis=1).max() < 0.1  # one voxel
