"""A budget of memory that processes of one host share."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from opticstream.system.memory import MemoryBudget, Share, memory_of_host

GB = 10**9
HOLDS = """
import sys, time
from pathlib import Path
from opticstream.system.memory import MemoryBudget
with MemoryBudget(Path(sys.argv[1]), 8 * 10**9).share(int(sys.argv[2]), "another process"):
    print("has it", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def budget(tmp_path):
    return MemoryBudget(tmp_path / "memory", 8 * GB)


class Asker:
    """A thread that asks for a share, has it until it is told to end, and keeps what it was told."""

    def __init__(self, budget: MemoryBudget, needed: int, what: str) -> None:
        self.has_it, self._end = threading.Event(), threading.Event()
        self.told: list[str] = []
        self._thread = threading.Thread(target=self._run, args=(budget, needed, what), daemon=True)
        self._thread.start()
        wait_until(lambda: any(share.what == what for share in budget.shares()))

    def _run(self, budget: MemoryBudget, needed: int, what: str) -> None:
        with budget.share(needed, what, tell=self.told.append):
            self.has_it.set()
            self._end.wait(60)

    def end(self) -> None:
        self._end.set()
        self._thread.join(60)


def wait_until(holds) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def killed_process(budget: MemoryBudget, needed: int, *, meanwhile=lambda: None):
    """Let another process have a share, do something, kill it, and return what was done."""
    command = [sys.executable, "-c", HOLDS, str(budget._folder), str(needed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        done = meanwhile()
        process.kill()
    return done


def test_what_fits_goes_at_once_and_nothing_is_left(budget):
    with budget.share(3 * GB, "a"), budget.share(5 * GB, "b"):
        assert budget.shares() == [Share(3 * GB, "a", has_it=True), Share(5 * GB, "b", has_it=True)]
    assert budget.shares() == []


def test_what_does_not_fit_waits_and_is_told_for_what(budget):
    with budget.share(5 * GB, "volume of mosaic 1"):
        second = Asker(budget, 4 * GB, "volume of mosaic 2")
        wait_until(lambda: second.told)
        assert not second.has_it.is_set()
    assert second.has_it.wait(60)
    assert second.told == [
        "volume of mosaic 2 waits for 4 GB of this host's memory budget of 8 GB; before it: volume of mosaic 1 (5 GB)"
    ]
    second.end()


def test_who_needs_much_is_not_overtaken(budget):
    with budget.share(5 * GB, "first"):
        large = Asker(budget, 7 * GB, "large")
        small = Asker(budget, 1 * GB, "small")  # would fit beside the first
        wait_until(lambda: small.told)
        assert not small.has_it.is_set()
    assert large.has_it.wait(60)
    assert small.has_it.wait(60)
    large.end()
    small.end()


def test_what_needs_more_than_there_is_runs_alone(budget):
    small = Asker(budget, 1 * GB, "small")
    huge = Asker(budget, 99 * GB, "huge")
    assert not huge.has_it.wait(1.0)
    small.end()
    assert huge.has_it.wait(60)
    huge.end()


def test_the_share_of_a_killed_process_is_free(budget):
    waiting = killed_process(budget, 6 * GB, meanwhile=lambda: Asker(budget, 6 * GB, "after it"))
    assert waiting.has_it.wait(60)
    assert waiting.told[0].endswith("before it: another process (6 GB)")
    waiting.end()


def test_a_process_that_was_killed_while_it_wrote_stops_nobody(budget):
    (ticket,) = killed_process(budget, 6 * GB, meanwhile=lambda: list(budget._folder.glob("*.share")))
    ticket.write_bytes(b'{"bytes": 6')
    with budget.share(6 * GB, "after it"):
        pass


def test_together_they_never_exceed_the_budget(budget):
    lock, used, most = threading.Lock(), 0, 0

    def work(number: int) -> None:
        nonlocal used, most
        needed = (1 + number % 4) * GB
        with budget.share(needed, f"work {number}"):
            with lock:
                used += needed
                most = max(most, used)
            time.sleep(0.02)
            with lock:
                used -= needed

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert used == 0
    assert 4 * GB < most <= 8 * GB


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are asked in other ways")
def test_the_memory_of_this_host_is_no_more_than_the_kernel_tells():
    total_kb = next(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line
    )
    memory = memory_of_host()
    assert memory is not None
    assert 1 << 26 < memory <= total_kb * 1024
