"""Text as people's editors and programs save it, wherever a person hands us some."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import opticstream
from opticstream.config import load_project
from opticstream.io.calibration_files import read_vector
from opticstream.io.tileconfig import read_tile_configuration, tile_path
from opticstream.io.tilemap import TileMap, TilePlace, read_tilemap, write_template
from opticstream.model.errors import CalibrationError, ConfigurationError, FileFormatError
from opticstream.sim.settings import load_phantom

PROJECT = '[project]\nproject_name = "Hirn Ü"\nproject_base_path = "out"\n# Präparat\n[scan]\nsamples = 64\n'
CONFIGURATION = "# Präparat\ndim = 2\nTile Ä 1.tif; ; (0.0, 1.5)\nb.tif; ; (72.25, -3.0)\n"
POSITIONS = {"Tile Ä 1.tif": (0.0, 1.5), "b.tif": (72.25, -3.0)}
LINE_ENDS = {"Unix": "\n", "Windows": "\r\n", "old Mac": "\r"}


@pytest.mark.parametrize("ends", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
def test_a_project_file_is_read_with_any_line_ends_and_with_a_byte_order_mark(tmp_path, ends, mark):
    path = tmp_path / "p.toml"
    path.write_bytes(mark + PROJECT.replace("\n", ends).encode())
    config = load_project(path)
    assert (config.name, config.scan.samples) == ("Hirn Ü", 64)


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-16", "is UTF-16 text, expected UTF-8; save it as UTF-8"),
        ("utf-16-le", "is UTF-16 text without a byte-order mark"),
        ("utf-32", "is UTF-32 text, expected UTF-8"),
        ("latin-1", "line 2: is not UTF-8 text but seems to be Windows-1252 or Latin-1 (byte 0xdc); save it as UTF-8"),
        ("cp1252", "Windows-1252"),
    ],
)
def test_a_project_file_in_another_encoding_is_named_with_the_encoding(tmp_path, encoding, words):
    path = tmp_path / "p.toml"
    path.write_bytes(PROJECT.encode(encoding))
    with pytest.raises(ConfigurationError) as refused:
        load_project(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0", bytes(50), b"a = [" * 5000, b'x = "\xef\xbf"'])
def test_what_is_no_project_file_is_one_line(tmp_path, content):
    path = tmp_path / "p.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"p\.toml"):
        load_project(path)


def test_phantom_settings_are_read_like_project_files(tmp_path):
    path = tmp_path / "phantom.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 5\r\nslices = 2\r\n")
    assert load_phantom(path).seed == 5
    path.write_bytes("seed = 5".encode("utf-16"))
    with pytest.raises(ConfigurationError, match="UTF-16"):
        load_phantom(path)
    path.with_suffix(".json").write_bytes(b'\xef\xbb\xbf{"seed": 6}')
    assert load_phantom(path.with_suffix(".json")).seed == 6


@pytest.mark.parametrize("ends", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"])
def test_a_tile_configuration_is_read_in_any_encoding(tmp_path, ends, encoding):
    path = tmp_path / "TileConfiguration.txt"
    path.write_bytes(CONFIGURATION.replace("\n", ends).encode(encoding))
    assert {tile.name: tile.position_px for tile in read_tile_configuration(path)} == POSITIONS


def test_a_character_that_ends_lines_in_other_encodings_does_not_cut_a_name(tmp_path):
    path = tmp_path / "TileConfiguration.txt"
    path.write_bytes("dim = 2\na\u2026b.tif; ; (0, 1)\n".encode("cp1252"))
    assert read_tile_configuration(path)[0].name == "a\u2026b.tif"


@pytest.mark.parametrize(
    ("line", "name", "position"),
    [
        ("a.tif; ; (1,5, 2,25)", "a.tif", (1.5, 2.25)),
        ("a.tif; ; (1,5; 2,25)", "a.tif", (1.5, 2.25)),
        ("a.tif; ; (-1,5,  2)", "a.tif", (-1.5, 2.0)),
        ("a.tif; ; (1,2)", "a.tif", (1.0, 2.0)),
        ("a.tif;;(1.5,2.25)", "a.tif", (1.5, 2.25)),
        ("a.tif ; 0 ; ( 1.5e1 , 2 )", "a.tif", (15.0, 2.0)),
        ('"a b (1).tif"; ; (1.5, 2.25)', "a b (1).tif", (1.5, 2.25)),
        ("'a.tif'; ; (1.5, 2.25)   # the first", "a.tif", (1.5, 2.25)),
        ("a;b.tif; ; (1.5, 2.25)", "a;b.tif", (1.5, 2.25)),
        ("  \ta.tif; ; (1.5, 2.25)\t ", "a.tif", (1.5, 2.25)),
    ],
)
def test_lines_of_a_tile_configuration_are_read_where_they_cannot_be_mistaken(tmp_path, line, name, position):
    path = tmp_path / "TileConfiguration.txt"
    path.write_text(f"dim = 2\n{line}\n", encoding="utf-8")
    (tile,) = read_tile_configuration(path)
    assert (tile.name, tile.position_px) == (name, position)


def test_three_coordinates_are_not_taken_for_two_with_commas(tmp_path):
    path = tmp_path / "TileConfiguration.txt"
    path.write_text("dim = 3\na.tif; ; (1,2, 3)\nb.tif; ; (1,5, 2,5, 3,5)\n", encoding="utf-8")
    assert [tile.position_px for tile in read_tile_configuration(path)] == [(1.0, 2.0, 3.0), (1.5, 2.5, 3.5)]
    path.write_text("dim = 2\na.tif; ; (1,5,2,5)\n", encoding="utf-8")
    with pytest.raises(FileFormatError, match="line 2: expected 2 coordinates, got 4"):
        read_tile_configuration(path)


@pytest.mark.parametrize("name", ["tiles\\a b.tif", "C:\\data\\brain\\a b.tif", "\\\\server\\share\\a b.tif"])
def test_paths_of_windows_mean_the_file_that_is_there(tmp_path, name):
    configuration = tmp_path / "TileConfiguration.txt"
    folder = tmp_path / "tiles" if name.startswith("tiles") else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / "a b.tif").touch()
    assert tile_path(configuration, name) == folder / "a b.tif"
    (tmp_path / name).touch()  # a file that really has this name comes first
    assert tile_path(configuration, name) == tmp_path / name


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("ends", LINE_ENDS.values(), ids=LINE_ENDS)
def test_a_template_that_an_editor_saved_is_read(tmp_path, mark, ends):
    path = tmp_path / "tilemap-normal.j2"
    write_template(path, TileMap("normal", (8, 8), (2, 1), (TilePlace(1, (0.0, 0.5)), TilePlace(2, (8.0, 0.0)))))
    path.write_bytes(mark + path.read_bytes().replace(b"\n", ends.encode()))
    assert [place.position_px for place in read_tilemap(path).places] == [(0.0, 0.5), (8.0, 0.0)]
    path.write_bytes("metadata: {}".encode("utf-16"))
    with pytest.raises(FileFormatError, match="is UTF-16 text, expected UTF-8"):
        read_tilemap(path)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".dat"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "numbers", ["1.5\r\n2\r\n-3e2\r\n", "1.5, 2, -3e2", "1.5;2;-3e2\n", "1.5\r2\r-3e2", "1.5\t2 -3E2"]
)
def test_a_calibration_in_text_is_read(tmp_path, suffix, encoding, numbers):
    path = tmp_path / f"k{suffix}"
    path.write_bytes(numbers.encode(encoding))
    np.testing.assert_array_equal(read_vector(str(path)), [1.5, 2.0, -300.0])


def test_a_calibration_in_text_may_have_comments_and_says_which_line_is_wrong(tmp_path):
    path = tmp_path / "k.txt"
    path.write_text("% pixel, nm\n# made by hand\n0, 801.5\n1, 802.5 # the second\n", encoding="utf-8")
    np.testing.assert_array_equal(read_vector(str(path)), [[0, 801.5], [1, 802.5]])
    path.write_text("pixel, nm\n0, 801.5\n", encoding="utf-8")
    with pytest.raises(CalibrationError, match=r"k\.txt \(scan\.x\), line 1: 'pixel, nm' is not a list of numbers"):
        read_vector(str(path), setting="scan.x")
    path.write_text("0, 801.5\n1\n", encoding="utf-8")
    with pytest.raises(CalibrationError, match="the same on each"):
        read_vector(str(path))


def test_raw_values_are_not_taken_for_text(tmp_path):
    path = tmp_path / "k.dat"
    values = np.linspace(800, 900, 64)
    path.write_bytes(values.astype("<f8").tobytes())
    np.testing.assert_array_equal(read_vector(str(path)), values)


def text_is_opened_without_an_encoding(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if any(keyword.arg in ("encoding", None) for keyword in call.keywords):
        return False
    if name == "read_text":
        return True
    if name == "write_text":  # our own function takes (path, text) and writes UTF-8
        return isinstance(call.func, ast.Attribute)
    if name != "open":
        return False
    values = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
    modes = [v for v in values if isinstance(v, str) and v and set(v) <= set("rwxabt+")]
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    libraries = {"gzip", "igzip", "ts", "Image", "os", "Project", "ComplexTile", "SpectralTile", "self", "cls"}
    if isinstance(owner, ast.Name) and owner.id in libraries:
        return False
    return not any("b" in mode for mode in modes) and not (modes == [] and owner is not None and call.args)


def test_every_text_is_opened_with_its_encoding():
    """What a locale says must not matter: the service of a rig runs with LANG=C."""
    found = []
    for path in Path(opticstream.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and text_is_opened_without_an_encoding(node):
                found.append(f"{path}:{node.lineno}")
    assert found == []


def test_the_guard_against_texts_without_encoding_can_fail():
    bad = [
        'open("a")',
        "path.read_text()",
        'path.write_text("x")',
        'path.open("w")',
        "path.open()",
        'open(p, mode="a")',
    ]
    good = ['open("a", "rb")', 'path.read_text(encoding="utf-8")', 'write_text(path, "x")', 'path.open("rb")']
    judged = [text_is_opened_without_an_encoding(ast.parse(code, mode="eval").body) for code in (*bad, *good)]
    assert judged == [True] * len(bad) + [False] * len(good)


def test_a_locale_without_utf_8_does_not_matter(tmp_path):
    (tmp_path / "p.toml").write_bytes(b"\xef\xbb\xbf" + PROJECT.encode())
    (tmp_path / "TileConfiguration.txt").write_bytes(CONFIGURATION.encode())
    code = (
        "from pathlib import Path\n"
        "from opticstream.config import load_project\n"
        "from opticstream.io.tileconfig import read_tile_configuration, write_tile_configuration\n"
        "tiles = read_tile_configuration(Path('TileConfiguration.txt'))\n"
        "write_tile_configuration(Path('out.txt'), tiles)\n"
        "assert load_project('p.toml').name == 'Hirn \\u00dc'; assert tiles[0].name == 'Tile \\u00c4 1.tif'"
    )
    locale = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | locale, check=True, timeout=200)
    assert "Tile Ä 1.tif" in (tmp_path / "out.txt").read_text(encoding="utf-8")
