"""What `processing.reconstruction.fft` names transforms the spectra of small and of large tiles."""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import pytest

from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import TileId
from opticstream.stages.tile import _process_tile as stage
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

SCAN = ScanSettings.model_validate(
    {"samples": 192, "b_lines": 12, "illuminations": [{"name": "normal", "columns": 1, "rows": 1, "a_lines": 20}]}
)


@pytest.fixture(params=["small", "large"])
def map_with(request, tmp_path, monkeypatch):
    """Return a function of the settings of the reconstruction that makes a tile and returns one of its maps."""
    if request.param == "large":
        monkeypatch.setattr(stage, "SMALL_TILE", 0)
    raw = tmp_path / "raw.nii"
    write_spectral_nifti(raw, fringe_counts(samples=192, a_lines=20, b_lines=12))

    def made(**reconstruction):
        processing = ProcessingSettings.model_validate({"reconstruction": reconstruction})
        folder = tmp_path / reconstruction["fft"]
        result = stage.process_tile(raw, TileId(1, 1), scan=SCAN, processing=processing, out_dir=folder)
        return np.asanyarray(nib.load(result.outputs["aip"].path).dataobj)

    return made


@pytest.mark.parametrize("fft", ["numpy", "scipy"])
def test_another_library_gives_the_same_tile(map_with, fft):
    np.testing.assert_allclose(map_with(fft=fft), map_with(fft="native"), atol=1e-3)


def test_the_library_that_is_named_does_the_work(map_with, monkeypatch):
    import scipy.fft

    transform = scipy.fft.fft
    lengths = []
    monkeypatch.setattr(scipy.fft, "fft", lambda spectra: lengths.append(spectra.shape[-1]) or transform(spectra))
    map_with(fft="native")
    assert lengths == []
    map_with(fft="scipy", zero_padding=2)
    assert set(lengths) == {384}


def test_a_library_that_is_not_installed_is_named(map_with, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyfftw", None)
    monkeypatch.delitem(sys.modules, "pyfftw.interfaces.numpy_fft", raising=False)
    with pytest.raises(ConfigurationError, match='fft = "pyfftw" is not installed'):
        map_with(fft="pyfftw")
