"""Flags: exclusive, whole, readable; snapshots count them quickly."""

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticstream.model.errors import StateError
from opticstream.model.ids import BatchId, MosaicId, SampleId, SliceId, TileId
from opticstream.state import durable
from opticstream.state.earlier_words import EARLIER, local_word
from opticstream.state.facts import Facts, FactsSnapshot
from opticstream.state.flags import flag_path, scan_flags
from opticstream.state.vocabulary import FACTS, is_claim
from opticstream.system import disk
from opticstream.system.lacking import forget_logged

BATCH = BatchId(1, 3)

numbers = st.integers(1, 1500)
items = st.one_of(
    st.just(SampleId()),
    st.builds(SliceId, numbers),
    st.builds(MosaicId, numbers),
    st.builds(BatchId, numbers, numbers),
    st.builds(TileId, numbers, st.integers(1, 20000)),
)
flags = items.flatmap(lambda item: st.tuples(st.just(item), st.sampled_from(FACTS[item.hierarchy])))


@pytest.fixture
def facts(tmp_path):
    return Facts(tmp_path, clock=lambda: datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC), flow_run_id="run-1")


def test_a_fact_is_recorded_once(facts):
    assert facts.record(BATCH, "processed") is True
    assert facts.record(BATCH, "processed") is False
    assert facts.has(BATCH, "processed")
    assert not facts.has(BatchId(1, 4), "processed")


@pytest.mark.parametrize(
    ("item", "fact", "path"),
    [
        (BatchId(1, 3), "processed", "mosaic-01/state/batch-003.processed"),
        (TileId(123, 45), "failed", "mosaic-123/state/tiles/tile-0045.failed"),
        (MosaicId(2), "volume_stitched", "state/mosaic-002.volume_stitched"),
        (SliceId(7), "registered", "state/slice-007.registered"),
        (SampleId(), "updated", "state/sample.updated"),
    ],
)
def test_flags_lie_where_the_design_says(facts, item, fact, path):
    facts.record(item, fact)
    assert (facts.project_dir / path).is_file()


@settings(deadline=None, max_examples=50)
@given(st.sets(flags, max_size=20))
def test_a_listing_finds_every_flag_that_was_made(tmp_path_factory, flags):
    project = tmp_path_factory.mktemp("project")
    # A flag about an upload without one about the publication beside it is of an earlier version, and means that.
    flags = flags | {(item, local_word(fact)) for item, fact in flags if fact in EARLIER}
    for item, fact in flags:
        path = project / flag_path(item, fact)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert set(scan_flags(project)) == flags
    snapshot = Facts(project).snapshot()
    assert set(snapshot) == flags
    assert snapshot == FactsSnapshot({item: {f for i, f in flags if i == item} for item, _ in flags})
    for item, _ in flags:
        assert snapshot.facts_of(item) == Facts(project).facts_of(item)


@settings(deadline=None, max_examples=50)
@given(st.sets(flags, max_size=30), st.integers(1, 20))
def test_items_are_counted_as_one_by_one(flags, most):
    known = [(i, f) for i, f in flags if isinstance(i, BatchId | TileId)]
    mosaics = [MosaicId(1 + i.mosaic_id % 2) for i, _ in known]
    known = [(replace(i, mosaic_id=m.mosaic_id), f) for (i, f), m in zip(known, mosaics, strict=True)]
    snapshot = FactsSnapshot({item: {f for i, f in known if i == item} for item, _ in known})
    assert snapshot.mosaics() == sorted(set(mosaics))
    for mosaic in set(mosaics):
        for make, by_facts in ((BatchId, snapshot.batches_by_facts), (TileId, snapshot.tiles_by_facts)):
            items = [make(mosaic.mosaic_id, n + 1) for n in range(most)]
            counted = by_facts(mosaic, most=most)
            for fact in FACTS[make.hierarchy]:
                assert sum(n for facts, n in counted.items() if fact in facts) == snapshot.count(items, fact)
    failed = {item for item, fact in known if fact.endswith("failed")}
    found = snapshot.with_facts(lambda fact: fact.endswith("failed"))
    assert (set(found), found) == (failed, sorted(found, key=lambda item: item.key))


def test_strangers_in_the_state_folder_are_passed_over(facts):
    facts.record(BATCH, "processed")
    folder = facts.project_dir / "mosaic-01" / "state"
    for name in [
        "notes.txt",
        "batch-3.processed",
        "batch-003.eaten",
        ".batch-003.archived.1.tmp",
        "batch-000.processed",
    ]:
        (folder / name).touch()
    (facts.project_dir / "state" / "slice-1.ready").touch()
    (facts.project_dir / "mosaic-1").mkdir()
    assert list(facts.snapshot()) == [(BATCH, "processed")]


def test_a_flag_is_json_that_a_person_can_read(facts):
    output = facts.project_dir / "mosaic-01" / "processed" / "tile.nii"
    output.parent.mkdir(parents=True)
    output.write_bytes(b"volume")
    facts.record(
        BATCH,
        "processed",
        {"outputs": [facts.file_record(output)], "parameters_hash": "abc", "detail": {"tiles": {"1": "ok"}}},
    )
    data = json.loads((facts.project_dir / "mosaic-01/state/batch-003.processed").read_text())
    assert data["item"] == "mosaic-001/batch-003"
    assert data["time"] == "2026-03-04T05:06:07.000000Z"
    assert data["pid"] == os.getpid()
    assert data["flow_run_id"] == "run-1"
    assert data["outputs"] == [
        {
            "path": "mosaic-01/processed/tile.nii",
            "size": 6,
            "sha256": hashlib.sha256(b"volume").hexdigest(),
        }
    ]
    record = facts.read(BATCH, "processed")
    assert record is not None
    assert record.outputs[0].path == "mosaic-01/processed/tile.nii"
    assert record.parameters_hash == "abc"
    assert record.detail["tiles"] == {"1": "ok"}


def test_outputs_in_the_archive_are_named_relative_to_the_archive(tmp_path):
    facts = Facts(tmp_path / "project", roots={"archive": tmp_path / "dandi"})
    copy = tmp_path / "dandi" / "rawdata" / "tile.nii.gz"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"raw")
    assert facts.file_record(copy).path == "archive:rawdata/tile.nii.gz"
    with pytest.raises(ValueError, match="is in none of"):
        facts.file_record(tmp_path / "elsewhere")


def test_a_flag_made_by_hand_is_a_fact_of_its_files_time(facts):
    path = facts.path(BATCH, "processed")
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (1e9, 1e9))
    record = facts.read(BATCH, "processed")
    assert record is not None
    assert record.time == datetime.fromtimestamp(1e9, UTC)
    assert record.outputs == ()


def test_a_damaged_flag_is_a_fact_whose_record_is_refused(facts):
    facts.record(BATCH, "processed")
    facts.path(BATCH, "processed").write_text('{"item": "mosaic-0')
    assert facts.has(BATCH, "processed")
    with pytest.raises(StateError, match=r"batch-003\.processed is not the record"):
        facts.read(BATCH, "processed")
    facts.record(BATCH, "archived")
    facts.path(BATCH, "archived").rename(facts.path(BatchId(1, 4), "archived"))
    with pytest.raises(StateError, match="holds the record of batch 3"):
        facts.read(BatchId(1, 4), "archived")


def test_unknown_facts_keys_and_claims_are_refused(facts):
    with pytest.raises(ValueError, match="unknown fact 'stitched'"):
        facts.record(BATCH, "stitched")
    with pytest.raises(ValueError, match="unknown fact 'registred'"):
        facts.has(SliceId(1), "registred")
    with pytest.raises(ValueError, match="is a claim; use claim"):
        facts.record(BATCH, "started")
    with pytest.raises(ValueError, match="unknown keys of a record: output;"):
        facts.record(BATCH, "processed", {"output": []})
    assert facts.snapshot() == FactsSnapshot({})


def test_withdrawing_keeps_the_record_and_lets_the_fact_happen_again(facts):
    facts.record(BATCH, "processed", {"parameters_hash": "old"})
    assert facts.withdraw(BATCH, "processed", reason="wrong dispersion") is True
    assert facts.withdraw(BATCH, "processed", reason="again") is False
    assert not facts.has(BATCH, "processed")
    (kept,) = (facts.project_dir / "mosaic-01/state/withdrawn").iterdir()
    assert json.loads(kept.read_text())["parameters_hash"] == "old"
    assert facts.record(BATCH, "processed") is True
    assert [entry.event for entry in facts.journal.history(BATCH)] == ["recorded", "withdrawn", "recorded"]
    assert facts.journal.history(BATCH)[1].why == "wrong dispersion"


def test_replacing_what_does_not_stand_records_it(facts):
    facts.replace(BATCH, "processed", {"parameters_hash": "new"}, why="computed")
    assert facts.read(BATCH, "processed").parameters_hash == "new"
    (entry,) = facts.journal.entries()
    assert (entry.event, entry.why) == ("recorded", "computed")
    assert not list(facts.project_dir.rglob("withdrawn"))


def test_the_grounds_of_a_fact_are_read_from_the_head_of_its_flag(facts):
    assert facts.hashes(BATCH, "processed") is None
    facts.record(BATCH, "archived")
    assert facts.hashes(BATCH, "archived") == (None, None)
    outputs = [{"path": f"tile-{n}", "size": n, "sha256": "parameters_hash"} for n in range(1000)]
    detail = {"parameters_hash": "not this one"}
    content = {"outputs": outputs, "detail": detail, "parameters_hash": "abc+12", "inputs_hash": "t 1.nii:12:34"}
    facts.record(BATCH, "processed", content)
    assert facts.hashes(BATCH, "processed") == ("abc+12", "t 1.nii:12:34")
    facts.path(SliceId(1), "registered").parent.mkdir(parents=True, exist_ok=True)
    facts.path(SliceId(1), "registered").touch()
    assert facts.hashes(SliceId(1), "registered") == (None, None)


def test_replacing_keeps_the_earlier_record(facts):
    facts.record(BATCH, "processed", {"detail": {"parked": [7]}})
    facts.replace(BATCH, "processed", {"detail": {"parked": []}}, why="tile 7 was retried")
    record = facts.read(BATCH, "processed")
    assert record is not None
    assert record.detail["parked"] == []
    (kept,) = (facts.project_dir / "mosaic-01/state/withdrawn").iterdir()
    assert json.loads(kept.read_text())["detail"] == {"parked": [7]}


def test_a_snapshot_and_the_folders_answer_alike(facts):
    mosaic = MosaicId(1)
    batches = [BatchId(1, b) for b in range(1, 5)]
    for batch in batches[:3]:
        facts.record(batch, "processed")
    facts.record(batches[3], "failed")
    facts.record(mosaic, "ready")
    for view in (facts, facts.snapshot()):
        assert view.reached(batches[:3], "processed")
        assert not view.reached(batches, "processed")
        assert view.reached(batches, "processed", "failed")
        assert view.reached([], "processed")
        assert view.count(batches, "processed") == 3
        assert view.facts_of(mosaic) == {"ready"}
        assert view.facts_of(MosaicId(2)) == frozenset()
        with pytest.raises(ValueError, match="unknown fact"):
            view.has(mosaic, "processed")


def test_a_snapshot_does_not_change(facts):
    before = facts.snapshot()
    facts.record(BATCH, "processed")
    assert not before.has(BATCH, "processed")
    assert facts.snapshot().has(BATCH, "processed")


def test_a_snapshot_of_some_mosaics_leaves_the_others_out(facts):
    facts.record(BatchId(1, 1), "processed")
    facts.record(BatchId(2, 1), "processed")
    facts.record(MosaicId(2), "ready")
    assert facts.snapshot(mosaics=[MosaicId(1)]).items() == [BatchId(1, 1), MosaicId(2)]


def test_flags_are_counted_without_reading_one(tmp_path):
    batches = [BatchId(m, b) for m in range(1, 21) for b in range(1, 41)]
    for batch in batches:
        for fact in ("started", "processed"):
            path = tmp_path / flag_path(batch, fact)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{")  # whoever reads it finds it damaged
    facts = Facts(tmp_path)
    with pytest.raises(StateError):
        facts.read(batches[0], "processed")
    snapshot = facts.snapshot()
    assert snapshot.count(batches, "processed") == 800
    assert len(snapshot) == 1600


RECORD_MANY = """
import sys, time
from pathlib import Path
from opticstream.model.ids import BatchId
from opticstream.state.facts import Facts
facts = Facts(Path(sys.argv[1]))
print("up", flush=True)
sys.stdin.readline()
print([b for b in range(1, 41) if facts.record(BatchId(1, b), "processed", {"detail": {"who": sys.argv[2]}})])
"""


def test_of_many_processes_exactly_one_is_told_it_was_first(tmp_path):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RECORD_MANY, str(tmp_path), str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    for child in children:
        assert child.stdout.readline() == "up\n"
    for child in children:  # all of them stand at the line; now they run
        child.stdin.write("go\n")
        child.stdin.flush()
    won = {n: json.loads(child.communicate(timeout=60)[0]) for n, child in enumerate(children)}
    assert sorted(batch for batches in won.values() for batch in batches) == list(range(1, 41))
    facts = Facts(tmp_path)
    for n, batches in won.items():
        for batch in batches:
            record = facts.read(BatchId(1, batch), "processed")
            assert record is not None
            assert record.detail["who"] == str(n)
    assert [entry.event for entry in facts.journal.entries()] == ["recorded"] * 40


def test_a_crash_while_recording_leaves_no_flag(facts, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(durable, "take_name", die)
    with pytest.raises(KeyboardInterrupt):
        facts.record(BATCH, "processed")
    assert not facts.has(BATCH, "processed")


def test_a_flag_is_synced_before_it_gets_its_name_and_its_folder_after(facts, monkeypatch):
    order = []
    fsync, link = os.fsync, os.link

    def synced(handle):
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")
        fsync(handle)

    def linked(source, target):
        order.append("name")
        link(source, target)

    monkeypatch.setattr(durable.os, "fsync", synced)
    monkeypatch.setattr(durable.os, "link", linked)
    facts.record(BATCH, "processed")
    assert order == ["content", "name", "folder"]


def test_a_full_disk_is_an_error_and_no_fact(facts, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        facts.record(BATCH, "processed")
    assert list((facts.project_dir / "mosaic-01/state").iterdir()) == []


def test_a_link_whose_answer_was_lost_still_counts_as_ours(facts, monkeypatch):
    link = os.link

    def link_twice(source, target):  # what a network client does that got no answer
        link(source, target)
        link(source, target)

    monkeypatch.setattr(durable.os, "link", link_twice)
    assert facts.record(BATCH, "processed") is True
    assert facts.record(BATCH, "processed") is False


@pytest.mark.parametrize("renames", [True, False], ids=["exclusive rename", "exclusive creation"])
def test_a_file_system_without_links_is_still_exclusive_and_says_so(facts, monkeypatch, caplog, renames):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(durable.os, "link", no_links)
    forget_logged()
    if not renames:
        monkeypatch.setattr(disk, "_renameat2", lambda: None)
    assert [facts.record(BATCH, "processed") for _ in range(3)] == [True, False, False]
    assert facts.read(BATCH, "processed").item == BATCH
    assert len([r for r in caplog.records if "hard links" in r.message]) == 1
    leftovers = [p.name for p in (facts.project_dir / "mosaic-01/state").iterdir()]
    assert leftovers == ["batch-003.processed"]


def test_every_claim_is_a_started(facts):
    assert {fact for known in FACTS.values() for fact in known if is_claim(fact)} == {
        "started",
        "archive_started",
        "volume_started",
        "publish_started",
        "volume_publish_started",
        "upload_started",
        "volume_upload_started",
    }


def test_a_damaged_record_is_no_record_for_those_who_can_go_on_without(tmp_path):
    facts = Facts(tmp_path)
    assert facts.read_whole(MosaicId(1), "stitched") is None
    facts.record(MosaicId(1), "stitched")
    assert facts.read_whole(MosaicId(1), "stitched") == facts.read(MosaicId(1), "stitched")
    facts.path(MosaicId(1), "stitched").write_bytes(b"{damaged")
    with pytest.raises(StateError):
        facts.read(MosaicId(1), "stitched")
    assert facts.read_whole(MosaicId(1), "stitched") is None


def test_work_is_under_way_while_its_claim_is_held(tmp_path):
    facts = Facts(tmp_path)
    assert not facts.is_worked_on(MosaicId(1))
    with facts.claim(MosaicId(1), "started", lease_s=60):
        assert facts.is_worked_on(MosaicId(1))
    assert not facts.is_worked_on(MosaicId(1))
