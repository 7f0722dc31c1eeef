"""How a volume is divided into blocks: whole shards, as large as pays, whose work fits into the memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opticstream.compute.stitching import Canvas
from opticstream.config.processing import VolumeSettings
from opticstream.io.zarr import StoreLayout, store_layout
from opticstream.model.errors import ConfigurationError
from opticstream.stages.volume._inputs import Corner, VolumeInputs

LARGEST_BLOCK_BYTES = 256 << 20
"""Blocks do not grow beyond this, whatever the budget: memory that is used again is warm, new pages are slow."""
BASE_BYTES = 330 << 20
"""What the interpreter and its libraries take of the budget."""


@dataclass(frozen=True)
class BlockPlan:
    """Blocks that cover a volume. It can be sent to other processes."""

    layout: StoreLayout
    block: Corner
    """Size of a block, in voxels (z, y, x): whole shards."""

    def corners(self) -> list[Corner]:
        """Return the first voxel of each block, in the order in which blocks are made: depth runs fastest."""
        block = self.block
        counts = [-(-s // b) for s, b in zip(self.layout.shape, block, strict=True)]
        return [
            (z * block[0], y * block[1], x * block[2])
            for y in range(counts[1])
            for x in range(counts[2])
            for z in range(counts[0])
        ]

    def size(self, corner: Corner, /) -> list[int]:
        """Return the size of the block at a corner, which ends with the volume."""
        return [min(b, s - c) for b, s, c in zip(self.block, self.layout.shape, corner, strict=True)]

    def shards(self, corner: Corner, /) -> list[int]:
        """Return the numbers of the shards of the block at a corner."""
        grid = [-(-s // b) for s, b in zip(self.layout.shape, self.layout.shard, strict=True)]
        ranges = [
            range(c // s, min((c + b) // s, g))
            for c, s, b, g in zip(corner, self.layout.shard, self.block, grid, strict=True)
        ]
        return [(z * grid[1] + y) * grid[2] + x for z in ranges[0] for y in ranges[1] for x in ranges[2]]


def plan_of_blocks(
    inputs: VolumeInputs, voxel_um: tuple[float, float, float], settings: VolumeSettings, /
) -> BlockPlan:
    """Return the layout of the store and its blocks.

    Parameters
    ----------
    inputs : VolumeInputs
        What the volume is made from.
    voxel_um : tuple of float
        Size of a voxel, (z, y, x).
    settings : VolumeSettings
        Format and memory budget.

    Raises
    ------
    ConfigurationError
        The budget does not hold even the smallest block; names the least that would do.
    """
    shape = inputs.shape
    budget = int(settings.memory_budget_gb * 1e9) - BASE_BYTES

    def fits(block: Corner) -> bool:
        return 4 * int(np.prod(np.minimum(block, shape))) <= LARGEST_BLOCK_BYTES and _cost(block, inputs) <= budget

    for largest in ((128, 512, 512), (64, 512, 512), (64, 256, 256), (64, 128, 128), (64, 64, 64)):
        layout = store_layout(shape, voxel_size_um=voxel_um, version=settings.format, largest_shard=largest)
        shard = layout.shard
        if _cost(shard, inputs) > budget:
            continue
        block = shard
        # Grow along x first: rows of tiles are then read whole.
        while block[2] < shape[2] and fits((block[0], block[1], block[2] + shard[2])):
            block = (block[0], block[1], block[2] + shard[2])
        while block[2] >= shape[2] and block[1] < shape[1] and fits((block[0], block[1] + shard[1], block[2])):
            block = (block[0], block[1] + shard[1], block[2])
        return BlockPlan(layout, block)
    smallest = _cost((64, 64, 64), inputs) + BASE_BYTES
    raise ConfigurationError(
        f"volume.memory_budget_gb = {settings.memory_budget_gb:g} is too small for this mosaic; at least "
        f"{smallest / 1e9:.2f} is needed"
    )


def _cost(block: Sequence[int], inputs: VolumeInputs) -> int:
    """Return the bytes that it takes to make a block of a size."""
    shape, canvas = inputs.shape, inputs.canvas
    tile_x, tile_y = canvas.tile_shape
    fixed = canvas.shape[0] * canvas.shape[1] + len(canvas.offset) * 20_000  # the mask, and the tables of tiles
    bz, by, bx = (min(b, s) for b, s in zip(block, shape, strict=True))
    depth = min(bz + inputs.shift_range, shape[0] + inputs.shift_range) + 1  # samples, and one plane of weights
    gathered = 4 * _most_parts(canvas, by, bx) * min(by, tile_y) * tile_x * depth
    # The block (and the sines of axes), the writer's copies, compressed shards, the levels.
    outputs = 4 * bz * by * bx * ((2 if inputs.axial else 1) + 2 + 1.0 + 0.4)
    return int(gathered + outputs + 12 * by * bx + fixed)


def _most_parts(canvas: Canvas, rows: int, columns: int) -> int:
    """Return the largest number of parts that touch any block of `rows` x `columns` pixels; a tile has one, or four."""
    counts = np.zeros((-(-canvas.shape[1] // rows), -(-canvas.shape[0] // columns)), np.intp)
    low = canvas.offset[:, ::-1] // (rows, columns)
    between = canvas.fraction[:, ::-1] > 0
    high = (canvas.offset[:, ::-1] + np.array(canvas.tile_shape[::-1]) - 1 + between) // (rows, columns)
    copies = 2 ** between.sum(axis=1)
    for (y0, x0), (y1, x1), count in zip(low, high, copies, strict=True):
        counts[y0 : y1 + 1, x0 : x1 + 1] += count
    return int(counts.max())
