"""Small and large tiles make the same products of the same settings."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from opticstream.compute.reconstruction import TileProfiles
from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.model.ids import TileId
from opticstream.model.modalities import volume_names
from opticstream.stages.tile import _process_tile as stage
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

SCAN = ScanSettings.model_validate(
    {"samples": 192, "b_lines": 12, "illuminations": [{"name": "normal", "columns": 1, "rows": 1, "a_lines": 20}]}
)
ANGLES = {"ori", "O3D"}


@pytest.mark.parametrize(
    "settings",
    [
        {"enface": {"surface": 9999}},  # deeper than the tile
        {"enface": {"surface": 20, "offset": 3, "depth": 25}},
        {"enface": {"surface": "find"}, "reconstruction": {"flip_z": False, "save_complex": True}},
        {"enface": {"surface": 20}, "reconstruction": {"flip_phase": True, "phase_offset_deg": 250.0, "fft": "numpy"}},
        {"enface": {"surface": 20}, "reconstruction": {"zero_padding": 2, "window": "hann", "save_volumes": False}},
        {"enface": {"surface": 20, "modalities": ["aip"]}, "reconstruction": {"volume_modalities": ["dBI"]}},
    ],
)
def test_small_and_large_tiles_go_through_the_same_options(tmp_path, monkeypatch, settings):
    raw = tmp_path / "raw.nii"
    write_spectral_nifti(raw, fringe_counts(samples=192, a_lines=20, b_lines=12))
    processing = ProcessingSettings.model_validate(settings)

    def made(name):
        result = stage.process_tile(raw, TileId(1, 1), scan=SCAN, processing=processing, out_dir=tmp_path / name)
        return {
            product: np.asanyarray(nib.load(output.path).dataobj).astype(np.float64)
            for product, output in result.outputs.items()
            if output.path.suffix == ".nii"
        }

    small = made("small")
    monkeypatch.setattr(stage, "SMALL_TILE", 0)
    large = made("large")
    assert small.keys() == large.keys()
    for product, expected in small.items():
        assert large[product].shape == expected.shape, product
        difference = large[product] - expected
        if product in ANGLES:
            difference = (difference + 90) % 180 - 90
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.median(np.abs(difference)) < 1e-4 * scale, product


def test_every_volume_is_made_of_a_small_tile_and_by_the_engine():
    jones = np.ones((2, 2, 2, 4), np.complex64)
    profiles = TileProfiles(jones=jones, depth_step_um=2.5, wavelength_um=1.3)
    for name in volume_names():
        assert profiles.volume(name).shape == (2, 2, 4)
