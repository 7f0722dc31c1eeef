"""Complex tiles with the spectra beside them: the spectra are archived and judged, the complex tile is processed."""

import gzip
import hashlib

import numpy as np
import pytest

from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.model.errors import MissingInputError, TileSizeError
from opticstream.model.ids import TileId
from opticstream.stages.tile._process_tile import process_tile
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

TILE = TileId(1, 1)
SAMPLES, A_LINES, B_LINES = 128, 9, 7
PROCESSING = ProcessingSettings.model_validate({"reconstruction": {"save_complex": True}})


def scan(**changes):
    return ScanSettings.model_validate(
        {
            "samples": SAMPLES,
            "b_lines": B_LINES,
            "illuminations": [{"name": "normal", "columns": 2, "rows": 2, "a_lines": A_LINES}],
            **changes,
        }
    )


COMPANION = scan(raw_format="complex", spectral_file_name="m{mosaic}_t{tile}_spectral.nii")


@pytest.fixture
def rig_files(tmp_path):
    """Return a complex tile as a rig makes it, and the spectra beside it."""
    counts = fringe_counts(samples=SAMPLES, a_lines=A_LINES, b_lines=B_LINES)
    counts[0, 0, :2, :16] = 65535  # saturated, which a complex tile cannot tell
    spectral = write_spectral_nifti(tmp_path / "m1_t1_spectral.nii", counts)
    made = process_tile(spectral, TILE, scan=scan(), processing=PROCESSING, out_dir=tmp_path / "rig")
    return made.outputs["complex"].path, spectral, made


def test_the_spectra_are_archived_and_the_complex_tile_gives_the_maps(tmp_path, rig_files):
    source, spectral, direct = rig_files
    archive = tmp_path / "archive" / "tile_OCT.nii.gz"
    result = process_tile(
        source,
        TILE,
        scan=COMPANION,
        processing=PROCESSING,
        out_dir=tmp_path / "p",
        archive_to=archive,
        spectra=spectral,
    )
    assert gzip.decompress(archive.read_bytes()) == spectral.read_bytes()
    assert result.raw_sha256 == hashlib.sha256(spectral.read_bytes()).hexdigest()
    assert result.raw_bytes == spectral.stat().st_size
    assert result.figures["saturated_fraction"] == pytest.approx(direct.figures["saturated_fraction"])
    assert result.figures["saturated_fraction"] > 0
    assert result.outputs["complex"].bytes == source.stat().st_size
    for name in ("aip", "ret", "biref", "surf"):
        assert result.outputs[name].sha256 == direct.outputs[name].sha256, name


def test_without_an_archive_the_spectra_are_still_checked(tmp_path, rig_files):
    source, spectral, _ = rig_files
    whole = {"scan": COMPANION, "processing": PROCESSING, "out_dir": tmp_path / "p"}
    result = process_tile(source, TILE, spectra=spectral, **whole)
    assert result.raw_sha256 is None
    assert result.figures["saturated_fraction"] > 0


def test_bad_spectra_are_refused_by_name_and_leave_no_archive(tmp_path, rig_files):
    source, spectral, _ = rig_files
    archive = tmp_path / "archive" / "tile_OCT.nii.gz"
    whole = {"scan": COMPANION, "processing": PROCESSING, "out_dir": tmp_path / "p", "archive_to": archive}
    short = tmp_path / "short.nii"
    short.write_bytes(spectral.read_bytes()[:-10])
    with pytest.raises(TileSizeError, match=r"short\.nii: holds \d+ bytes, expected \d+"):
        process_tile(source, TILE, spectra=short, **whole)
    with pytest.raises(MissingInputError, match=r"gone\.nii: no such file"):
        process_tile(source, TILE, spectra=tmp_path / "gone.nii", **whole)
    assert not archive.exists()


def test_the_setting_goes_with_complex_tiles_only():
    with pytest.raises(ValueError, match=r"spectral_file_name = 'x\{tile\}' needs raw_format = \"complex\""):
        scan(spectral_file_name="x{tile}")
    same = {"raw_format": "complex", "file_name": "a{running}.nii", "spectral_file_name": "a{running}.nii"}
    with pytest.raises(ValueError, match="are the same"):
        scan(**same)
    assert COMPANION.archived_format == "nifti"
    assert scan(raw_format="complex").archived_format == "complex"
    assert np.array_equal(scan().tile_shape(0), COMPANION.tile_shape(0))
