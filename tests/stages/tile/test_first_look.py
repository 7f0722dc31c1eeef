"""A first look shows what the tile will show, and the tile is the same with and without it, byte for byte."""

from __future__ import annotations

import json

import numpy as np
import pytest

from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.io.paths import LOOK_DESCRIPTION, look_folder, look_picture
from opticstream.io.tile_thumbnail import thumbnail_path
from opticstream.model.errors import InputError, TileSizeError
from opticstream.model.ids import TileId
from opticstream.stages.tile import _process_tile as stage
from opticstream.stages.tile import drop_look, look_at_tile, process_tile, read_look, write_look
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

TILE = TileId(1, 2)
A_LINES, B_LINES, SAMPLES = 20, 60, 192


def scan(**changes):
    illumination = {"name": "normal", "columns": 1, "rows": 2, "a_lines": A_LINES}
    given = {"samples": SAMPLES, "b_lines": B_LINES, "illuminations": [illumination], **changes}
    return ScanSettings.model_validate(given)


def processing(reconstruction=None, enface=None):
    return ProcessingSettings.model_validate({"reconstruction": reconstruction or {}, "enface": enface or {}})


@pytest.fixture
def raw(tmp_path):
    counts = fringe_counts(samples=SAMPLES, a_lines=A_LINES, b_lines=B_LINES)
    return write_spectral_nifti(tmp_path / "raw.nii", counts)


def made(source, out, settings, of_scan, *, look=None):
    result = process_tile(
        source, TILE, scan=of_scan, processing=settings, out_dir=out, archive_to=out / "a.nii.gz", look=look
    )
    files = {name: (output.path.read_bytes(), output.sha256) for name, output in result.outputs.items()}
    return files, result.figures, result.flags, result.raw_sha256, thumbnail_path(out, TILE).read_bytes()


def look(source, out, settings, of_scan, key="key"):
    made = look_at_tile(source, TILE, scan=of_scan, processing=settings, out_dir=out, key=key)
    write_look(made, out, TILE, verdict=made.figures.verdict(settings.quality))
    return made


OPTIONS = {
    "defaults": {},
    "sheet, integers, complex": {
        "enface": {"surface": "robust"},
        "reconstruction": {"volume_type": "int16", "save_complex": True},
    },
    "unwrapped": {"enface": {"surface": "find", "birefringence_method": "unwrap", "modalities": ["aip", "biref"]}},
    "no volumes": {"reconstruction": {"save_volumes": False}},
}


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_tile_is_the_same_with_and_without_a_first_look(tmp_path, raw, monkeypatch, size, options):
    monkeypatch.setattr(stage, "SMALL_TILE", 0 if size == "large" else 1 << 30)
    settings, of_scan = processing(**options), scan()
    at_once = made(raw, tmp_path / "at once", settings, of_scan)
    out = tmp_path / "look first"
    shown = look(raw, out, settings, of_scan)
    assert look_picture(out, TILE).read_bytes() == at_once[0]["qc"][0]
    assert not (out / "mosaic-01" / "processed").exists(), "a look is no result"
    assert shown == read_look(out, TILE, key="key")
    assert made(raw, out, settings, of_scan, look=shown) == at_once


def test_maps_are_not_made_again(tmp_path, raw, monkeypatch):
    settings = processing()
    shown = look(raw, tmp_path, settings, scan())
    monkeypatch.setattr(stage, "_look_of", None)
    wanted = []
    real = stage._reconstructed
    monkeypatch.setattr(stage, "_reconstructed", lambda *given: wanted.append(set(given[1].targets)) or real(*given))
    made(raw, tmp_path, settings, scan(), look=shown)
    assert wanted == [{"dBI", "R3D", "O3D"}]


def test_complex_tiles_are_the_same_with_and_without_a_first_look(tmp_path):
    from opticstream.testing.raw_tiles import nifti_header

    values = np.random.default_rng(3).normal(size=(4 * A_LINES, B_LINES, 88)).astype("<f4")
    source = tmp_path / "complex.nii"
    source.write_bytes(nifti_header(values.shape, datatype=16) + values.tobytes(order="F"))
    of_scan, settings = scan(raw_format="complex"), processing()
    at_once = made(source, tmp_path / "at once", settings, of_scan)
    shown = look(source, tmp_path / "look first", settings, of_scan)
    assert made(source, tmp_path / "look first", settings, of_scan, look=shown) == at_once


def test_a_look_at_another_file_or_a_damaged_one_is_none(tmp_path, raw):
    look(raw, tmp_path, processing(), scan(), key="yesterday's file")
    assert read_look(tmp_path, TILE, key="today's file") is None
    picture = look_picture(tmp_path, TILE)
    picture.write_bytes(picture.read_bytes()[:-1])
    assert read_look(tmp_path, TILE, key="yesterday's file") is None
    look(raw, tmp_path, processing(), scan(), key="today's file")
    assert read_look(tmp_path, TILE, key="today's file") is not None
    (look_folder(tmp_path, TILE) / LOOK_DESCRIPTION).write_text("{}")
    assert read_look(tmp_path, TILE, key="today's file") is None
    drop_look(tmp_path, TILE)
    assert not look_folder(tmp_path, TILE).exists()


def test_a_look_says_the_figures_and_what_quality_control_doubts(tmp_path, raw):
    settings = ProcessingSettings.model_validate({"quality": {"signal_db": 500.0}})
    shown = look(raw, tmp_path, settings, scan())
    about = json.loads((look_folder(tmp_path, TILE) / LOOK_DESCRIPTION).read_text())
    assert about["figures"] == shown.figures.as_dict()
    assert any("weak" in one for one in about["flags"])


def test_a_file_that_is_cut_or_packed_has_no_first_look(tmp_path, raw):
    cut = tmp_path / "cut.nii"
    cut.write_bytes(raw.read_bytes()[:-1000])
    for path, error in ((cut, TileSizeError), (tmp_path / "a.nii.gz", InputError)):
        with pytest.raises(error, match=path.name):
            look(path, tmp_path, processing(), scan())
    assert not look_folder(tmp_path, TILE).exists()
