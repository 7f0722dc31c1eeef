"""Files reach the disk while others are written; what the disk refuses meanwhile is told, once is enough."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from opticstream.io.flush_behind import FlushBehind
from opticstream.io.zarr import StoreWriter, read_volume, store_layout


@pytest.fixture
def synced(monkeypatch):
    """Names of files in the order in which the system was asked to bring them to the disk."""
    names = []
    real = os.fsync

    def fsync(handle):
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


@pytest.fixture
def behind(tmp_path):
    flush = FlushBehind(tmp_path)
    yield flush
    flush.close()


def test_each_file_is_flushed_once_unless_it_is_replaced(tmp_path, behind, synced):
    (tmp_path / "one").write_text("1")
    behind.start()
    behind.finish()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "two").write_text("2")
    (tmp_path / "three.__lock").write_text("not whole yet")
    behind.finish()
    assert synced == ["one", "two"]
    (tmp_path / "new").write_text("1b")
    (tmp_path / "new").replace(tmp_path / "one")
    behind.finish()
    assert synced == ["one", "two", "one"]


@pytest.mark.parametrize("next_step", ["another block", "the end"])
def test_an_error_of_an_early_flush_ends_the_writing_and_no_run_builds_on_it(tmp_path, monkeypatch, next_step):
    layout = store_layout((8, 8, 8), voxel_size_um=(1, 1, 1))

    def refuse(_handle):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with StoreWriter(tmp_path / "v.ome.zarr", layout, name="v", provenance={}) as store:
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", refuse)
            store.note_finished(0)
            store._flush._running.exception()  # it has ended; the disk says so only once
        with pytest.raises(OSError, match=r"Input/output error: '.*v.*\.ome\.zarr"):
            store.note_finished(1) if next_step == "another block" else store.finish()
    assert not (tmp_path / "v.ome.zarr").exists()
    with StoreWriter(tmp_path / "v.ome.zarr", layout, name="v", provenance={}) as again:
        assert not again.finished


def test_a_store_is_flushed_whole_before_it_has_its_name(tmp_path, synced):
    layout = store_layout((8, 8, 8), voxel_size_um=(1, 1, 1))
    with StoreWriter(tmp_path / "v.ome.zarr", layout, name="v", provenance={}) as store:
        store.levels.settle([store.levels.write(0, (0, 0, 0), np.ones((8, 8, 8), np.float32))])
        store.note_finished(0)
        path = store.finish()
    files = {file.name for file in path.rglob("*") if file.is_file()}
    assert files <= set(synced)
    assert (read_volume(path) == 1).all()
