"""Archive copies in Zarr form: the raw file comes back byte for byte, or an error says what is damaged."""

import hashlib
import json
import struct
import zipfile

import numpy as np
import pytest

from opticstream.config import config_from_mapping
from opticstream.io.packed12 import packed12_from_samples
from opticstream.io.raw import SpectralShape, SpectralTile
from opticstream.io.spectra_zarr import SpectraZarrReader
from opticstream.model.errors import FileFormatError, InputError, MissingInputError, ProcessingError
from opticstream.model.ids import TileId
from opticstream.stages.tile import (
    SpectraContent,
    archive_tile,
    process_tile,
    spectra_of_nifti,
    unpack_archive,
    verify_archive,
    verify_archives,
)
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

SAMPLES, A_LINES, B_LINES = 128, 9, 7
SHAPE = SpectralShape(SAMPLES, A_LINES, 2, B_LINES)


def counts():
    return fringe_counts(samples=SAMPLES, a_lines=A_LINES, b_lines=B_LINES)


def packed(raw, folder, **changes):
    content = changes.pop("content", SpectraContent(SHAPE, "nifti", str(raw)))
    return archive_tile(raw, folder / f"{raw.name}.zarr.zip", content=content, **changes)


@pytest.fixture
def raw(tmp_path):
    return write_spectral_nifti(tmp_path / "t.nii", counts())


@pytest.fixture
def copy(raw, tmp_path):
    return packed(raw, tmp_path / "archive").archive


def header_of(dtype, order="<", *, offset=352, dim=(4, SAMPLES, A_LINES, 2, B_LINES)):
    head = bytearray(offset)
    struct.pack_into(f"{order}i", head, 0, 348)
    struct.pack_into(f"{order}8h", head, 40, *dim, *([1] * (8 - len(dim))))
    struct.pack_into(f"{order}hh", head, 70, {"u2": 512, "i2": 4, "f4": 16}[dtype], 8 * int(dtype[1]))
    struct.pack_into(f"{order}f", head, 108, float(offset))
    head[344:348] = b"n+1\0"
    head[348:] = bytes(range(256)) * 8 if offset > 4096 else b"\7" * (offset - 348)
    return bytes(head[:offset])


class TestEveryRawFileComesBack:
    @pytest.mark.parametrize(
        ("dtype", "order", "offset", "cut", "more"),
        [
            ("u2", "<", 352, 0, b""),
            ("u2", ">", 352, 0, b""),
            ("i2", "<", 352, 0, b""),
            ("i2", ">", 700, 0, b""),
            ("u2", "<", 352, 0, b"a trailer of the rig"),
            ("u2", "<", 352, 11, b""),
            ("u2", "<", 352, 2 * SAMPLES * A_LINES * 2 * B_LINES - 4, b""),
            ("u2", "<", 352, 2 * SAMPLES * A_LINES * 2 * B_LINES, b""),
        ],
    )
    def test_header_padding_trailer_and_a_cut_file_included(self, tmp_path, dtype, order, offset, cut, more):
        data = header_of(dtype, order, offset=offset) + counts().astype(order + dtype).tobytes() + more
        data = data[: len(data) - cut]
        raw = tmp_path / "t.nii"
        raw.write_bytes(data)
        result = packed(raw, tmp_path / "archive")
        unpack_archive(result.archive, tmp_path / "back.nii")
        assert (tmp_path / "back.nii").read_bytes() == data
        assert result.sha256 == hashlib.sha256(data).hexdigest()
        assert result.archive_sha256 == hashlib.sha256(result.archive.read_bytes()).hexdigest()
        assert verify_archive(result.archive).problem is None

    def test_packed_samples_too(self, tmp_path):
        raw = tmp_path / "t.raw"
        raw.write_bytes(packed12_from_samples(counts() & 4095).tobytes())
        copy = packed(raw, tmp_path / "archive", content=SpectraContent(SHAPE, "packed12")).archive
        unpack_archive(copy, tmp_path / "back.raw")
        assert (tmp_path / "back.raw").read_bytes() == raw.read_bytes()

    def test_threads_and_levels_change_no_count(self, raw, tmp_path):
        one = packed(raw, tmp_path / "one").archive
        assert packed(raw, tmp_path / "two", threads=3).archive.read_bytes() == one.read_bytes()
        for level in (0, 4):
            copy = packed(raw, tmp_path / str(level), level=level).archive
            assert verify_archive(copy).problem is None
            unpack_archive(copy, tmp_path / f"{level}.nii")
            assert (tmp_path / f"{level}.nii").read_bytes() == raw.read_bytes()

    def test_a_gzip_copy_is_unpacked_by_the_same_call(self, raw, tmp_path):
        copy = archive_tile(raw, tmp_path / "archive" / "t.nii.gz").archive
        unpack_archive(copy, tmp_path / "back.nii")
        assert (tmp_path / "back.nii").read_bytes() == raw.read_bytes()


def test_public_packages_read_one_b_line_by_itself(raw, copy, tmp_path):
    import zarr

    thinned = tmp_path / "thinned.zarr.zip"  # everything but B-line 5 is gone
    with zipfile.ZipFile(copy) as whole, zipfile.ZipFile(thinned, "w") as part:
        for name in whole.namelist():
            if not name.startswith(("residual/c/", "mean/c/")) or name.split("/")[2] == "5":
                part.writestr(name, whole.read(name))
    with zarr.storage.ZipStore(thinned, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        z = group["residual"][5, 1]
        found = (z >> 1) ^ -(z & 1)
        if group["differences"][5, 1]:
            found = np.cumsum(found, axis=-1, dtype="uint16")
        found = found + group["mean"][5, 1]
        assert group["residual"].metadata.dimension_names == ("b_line", "channel", "a_line", "sample")
        assert group.attrs["opticstream"]["sha256"] == hashlib.sha256(raw.read_bytes()).hexdigest()
    np.testing.assert_array_equal(found, counts()[5, 1])


def test_a_copy_can_be_processed_like_the_raw_file(raw, copy):
    with SpectralTile.open(copy, SHAPE) as tile:
        tile.check_end()
    with SpectralTile.open(copy, SHAPE) as tile:
        found = np.concatenate([part.copy() for _, part in tile.blocks(3)])
    np.testing.assert_array_equal(found, counts())


def test_a_tile_is_archived_in_the_reading_in_which_it_is_processed(raw, tmp_path):
    config = config_from_mapping(
        {
            "project": {"project_name": "p", "project_base_path": str(tmp_path / "p")},
            "scan": {
                "samples": SAMPLES,
                "b_lines": B_LINES,
                "illuminations": [{"name": "normal", "columns": 1, "rows": 1, "a_lines": A_LINES}],
            },
            "processing": {"archive": {"format": "zarr"}},
        }
    )
    archive = tmp_path / "a" / "t.nii.zarr.zip"
    done = process_tile(
        raw,
        TileId(1, 1),
        scan=config.scan,
        processing=config.processing,
        out_dir=tmp_path / "p",
        archive_to=archive,
    )
    assert done.outputs["archive"].sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert done.outputs["checksum"].path.name == "t.nii.sha256"
    assert done.raw_sha256 == hashlib.sha256(raw.read_bytes()).hexdigest()
    unpack_archive(archive, tmp_path / "back.nii")
    assert (tmp_path / "back.nii").read_bytes() == raw.read_bytes()


class TestDamage:
    def test_every_changed_byte_is_noticed_or_changes_nothing(self, raw, copy, tmp_path):
        good, original = copy.read_bytes(), raw.read_bytes()
        rng = np.random.default_rng(5)
        refused = 0
        for at in rng.integers(0, len(good), 60):
            data = bytearray(good)
            data[at] ^= int(rng.integers(1, 256))
            copy.write_bytes(data)
            target = tmp_path / "back.nii"
            if verify_archive(copy).problem is None:  # a byte of the zip file that says nothing, such as a time
                unpack_archive(copy, target)
                assert target.read_bytes() == original
                target.unlink()
                continue
            refused += 1
            with pytest.raises(FileFormatError, match=r"^[^\n]*t\.nii\.zarr\.zip: [^\n]+$"):
                unpack_archive(copy, target)
            assert not target.exists()
        assert refused > 40

    @pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99, -1])
    def test_a_cut_copy_is_refused_and_leaves_nothing(self, copy, tmp_path, kept):
        data = copy.read_bytes()
        copy.write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else kept])
        with pytest.raises(FileFormatError, match=r"t\.nii\.zarr\.zip: cannot be read as an archive of spectra"):
            unpack_archive(copy, tmp_path / "out" / "back.nii")
        assert verify_archive(copy).problem
        assert not list(tmp_path.glob("out/*"))

    def test_a_copy_of_another_file_is_noticed_by_the_checksum(self, copy, tmp_path):
        copy.with_name("t.nii.sha256").write_text(f"{'0' * 64}  t.nii\n")
        with pytest.raises(FileFormatError, match=r"damaged: holds SHA-256 [0-9a-f]{64}, expected 0000"):
            unpack_archive(copy, tmp_path / "back.nii")
        assert not (tmp_path / "back.nii").exists()
        assert "SHA-256" in next(iter(verify_archives(copy.parent))).problem

    def test_without_the_checksum_file_its_own_is_compared(self, raw, copy, tmp_path):
        copy.with_name("t.nii.sha256").unlink()
        unpack_archive(copy, tmp_path / "back.nii")
        assert (tmp_path / "back.nii").read_bytes() == raw.read_bytes()

    def test_a_later_version_is_refused_by_its_number(self, copy, tmp_path):
        other = tmp_path / "later.nii.zarr.zip"
        with zipfile.ZipFile(copy) as old, zipfile.ZipFile(other, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                if name == "zarr.json":
                    about = json.loads(data)
                    about["attributes"]["opticstream"]["version"] = 2
                    data = json.dumps(about).encode()
                new.writestr(name, data)
        with pytest.raises(FileFormatError, match="written in version 2 of this form, expected 1"):
            SpectraZarrReader.open(other)

    def test_a_b_line_that_does_not_come_back_stops_the_archiving(self, raw, tmp_path, monkeypatch):
        import imagecodecs

        def faulty(*args, **options):
            honest(*args, **options)
            options["out"][100] ^= 1

        honest = imagecodecs.blosc_decode
        monkeypatch.setattr(imagecodecs, "blosc_decode", faulty)
        with pytest.raises(ProcessingError, match="does not give the raw bytes back"):
            packed(raw, tmp_path / "archive")
        assert not list(tmp_path.glob("archive/*"))


class TestRefused:
    def test_an_existing_file_is_never_replaced(self, raw, copy):
        with pytest.raises(InputError, match=r"t\.nii: exists already; name another place with --to"):
            unpack_archive(copy, raw)

    def test_numbers_of_another_type_name_the_setting(self, tmp_path):
        raw = tmp_path / "t.nii"
        raw.write_bytes(header_of("f4") + counts().astype("<f4").tobytes())
        with pytest.raises(FileFormatError, match=r'holds float32, but processing\.archive\.format = "zarr" is for'):
            packed(raw, tmp_path / "archive")
        assert not list(tmp_path.glob("archive/*"))

    def test_files_that_are_no_copies(self, raw, tmp_path):
        with pytest.raises(InputError, match=r"is no archive copy; expected a name that ends with \.gz or \.zarr\.zip"):
            unpack_archive(raw, tmp_path / "back.nii")
        with pytest.raises(MissingInputError, match="no such file"):
            unpack_archive(tmp_path / "gone.nii.zarr.zip", tmp_path / "back.nii")

    def test_a_header_without_lengths(self, tmp_path):
        raw = tmp_path / "t.nii"
        raw.write_bytes(header_of("u2", dim=(4, SAMPLES, -5, 2, B_LINES)) + bytes(1000))
        with pytest.raises(FileFormatError, match="expected samples, A-lines, channels, B-lines"):
            spectra_of_nifti(raw)

    def test_complex_tiles_are_refused_by_the_project(self):
        text = {
            "project": {"project_name": "p", "project_base_path": "/p"},
            "scan": {"raw_format": "complex"},
            "processing": {"archive": {"format": "zarr"}},
        }
        with pytest.raises(ValueError, match=r'processing\.archive\.format = "zarr" is for spectra'):
            config_from_mapping(text)
        config_from_mapping(text | {"scan": {"raw_format": "complex", "spectral_file_name": "s{running}.nii"}})


class TestCommands:
    @pytest.fixture
    def run(self):
        from typer.testing import CliRunner

        from opticstream.cli import app

        return lambda *words: CliRunner().invoke(app, ["archive", *map(str, words)])

    def test_write_verify_and_unpack(self, run, raw, tmp_path):
        assert run("write", raw, "--out", tmp_path / "a", "--format", "zarr").exit_code == 0
        assert run("write", raw, "--out", tmp_path / "a").exit_code == 0
        told = run("verify", tmp_path / "a")
        assert told.exit_code == 0, told.output
        assert "2 of 2 copies are intact" in told.output
        copy = tmp_path / "a" / "t.nii.zarr.zip"
        assert run("unpack", copy, "--to", tmp_path / "out").exit_code == 0
        assert run("unpack", copy, "--to", tmp_path / "other.nii").exit_code == 0
        assert (tmp_path / "out" / "t.nii").read_bytes() == raw.read_bytes()
        assert (tmp_path / "other.nii").read_bytes() == raw.read_bytes()

    def test_a_damaged_copy_does_not_stop_the_others(self, run, raw, tmp_path):
        other = write_spectral_nifti(tmp_path / "u.nii", counts())
        run("write", raw, other, "--out", tmp_path / "a", "--format", "zarr")
        bad, good = tmp_path / "a" / "t.nii.zarr.zip", tmp_path / "a" / "u.nii.zarr.zip"
        bad.write_bytes(bad.read_bytes()[:-100])
        told = run("unpack", bad, good, "--to", tmp_path / "out", "--json")
        assert told.exit_code == 1
        assert [set(one) >= {"error"} for one in json.loads(told.stdout)] == [True, False]
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["u.nii"]
