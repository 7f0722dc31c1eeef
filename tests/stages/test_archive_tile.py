"""Archive copies: ordinary gzip, the same bytes whatever the threads, and every kind of damage noticed."""

import gzip
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticstream.model.errors import MissingInputError
from opticstream.stages.archive_tile import CHUNK_BYTES, ArchiveWriter, archive_tile, verify_archive, verify_archives


def _raw(tmp_path, n=3 * CHUNK_BYTES + 1234, name="t.nii"):
    counts = np.clip(np.random.default_rng(0).normal(2000, 40, n // 2 + 1), 0, 4095).astype("<u2")
    path = tmp_path / name
    path.write_bytes(counts.tobytes()[:n])
    return path


@pytest.mark.parametrize("level", [0, 1, 2, 3, 6])
def test_the_copy_is_ordinary_gzip_of_the_raw_bytes(tmp_path, level):
    raw = _raw(tmp_path)
    result = archive_tile(raw, tmp_path / "out" / "t.nii.gz", level=level)
    assert gzip.decompress(result.archive.read_bytes()) == raw.read_bytes()
    assert result.sha256 == hashlib.sha256(raw.read_bytes()).hexdigest()
    assert result.archive.stat().st_size == result.archive_bytes
    assert verify_archive(result.archive).problem is None


def test_threads_change_no_byte(tmp_path):
    raw = _raw(tmp_path)
    one = archive_tile(raw, tmp_path / "one.nii.gz")
    two = archive_tile(raw, tmp_path / "two.nii.gz", threads=3)
    assert one.archive.read_bytes() == two.archive.read_bytes()
    assert one.sha256 == two.sha256


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES // 2), max_size=4))
@settings(max_examples=15, deadline=None)
def test_how_the_reader_cuts_the_file_changes_no_byte(pieces):
    import io

    data = bytes(range(256)) * (sum(pieces) // 256 + 1)
    data = data[: sum(pieces)]

    def copy(sizes):
        file = io.BytesIO()
        writer = ArchiveWriter(file)
        at = 0
        for size in sizes:
            writer.tap(memoryview(data)[at : at + size])
            at += size
        return writer.finish(), file.getvalue()

    assert copy(pieces) == copy([len(data)])
    assert gzip.decompress(copy(pieces)[1]) == data


def test_a_missing_raw_file_leaves_nothing(tmp_path):
    with pytest.raises(MissingInputError, match=r"gone\.nii"):
        archive_tile(tmp_path / "gone.nii", tmp_path / "out.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_damage_is_found(tmp_path):
    def copy(name):
        return archive_tile(_raw(tmp_path, 5000, name), tmp_path / "a" / f"{name}.gz").archive

    copy("good.nii")
    cut = copy("cut.nii")
    cut.write_bytes(cut.read_bytes()[:-20])
    flipped = copy("flipped.nii")
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    other = copy("other.nii")
    other.write_bytes(gzip.compress(b"something else"))
    copy("gone.nii").unlink()
    copy("unsigned.nii").with_name("unsigned.nii.sha256").unlink()
    nonsense = copy("nonsense.nii")
    nonsense.with_name("nonsense.nii.sha256").write_text("hello\n")
    problems = {o.archive.name.removesuffix(".nii.gz"): o.problem for o in verify_archives(tmp_path / "a")}
    assert problems.pop("good") is None
    assert set(problems) == {"cut", "flipped", "other", "gone", "unsigned", "nonsense"}
    assert all(problems.values())
    assert "SHA-256" in problems["other"]
