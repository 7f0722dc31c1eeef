"""The journal: lines of many processes and hosts, in order, readable after damage."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from opticstream.model.ids import BatchId, MosaicId, SliceId
from opticstream.state.facts import Facts
from opticstream.state.journal import Journal
from opticstream.system.host import HostIdentity
from opticstream.system.spent import Spent

MORNING = datetime(2026, 3, 4, 8, tzinfo=UTC)


def journal(folder, *, host="zircon", minutes=(0,)):
    times = iter([MORNING + timedelta(minutes=m) for m in minutes])
    return Journal(folder, host=HostIdentity(host, 12), clock=lambda: next(times))


def test_the_hosts_accounts_are_merged_by_time(tmp_path):
    one = journal(tmp_path, host="zircon", minutes=(0, 2, 4))
    two = journal(tmp_path, host="opal", minutes=(1, 3))
    for number in (1, 3, 5):
        one.write("recorded", SliceId(number), fact="ready")
    for number in (2, 4):
        two.write("recorded", SliceId(number), fact="ready")
    assert [entry.item.slice_id for entry in one.entries()] == [1, 2, 3, 4, 5]
    assert len(list((tmp_path / "state/journal").iterdir())) == 2


def test_a_clock_that_was_set_back_does_not_turn_the_order_round(tmp_path):
    account = journal(tmp_path, minutes=(30, 10, 31))
    for number in (1, 2, 3):
        account.write("recorded", SliceId(number), fact="ready")
    assert [entry.item.slice_id for entry in account.entries()] == [1, 2, 3]


def test_damaged_lines_cost_only_themselves(tmp_path, caplog):
    journal(tmp_path).write("recorded", SliceId(1), fact="ready")
    (path,) = (tmp_path / "state/journal").iterdir()
    with path.open("ab") as file:
        file.write(b'{"time": "2026-03')  # a power failure cut this one
    account = journal(tmp_path)
    account.write("recorded", SliceId(2), fact="ready")
    assert [entry.item.slice_id for entry in account.entries()] == [1, 2]
    assert "1 damaged lines" in caplog.text


def test_history_tells_what_when_where_how_long_and_why(tmp_path):
    facts = Facts(tmp_path, flow_run_id="run-7")
    batch = BatchId(3, 2)
    with facts.claim(batch):
        facts.journal.computed(batch, "processed", 12.3456, tiles=3)
        facts.record(batch, "processed")
    facts.journal.skipped(batch, "processed", "done already with these parameters")
    entries = facts.journal.history(batch)
    assert [entry.event for entry in entries] == ["claimed", "computed", "recorded", "released", "skipped"]
    assert entries[1].duration_s == 12.346
    assert entries[1].detail == {"tiles": 3}
    assert entries[4].why == "done already with these parameters"
    assert {entry.flow_run_id for entry in entries} == {"run-7"}
    assert {entry.host for entry in entries} == {facts.host.host}


def test_the_journal_tells_processor_time_where_it_is_known(tmp_path):
    facts = Facts(tmp_path)
    facts.journal.computed(BatchId(1, 1), "processed", Spent(wall_s=2.0, processor_s=3.4567))
    (entry,) = facts.journal.history(BatchId(1, 1))
    assert (entry.duration_s, entry.detail) == (2.0, {"processor_s": 3.457})


def test_history_of_a_mosaic_can_include_its_batches(tmp_path):
    facts = Facts(tmp_path)
    facts.record(BatchId(3, 2), "processed")
    facts.record(MosaicId(3), "ready")
    facts.record(BatchId(4, 2), "processed")
    assert [entry.item for entry in facts.journal.history(MosaicId(3))] == [MosaicId(3)]
    assert [entry.item for entry in facts.journal.history(MosaicId(3), below=True)] == [BatchId(3, 2), MosaicId(3)]


def test_an_unknown_event_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown event 'eaten'"):
        journal(tmp_path).write("eaten", SliceId(1))


def test_a_journal_that_cannot_be_written_does_not_stop_the_work(tmp_path, caplog):
    facts = Facts(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state/journal").write_text("a file where the folder should be")
    assert facts.record(SliceId(1), "ready") is True
    assert "could not be written" in caplog.text


WRITE_MANY = """
import sys
from pathlib import Path
from opticstream.model.ids import BatchId
from opticstream.state.facts import Facts
journal = Facts(Path(sys.argv[1])).journal
for b in range(1, 301):
    journal.skipped(BatchId(int(sys.argv[2]), b), "processed", "x" * 200)
"""


def test_processes_of_one_host_do_not_cut_each_others_lines(tmp_path):
    children = [subprocess.Popen([sys.executable, "-c", WRITE_MANY, str(tmp_path), str(n)]) for n in (1, 2, 3)]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    entries = list(Facts(tmp_path).journal.entries())
    assert len({entry.item for entry in entries}) == 900
    assert len(list((tmp_path / "state/journal").iterdir())) <= 2  # two at midnight
