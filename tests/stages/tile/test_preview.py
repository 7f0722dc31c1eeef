"""A preview shows what the quality picture shows, from a part of the A-lines."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from opticstream.config import load_project
from opticstream.model.errors import InputError, TileSizeError
from opticstream.model.ids import TileId
from opticstream.stages.tile import _preview, draw_preview, preview_path, process_tile


@pytest.fixture
def tile(acquired):
    config = load_project(acquired / "project.toml")
    return config, next((acquired / "raw").glob("mosaic_001_image_0002*"))


def picture(path):
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("L"), dtype=float)


def test_a_preview_looks_like_the_quality_picture(tile, tmp_path, monkeypatch):
    config, source = tile
    monkeypatch.setattr(_preview, "LARGEST", 256 * 2 * 64 * 64 // 4)  # every other A-line of every other B-line
    preview = draw_preview(source, TileId(1, 2), scan=config.scan, processing=config.processing, out_dir=tmp_path)
    assert preview == preview_path(tmp_path, TileId(1, 2))
    shown = picture(preview)
    done = process_tile(source, TileId(1, 2), scan=config.scan, processing=config.processing, out_dir=tmp_path)
    whole = picture(done.outputs["qc"].path)
    assert shown.shape == whole.shape
    assert np.corrcoef(shown.ravel(), whole.ravel())[0, 1] > 0.8
    assert not preview.exists(), "the quality picture takes its place"


def test_a_file_that_is_cut_or_compressed_has_no_preview(tile, tmp_path):
    config, source = tile
    cut = tmp_path / "cut.nii"
    cut.write_bytes(source.read_bytes()[:-1000])
    for path, error in ((cut, TileSizeError), (tmp_path / "a.nii.gz", InputError)):
        with pytest.raises(error, match=path.name):
            draw_preview(path, TileId(1, 2), scan=config.scan, processing=config.processing, out_dir=tmp_path)
    assert not preview_path(tmp_path, TileId(1, 2)).exists()
