"""The work on one block of a volume: gather the parts of the tiles that touch it, blend them, halve the result.

A block is a group of whole shards, made in memory that is used again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching import Canvas, overlap_widths, ramp
from opticstream.io.zarr import IN_PASS_LEVELS, LevelArrays
from opticstream.stages.volume._inputs import Corner, VolumeInputs
from opticstream.stages.volume._plan import BlockPlan

if TYPE_CHECKING:
    from opticstream.compute.stitching.volume import BlockTiles


RESAMPLED_PLANES = 16
"""Planes that are read at a time where tiles are resampled: a few MB beside the block's own memory."""


class _Buffers:
    """Memory by purpose that is used again: pages touched for the first time cost more than the work done on them."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.float32]] = {}

    def get(self, purpose: str, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return the one array of a purpose, with undefined content; an earlier one must not be in use any more."""
        size = int(np.prod(shape))
        if purpose not in self._held or self._held[purpose].size < size:
            self._held.pop(purpose, None)  # free it before the larger one is made
            self._held[purpose] = np.empty(size, np.float32)
        return self._held[purpose][:size].reshape(shape)


@dataclass(frozen=True)
class _Part:
    """A tile at whole pixels of the canvas, weighted by a ramp per axis.

    (A table of weights of the whole mosaic would not fit into every budget.) A tile that lies between pixels is the sum
    of up to four parts: linear interpolation is a weighted mean, and so is blending, of axes as well.
    """

    number: int
    x: int
    y: int
    ramp_x: NDArray[np.float32]
    ramp_y: NDArray[np.float32]


def _parts_of_tile(canvas: Canvas, k: int, number: int, overlap_px: NDArray[np.float64]) -> Iterator[_Part]:
    along_x, along_y = (
        _ramps_between(ramp(size, before=before, after=after), float(fraction))
        for size, (before, after), fraction in zip(canvas.tile_shape, overlap_px, canvas.fraction[k], strict=True)
    )
    x, y = (int(c) for c in canvas.offset[k])
    for dy, ramp_y in along_y:
        for dx, ramp_x in along_x:
            yield _Part(number, x + dx, y + dy, ramp_x, ramp_y)


def _ramps_between(whole: NDArray[np.float32], fraction: float) -> list[tuple[int, NDArray[np.float32]]]:
    """Return (pixels further, ramp by sample) for the one or two pixels that each sample of a tile counts for."""
    if fraction == 0:
        return [(0, whole)]
    here, next_one = np.float32(1 - fraction) * whole, np.zeros_like(whole)
    here[0] = 0  # the first pixel lies outside of the tile
    next_one[:-1] = np.float32(fraction) * whole[1:]
    return [(0, here), (1, next_one)]


class BlockWorker:
    """Makes blocks of a volume, one after the other, in memory that is used again."""

    def __init__(self, inputs: VolumeInputs, plan: BlockPlan, levels: LevelArrays, /) -> None:
        from opticstream.compute.stitching.volume import shift_from_focus

        self.inputs, self.plan, self.levels = inputs, plan, levels
        self.shift = np.ascontiguousarray(shift_from_focus(inputs.focus).T)
        self.depth = next(iter(inputs.volumes.values())).shape[0]
        overlaps = overlap_widths(inputs.positions, tile_shape=inputs.tiles.tile_shape)
        self.parts = [
            part
            for k, number in enumerate(inputs.tiles.numbers)
            if number in inputs.volumes
            for part in _parts_of_tile(inputs.canvas, k, number, overlaps[k])
        ]
        self.buffers = _Buffers()

    def write(self, corner: Corner, levels: list[NDArray[np.float32]]) -> list[Any]:
        """Start to write a block and its levels; its memory is free again when this returns."""
        futures = []
        for number, data in enumerate(levels):
            z, y, x = (c // 2**number for c in corner)
            future = self.levels.write(number, (z, y, x), data)
            if future is not None:
                futures.append(future)
        for future in futures:
            future.copy.result()  # the writer has a copy of its own from here on, and not before
        return futures

    def make(self, corner: Corner, pool: ThreadPoolExecutor) -> list[NDArray[np.float32]]:
        """Return a block and its levels; nothing where no tile lies."""
        from opticstream.compute.stitching.volume import angle_from_components, blend_axial, blend_scalar, halved

        inputs = self.inputs
        size = self.plan.size(corner)
        touching = self._touching(corner, size)
        total = self._total_weight(touching, corner, size)
        covered = total > 0
        if inputs.mask is not None:
            covered &= inputs.mask[corner[2] : corner[2] + size[2], corner[1] : corner[1] + size[1]].T
        if not covered.any():
            return []  # nothing lies here: absent chunks read as the fill value
        parts = self._gather(touching, total, corner, size, pool)
        out = self.buffers.get("out", size)
        z0 = inputs.z_start + corner[0]
        levels: list[NDArray[np.float32]] = []
        further = min(self.plan.layout.levels, IN_PASS_LEVELS) - 1
        if inputs.axial:
            sine = self.buffers.get("sine", size)
            blend_axial(out, sine, parts, self.shift, z0, covered, pool=pool)
            cosine_half, sine_half = out, sine
            for _ in range(further):
                cosine_half, sine_half = halved(cosine_half, pool=pool), halved(sine_half, pool=pool)
                levels.append(angle_from_components(cosine_half.copy(), sine_half, pool=pool))
            angle_from_components(out, sine, pool=pool)
        else:
            blend_scalar(out, parts, self.shift, z0, covered, pool=pool)
            if inputs.shading is not None:
                # The weights of tiles do not depend on depth, so the mean of levels is off by the mean of the shading.
                out -= inputs.shading[corner[2] : corner[2] + size[2], corner[1] : corner[1] + size[1]].T
            level = out
            for _ in range(further):
                level = halved(level, pool=pool)
                levels.append(level)
        return [out, *levels]

    def _touching(self, corner: Corner, size: Sequence[int]) -> list[tuple[_Part, int, int]]:
        """Return the parts that touch a block, each with its first and last row in it."""
        width, height = self.inputs.tiles.tile_shape
        touching = []
        for part in self.parts:
            first = max(0, corner[1] - part.y)
            last = min(height, corner[1] + size[1] - part.y)
            if first < last and part.x < corner[2] + size[2] and part.x + width > corner[2]:
                touching.append((part, first, last))
        return touching

    def _total_weight(
        self, touching: Sequence[tuple[_Part, int, int]], corner: Corner, size: Sequence[int]
    ) -> NDArray[np.float32]:
        """Return the sum of all tiles' weights over a block, shape (y, x)."""
        total = np.zeros((size[1], size[2]), np.float32)
        for part, first, last in touching:
            x, y = part.x - corner[2], part.y - corner[1]
            left, right = max(0, -x), min(len(part.ramp_x), size[2] - x)
            weight = part.ramp_y[first:last, None] * part.ramp_x[None, left:right]
            total[y + first : y + last, x + left : x + right] += weight
        return total

    def _gather(
        self,
        touching: Sequence[tuple[_Part, int, int]],
        total: NDArray[np.float32],
        corner: Corner,
        size: Sequence[int],
        pool: ThreadPoolExecutor,
    ) -> BlockTiles:
        """Read the parts of tiles that touch a block."""
        from opticstream.compute.stitching.volume import BlockTiles

        inputs = self.inputs
        width, _ = inputs.tiles.tile_shape
        z0 = inputs.z_start + corner[0]
        z1 = min(z0 + size[0] + int(self.shift.max()), self.depth)
        z0 = min(z0, z1)
        rows = np.array([last - first for _, first, last in touching], np.int64)
        tallest = int(rows.max(initial=1))
        data = self.buffers.get("data", (len(touching), z1 - z0, tallest, width))
        place = np.array(
            [(part.y + first - corner[1], part.x - corner[2], first) for part, first, _ in touching], np.int64
        ).reshape(-1, 3)
        weight = np.zeros((len(touching), tallest, width), np.float32)
        for i, (part, first, last) in enumerate(touching):
            y, x = int(place[i, 0]), int(place[i, 1])
            left, right = max(0, -x), min(width, size[2] - x)
            share = total[y : y + last - first, x + left : x + right]
            np.divide(
                part.ramp_y[first:last, None] * part.ramp_x[None, left:right],
                share,
                out=weight[i, : last - first, left:right],
                where=share > 0,
            )

        def read(i: int) -> None:
            part, first, last = touching[i]
            if z1 <= z0:
                return
            volume, out = inputs.volumes[part.number], data[i, :, : last - first]
            undistortion = inputs.tiles.undistortion
            if undistortion is None:
                volume.read_into(out, z0, first)
                return
            low, high = undistortion.rows_needed(first, last)
            for z in range(0, z1 - z0, RESAMPLED_PLANES):
                some = out[z : z + RESAMPLED_PLANES]
                recorded = np.empty((len(some), high - low, width), np.float32)
                volume.read_into(recorded, z0 + z, low)
                undistortion.resample(recorded, low, some, first, inputs.axial)

        list(pool.map(read, range(len(touching))))
        return BlockTiles(data, z0, place, rows, weight)
