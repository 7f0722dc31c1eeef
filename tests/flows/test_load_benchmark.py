"""The replay of an acquisition (`benchmarks/load.py`): it runs, and counts rightly."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("load")


def test_a_delay_is_from_the_event_of_a_batch_to_its_first_tile(load, tmp_path):
    log = tmp_path / "tiles"
    log.write_text("[1, 2, 11.5]\n[1, 1, 11.0]\n[1, 3, 14.0]\n[2, 1, 15.0]\n[1, 1, 30.0]\n")
    options = argparse.Namespace(batches=2, tiles=2)
    seen = load.Replay(announced=[10.0, 12.0, 14.5], samples=[], peeks_s=[], reads_s=[], lasted_s=0.0)
    assert load.delays(log, seen, options) == [1.0, 2.0, 0.5]


def test_a_server_carries_what_seventy_percent_of_its_thread_do(load, capsys):
    options = argparse.Namespace(batches=4, tiles=2, every_s=3.0, batch_every_s=40.0)
    samples = [load.Sample(2.0 * n, 1.0 * n, 0.5 * n, 200.0 + n, 300.0) for n in range(5)]
    seen = load.Replay(
        announced=[0.0, 3.0, 6.0, 9.0], samples=samples, peeks_s=[0.01], reads_s=[0.02], lasted_s=12.0, idle=0.1
    )
    load.report(seen, [1.0, 1.0, 2.0, 3.0], options)
    told = capsys.readouterr().out
    assert "20.0 batches a minute" in told
    assert "event to first tile 1.50 s (median), 2.00 s (99th percentile)" in told
    assert "server 1.70 s, database 0.50 s, worker 1.00 s" in told
    assert "server 1.70 s of processor a batch, 200 to 201 MiB" in told
    assert "+1000 MiB for 1000 batches" in told
    assert "(70 % - 10 % idle) / 1.70 s = 21 batches a minute" in told
    assert "14 microscopes" in told


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(1800)
def test_a_small_acquisition_goes_through_the_whole_chain():
    command = [sys.executable, str(BENCHMARKS / "load.py"), "--sqlite", "--every-s", "0.5"]
    done = subprocess.run(
        [*command, "--mosaics", "2", "--batches", "2", "--tiles", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert "4 batches of 1 tiles" in done.stdout
    assert "microscopes" in done.stdout
