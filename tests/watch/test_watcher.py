"""From files on a disk to "this batch is ready"."""

from __future__ import annotations

import gzip
import os
import random
import socket
from pathlib import Path

import numpy as np
import pytest

from opticstream.config import config_from_mapping
from opticstream.io.packed12 import packed12_from_samples
from opticstream.io.raw import SpectralTile
from opticstream.model.errors import MissingInputError
from opticstream.model.ids import BatchId, TileId
from opticstream.testing.raw_tiles import nifti_header, write_spectral_nifti
from opticstream.watch import Watcher


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def settings(columns=2, rows=2, **scan):
    return config_from_mapping(
        {
            "project": {"project_name": "p", "project_base_path": "/out"},
            "scan": {
                "samples": 32, "channels": 2, "b_lines": 3, "grid_size_y": rows, "raw_format": "packed12",
                "file_name": "mosaic_{mosaic:03d}_image_{tile:04d}_{n}.raw",
                "illuminations": [{"name": "normal", "columns": columns, "a_lines": 4}], **scan,
            },
        }
    ).scan  # fmt: skip


SIZE = 32 * 4 * 2 * 3 * 3 // 2


def put(folder, tile, *, mosaic=1, n=0, size=SIZE):
    path = folder / f"mosaic_{mosaic:03d}_image_{tile:04d}_{n}.raw"
    path.write_bytes(bytes(size))
    return path


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watcher(tmp_path, clock):
    return Watcher(tmp_path, settings(), stable_s=5, stall_s=60, clock=clock)


def test_a_column_is_ready_once_all_its_files_have_stood_still(tmp_path, watcher, clock):
    put(tmp_path, 1)
    assert watcher.poll() == []
    put(tmp_path, 2)
    clock.now += 6
    assert watcher.poll() == []  # the second file was seen just now
    clock.now += 6
    (found,) = watcher.poll()
    assert found.batch == BatchId(1, 1)
    assert found.files == {1: "mosaic_001_image_0001_0.raw", 2: "mosaic_001_image_0002_0.raw"}
    assert found.problems == {}
    clock.now += 60
    assert watcher.poll() == []


def test_a_growing_file_is_waited_for(tmp_path, watcher, clock):
    put(tmp_path, 1)
    for size in (100, 500, SIZE):
        put(tmp_path, 2, size=size)
        clock.now += 4
        assert watcher.poll() == []
    clock.now += 4
    assert watcher.poll() == []
    clock.now += 2
    assert len(watcher.poll()) == 1


def test_a_file_that_stays_too_short_is_handed_on_when_it_stalls(tmp_path, watcher, clock):
    put(tmp_path, 1)
    put(tmp_path, 2, size=100)
    watcher.poll()
    clock.now += 30
    assert watcher.poll() == []
    clock.now += 31
    (found,) = watcher.poll()
    assert set(found.files) == {1, 2}


def test_two_files_for_one_tile_are_a_problem_of_that_tile_only(tmp_path, watcher, clock):
    put(tmp_path, 1, n=1)
    put(tmp_path, 1, n=2)
    put(tmp_path, 2)
    watcher.poll()
    clock.now += 6
    (found,) = watcher.poll()
    assert list(found.problems) == [1]
    assert found.problems[1].kind == "duplicate"
    assert "2 files have its name: mosaic_001_image_0001_1.raw, mosaic_001_image_0001_2.raw" in found.problems[1].text
    assert "scan.file_name" in found.problems[1].text


def test_strangers_are_ignored_and_impossible_names_are_told(tmp_path, watcher, clock):
    (tmp_path / "notes.txt").write_text("hello")
    put(tmp_path, 99)
    watcher.poll()
    assert watcher.known_batches() == set()
    assert list(watcher.rejected_names) == ["mosaic_001_image_0099_0.raw"]
    assert "outside the 2 x 2 grid" in watcher.rejected_names["mosaic_001_image_0099_0.raw"]


def test_an_incomplete_column_that_stalls_is_told_once(tmp_path, watcher, clock):
    put(tmp_path, 1)
    watcher.poll()
    clock.now += 31
    watcher.poll()
    (stalled,) = watcher.stalled()
    assert stalled.missing == (2,)
    assert "batch 1 of mosaic 1: no file for tile 2" in str(stalled)
    assert watcher.stalled() == []


def test_at_the_end_an_incomplete_column_is_taken_with_its_missing_tiles_as_problems(tmp_path, watcher, clock):
    put(tmp_path, 1)
    watcher.poll()
    (found,) = watcher.give_up_waiting()
    assert found.files == {1: "mosaic_001_image_0001_0.raw"}
    assert found.problems[2].kind == "missing"
    assert "no raw file arrived" in found.problems[2].text


class TestFilesThatDoNotCome:
    """A column does not wait for ever: it is handed on as it is, with what is missing as problems."""

    @staticmethod
    def kinds(found):
        return {number: problem.kind for number, problem in found.problems.items()}

    def test_nothing_new_for_the_stall_time(self, tmp_path, watcher, clock):
        put(tmp_path, 1)
        watcher.poll()
        clock.now += 59
        assert watcher.poll() == []
        clock.now += 2
        (found,) = watcher.poll()
        assert found.batch == BatchId(1, 1)
        assert found.files == {1: "mosaic_001_image_0001_0.raw"}
        assert self.kinds(found) == {2: "missing"}
        assert watcher.poll() == []

    def test_a_column_that_the_rig_has_gone_past_is_handed_on_after_a_minute(self, tmp_path, clock):
        watcher = Watcher(tmp_path, settings(), stable_s=5, stall_s=1e6, clock=clock)
        put(tmp_path, 1)
        watcher.poll()
        clock.now += 1000
        assert watcher.poll() == [], "the rig may have paused"
        put(tmp_path, 3)
        put(tmp_path, 4)
        watcher.poll()
        clock.now += 6
        assert [found.batch for found in watcher.poll()] == [BatchId(1, 2)]
        assert watcher.poll() == []
        clock.now += 59
        assert watcher.poll() == []
        clock.now += 2
        assert [found.batch for found in watcher.poll()] == [BatchId(1, 1)]

    def test_a_rig_that_pauses_long_between_tiles_is_given_three_times_its_pause(self, tmp_path, clock):
        watcher = Watcher(tmp_path, settings(rows=3), stable_s=5, stall_s=1e6, clock=clock)
        put(tmp_path, 1)
        watcher.poll()
        clock.now += 100
        put(tmp_path, 2)
        watcher.poll()
        for tile in (4, 5, 6):
            put(tmp_path, tile)
        watcher.poll()
        clock.now += 6
        assert len(watcher.poll()) == 1
        assert watcher.poll() == []
        clock.now += 290
        assert watcher.poll() == []
        clock.now += 11
        assert [found.batch for found in watcher.poll()] == [BatchId(1, 1)]

    def test_illuminations_taken_in_turn_do_not_overtake_each_other(self, tmp_path, clock):
        both = [{"name": name, "columns": 2, "a_lines": 4} for name in ("normal", "tilted")]
        watcher = Watcher(tmp_path, settings(illuminations=both), stable_s=5, stall_s=1e6, clock=clock)
        put(tmp_path, 1)
        for tile in (1, 2):
            put(tmp_path, tile, mosaic=2)
        watcher.poll()
        clock.now += 6
        assert [found.batch for found in watcher.poll()] == [BatchId(2, 1)]
        clock.now += 1000
        assert watcher.poll() == []

    def test_a_column_of_which_nothing_comes_is_missing_once_later_ones_are_there(self, tmp_path, clock):
        watcher = Watcher(tmp_path, settings(columns=3), stable_s=5, stall_s=1e6, clock=clock)
        for tile in (1, 2, 5, 6):
            put(tmp_path, tile)
        watcher.poll()
        clock.now += 6
        assert [found.batch for found in watcher.poll()] == [BatchId(1, 1), BatchId(1, 3)]
        assert watcher.poll() == []
        clock.now += 61
        (found,) = watcher.poll()
        assert found.batch == BatchId(1, 2)
        assert found.files == {}
        assert self.kinds(found) == {3: "missing", 4: "missing"}

    def test_a_rig_that_stops_in_the_middle_of_a_mosaic_does_not_make_the_rest_missing(self, tmp_path, watcher, clock):
        put(tmp_path, 1)
        put(tmp_path, 2)
        watcher.poll()
        clock.now += 6
        assert len(watcher.poll()) == 1
        clock.now += 1e6
        assert watcher.poll() == []
        assert not watcher.waits()

    def test_where_nobody_writes_any_more_the_rest_of_the_slice_is_missing(self, tmp_path, clock):
        both = [{"name": name, "columns": 2, "a_lines": 4} for name in ("normal", "tilted")]
        scan = settings(illuminations=both)
        watcher = Watcher(tmp_path, scan, stable_s=5, stall_s=60, live=False, clock=clock)
        put(tmp_path, 1)
        put(tmp_path, 2)
        put(tmp_path, 3, mosaic=5)
        watcher.poll()
        clock.now += 6
        assert [found.batch for found in watcher.poll()] == [BatchId(1, 1)]
        assert watcher.waits()
        clock.now += 60
        rest = {found.batch: len(found.problems) for found in watcher.poll()}
        assert rest == {
            BatchId(1, 2): 2, BatchId(2, 1): 2, BatchId(2, 2): 2,
            BatchId(5, 1): 2, BatchId(5, 2): 1, BatchId(6, 1): 2, BatchId(6, 2): 2,
        }, "of slice 2 nothing has come: it was not acquired, or is elsewhere"  # fmt: skip
        assert not watcher.waits()

    def test_a_file_that_comes_after_its_column_was_handed_on_is_found(self, tmp_path, watcher, clock):
        put(tmp_path, 1)
        watcher.poll()
        clock.now += 61
        assert len(watcher.poll()) == 1
        tile = TileId(1, 2)
        watcher.look_again_at([tile])
        assert watcher.whole_files(tile) is None
        path = put(tmp_path, 2, size=100)
        watcher.poll()
        clock.now += 6
        watcher.poll()
        assert watcher.whole_files(tile) is None
        path.write_bytes(bytes(SIZE))
        watcher.poll()
        clock.now += 6
        assert watcher.poll() == []
        assert watcher.whole_files(tile) == (path.name,)
        assert watcher.quiet_s(BatchId(1, 1)) == 6
        assert watcher.found_again(BatchId(1, 1)).problems == {}


def test_a_watcher_that_is_started_again_does_not_announce_twice(tmp_path, clock):
    put(tmp_path, 1)
    put(tmp_path, 2)
    again = Watcher(tmp_path, settings(), stable_s=0, settled=lambda batch: batch == BatchId(1, 1), clock=clock)
    assert again.poll() == []
    put(tmp_path, 3)
    put(tmp_path, 4)
    assert [found.batch for found in again.poll()] == [BatchId(1, 2)]


def test_files_that_vanish_are_forgotten(tmp_path, watcher, clock):
    path = put(tmp_path, 1)
    put(tmp_path, 2)
    watcher.poll()
    path.unlink()
    clock.now += 6
    assert watcher.poll() == []
    assert watcher.incomplete()[0].missing == (1,)


def test_tiles_in_subfolders_are_found(tmp_path, watcher, clock):
    for tile in (1, 2):
        (tmp_path / f"day{tile}").mkdir()
        put(tmp_path / f"day{tile}", tile)
    watcher.poll()
    clock.now += 6
    (found,) = watcher.poll()
    assert found.files == {1: "day1/mosaic_001_image_0001_0.raw", 2: "day2/mosaic_001_image_0002_0.raw"}


def test_linked_subfolders_are_searched_once_whatever_loops_they_make(tmp_path, clock):
    raw, elsewhere = tmp_path / "raw", tmp_path / "disk 2 [old]"
    for folder in (raw / "day1", elsewhere):
        folder.mkdir(parents=True)
    put(raw / "day1", 1)
    put(elsewhere, 2)
    (raw / "a day 1").symlink_to("day1")
    (raw / "day2").symlink_to(elsewhere)
    (raw / "day2 again").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(raw)
    (raw / "day1" / "loop").symlink_to("..")
    (raw / "gone").symlink_to(tmp_path / "nowhere")
    watcher = Watcher(raw, settings(columns=1), stable_s=5, stall_s=60, clock=clock)
    watcher.poll()
    clock.now += 6
    (found,) = watcher.poll()
    assert not found.problems
    assert found.files[1] == "day1/mosaic_001_image_0001_0.raw"
    assert found.files[2].rpartition("/")[2] == "mosaic_001_image_0002_0.raw"


def test_a_tile_below_a_folder_whose_name_is_not_utf8_is_told_and_not_taken(tmp_path, watcher, clock):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    folder.mkdir()
    put(folder, 1)
    assert watcher.poll() == []
    assert "UTF-8" in watcher.rejected_names["d\udcff/mosaic_001_image_0001_0.raw"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingInputError, match="nowhere"):
        Watcher(tmp_path / "nowhere", settings()).poll()


def test_a_file_that_stands_still_is_opened_once_however_often_the_folder_is_looked_at(tmp_path, clock, monkeypatch):
    opened: list[str] = []

    def counted(path, *arguments, **options):
        opened.append(path.name)
        return original(path, *arguments, **options)

    original = SpectralTile.open
    monkeypatch.setattr(SpectralTile, "open", counted)
    watcher = Watcher(tmp_path, settings(columns=2, rows=3), stable_s=5, clock=clock)
    names = [put(tmp_path, tile).name for tile in (1, 2, 4, 5)]  # one tile of each column is missing
    for _ in range(4):
        assert watcher.poll() == []
        clock.now += 3
    assert sorted(opened) == sorted(names)


class TestSpectraBesideComplexTiles:
    """Both files of a tile are waited for."""

    @pytest.fixture
    def pairs(self, tmp_path, clock):
        scan = settings(
            raw_format="complex", file_name="m{mosaic}_t{tile}_complex.nii", spectral_format="packed12",
            spectral_file_name="m{mosaic}_t{tile}_{n}.raw",
        )  # fmt: skip
        return Watcher(tmp_path, scan, stable_s=5, stall_s=60, clock=clock)

    @staticmethod
    def put(folder, tile, *, spectra=True, n=0):
        shape = (2 * 2 * 4, 3, 5)
        complex_tile = folder / f"m1_t{tile}_complex.nii"
        complex_tile.write_bytes(nifti_header(shape, datatype=16) + bytes(4 * 2 * 2 * 4 * 3 * 5))
        if spectra:
            (folder / f"m1_t{tile}_{n}.raw").write_bytes(bytes(SIZE))

    def test_a_column_is_ready_once_both_files_of_each_tile_stand(self, tmp_path, pairs, clock):
        self.put(tmp_path, 1)
        self.put(tmp_path, 2, spectra=False)
        pairs.poll()
        clock.now += 6
        assert pairs.poll() == []
        assert pairs.incomplete()[0].missing == (2,)
        self.put(tmp_path, 2)
        pairs.poll()
        clock.now += 6
        (found,) = pairs.poll()
        assert found.files == {1: "m1_t1_complex.nii", 2: "m1_t2_complex.nii"}
        assert found.spectra == {1: "m1_t1_0.raw", 2: "m1_t2_0.raw"}
        assert found.problems == {}

    def test_a_missing_spectral_file_is_a_problem_of_its_tile_at_the_end(self, tmp_path, pairs, clock):
        self.put(tmp_path, 1)
        self.put(tmp_path, 2, spectra=False)
        pairs.poll()
        clock.now += 6
        pairs.poll()
        (found,) = pairs.give_up_waiting()
        assert list(found.problems) == [2]
        assert "no raw and spectral file arrived" in found.problems[2].text
        assert found.files[2] == "m1_t2_complex.nii"

    def test_two_spectral_files_of_a_tile_are_a_problem_that_names_the_setting(self, tmp_path, pairs, clock):
        self.put(tmp_path, 1)
        self.put(tmp_path, 2)
        self.put(tmp_path, 2, n=7)
        pairs.poll()
        clock.now += 6
        (found,) = pairs.poll()
        assert "scan.spectral_file_name" in found.problems[2].text


class CompressedRig:
    """Writes packed tiles as gzip files, the way a rig does: bit by bit, with pauses."""

    def __init__(self, folder, clock):
        self.folder = folder
        self.clock = clock
        scan = settings(rows=1, file_name="mosaic_{mosaic:03d}_image_{tile:04d}_{n}.raw.gz")
        self.watcher = Watcher(folder, scan, stable_s=5, stall_s=60, clock=clock)
        counts = np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8).tobytes()
        self.content = gzip.compress(counts)
        self.path = folder / "mosaic_001_image_0001_0.raw.gz"

    def write(self, content):
        self.path.write_bytes(content)
        self.watcher.poll()

    def wait(self, seconds):
        self.clock.now += seconds
        return self.watcher.poll()


@pytest.fixture
def rig(tmp_path, clock):
    return CompressedRig(tmp_path, clock)


@pytest.mark.parametrize("missing", [1, 4, 8, 9, 500])
def test_a_compressed_file_without_its_end_is_waited_for_and_then_a_problem_of_its_tile(rig, missing):
    rig.write(rig.content[:-missing])
    assert rig.wait(30) == []
    (incomplete,) = rig.watcher.incomplete()
    assert "raw.gz" in incomplete.unfinished[0]
    (found,) = rig.wait(31)
    assert found.files == {1: rig.path.name}


def test_a_compressed_file_whose_writer_pauses_for_long_and_goes_on_is_taken_when_it_is_whole(rig):
    for part in (300, len(rig.content) // 2, len(rig.content) - 3):
        rig.write(rig.content[:part])
        assert rig.wait(40) == []
    rig.write(rig.content)
    assert rig.wait(4) == []
    (found,) = rig.wait(2)
    assert found.files == {1: rig.path.name}


def test_a_compressed_file_that_has_its_size_but_not_yet_its_bytes_is_waited_for(rig):
    half = rig.content[: len(rig.content) // 2]
    rig.write(half + bytes(len(rig.content) - len(half)))
    assert rig.wait(40) == []
    rig.write(rig.content)
    assert len(rig.wait(6)) == 1


@pytest.mark.parametrize("how", ["two members", "padded with zeros", "block-wise, with an empty member at the end"])
def test_other_whole_gzip_files_are_taken_at_once(rig, how):
    data = gzip.decompress(rig.content)
    rig.write(
        {
            "two members": gzip.compress(data[:700]) + gzip.compress(data[700:]),
            "padded with zeros": rig.content + bytes(512),
            "block-wise, with an empty member at the end": rig.content + gzip.compress(b""),
        }[how]
    )
    assert len(rig.wait(6)) == 1


def test_the_end_of_a_whole_compressed_file_is_found_without_decompressing_it(rig, monkeypatch):
    from opticstream.io import raw

    monkeypatch.setattr(raw, "_read_into", lambda *_args, **_options: pytest.fail("the file is decompressed"))
    rig.write(rig.content)
    assert len(rig.wait(6)) == 1


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "dangling link", "loop of links", "link to a device"])
def test_the_watch_goes_on_whatever_lies_under_the_name_of_a_tile(tmp_path, clock, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    watcher = Watcher(tmp_path, settings(rows=1), stable_s=5, stall_s=60, clock=clock)
    odd, good = "mosaic_001_image_0001_0.raw", put(tmp_path, 2)
    with socket.socket(socket.AF_UNIX) as listening:
        match kind:
            case "folder":
                os.mkdir(odd)
            case "pipe":
                os.mkfifo(odd)
            case "socket":
                listening.bind(odd)
            case "dangling link":
                os.symlink("nowhere", odd)
            case "loop of links":
                os.symlink(odd, odd)
            case "link to a device":
                os.symlink("/dev/zero", odd)
        watcher.poll()
        clock.now += 61
        found = watcher.poll()
    assert good.name in [name for one in found for name in one.files.values()]
    if kind in ("pipe", "socket", "link to a device"):
        assert odd in [name for one in found for name in one.files.values()]
    if kind == "folder":
        assert "is a folder with the name of a tile" in watcher.rejected_names[odd]


def test_a_file_that_vanishes_between_listing_and_opening_stops_nothing(tmp_path, watcher, clock, monkeypatch):
    put(tmp_path, 1)
    second = put(tmp_path, 2)
    watcher.poll()
    judge = watcher._problem

    def vanish(file):
        second.unlink(missing_ok=True)
        return judge(file)

    monkeypatch.setattr(watcher, "_problem", vanish)
    clock.now += 6
    assert watcher.poll() == []
    monkeypatch.setattr(watcher, "_problem", judge)
    put(tmp_path, 2)
    watcher.poll()
    clock.now += 6
    assert len(watcher.poll()) == 1


def test_a_problem_that_has_passed_is_not_told(tmp_path, watcher, clock, monkeypatch):
    put(tmp_path, 1)
    put(tmp_path, 2)
    judge = watcher._problem
    monkeypatch.setattr(watcher, "_problem", lambda file: f"{file.name}: cannot be read: Permission denied")
    watcher.poll()
    clock.now += 30
    watcher.poll()
    assert len(watcher.incomplete()) == 1
    monkeypatch.setattr(watcher, "_problem", judge)
    clock.now += 31
    (found,) = watcher.poll()
    assert found.problems == {}


@pytest.mark.parametrize("end", [".nii.gz", ".raw.gz", ".nii"])
def test_no_damage_of_a_raw_file_ends_the_watch(tmp_path, clock, end):
    """Any bytes changed, cut or doubled, in header, compressed blocks or trailer."""
    name = f"mosaic_001_image_0001_0{end}"
    scan = settings(
        rows=1,
        columns=1,
        raw_format="packed12" if end == ".raw.gz" else "nifti",
        file_name="mosaic_{mosaic:03d}_image_{tile:04d}_{n}" + end,
    )
    counts = np.random.default_rng(1).integers(0, 4096, (3, 2, 4, 32)).astype(np.uint16)
    data = packed12_from_samples(counts).tobytes()
    if end != ".raw.gz":
        data = write_spectral_nifti(tmp_path / "whole", counts).read_bytes()
        (tmp_path / "whole").unlink()
    whole = gzip.compress(data) if end.endswith(".gz") else data
    rng = random.Random(5)
    announced = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(0, rng.choice((20, 200, len(content))))] = rng.randrange(256)
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        if rng.random() < 0.1:
            content += bytes(content)
        (tmp_path / name).write_bytes(content)
        watcher = Watcher(tmp_path, scan, stable_s=0, stall_s=0, clock=clock)
        (found,) = watcher.poll()
        announced += found.files == {1: name}
    assert announced == 300


def test_columns_are_open_from_the_first_file_of_a_mosaic_until_it_is_whole(tmp_path, watcher, clock):
    assert watcher.open_batches() == []
    put(tmp_path, 1)
    watcher.poll()
    assert watcher.open_batches() == [BatchId(1, 1), BatchId(1, 2)]
    clock.now += 10
    assert watcher.folder_quiet_s() == 10
    for tile in (2, 3, 4):
        put(tmp_path, tile)
    watcher.poll()
    assert watcher.folder_quiet_s() == 0
    clock.now += 6
    watcher.poll()
    assert watcher.open_batches() == []


def test_columns_of_an_earlier_slice_are_no_longer_open(tmp_path, watcher, clock):
    put(tmp_path, 1)
    put(tmp_path, 1, mosaic=2)
    watcher.poll()
    assert watcher.open_batches() == [BatchId(2, 1), BatchId(2, 2)]


# -- tiles of columns that are not complete ----------------------------------------------------------------------------


def test_a_tile_is_told_of_half_a_second_after_its_last_byte_and_before_its_column_is_whole(tmp_path, watcher, clock):
    put(tmp_path, 1)
    watcher.poll()
    assert watcher.arriving() == []
    clock.now += 0.5
    assert watcher.poll() == []
    (found,) = watcher.arriving()
    assert (found.batch, found.files) == (BatchId(1, 1), {1: "mosaic_001_image_0001_0.raw"})


def test_a_tile_that_grows_is_not_told_of_until_it_has_its_size(tmp_path, watcher, clock):
    for size in (SIZE // 3, SIZE // 2):
        put(tmp_path, 1, size=size)
        watcher.poll()
        clock.now += 0.6
        watcher.poll()
        assert watcher.arriving() == []
    put(tmp_path, 1)
    watcher.poll()
    clock.now += 0.6
    watcher.poll()
    assert len(watcher.arriving()) == 1


def test_a_tile_that_is_written_again_is_whole_only_after_it_has_stood_still_again(tmp_path, watcher, clock):
    path = put(tmp_path, 1)
    watcher.poll()
    clock.now += 0.6
    watcher.poll()
    assert len(watcher.arriving()) == 1
    os.utime(path, ns=(5, 5))
    watcher.poll()
    assert watcher.arriving() == []


def settled(watcher):
    """Return for each tile of the second column that is told of whether its file has stood still."""
    arriving = [found for found in watcher.arriving() if found.batch == BatchId(1, 2)]
    return {tile: tile not in found.unsettled for found in arriving for tile in found.files}


@pytest.fixture
def used_to(tmp_path, watcher, clock):
    """A watcher that has seen a whole file."""
    put(tmp_path, 1)
    watcher.poll()
    clock.now += 0.6
    watcher.poll()
    assert len(watcher.arriving()) == 1
    return watcher


def written(folder, watcher, clock, *sizes):
    """Have the third file get these sizes one after the other, each seen by the watcher."""
    for size in sizes:
        put(folder, 3, size=size)
        watcher.poll()
        clock.now += 0.2


def stand_still(watcher, clock):
    clock.now += 0.5
    watcher.poll()


def test_a_file_that_grows_to_its_size_is_told_of_at_once_as_unsettled(tmp_path, used_to, clock):
    for size in (SIZE // 4, 3 * SIZE // 4, SIZE):
        assert settled(used_to) == {}
        put(tmp_path, 3, size=size)
        used_to.poll()
        clock.now += 0.2
    assert settled(used_to) == {3: False}
    clock.now += 0.3
    used_to.poll()
    assert settled(used_to) == {3: True}


def test_a_file_whose_size_is_reserved_first_is_told_of_when_it_has_stood_still(tmp_path, used_to, clock):
    path = put(tmp_path, 3, size=0)
    used_to.poll()
    for moment in range(5):
        path.write_bytes(bytes(SIZE))
        os.utime(path, ns=(moment, moment))
        clock.now += 0.2
        used_to.poll()
        assert settled(used_to) == {}
    stand_still(used_to, clock)
    assert settled(used_to) == {3: True}


def test_a_file_whose_times_are_whole_seconds_is_told_of_when_it_has_stood_still(tmp_path, used_to, clock):
    for size in (3 * SIZE // 4, SIZE):
        path = put(tmp_path, 3, size=size)
        os.utime(path, (1000, 1000))
        used_to.poll()
        clock.now += 0.2
    assert settled(used_to) == {}
    stand_still(used_to, clock)
    assert settled(used_to) == {3: True}


def test_a_file_that_is_locked_until_it_is_closed_is_told_of_when_it_has_stood_still(
    tmp_path, used_to, clock, monkeypatch
):
    def locked(path, *_shape, **_format):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(SpectralTile, "open", locked)
        written(tmp_path, used_to, clock, 3 * SIZE // 4, SIZE)
    assert settled(used_to) == {}
    stand_still(used_to, clock)
    assert settled(used_to) == {3: True}


def test_a_file_that_changes_after_it_had_its_size_is_unsettled_again(tmp_path, used_to, clock):
    for size in (3 * SIZE // 4, SIZE):
        path = put(tmp_path, 3, size=size)
        used_to.poll()
        clock.now += 0.6
    used_to.poll()
    assert settled(used_to) == {3: True}
    os.utime(path, ns=(5, 5))
    used_to.poll()
    assert settled(used_to) == {3: False}


def test_a_file_that_grows_beyond_its_size_is_not_told_of(tmp_path, used_to, clock):
    written(tmp_path, used_to, clock, 3 * SIZE // 4, SIZE, SIZE + 1)
    assert settled(used_to) == {}


def test_no_file_is_opened_while_it_is_written(tmp_path, used_to, clock, monkeypatch):
    monkeypatch.setattr(SpectralTile, "open", None)
    written(tmp_path, used_to, clock, *(eighth * SIZE // 8 for eighth in range(1, 8)))


def test_the_first_file_of_an_illumination_is_told_of_when_it_has_stood_still(tmp_path, watcher, clock):
    written(tmp_path, watcher, clock, 3 * SIZE // 4, SIZE)
    assert settled(watcher) == {}
    stand_still(watcher, clock)
    assert settled(watcher) == {3: True}


@pytest.mark.parametrize("last", ["complex", "spectra"])
def test_a_tile_of_two_files_is_told_of_when_both_have_their_size(tmp_path, clock, last):
    scan = settings(
        raw_format="complex",
        spectral_format="packed12",
        file_name="mosaic_{mosaic:03d}_image_{tile:04d}_{n}.nii",
        spectral_file_name="mosaic_{mosaic:03d}_image_{tile:04d}_{n}.raw",
    )
    watcher = Watcher(tmp_path, scan, stable_s=5, stall_s=60, clock=clock)
    header = nifti_header((16, 3, 8), datatype=16)
    files = {"complex": ("nii", header + bytes(16 * 3 * 8 * 4)), "spectra": ("raw", bytes(SIZE))}

    def written(tile, name, share=1.0):
        suffix, content = files[name]
        (tmp_path / f"mosaic_001_image_{tile:04d}_0.{suffix}").write_bytes(content[: int(share * len(content))])
        watcher.poll()
        clock.now += 0.2

    for name in files:
        written(1, name)
    clock.now += 0.5
    for name in sorted(files, key=lambda name: name == last):
        for share in (0.8, 1.0):
            assert settled(watcher) == {}
            written(3, name, share)
    assert settled(watcher) == {3: False}
    stand_still(watcher, clock)
    assert settled(watcher) == {3: True}


def test_a_tile_with_two_files_is_not_told_of(tmp_path, watcher, clock):
    put(tmp_path, 1)
    put(tmp_path, 1, n=1)
    put(tmp_path, 2, mosaic=2)
    for _ in range(2):
        watcher.poll()
        clock.now += 0.6
    watcher.poll()
    assert [found.batch for found in watcher.arriving()] == [BatchId(2, 1)]


def test_columns_that_are_ready_are_no_longer_arriving(tmp_path, watcher, clock):
    put(tmp_path, 1)
    put(tmp_path, 2)
    watcher.poll()
    clock.now += 5
    assert len(watcher.poll()) == 1
    assert watcher.arriving() == []
