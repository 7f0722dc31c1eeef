"""Claims: one living holder, an exclusive takeover of a dead one, leases by the file server's clock."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from opticstream.model.errors import ClaimLost
from opticstream.model.ids import BatchId, MosaicId, TileId
from opticstream.state.facts import Facts
from opticstream.system.host import HostIdentity

BATCH = BatchId(1, 3)
ELSEWHERE = HostIdentity("other-host", 77, boot_id="other-boot", pid_namespace="pid:[1]", process_start=5)


@pytest.fixture
def facts(tmp_path):
    return Facts(tmp_path)


@pytest.fixture
def elsewhere(tmp_path):
    """The same project seen from another host, whose clock is wrong by a day."""
    return Facts(tmp_path, host=ELSEWHERE, clock=lambda: datetime.now(UTC) + timedelta(days=1))


def age(facts, seconds, work="started"):
    """Make the latest claim look as if it had not been renewed for so long."""
    generation = facts.holder(BATCH, work).generation
    path = facts.project_dir / f"mosaic-01/state/claims/batch-003.{work}.{generation:04d}"
    stamp = path.stat().st_mtime - seconds
    os.utime(path, (stamp, stamp))


def test_a_claim_keeps_others_out_and_leaves_the_started_flag(facts, elsewhere):
    claim = facts.claim(BATCH)
    assert claim is not None
    with claim:
        assert facts.claim(BATCH) is None
        assert elsewhere.claim(BATCH) is None
        assert facts.claim(BATCH, "upload_started") is not None  # other work on the same item
        assert facts.claim(BatchId(1, 4)) is not None
    assert facts.has(BATCH, "started")
    record = facts.read(BATCH, "started")
    assert record is not None
    assert record.detail["attempt"] == 1
    assert facts.holder(BATCH).state == "released"


def test_released_work_may_be_claimed_again_at_once_from_anywhere(facts, elsewhere):
    with facts.claim(BATCH):
        pass
    again = elsewhere.claim(BATCH)
    assert again is not None
    assert again.generation == 2


def test_an_exception_releases_the_claim_and_stands_in_its_outcome(facts):
    with pytest.raises(OSError, match="disk"), facts.claim(BATCH):
        raise OSError("disk")
    holder = facts.holder(BATCH)
    assert (holder.state, holder.outcome) == ("released", "failed: OSError: disk")


def test_a_lease_decides_about_holders_on_other_hosts(facts, elsewhere):
    claim = elsewhere.claim(BATCH, lease_s=30)
    assert facts.claim(BATCH) is None
    age(facts, 25)
    assert facts.claim(BATCH) is None
    age(facts, 10)
    assert facts.holder(BATCH).state == "dead"
    taken = facts.claim(BATCH)
    assert taken is not None
    assert not claim.still_mine()
    assert taken.still_mine()
    events = [(entry.event, entry.host) for entry in facts.journal.history(BATCH) if entry.event != "skipped"]
    assert ("taken over", facts.host.host) in events
    assert ("lost", "other-host") in events


@pytest.mark.parametrize("days", [-400, -1, 1, 400])
def test_wrong_clocks_of_hosts_do_not_matter(tmp_path, days):
    skewed = Facts(tmp_path, host=ELSEWHERE, clock=lambda: datetime.now(UTC) + timedelta(days=days))
    third = Facts(tmp_path, host=dataclasses.replace(ELSEWHERE, host="third", boot_id="3"))
    skewed.claim(BATCH, lease_s=5)
    assert third.claim(BATCH) is None
    age(third, 6)
    assert third.claim(BATCH) is not None


def test_renewing_keeps_a_lease_alive_and_its_content_untouched(facts, elsewhere):
    claim = elsewhere.claim(BATCH, lease_s=30)
    path = facts.project_dir / "mosaic-01/state/claims/batch-003.started.0001"
    before = path.read_bytes()
    age(facts, 25)
    assert claim.renew()
    assert path.read_bytes() == before
    age(facts, 25)
    assert facts.claim(BATCH) is None


def test_the_thread_renews_while_the_work_runs(facts, elsewhere):
    with elsewhere.claim(BATCH, lease_s=0.6):
        deadline = time.monotonic() + 1.8
        while time.monotonic() < deadline:
            assert facts.claim(BATCH) is None
            time.sleep(0.05)
    assert not [t for t in threading.enumerate() if t.name.startswith("renew")]


def test_a_claim_from_the_future_does_not_stay_for_ever(facts, elsewhere):
    elsewhere.claim(BATCH, lease_s=30)
    age(facts, -3600)  # the server's clock was set back by an hour, and the holder is gone
    assert facts.claim(BATCH) is not None


def test_a_lost_claim_may_not_publish_nor_release(facts, elsewhere):
    claim = elsewhere.claim(BATCH, lease_s=30)
    age(facts, 31)
    taken = facts.claim(BATCH)
    with pytest.raises(
        ClaimLost, match=r"attempt 1 at started of batch 3 of mosaic 1 may not publish: now .*attempt 2"
    ):
        claim.ensure_mine()
    assert claim.lost
    assert claim.release() is False
    assert taken.still_mine()
    assert facts.holder(BATCH).state == "alive"


def test_a_late_renewal_wins_nothing_back(facts, elsewhere):
    claim = elsewhere.claim(BATCH, lease_s=30)
    age(facts, 31)
    taken = facts.claim(BATCH)
    assert claim.renew() is False
    assert taken.still_mine()


def test_a_process_that_is_seen_alive_here_is_given_more_than_its_lease(facts):
    facts.claim(BATCH, lease_s=10)  # never entered, so nothing renews it
    age(facts, 40)
    assert facts.claim(BATCH) is None
    age(facts, 20)  # 60 s silent: five leases and more; it hangs
    assert facts.claim(BATCH) is not None


HOLD = """
import sys, time
from pathlib import Path
from opticstream.model.ids import BatchId
from opticstream.state.facts import Facts
with Facts(Path(sys.argv[1])).claim(BatchId(1, 3), lease_s=600) as claim:
    print("held", flush=True)
    time.sleep(600)
"""


def start(script, *arguments):
    child = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() in ("held\n", "up\n")
    return child


def finish(child):
    child.kill()
    child.communicate()


def test_a_killed_process_of_this_host_is_replaced_at_once(facts):
    child = start(HOLD, facts.project_dir)
    try:
        assert facts.claim(BATCH) is None
        child.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while facts.holder(BATCH).state != "dead":  # also while it is a zombie that nobody has waited for
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert facts.claim(BATCH) is not None
    finally:
        finish(child)


def test_a_reused_process_id_is_another_process(facts, tmp_path):
    former = dataclasses.replace(facts.host, process_start=facts.host.process_start - 1)
    Facts(tmp_path, host=former).claim(BATCH, lease_s=600)
    assert facts.claim(BATCH) is not None


@pytest.mark.parametrize("field", ["boot_id", "pid_namespace"])
def test_process_ids_of_another_boot_or_container_mean_nothing(facts, tmp_path, field):
    other = dataclasses.replace(facts.host, pid=2**22 + 1, **{field: "another"})
    Facts(tmp_path, host=other).claim(BATCH, lease_s=600)
    assert facts.claim(BATCH) is None


RACE = """
import sys
from pathlib import Path
from opticstream.model.ids import BatchId
from opticstream.state.facts import Facts
facts = Facts(Path(sys.argv[1]))
print("up", flush=True)
sys.stdin.readline()
claims = {b: claim for b in range(1, 31) if (claim := facts.claim(BatchId(1, b), lease_s=600)) is not None}
print(list(claims), flush=True)
sys.stdin.readline()
print([b for b, claim in claims.items() if claim.still_mine()])
"""


@pytest.mark.parametrize("dead", [False, True], ids=["unclaimed", "dead holder"])
def test_of_many_takers_exactly_one_gets_the_work(tmp_path, elsewhere, dead):
    if dead:
        for batch in range(1, 31):
            elsewhere.claim(BatchId(1, batch), lease_s=0.001)
        time.sleep(0.05)
    children = [start(RACE, tmp_path) for _ in range(4)]
    try:
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        won = [json.loads(child.stdout.readline()) for child in children]
        assert sorted(batch for batches in won for batch in batches) == list(range(1, 31))
        for child, batches in zip(children, won, strict=True):
            assert json.loads(child.communicate("still?\n", timeout=60)[0]) == batches
    finally:
        for child in children:
            finish(child)


def test_attempts_are_numbered_and_kept(facts):
    for outcome in ("failed: bad", "failed: worse", "done"):
        facts.claim(BATCH).release(outcome)
    assert [holder.outcome for holder in facts.claims.attempts(BATCH, "started")] == [
        "failed: bad",
        "failed: worse",
        "done",
    ]


def test_crashes_in_a_row_are_counted_until_a_release(facts, elsewhere):
    def crash():
        elsewhere.claim(BATCH, lease_s=30)
        age(facts, 31)

    assert facts.claims.crashes(BATCH, "started") == 0
    crash()
    crash()
    claim = facts.claim(BATCH)
    assert facts.claims.crashes(BATCH, "started") == 2
    claim.release("released for another try")
    assert facts.claims.crashes(BATCH, "started") == 0
    crash()
    assert facts.claims.crashes(BATCH, "started") == 1


def test_errors_in_a_row_are_counted_across_deaths_until_an_attempt_ends_well(facts):
    def attempt(outcome):
        claim = facts.claim(BATCH)
        assert claim is not None
        if outcome:
            claim.release(outcome, failed=True)
        else:
            age(facts, 1000)

    for outcome in ("failed: OSError", None, "failed: OSError"):
        attempt(outcome)
    assert facts.claims.failures(BATCH, "started") == 2
    claim = facts.claim(BATCH)
    assert facts.claims.failures(BATCH, "started") == 2, "the attempt that is going on does not count"
    claim.release("done")
    assert facts.claims.failures(BATCH, "started") == 0
    attempt("failed: KeyError")
    assert facts.claims.failures(BATCH, "started") == 1


def test_withdrawing_started_does_not_let_an_old_holder_come_back(facts, elsewhere):
    claim = elsewhere.claim(BATCH, lease_s=30)
    age(facts, 31)
    with facts.claim(BATCH):
        facts.withdraw(BATCH, "started", reason="reset")
    assert not facts.has(BATCH, "started")
    assert not claim.still_mine()
    assert facts.claim(BATCH).generation == 3


def test_a_cut_claim_is_judged_by_its_age_alone(facts):
    facts.claim(BATCH)
    path = facts.project_dir / "mosaic-01/state/claims/batch-003.started.0001"
    path.write_bytes(b"")  # a power failure on a file system without links
    assert facts.claim(BATCH) is None
    age(facts, 61)
    assert facts.claim(BATCH) is not None


def test_a_forked_child_does_not_release_its_parents_claim(facts):
    claim = facts.claim(BATCH)
    claim._pid = os.getpid() + 1  # as a fork sees it
    assert not claim.still_mine()
    assert claim.release() is False
    assert facts.holder(BATCH).state == "alive"


def test_only_claims_can_be_claimed(facts):
    with pytest.raises(ValueError, match="is a fact, not a claim"):
        facts.claim(BATCH, "processed")
    with pytest.raises(ValueError, match="unknown fact 'started'"):
        facts.claim(TileId(1, 1))
    with pytest.raises(ValueError, match="longer than 0 s"):
        facts.claim(BATCH, lease_s=0)
    assert facts.claim(MosaicId(1), "volume_started") is not None


def test_a_claim_whose_flag_cannot_be_written_is_given_back(facts, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("opticstream.state.facts.replace_whole", full)
    with pytest.raises(OSError, match="No space"):
        facts.claim(BATCH)
    assert facts.holder(BATCH).state == "released"


def test_a_renewal_that_fails_is_tried_again(facts, elsewhere, monkeypatch):
    claim = elsewhere.claim(BATCH, lease_s=0.3)
    calls = []
    renew = type(claim).renew

    def flaky(self):
        calls.append(1)
        if len(calls) == 1:
            raise OSError("stale file handle")
        return renew(self)

    monkeypatch.setattr(type(claim), "renew", flaky)
    with claim:
        time.sleep(0.35)
        assert len(calls) >= 2
        assert not claim.lost


def test_a_full_disk_does_not_cost_a_living_holder_its_claim(facts, elsewhere, monkeypatch):
    claim = elsewhere.claim(BATCH, lease_s=30)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    age(facts, 25)
    with monkeypatch.context() as disk:
        disk.setattr("opticstream.state.durable.Path.write_bytes", full)  # no new file can be made
        assert claim.still_mine()
        assert claim.renew()
    age(facts, 25)
    assert facts.holder(BATCH).state == "alive"


def test_the_probe_for_the_servers_time_leaves_nothing_behind(facts, elsewhere):
    elsewhere.claim(BATCH)
    facts.claim(BATCH)
    folder = facts.project_dir / "mosaic-01/state/claims"
    assert [path.name for path in folder.iterdir()] == ["batch-003.started.0001"]


def test_a_holder_describes_itself(facts):
    claim = facts.claim(BATCH)
    assert str(facts.holder(BATCH)).startswith(f"started of batch 3 of mosaic 1, held by {facts.host.host} (process ")
    claim.release()
    assert "released" in str(facts.holder(BATCH))


def test_paths_of_claims_do_not_show_up_as_facts(facts):
    facts.claim(BATCH)
    assert list(facts.snapshot()) == [(BATCH, "started")]
    assert Path(facts.project_dir / "mosaic-01/state/claims").is_dir()


def test_whether_an_attempt_failed_is_recorded_and_not_read_from_its_text(facts):
    with facts.claim(BATCH) as claim:
        claim.release("failed tiles 3 and 4 are parked")
    assert facts.claims.failures(BATCH, "started") == 0
    with pytest.raises(ValueError, match="no such thing"), facts.claim(BATCH):
        raise ValueError("no such thing")
    assert facts.claims.failures(BATCH, "started") == 1


def test_claims_of_earlier_versions_say_only_in_their_text_that_an_attempt_failed(facts):
    with pytest.raises(ValueError, match="no such thing"), facts.claim(BATCH):
        raise ValueError("no such thing")
    path = facts.project_dir / "mosaic-01/state/claims/batch-003.started.0001"
    path.write_text(path.read_text().replace(', "failed": true', ""))
    assert facts.claims.failures(BATCH, "started") == 1


@pytest.fixture
def stamped_by_hosts(facts, monkeypatch):
    """A file system on which each host stamps its own files; this host's clock is two minutes ahead."""
    from opticstream.state import claims
    from opticstream.system.disk import time_of_server_s

    monkeypatch.setattr(claims, "is_stamped_by_hosts", lambda _folder: True)
    monkeypatch.setattr(claims, "time_of_server_s", lambda folder: time_of_server_s(folder) + 120)


def test_a_living_holder_is_not_robbed_where_hosts_stamp_their_files_by_clocks_that_differ(
    facts, elsewhere, stamped_by_hosts
):
    with elsewhere.claim(BATCH, lease_s=1.5) as held:
        assert facts.holder(BATCH).state == "dead", "by the clocks alone"
        assert facts.claim(BATCH) is None
        assert held.still_mine()
    taken = facts.claim(BATCH)
    assert taken is not None, "released work is free at once"


def test_a_dead_holder_is_replaced_there_after_a_while(facts, elsewhere, stamped_by_hosts):
    doomed = elsewhere.claim(BATCH, lease_s=0.6)
    taken = facts.claim(BATCH, lease_s=0.6)
    assert taken is not None
    assert (doomed.still_mine(), taken.still_mine()) == (False, True)


def test_what_is_released_while_it_is_watched_is_taken(facts, elsewhere, stamped_by_hosts):
    held = elsewhere.claim(BATCH, lease_s=30)
    begin = time.monotonic()
    threading.Timer(0.5, held.release).start()
    assert facts.claim(BATCH) is not None
    assert time.monotonic() - begin < 10
