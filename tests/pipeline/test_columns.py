"""Tiles are processed as they come, before their column is complete, and nothing of the bookkeeping changes."""

from __future__ import annotations

import errno
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.pipeline.one_column import BATCH, PROJECT

from opticstream.config import DeploymentSettings, load_project
from opticstream.io.paths import LOOK_DESCRIPTION, look_folder, look_picture, strip_path
from opticstream.io.tile_thumbnail import thumbnail_path, thumbnail_size
from opticstream.model.events import BatchProcessed, BatchReady
from opticstream.model.ids import TileId
from opticstream.pipeline import batches, columns, first_looks
from opticstream.pipeline.arriving import all_arriving, arriving, lag_of, note_arriving
from opticstream.pipeline.batches import process_batch
from opticstream.pipeline.columns import process_tiles
from opticstream.pipeline.jobs import PROCESS_BATCH
from opticstream.pipeline.project import Project
from opticstream.state.verify import verify
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

FIRST, SECOND = TileId(1, 1), TileId(1, 2)


def name_of(tile: int) -> str:
    return f"mosaic_001_image_{tile:04d}.nii"


class Rig:
    """A rig whose tiles come one by one, and what the watcher makes of them."""

    def __init__(self, folder: Path, **deployment) -> None:
        self.raw = folder / "raw"
        self.raw.mkdir(parents=True)
        (folder / "p.toml").write_text(PROJECT, encoding="utf-8")
        settings = {"lease_s": 5, "attempts": 1, "stable_s": 0.05, "stall_s": 60, **deployment}
        self.project = Project.open(load_project(folder / "p.toml"), deployment=DeploymentSettings(**settings))
        self.come: list[int] = []

    def write(self, tile: int, *, seed: int | None = None) -> Path:
        counts = fringe_counts(channels=1, seed=tile if seed is None else seed)
        return write_spectral_nifti(self.raw / name_of(tile), counts)

    def brings(self, tile: int, *, now: float | None = None) -> None:
        """A tile comes whole."""
        if not (self.raw / name_of(tile)).exists():
            self.write(tile)
        self.come.append(tile)
        note_arriving(self.project, self.event(), now=now)

    def fills(self, tile: int) -> None:
        """The file of a tile has its size, and has not stood still yet."""
        self.write(tile)
        note_arriving(self.project, self.event(tile), unsettled={tile})

    def event(self, *more: int) -> BatchReady:
        files = {tile: name_of(tile) for tile in (*self.come, *more)}
        return self.project.event(BatchReady, BATCH, raw_folder=str(self.raw), files=files)

    def completes(self) -> BatchReady:
        """The column is found complete."""
        event = self.event()
        self.project.facts.record(BATCH, "ready", {"detail": {"event": event.payload()}})
        return event

    def times_made(self, tile: TileId) -> int:
        return sum(one.event == "computed" for one in self.project.facts.journal.history(tile))

    def why_ended(self) -> str:
        released = [one for one in self.project.facts.journal.history(BATCH) if one.event == "released"]
        return str(released[-1].why)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def no_waiting(_s: float) -> None:
    raise AssertionError("the run waited")


def test_the_first_tile_of_a_column_is_processed_before_the_second_has_come(rig):
    rig.brings(1)
    wanted = itertools.cycle([True])
    assert process_tiles(rig.project, BATCH, place_is_wanted=lambda: next(wanted), sleep=no_waiting) == []
    assert rig.project.facts.facts_of(FIRST) == {"processed"}
    assert rig.project.paths.tile_product(FIRST, "qc").with_suffix(".jpg").exists()
    assert rig.project.facts.facts_of(BATCH).isdisjoint({"ready", "processed", "failed"})


def test_a_tile_that_comes_while_the_run_waits_is_taken_by_it(rig):
    rig.brings(1)
    process_tiles(rig.project, BATCH, sleep=lambda _s: rig.brings(2))
    assert rig.project.facts.has(SECOND, "processed")
    assert rig.why_ended() == "ahead of its column: all its tiles are done"


def test_a_run_that_was_called_while_the_first_tile_is_written_waits_for_it(rig):
    note_arriving(rig.project, rig.event())
    waits = iter(range(40))  # longer than for a column of which nothing is known

    def comes(_s: float) -> None:
        if next(waits) == 39:
            rig.brings(1)
            rig.brings(2)

    now = itertools.count(0.0, 0.1)
    process_tiles(rig.project, BATCH, clock=lambda: next(now), sleep=comes)
    assert rig.project.facts.has(SECOND, "processed")


def test_the_batch_takes_tiles_that_are_done_as_they_are_and_records_as_ever(rig):
    rig.brings(1)
    process_tiles(rig.project, BATCH, sleep=lambda _s: rig.brings(2))
    announced = process_batch(rig.project, rig.completes())
    assert [event for event in announced if isinstance(event, BatchProcessed)]
    assert [rig.times_made(tile) for tile in (FIRST, SECOND)] == [1, 1]
    record = rig.project.facts.read(BATCH, "processed")
    assert record is not None
    assert record.detail["failed_tiles"] == []
    assert {note["outcome"] for note in record.detail["tiles"].values()} == {"ok"}
    assert list(all_arriving(rig.project)) == [], "what was noted of a column goes when it is done"
    assert verify(rig.project.facts) == []


def test_records_do_not_depend_on_whether_tiles_were_taken_as_they_came(tmp_path):
    found = []
    for name, ahead in (("whole", False), ("ahead", True)):
        (tmp_path / name).mkdir()
        rig = Rig(tmp_path / name)
        rig.brings(1)
        if ahead:
            process_tiles(rig.project, BATCH, place_is_wanted=lambda: True)
        rig.brings(2)
        process_batch(rig.project, rig.completes())
        record = rig.project.facts.read(BATCH, "processed")
        assert record is not None
        checksums = {file.path: (file.size, file.sha256) for file in record.outputs}
        found.append((checksums, record.detail["tiles"], rig.project.facts.facts_of(BATCH)))
    assert found[0] == found[1]


def test_a_column_that_becomes_complete_while_its_run_waits_is_finished_by_that_run(rig):
    rig.brings(1)

    def last_tile_comes(_s: float) -> None:
        rig.brings(2)
        rig.completes()

    announced = process_tiles(rig.project, BATCH, sleep=last_tile_comes)
    assert any(isinstance(event, BatchProcessed) for event in announced)
    assert rig.project.facts.has(BATCH, "processed")


def test_a_run_ends_when_no_tile_comes_and_says_so_in_the_journal(rig):
    rig.brings(1)
    now = itertools.count(0.0, 1.0)
    assert process_tiles(rig.project, BATCH, patience_s=30, clock=lambda: next(now), sleep=lambda _s: None) == []
    assert "no tile has come for 30 s" in rig.why_ended()
    rig.brings(2)
    process_tiles(rig.project, BATCH)
    assert rig.project.facts.has(SECOND, "processed"), "the column is taken up again when tiles come"


def test_a_run_of_a_column_of_which_nothing_is_known_ends_in_seconds(rig):
    now = itertools.count(0.0, 1.0)
    process_tiles(rig.project, BATCH, clock=lambda: next(now), sleep=lambda _s: None)
    assert "no tile is known to have come" in rig.why_ended()
    assert next(now) < 10


def test_a_waiting_run_leaves_its_place_to_another_one_but_works_first(rig):
    rig.brings(1)
    rig.brings(2)
    asked = []
    process_tiles(rig.project, BATCH, place_is_wanted=lambda: bool(asked.append(1)) or True, sleep=no_waiting)
    assert rig.project.facts.has(FIRST, "processed")
    assert rig.project.facts.has(SECOND, "processed")
    assert asked == [], "a run with work to do does not ask who waits"


def test_a_column_that_another_run_looks_after_is_left_to_it(rig):
    rig.brings(1)
    with rig.project.facts.claim(BATCH, PROCESS_BATCH.claim, lease_s=60):
        assert process_tiles(rig.project, BATCH, sleep=no_waiting) == []
    assert not rig.project.facts.has(FIRST, "processed")


def test_a_tile_that_cannot_be_processed_ahead_is_judged_by_the_run_of_its_column(rig):
    path = rig.write(1)
    path.write_bytes(path.read_bytes()[:-100])
    rig.brings(1)
    rig.brings(2)
    now = itertools.count(0.0, 20.0)
    process_tiles(rig.project, BATCH, clock=lambda: next(now), sleep=lambda _s: None)
    assert rig.project.facts.facts_of(FIRST) == set(), "it may still be written"
    assert rig.project.facts.has(SECOND, "processed")
    rig.write(1)
    process_batch(rig.project, rig.completes())
    assert rig.project.facts.facts_of(FIRST) == {"processed"}


def test_a_bad_tile_is_not_tried_again_and_again_while_its_file_stays_the_same(rig, monkeypatch):
    path = rig.write(1)
    path.write_bytes(path.read_bytes()[:-100])
    rig.brings(1)
    tried = []
    real = batches.process_tile
    monkeypatch.setattr(batches, "process_tile", lambda *given, **more: (tried.append(given), real(*given, **more))[1])
    now = itertools.count(0.0, 1.0)
    process_tiles(rig.project, BATCH, clock=lambda: next(now), sleep=lambda _s: None)
    assert len(tried) == 1


def test_a_tile_that_is_rewritten_after_it_was_processed_is_made_again_with_its_column(rig):
    rig.brings(1)
    process_tiles(rig.project, BATCH, sleep=lambda _s: rig.brings(2))
    before = rig.project.facts.read(FIRST, "processed")
    path = rig.write(1, seed=77)
    os.utime(path, ns=(1, 1))
    process_batch(rig.project, rig.completes())
    after = rig.project.facts.read(FIRST, "processed")
    assert before is not None
    assert after is not None
    assert before.detail["raw_sha256"] != after.detail["raw_sha256"]
    assert rig.times_made(SECOND) == 1


def test_tiles_that_a_run_has_done_before_it_died_are_not_done_again(rig, monkeypatch):
    rig.brings(1)
    rig.brings(2)
    real = batches.process_tile

    def dies_at_the_second(source, tile, **more):
        if tile == SECOND:
            raise KeyboardInterrupt
        return real(source, tile, **more)

    with monkeypatch.context() as patched:
        patched.setattr(batches, "process_tile", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            process_tiles(rig.project, BATCH)
    process_tiles(rig.project, BATCH)
    assert [rig.times_made(tile) for tile in (FIRST, SECOND)] == [1, 1]


def test_a_full_disk_ends_the_run_and_parks_nothing(rig, monkeypatch):
    rig.brings(1)

    def full(*_given, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(batches, "process_tile", full)
    with pytest.raises(OSError, match="No space"):
        process_tiles(rig.project, BATCH)
    assert rig.project.facts.facts_of(FIRST) == set()


def test_nothing_is_processed_ahead_where_the_settings_say_so(tmp_path):
    rig = Rig(tmp_path, tile_by_tile=False)
    rig.brings(1)
    assert process_tiles(rig.project, BATCH, sleep=no_waiting) == []
    assert not rig.project.facts.has(FIRST, "processed")


def test_columns_of_matlab_are_processed_whole(tmp_path, monkeypatch):
    rig = Rig(tmp_path)
    monkeypatch.setattr(columns, "matlab_for", lambda _engine, _stage: object())
    rig.brings(1)
    assert process_tiles(rig.project, BATCH, sleep=no_waiting) == []


def test_the_newest_tile_has_its_picture_before_older_ones_are_processed(rig, monkeypatch):
    rig.brings(1, now=100.0)
    rig.brings(2, now=101.0)
    picture = look_picture(rig.project.paths.base, SECOND)
    order = []
    real = batches.process_tile

    def seen(source, tile, **more):
        order.append((tile, picture.exists(), more["look"] is not None))
        return real(source, tile, **more)

    monkeypatch.setattr(batches, "process_tile", seen)
    process_tiles(rig.project, BATCH)
    assert order == [(FIRST, True, False), (SECOND, True, True)], "what was made for the look is not made again"
    assert not picture.exists(), "it has become the tile's"


def test_a_tile_that_takes_long_has_its_picture_before_its_volumes_and_copy(rig, monkeypatch):
    monkeypatch.setattr(first_looks, "_LONG_WORK", 0)
    shown = []
    real = batches.process_tile
    monkeypatch.setattr(batches, "process_tile", lambda *a, **k: shown.append(k["look"]) or real(*a, **k))
    rig.brings(1)
    process_tiles(rig.project, BATCH, sleep=lambda _s: rig.brings(2))
    assert None not in shown
    record = rig.project.facts.read(FIRST, "processed")
    assert record.detail["figures"] == shown[0].figures.as_dict()
    assert not look_folder(rig.project.paths.base, FIRST).exists()


@pytest.mark.parametrize("change", ["file", "settings"])
def test_a_first_look_at_another_file_or_with_other_settings_is_not_taken(rig, monkeypatch, change):
    rig.brings(1)
    rig.brings(2)
    first_looks.look_at_newest_tile(rig.project, next_one=FIRST)
    former = json.loads((look_folder(rig.project.paths.base, SECOND) / LOOK_DESCRIPTION).read_text())["key"]
    if change == "file":
        rig.write(2, seed=5)
    else:
        monkeypatch.setattr(first_looks, "tile_hash", lambda *_given: "others")
    taken = []
    real = batches.process_tile
    monkeypatch.setattr(batches, "process_tile", lambda *a, **k: taken.append(k["look"]) or real(*a, **k))
    process_batch(rig.project, rig.completes())
    assert len(taken) == 2
    assert former not in [look.key for look in taken if look is not None]


def test_a_run_that_keeps_up_takes_no_first_look_at_small_tiles(rig, monkeypatch):
    monkeypatch.setattr(first_looks, "look_at_tile", no_waiting)
    rig.brings(1)
    process_tiles(rig.project, BATCH, sleep=lambda _s: rig.brings(2))
    assert rig.project.facts.has(SECOND, "processed")


class Steps:
    """What happens in each pause of a run, one after the other; the last pause ends it."""

    def __init__(self, *steps) -> None:
        self.left = list(steps)

    def __call__(self, _s: float) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left.pop(0)()


@pytest.fixture
def looks(monkeypatch):
    """Tiles at which a look was taken, in their order."""
    taken, real = [], first_looks.look_at_tile
    monkeypatch.setattr(
        first_looks, "look_at_tile", lambda source, tile, **more: (taken.append(tile), real(source, tile, **more))[1]
    )
    return taken


def test_a_tile_is_looked_at_when_its_file_has_its_size_and_shown_when_it_has_stood_still(rig, looks, monkeypatch):
    rig.brings(1)
    seen = []
    real = batches.process_tile

    def process(source, tile, **more):
        seen.append((tile, more["look"] is not None, look_picture(rig.project.paths.base, tile).exists()))
        return real(source, tile, **more)

    monkeypatch.setattr(batches, "process_tile", process)

    def stands_still():
        assert looks == [SECOND]
        assert not look_folder(rig.project.paths.base, SECOND).exists(), "the file may still be written"
        rig.brings(2)

    process_tiles(rig.project, BATCH, sleep=Steps(lambda: rig.fills(2), stands_still))
    assert seen == [(FIRST, False, False), (SECOND, True, True)]
    assert looks == [SECOND]
    assert not look_folder(rig.project.paths.base, SECOND).exists()


def test_a_look_at_a_file_that_was_filled_after_its_size_was_reserved_is_never_shown(rig, looks):
    rig.brings(1)
    path, shown = rig.raw / name_of(2), look_folder(rig.project.paths.base, SECOND)

    def reserves():
        rig.fills(2)
        content = path.read_bytes()
        path.write_bytes(content[:352] + bytes(len(content) - 352))
        os.utime(path, ns=(1, 1))

    def fills_a_part():
        assert looks == [SECOND]
        path.write_bytes(path.read_bytes()[:-10] + bytes(range(10)))
        os.utime(path, ns=(2, 2))

    def fills_the_rest():
        assert looks == [SECOND], "it is not tried again while the file changes"
        assert not shown.exists()
        rig.write(2)
        rig.brings(2)

    process_tiles(rig.project, BATCH, sleep=Steps(reserves, fills_a_part, fills_the_rest))
    assert looks == [SECOND]
    assert not shown.exists()
    record = rig.project.facts.read(SECOND, "processed")
    once = Rig(rig.raw.parent / "undisturbed")
    once.brings(1)
    once.brings(2)
    process_batch(once.project, once.completes())
    assert record.detail["figures"] == once.project.facts.read(SECOND, "processed").detail["figures"]


def test_a_file_that_changes_while_it_is_looked_at_early_is_processed_as_it_is_in_the_end(rig, looks, monkeypatch):
    rig.brings(1)
    given = []
    real = batches.process_tile
    monkeypatch.setattr(batches, "process_tile", lambda *a, **k: (given.append(k["look"]), real(*a, **k))[1])

    def rewritten():
        rig.write(2, seed=77)
        os.utime(rig.raw / name_of(2), ns=(5, 5))
        rig.brings(2)

    process_tiles(rig.project, BATCH, sleep=Steps(lambda: rig.fills(2), rewritten))
    assert given == [None, None], "what was made from the earlier bytes is not used"
    assert rig.project.facts.has(SECOND, "processed")


def test_a_run_that_is_killed_before_the_file_has_stood_still_leaves_no_picture(rig, looks):
    rig.brings(1)
    with pytest.raises(KeyboardInterrupt):
        process_tiles(rig.project, BATCH, sleep=Steps(lambda: rig.fills(2)))
    assert looks == [SECOND]
    assert not look_folder(rig.project.paths.base, SECOND).exists()
    rig.brings(2)
    process_tiles(rig.project, BATCH, sleep=no_waiting)
    assert [rig.times_made(tile) for tile in (FIRST, SECOND)] == [1, 1]


def test_a_look_that_took_until_the_column_was_complete_is_taken_over(rig, looks):
    rig.brings(1)

    def completes():
        rig.brings(2)
        rig.completes()

    process_tiles(rig.project, BATCH, sleep=Steps(lambda: rig.fills(2), completes))
    assert looks == [SECOND]
    assert rig.project.facts.has(BATCH, "processed")


def test_a_tile_that_waits_comes_before_a_look_at_one_that_is_still_written(rig, looks):
    rig.brings(1)
    rig.fills(2)
    order = []

    def processed():
        order.append((rig.project.facts.has(FIRST, "processed"), list(looks)))
        rig.brings(2)

    process_tiles(rig.project, BATCH, sleep=Steps(processed))
    assert order == [(True, [SECOND])]


def test_an_early_look_that_cannot_be_taken_changes_nothing(rig):
    rig.brings(1)

    def damaged():
        rig.fills(2)
        path = rig.raw / name_of(2)
        path.write_bytes(path.read_bytes()[:-100])

    process_tiles(rig.project, BATCH, sleep=Steps(damaged, lambda: (rig.write(2), rig.brings(2))))
    assert rig.project.facts.has(SECOND, "processed")


def test_tiles_that_are_still_written_are_not_behind(rig):
    rig.fills(1)
    assert lag_of(rig.project).tiles == 0
    assert arriving(rig.project, BATCH).unsettled() == [FIRST]
    rig.brings(1)
    assert lag_of(rig.project).tiles == 1
    assert arriving(rig.project, BATCH).unsettled() == []


def test_the_lag_is_the_age_of_the_oldest_tile_that_waits(rig):
    assert lag_of(rig.project, now=100.0).tiles == 0
    rig.brings(1, now=100.0)
    rig.brings(2, now=104.0)
    lag = lag_of(rig.project, now=110.0)
    assert (lag.tiles, lag.seconds) == (2, 10.0)
    rig.project.facts.record(FIRST, "processed")
    lag = lag_of(rig.project, now=110.0)
    assert (lag.tiles, lag.seconds) == (1, 6.0)


def test_a_note_that_cannot_be_read_costs_only_the_lead(rig):
    rig.brings(1)
    (path,) = (rig.project.paths.base / "state" / "arriving").iterdir()
    path.write_bytes(b'{"event": {')
    assert arriving(rig.project, BATCH) is None
    rig.brings(2)
    assert arriving(rig.project, BATCH) is not None


def test_the_first_look_at_a_tile_that_fails_is_removed_with_its_column(rig):
    rig.brings(1)
    path = rig.write(2)
    path.write_bytes(path.read_bytes()[:-100])
    rig.brings(2)
    folder = look_folder(rig.project.paths.base, SECOND)
    folder.mkdir(parents=True)
    process_batch(rig.project, rig.completes())
    assert rig.project.facts.has(SECOND, "failed")
    assert not folder.exists()


def test_a_column_that_is_done_has_a_small_picture_of_each_map_black_where_a_tile_failed(rig):
    rig.brings(1)
    path = rig.write(2)
    path.write_bytes(path.read_bytes()[:-100])
    rig.brings(2)
    process_batch(rig.project, rig.completes())
    base = rig.project.paths.base
    width, height = thumbnail_size(12, 10)
    with Image.open(strip_path(base, BATCH, "aip")) as strip:
        assert strip.size == (width, 2 * height)
        pixels = np.asarray(strip.convert("L"))
    with Image.open(thumbnail_path(base, FIRST)) as thumbnail:
        first = np.asarray(thumbnail.convert("L"))[:height, :width]
    assert np.abs(pixels[: height - 8].astype(int) - first[: height - 8]).mean() < 8
    assert pixels[height + 8 :].max() < 10
    made, processed = strip_path(base, BATCH, "aip"), rig.project.facts.path(FIRST, "processed")
    assert made.stat().st_mtime_ns >= processed.stat().st_mtime_ns


def test_a_column_whose_small_pictures_cannot_be_written_is_done_all_the_same(rig, monkeypatch, caplog):
    def full(*_given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(batches, "write_strips", full)
    rig.brings(1)
    rig.brings(2)
    process_batch(rig.project, rig.completes())
    assert rig.project.facts.has(BATCH, "processed")
    assert "batch 1 of mosaic 1 has no small pictures: [Errno 28] No space left on device" in caplog.text
