"""The truth is complete, consistent with itself, and readable with nothing but JSON and NIfTI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from opticstream.config import ProjectConfig
from opticstream.model.ids import TileId
from opticstream.sim.settings import PhantomSettings
from opticstream.sim.tiles import TileSimulator
from opticstream.sim.truth import write_truth
from opticstream.testing import reference
from opticstream.testing.small_phantom import PLAIN_SAMPLE, QUIET, plain_phantom, small_project_config

SETTINGS = PhantomSettings(slices=2, sample={"outline": "full"})


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj).squeeze()


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("truth")
    path = write_truth(TileSimulator(small_project_config(), SETTINGS), folder)
    return folder, json.loads(path.read_text())


def test_every_file_that_the_truth_names_is_there(truth: tuple[Path, dict[str, Any]]) -> None:
    folder, document = truth
    named = [f for m in document["mosaics"] for f in m["files"].values()]
    named += [f for i in document["illuminations"] for f in i["files"].values()]
    named += [f for files in document["instrument"].values() for f in files]
    assert len(named) > 40
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {*named, "truth.json"}


def test_what_a_beam_sees_follows_from_axis_and_birefringence(truth: tuple[Path, dict[str, Any]]) -> None:
    folder, document = truth
    for mosaic in document["mosaics"]:
        axis, b, seen, angle = (
            load(folder / mosaic["files"][name])
            for name in ("axis", "birefringence", "apparent_birefringence", "apparent_orientation")
        )
        frame = np.array(document["illuminations"][mosaic["illumination"]]["beam_frame"])
        there = np.isfinite(axis[..., 0])
        assert np.array_equal(there, b > 0)
        e1, e2, k = (axis[there] @ row for row in frame)
        assert seen[there] == pytest.approx(b[there] * (1 - k**2), abs=1e-9)
        difference = (angle[there] - np.rad2deg(np.arctan2(e2, e1)) + 90) % 180 - 90
        assert np.abs(difference[k**2 < 0.99]).max() < 0.01
        assert not np.isfinite(angle[b == 0]).any()


def test_in_a_columnar_sample_the_visible_maps_are_the_apparent_ones(truth: tuple[Path, dict[str, Any]]) -> None:
    folder, document = truth
    assert document["depths_um"] == []
    for mosaic in document["mosaics"]:
        maps = {name: load(folder / file) for name, file in mosaic["files"].items()}
        # Below the 90-degree fold; the window is 30 samples of 4 um.
        some = (maps["apparent_birefringence"] > 1e-6) & (maps["apparent_birefringence"] * 124 / 1.3 < 0.25)
        assert some.sum() > 100
        assert maps["visible_birefringence"][some] == pytest.approx(maps["apparent_birefringence"][some], rel=1e-4)
        assert maps["visible_retardance"][some] == pytest.approx(
            maps["apparent_birefringence"][some] * 60 / 1.3 * 360, rel=1e-4
        )
        difference = (maps["visible_orientation"] - maps["apparent_orientation"])[some]
        assert np.abs((difference + 90) % 180 - 90).max() < 0.05


def test_in_a_depth_varying_sample_local_and_visible_are_kept_apart(tmp_path: Path) -> None:
    sample = PLAIN_SAMPLE.model_copy(update={"depth_scale_um": 200.0, "layer_step_um": 20.0})
    simulator = TileSimulator(small_project_config(), plain_phantom(sample=sample))
    document = json.loads(write_truth(simulator, tmp_path).read_text())
    files = document["mosaics"][0]["files"]
    local, seen = (
        load(tmp_path / files[name]) for name in ("apparent_orientation_at_depth", "visible_orientation_at_depth")
    )
    assert local.shape[-1] == len(document["depths_um"]) == load(tmp_path / files["axis_at_depth"]).shape[2]
    difference = np.abs((local - seen + 90) % 180 - 90)
    middle = [np.nanmedian(difference[..., n]) for n in range(6)]
    assert middle[0] < 1.0  # at the top there is nothing above to look through
    assert max(middle[3:]) > 5.0


def test_a_reference_reconstruction_of_the_spectra_finds_the_truth(tmp_path: Path) -> None:
    source = QUIET.source.model_copy(update={"bits": 12, "peak_counts": (2000.0, 2000.0), "electrons_per_count": 40.0})
    instrument = QUIET.model_copy(
        update={"source": source, "dispersion_rad": ((14.0, -5.0), (11.0, 6.0)), "k_map": "quadratic",
                "curvature_px": (3.0, 2.0, 1.0), "scattering_db": -34.0, "lateral_fwhm_px": 1.3}
    )  # fmt: skip
    sample = PLAIN_SAMPLE.model_copy(
        update={"inclination_max_deg": 40.0, "birefringence_white": 1.2e-3, "surface_depth_px": 20.0,
                "attenuation_white_per_mm": 5.0}
    )  # fmt: skip
    calibration = {
        "linearization": {"method": "wavelengths", "files": ["w1.npy", "w2.npy"]},
        "dispersion_files": ["d1.npy", "d2.npy"],
    }
    config: ProjectConfig = small_project_config(samples=512, b_lines=8, calibration=calibration)
    simulator = TileSimulator(config, plain_phantom(sample=sample, instrument=instrument))
    document = json.loads(write_truth(simulator, tmp_path).read_text())
    for mosaic, tile_id in ((0, 1), (1, 4)):
        entry = document["mosaics"][mosaic]
        illumination = document["illuminations"][entry["illumination"]]
        vectors = {n: [np.load(tmp_path / f) for f in files] for n, files in document["instrument"].items()}
        first, second = reference.complex_from_spectra(
            simulator.tile(TileId(mosaic + 1, tile_id)),
            wavelengths=vectors["wavelength_um"],
            dispersion=vectors["dispersion_rad"],
        )
        volumes = reference.volumes_from_complex(first, second)
        place = entry["tiles"][tile_id - 1]
        width, height = illumination["tile_shape"]
        i = np.rint(place["x"] + np.arange(width) - entry["origin_px"][0]).astype(int)
        j = np.rint(place["y"] + np.arange(height) - entry["origin_px"][1]).astype(int)
        maps = {name: load(tmp_path / file)[np.ix_(i, j)] for name, file in entry["files"].items() if name != "axis"}
        surface = maps["height"] + load(tmp_path / illumination["files"]["gate_px"])
        found = reference.surface_from_intensity(volumes.intensity_db)
        assert np.median(np.abs(found - surface)) < 1.2
        enface = reference.enface_from_volumes(volumes, surface, depth=40, depth_step_um=4.0)
        apparent = maps["apparent_birefringence"]
        error = np.abs((enface.ori - maps["apparent_orientation"] + 90) % 180 - 90)
        assert np.median(error[apparent > 3e-4]) < 1.5
        assert np.median((enface.biref / apparent)[apparent > 3e-4]) == pytest.approx(1.0, abs=0.06)


def test_true_positions_and_transforms_describe_one_sample(truth: tuple[Path, dict[str, Any]]) -> None:
    folder, document = truth
    simulator = TileSimulator(small_project_config(), SETTINGS)
    mosaics = {m["mosaic_id"]: m for m in document["mosaics"]}
    for entry in document["slices"]:
        (moving,) = entry["moving"]
        fixed_map = mosaics[entry["fixed_mosaic_id"]]
        moving_map = mosaics[moving["mosaic_id"]]
        b_fixed, b_moving = (load(folder / m["files"]["birefringence"]) for m in (fixed_map, moving_map))
        i, j = np.meshgrid(*(np.arange(4, n - 4) for n in b_fixed.shape), indexing="ij")
        there = np.array(moving["matrix"]) @ np.stack([i + fixed_map["origin_px"][0], j + fixed_map["origin_px"][1]]
            ).reshape(2, -1) + np.array(moving["offset_px"])[:, None]  # fmt: skip
        at = np.rint(there - np.array(moving_map["origin_px"])[:, None]).astype(int)
        inside = np.all((at >= 0) & (at < np.array(b_moving.shape)[:, None]), axis=0)
        same = np.isclose(b_fixed[i, j].ravel()[inside], b_moving[tuple(at[:, inside])], rtol=0.05)
        assert inside.sum() > 200
        assert same.mean() > 0.9
    tile = document["mosaics"][2]["tiles"][1]
    assert (tile["x"], tile["y"]) == simulator.stage.position_px(TileId(3, 2))


def test_the_truth_is_written_once_and_again_when_the_phantom_changes(tmp_path: Path) -> None:
    config = small_project_config()
    path = write_truth(TileSimulator(config, SETTINGS), tmp_path)
    before = path.stat().st_mtime_ns
    write_truth(TileSimulator(config, SETTINGS), tmp_path)
    assert path.stat().st_mtime_ns == before
    key = json.loads(path.read_text())["key"]
    write_truth(TileSimulator(config, SETTINGS.model_copy(update={"seed": 9})), tmp_path)
    assert json.loads(path.read_text())["key"] != key
