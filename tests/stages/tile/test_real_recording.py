"""A real spectral-domain recording (one channel, with its owners' own calibration) through the chain."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from opticstream.compute.reconstruction import jones_from_spectra, spectral_plan
from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.model.ids import TileId
from opticstream.stages.tile._process_tile import process_tile
from opticstream.testing.raw_tiles import write_spectral_nifti

FULL_WIDTH_PADDING = 16


def width_at_half_maximum(profile: np.ndarray) -> float:
    """Return the full width at half maximum of the highest peak, in samples, between interpolated crossings."""
    peak = int(profile.argmax())
    half = profile[peak] / 2

    def crossing(step):
        at = peak
        while profile[at + step] >= half:
            at += step
        return at + step * (profile[at] - half) / (profile[at] - profile[at + step])

    return crossing(1) - crossing(-1)


def mirror_width_bins(cscan: Path, which: int, *, positions=None, dispersion=None) -> float:
    spectra = np.load(cscan / "mirror_and_dark_spectra_f32.npz")
    mirror = spectra[f"example_mirror{which}"].astype(np.float64)
    dark = spectra["example_dark_ref"] + spectra[f"example_dark_sample{which}"] - spectra["example_dark_not"]
    plan = spectral_plan(
        samples=1024,
        channels=1,
        background="none",
        residual_background=False,
        positions=positions,
        dispersion_rad=dispersion,
        window="hann",
        zero_padding=FULL_WIDTH_PADDING,
    )
    jones = jones_from_spectra((mirror - dark).reshape(1, 1, 1, -1), plan)
    return width_at_half_maximum(np.abs(jones[0, 0, 0])) / FULL_WIDTH_PADDING


def test_k_linearization_narrows_the_mirror_peaks_to_the_owners_figures(cscan):
    owners = np.load(cscan / "calib_example.npz")
    assert mirror_width_bins(cscan, 1) == pytest.approx(7.4, abs=0.1)
    assert mirror_width_bins(cscan, 2) == pytest.approx(15.0, abs=0.1)
    for which in (1, 2):
        assert mirror_width_bins(cscan, which, positions=owners["klinear"]) == pytest.approx(2.4, abs=0.05)


def test_dispersion_narrows_the_mirror_on_its_own_side_of_zero_delay(cscan):
    owners = np.load(cscan / "calib_example.npz")
    positions, phase = owners["klinear"], owners["dispersion"]
    widths = {
        (which, sign): mirror_width_bins(cscan, which, positions=positions, dispersion=sign * phase)
        for which in (1, 2)
        for sign in (1, -1)
    }
    assert widths[1, 1] < 2.32
    assert widths[2, -1] < 2.32
    assert widths[1, -1] > 2.9
    assert widths[2, 1] > 2.9


@pytest.fixture(scope="module")
def tile_file(tmp_path_factory, cscan):
    counts = np.load(cscan / "cscan_counts_u16.npy", mmap_mode="r")
    return write_spectral_nifti(tmp_path_factory.mktemp("cscan") / "cscan.nii", counts[:, np.newaxis])


def _scan(cscan: Path, calibrated: bool) -> ScanSettings:
    files = cscan / "calib_example.npz"
    calibration = {
        "linearization": {"method": "klinear", "files": [f"{files}#klinear"]},
        "dispersion_files": [f"{files}#dispersion"],
    }
    return ScanSettings.model_validate(
        {
            "samples": 1024,
            "channels": 1,
            "b_lines": 100,
            "grid_size_y": 1,
            "illuminations": [{"name": "normal", "columns": 1, "a_lines": 100}],
            "calibration": calibration if calibrated else {},
        }
    )


def _sharpness(intensity_db: np.ndarray) -> float:
    """Return the mean over A-lines of peak over mean of linear intensity in the sample, as in the recording's notes."""
    linear = 10 ** (intensity_db[3:, :, 20:] / 10)
    return float((linear.max(axis=2) / linear.mean(axis=2)).mean())


def test_the_recording_gives_volume_surface_and_maps_and_calibration_sharpens_it(tmp_path, tile_file, cscan):
    processing = ProcessingSettings.model_validate(
        {
            "reconstruction": {"volume_modalities": ["dBI"], "cut": 0},
            "enface": {"modalities": ["aip", "mip", "surf"]},
        }
    )
    volumes = {}
    for calibrated in (True, False):
        result = process_tile(
            tile_file,
            TileId(1, 1),
            scan=_scan(cscan, calibrated),
            processing=processing,
            out_dir=tmp_path / str(calibrated),
        )
        assert set(result.outputs) == {"dBI", "aip", "mip", "surf", "surfraw", "qc"}
        volumes[calibrated] = np.asanyarray(nib.load(result.outputs["dBI"].path).dataobj)
        surface = np.asanyarray(nib.load(result.outputs["surf"].path).dataobj)
        assert volumes[calibrated].shape == (100, 100, 512)
        if calibrated:
            assert 25 < np.median(surface) < 65  # "a rough scattering surface around bins 35..60"
    assert _sharpness(volumes[True]) > 1.2 * _sharpness(volumes[False])
