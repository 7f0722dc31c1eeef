"""Volumes of 16-bit integers: half the bytes, the stated error, read by everything that reads volumes."""

import nibabel as nib
import numpy as np
import pytest

from opticstream.config import ProcessingSettings, ScanSettings, config_from_mapping
from opticstream.io.images import TileVolume
from opticstream.io.nifti import read_nifti
from opticstream.io.nifti_stream import Steps, open_volume
from opticstream.model.ids import TileId
from opticstream.model.modalities import MODALITIES, described, volume_names
from opticstream.pipeline.parameters import tile_hash
from opticstream.stages.tile import _process_tile as stage
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

SAMPLES, A_LINES, B_LINES = 192, 20, 30
SCAN = ScanSettings.model_validate(
    {
        "samples": SAMPLES,
        "b_lines": B_LINES,
        "illuminations": [{"name": "normal", "columns": 1, "rows": 1, "a_lines": A_LINES}],
    }
)
VOLUMES = ("dBI", "R3D", "O3D")


@pytest.fixture(params=["whole", "in blocks"])
def made(request, tmp_path, monkeypatch):
    """Return the results of one tile with volumes of both types; its first spectra are all zero."""
    if request.param == "in blocks":
        monkeypatch.setattr(stage, "SMALL_TILE", 0)
    counts = fringe_counts(samples=SAMPLES, a_lines=A_LINES, b_lines=B_LINES)
    counts[0] = 0
    raw = write_spectral_nifti(tmp_path / "t.nii", counts)
    return {
        volume_type: stage.process_tile(
            raw,
            TileId(1, 1),
            scan=SCAN,
            processing=ProcessingSettings.model_validate({"reconstruction": {"volume_type": volume_type}}),
            out_dir=tmp_path / volume_type,
        )
        for volume_type in ("float32", "int16")
    }


def test_values_differ_by_half_a_step_and_files_are_half_as_large(made):
    for name in VOLUMES:
        exact, stored = (made[kind].outputs[name].path for kind in ("float32", "int16"))
        assert stored.stat().st_size - 352 == (exact.stat().st_size - 352) // 2
        assert made["int16"].outputs[name].bytes == stored.stat().st_size
        assert nib.load(stored).get_data_dtype() == np.int16
        found, values = nib.load(stored).get_fdata(), read_nifti(exact)
        assert np.isfinite(found).all()
        step = {"dBI": 0.005, "R3D": 0.0025, "O3D": 0.005}[name]
        assert np.abs(found - values).max() <= step / 2 * 1.01
        np.testing.assert_allclose(read_nifti(stored), found, rtol=0, atol=1e-4)


def test_maps_and_figures_are_those_of_the_float32_volumes(made):
    one, other = made["float32"], made["int16"]
    assert one.figures == other.figures
    for name in set(one.outputs) - set(VOLUMES):
        assert one.outputs[name].sha256 == other.outputs[name].sha256, name


def test_stitching_reads_any_block_of_them(made):
    for name in VOLUMES:
        volume = TileVolume(made["int16"].outputs[name].path)
        values = np.asarray(read_nifti(volume.path)).T
        assert volume.shape == values.shape
        assert volume._whole is None, "read on demand"
        for z0, y0, planes, rows in ((0, 0, *volume.shape[:2]), (3, 5, 4, 7)):
            out = np.full((planes, rows, A_LINES), np.nan, np.float32)
            volume.read_into(out, z0, y0)
            np.testing.assert_allclose(out, values[z0 : z0 + planes, y0 : y0 + rows], rtol=0, atol=1e-4)


def test_steps_hold_every_value_that_a_volume_can_have():
    least = 10 * np.log10(np.finfo(np.float32).eps)  # of zeros
    largest = 10 * np.log10(2 * (65535.0 * 8192) ** 2)  # of a saturated camera with 8192 samples
    ends = {"dBI": (least, largest), "R3D": (0, 90), "O3D": (-90, 90)}
    assert {name for name in volume_names() if described(name).step} == set(ends)
    assert {name for name, known in MODALITIES.items() if known.step} == set(ends)
    for name, values in ends.items():
        known = described(name)
        integers = Steps(known.step, known.middle).integers(np.array(values, np.float32))
        np.testing.assert_allclose(integers * known.step + known.middle, values, atol=known.step / 2 * 1.01)


def test_values_beyond_the_range_become_its_end(tmp_path):
    path = tmp_path / "v.nii"
    with open_volume(path, (2, 1, 1), voxel_size_mm=(0.01, 0.01, 0.01), steps=Steps(0.005, 90.0)) as volume:
        volume.write(0, np.array([[[-1e9, 1e9]]], np.float32))
    np.testing.assert_allclose(read_nifti(path).ravel(), [90 - 32767 * 0.005, 90 + 32767 * 0.005], atol=1e-3)


def test_the_setting_makes_no_result_out_of_date():
    def config(volume_type):
        project = {"project_name": "p", "project_base_path": "/p"}
        reconstruction = {"volume_type": volume_type}
        return config_from_mapping({"project": project, "processing": {"reconstruction": reconstruction}})

    assert tile_hash(config("float32"), 0) == tile_hash(config("int16"), 0)
