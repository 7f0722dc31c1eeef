"""File systems that lack a call: the work is done without it, and one line says so."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from opticstream.io.atomic import atomic_folder, write_bytes, write_text
from opticstream.io.nifti_stream import open_volume
from opticstream.publish.local import link_into_mosaic, publish_locally
from opticstream.system import disk, locks
from opticstream.system.lacking import forget_logged
from opticstream.system.locks import has_locks, locked, try_lock


@pytest.fixture(autouse=True)
def _nothing_told():
    forget_logged()
    yield
    forget_logged()


def _refusing(code):
    def refuse(*_args, **_options):
        raise OSError(code, os.strerror(code))

    return refuse


def _lines(caplog, text):
    return [record for record in caplog.records if text in record.message]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EPERM, errno.ENOSYS])
def test_folders_that_cannot_be_synced_hold_up_nothing_and_are_told_once(tmp_path, monkeypatch, caplog, code):
    sync = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    for number in range(3):
        write_text(tmp_path / f"{number}.txt", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.txt", "1.txt", "2.txt"]
    assert len(_lines(caplog, "cannot sync folders")) == 1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EROFS])
def test_files_that_cannot_be_synced_are_written_and_told_once(tmp_path, monkeypatch, caplog, code):
    monkeypatch.setattr(os, "fsync", _refusing(code))
    for number in range(3):
        write_text(tmp_path / f"{number}.txt", "whole")
    assert (tmp_path / "2.txt").read_text() == "whole"
    assert len(_lines(caplog, "cannot sync files")) == 1


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_broken_or_full_disk_is_still_an_error_that_names_the_file(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", _refusing(code))
    with pytest.raises(OSError, match=r"map\.nii") as caught:
        write_text(tmp_path / "map.nii", "half")
    assert caught.value.errno == code
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_opened_hold_up_nothing(tmp_path, monkeypatch):
    opened = os.open

    def refuse_folders(path, flags, *args, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", refuse_folders)
    assert write_text(tmp_path / "a.txt", "whole").read_text() == "whole"


@pytest.mark.parametrize("code", [errno.EEXIST, errno.EACCES, errno.EPERM])
def test_a_taken_name_is_replaced_where_renames_refuse_that(tmp_path, monkeypatch, caplog, code):
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "replace", _refusing(code))
    write_text(tmp_path / "a.txt", "new")
    write_text(tmp_path / "a.txt", "newer")
    assert (tmp_path / "a.txt").read_text() == "newer"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert len(_lines(caplog, "cannot rename over")) == 1


def test_the_old_file_comes_back_if_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")
    rename = os.rename

    def fails_for_new(source, target):
        if os.fspath(target).endswith("a.txt") and Path(source).read_text() == "new":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", _refusing(errno.EACCES))
    monkeypatch.setattr(os, "rename", fails_for_new)
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EROFS])
def test_the_link_to_an_archive_copy_is_left_out_where_there_are_no_links(tmp_path, monkeypatch, caplog, code):
    monkeypatch.setattr(os, "symlink", _refusing(code))
    for number in range(3):
        copy = write_text(tmp_path / "archive" / f"{number}.gz", "raw")
        assert link_into_mosaic(copy, tmp_path / "mosaic-01/archived") == copy
    assert list((tmp_path / "mosaic-01/archived").iterdir()) == []
    assert len(_lines(caplog, "symbolic links")) == 1


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP])
def test_results_are_copied_where_they_cannot_be_linked_or_dated(tmp_path, monkeypatch, code):
    (tmp_path / "v.ome.zarr" / "0").mkdir(parents=True)
    (tmp_path / "v.ome.zarr" / "0" / "c [1]").write_bytes(b"chunk")
    monkeypatch.setattr(os, "link", _refusing(code))
    monkeypatch.setattr(os, "utime", _refusing(errno.EPERM))
    monkeypatch.setattr(os, "chmod", _refusing(errno.EPERM))
    target = publish_locally(tmp_path / "v.ome.zarr", tmp_path / "DANDISET" / "v.ome.zarr")
    assert (target / "0" / "c [1]").read_bytes() == b"chunk"


def test_a_volume_is_written_where_files_cannot_be_sized_beforehand(tmp_path, monkeypatch):
    import numpy as np

    from opticstream.io.nifti import read_nifti

    monkeypatch.setattr(os, "ftruncate", _refusing(errno.EINVAL))
    monkeypatch.delattr(os, "pwrite")
    with open_volume(tmp_path / "v.nii", (3, 4, 2), voxel_size_mm=(1, 1, 1)) as volume:
        for first in (2, 0):
            volume.write(first, np.full((2, 2, 3), first, np.float32))
    monkeypatch.setattr("mmap.mmap", _refusing(errno.ENODEV))
    for mapped in (True, False):
        values = read_nifti(tmp_path / "v.nii", mmap=mapped)
        assert values[0, :, 1].tolist() == [0, 0, 2, 2]


def test_bytes_at_a_place_are_read_without_preadv(tmp_path, monkeypatch):
    path = tmp_path / "raw"
    path.write_bytes(bytes(range(10)))
    for missing in (None, "preadv", "pread"):
        if missing is not None:
            monkeypatch.delattr(os, missing)
        handle = os.open(path, os.O_RDONLY)
        into = bytearray(4)
        assert disk.read_at(handle, memoryview(into), 3) == 4
        os.close(handle)
        assert into == bytes([3, 4, 5, 6])


@pytest.mark.parametrize("missing", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, None])
def test_locks_keep_others_out_also_where_the_file_system_has_none(tmp_path, monkeypatch, caplog, missing):
    if missing is None:
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(locks.fcntl, "flock", _refusing(missing))
    assert not has_locks(tmp_path)
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    assert try_lock(tmp_path / "lock") is None
    lock.release()
    with locked(tmp_path / "lock"):
        assert try_lock(tmp_path / "lock") is None
    assert len(_lines(caplog, "no file locks")) == 1
    assert not list(tmp_path.glob("*.held"))


def test_the_lock_of_a_killed_owner_is_free_again_without_file_locks(tmp_path, monkeypatch):
    import signal
    import subprocess
    import sys

    code = (
        "import sys, time, pathlib; from opticstream.system import locks; locks.fcntl = None\n"
        "lock = locks.try_lock(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    monkeypatch.setattr(locks, "fcntl", None)
    assert try_lock(tmp_path / "lock") is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    lock.release()


def test_names_as_long_as_the_file_system_takes_are_written(tmp_path):
    for suffix in (".nii.gz", ".ome.zarr", ""):
        name = "ü" * ((255 - len(suffix)) // 2) + suffix
        assert write_bytes(tmp_path / name, b"x").read_bytes() == b"x"
        (tmp_path / name).unlink()
        with atomic_folder(tmp_path / name) as folder:
            (folder / "0").write_text("x")
        assert os.listdir(tmp_path / name) == ["0"]
        disk.remove(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_there_is_a_core_where_the_system_does_not_tell(monkeypatch):
    from opticstream.system.cores import available_cores

    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


MODULES = """
import os, sys, pkgutil, importlib
for name in ("sched_getaffinity", "preadv", "pread", "pwrite", "posix_fadvise", "getuid", "geteuid", "getpgid",
             "killpg", "setsid", "fork", "symlink", "link", "ftruncate", "nice"):
    if hasattr(os, name):
        delattr(os, name)
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ImportError(name)
for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
import opticstream.cli
for floor in ("system", "model", "config", "state", "io", "publish", "notify", "stages", "watch"):
    package = importlib.import_module(f"opticstream.{floor}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"opticstream.{floor}.{module.name}")
print("imported")
"""


def test_everything_but_prefect_is_imported_where_the_system_lacks_calls_of_linux():
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", MODULES], capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n", done.stderr[-3000:]


def test_people_are_told_beforehand_what_a_file_system_lacks(tmp_path, monkeypatch):
    from opticstream.system.survey import missing_features

    assert missing_features(tmp_path) == []
    monkeypatch.setattr(os, "symlink", _refusing(errno.EPERM))
    monkeypatch.setattr(os, "link", _refusing(errno.EPERM))
    monkeypatch.setattr(os, "fsync", _refusing(errno.EINVAL))
    monkeypatch.setattr(locks.fcntl, "flock", _refusing(errno.ENOSYS))
    assert [words.split(" (")[0] for words in missing_features(tmp_path)] == [
        "syncing of folders", "symbolic links", "hard links", "file locks"
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []
