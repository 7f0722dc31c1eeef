"""A large project is shown from its latest slice on, while the other slices are still being read."""

from __future__ import annotations

import errno
import random
import tempfile
import threading
import time
from html import unescape

import pytest
from starlette.testclient import TestClient

from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.pipeline.progress import project_progress
from opticstream.web import app as app_module
from opticstream.web import board as board_module
from opticstream.web import views as views_module
from opticstream.web.app import create_app
from opticstream.web.board import Board
from opticstream.web.views import Views

ITEMS = [
    *((TileId(m, t), f) for m in range(1, 9) for t in (1, 2, 3) for f in ("processed", "failed")),
    *((BatchId(m, b), f) for m in range(1, 9) for b in (1, 2) for f in ("ready", "archived", "processed", "failed")),
    *((MosaicId(m), f) for m in range(1, 9) for f in ("ready", "stitched", "failed")),
    *((SliceId(n), f) for n in range(1, 5) for f in ("ready", "registered", "skipped")),
]


@pytest.fixture
def slice_by_slice(monkeypatch):
    """Each look reads one slice."""
    monkeypatch.setattr(board_module, "_FIRST_READING_S", 0.0)
    monkeypatch.setattr(board_module, "_READING_S", 0.0)


def three_slices(shown):
    for mosaic in (1, 2, 3, 5):
        shown.column(mosaic, 1)
    shown.fail(1, 4, "cut file")
    shown.stitch(1)
    return shown


def test_the_latest_slice_is_read_first_and_the_page_says_how_far_it_is(shown, slice_by_slice):
    board = Board(three_slices(shown).project)
    view = Views(board, may_retry=False).get(None, "aip")
    board.refresh()
    assert list(board.slices) == [SliceId(3)]
    parts = {name: unescape(html) for name, html in view.parts().items()}
    assert "Slice 3" in parts["mosaics"]
    assert "Reading the facts of the project: 1 of 4 mosaics" in parts["summary"]
    assert "2 more being read" in parts["slices"]
    assert "No failures so far" in parts["failures"]
    _, version = view.since(-1)
    board.refresh()
    html, version = view.since(version)
    assert 'id="slices"' in html  # pushed to the pages that are open
    assert 'id="mosaics"' not in html
    board.refresh()
    parts = {name: unescape(html) for name, html in view.parts().items()}
    assert board.reading is None
    assert "Reading" not in parts["summary"]
    assert "being read" not in parts["slices"]
    assert "✕ 1 failure</h2>" in parts["failures"]


def test_a_slice_that_somebody_opens_is_read_before_the_others(shown, slice_by_slice):
    board = Board(three_slices(shown).project)
    board.refresh()
    assert not board.read_first(SliceId(1))
    board.refresh()
    assert list(board.slices) == [SliceId(3), SliceId(1)]
    assert board.read_first(SliceId(1))


def test_what_is_recorded_during_the_first_look_is_shown(shown, slice_by_slice):
    board = Board(three_slices(shown).project)
    board.refresh()
    shown.project.facts.record(SliceId(1), "ready")
    shown.process(7, 1)
    board.refresh()
    assert board.current_slice == SliceId(4)
    while board.reading is not None:
        board.refresh()
    assert board.slices[SliceId(1)].slices[0].state == "ready"


@pytest.mark.parametrize("seed", range(6))
def test_the_board_equals_a_rebuild_after_any_sequence_of_facts(shown, monkeypatch, seed):
    chance = random.Random(seed)
    facts = shown.project.facts
    board = view = None
    for _ in range(12):
        for item, fact in chance.sample(ITEMS, chance.randint(1, 8)):
            if facts.has(item, fact):
                facts.withdraw(item, fact, reason="a test")
            else:
                facts.record(item, fact)
        if chance.random() < 0.2:  # a slice is taken back as a whole
            for item, fact in facts.snapshot(mosaics=[MosaicId(3), MosaicId(4)]):
                if item in (SliceId(2), MosaicId(3), MosaicId(4)) or isinstance(item, BatchId | TileId):
                    facts.withdraw(item, fact, reason="a test")
        monkeypatch.setattr(board_module, "_FIRST_READING_S", chance.choice([0.0, 1.0]))
        monkeypatch.setattr(board_module, "_READING_S", chance.choice([0.0, 1.0]))
        if board is None or chance.random() < 0.2:
            board = Board(shown.project)
            view = Views(board, may_retry=True).get(None, "aip")
        board.refresh()
        assert {"summary", "slices", "failures"} <= view.parts().keys()  # whatever is recorded can be shown
    while board.judging:
        board.refresh()
    everything = project_progress(shown.project)
    shown_now = [board.slices[one] for one in sorted(board.slices)]
    assert [mosaic for one in shown_now for mosaic in one.mosaics] == list(everything.mosaics)
    assert [part for one in shown_now for part in one.slices] == list(everything.slices)
    assert {(f.item, f.fact) for f in board.failures} == {
        (f.item, f.fact) for f in everything.failures if not isinstance(f.item, SliceId)
    }
    html = Views(board, may_retry=True).get(None, "aip").parts()
    assert {name: part for name, part in view.parts().items() if name != "summary"} == {
        name: part for name, part in html.items() if name != "summary"
    }


def test_what_was_flagged_and_taken_back_is_no_longer_listed(shown):
    shown.column(1, 1)
    shown.stitch(1, doubts=["seams do not fit"])
    board = Board(shown.project)
    while board.judging:
        board.refresh()
    assert [one.item for one in board.flagged] == [MosaicId(1)]
    for fact in ("ready", "stitched"):
        shown.project.facts.withdraw(MosaicId(1), fact, reason="a test")
    board.refresh()
    assert board.flagged == []


def test_the_page_is_answered_while_the_disk_does_not_answer(shown, monkeypatch):
    shown.column(1, 1)
    answered = threading.Event()
    app = create_app(shown.project)
    board = app.state.dashboard.board
    look = board.watch.look

    def late(wanted):
        answered.wait(120)
        return look(wanted)

    monkeypatch.setattr(board.watch, "look", late)
    monkeypatch.setattr(app_module, "FIRST_LOOK_S", 0.05)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        page = client.get("/").text
        assert "Reading the project" in page
        assert "No tile yet" not in page
        answered.set()
        end = time.monotonic() + 120
        while 'class="tile done"' not in client.get("/").text:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert "Reading the" not in client.get("/").text


def test_a_look_that_failed_loses_no_change(shown, monkeypatch):
    shown.process(1, 1)
    board = Board(shown.project)
    board.refresh()
    listing = board_module.FactsWatch._list

    def fail(*_given):
        raise OSError(5, "Input/output error")

    shown.process(1, 2)
    monkeypatch.setattr(board_module.FactsWatch, "_list", fail)
    with pytest.raises(OSError, match="Input/output"):
        board.refresh()
    monkeypatch.setattr(board_module.FactsWatch, "_list", listing)
    assert board.refresh()
    assert board.slices[SliceId(1)].mosaics[0].tiles_processed == 2


def test_the_page_is_there_where_nothing_can_be_kept(shown, tmp_path, monkeypatch):
    def full(*_given, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(views_module, "private_folder", lambda: tmp_path)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        assert "No tile yet" in client.get("/").text
    assert list(tmp_path.glob("template-*")) == []
    monkeypatch.undo()
    monkeypatch.setattr(views_module, "private_folder", lambda: tmp_path)
    for _ in range(2):
        with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
            assert "No tile yet" in client.get("/").text
    assert list(tmp_path.glob("template-*")) != []
