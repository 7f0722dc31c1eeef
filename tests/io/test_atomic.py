"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from opticstream.io.atomic import atomic_folder, atomic_path, is_temporary, remove_stale_temporaries, write_text


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = write_text(tmp_path / "map.nii.gz", "old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write_half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["map.nii.gz"]


def test_a_killed_writer_leaves_no_file_under_the_final_name(tmp_path):
    target = tmp_path / "volume.nii"
    code = (
        "import sys, time; from pathlib import Path; from opticstream.io.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not target.exists()
    (leftover,) = tmp_path.iterdir()
    assert is_temporary(leftover)
    os.utime(leftover, (time.time() - 7200,) * 2)
    assert remove_stale_temporaries(tmp_path) == [leftover]
    assert not any(tmp_path.iterdir())


def test_fresh_temporaries_of_other_writers_are_left_alone(tmp_path):
    with atomic_path(tmp_path / "a.nii") as temporary:
        temporary.write_text("busy")
        assert remove_stale_temporaries(tmp_path) == []
        assert temporary.exists()


def test_only_names_of_our_own_temporaries_are_removed(tmp_path):
    mine = tmp_path / "notes.partial-draft.txt"
    mine.write_text("of a person")
    os.utime(mine, (0, 0))
    assert remove_stale_temporaries(tmp_path) == []
    assert mine.exists()


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "volume.ome.zarr"
    for content in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / content).write_text(content)
    assert os.listdir(target) == ["two"]
    assert os.listdir(tmp_path) == ["volume.ome.zarr"]
