"""Pixel size, directions and origin of a mosaic from the headers of its tiles, which must agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opticstream.io.geometry import SAME_DIRECTION, SAME_SIZE, Geometry, voxel_text
from opticstream.io.images import image_geometry
from opticstream.model.errors import InputError
from opticstream.stages.mosaic._tiles import MosaicTiles

USUAL_VOXEL_MM = (0.01, 0.01, 0.0025)
"""Assumed where neither the tiles nor the caller give a size."""
_STRAY_PX = 32.0
"""Distance between a tile's origin in its header and its position up to which they are taken to agree."""


@dataclass(frozen=True)
class MosaicGeometry:
    """Where the voxels of a mosaic lie, and how that is known.

    Attributes
    ----------
    geometry : Geometry
        Of the mosaic; its voxel (0, 0, 0) is at position (0, 0) of the tiles.
    source : str
        Where the voxel size comes from, for people.
    notes : tuple of str
        What of the headers could not be used, and why.
    """

    geometry: Geometry
    source: str
    notes: tuple[str, ...] = ()

    @property
    def voxel_size_mm(self) -> tuple[float, float, float]:
        return self.geometry.voxel_size_mm

    @property
    def sentence(self) -> str:
        """Voxel size and its source, for people."""
        return f"voxels of {voxel_text(self.voxel_size_mm)} ({self.source})"


def geometry_of_tiles(
    tiles: MosaicTiles,
    modality: str,
    positions_px: NDArray[np.float64],
    /,
    *,
    voxel_size_mm: tuple[float, float, float] | None = None,
) -> MosaicGeometry:
    """Return where the voxels of a mosaic of tiles lie.

    Parameters
    ----------
    tiles : MosaicTiles
        The tiles; the headers of those that are there are read.
    modality : str
        Which of their files.
    positions_px : ndarray, shape (tiles, 2)
        Position (x, y) of each tile's first pixel in the mosaic, in the order of `tiles.numbers`.
    voxel_size_mm : tuple of float, optional
        Voxel size that counts instead of that in the headers.

    Raises
    ------
    InputError
        The headers of two tiles give other voxel sizes or directions; or a voxel size is zero or not finite.
    """
    notes: list[str] = []
    found: dict[int, Geometry] = {}
    for number, path in sorted(tiles.present(modality).items()):
        try:
            geometry = image_geometry(path)
        except InputError as error:
            if voxel_size_mm is None:
                raise
            if not notes:
                notes.append(f"its header is not used: {error}")
            continue
        if geometry is not None and geometry.sized:
            found[number] = geometry
    _check_agreement(tiles, modality, found, sizes=voxel_size_mm is None)
    first = next(iter(found.values()), None)
    if voxel_size_mm is not None:
        size, source = voxel_size_mm, "as given"
    elif first is None:
        size, source = USUAL_VOXEL_MM, "assumed, the tiles give none; --pixel sets it"
    else:
        x, y, z = first.voxel_size_mm
        size, source = (x, y, z if first.axes == 3 else USUAL_VOXEL_MM[2]), "from the headers of the tiles"
    placed = {number: geometry for number, geometry in found.items() if geometry.positioned}
    if not placed:
        affine = np.diag([*size, 1.0])
        return MosaicGeometry(Geometry(affine, positioned=True), source, tuple(notes))
    geometry, note = _placed(tiles, placed, positions_px)
    return MosaicGeometry(geometry.with_voxel_size(size), source, (*notes, *((note,) if note else ())))


def _check_agreement(tiles: MosaicTiles, modality: str, found: dict[int, Geometry], *, sizes: bool) -> None:
    """Raise where a tile has other voxels than the first one, or other directions than the first that has any."""
    files = tiles.present(modality)
    first = next(iter(found), None)
    turned = next((n for n, geometry in found.items() if geometry.positioned), None)
    for number, geometry in found.items():
        axes = min(geometry.axes, found[first].axes) if first is not None else 0
        mine = geometry.voxel_size_mm[:axes]
        if sizes and first is not None and not np.allclose(mine, found[first].voxel_size_mm[:axes], rtol=SAME_SIZE):
            raise InputError(
                f"tile {number} of {tiles.label} ({files[number]}) has voxels of {voxel_text(mine)}, tile {first} "
                f"({files[first]}) of {voxel_text(found[first].voxel_size_mm[:axes])}; tiles of one mosaic must have "
                "one size (--pixel counts instead of the headers)"
            )
        if turned is None or not geometry.positioned:
            continue
        if not np.allclose(geometry.directions[:, :2], found[turned].directions[:, :2], atol=SAME_DIRECTION):
            raise InputError(
                f"tile {number} of {tiles.label} ({files[number]}) has axes {geometry.says()}, tile {turned} "
                f"({files[turned]}) {found[turned].says()}; bring all tiles into one orientation first"
            )


def _placed(tiles: MosaicTiles, placed: dict[int, Geometry], positions_px: NDArray[np.float64]) -> tuple[Geometry, str]:
    """Return the geometry of the mosaic from its first tile with a place, and a note where others contradict it."""
    anchor = next(iter(placed))
    origins = np.array([geometry.origin_mm for geometry in placed.values()])
    if len(placed) > 1 and np.allclose(origins, origins[0]):
        return placed[anchor], ""  # all tiles have the same origin: it says nothing about the mosaic
    at = {number: np.append(np.floor(positions_px[i] + 0.5), 0.0) for i, number in enumerate(tiles.numbers)}
    mosaic = placed[anchor].from_voxel(-at[anchor])
    expected = np.array([mosaic.from_voxel(at[number]).origin_mm for number in placed])
    stray_px = np.linalg.norm(origins - expected, axis=1) / min(mosaic.voxel_size_mm[:2])
    worst = int(stray_px.argmax())
    note = ""
    if stray_px[worst] > _STRAY_PX:
        note = (
            f"the origin in the header of tile {list(placed)[worst]} lies {stray_px[worst]:.0f} px from its position; "
            f"the mosaic lies where tile {anchor} does"
        )
    return mosaic, note
