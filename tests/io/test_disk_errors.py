"""A disk that takes no more: every writer says so as the system does, with a name, and leaves nothing cut off.

Files may not grow beyond a size here: to libraries that is what a full disk is, a write that is refused half-way.
"""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from opticstream.io.atomic import write_bytes, write_text
from opticstream.io.disk_errors import disk_errors
from opticstream.io.nifti import write_nifti
from opticstream.io.orientation_pictures import write_picture
from opticstream.io.pictures import write_jpeg, write_tiff
from opticstream.io.zarr import SliceStore, StoreWriter, store_layout
from opticstream.pipeline.failures import is_transient, kind_of

NOISE = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_store(path: Path) -> None:
    data = NOISE[:64, :64, :1].astype(np.float32).repeat(64, axis=2)
    with StoreWriter(path, store_layout((64, 64, 64), voxel_size_um=(1, 1, 1)), name="v", provenance={}) as store:
        store.levels.settle([store.levels.write(0, (0, 0, 0), data)])
        store.finish()


def write_slice(path: Path) -> None:
    SliceStore(path, 1, (10.0, 10.0, 300.0)).put(0, (200, 200), lambda x, y: NOISE[x, y, :1].astype(np.float32))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.bin": lambda path: write_bytes(path, NOISE.tobytes()),
    "a.jpg": lambda path: write_jpeg(path, NOISE),
    "b.jpg": lambda path: write_picture(path, NOISE),
    "b.png": lambda path: write_picture(path, NOISE),
    "b.tif": lambda path: write_picture(path, NOISE),
    "a.tif": lambda path: write_tiff(path, NOISE[..., 0]),
    "a.nii": lambda path: write_nifti(path, NOISE),
    "a.nii.gz": lambda path: write_nifti(path, NOISE),
    "v.ome.zarr": write_store,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_does_not_fit_is_refused_by_name_and_never_cut_off(tmp_path, name):
    with no_file_beyond(5000), pytest.raises(OSError, match="File too large") as raised:
        WRITERS[name](tmp_path / name)
    assert raised.value.errno == errno.EFBIG
    assert Path(name).stem.split(".")[0] in str(raised.value.filename)
    assert not (tmp_path / name).exists()
    WRITERS[name](tmp_path / name)
    assert (tmp_path / name).exists()


def test_a_stack_that_does_not_fit_says_so_as_the_system_does(tmp_path):
    with no_file_beyond(5000), pytest.raises(OSError, match="File too large") as raised:
        write_slice(tmp_path / "s.ome.zarr")
    assert is_transient(raised.value)
    write_slice(tmp_path / "s.ome.zarr")


def test_a_full_disk_in_the_store_library_is_no_fault_of_the_program(tmp_path):
    with pytest.raises(OSError, match="No space left on device") as raised, disk_errors(tmp_path / "v.ome.zarr"):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']")
    assert kind_of(raised.value) == "disk full"
    assert is_transient(raised.value)


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(ValueError, match="no numbers"), disk_errors(tmp_path):
        raise ValueError("no numbers")
    unreadable = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output") as raised, disk_errors(tmp_path):
        raise unreadable
    assert raised.value.filename is None  # perhaps an input's, not this file's


def test_what_the_disk_refuses_names_the_file_that_was_to_be_and_nothing_else(tmp_path, monkeypatch):
    import os

    def refuse(_handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=r"^\[Errno 5\] Input/output error: '[^']*/map\.nii'$"):
        write_text(tmp_path / "map.nii", "x")
