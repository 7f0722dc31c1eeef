"""Why a folder cannot be used is told in words; a call that hangs is given up; mounts and limits are read."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from opticstream.system import folders
from opticstream.system.cgroup import processor_limit
from opticstream.system.folders import ABSENT, folder_trouble
from opticstream.system.mounts import mount_of
from opticstream.system.time_limit import within


def test_a_folder_that_can_be_used_has_no_trouble_and_keeps_nothing(tmp_path):
    assert folder_trouble(tmp_path, writes=True) is None
    assert list(tmp_path.iterdir()) == []


def test_absent_folders_and_files_are_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert folder_trouble(tmp_path / "gone") == ABSENT
    assert folder_trouble(tmp_path / "file") == "it is not a folder"
    assert "a part of its path is a file" in str(folder_trouble(tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ESTALE, "its network share is stale"),
        (errno.EIO, "input/output error"),
        (errno.ENOTCONN, "is not connected"),
        (errno.EHOSTDOWN, "file server is down"),
        (errno.EACCES, "this account may not look into it"),
    ],
)
def test_shares_that_are_away_are_told_by_their_error(tmp_path, monkeypatch, code, said):
    def refuse(_path):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folders.os, "stat", refuse)
    trouble = folder_trouble(tmp_path)
    assert trouble is not None
    assert said in trouble
    assert os.strerror(code) in trouble


def test_a_folder_that_may_not_be_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.os, "access", lambda _path, mode: mode != os.W_OK)
    assert folder_trouble(tmp_path) is None
    assert folder_trouble(tmp_path, writes=True) == "this account may not write there"
    monkeypatch.setattr(folders, "_is_read_only", lambda _folder: True)
    assert folder_trouble(tmp_path, writes=True) == "its file system is mounted read-only"


def test_a_file_system_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(folders.os, "stat", lambda _path: released.wait(60))
    assert folder_trouble(tmp_path, limit_s=0.2) == "its file system did not answer within 0.2 s"
    released.set()


def test_a_call_within_its_time_gives_its_value_or_its_error():
    assert within(5, lambda: "value") == "value"
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    held = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        within(0.1, lambda: held.wait(60))
    held.set()


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:40 / /mnt rw shared:2 - nfs4 fs:/export rw
41 40 0:41 / /mnt/fast rw shared:3 - lustre mds@tcp:/fast rw
42 22 0:42 / /mnt/with\\040blank rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("folder", "kind", "is_of_network", "is_stamped_by_hosts"),
    [
        ("/data/p", "ext4", False, False),
        ("/mnt/rig/out", "nfs4", True, False),
        ("/mnt/fast/p", "lustre", True, True),
        ("/mnt/faster", "nfs4", True, False),
        ("/mnt/with blank/p", "fuse.sshfs", True, True),
    ],
)
def test_the_file_system_of_a_folder_is_known(tmp_path, folder, kind, is_of_network, is_stamped_by_hosts):
    (tmp_path / "mountinfo").write_text(MOUNTS)
    mount = mount_of(Path(folder), mounts=tmp_path / "mountinfo")
    assert mount is not None
    assert (mount.kind, mount.is_of_network, mount.is_stamped_by_hosts) == (kind, is_of_network, is_stamped_by_hosts)


def test_the_processor_time_of_a_container_is_read_from_all_groups_above(tmp_path):
    (tmp_path / "cgroup").write_text("0::/system.slice/worker.service\n")
    group = tmp_path / "fs" / "system.slice" / "worker.service"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("max 100000\n")
    assert processor_limit(root=tmp_path / "fs", own=tmp_path / "cgroup") is None
    (group.parent / "cpu.max").write_text("150000 100000\n")
    assert processor_limit(root=tmp_path / "fs", own=tmp_path / "cgroup") == 1.5
    assert processor_limit(root=tmp_path, own=tmp_path / "none") is None
