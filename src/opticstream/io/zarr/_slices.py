"""A multiscale OME-Zarr that grows by slices: every slice has its own slab of chunks at every level.

A chunk never belongs to two slices, so that adding or replacing a slice writes only its own chunks. The arrays grow
along z, to the right and downwards by changing only their metadata; to the left and upwards, where a slice reaches
beyond the first pixel, by whole chunks of all levels, which takes new names for chunks but no new content. Axes are
(z, y, x), or (c, z, y, x) for vectors, as OME-NGFF 0.5 requires; callers pass (x, y, z).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.pyramid import halved
from opticstream.io.atomic import write_text
from opticstream.io.canvas import BlockReader, Canvas, Pair
from opticstream.io.disk_errors import disk_errors
from opticstream.io.zarr._files import file_store, number_codec
from opticstream.io.zarr._growth import finish_growth, grow
from opticstream.model.errors import FileFormatError
from opticstream.model.modalities import ValueKind

_CHUNK = 128
_SHARD = 256
_COARSEST_CHUNK = 32
_MEMORY_BYTES = 32 * 2**20


@dataclass(frozen=True)
class SliceStore:
    """One store of the sample.

    Parameters
    ----------
    path : Path
        Folder, `....ome.zarr`.
    planes : int
        Planes (z) of one slice; 1 for stacks of maps.
    voxel_um : (float, float, float)
        Voxel size along x, y, z.
    kind : ValueKind
        How values are averaged for coarser levels; `vector` has 3 channels.
    dtype : str
        Type of the values, `float32` or `uint8`.
    name : str
        Name for people; default: that of the folder.
    margin_px : int
        Room that a new store leaves at its low corner, so that slices that reach a little further find it.
    """

    path: Path
    planes: int
    voxel_um: tuple[float, float, float]
    kind: ValueKind = "scalar"
    dtype: str = "float32"
    name: str = ""
    margin_px: int = 0

    def put(self, slice_index: int, shape: Pair, read: BlockReader, /, *, low_px: Pair = (0, 0)) -> None:
        """Write one slice, at all levels; voxels of the store that the slice does not cover become NaN (labels: 0).

        Parameters
        ----------
        slice_index : int
            Place of the slice, 0-based.
        shape : (int, int)
            Size of the slice along x and y.
        read : callable
            Returns blocks of the slice for ranges of pixels of the sample, so that it never has to be in memory as a
            whole. A block with fewer than `planes` planes is padded, additional planes are dropped.
        low_px : (int, int)
            Pixel of the sample where the slice begins; the store grows where it does not reach that far.

        Raises
        ------
        FileFormatError
            The existing store has another slab, voxel size or type.
        OSError
            The disk is full, or has another error.
        """
        extent = Canvas.of(shape, low_px)
        with disk_errors(self.path):
            levels = self._open(slice_index, extent)
        canvas, step = self.canvas(), self._tile()
        for x in range(canvas.low[0], canvas.high[0], step):
            for y in range(canvas.low[1], canvas.high[1], step):
                block = self._blank((min(step, canvas.high[0] - x), min(step, canvas.high[1] - y), self.planes))
                xs = slice(max(x, extent.low[0]), min(x + block.shape[0], extent.high[0]))
                ys = slice(max(y, extent.low[1]), min(y + block.shape[1], extent.high[1]))
                if xs.stop > xs.start and ys.stop > ys.start:
                    part = np.asarray(read(xs, ys))[:, :, : self.planes]
                    i, j = xs.start - x, ys.start - y
                    block[i : i + part.shape[0], j : j + part.shape[1], : part.shape[2]] = part
                self._write(levels, slice_index, x - canvas.low[0], y - canvas.low[1], block)

    def fit(self, extent: Canvas, /) -> None:
        """Have the store hold a part of the sample, blank where nothing is."""
        with disk_errors(self.path):
            self._open(max(self.slots - 1, 0), extent)

    def canvas(self) -> Canvas:
        """Return the pixels of the sample that the store holds."""
        shape, low = self.finest().shape, self._stored()["low_px"]
        return Canvas.of((int(shape[-1]), int(shape[-2])), (low[0], low[1]))

    def canvas_with(self, extent: Canvas, /) -> Canvas:
        """Return the pixels that the store will hold when it holds a part of the sample, too."""
        if not (self.path / "zarr.json").exists():
            side = self._lattice(self._level_count(extent.size))
            return Canvas.start(self.margin_px).grown(extent, step_px=(side, side), margin_px=self.margin_px)
        stored = self._stored()
        arrays = [self._array(level) for level in range(stored["levels"])]
        return self.canvas().grown(extent, step_px=self._step(arrays), margin_px=stored["margin_px"])

    @classmethod
    def opened(cls, path: Path, /) -> SliceStore:
        """Return an existing store.

        Raises
        ------
        FileFormatError
            There is no store at `path`.
        """
        facts = _stored_facts(path)
        dtype = json.loads((path / "0" / "zarr.json").read_bytes())["data_type"]
        return cls(path, facts["planes"], tuple(facts["voxel_um"]), facts["kind"], dtype, margin_px=facts["margin_px"])

    @property
    def slots(self) -> int:
        """Number of slices that the store has places for."""
        return int(self.finest().shape[-3]) // self.planes

    def finest(self) -> Any:
        """Return the array of the finest level, opened: ([c,] z, y, x)."""
        return self._array(0)

    def plane(self, slice_index: int, /) -> NDArray[Any] | None:
        """Return the first plane of a slice, (x, y), at full size; None if the store is shorter."""
        finest = self._array(0)
        if slice_index * self.planes >= finest.shape[-3]:
            return None
        return np.asarray(finest[..., slice_index * self.planes, :, :].read().result()).T

    def remove(self, slice_index: int, /) -> None:
        """Clear a slice; a shorter store is not changed."""
        if slice_index < self.slots:
            empty = self._blank((0, 0, self.planes))
            self.put(slice_index, (0, 0), lambda _xs, _ys: empty)

    def level_factors(self, count: int, /) -> list[tuple[int, int, int]]:
        """Return the downsampling of each level relative to the first, along x, y, z; along z only for whole slabs."""
        factors = []
        for level in range(count):
            z = 1
            while z < 2**level and self.planes % (2 * z) == 0 and self.voxel_um[2] * z < self.voxel_um[0] * 2**level:
                z *= 2
            factors.append((2**level, 2**level, z))
        return factors

    def _blank(self, shape: tuple[int, int, int]) -> NDArray[Any]:
        full = (*shape, 3) if self.kind == "vector" else shape
        dtype = np.dtype(self.dtype)
        # in the order of the store, so that nothing has to be turned before it is written
        return np.full(full[::-1], np.nan if dtype.kind == "f" else 0, dtype).T

    def _tile(self) -> int:
        """Return the side of the blocks that are written at once: a multiple of the chunk, within the memory budget."""
        # Coarser levels of vectors are made by way of their outer products.
        per_column = self.planes * np.dtype(self.dtype).itemsize * (24 if self.kind == "vector" else 1)
        side = math.isqrt(max(1, _MEMORY_BYTES // per_column))
        return max(256, 1 << (max(side, 1).bit_length() - 1))

    def _write(self, levels: list[Any], slice_index: int, x: int, y: int, block: NDArray[Any]) -> None:
        factors = self.level_factors(len(levels))
        for level, array in enumerate(levels):
            if level:
                ratio = tuple(b // a for a, b in zip(factors[level - 1], factors[level], strict=True))
                block = halved(block, (ratio[0], ratio[1], ratio[2]), kind=self.kind)
            fx, fy, fz = factors[level]
            planes = self.planes // fz
            z0, y0, x0 = slice_index * planes, y // fy, x // fx
            # (x, y, z[, c]) here is ([c,] z, y, x) in the store
            data = np.ascontiguousarray(block.transpose(*((3,) if block.ndim == 4 else ()), 2, 1, 0))
            where = (
                slice(z0, z0 + planes),
                slice(y0, y0 + data.shape[-2]),
                slice(x0, x0 + data.shape[-1]),
            )
            with disk_errors(self.path):
                array[(..., *where)].write(data).result()

    def _spec(self, level: int) -> dict[str, Any]:
        return {"driver": "zarr3", "kvstore": file_store(self.path / str(level))}

    def _array(self, level: int) -> Any:
        import tensorstore as ts

        finish_growth(self.path)
        return ts.open(self._spec(level), open=True, read=True, write=True).result()

    def _stored(self) -> dict[str, Any]:
        finish_growth(self.path)
        return _stored_facts(self.path)

    def _facts(self, levels: int) -> dict[str, Any]:
        return {"planes": self.planes, "voxel_um": list(self.voxel_um), "kind": self.kind, "levels": levels}

    def _open(self, slice_index: int, extent: Canvas) -> list[Any]:
        """Return the arrays of all levels, created or extended to hold the slice."""
        wanted = self.canvas_with(extent)
        if not (self.path / "zarr.json").exists():
            factors = self.level_factors(self._level_count(extent.size))
            for level in range(len(factors)):
                self._create(level, factors, slice_index, wanted.size)
            # The group's metadata comes last: a store without it is incomplete, and is made again.
            write_text(self.path / "zarr.json", self._metadata(factors, wanted.low, self.margin_px))
        stored = self._stored()
        levels, expected = stored["levels"], self._facts(stored["levels"])
        if any(stored[key] != value for key, value in expected.items()):
            told = {key: stored[key] for key in expected}
            raise FileFormatError(
                f"{self.path}: holds slices of {told}, the new one has {expected}; remove the store to start again"
            )
        factors = self.level_factors(levels)
        more = [a - b for a, b in zip(self.canvas().low, wanted.low, strict=True)]
        if any(more):
            added = {str(level): (more[1] // fy, more[0] // fx) for level, (fx, fy, _) in enumerate(factors)}
            grow(self.path, added, self._metadata(factors, wanted.low, stored["margin_px"]))
        arrays = []
        for level, (fx, fy, fz) in enumerate(factors):
            array = self._array(level)
            needed = (
                max(array.shape[-3], (slice_index + 1) * self.planes // fz),
                max(array.shape[-2], -(-wanted.size[1] // fy)),
                max(array.shape[-1], -(-wanted.size[0] // fx)),
            )
            if needed != tuple(array.shape[-3:]):
                lead = (3,) if self.kind == "vector" else ()
                array = array.resize(exclusive_max=[*lead, *needed], expand_only=True).result()
            arrays.append(array)
        return arrays

    @staticmethod
    def _level_count(size: Pair) -> int:
        levels = 1
        while max(size) / 2 ** (levels - 1) > 192 and levels < 8:
            levels += 1
        return levels

    @staticmethod
    def _lattice(levels: int) -> int:
        """Return how many pixels a new store grows by to the left: whole chunks of all its levels."""
        return max(_SHARD, _COARSEST_CHUNK << (levels - 1))

    def _step(self, arrays: list[Any]) -> Pair:
        """Return how many pixels along x and y are whole chunks at all levels."""
        steps = [1, 1]
        for array, factors in zip(arrays, self.level_factors(len(arrays)), strict=True):
            y, x = array.chunk_layout.write_chunk.shape[-2:]
            steps = [math.lcm(step, int(n) * f) for step, n, f in zip(steps, (x, y), factors[:2], strict=True)]
        return steps[0], steps[1]

    def _create(self, level: int, all_factors: list[tuple[int, int, int]], slice_index: int, shape: Pair) -> None:
        import tensorstore as ts

        factors = all_factors[level]
        planes = self.planes // factors[2]
        chunk_z = max(n for n in range(1, min(planes, 64) + 1) if planes % n == 0)
        lead = (3,) if self.kind == "vector" else ()
        size = (
            *lead,
            (slice_index + 1) * planes,
            -(-shape[1] // factors[1]),
            -(-shape[0] // factors[0]),
        )
        # Coarse levels have small chunks, so that the store can grow to the left by few of the finest ones.
        shard = min(_SHARD if level == 0 or self.planes == 1 else _CHUNK, self._lattice(len(all_factors)) >> level)
        side = min(shard, _CHUNK) if self.planes > 1 else shard
        chunk = [*([3] if lead else []), chunk_z, side, side]
        dtype = np.dtype(self.dtype)
        inner = [{"name": "bytes", "configuration": {"endian": "little"}}, number_codec(dtype.itemsize)]
        floating = dtype.kind == "f"
        metadata: dict[str, Any] = {
            "shape": list(size),
            "data_type": self.dtype,
            "fill_value": "NaN" if floating else 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": inner if floating else [{"name": "bytes"}, _ZSTD],
            "dimension_names": [*(["c"] if lead else []), "z", "y", "x"],
        }
        if self.planes > 1:
            # Many small chunks for viewers, few files for the file system: one shard is one column of the slice.
            metadata["codecs"] = [
                {"name": "sharding_indexed", "configuration": {"chunk_shape": chunk, "codecs": metadata["codecs"]}}
            ]
            metadata["chunk_grid"]["configuration"]["chunk_shape"] = [*([3] if lead else []), planes, shard, shard]
        ts.open({**self._spec(level), "metadata": metadata}, create=True, delete_existing=True).result()

    def _metadata(self, factors: list[tuple[int, int, int]], low_px: Pair, margin_px: int) -> str:
        """Return the group's metadata, OME-NGFF 0.5."""
        low_um = (low_px[0] * self.voxel_um[0], low_px[1] * self.voxel_um[1], 0.0)
        lead = [1.0] if self.kind == "vector" else []
        datasets = []
        for level, (fx, fy, fz) in enumerate(factors):
            scale = [s * f for s, f in zip(self.voxel_um, (fx, fy, fz), strict=True)]
            shift = [a + s * (f - 1) / 2 for a, s, f in zip(low_um, self.voxel_um, (fx, fy, fz), strict=True)]
            datasets.append(
                {
                    "path": str(level),
                    "coordinateTransformations": [
                        {"type": "scale", "scale": [*lead, *scale[::-1]]},
                        {"type": "translation", "translation": [*([0.0] if lead else []), *shift[::-1]]},
                    ],
                }
            )
        axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if lead else []
        axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
        name = (self.name or self.path.name).removesuffix(".ome.zarr")
        ome = {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}
        facts = self._facts(len(factors)) | {"low_px": list(low_px), "margin_px": margin_px}
        attributes = {"ome": ome, "opticstream": facts}
        return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=1) + "\n"


_ZSTD = {"name": "zstd", "configuration": {"level": 3}}


def planes_of_slice(path: Path, /) -> int:
    """Return how many planes of a store belong to one slice: 1 for stacks of maps."""
    return int(_stored_facts(path)["planes"])


def _stored_facts(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((path / "zarr.json").read_bytes())["attributes"]["opticstream"]
        return {"low_px": [0, 0], "margin_px": 0, **content}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path}: is not a store of slices; remove it to start again") from error
