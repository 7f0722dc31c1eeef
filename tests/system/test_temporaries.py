"""Temporary names tell who writes: what a killed writer left goes at once, what a living one writes stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opticstream.system.host import HostIdentity
from opticstream.system.temporaries import remove_stale_temporaries
from opticstream.system.temporary_names import temporary_beside, writer_is_dead

WRITER = """
import sys, time
from pathlib import Path
from opticstream.io.atomic import atomic_folder, atomic_path
from opticstream.state.durable import temporary_file
folder = Path(sys.argv[1])
with atomic_path(folder / "volume.nii") as t, atomic_folder(folder / "v.ome.zarr") as f, temporary_file(
    folder / "batch-001.processed", b"half"
):
    t.write_text("half"); (f / "0").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_what_a_killed_writer_left_is_removed_at_once_and_not_while_it_lives(tmp_path, writer):
    assert remove_stale_temporaries(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 3
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(remove_stale_temporaries(tmp_path)) == 3
    assert list(tmp_path.iterdir()) == []


def test_what_another_host_writes_is_removed_only_when_it_has_stood_still_for_long(tmp_path, monkeypatch):
    me = HostIdentity.current()
    elsewhere = HostIdentity("elsewhere", 1, "another boot", me.pid_namespace, 1)
    with monkeypatch.context() as there:
        there.setattr(HostIdentity, "current", classmethod(lambda _cls: elsewhere))
        there.setattr("opticstream.system.temporary_names.os.getpid", lambda: 1)
        theirs = temporary_beside(tmp_path / "volume.nii")
    theirs.write_text("half")
    assert not writer_is_dead(theirs)
    assert remove_stale_temporaries(tmp_path) == []
    os.utime(theirs, (time.time() - 7200,) * 2)
    assert remove_stale_temporaries(tmp_path) == [theirs]


def test_age_is_judged_by_the_clock_of_the_file_system_not_by_ours(tmp_path, monkeypatch):
    fresh = tmp_path / ".volume.partial-of-an-earlier-version.nii"
    fresh.write_text("half")
    monkeypatch.setattr(time, "time", lambda: time.monotonic() + 1e10)
    assert remove_stale_temporaries(tmp_path) == []


@pytest.mark.parametrize("name", ["m.nii.gz", "ö" * 127, "x" * 200 + ".ome.zarr", ".lock", "a.b" * 60])
def test_temporary_names_fit_everywhere_and_keep_their_suffix(name):
    temporary = temporary_beside(Path("somewhere") / name)
    assert len(os.fsencode(temporary.name)) <= 143
    assert temporary.name.startswith(".")
    assert temporary.name.endswith(Path(name).suffix)
