"""The grammar of raw file names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opticstream.io.names import FileNameGrammar
from opticstream.model.errors import ConfigurationError, FileNameError
from opticstream.model.ids import TileId
from opticstream.model.layout import AcquisitionLayout, IlluminationLayout

LAYOUT = AcquisitionLayout((IlluminationLayout("normal", 4, 3), IlluminationLayout("tilted", 5, 3)))
TEMPLATES = (
    "mosaic_{mosaic:03d}_image_{tile:04d}_spectral_{n:04d}.nii",
    "mosaic_{mosaic:03d}_image_{tile:04d}_processed_cropped.nii",
    "sub-{subject}_sample-slice{slice}_chunk-{tile}_acq-{acq}_spectral.nii",
    "{project}_{running:05d}.raw",
    "s{slice}_{illumination}_c{batch}_t{tile}.nii",
)


@given(st.sampled_from(TEMPLATES), st.integers(1, 20), st.integers(1, 12), st.integers(0, 99_999))
def test_a_name_is_read_back_as_the_tile_it_was_made_from(template, mosaic, tile, n):
    grammar = FileNameGrammar(template, LAYOUT)
    name = grammar.name_from_tile(TileId(mosaic, tile), n=n, project="p1", subject="I55")
    assert grammar.tile_from_name(name) == TileId(mosaic, tile)


def test_the_cameras_own_counter_is_ignored():
    grammar = FileNameGrammar(TEMPLATES[0], LAYOUT)
    assert grammar.tile_from_name("mosaic_002_image_0015_spectral_9731.nii") == TileId(2, 15)


@pytest.mark.parametrize("name", ["notes.txt", "mosaic_1.nii", "mosaic_001_image_0001_spectral_0000.nii.gz", ""])
def test_strangers_are_not_tiles(name):
    assert FileNameGrammar(TEMPLATES[0], LAYOUT).tile_from_name(name) is None


@pytest.mark.parametrize(
    ("template", "name", "words"),
    [
        (TEMPLATES[0], "mosaic_001_image_0013_spectral_0000.nii", "tile 13 is outside the 4 x 3 grid"),
        (TEMPLATES[0], "mosaic_000_image_0001_spectral_0000.nii", "must be a whole number from 1 up"),
        (TEMPLATES[2], "sub-1_sample-slice1_chunk-1_acq-sideways_spectral.nii", "unknown illumination 'sideways'"),
        (TEMPLATES[4], "s1_normal_c2_t1.nii", "batch 2 contradicts"),
    ],
)
def test_impossible_names_say_what_is_wrong(template, name, words):
    with pytest.raises(FileNameError, match=words):
        FileNameGrammar(template, LAYOUT).tile_from_name(name)


@pytest.mark.parametrize(
    "template", ["tile_{tile}.nii", "slice_{slice}_{tile}.nii", "{mosaic}.nii", "{mosaic}_{tile}_{colour}", "{mosaic"]
)
def test_templates_that_identify_no_tile_are_refused(template):
    with pytest.raises(ConfigurationError, match=r"scan\.file_name"):
        FileNameGrammar(template, LAYOUT)


def test_with_one_illumination_a_slice_is_enough():
    grammar = FileNameGrammar("{slice}_{tile}.nii", AcquisitionLayout((IlluminationLayout("normal", 2, 2),)))
    assert grammar.tile_from_name("3_4.nii") == TileId(3, 4)
