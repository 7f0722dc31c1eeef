"""Archive copies: ordinary gzip, the same bytes whatever the threads, and every kind of damage noticed."""

import gzip
import hashlib
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticstream.model.errors import MissingInputError
from opticstream.stages.tile._archive_tile import archive_tile, verify_archive, verify_archives
from opticstream.stages.tile._archive_writers import CHUNK_BYTES, GzipWriter
from opticstream.state.manifest import manifest_path, write_manifest


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
    digest = hashlib.sha256(one.archive.read_bytes()).hexdigest()
    assert one.archive_sha256 == two.archive_sha256 == digest, "of the copy as it was written"


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES // 2), max_size=4))
@settings(max_examples=15, deadline=None)
def test_how_the_reader_cuts_the_file_changes_no_byte(pieces):
    import io

    data = bytes(range(256)) * (sum(pieces) // 256 + 1)
    data = data[: sum(pieces)]

    def copy(sizes):
        file = io.BytesIO()
        writer = GzipWriter(file)
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
    outcomes = {o.archive.name.removesuffix(".nii.gz"): o for o in verify_archives(tmp_path / "a")}
    assert not outcomes.pop("unsigned").judged
    assert all(outcome.judged for outcome in outcomes.values())
    problems = {name: outcome.problem for name, outcome in outcomes.items()}
    assert problems.pop("good") is None
    assert set(problems) == {"cut", "flipped", "other", "gone", "nonsense"}
    assert all(problems.values())
    assert "SHA-256" in problems["other"]


class TestPublishedTree:
    """Raw copies, maps, pictures and volumes lie side by side; each is judged by the checksum that it has."""

    @pytest.fixture
    def tree(self, tmp_path):
        folder = tmp_path / "DANDISET"
        archive_tile(_raw(tmp_path, 5000, "t.nii"), folder / "rawdata" / "t.nii.gz")
        results = folder / "derivative"
        for name in ("zarr.json", "0/zarr.json", "0/c/0/0/0", "0/c/0/0/1"):
            chunk = results / "v.ome.zarr" / name
            chunk.parent.mkdir(parents=True, exist_ok=True)
            chunk.write_bytes(name.encode())
        write_manifest(results / "v.ome.zarr")
        (results / "old.ome.zarr").mkdir()
        (results / "old.ome.zarr" / "zarr.json").write_text("{}")
        (results / "aip.nii.gz").write_bytes(gzip.compress(b"map"))
        (results / "aip.jpg").write_bytes(b"picture")
        return folder

    @staticmethod
    def outcomes(tree):
        return {o.archive.name: o for o in verify_archives(tree)}

    def test_good_copies_are_whole_and_what_has_no_checksum_is_said(self, tree):
        outcomes = self.outcomes(tree)
        assert {n for n, o in outcomes.items() if o.judged} == {"t.nii.gz", "v.ome.zarr"}
        assert {n for n, o in outcomes.items() if not o.judged} == {"aip.nii.gz", "aip.jpg", "old.ome.zarr"}
        assert all(o.problem is None for o in outcomes.values())

    def test_chunks_that_are_missing_too_many_or_changed_are_named(self, tree):
        store = tree / "derivative" / "v.ome.zarr"
        (store / "0/c/0/0/0").unlink()
        (store / "0/c/0/0/1").write_bytes(b"another")
        (store / "0/c/9").write_bytes(b"")
        problem = self.outcomes(tree)["v.ome.zarr"].problem
        assert problem == "missing: 0/c/0/0/0; not in the manifest: 0/c/9; changed: 0/c/0/0/1"

    def test_a_volume_that_is_gone_and_a_damaged_manifest_are_problems(self, tree):
        store = tree / "derivative" / "v.ome.zarr"
        shutil.rmtree(store)
        assert "is gone" in self.outcomes(tree)["v.ome.zarr"].problem
        manifest_path(store).write_text("hello\n")
        store.mkdir()
        assert "line 1: expected 'sha256  path'" in self.outcomes(tree)["v.ome.zarr"].problem

    def test_a_plain_file_is_judged_by_a_checksum_beside_it(self, tree):
        picture = tree / "derivative" / "aip.jpg"
        digest = hashlib.sha256(picture.read_bytes()).hexdigest()
        picture.with_name("aip.jpg.sha256").write_text(f"{digest}  aip.jpg\n")
        assert (self.outcomes(tree)["aip.jpg"].judged, self.outcomes(tree)["aip.jpg"].problem) == (True, None)
        picture.write_bytes(b"other")
        assert "holds SHA-256" in self.outcomes(tree)["aip.jpg"].problem

    def test_the_command_tells_and_its_exit_status_judges_only_what_can_be_judged(self, tree):
        from typer.testing import CliRunner

        from opticstream.cli import app

        good = CliRunner().invoke(app, ["archive", "verify", str(tree)])
        assert good.exit_code == 0, good.output
        assert "aip.nii.gz: has no checksum" in good.output
        assert "2 of 2 copies are intact; 3 without a checksum were not verified" in good.output
        (tree / "derivative" / "v.ome.zarr" / "zarr.json").write_text("damaged")
        bad = CliRunner().invoke(app, ["archive", "verify", str(tree)])
        assert bad.exit_code == 1
        assert "changed: zarr.json" in bad.output
        (tree / "nothing").mkdir()
        assert CliRunner().invoke(app, ["archive", "verify", str(tree / "nothing")]).exit_code == 1
