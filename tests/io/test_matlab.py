"""MATLAB files are read as SciPy reads them, but for what would end the process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io

from opticstream.io.matlab import arrays_from_matlab
from opticstream.model.errors import FileFormatError


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("level", ["5", "4"])
def test_arrays_are_those_that_were_saved(tmp_path, compressed, level):
    saved = {
        "row": np.arange(9.0), "image": np.arange(12, dtype=np.float32).reshape(3, 4), "one": np.array([[7.0]]),
        "a_longer_name_than_others": np.linspace(800, 900, 2048)[:, None],
    }  # fmt: skip
    if level == "5":
        saved |= {"counts": np.arange(6, dtype=np.uint16), "signed": np.array([[-5]], np.int8), "z": np.array([1 + 2j])}
        saved |= {"cube": np.arange(24.0).reshape(2, 3, 4), "big": np.array([1 << 60], np.uint64)}
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, saved | {"text": "not a number"}, do_compression=compressed and level == "5", format=level)
    found = arrays_from_matlab(path)
    theirs = scipy.io.loadmat(path)
    for name in saved:
        np.testing.assert_array_equal(found[name], theirs[name])
        assert found[name].dtype == theirs[name].dtype


def test_big_endian_files_are_read(tmp_path):
    import struct

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    values = np.array([1.5, -2.0, 1e9])
    matrix = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 1, 3)) + element(1, b"k_vector")
    matrix += element(9, values.astype(">f8").tobytes())
    header = b"MATLAB 5.0 MAT-file, written by hand".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    (tmp_path / "a.mat").write_bytes(header + element(14, matrix))
    np.testing.assert_array_equal(arrays_from_matlab(tmp_path / "a.mat")["k_vector"], [values])


def test_newer_and_other_files_are_refused_with_the_way_out(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(512))
    with pytest.raises(FileFormatError, match=r"a\.mat: is a MATLAB 7\.3 file, which cannot be read; save it with -v7"):
        arrays_from_matlab(path)
    path.write_bytes(b"a text that has the wrong name")
    with pytest.raises(FileFormatError, match=r"a\.mat"):
        arrays_from_matlab(path)


def test_a_real_chirp_file_is_read_as_scipy_reads_it(shared_data: Path):
    path = shared_data / "chirp" / "Chirp_Telesto.mat"
    theirs = {key: value for key, value in scipy.io.loadmat(path).items() if not key.startswith("__")}
    found = arrays_from_matlab(path)
    assert found.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(found[name], value)
