"""A budget of memory that processes of one host share."""

from __future__ import annotations

import os
import platform
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


KEEPS = """
import re, sys, threading
from pathlib import Path
from opticstream.system import memory
if sys.argv[1] == "few arenas":
    memory.start_with_few_arenas()

def anonymous_kb():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def use():
    for _ in range(2):
        with lock:  # one thread after the other
            blocks = [bytearray(b"x" * 60_000) for _ in range(400)]
            left.append(blocks[-1])  # something that lives on, at the far end
            del blocks
        barrier.wait()

left, barrier, lock = [], threading.Barrier(8), threading.Lock()
large = bytearray(30_000_000)
del large  # from now on as much is kept, as after any large array
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
if sys.argv[1] == "returned":
    memory.return_freed_memory()
print(anonymous_kb())
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_what_large_steps_leave_goes_back_to_the_system():
    def kept_kb(how: str) -> int:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", KEEPS, how]
        return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    usual = kept_kb("usual")
    assert kept_kb("few arenas") < usual / 2
    assert kept_kb("returned") < usual / 2
