"""After any sequence of facts, in any order and with looks in between, the shared state equals a rebuild."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from opticstream.model.ids import BatchId, MosaicId, SampleId, SliceId, TileId
from opticstream.model.layout import AcquisitionLayout, IlluminationLayout
from opticstream.state import Facts
from opticstream.state.file_store import file_store
from opticstream.state.memory_store import memory_store
from opticstream.state.mirror import (
    mirror_flags,
    oct_state_from_facts,
    oct_state_is_current,
    rebuild_oct_state,
    update_oct_state,
)
from opticstream.state.oct_state import OCTProjectState, OCTStateService
from opticstream.state.vocabulary import FACTS, is_claim

LAYOUT = AcquisitionLayout((IlluminationLayout("normal", 2, 2), IlluminationLayout("tilted", 1, 2)))
ITEMS = [
    SampleId(),
    *(SliceId(s) for s in (1, 2)),
    *(MosaicId(m) for m in (1, 2, 3, 4)),
    *(BatchId(m, b) for m in (1, 3) for b in (1, 2)),
    BatchId(2, 1),
    BatchId(2, 7),  # outside the layout
    *(TileId(m, t) for m in (1, 3) for t in (1, 2, 3, 4)),
    TileId(1, 99),
]
CHANGES = st.sampled_from([(item, fact) for item in ITEMS for fact in FACTS[item.hierarchy]])


class StateFollowsFlags(RuleBasedStateMachine):
    """Several state flows look at the flags of one project while facts come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        self.facts = Facts(self.folder / "project", clock=lambda: self.now)
        self.services = [
            OCTStateService(memory_store(OCTProjectState)),
            OCTStateService(file_store(self.folder / "states", OCTProjectState, pipeline="oct")),
        ]

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(change=CHANGES, reason=st.sampled_from(["", "no overlap", "x" * 500]), seconds=st.integers(0, 10_000))
    def something_is_recorded_or_recorded_again(self, change, reason, seconds) -> None:
        item, fact = change
        self.now += timedelta(seconds=seconds)
        if is_claim(fact):
            claim = self.facts.claim(item, fact)
            if claim is not None:
                claim.release()
            return
        self.facts.replace(item, fact, {"detail": {"reason": reason}}, why="test")

    @rule(change=CHANGES)
    def something_is_withdrawn(self, change) -> None:
        self.facts.withdraw(*change, reason="test")

    @rule(change=CHANGES)
    def something_is_done_again_within_one_tick_of_the_clock(self, change) -> None:
        item, fact = change
        path = self.facts.path(item, fact)
        if is_claim(fact) or not path.exists():
            return
        before = path.stat()
        self.facts.withdraw(item, fact, reason="test")
        self.now += timedelta(seconds=61)
        self.facts.record(item, fact, {"detail": {"reason": "again"}})
        if path.stat().st_mtime_ns - before.st_mtime_ns < 2 * 10**9:  # as file systems tell times in steps of 2 s
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    @rule(change=CHANGES, text=st.sampled_from([b"", b"not JSON", b'{"fact": 1}', b"\xff\x00"]))
    def a_flag_is_made_or_damaged_by_hand(self, change, text) -> None:
        path = self.facts.path(*change)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)

    @rule()
    def all_flags_grow_old(self) -> None:
        for path in self.facts.project_dir.rglob("*.*"):
            if path.is_file():
                status = path.stat()
                os.utime(path, ns=(status.st_atime_ns - 10**10, status.st_mtime_ns - 10**10))

    @rule(which=st.integers(0, 1), only=st.lists(st.sampled_from(ITEMS), max_size=3))
    def a_state_flow_brings_a_part_up_to_date(self, which, only) -> None:
        update_oct_state(self.services[which], "p", self.facts, LAYOUT, only)

    @rule(which=st.integers(0, 1))
    def a_state_flow_dies_before_it_saves(self, which) -> None:
        def killed(state: OCTProjectState) -> None:
            mirror_flags(state, self.facts, LAYOUT)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.services[which].store.update("p", killed)

    @rule(which=st.integers(0, 1))
    def the_shared_state_is_lost(self, which) -> None:
        self.services[which].store.repository.delete("p")

    @rule(which=st.integers(0, 1))
    def a_state_flow_looks(self, which) -> None:
        service = self.services[which]
        update_oct_state(service, "p", self.facts, LAYOUT)
        assert service.peek_project("p") == oct_state_from_facts("p", self.facts, LAYOUT).to_view()
        assert oct_state_is_current(service, "p", self.facts, LAYOUT)

    @invariant()
    def a_state_that_is_called_current_equals_a_rebuild(self) -> None:
        for service in self.services:
            view = service.peek_project("p")
            if view is not None and oct_state_is_current(service, "p", self.facts, LAYOUT):
                assert view == oct_state_from_facts("p", self.facts, LAYOUT).to_view()


TestStateFollowsFlags = StateFollowsFlags.TestCase
TestStateFollowsFlags.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    return Facts(tmp_path / "project")


@pytest.fixture
def service() -> OCTStateService:
    return OCTStateService(memory_store(OCTProjectState))


ENDINGS = {
    "stitched, without volumes": ({MosaicId(1): ("ready", "stitched")}, True, True),
    "stitched with volumes": ({MosaicId(1): ("ready", "stitched", "volume_stitched")}, True, True),
    "stitched, volumes parked": ({MosaicId(1): ("ready", "stitched", "volume_failed")}, True, True),
    "stitched, archive off": ({BatchId(1, 1): ("processed",), MosaicId(1): ("stitched",)}, True, True),
    "parked": ({MosaicId(1): ("ready", "failed")}, False, True),
    "waiting": ({MosaicId(1): ("ready", "waiting")}, False, False),
}


@pytest.mark.parametrize(("known", "finished", "ended"), ENDINGS.values(), ids=ENDINGS)
def test_every_ending_of_a_mosaic_reaches_the_shared_state(facts, service, known, finished, ended):
    for batch in LAYOUT.batches(MosaicId(1)):
        facts.record(batch, "processed")
    update_oct_state(service, "p", facts, LAYOUT)
    before = service.peek_mosaic("p", slice_id=1, mosaic_id=1)
    assert (before.finished, before.ended) == (False, False)
    for item, names in known.items():
        for fact in names:
            facts.record(item, fact)
    update_oct_state(service, "p", facts, LAYOUT)
    view = service.peek_mosaic("p", slice_id=1, mosaic_id=1)
    assert (view.finished, view.ended, view.count("processed")) == (finished, ended, 2)


@pytest.mark.parametrize(
    ("fact", "finished", "ended"),
    [
        ("ready", False, False),
        ("registered", True, True),
        ("axis_failed", True, True),
        ("skipped", True, True),
        ("failed", False, True),
    ],
)
def test_every_ending_of_a_slice_reaches_the_shared_state(facts, service, fact, finished, ended):
    facts.record(SliceId(1), fact, {"detail": {"reason": "why"}})
    update_oct_state(service, "p", facts, LAYOUT)
    view = service.peek_slice("p", slice_id=1)
    assert (view.finished, view.ended, view.uploaded) == (finished, ended, False)


def test_a_damaged_flag_has_the_time_of_its_file_however_often_one_looks(facts, service):
    path = facts.path(MosaicId(1), "stitched")
    path.parent.mkdir(parents=True)
    path.write_text("not JSON")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    facts.record(SampleId(), "updated")
    for _ in range(2):
        update_oct_state(service, "p", facts, LAYOUT)
        view = service.peek_mosaic("p", slice_id=1, mosaic_id=1)
        assert view.stitched_at == datetime.fromtimestamp(1_700_000_000, UTC)


def test_only_what_has_changed_is_read_and_nothing_is_saved_without_a_change(tmp_path, monkeypatch):
    columns = 40
    layout = AcquisitionLayout((IlluminationLayout("normal", columns, 2), IlluminationLayout("tilted", columns, 2)))
    facts = Facts(tmp_path / "project")
    old = time.time() - 1000
    for mosaic in (MosaicId(m) for m in range(1, 5)):
        for batch in layout.batches(mosaic):
            for fact in ("ready", "archived", "processed", "published"):
                path = facts.path(batch, fact)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                os.utime(path, (old, old))
    service = OCTStateService(memory_store(OCTProjectState))
    rebuild_oct_state(service, "p", facts, layout)
    read = []
    original = Facts.read
    monkeypatch.setattr(Facts, "read", lambda self, item, fact: read.append((item, fact)) or original(self, item, fact))
    facts.record(MosaicId(1), "ready")
    update_oct_state(service, "p", facts, layout)
    # The flags of one moment were too new to be told apart, until the newest one came: they are read once more.
    saves = service.store.repository.saves
    read.clear()
    facts.record(MosaicId(1), "stitched")
    update_oct_state(service, "p", facts, layout)
    assert set(read) == {(MosaicId(1), "ready"), (MosaicId(1), "stitched")}
    assert service.store.repository.saves == saves + 1
    assert oct_state_is_current(service, "p", facts, layout)
    update_oct_state(service, "p", facts, layout)
    assert service.store.repository.saves == saves + 1


def test_a_project_without_flags_and_without_a_state_is_current(facts, service):
    assert oct_state_is_current(service, "p", facts, LAYOUT)
    facts.record(BatchId(1, 1), "ready")
    assert not oct_state_is_current(service, "p", facts, LAYOUT)
