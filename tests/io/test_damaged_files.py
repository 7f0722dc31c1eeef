"""No reader lets an error of a library through: damaged files give a result or one line of ours that names them."""

from __future__ import annotations

import errno
import gzip
import os
import random
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from opticstream.config import load_project
from opticstream.io.calibration_files import read_vector
from opticstream.io.images import TileVolume, read_image
from opticstream.io.nifti import read_nifti, voxel_size_mm, write_nifti
from opticstream.io.packed12 import packed12_from_samples
from opticstream.io.raw import ComplexTile, SpectralShape, SpectralTile
from opticstream.io.reading import reading_errors
from opticstream.io.tileconfig import ConfiguredTile, read_tile_configuration, write_tile_configuration
from opticstream.io.tilemap import TileMap, TilePlace, read_tilemap, write_template
from opticstream.io.zarr import volume_reader, volume_voxel_um
from opticstream.model.errors import FileFormatError, InputError, MissingInputError, OpticStreamError, StateError
from opticstream.model.ids import BatchId
from opticstream.stages.tile import archive_tile, verify_archive
from opticstream.state import Facts
from opticstream.testing.raw_tiles import nifti_header, write_spectral_nifti

SHAPE = SpectralShape(samples=16, a_lines=4, channels=2, b_lines=3)
VALUES = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)


def counts():
    return np.random.default_rng(0).integers(0, 4096, (3, 2, 4, 16)).astype(np.uint16)


def spectral(path: Path) -> object:
    raw_format = "packed12" if ".raw" in path.name else "nifti"
    with SpectralTile.open(path, SHAPE, raw_format=raw_format) as tile:
        tile.check_end()
    with SpectralTile.open(path, SHAPE, raw_format=raw_format) as tile:
        return [block.sum() for _, block in tile.blocks(2)]


def complex_tile(path: Path) -> object:
    with ComplexTile.open(path, a_lines=4, b_lines=3) as tile:
        return tile.block(0, 3)


def volume(path: Path) -> object:
    tile = TileVolume(path)
    out = np.empty((1, 1, tile.shape[2]), np.float32)
    tile.read_into(out, 0, 0)
    return out


def make_raw(path: Path) -> None:
    plain = path.with_name("plain")
    if ".raw" in path.name:
        plain.write_bytes(packed12_from_samples(counts()).tobytes())
    else:
        write_spectral_nifti(plain, counts())
    path.write_bytes(gzip.compress(plain.read_bytes()) if path.suffix == ".gz" else plain.read_bytes())
    plain.unlink()


def make_complex(path: Path) -> None:
    header = nifti_header((16, 3, 5), datatype=16)
    path.write_bytes(header + np.ones((5, 3, 16), "<f4").tobytes())


def make_map(path: Path) -> None:
    write_nifti(path, VALUES)


def make_template(path: Path) -> None:
    places = tuple(TilePlace(n + 1, (8.0 * n, 0.0)) for n in range(3))
    write_template(path, TileMap("normal", (8, 8), (3, 1), places))


def make_configuration(path: Path) -> None:
    write_tile_configuration(path, [ConfiguredTile(f"t{n}.tif", (72.0 * n, 1.5)) for n in range(4)])


def make_project(path: Path) -> None:
    path.write_text('[project]\nproject_name = "p"\nproject_base_path = "o"\n[scan]\nsamples = 64\n', encoding="utf-8")


READERS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "raw.nii": (make_raw, spectral),
    "raw.nii.gz": (make_raw, spectral),
    "tile.raw": (make_raw, spectral),
    "tile.raw.gz": (make_raw, spectral),
    "complex.nii": (make_complex, complex_tile),
    "map.nii": (make_map, read_nifti),
    "map.nii.gz": (make_map, read_nifti),
    "image.nii.gz": (make_map, read_image),
    "voxels.nii": (make_map, voxel_size_mm),
    "voxels.nii.gz": (make_map, voxel_size_mm),
    "volume.nii": (make_map, volume),
    "volume.nii.gz": (make_map, volume),
    "image.npy": (lambda path: np.save(path, VALUES), read_image),
    "vector.npy": (lambda path: np.save(path, VALUES[:, 0, 0]), lambda path: read_vector(str(path))),
    "vector.npz": (lambda path: np.savez(path, a=VALUES[0]), lambda path: read_vector(f"{path}#a")),
    "packed.npz": (lambda path: np.savez_compressed(path, a=VALUES[0]), lambda path: read_vector(f"{path}#a")),
    "vector.mat": (lambda path: scipy.io.savemat(path, {"a": VALUES[0]}), lambda path: read_vector(f"{path}#a")),
    "packed.mat": (
        lambda path: scipy.io.savemat(path, {"a": VALUES[0]}, do_compression=True),
        lambda path: read_vector(f"{path}#a"),
    ),
    "vector.dat": (lambda path: path.write_bytes(VALUES.astype("<f8").tobytes()), lambda path: read_vector(str(path))),
    "vector.txt": (lambda path: np.savetxt(path, VALUES[0]), lambda path: read_vector(str(path))),
    "tilemap.j2": (make_template, read_tilemap),
    "TileConfiguration.txt": (make_configuration, read_tile_configuration),
    "project.toml": (make_project, load_project),
}


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, most of them near the beginning or the end; sometimes cut, or something added."""
    content = bytearray(whole)
    for _ in range(rng.randrange(1, 5)):
        reach = min(len(content), rng.choice((12, 120, 400, len(content))))
        place = rng.randrange(reach)
        place = len(content) - 1 - place if rng.random() < 0.2 else place
        content[place] = rng.choice((0, 255, 0x7F, content[place] ^ (1 << rng.randrange(8)), rng.randrange(256)))
    if rng.random() < 0.25:
        del content[rng.randrange(len(content)) :]
    if rng.random() < 0.1:
        content += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 40)))
    return bytes(content)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")  # what libraries say of damaged headers beside their errors
def test_a_damaged_file_gives_a_result_or_one_line_that_names_it(tmp_path, name):
    make, read = READERS[name]
    path = tmp_path / name
    make(path)
    whole = path.read_bytes()
    read(path)
    rng = random.Random(name)
    refusals = []
    for _ in range(150):
        path.write_bytes(damaged(whole, rng))
        try:
            read(path)
        except OpticStreamError as error:
            refusals.append(str(error))
    assert len(refusals) > 5
    assert all(name in refusal for refusal in refusals)


@pytest.mark.parametrize("version", [2, 3])
def test_a_damaged_zarr_gives_a_result_or_one_line_that_names_it(tmp_path, version):
    import tensorstore as ts

    whole = tmp_path / "whole.zarr"
    spec = {"driver": f"zarr{version}".replace("zarr2", "zarr"), "kvstore": {"driver": "file", "path": str(whole)}}
    layout = ts.ChunkLayout(chunk_shape=[2, 5, 4])
    array = ts.open(spec, create=True, dtype=ts.float32, shape=VALUES.shape, chunk_layout=layout)
    array.result().write(VALUES).result()
    rng = random.Random(version)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    path = tmp_path / "damaged.zarr"
    refusals = []
    for _ in range(80):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        victim = path / rng.choice(files)
        victim.write_bytes(damaged(victim.read_bytes(), rng))
        for read in (read_image, volume, volume_reader, volume_voxel_um):
            try:
                read(path)
            except OpticStreamError as error:
                refusals.append(str(error))
    assert len(refusals) > 20
    assert all("damaged.zarr" in refusal for refusal in refusals)


def test_a_damaged_flag_is_a_state_error(tmp_path):
    facts = Facts(tmp_path)
    facts.record(BatchId(1, 1), "processed", {"detail": {"tiles": {"1": {"outcome": "ok"}}}})
    path = facts.path(BatchId(1, 1), "processed")
    whole = path.read_bytes()
    rng = random.Random(2)
    for content in [*(damaged(whole, rng) for _ in range(150)), b"[" * 100_000, b"\xff\xfe{", b"1e999"]:
        path.write_bytes(content)
        try:
            facts.read(BatchId(1, 1), "processed")
            facts.hashes(BatchId(1, 1), "processed")
        except StateError as error:
            message = str(error)
            assert path.name in message


@pytest.mark.parametrize("shape", [(32767, 32767, 32767), (30000, 30000, 40), (0, 5, 4), (-3, 5, 4)])
@pytest.mark.parametrize("packed", [False, True])
def test_absurd_sizes_in_a_header_take_no_memory(tmp_path, shape, packed):
    content = nifti_header(shape, datatype=16) + VALUES.tobytes()
    path = tmp_path / ("t.nii.gz" if packed else "t.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    for read in (read_nifti, read_image, volume):
        with pytest.raises(FileFormatError, match=r"t\.nii"):
            read(path)


@pytest.mark.parametrize("missing", [1, 4, 8, 12])
def test_compressed_data_without_their_end_are_refused_also_when_all_values_are_there(tmp_path, missing):
    path = tmp_path / "raw.nii.gz"
    make_raw(path)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(InputError, match=r"raw\.nii\.gz: (its compressed data end early|ended after)"):
        spectral(path)


def test_compressed_values_that_do_not_match_their_checksum_are_refused(tmp_path):
    path = write_nifti(tmp_path / "map.nii.gz", VALUES)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"map\.nii\.gz: cannot be read as NIfTI"):
        read_nifti(path)


def test_a_compressed_complex_tile_is_refused_in_plain_words(tmp_path):
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(FileFormatError, match="expected an uncompressed one"):
        complex_tile(tmp_path / "c.nii.gz")


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device", "dangling link", "loop of links"])
@pytest.mark.parametrize("name", [name for name in READERS if name.endswith((".nii", ".gz", ".npy", ".raw"))])
def test_what_is_no_file_never_blocks_a_reader(tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        match kind:
            case "folder":
                os.mkdir(name)
            case "pipe":
                os.mkfifo(name)
            case "socket":
                listening.bind(name)
            case "device":
                os.symlink("/dev/zero", name)
            case "dangling link":
                os.symlink("nowhere", name)
            case "loop of links":
                os.symlink(name, name)
        wanted = MissingInputError if "link" in kind else FileFormatError
        if "vector" in name:
            wanted = InputError
        for read in (READERS[name][1], lambda path: archive_tile(path, tmp_path / "a.gz")):
            with pytest.raises(wanted, match=name):
                read(Path(name))


def test_errors_of_the_disk_stay_what_they_are_and_others_become_ours():
    for number, wanted in (
        (errno.EIO, OSError),
        (errno.ESTALE, OSError),
        (errno.ENOENT, MissingInputError),
        (errno.EACCES, InputError),
        (errno.EINVAL, FileFormatError),
    ):
        with pytest.raises(wanted, match=r"a\.nii") as raised, reading_errors(Path("a.nii"), "NIfTI"):
            raise OSError(number, os.strerror(number))
        assert isinstance(raised.value, OpticStreamError) == (wanted is not OSError)
    for error in (EOFError(), RecursionError("deep"), OverflowError("big"), MemoryError(), KeyError("x")):
        told = pytest.raises(FileFormatError, match=r"a\.nii: cannot be read as NIfTI")
        with told, reading_errors(Path("a.nii"), "NIfTI"):
            raise error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["raw.nii", "raw.nii.gz", "map.nii", "image.npy"])
def test_a_file_without_read_permission_says_so(tmp_path, name):
    make, read = READERS[name]
    make(tmp_path / name)
    (tmp_path / name).chmod(stat.S_IWUSR)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        read(tmp_path / name)


def test_a_damaged_archive_copy_is_a_finding(tmp_path):
    make_raw(tmp_path / "raw.nii")
    archive = tmp_path / "a.nii.gz"
    archive_tile(tmp_path / "raw.nii", archive)
    whole = archive.read_bytes()
    rng = random.Random(1)
    for _ in range(200):
        content = damaged(whole, rng)
        archive.write_bytes(content)
        if verify_archive(archive).problem is None:
            assert gzip.decompress(content) == (tmp_path / "raw.nii").read_bytes()
