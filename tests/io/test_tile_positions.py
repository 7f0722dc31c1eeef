"""Templates and tile configurations: what is written is what is read, and a fault is named with its line."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from opticstream.io.tileconfig import (
    ConfiguredTile,
    read_tile_configuration,
    tile_configuration_text,
    write_tile_configuration,
)
from opticstream.io.tilemap import TileMap, TilePlace, read_tilemap, render_template, tilemap_from_yaml, write_template
from opticstream.model.errors import FileFormatError, MissingInputError

PLACES = tuple(TilePlace(k, (k * 80.125, -k / 3), (0.125, 0.25), k == 2) for k in range(1, 5))
MAP = TileMap("normal", (96, 80), (2, 2), PLACES, {"method": "native", "verdict": {"rms_px": 0.1, "links": 3}})

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=6))
def test_positions_survive_a_tile_configuration_to_the_last_digit(tmp_path_factory, positions):
    path = tmp_path_factory.mktemp("t") / "TileConfiguration.txt"
    tiles = tuple(ConfiguredTile(f"tile {k}.tif", p) for k, p in enumerate(positions))
    assert read_tile_configuration(write_tile_configuration(path, tiles)) == tiles


def test_three_dimensions_and_series_numbers_are_read(tmp_path):
    path = tmp_path / "TileConfiguration.txt"
    path.write_text("dim = 3\na.tif; 2; (1.5, -2e2, 0)\n")
    assert read_tile_configuration(path) == (ConfiguredTile("a.tif", (1.5, -200.0, 0.0)),)
    assert tile_configuration_text([ConfiguredTile("a", (1.0, 2.0, 3.0))]).splitlines()[1] == "dim = 3"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("my tile (1), left.tif; ; (1.0, -2.5)", "my tile (1), left.tif"),
        ("C:\\scan 1\\tile_1.tif; ; (1.0, -2.5)", "C:\\scan 1\\tile_1.tif"),
        ("/data/é ü/tile.tif;;(1.0,-2.5)", "/data/é ü/tile.tif"),
        ('"tile 1.tif"; ; (1.0, -2.5) # moved', "tile 1.tif"),
        ("tile.ome.tif; 0; (1.0, -2.5)", "tile.ome.tif"),
        ("a = b.tif; ; (1.0, -2.5)", "a = b.tif"),
        ("tile.tif; ; (1.0E0, -2.5)", "tile.tif"),
    ],
)
@pytest.mark.parametrize("head", ["# c\ndim = 2\n\n", "dims=2\nmultiseries = false\n", ""])
def test_the_forms_that_fiji_and_people_write_are_read(tmp_path, head, line, name):
    path = tmp_path / "TileConfiguration.registered.txt"
    path.write_text(head + line + "\n", encoding="utf-8")
    assert read_tile_configuration(path) == (ConfiguredTile(name, (1.0, -2.5)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dim = 3\nmultiseries = true\na.czi; 0; (0, 0, 0)\n", "line 2: multiseries = true: several series"),
        ("dim = 2\na.tif; ; (1.0, 2.0\n", "line 2: expected 'name; ; "),
        ("dim = 2\na.tif; ; (1.0, x)\n", "line 2: '1.0, x' is not a list of numbers"),
        ("dim = 2\na.tif; ; (1.0, 2.0, 3.0)\n", "line 2: expected 2 coordinates, got 3"),
        ("dim = 2\na.tif; ; (nan, 2.0)\n", "line 2: positions must be finite"),
        ("dim = 4\n", "line 1: dim must be 2 or 3, got '4'"),
        ("dim = 2\na.tif; ; (0, 1)\na.tif; ; (0, 2)\n", "'a.tif' is listed 2 times"),
        ("# nothing\n", "lists no tile"),
    ],
)
def test_a_faulty_tile_configuration_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "TileConfiguration.txt"
    path.write_text(text)
    with pytest.raises(FileFormatError) as caught:
        read_tile_configuration(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_tile_configuration_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(MissingInputError):
        read_tile_configuration(tmp_path / "none.txt")
    (tmp_path / "b.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x81")
    with pytest.raises(FileFormatError, match="text file"):
        read_tile_configuration(tmp_path / "b.txt")


def test_windows_line_ends_names_with_blanks_and_comments_are_read(tmp_path):
    path = tmp_path / "TileConfiguration.txt"
    path.write_bytes(b"\xef\xbb\xbf# c\r\ndim = 2\r\n\r\nmy tile (1).tif; ; (1.5, -200.0)\r\n")
    assert read_tile_configuration(path) == (ConfiguredTile("my tile (1).tif", (1.5, -200.0)),)


def test_a_template_renders_to_the_tile_information_of_any_mosaic(tmp_path):
    path = write_template(tmp_path / "tilemap-normal.j2", MAP)
    text = render_template(
        path, base_dir="/data/it's 1", mosaic_id=7, modality="ret", scan_resolution=(0.01, 0.02), mask="m.nii.gz"
    )
    data = yaml.safe_load(text)
    assert data["metadata"]["scan_resolution"] == [0.01, 0.02]
    assert data["metadata"]["mask"] == "m.nii.gz"
    assert data["tiles"][1]["file"] == "/data/it's 1/mosaic_007_image_0002_ret.nii"
    assert [(t["tile"], t["x"], t["y"]) for t in data["tiles"]] == [(p.tile, *p.position_px) for p in PLACES]


def test_a_tile_map_survives_template_and_rendering(tmp_path):
    path = write_template(tmp_path / "tilemap-normal.j2", MAP)
    again = read_tilemap(path)
    assert (again.illumination, again.tile_shape, again.grid, again.source) == ("normal", (96, 80), (2, 2), MAP.source)
    assert [(p.tile, p.position_px, p.uncertainty_px, p.by_stage_only) for p in again.places] == [
        (p.tile, p.position_px, p.uncertainty_px, p.by_stage_only) for p in PLACES
    ]
    rendered = tmp_path / "tile_info.yaml"
    rendered.write_text(render_template(path, mosaic_id=3))
    assert read_tilemap(rendered).places == read_tilemap(path, mosaic_id=3).places


def test_the_template_is_the_same_bytes_every_time(tmp_path):
    one, other = write_template(tmp_path / "a.j2", MAP), write_template(tmp_path / "b.j2", MAP)
    assert one.read_bytes() == other.read_bytes()


def test_a_template_cannot_run_code(tmp_path):
    path = tmp_path / "evil.j2"
    path.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(FileFormatError, match="cannot be rendered"):
        render_template(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("format: opticstream-tilemap 1", "format: other"), "expected 'opticstream-tilemap 1'"),
        (("  - tile: 2", "  - tile: 1"), "every tile once"),
        (("    x: 80.125", "    x: .nan"), "not finite"),
        (("    x: 80.125", "    x: left"), "is not a tile map"),
        (("tiles:", "tilez:"), "is not a tile map"),
        (("metadata:", "metadata: ]"), "is not valid YAML"),
    ],
)
def test_a_damaged_template_is_named(tmp_path, change, message):
    path = write_template(tmp_path / "tilemap-normal.j2", MAP)
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    with pytest.raises(FileFormatError, match=message) as caught:
        read_tilemap(path)
    assert str(path) in str(caught.value)


def test_an_empty_text_is_no_tile_map():
    with pytest.raises(FileFormatError):
        tilemap_from_yaml("")


def test_an_absent_template_is_missing_input(tmp_path):
    with pytest.raises(MissingInputError):
        read_tilemap(tmp_path / "tilemap-normal.j2")
