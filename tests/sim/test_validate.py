"""Validation: zero for a perfect project, the right figure for every flaw, exclusions that follow from the truth."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from opticstream.config import ProjectConfig
from opticstream.io.nifti import read_nifti, write_nifti
from opticstream.io.paths import ProjectPaths
from opticstream.io.zarr import SliceStore, volume_reader
from opticstream.model.errors import InputError, MissingInputError
from opticstream.model.ids import MosaicId, TileId
from opticstream.sim.settings import PhantomSettings
from opticstream.sim.tiles import TileSimulator
from opticstream.sim.truth import write_truth
from opticstream.sim.truth_reader import Truth
from opticstream.sim.validate import DEMO_BOUNDS, SCORES, Figure, Report, validate_project
from opticstream.sim.validate_pictures import write_error_pictures
from opticstream.testing.small_phantom import small_project_config

SHIFT = np.array([3.3, -1.2])
"""Global shift of the estimated positions, which nobody can know."""


def paths_of(config: ProjectConfig) -> ProjectPaths:
    return ProjectPaths(config.base_path, config.project.archive_root, "01", config.scan.layout)


@pytest.fixture(scope="module")
def truth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("truth")
    settings = PhantomSettings(slices=2, stage={"repeat_jitter_px": 0.0}, sample={"outline": "full"})
    write_truth(TileSimulator(small_project_config(), settings), folder)
    return folder


@pytest.fixture
def perfect(tmp_path: Path, truth_folder: Path) -> ProjectConfig:
    """A project whose every output is the truth."""
    config = small_project_config(tmp_path / "project")
    truth, paths = Truth.load(truth_folder), paths_of(config)
    frames = {}
    for mosaic in truth.mosaics.values():
        illumination = truth.illumination(mosaic.illumination)
        width, height = illumination["tile_shape"]
        estimated = {t: p + SHIFT for t, p in mosaic.positions.items()}
        tiles = [{"tile": t, "x": float(x), "y": float(y), "file": ""} for t, (x, y) in estimated.items()]
        template = paths.tilemap(illumination["name"])
        template.parent.mkdir(parents=True, exist_ok=True)
        template.write_text(yaml.safe_dump({"tiles": tiles}))
        write_nifti(paths.focus(illumination["name"]), truth.gate_px(mosaic.illumination) + 17.0)
        for tile, (x, y) in mosaic.positions.items():
            i, j = np.meshgrid(x + np.arange(width), y + np.arange(height), indexing="ij")
            surface = mosaic.at("height", i, j)[0] + truth.gate_px(mosaic.illumination)
            write_nifti(paths.tile_product(TileId(mosaic.mosaic_id, tile), "surf"), surface.astype(np.float32))
        corners = np.array(list(estimated.values()))
        origin = np.rint(corners.min(axis=0))
        shape = np.ceil(corners.max(axis=0) + np.array([width, height]) - origin).astype(int)
        i, j = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
        at = (i + origin[0] - SHIFT[0], j + origin[1] - SHIFT[1])
        frames[mosaic.mosaic_id] = (origin - SHIFT, at)
        for modality, name in (
            ("ret", "visible_retardance"), ("ori", "visible_orientation"), ("biref", "visible_birefringence"),
            ("mask", "inside"),
        ):  # fmt: skip
            values, known = mosaic.at(name, *at)
            values = np.where(known, values, 0).astype(np.uint8 if modality == "mask" else np.float32)
            write_nifti(paths.mosaic_product(MosaicId(mosaic.mosaic_id), modality), values)
    for entry in truth.slices:
        fixed, (moving,) = truth.mosaics[entry["fixed_mosaic_id"]], entry["moving"]
        (origin, at), (moving_origin, _) = frames[fixed.mosaic_id], frames[moving["mosaic_id"]]
        axis = fixed.at("axis", *at)[0]
        flip = np.random.default_rng(0).choice([-1.0, 1.0], size=axis.shape[:2])  # an axis has no sign
        name = f"slice_{entry['slice_id']:03d}"
        write_nifti(paths.registered_folder / f"{name}_axis.nii.gz", (axis * flip[..., None])[:, :, None, :])
        write_nifti(paths.registered_folder / f"{name}_biref.nii.gz", fixed.at("birefringence", *at)[0][..., None])
        matrix = np.array(moving["matrix"])
        offset = matrix @ origin + moving["offset_px"] - moving_origin
        registration = {"moving": "tilted", "matrix_px": matrix.tolist(), "offset_px": offset.tolist()}
        (paths.registered_folder / f"{name}_transform.json").write_text(json.dumps({"registrations": [registration]}))
    write_stack(config, truth)
    return config


def write_stack(config: ProjectConfig, truth: Truth, poses: dict[int, dict[str, list]] | None = None) -> None:
    """Write the stack of the normal orientation maps, each slice in its place."""
    paths = paths_of(config)
    fixed = {entry["slice_id"]: MosaicId(entry["fixed_mosaic_id"]) for entry in truth.slices}
    planes = [read_nifti(paths.mosaic_product(mosaic, "ori")) for mosaic in fixed.values()]
    thickness_mm = config.scan.slice_thickness_um / 1000
    write_nifti(paths.sample_folder / "normal_ori.nii", np.stack(planes, -1), voxel_size_mm=(0.01, 0.01, thickness_mm))
    _write_sample(config, truth)
    slices = {str(s): {"state": "present", **({"pose": poses[s]} if poses else {})} for s in fixed}
    (paths.sample_folder / "slices.json").write_text(json.dumps({"slices": slices}))


def _write_sample(config: ProjectConfig, truth: Truth, *, step_db: float = 0.0, turn_deg: float = 0.0) -> None:
    """Write the sample's intensity volume and its axes as the truth has them, or wrong by a step and a turn."""
    paths = paths_of(config)
    voxel = tuple(1000 * v for v in config.scan.scan_resolution_3d)
    count = round(config.scan.slice_thickness_um / voxel[2])
    volume = SliceStore(paths.sample_folder / "normal_dBI.ome.zarr", count, voxel)
    flat = (*voxel[:2], config.scan.slice_thickness_um)
    axes = SliceStore(paths.sample_folder / "registered_axis.ome.zarr", 1, flat, "vector")
    for entry in truth.slices:
        n, fixed = entry["slice_id"], truth.mosaics[entry["fixed_mosaic_id"]]
        corner = np.rint(np.min(list(fixed.positions.values()), axis=0) + SHIFT) - SHIFT
        shape = read_nifti(paths.mosaic_product(MosaicId(fixed.mosaic_id), "ori")).shape
        at = np.meshgrid(*(c + np.arange(size) for c, size in zip(corner, shape, strict=True)), indexing="ij")
        db = np.where(fixed.at("inside", *at)[0] > 0, fixed.at("brightness", *at)[0], np.nan) - 40.0 + step_db * n
        planes = np.repeat(db[:, :, None], count, axis=2).astype(np.float32)
        volume.put(n - 1, shape, lambda xs, ys, planes=planes: planes[xs, ys])
        axis = np.array(fixed.at("axis", *at)[0], np.float32)
        c, s = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
        axis[..., :2] = axis[..., :2] @ np.array([[c, s], [-s, c]], np.float32)
        axes.put(n - 1, shape, lambda xs, ys, axis=axis: axis[xs, ys][:, :, None])


def figure(report: Report, quantity: str, region: str = "all", item: str = "all") -> Figure:
    (found,) = [f for f in report.figures if (f.quantity, f.region, f.item) == (quantity, region, item)]
    return found


def test_a_perfect_project_has_no_errors(perfect: ProjectConfig, truth_folder: Path) -> None:
    report = validate_project(perfect, truth_folder)
    assert report.problems == ()
    assert report.passed
    assert [f.quantity for f in report.summary] == [
        "position", "seam", "surface", "focus", "retardance", "orientation", "birefringence", "registration", "inplane",
        "thruplane", "axis", "true birefringence", "mask", "stacked values", "stacked orientation", "stacked axis",
        "boundary step", "likeness", "slice offset", "pose", "pose turn",
    ]  # fmt: skip
    # Nothing aligned the slices, and the stage did not come back to the same place: both lie off by half of that.
    truth = Truth.load(truth_folder)
    places = [truth.mosaics[entry["fixed_mosaic_id"]].entry["shift_px"] for entry in truth.slices]
    apart = np.hypot(*np.subtract(*places)) / 2
    assert apart > 0.5
    for quantity in report.summary:
        assert quantity.count > 0
        if quantity.quantity == "pose":
            assert quantity.worst == pytest.approx(apart, abs=0.05)
            continue
        assert quantity.worst == pytest.approx(1.0 if quantity.quantity in SCORES else 0.0, abs=0.05), quantity


def test_steps_between_sections_and_turned_axes_of_the_sample_are_found(
    perfect: ProjectConfig, truth_folder: Path
) -> None:
    _write_sample(perfect, Truth.load(truth_folder), step_db=-0.7, turn_deg=6.0)
    report = validate_project(perfect, truth_folder)
    assert figure(report, "boundary step").median == pytest.approx(0.7, abs=0.02)
    assert figure(report, "likeness").worst > 0.99  # a level is no difference of structure
    assert 2 < figure(report, "stacked axis").median <= 6
    assert figure(report, "stacked axis").worst == pytest.approx(6, abs=0.1)


def test_a_section_that_shows_other_tissue_is_unlike_the_truth(perfect: ProjectConfig, truth_folder: Path) -> None:
    store = SliceStore.opened(paths_of(perfect).sample_folder / "normal_dBI.ome.zarr")
    noise = np.random.default_rng(1).normal(-40, 1, (200, 200, store.planes)).astype(np.float32)
    shape, _ = volume_reader(store.path)
    store.put(1, shape[:2], lambda xs, ys: noise[xs, ys])
    report = validate_project(perfect, truth_folder)
    assert abs(figure(report, "likeness", item="slice-002").worst) < 0.3
    assert figure(report, "likeness", item="slice-001").worst > 0.99


def test_a_truth_of_an_earlier_version_is_named_with_what_to_do(
    perfect: ProjectConfig, truth_folder: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(truth_folder, tmp_path / "old"))
    document = json.loads((old / "truth.json").read_text())
    for mosaic in document["mosaics"]:
        del mosaic["files"]["brightness"]
    (old / "truth.json").write_text(json.dumps(document))
    (problem,) = validate_project(perfect, old).problems
    assert problem.startswith(f"{old}: the truth of mosaic 1 has no map of brightness")
    assert problem.endswith("remove the folder and run the rig again")


def test_a_sample_without_its_volume_is_a_problem(perfect: ProjectConfig, truth_folder: Path) -> None:
    folder = paths_of(perfect).sample_folder
    (folder / "normal_dBI.ome.zarr").rename(folder / "elsewhere")
    assert "normal_dBI.ome.zarr: no such volume of the sample" in validate_project(perfect, truth_folder).problems[0]


def test_slices_in_each_others_place_are_found(perfect: ProjectConfig, truth_folder: Path) -> None:
    stack = paths_of(perfect).sample_folder / "normal_ori.nii"
    write_nifti(stack, np.array(read_nifti(stack))[:, :, ::-1], voxel_size_mm=(0.01, 0.01, 0.5))
    report = validate_project(perfect, truth_folder)
    assert figure(report, "stacked values").median > 90
    assert figure(report, "stacked orientation").median > 0.05
    assert figure(report, "orientation").worst == pytest.approx(0, abs=0.05)


def test_aligned_slices_are_followed_to_where_they_lie(perfect: ProjectConfig, truth_folder: Path) -> None:
    from opticstream.compute.registration import resample_orientation, rigid_map

    truth, paths = Truth.load(truth_folder), paths_of(perfect)
    own = np.array(read_nifti(paths.mosaic_product(MosaicId(3), "ori")))
    turned = rigid_map(8.0, [3.0, -2.0], (np.array(own.shape) - 1) / 2)
    poses = {
        1: {"matrix": np.eye(2).tolist(), "offset": [0.0, 0.0]},
        2: {"matrix": turned.matrix.tolist(), "offset": turned.offset.tolist()},
    }
    write_stack(perfect, truth, poses)
    stack = np.array(read_nifti(paths.sample_folder / "normal_ori.nii"))
    stack[:, :, 1] = resample_orientation(own, turned, shape=own.shape)
    write_nifti(paths.sample_folder / "normal_ori.nii", stack, voxel_size_mm=(0.01, 0.01, 0.5))
    report = validate_project(perfect, truth_folder)
    assert figure(report, "stacked orientation", item="slice-002").median < 0.5
    assert figure(report, "slice offset").median == pytest.approx(np.hypot(3, 2), abs=0.1)
    # Each of the two is half as far from their mean as they are from each other.
    assert figure(report, "pose turn").worst == pytest.approx(4.0, abs=0.01)
    assert figure(report, "pose").worst > np.hypot(3, 2) / 2
    assert [f.item for f in report.figures if f.quantity == "stacked values" and f.item != "all"] == ["slice-001"]


def test_stacks_of_another_thickness_or_without_slices_are_problems(perfect: ProjectConfig, truth_folder: Path) -> None:
    stack = paths_of(perfect).sample_folder / "normal_ori.nii"
    write_nifti(stack, np.array(read_nifti(stack)), voxel_size_mm=(0.01, 0.01, 0.1))
    report = validate_project(perfect, truth_folder)
    assert report.problems == (f"{stack}: its planes are 100 um apart, expected 500",)
    assert not report.passed
    (stack.parent / "slices.json").unlink()
    assert "no such file, the ledger" in validate_project(perfect, truth_folder).problems[0]


def spoil_map(config: ProjectConfig, modality: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for mosaic in range(1, 5):
        path = paths_of(config).mosaic_product(MosaicId(mosaic), modality)
        write_nifti(path, change(np.array(read_nifti(path))))


def test_a_wrong_angle_is_found_as_what_it_is(perfect: ProjectConfig, truth_folder: Path) -> None:
    spoil_map(perfect, "ori", lambda ori: ori + 187.0)  # 180 of them mean nothing
    report = validate_project(perfect, truth_folder)
    assert figure(report, "orientation").median == pytest.approx(7.0, abs=1e-3)
    assert not report.passed
    assert [f.quantity for f in report.summary if f.passed is False] == ["orientation"]


def test_wrong_birefringence_is_found_in_percent(perfect: ProjectConfig, truth_folder: Path) -> None:
    spoil_map(perfect, "biref", lambda b: b * 1.2)
    report = validate_project(perfect, truth_folder)
    assert figure(report, "birefringence").median == pytest.approx(20.0, abs=1e-3)
    assert [f.quantity for f in report.summary if f.passed is False] == ["birefringence"]


def test_a_shifted_surface_is_found(perfect: ProjectConfig, truth_folder: Path) -> None:
    for path in perfect.base_path.glob("mosaic-*/processed/*_surf.nii"):
        write_nifti(path, np.array(read_nifti(path)) + 2.5)
    report = validate_project(perfect, truth_folder)
    assert figure(report, "surface").median == pytest.approx(2.5, abs=1e-3)
    assert figure(report, "focus").worst == pytest.approx(0, abs=1e-4)


def test_positions_of_the_nominal_grid_are_found_wrong(perfect: ProjectConfig, truth_folder: Path) -> None:
    truth = Truth.load(truth_folder)
    for index, mosaic in ((0, 1), (1, 2)):
        tiles = [
            {"tile": t["tile_id"], "x": t["nominal"][0], "y": t["nominal"][1]}
            for t in truth.mosaics[mosaic].entry["tiles"]
        ]
        template = paths_of(perfect).tilemap(truth.illumination(index)["name"])
        template.write_text(yaml.safe_dump({"tiles": tiles}))
    report = validate_project(perfect, truth_folder)
    assert figure(report, "position").median > 0.5
    assert figure(report, "position").passed is False


def test_a_turned_axis_is_found_and_its_sign_is_not(perfect: ProjectConfig, truth_folder: Path) -> None:
    c, s = np.cos(np.deg2rad(20.0)), np.sin(np.deg2rad(20.0))
    for path in (perfect.base_path / "registered").glob("*_axis.nii.gz"):
        axis = np.array(read_nifti(path))
        x, y = axis[..., 0].copy(), axis[..., 1].copy()
        axis[..., 0], axis[..., 1] = c * x - s * y, s * x + c * y
        write_nifti(path, axis)
    report = validate_project(perfect, truth_folder)
    assert figure(report, "inplane").median == pytest.approx(20.0, abs=1e-3)
    assert figure(report, "thruplane").worst == pytest.approx(0.0, abs=0.05)
    assert 10 < figure(report, "axis").median < 20.0
    assert figure(report, "axis").passed is False


def test_a_moved_registration_is_found_in_pixels(perfect: ProjectConfig, truth_folder: Path) -> None:
    for path in (perfect.base_path / "registered").glob("*_transform.json"):
        document = json.loads(path.read_text())
        document["registrations"][0]["offset_px"][0] += 3.0
        document["registrations"][0]["offset_px"][1] += 4.0
        path.write_text(json.dumps(document))
    assert figure(validate_project(perfect, truth_folder), "registration").median == pytest.approx(5.0, abs=1e-3)


def test_a_mask_that_holds_half_has_the_dice_of_a_half(perfect: ProjectConfig, truth_folder: Path) -> None:
    def half(mask: np.ndarray) -> np.ndarray:
        flat = np.flatnonzero(mask)
        mask = mask.copy()
        mask.ravel()[flat[::2]] = 0
        return mask

    spoil_map(perfect, "mask", half)
    assert figure(validate_project(perfect, truth_folder), "mask").median == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize(
    ("glob", "quantity"),
    [
        ("tilemap-normal.j2", "position"),
        ("mosaic-01/processed/*_surf.nii", "surface"),
        ("mosaic-02/stitched/*_ori.nii.gz", "orientation"),
        ("registered/slice_002_axis.nii.gz", "axis"),
        ("focus-tilted.nii", "focus"),
    ],
)
def test_missing_outputs_fail_and_are_named(
    perfect: ProjectConfig, truth_folder: Path, glob: str, quantity: str
) -> None:
    paths = list(perfect.base_path.glob(glob))
    assert paths
    for path in paths:
        path.unlink()
    report = validate_project(perfect, truth_folder)
    assert not report.passed
    assert any(path.name in problem for problem in report.problems for path in paths)
    others = [f for f in report.summary if f.quantity in DEMO_BOUNDS and f.quantity != quantity]
    if "tilemap" not in glob:
        assert all(f.passed for f in others)


def test_nan_in_an_output_counts_as_not_compared_but_a_bounded_quantity_must_be_measured(
    perfect: ProjectConfig, truth_folder: Path
) -> None:
    spoil_map(perfect, "ori", lambda ori: np.full_like(ori, np.nan))
    report = validate_project(perfect, truth_folder)
    assert figure(report, "orientation").count == 0
    assert figure(report, "orientation").passed is False


def test_what_is_left_out_depends_on_the_truth_alone(perfect: ProjectConfig, truth_folder: Path) -> None:
    before = figure(validate_project(perfect, truth_folder), "axis").count
    for path in (perfect.base_path / "registered").glob("*_axis.nii.gz"):
        axis = np.random.default_rng(1).normal(size=read_nifti(path).shape)
        write_nifti(path, axis / np.linalg.norm(axis, axis=-1, keepdims=True))
    after = figure(validate_project(perfect, truth_folder), "axis")
    assert after.count == before
    assert after.median > 30


def test_regions_are_reported(perfect: ProjectConfig, truth_folder: Path) -> None:
    report = validate_project(perfect, truth_folder)
    regions = {f.region for f in report.figures if f.quantity == "surface"}
    assert {"all", "white", "grey", "low signal"} <= regions
    white = figure(report, "orientation", "white")
    assert 0 < white.count <= figure(report, "orientation").count
    assert {f.item for f in report.figures if f.quantity == "axis"} >= {"all", "slice-001", "slice-002"}


def test_the_report_is_json_and_has_pictures(perfect: ProjectConfig, truth_folder: Path, tmp_path: Path) -> None:
    report = validate_project(perfect, truth_folder)
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert plain["passed"] is True
    few = {item: report.maps[item] for item in ("mosaic-001", "slice-002")}
    made = write_error_pictures(dataclasses.replace(report, maps=few), tmp_path / "pictures")
    assert {p.name for p in made} == {"error-mosaic-001.png", "error-slice-002.png"}
    assert all(p.stat().st_size > 5000 for p in made)


def test_the_truth_of_another_acquisition_is_refused(truth_folder: Path, tmp_path: Path) -> None:
    other = small_project_config(tmp_path, illuminations=[{"name": "normal", "columns": 2, "a_lines": 24}])
    with pytest.raises(InputError, match=r"the truth is of illuminations \['normal', 'tilted'\]"):
        validate_project(other, truth_folder)
    with pytest.raises(MissingInputError, match=r"truth\.json: no such file"):
        validate_project(other, tmp_path)
