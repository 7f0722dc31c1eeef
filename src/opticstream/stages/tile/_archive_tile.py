"""The archive copy of a raw tile: written and hashed in the one pass in which the tile is read; verified; unpacked.

The name of a copy tells its form: `.gz`, or `.zarr.zip` (`processing.archive.format`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opticstream.io.atomic import TEMPORARY_MARK, atomic_path, write_text
from opticstream.io.nifti_header import HEADER_BYTES, nifti_layout_from_bytes
from opticstream.io.packed import PACKED_SUFFIXES, is_packed, packed_reader, unpacked_name
from opticstream.io.raw import SpectralShape
from opticstream.io.reading import check_regular_file, error_of_system, reading_errors
from opticstream.io.spectra_zarr import ZARR_SUFFIX, SpectraZarrReader
from opticstream.model.errors import ConfigurationError, FileFormatError, InputError, OpticStreamError
from opticstream.stages.tile._archive_writers import ArchiveWriter, GzipWriter, SpectraContent, SpectraZarrWriter
from opticstream.state.manifest import SUFFIX, differences_from_manifest, manifest_path, read_manifest
from opticstream.state.record import sha256_of_path, size_of_path

_STORE = ".zarr"
"""End of the name of a folder that counts as one: a store of chunks."""
_READ_BYTES = 1 << 22


def checksum_path(archive: Path, /) -> Path:
    """Return the checksum file of an archive copy; it holds name and SHA-256 of the uncompressed file.

    Examples
    --------
    >>> checksum_path(Path("a_OCT.nii.gz")).name
    'a_OCT.nii.sha256'
    """
    return archive.with_name(unpacked_name(archive.name) + SUFFIX)


@contextlib.contextmanager
def open_archive(
    archive: Path,
    /,
    *,
    content: SpectraContent | None = None,
    level: int = 1,
    pool: ThreadPoolExecutor | None = None,
) -> Iterator[ArchiveWriter[Any]]:
    """Yield a writer for `archive`; both the copy and its checksum file appear when the block ends without an error.

    The block calls `finish` itself or leaves it to the context manager. Copies named `.zarr.zip` hold spectra only, and
    need `content`.
    """
    with atomic_path(archive) as temporary:
        with temporary.open("wb") as file:
            writer: ArchiveWriter[Any]
            if not archive.name.endswith(ZARR_SUFFIX):
                writer = GzipWriter(file, level=level, pool=pool)
            elif content is not None:
                writer = SpectraZarrWriter(file, content, level=level, pool=pool)
            else:
                raise ConfigurationError(f'{archive}: processing.archive.format = "zarr" is for spectra only')
            try:
                yield writer
                digest = writer.finish().raw
            except BaseException:
                writer.abandon()
                raise
        checksum = checksum_path(archive)
        write_text(checksum, f"{digest}  {checksum.name.removesuffix(SUFFIX)}\n")


@dataclass(frozen=True, slots=True)
class ArchiveResult:
    """One archive copy."""

    archive: Path
    raw_bytes: int
    archive_bytes: int
    sha256: str
    """Of the raw file."""
    archive_sha256: str


def archive_tile(
    source: Path, archive: Path, /, *, content: SpectraContent | None = None, level: int = 1, threads: int = 1
) -> ArchiveResult:
    """Write the archive copy of a raw file by itself, without reconstructing it, and return what was written.

    Parameters
    ----------
    source : Path
        The raw file. It may be packed itself if `archive` is named `.zarr.zip`.
    archive : Path
        The copy; its name tells its form.
    content : SpectraContent, optional
        What the file holds; needed for `.zarr.zip`.
    level : int
        As in `processing.archive.level`.
    threads : int
        How many threads pack.

    Raises
    ------
    MissingInputError, InputError
        The source is absent, cannot be read, or does not hold what `content` says.
    """
    try:
        check_regular_file(source)
        unpack = is_packed(source) and archive.name.endswith(ZARR_SUFFIX)
        file = packed_reader(source) if unpack else source.open("rb", buffering=0)
    except OSError as error:
        raise error_of_system(source, error) from error
    with file, _threads(threads) as pool, open_archive(archive, content=content, level=level, pool=pool) as writer:
        while data := _piece_of(source, file):
            writer.tap(memoryview(data))
        digests = writer.finish()
    return ArchiveResult(archive, writer.raw_bytes, writer.archive_bytes, digests.raw, digests.archive)


def spectra_of_nifti(source: Path, /) -> SpectraContent:
    """Return what a NIfTI file of spectra holds, from its header: samples, A-lines, channels, B-lines.

    Raises
    ------
    MissingInputError, FileFormatError, InputError, OSError
        It is absent, cannot be read, is no NIfTI file, or its header does not give these lengths.
    """
    check_regular_file(source)
    with reading_errors(source, "NIfTI"), packed_reader(source) if is_packed(source) else source.open("rb") as file:
        head = file.read(HEADER_BYTES)
        lengths = nifti_layout_from_bytes(head, name=str(source)).shape
    lengths = (*lengths, 1, 1, 1)[: max(4, len(lengths))]
    if min(lengths) < 1:
        raise FileFormatError(
            f"{source}: its header gives the axes {lengths}, expected samples, A-lines, channels, B-lines; "
            "`opticstream tile --archive` and `run` take them from the project file"
        )
    samples, a_lines, channels = lengths[:3]
    return SpectraContent(SpectralShape(samples, a_lines, channels, math.prod(lengths[3:])), "nifti", str(source))


def _piece_of(path: Path, file: Any) -> bytes:
    with reading_errors(path, "a raw file"):
        data: bytes = file.read(_READ_BYTES)
    return data


def unpack_archive(archive: Path, target: Path, /) -> ArchiveResult:
    """Write the raw file that is in an archive copy, byte for byte, and return what was read and written.

    The checksum file beside the copy must be that of these bytes. `target` appears when it is complete.

    Raises
    ------
    MissingInputError, FileFormatError, InputError
        The copy or its checksum file is absent, damaged or cannot be read, or `target` exists already.
    """
    if not is_packed(archive):
        raise InputError(
            f"{archive}: is no archive copy; expected a name that ends with {' or '.join(PACKED_SUFFIXES)}"
        )
    size = check_regular_file(archive).st_size
    expected = _checksum_of_raw_file(archive)
    if os.path.lexists(target):
        raise InputError(f"{target}: exists already; name another place with --to")
    digest, raw_bytes = hashlib.sha256(), 0
    with atomic_path(target) as temporary, temporary.open("wb") as out:
        for data in _contents(archive):
            digest.update(data)
            out.write(data)
            raw_bytes += len(data)
        out.flush()
        if digest.hexdigest() != expected:
            raise FileFormatError(f"{archive}: damaged: holds SHA-256 {digest.hexdigest()}, expected {expected}")
    return ArchiveResult(archive, raw_bytes, size, expected, "")


def _contents(archive: Path) -> Iterator[bytes]:
    """Yield the bytes of the raw file in a copy."""
    try:
        with packed_reader(archive) as file:
            while data := file.read(_READ_BYTES):
                yield data
    except (OpticStreamError, MemoryError):
        raise
    except OSError as error:
        raise error_of_system(archive, error, "an archive copy") from error
    except Exception as error:  # every gzip library raises other errors
        raise FileFormatError(f"{archive}: damaged: {error}") from error


def _checksum_of_raw_file(archive: Path) -> str:
    """Return the SHA-256 that a copy should hold: from the file beside it, else from the copy itself if it says so."""
    checksum = checksum_path(archive)
    if archive.name.endswith(ZARR_SUFFIX) and not checksum.exists():
        with SpectraZarrReader.open(archive) as reader:
            return reader.sha256
    expected = _checksum_in(checksum)
    if isinstance(expected, Verification):
        raise InputError(f"{archive}: cannot be checked: {expected.problem}; put its checksum file beside it")
    return expected


@dataclass(frozen=True, slots=True)
class Verification:
    """What re-reading an archive copy, or any other file or store of an archive, showed."""

    archive: Path
    problem: str | None
    """None where it holds the bytes that its checksums vouch for."""
    raw_bytes: int = 0
    judged: bool = True
    """False where it has no checksum: nothing is known of it."""


def verify_archive(archive: Path, /) -> Verification:
    """Unpack an archive copy, compare its SHA-256 with the checksum file beside it, and return the outcome."""
    checksum = checksum_path(archive)
    expected = _checksum_in(checksum)
    if isinstance(expected, Verification):
        return Verification(archive, expected.problem)
    digest, size = hashlib.sha256(), 0
    try:
        for data in _contents(archive):
            digest.update(data)
            size += len(data)
    except Exception as error:
        return Verification(archive, f"damaged: {error}", size)
    if digest.hexdigest() != expected:
        return Verification(archive, f"holds SHA-256 {digest.hexdigest()}, {checksum.name} says {expected}", size)
    return Verification(archive, None, size)


def verify_archives(folder: Path, /) -> Iterator[Verification]:
    """Yield the outcome for everything in an archive, in the order of names: copies, other files, and stores.

    A checksum file vouches for the file or store that it is named after, or for the raw file in its packed copy;
    without any of them it is a problem. What has no checksum is yielded without being judged; a store counts as one.
    """
    for path, verify in sorted(_entries(folder), key=lambda entry: entry[0]):
        yield verify(path)


def _entries(folder: Path) -> Iterator[tuple[Path, Callable[[Path], Verification]]]:
    """Yield every file and store below a folder, with what judges it; checksum files stand for what they vouch for."""
    for base, folders, names in os.walk(folder):
        stores = {name for name in folders if name.endswith(_STORE)}
        folders[:] = [name for name in folders if name not in stores and TEMPORARY_MARK not in name]
        present = {name for name in names if TEMPORARY_MARK not in name} | stores
        vouched = {name.removesuffix(SUFFIX) for name in present if name.endswith(SUFFIX)}
        for name in vouched:
            if name.endswith(_STORE):
                yield Path(base, name), _verify_store
            elif name in present:
                yield Path(base, name), _verify_file
            else:
                copies = [name + suffix for suffix in PACKED_SUFFIXES if name + suffix in present]
                yield from ((Path(base, copy), verify_archive) for copy in copies or [name + PACKED_SUFFIXES[0]])
        for name in present:
            if not (name in vouched or name.endswith(SUFFIX) or unpacked_name(name) in vouched):
                yield Path(base, name), _without_checksum


def _without_checksum(path: Path) -> Verification:
    return Verification(path, None, judged=False)


def _verify_file(path: Path) -> Verification:
    expected = _checksum_in(path.with_name(path.name + SUFFIX))
    if isinstance(expected, Verification):
        return Verification(path, expected.problem)
    try:
        size, found = path.stat().st_size, sha256_of_path(path)
    except OSError as error:
        return Verification(path, f"cannot be read: {error.strerror or error}")
    problem = None if found == expected else f"holds SHA-256 {found}, {path.name}{SUFFIX} says {expected}"
    return Verification(path, problem, size)


def _verify_store(path: Path) -> Verification:
    manifest = manifest_path(path)
    if not path.is_dir():
        return Verification(path, f"is gone, and {manifest.name} vouches for it")
    try:
        found = differences_from_manifest(path, read_manifest(manifest))
        return Verification(path, str(found) if found else None, size_of_path(path))
    except (OSError, FileFormatError) as error:
        return Verification(path, f"{manifest.name} or the store cannot be read: {error}")


def _checksum_in(checksum: Path) -> str | Verification:
    """Return the SHA-256 in a checksum file of one line, or what is wrong with that file."""
    try:
        match = re.match(r"^([0-9a-f]{64}) [ *](.+)\n?$", checksum.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return Verification(checksum, f"{checksum.name} cannot be read: {error}")
    return match[1] if match is not None else Verification(checksum, f"{checksum.name} is no line of sha256sum")


def _threads(n: int) -> contextlib.AbstractContextManager[ThreadPoolExecutor | None]:
    return ThreadPoolExecutor(n, thread_name_prefix="archive") if n > 1 else contextlib.nullcontext()
