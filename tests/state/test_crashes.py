"""Workers that are killed at any moment: every item is done, its fact recorded once, and no claim stays behind."""

import random
import signal
import subprocess
import sys
import time

import pytest

from opticstream.model.ids import BatchId
from opticstream.state.facts import Facts

WORKER = """
import sys, time
from pathlib import Path
from opticstream.model.ids import BatchId
from opticstream.state.facts import Facts
facts = Facts(Path(sys.argv[1]), flow_run_id=sys.argv[2])
items = [BatchId(1, b) for b in range(1, int(sys.argv[3]) + 1)]
print("up", flush=True)
while not facts.reached(items, "processed"):
    for item in items:
        if facts.has(item, "processed"):
            continue
        if item is items[-1] and not Path(sys.argv[1], "all-killed").exists():
            continue  # there is work until the last kill, however slow the machine is
        claim = facts.claim(item, lease_s=5)
        if claim is None:
            continue
        with claim:
            if facts.has(item, "processed"):
                continue
            time.sleep(0.1)
            claim.ensure_mine()
            if facts.record(item, "processed"):
                facts.journal.computed(item, "processed", 0.1)
    time.sleep(0.01)
"""


@pytest.mark.parametrize(("workers", "items", "kills"), [(2, 30, 6), pytest.param(4, 300, 60, marks=pytest.mark.slow)])
def test_workers_killed_at_random_moments_finish_everything_exactly_once(tmp_path, workers, items, kills):
    random.seed(7)
    batches = [BatchId(1, b) for b in range(1, items + 1)]
    facts = Facts(tmp_path)
    started = 0

    def start():
        nonlocal started
        started += 1
        command = [sys.executable, "-c", WORKER, str(tmp_path), f"run-{started}", str(items)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "up\n"
        return child

    children = [start() for _ in range(workers)]
    try:
        killed = 0
        while killed < kills:
            time.sleep(random.uniform(0.0, 0.12))
            victim = random.randrange(workers)
            children[victim].send_signal(signal.SIGKILL)
            children[victim].communicate()
            children[victim] = start()
            killed += 1
        (tmp_path / "all-killed").touch()
        for child in children:
            child.communicate(timeout=120)
            assert child.returncode == 0
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert facts.reached(batches, "processed")
    for batch in batches:
        events = [entry.event for entry in facts.journal.history(batch)]
        assert events.count("recorded") <= 1  # a worker may die between the flag and the journal, never record twice
        assert events.count("computed") <= 1
        assert facts.read(batch, "processed").item == batch
        assert facts.holder(batch).state in ("released", "dead")
        claimed = facts.claim(batch)
        assert claimed is not None
        claimed.release()
    names = [path.name for path in (tmp_path / "mosaic-01/state").iterdir() if path.is_file()]
    assert sorted(name for name in names if not name.startswith(".")) == sorted(
        [f"batch-{b:03d}.{fact}" for b in range(1, items + 1) for fact in ("processed", "started")]
    )
