"""Positions in an acquisition: sample > slice > mosaic > batch > tile, each a small frozen value.

They travel everywhere in place of file names; only `opticstream.io.names` turns names into ids and back. All ids are
1-based, as at the microscope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


def _check(owner: object, **ids: int) -> None:
    for name, value in ids.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{type(owner).__name__}.{name} must be a whole number from 1 up, got {value!r}")


@dataclass(frozen=True, order=True, slots=True)
class SampleId:
    """The whole sample of a project."""

    hierarchy: ClassVar[str] = "sample"

    @property
    def key(self) -> str:
        return "sample"

    def __str__(self) -> str:
        return "sample"


@dataclass(frozen=True, order=True, slots=True)
class SliceId:
    """One physical cut."""

    hierarchy: ClassVar[str] = "slice"
    slice_id: int

    def __post_init__(self) -> None:
        _check(self, slice_id=self.slice_id)

    @property
    def key(self) -> str:
        return f"slice-{self.slice_id:03d}"

    def __str__(self) -> str:
        return f"slice {self.slice_id}"


@dataclass(frozen=True, order=True, slots=True)
class MosaicId:
    """One illumination of one slice."""

    hierarchy: ClassVar[str] = "mosaic"
    mosaic_id: int

    def __post_init__(self) -> None:
        _check(self, mosaic_id=self.mosaic_id)

    @property
    def key(self) -> str:
        return f"mosaic-{self.mosaic_id:03d}"

    @property
    def folder(self) -> str:
        """Name of the mosaic's folder in the project."""
        return f"mosaic-{self.mosaic_id:02d}"

    def __str__(self) -> str:
        return f"mosaic {self.mosaic_id}"


@dataclass(frozen=True, order=True, slots=True)
class BatchId:
    """One column of a mosaic."""

    hierarchy: ClassVar[str] = "batch"
    mosaic_id: int
    batch_id: int

    def __post_init__(self) -> None:
        _check(self, mosaic_id=self.mosaic_id, batch_id=self.batch_id)

    @property
    def mosaic(self) -> MosaicId:
        return MosaicId(self.mosaic_id)

    @property
    def key(self) -> str:
        return f"{self.mosaic.key}/batch-{self.batch_id:03d}"

    def __str__(self) -> str:
        return f"batch {self.batch_id} of mosaic {self.mosaic_id}"


@dataclass(frozen=True, order=True, slots=True)
class TileId:
    """One tile, numbered within its mosaic in the order of acquisition."""

    hierarchy: ClassVar[str] = "tile"
    mosaic_id: int
    tile_id: int

    def __post_init__(self) -> None:
        _check(self, mosaic_id=self.mosaic_id, tile_id=self.tile_id)

    @property
    def mosaic(self) -> MosaicId:
        return MosaicId(self.mosaic_id)

    @property
    def key(self) -> str:
        return f"{self.mosaic.key}/tile-{self.tile_id:04d}"

    def __str__(self) -> str:
        return f"tile {self.tile_id} of mosaic {self.mosaic_id}"


ItemId = SampleId | SliceId | MosaicId | BatchId | TileId
"""Anything that a fact can be about."""


def item_from_key(key: str, /) -> ItemId:
    """Return the item that `key` (``item.key``) names.

    Examples
    --------
    >>> item_from_key("mosaic-003/batch-002")
    BatchId(mosaic_id=3, batch_id=2)
    >>> item_from_key(SliceId(4).key)
    SliceId(slice_id=4)
    """
    parts = key.split("/")
    try:
        numbers = {name: int(number) for name, _, number in (part.partition("-") for part in parts) if number}
        match [part.partition("-")[0] for part in parts]:
            case ["sample"] if not numbers:
                return SampleId()
            case ["slice"]:
                return SliceId(numbers["slice"])
            case ["mosaic"]:
                return MosaicId(numbers["mosaic"])
            case ["mosaic", "batch"]:
                return BatchId(numbers["mosaic"], numbers["batch"])
            case ["mosaic", "tile"]:
                return TileId(numbers["mosaic"], numbers["tile"])
    except (KeyError, ValueError):
        pass
    raise ValueError(
        f"unknown item {key!r}; expected sample, slice-001, mosaic-001, mosaic-001/batch-001 or mosaic-001/tile-0001"
    )
