"""Geometry and metadata of OME-Zarr stores of multiscale volumes: NGFF 0.5 on sharded Zarr v3, or 0.4 on Zarr v2.

Axes are (z, y, x), sizes in micrometres.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opticstream.io.zarr._files import file_store, number_codec

Version = Literal["0.5", "0.4"]
CHUNK = 64
SHARD = (128, 512, 512)
IN_PASS_LEVELS = 3
"""Number of levels whose shards a block fills completely; smaller levels are made from the last of them."""


@dataclass(frozen=True)
class StoreLayout:
    """Geometry of a multiscale store.

    Attributes
    ----------
    shape : tuple of int
        Size of level 0, (z, y, x).
    voxel_size_um : tuple of float
        Size of a voxel of level 0, (z, y, x).
    levels : int
        Number of levels, each half the resolution of the one before.
    shard : tuple of int
        Shard of level 0; that of level ``l < 3`` is ``shard / 2**l``.
    version : {"0.5", "0.4"}
        NGFF version.
    origin_um : tuple of float
        Place of the first voxel of level 0, (z, y, x).
    """

    shape: tuple[int, int, int]
    voxel_size_um: tuple[float, float, float]
    levels: int
    shard: tuple[int, int, int]
    version: Version = "0.5"
    origin_um: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def level_shape(self, level: int, /) -> tuple[int, int, int]:
        """Return the size of a level: halves, rounded up."""
        z, y, x = (-(-n // 2**level) for n in self.shape)
        return z, y, x

    def level_shard(self, level: int, /) -> tuple[int, int, int]:
        """Return the shard of a level."""
        factor = 2 ** min(level, IN_PASS_LEVELS - 1)
        z, y, x = (n // factor for n in self.shard)
        return z, y, x

    def level_chunk(self, level: int, /) -> tuple[int, int, int]:
        """Return the chunk of a level."""
        z, y, x = (min(CHUNK, n) for n in self.level_shard(level))
        return z, y, x


def store_layout(
    shape: tuple[int, int, int],
    /,
    *,
    voxel_size_um: tuple[float, float, float],
    version: Version = "0.5",
    largest_shard: tuple[int, int, int] = SHARD,
    smallest_level_px: int = 256,
) -> StoreLayout:
    """Return the layout of a store: shards no larger than the volume needs, levels down to a thumbnail.

    Examples
    --------
    >>> layout = store_layout((200, 250, 330), voxel_size_um=(2.5, 10, 10))
    >>> layout.shard, layout.levels, layout.level_shape(1)
    ((128, 256, 512), 2, (100, 125, 165))
    """
    if min(shape) < 1:
        raise ValueError(f"a volume needs at least one voxel along each axis, got {shape}")
    shard = []
    for size, most in zip(shape, largest_shard, strict=True):
        side = CHUNK
        while side < min(size, most):
            side *= 2
        shard.append(side)
    levels = 1
    while max(shape[1:]) / 2 ** (levels - 1) > smallest_level_px and levels < 12:
        levels += 1
    return StoreLayout(shape, voxel_size_um, levels, (shard[0], shard[1], shard[2]), version)


def multiscales_metadata(layout: StoreLayout, /, *, name: str) -> dict[str, Any]:
    """Return the NGFF multiscales block of a layout.

    Level ``l`` has voxels ``2**l`` times larger, whose first centre lies ``(2**l - 1) / 2`` voxels of level 0 further.
    """
    datasets = []
    for level in range(layout.levels):
        scale = [size * 2**level for size in layout.voxel_size_um]
        half = (2**level - 1) / 2
        shift = [start + size * half for start, size in zip(layout.origin_um, layout.voxel_size_um, strict=True)]
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if level or any(shift):
            transforms.append({"type": "translation", "translation": shift})
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    block: dict[str, Any] = {
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"],
        "datasets": datasets,
        "type": "mean",
        "metadata": {"description": "means over 2 x 2 x 2 voxels; axes of angles as doubled-angle components"},
    }
    if layout.version == "0.4":
        block["version"] = "0.4"
    return block


def array_spec(path: Path, layout: StoreLayout, level: int) -> dict[str, Any]:
    """Return tensorstore's specification to open, or create, a level of a store."""
    shape, shard, chunk = layout.level_shape(level), layout.level_shard(level), layout.level_chunk(level)
    base: dict[str, Any] = {"kvstore": file_store(path / str(level))}
    if layout.version == "0.5":
        inner = [{"name": "bytes", "configuration": {"endian": "little"}}, number_codec(4)]
        sharding = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": list(chunk),
                "codecs": inner,
                "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                "index_location": "end",
            },
        }
        return base | {
            "driver": "zarr3",
            "metadata": {
                "shape": list(shape),
                "data_type": "float32",
                "fill_value": "NaN",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "codecs": [sharding],
                "dimension_names": ["z", "y", "x"],
            },
        }
    return base | {
        "driver": "zarr",
        "metadata": {
            "shape": list(shape),
            "chunks": list(chunk),
            "dtype": "<f4",
            "fill_value": "NaN",
            "order": "C",
            "dimension_separator": "/",
            "compressor": {"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 1, "blocksize": 0},
        },
    }
