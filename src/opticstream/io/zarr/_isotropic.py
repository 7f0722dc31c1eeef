"""A copy of a stack of volumes in cubes of 25, 50 and 100 um, which grows with the stack.

Boxes are means over what of the stack lies in them, also where its voxels do not fit into them. A slab that has changed
is written again together with the boxes that reach into its neighbours, which are read from the stack. Boxes lie at
multiples of their edge from the first pixel of the sample, wherever the stack begins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute import axial
from opticstream.compute.pyramid import halved
from opticstream.io.atomic import write_text
from opticstream.io.canvas import Canvas, Pair
from opticstream.io.disk_errors import disk_errors
from opticstream.io.zarr._files import file_store
from opticstream.io.zarr._growth import finish_growth, grow
from opticstream.io.zarr._slices import SliceStore
from opticstream.model.errors import FileFormatError

ISOTROPIC_UM = (25.0, 50.0, 100.0)
"""Edge of the cubes of each level."""

_LARGEST_TILE = 128
_PIECE_BYTES = 40 * 2**20
"""Voxels of the stack that are read at once; a few times as much is needed on the way."""
_CHUNKS = ((16, 64, 64), (8, 64, 64), (4, 32, 32))
_STEP = round(math.lcm(*(int(c[2] * edge) for c, edge in zip(_CHUNKS, ISOTROPIC_UM, strict=True))) / ISOTROPIC_UM[-1])
"""Coarsest cubes by which the store grows to the left: whole chunks of all levels."""
_DEPTH_UM = 400.0
_LEAST_SHARE = 0.01
"""Of a box that has to be known."""


def write_isotropic(stack: Path, target: Path, slots: Collection[int], /) -> Path:
    """Write the cubes of some slots of a stack of volumes anew, and return the store.

    Parameters
    ----------
    stack : Path
        A `SliceStore` of scalars or angles with several planes for each slice.
    target : Path
        OME-Zarr (NGFF 0.5) with one level for each of `ISOTROPIC_UM`; made or extended where needed.
    slots : collection of int
        Places of slices, 1-based, whose planes have changed.

    Raises
    ------
    FileFormatError
        The stack holds vectors or labels.
    OSError
        The disk is full, or has another error.
    """
    store = SliceStore.opened(stack)
    if store.kind not in ("scalar", "axial"):
        raise FileFormatError(f"{stack}: expected scalars or angles, got {store.kind} values")
    source = store.finest()
    voxel, canvas = store.voxel_um, store.canvas()
    depth_um = source.shape[0] * voxel[2]
    begin_um = [low * size for low, size in zip(canvas.low, voxel, strict=False)]
    end_um = [high * size for high, size in zip(canvas.high, voxel, strict=False)]
    with disk_errors(target):
        levels, low_um = _opened(target, begin_um, [*end_um, depth_um], store)
    slab_um = store.planes * voxel[2]
    coarsest = ISOTROPIC_UM[-1]
    pieces = {
        piece
        for slot in slots
        for piece in _pieces(int((slot - 1) * slab_um // coarsest), int(-(-(slot * slab_um) // coarsest)))
    }
    step_um = _tile(voxel) * ISOTROPIC_UM[0]
    to_stack_um = (low_um[0] - begin_um[0], low_um[1] - begin_um[1], 0.0)
    for first, last in sorted(pieces):
        z_um = first * coarsest, min(last * coarsest, -(-depth_um // coarsest) * coarsest)
        for x in range(int(-(-(end_um[0] - low_um[0]) // step_um))):
            for y in range(int(-(-(end_um[1] - low_um[1]) // step_um))):
                box = ((x * step_um, (x + 1) * step_um), (y * step_um, (y + 1) * step_um), z_um)
                _write_boxes(levels, source, voxel, box, to_stack_um, store.kind, target)
    return target


def _tile(voxel: tuple[float, float, float]) -> int:
    """Return how many of the finest cubes are made at once along x and y."""
    per_cube = float(np.prod([ISOTROPIC_UM[0] / size for size in voxel[:2]])) * _DEPTH_UM / voxel[2] * 4
    tile = _LARGEST_TILE
    while tile > 4 and tile**2 * per_cube > _PIECE_BYTES:
        tile //= 2
    return tile


def _pieces(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of the coarsest planes, cut where chunks of all levels end."""
    per_piece = int(_DEPTH_UM / ISOTROPIC_UM[-1])
    for k in range(first // per_piece, -(-last // per_piece)):
        yield k * per_piece, (k + 1) * per_piece


def _write_boxes(
    levels: list[Any],
    source: Any,
    voxel: tuple[float, float, float],
    box: tuple[tuple[float, float], ...],
    to_stack_um: tuple[float, float, float],
    kind: Any,
    target: Path,
) -> None:
    """Write all levels of a part of the store: box of (from, to) along x, y, z in um, from the first cube on.

    In the stack the box lies `to_stack_um` further.
    """
    edge = ISOTROPIC_UM[0]
    weights, ranges = [], []
    for bounds, shift, size, n in zip(box, to_stack_um, voxel, source.shape[::-1], strict=True):
        low, high = (bound + shift for bound in bounds)
        start, stop = max(int(low // size), 0), min(int(-(-high // size)), n)
        ranges.append(slice(start, max(stop, start)))
        weights.append(_overlaps(round((high - low) / edge), low, edge, start, stop, size))
    if any(r.stop <= r.start for r in ranges):
        return
    planes = source[ranges[2], ranges[1], ranges[0]].read().result()
    values = np.asarray(planes, np.float32).transpose(2, 1, 0)
    block = _box_means(values, weights, kind)
    for level, array in enumerate(levels):
        if level:
            block = halved(block, (2, 2, 2), kind=kind)
        at = [round(low / ISOTROPIC_UM[level]) for low, _ in box]
        room = [max(min(k, n - a), 0) for k, n, a in zip(block.shape, array.shape[::-1], at, strict=True)]
        if 0 in room:
            continue
        data = np.ascontiguousarray(block[: room[0], : room[1], : room[2]].transpose(2, 1, 0), np.float32)
        where = tuple(slice(a, a + k) for a, k in zip(at[::-1], room[::-1], strict=True))
        with disk_errors(target):
            array[where].write(data).result()


def _overlaps(count: int, low: float, edge: float, start: int, stop: int, size: float) -> NDArray[np.float32]:
    """Return the share of each box that each voxel covers, shape (count, stop - start)."""
    begin = low + edge * np.arange(count)[:, None]
    left = size * np.arange(start, max(stop, start))[None]
    covered = np.minimum(begin + edge, left + size) - np.maximum(begin, left)
    return (np.maximum(covered, 0) / edge).astype(np.float32)


def _box_means(values: NDArray[np.float32], weights: list[NDArray[np.float32]], kind: str) -> NDArray[np.float32]:
    """Return means over boxes, of what is known in them."""

    def summed(part: NDArray[Any]) -> NDArray[np.float32]:
        out = np.asarray(part, np.float32)
        for axis in (2, 1, 0):
            out = np.moveaxis(np.tensordot(weights[axis], out, axes=(1, axis)), 0, axis)
        return out

    known = np.isfinite(values)
    share = summed(known)
    enough = share > _LEAST_SHARE

    def mean(part: NDArray[Any]) -> NDArray[np.float32]:
        return np.where(enough, summed(np.where(known, part, 0)) / np.where(enough, share, 1), np.nan).astype(
            np.float32
        )

    if kind == "axial":
        cosine, sine = axial.components(values)
        return np.asarray(axial.angle_from_components(mean(cosine), mean(sine)), np.float32)
    return mean(values)


def _opened(
    target: Path, begin_um: list[float], end_um: list[float], store: SliceStore
) -> tuple[list[Any], tuple[float, float]]:
    """Return the arrays of all levels, made or extended to hold the stack, and where they begin along x and y."""
    import tensorstore as ts

    finish_growth(target)
    coarsest = ISOTROPIC_UM[-1]
    is_new = not (target / "zarr.json").exists()
    held = _margin(store) if is_new else _held(target)
    reach = [math.floor(round(begin / coarsest, 6)) for begin in begin_um]
    wanted = held.grown(Canvas((reach[0], reach[1]), held.high), step_px=(_STEP, _STEP))
    more = [a - b for a, b in zip(held.low, wanted.low, strict=True)]
    if any(more) and not is_new:
        by_level = enumerate(round(coarsest / edge) for edge in ISOTROPIC_UM)
        added = {str(level): (more[1] * ratio, more[0] * ratio) for level, ratio in by_level}
        grow(target, added, _metadata(target, store, wanted.low))
    low_um = (wanted.low[0] * coarsest, wanted.low[1] * coarsest)
    size_um = [end - low for end, low in zip(end_um, (*low_um, 0.0), strict=True)]
    shapes = [[int(-(-size // edge)) for size in size_um[::-1]] for edge in ISOTROPIC_UM]
    arrays = []
    for level, (shape, chunk) in enumerate(zip(shapes, _CHUNKS, strict=True)):
        spec: dict[str, Any] = {"driver": "zarr3", "kvstore": file_store(target / str(level))}
        if is_new:
            metadata = {
                "shape": shape,
                "data_type": "float32",
                "fill_value": "NaN",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "zstd", "configuration": {"level": 3}},
                ],
                "dimension_names": ["z", "y", "x"],
            }
            array = ts.open({**spec, "metadata": metadata}, create=True, delete_existing=True).result()
        else:
            array = ts.open(spec, open=True, read=True, write=True).result()
            grown = [max(a, b) for a, b in zip(array.shape, shape, strict=True)]
            if grown != list(array.shape):
                array = array.resize(exclusive_max=grown, expand_only=True).result()
        arrays.append(array)
    if is_new:  # last: a store without it is incomplete, and is made again
        write_text(target / "zarr.json", _metadata(target, store, wanted.low))
    return arrays, low_um


def _margin(store: SliceStore) -> Canvas:
    """Return the coarsest cubes that a new store begins with: room for the margin of its stack."""
    rooms = [math.ceil(round(store.margin_px * size / ISOTROPIC_UM[-1], 6)) for size in store.voxel_um[:2]]
    return Canvas((-rooms[0], -rooms[1]), (0, 0))


def _held(target: Path) -> Canvas:
    """Return the low corner of the store, in the coarsest cubes."""
    facts = json.loads((target / "zarr.json").read_bytes())["attributes"]["opticstream"]
    x, y = facts.get("low_cubes", (0, 0))
    return Canvas((x, y), (0, 0))


def _metadata(target: Path, store: SliceStore, low_cubes: Pair) -> str:
    datasets = []
    low_um = [0.0, low_cubes[1] * ISOTROPIC_UM[-1], low_cubes[0] * ISOTROPIC_UM[-1]]
    for level, edge in enumerate(ISOTROPIC_UM):
        shift = [low + (edge - size) / 2 for low, size in zip(low_um, store.voxel_um[::-1], strict=True)]
        transforms = [{"type": "scale", "scale": [edge] * 3}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    name = target.name.removesuffix(".ome.zarr")
    ome = {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets, "type": "mean"}]}
    facts = {"kind": store.kind, "voxel_um": list(ISOTROPIC_UM), "low_cubes": list(low_cubes)}
    attributes = {"ome": ome, "opticstream": facts}
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=1) + "\n"
