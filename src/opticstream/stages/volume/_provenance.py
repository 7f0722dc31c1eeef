"""What a volume was made from and how; it decides whether an unfinished store may be taken up."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from opticstream import __version__
from opticstream.config.processing import VolumeSettings
from opticstream.io.tilemap import TileMap
from opticstream.stages.volume._inputs import VolumeInputs

Provenance = dict[str, Any]


def provenance_of(inputs: VolumeInputs, tilemap: TileMap, modality: str, settings: VolumeSettings, /) -> Provenance:
    """Return the provenance of a volume that is still to be made: its files have fingerprints, and no checksums yet."""
    choices = settings.model_dump(mode="json", exclude={"memory_budget_gb", "enabled", "modalities"})
    files = []
    for number, volume in sorted(inputs.volumes.items()):
        files.append(
            {
                "tile": number,
                "file": volume.path.name,
                "bytes": sum(file.stat().st_size for file in _files_of(volume.path)),
                "sample": _fingerprint(volume.path),
            }
        )
    focus, mask = inputs.focus, inputs.mask
    return {
        "software": f"opticstream {__version__}",
        "modality": modality,
        "settings": choices,
        "positions": [[p.tile, *p.position_px] for p in tilemap.places],
        **({"distortion_px": list(tilemap.distortion_px)} if tilemap.distortion_px else {}),
        "focus_sha256": hashlib.sha256(np.ascontiguousarray(focus).tobytes()).hexdigest(),
        "mask_sha256": None if mask is None else hashlib.sha256(np.packbits(mask).tobytes()).hexdigest(),
        **({} if inputs.shading is None else {"shading_sha256": hashlib.sha256(inputs.shading.tobytes()).hexdigest()}),
        "first_depth_px": inputs.z_start,
        "inputs": files,
    }


@contextlib.contextmanager
def checksums_read_ahead(inputs: VolumeInputs, /) -> Iterator[Callable[[Provenance], None]]:
    """Read all files ahead of the blocks, and yield what puts their checksums into a provenance.

    One thread goes through the files, roughly in the order of the blocks: what it reads is in memory when a block
    needs it, so that the disk is read once. The function waits until it has come to the end.
    """
    numbers = inputs.tiles.numbers
    order = sorted(inputs.volumes, key=lambda n: inputs.positions[numbers.index(n)][::-1].tolist())
    with ThreadPoolExecutor(1) as ahead:
        checksums = {n: ahead.submit(_checksum, inputs.volumes[n].path) for n in order}

        def complete(provenance: Provenance) -> None:
            for entry in provenance["inputs"]:
                entry["crc32"] = checksums[entry["tile"]].result()
                del entry["sample"]

        try:
            yield complete
        except BaseException:
            ahead.shutdown(wait=False, cancel_futures=True)
            raise


def _checksum(path: Path) -> str:
    """Return the CRC-32 of a file; of a folder, of its files' names and contents in order.

    It guards against mix-ups and damage, and costs a tenth of a SHA-256.
    """
    from isal import isal_zlib

    value = 0
    buffer = memoryview(bytearray(4 << 20))
    for file in _files_of(path):
        if file != path:
            value = isal_zlib.crc32(file.relative_to(path).as_posix().encode(), value)
        with file.open("rb", buffering=0) as content:
            while count := content.readinto(buffer):
                value = isal_zlib.crc32(buffer[:count], value)
    return f"{value:08x}"


def _fingerprint(path: Path) -> str:
    """Return what tells cheaply, before anything is read, whether an unfinished store was made from these inputs.

    It is the SHA-256 of names, sizes and times of change of a file (or of the files of a folder), and of 64 kB at the
    start, middle and end of a file.
    """
    digest = hashlib.sha256()
    for file in _files_of(path):
        stat = file.stat()
        digest.update(f"{file.relative_to(path.parent).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    if path.is_file():
        size = path.stat().st_size
        with path.open("rb") as content:
            for start in (0, size // 2, max(size - 65536, 0)):
                content.seek(start)
                digest.update(content.read(65536))
    return digest.hexdigest()


def _files_of(path: Path) -> list[Path]:
    """Return the file, or the files of a folder in the order of their names."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
