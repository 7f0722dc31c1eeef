"""The manifest of a store: what sha256sum reads, the same text every time, and one checksum with its folder."""

from __future__ import annotations

import hashlib
import shutil
import subprocess

import pytest

from opticstream.model.errors import FileFormatError
from opticstream.model.ids import MosaicId
from opticstream.state.facts import Facts
from opticstream.state.manifest import (
    differences_from_manifest,
    manifest_path,
    read_manifest,
    records_of_store,
    write_manifest,
)
from opticstream.state.record import sha256_of_path
from opticstream.state.verify import verify


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "mosaic-01" / "stitched" / "a b.ome.zarr"
    for name in ("zarr.json", "1/c/0", "0/c/0", "0/c/10"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 3)
    return folder


def test_the_text_is_the_same_every_time_and_its_digest_is_the_checksum_of_the_folder(store):
    text = write_manifest(store, threads=1).read_bytes()
    assert write_manifest(store, threads=5).read_bytes() == text
    assert [line.split("  ")[1] for line in text.decode().splitlines()] == ["0/c/0", "0/c/10", "1/c/0", "zarr.json"]
    assert hashlib.sha256(text).hexdigest() == sha256_of_path(store)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_sha256sum_reads_it_inside_the_store(store):
    command = ["sha256sum", "-c", "--quiet", str(write_manifest(store))]
    assert subprocess.run(command, cwd=store).returncode == 0
    (store / "0/c/0").write_bytes(b"changed")
    assert subprocess.run(command, cwd=store, capture_output=True).returncode == 1


def test_differences_are_named(store):
    listed = read_manifest(write_manifest(store))
    assert not differences_from_manifest(store, listed)
    (store / "0/c/0").write_bytes(b"changed")
    (store / "1/c/0").unlink()
    (store / "extra").write_bytes(b"")
    found = differences_from_manifest(store, listed)
    assert (found.changed, found.missing, found.extra) == (("0/c/0",), ("1/c/0",), ("extra",))
    names_only = differences_from_manifest(store, listed, contents=False)
    assert (names_only.changed, names_only.missing, names_only.extra) == ((), ("1/c/0",), ("extra",))


def test_many_differences_are_counted(store):
    listed = {f"c/{n}": "0" * 64 for n in range(9)}
    assert str(differences_from_manifest(store, listed)).startswith("missing: c/0, c/1, c/2, c/3, c/4 and 4 more; ")


def test_a_damaged_manifest_names_the_line(store):
    path = write_manifest(store)
    path.write_text(path.read_text() + "hello\n")
    with pytest.raises(FileFormatError, match="line 5: expected 'sha256  path', got 'hello'"):
        read_manifest(path)


def test_state_verify_names_the_chunk(tmp_path, store):
    facts = Facts(tmp_path)
    write_manifest(store)
    records = records_of_store(facts.file_record, store)
    assert [record.sha256 for record in records] == [sha256_of_path(store), sha256_of_path(manifest_path(store))]
    facts.record(MosaicId(1), "volume_stitched", {"outputs": records})
    assert verify(facts) == []
    (store / "0/c/10").write_bytes(b"0/c/10" * 2 + b"0/c/11")
    (finding,) = verify(facts)
    assert finding.problem == "checksum"
    assert finding.message.endswith("(changed: 0/c/10)")
    (store / "0/c/10").unlink()
    (finding,) = verify(facts, checksums=False)
    assert finding.problem == "size"
    assert finding.message.endswith("(missing: 0/c/10)")


def test_a_store_of_an_earlier_version_is_recorded_without_a_checksum(tmp_path, store):
    (record,) = records_of_store(Facts(tmp_path).file_record, store)
    assert record.sha256 is None
