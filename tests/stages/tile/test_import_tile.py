"""Recordings of others become raw tiles: what is read, how values become counts, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import config_from_mapping, load_project
from opticstream.config.template import recording_project
from opticstream.io.raw import SpectralShape, SpectralTile
from opticstream.io.spectra_files import BinaryShape, recording_at
from opticstream.model.errors import FileFormatError, InputError, MissingInputError, TileSizeError
from opticstream.model.ids import TileId
from opticstream.stages.tile._import_tile import Counts, facts_of_recording, import_tile

B_SCANS, A_LINES, SAMPLES = 4, 5, 64
TILE = TileId(1, 1)


@pytest.fixture
def counts():
    return np.random.default_rng(3).integers(500, 4000, (B_SCANS, A_LINES, SAMPLES)).astype(np.uint16)


@pytest.fixture
def config():
    import tomllib

    text = recording_project(project_name="r", samples=SAMPLES, channels=1, a_lines=A_LINES, b_lines=B_SCANS)
    return config_from_mapping(tomllib.loads(text))


def read(tile):
    with SpectralTile.open(tile, SpectralShape(SAMPLES, A_LINES, 1, B_SCANS)) as opened:
        ((_, block),) = opened.blocks(B_SCANS)
        return np.array(block[:, 0])


def test_counts_stay_as_they_are(tmp_path, counts, config):
    np.save(tmp_path / "c.npy", counts)
    made = import_tile(recording_at(tmp_path / "c.npy"), config, TILE, tmp_path / "raw")
    np.testing.assert_array_equal(read(made.tile), counts)
    assert (made.counts, made.largest_error) == (Counts(), 0.0)


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".csv", ".raw"])
def test_a_folder_with_one_array_for_each_b_scan_is_read_in_the_order_of_their_numbers(
    tmp_path, counts, config, suffix
):
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / ".DS_Store").write_text("x")
    (folder / "README.md").write_text("x")
    for number, scan in enumerate(counts, start=8):  # 8, 9, 10, 11: not the order of their texts
        path = folder / f"day1_scan{number}{suffix}"
        if suffix == ".npy":
            np.save(path, scan)
        elif suffix == ".raw":
            scan.astype("<u2").tofile(path)
        else:
            np.savetxt(path, scan, delimiter=";" if suffix == ".csv" else " ", fmt="%d", encoding="utf-8-sig")
    recording = recording_at(folder, binary=BinaryShape("uint16", (A_LINES, SAMPLES)))
    made = import_tile(recording, config, TILE, tmp_path / "raw", counts=Counts())
    np.testing.assert_array_equal(read(made.tile), counts)


def test_volts_are_spread_over_the_counts_and_scale_and_offset_are_kept(tmp_path, counts, config):
    volts = (0.9 + 1.6e-4 * counts).astype(np.float32)
    np.save(tmp_path / "v.npy", volts)
    made = import_tile(recording_at(tmp_path / "v.npy"), config, TILE, tmp_path / "raw")
    told = json.loads(made.sidecar.read_text())
    back = read(made.tile) * told["scale"] + told["offset"]
    assert np.abs(back - volts).max() <= 0.51 * told["scale"]
    assert told["largest_error"] == pytest.approx(np.abs(back - volts).max())
    assert (read(made.tile).min(), read(made.tile).max()) == (0, 65535)


def test_scale_and_offset_of_ones_own_give_the_owners_counts_back(tmp_path, counts, config):
    np.save(tmp_path / "v.npy", 0.9 + 1.6e-4 * counts.astype(np.float64))
    own = Counts(scale=1.6e-4, offset=0.9)
    made = import_tile(recording_at(tmp_path / "v.npy"), config, TILE, tmp_path / "raw", counts=own)
    np.testing.assert_array_equal(read(made.tile), counts)
    with pytest.raises(FileFormatError, match=r"becomes the count -?\d+ with the scale 1e-06"):
        import_tile(recording_at(tmp_path / "v.npy"), config, TILE, tmp_path / "2", counts=Counts(1e-6, 0.9))


def test_samples_that_lie_first_are_turned(tmp_path, counts, config):
    np.save(tmp_path / "t.npy", counts.swapaxes(1, 2))
    with pytest.raises(TileSizeError, match="--transpose turns it"):
        import_tile(recording_at(tmp_path / "t.npy"), config, TILE, tmp_path / "raw")
    made = import_tile(recording_at(tmp_path / "t.npy", transpose=True), config, TILE, tmp_path / "raw")
    np.testing.assert_array_equal(read(made.tile), counts)


def test_a_second_import_changes_nothing_and_another_tile_is_not_replaced(tmp_path, counts, config):
    np.save(tmp_path / "c.npy", counts)
    first = import_tile(recording_at(tmp_path / "c.npy"), config, TILE, tmp_path / "raw")
    before = first.tile.stat().st_mtime_ns
    assert import_tile(recording_at(tmp_path / "c.npy"), config, TILE, tmp_path / "raw").tile == first.tile
    assert first.tile.stat().st_mtime_ns == before
    np.save(tmp_path / "d.npy", counts + 1)
    with pytest.raises(InputError, match="another raw tile stands there and is left as it is"):
        import_tile(recording_at(tmp_path / "d.npy"), config, TILE, tmp_path / "raw")
    np.testing.assert_array_equal(read(first.tile), counts)


class TestRefused:
    @staticmethod
    def folder(tmp_path, names):
        folder = tmp_path / "scans"
        folder.mkdir()
        for name in names:
            (folder / name).write_text("1 2\n3 4\n")
        return folder

    def test_a_missing_b_scan_in_between(self, tmp_path):
        with pytest.raises(FileFormatError, match="B-scans 0 to 3, missing 1, 2"):
            recording_at(self.folder(tmp_path, ["000.txt", "003.txt"]))

    def test_two_files_for_one_b_scan(self, tmp_path):
        with pytest.raises(FileFormatError, match="are both B-scan 1"):
            recording_at(self.folder(tmp_path, ["a1.txt", "b01.txt"]))

    def test_several_kinds_of_files(self, tmp_path):
        with pytest.raises(FileFormatError, match=r"several kinds \(\.csv, \.txt\)"):
            recording_at(self.folder(tmp_path, ["1.txt", "2.csv"]))

    def test_nothing_there(self, tmp_path):
        with pytest.raises(MissingInputError, match="has no array"):
            recording_at(self.folder(tmp_path, ["notes.md"]))
        with pytest.raises(MissingInputError, match="no such file or folder"):
            recording_at(tmp_path / "gone")

    def test_b_scans_of_different_sizes(self, tmp_path):
        folder = self.folder(tmp_path, ["1.txt", "2.txt"])
        (folder / "2.txt").write_text("1 2 3\n4 5 6\n")
        with pytest.raises(TileSizeError, match=r"2\.txt: a B-scan of shape \(1, 2, 3\).*the first has \(1, 2, 2\)"):
            facts_of_recording(recording_at(folder))

    def test_values_that_are_no_numbers_or_not_finite(self, tmp_path):
        (tmp_path / "a.txt").write_text("1 2\nhello 4\n")
        with pytest.raises(FileFormatError, match=r"a\.txt: cannot be read as an array"):
            facts_of_recording(recording_at(tmp_path / "a.txt"))
        np.save(tmp_path / "n.npy", np.full((1, 2, 3), np.nan, np.float32))
        with pytest.raises(FileFormatError, match=r"holds nan at \(0, 0, 0\)"):
            facts_of_recording(recording_at(tmp_path / "n.npy"))
        np.save(tmp_path / "o.npy", np.array([[["x"]]], dtype=object), allow_pickle=True)
        with pytest.raises(FileFormatError, match=r"o\.npy"):
            facts_of_recording(recording_at(tmp_path / "o.npy"))

    def test_plain_values_of_another_size(self, tmp_path):
        np.zeros(7, "<u2").tofile(tmp_path / "a.raw")
        with pytest.raises(FileFormatError, match="holds 7 uint16 values, expected whole B-scans"):
            facts_of_recording(recording_at(tmp_path / "a.raw", binary=BinaryShape("uint16", (1, 2, 3))))
        with pytest.raises(FileFormatError, match="have no shape"):
            facts_of_recording(recording_at(tmp_path / "a.raw"))


def test_the_command_writes_a_project_file_that_fits_where_there_is_none(tmp_path, counts):
    np.save(tmp_path / "v.npy", counts.astype(np.float32) / 1000)
    arguments = ["import", str(tmp_path / "v.npy"), str(tmp_path / "p.toml"), str(tmp_path / "raw")]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert "4 B-scans, 1 channel, 5 A-lines, 64 samples" in first.output
    written = load_project(tmp_path / "p.toml")
    assert (written.name, written.scan.tile_shape(0), written.scan.channels) == ("p", (A_LINES, B_SCANS), 1)
    assert len(list((tmp_path / "raw").glob("*.nii"))) == 1
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert "wrote " + str(tmp_path / "p.toml") not in again.output


def test_the_volts_of_the_real_recording_become_its_counts(cscan, tmp_path):
    """The owners publish volts; their counts stand beside them here."""
    counts = np.load(cscan / "cscan_counts_u16.npy", mmap_mode="r")[:3]
    folder = tmp_path / "example"
    folder.mkdir()
    for number, scan in enumerate(counts):
        volts = 0.911889326028426 + 0.00016101816070692847 * (scan.astype(np.float64) - 5663)
        np.save(folder / f"{number:03d}.npy", volts.astype(np.float32))
    recording = recording_at(folder)
    facts = facts_of_recording(recording)
    own = Counts(0.00016101816070692847, 0.911889326028426 - 5663 * 0.00016101816070692847)
    for (name, values), expected in zip(recording.b_scans(), counts, strict=True):
        np.testing.assert_array_equal(own.of(values, name=name)[0], expected)
    assert (facts.b_scans, facts.a_lines, facts.samples) == (3, 100, 1024)
