"""The dashboard's copy of the facts equals the facts, and costs a listing only where something has changed."""

from __future__ import annotations

import os
import random
import time

import pytest

from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.web import facts_watch
from opticstream.web.facts_watch import FactsWatch

ITEMS = [
    *((TileId(m, t), f) for m in (1, 2, 3) for t in (1, 2) for f in ("processed", "failed")),
    *((BatchId(m, 1), f) for m in (1, 2, 3) for f in ("ready", "processed", "archived")),
    *((MosaicId(m), f) for m in (1, 3) for f in ("ready", "stitched")),
    (SliceId(1), "ready"),
]


def same(watch, project):
    everything = project.facts.snapshot()
    known = watch.snapshot([MosaicId(m) for m in range(1, 9)], [SliceId(n) for n in range(1, 5)])
    return known == everything


def test_the_copy_equals_the_facts_after_any_sequence(shown):
    watch, facts = FactsWatch(shown.project.paths.base), shown.project.facts
    chance = random.Random(5)
    for _ in range(25):
        for item, fact in chance.sample(ITEMS, chance.randint(1, 3)):
            if facts.has(item, fact):
                facts.withdraw(item, fact, reason="a test")
            else:
                facts.record(item, fact)
        watch.refresh()
        assert same(watch, shown.project)


def test_a_look_tells_which_mosaics_have_changed(shown):
    shown.column(1, 1)
    shown.column(3, 1)
    watch = FactsWatch(shown.project.paths.base)
    assert watch.refresh().mosaics == {MosaicId(1), MosaicId(3)}
    shown.process(3, 4)
    assert watch.refresh().mosaics == {MosaicId(3)}
    shown.stitch(1)
    changes = watch.refresh()
    assert (changes.mosaics, changes.above) == (frozenset(), {MosaicId(1)})


def test_a_record_that_is_replaced_counts_as_a_change(shown):
    shown.process(1, 1)
    watch = FactsWatch(shown.project.paths.base)
    watch.refresh()
    shown.process(1, 1, flags=["blank"])
    assert watch.refresh().mosaics == {MosaicId(1)}


def test_folders_that_have_not_changed_are_not_listed_again(shown, monkeypatch):
    times = [0.0]
    shown.column(1, 1)
    shown.column(2, 1)
    watch = FactsWatch(shown.project.paths.base, clock=lambda: times[-1])
    watch.refresh()
    times.append(10.0)
    watch.refresh()  # once more, because some file systems count whole seconds
    listed = []
    for name in ("flags_of_batches", "flags_of_tiles"):
        monkeypatch.setattr(facts_watch, name, lambda _folder, mosaic: listed.append(mosaic) or {})
    monkeypatch.setattr(facts_watch, "flags_above", lambda folder: listed.append(folder) or {})
    for now in (11.0, 12.0, 20.0, 1000.0):
        times.append(now)
        assert not watch.refresh()
    assert listed == []


def test_folders_that_are_old_are_listed_once(shown, monkeypatch):
    shown.column(1, 1)
    base = shown.project.paths.base
    for folder in (base, base / "state", base / "mosaic-01" / "state", base / "mosaic-01" / "state" / "tiles"):
        folder.mkdir(exist_ok=True)
        os.utime(folder, (time.time() - 3600, time.time() - 3600))
    watch = FactsWatch(base)
    assert watch.refresh().mosaics == {MosaicId(1)}
    monkeypatch.setattr(facts_watch, "flags_of_tiles", lambda *_given: pytest.fail("it was listed again"))
    assert not watch.refresh()
    monkeypatch.undo()
    shown.process(1, 4)
    assert watch.refresh().mosaics == {MosaicId(1)}


def test_a_folder_that_changes_within_the_same_second_is_listed_again(shown):
    """Some file systems store times in whole seconds, and the clock of the file server may differ from ours."""
    for skew_s in (-300, 0, 300):
        tile = TileId(1, 400 + skew_s)
        shown.project.facts.record(TileId(1, 1), "processed")
        folder = shown.project.paths.base / "mosaic-01" / "state" / "tiles"
        seconds = int(time.time()) + skew_s
        os.utime(folder, (seconds, seconds))
        watch = FactsWatch(shown.project.paths.base)
        watch.refresh()
        shown.project.facts.record(tile, "failed")
        os.utime(folder, (seconds, seconds))
        watch.refresh()
        assert watch.facts_of(tile) == {"failed"}
