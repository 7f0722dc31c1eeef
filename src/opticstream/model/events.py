"""Events that announce facts: one frozen class for each event, shared by producer and consumer.

An event is named ``linc.oct.{hierarchy}.{state}``; its resource has project, hierarchy and ids as labels; its
payload has what the next stage needs to find its input. File paths are relative to the project's base, because
hosts mount it in different places.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from opticstream.model.errors import EventError
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.model.tile_problem import TileProblem

PREFIX = "linc.oct"
RESOURCE_ID, RESOURCE_NAME = "resource.id", "resource.name"
"""Id and name of an event's item among its labels; an event bus may put a prefix of its own before them."""
_log = logging.getLogger(__name__)


def number_from(value: object, /) -> int:
    """Return the number that a value of a payload means: programs write 3, "3", "003" and 3.0.

    Raises
    ------
    ValueError
        It is not a whole number from 1 up.

    Examples
    --------
    >>> number_from("003"), number_from(3.0)
    (3, 3)
    >>> number_from(0)
    Traceback (most recent call last):
        ...
    ValueError: expected a whole number from 1 up, got 0
    """
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"expected a whole number from 1 up, got {value!r}")
    if number < 1 or number != int(number):
        raise ValueError(f"expected a whole number from 1 up, got {value!r}")
    return int(number)


Number = Annotated[int, BeforeValidator(number_from)]
"""A 1-based id or a count, as any program may write it."""


class Event(BaseModel):
    """Fields of every event."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hierarchy: ClassVar[str]
    state: ClassVar[str]

    project_name: str
    """Project, as configured."""
    project_base_path: str
    """Base folder of the project, as configured; each host finds it by its path map."""
    parameters: dict[str, Any] = {}
    """Project parameters to use instead of the registered ones in the work that this event starts."""
    artifacts: dict[str, str] = {}
    """Keys of the artifacts at the server that show the item, by what they show."""

    @classmethod
    def event_name(cls) -> str:
        return f"{PREFIX}.{cls.hierarchy}.{cls.state}"

    @property
    def item(self) -> ItemId:
        """What the event is about."""
        raise NotImplementedError

    def resource(self) -> dict[str, str]:
        """Return the resource on the event bus: an id, a name, and labels that triggers can match."""
        labels = {
            RESOURCE_ID: f"{PREFIX}.{self.project_name}.{self.item.key.replace('/', '.')}",
            RESOURCE_NAME: f"{self.project_name}: {self.item}",
            "project": self.project_name,
            "hierarchy": self.hierarchy,
        }
        ids = ("slice_id", "mosaic_id", "batch_id", "tile_id")
        return labels | {name: str(getattr(self, name)) for name in ids if getattr(self, name, None) is not None}

    def payload(self) -> dict[str, Any]:
        """Return the payload as plain JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any], /) -> Self:
        """Return the event that a payload describes.

        Unknown fields, from other programs or other versions, are ignored, with a line in the log. Null counts as not
        given.

        Raises
        ------
        EventError
            A field is missing or invalid; the message names the fields and their values.
        """
        if not isinstance(payload, Mapping):
            raise EventError(f"{cls.event_name()}: the payload is {payload!r}, expected an object with fields")
        given = {str(key): value for key, value in payload.items() if value is not None}
        if unknown := sorted(given.keys() - cls.model_fields.keys()):
            _log.info("%s: unknown fields are ignored: %s", cls.event_name(), ", ".join(unknown))
        try:
            return cls.model_validate({key: value for key, value in given.items() if key in cls.model_fields})
        except ValidationError as error:
            raise EventError(f"{cls.event_name()}: {_problems(error)}") from error


def _problems(error: ValidationError) -> str:
    """Return what is wrong with the fields of a payload, in one line."""
    found = []
    for one in error.errors():
        name = ".".join(map(str, one["loc"]))
        if one["type"] == "missing":
            found.append(f"{name} is missing")
            continue
        message = one["msg"].removeprefix("Value error, ")
        found.append(f"{name}: {message}" if "got" in message else f"{name}: {message}, got {one['input']!r}")
    return "; ".join(found)


class BatchEvent(Event):
    """Something happened to a batch (a column of a mosaic)."""

    hierarchy = "batch"

    slice_id: Number
    """1-based slice."""
    mosaic_id: Number
    """1-based mosaic."""
    batch_id: Number
    """1-based column of the mosaic."""
    illumination: str
    """Name of the illumination."""
    total_batches: Number
    """Columns of the mosaic."""
    grid_size_x: Number | None = None
    """Columns of the mosaic, which are its batches."""
    grid_size_y: Number
    """Tiles of the batch."""

    @property
    def batch(self) -> BatchId:
        return BatchId(self.mosaic_id, self.batch_id)

    @property
    def item(self) -> BatchId:
        return self.batch


class BatchReady(BatchEvent):
    """All files of a batch are there and no longer change."""

    state = "ready"
    raw_folder: str
    """Folder of the raw files, as the host that found them names it."""
    files: dict[int, str]
    """Raw file of each tile number, relative to `raw_folder`; a tile without a file has no entry."""
    spectra: dict[int, str] = {}
    """Spectral file of each tile number, if the rig writes it beside the complex tile in `files`."""
    problems: dict[int, TileProblem] = {}
    """Tiles that cannot be processed, each with a kind and the reason, such as two files for one tile."""


class BatchArchived(BatchEvent):
    """The archive copies of a batch are complete."""

    state = "archived"
    files: tuple[str, ...] = ()
    """Archive copies."""


class BatchProcessed(BatchEvent):
    """Every tile of a batch is done or parked as failed."""

    state = "processed"
    failed_tiles: tuple[Number, ...] = ()
    """Tiles parked as failed."""
    outputs: tuple[str, ...] = ()
    """Maps and volumes of its tiles."""


class BatchUploaded(BatchEvent):
    """Every remote target holds the archive copies of a batch, as compared by size and digest."""

    state = "uploaded"
    outputs: tuple[str, ...] = ()
    """Uploaded files, as named in the local archive tree."""


class BatchFailed(BatchEvent):
    """A batch is parked as failed, or some of its tiles are."""

    state = "failed"
    reason: str
    """What went wrong."""


class MosaicEvent(Event):
    """Something happened to a mosaic."""

    hierarchy = "mosaic"

    slice_id: Number
    """1-based slice."""
    mosaic_id: Number
    """1-based mosaic."""
    illumination: str
    """Name of the illumination."""
    total_batches: Number | None = None
    """Batches of the mosaic."""
    grid_size_x: Number
    """Columns of the mosaic."""
    grid_size_y: Number
    """Rows of the mosaic."""

    @property
    def mosaic(self) -> MosaicId:
        return MosaicId(self.mosaic_id)

    @property
    def item(self) -> MosaicId:
        return self.mosaic


class MosaicReady(MosaicEvent):
    """All batches of a mosaic are processed."""

    state = "ready"
    template: str = ""
    """Coordinate template of its illumination, where it exists."""


class MosaicStitched(MosaicEvent):
    """All en face maps of a mosaic are stitched."""

    state = "stitched"
    template: str = ""
    """Coordinate template that was used."""
    outputs: dict[str, str] = {}
    """Stitched file of each modality."""


class MosaicVolumeStitched(MosaicEvent):
    """All volumes of a mosaic are stitched."""

    state = "volume_stitched"
    template: str = ""
    """Coordinate template that was used."""
    outputs: dict[str, str] = {}
    """Stitched store of each modality."""


class MosaicUploaded(MosaicEvent):
    """Every remote target holds the maps of a mosaic, as compared by size and digest."""

    state = "uploaded"
    outputs: tuple[str, ...] = ()
    """Uploaded files, as named in the local archive tree."""


class MosaicVolumeUploaded(MosaicEvent):
    """Every remote target holds the volumes of a mosaic, as compared by size and digest."""

    state = "volume_uploaded"
    outputs: tuple[str, ...] = ()
    """Uploaded stores, as named in the local archive tree."""


class MosaicFailed(MosaicEvent):
    """A stage of a mosaic is parked as failed."""

    state = "failed"
    stage: str
    """Stage that failed."""
    reason: str
    """What went wrong."""


class MosaicFlagged(MosaicEvent):
    """Quality control flagged a mosaic for review."""

    state = "flagged"
    reasons: tuple[str, ...]
    """What exceeded which limit."""
    verdict: Literal["look", "bad"] = "look"
    """Whether somebody should look at it, or it is probably of no use."""


class SliceEvent(Event):
    """Something happened to a slice."""

    hierarchy = "slice"

    slice_id: Number
    """1-based slice."""
    mosaic_ids: tuple[Number, ...]
    """Mosaics of the slice, in the order of the illuminations."""

    @property
    def slice(self) -> SliceId:
        return SliceId(self.slice_id)

    @property
    def item(self) -> SliceId:
        return self.slice


class SliceReady(SliceEvent):
    """Every mosaic of a slice is stitched or parked."""

    state = "ready"


class SliceRegistered(SliceEvent):
    """The illuminations of a slice are registered and its fibre axes are computed."""

    state = "registered"
    outputs: dict[str, str] = {}
    """File of each product."""


class SliceUploaded(SliceEvent):
    """Every remote target holds the results of a slice, as compared by size and digest."""

    state = "uploaded"
    outputs: tuple[str, ...] = ()
    """Uploaded files, as named in the local archive tree."""


class SliceFailed(SliceEvent):
    """A stage of a slice is parked as failed, or the slice is skipped.

    After a failed registration the slice has no fibre axes, but its maps are added to the sample all the same.
    """

    state = "failed"
    stage: str
    """Stage that failed."""
    reason: str
    """What went wrong."""


class SliceFlagged(SliceEvent):
    """Quality control flagged a slice for review."""

    state = "flagged"
    reasons: tuple[str, ...]
    """What exceeded which limit."""
    verdict: Literal["look", "bad"] = "look"
    """Whether somebody should look at it, or it is probably of no use."""


class TileEvent(Event):
    """Something happened to a tile."""

    hierarchy = "tile"

    slice_id: Number
    """1-based slice."""
    mosaic_id: Number
    """1-based mosaic."""
    tile_id: Number
    """1-based tile of the mosaic."""
    batch_id: Number | None = None
    """1-based column of the mosaic that holds the tile."""
    illumination: str = ""
    """Name of the illumination."""

    @property
    def item(self) -> TileId:
        return TileId(self.mosaic_id, self.tile_id)


class TileBegun(TileEvent):
    """The rig has begun to write a tile, or has written it, of a column that no run looks after yet."""

    state = "begun"


class TileFlagged(TileEvent):
    """Quality control flagged a tile for review."""

    state = "flagged"
    reasons: tuple[str, ...]
    """What exceeded which limit."""
    verdict: Literal["look", "bad"] = "look"
    """Whether somebody should look at it, or it is probably of no use."""


class TileFailed(TileEvent):
    """A tile is parked as failed."""

    state = "failed"
    reason: str
    """What went wrong."""


class SampleUpdated(Event):
    """A slice was added to the sample's stacks."""

    hierarchy = "sample"
    state = "updated"

    slice_id: Number
    """Slice that was added."""
    slices: tuple[Number, ...]
    """Slices that the stacks hold now."""
    missing: tuple[Number, ...] = ()
    """Slices that are not included so far."""
    outputs: tuple[str, ...] = ()
    """Files of the sample's stacks."""

    @property
    def item(self) -> SampleId:
        return SampleId()


class SampleUploaded(Event):
    """Every remote target holds the sample's stacks, as compared by size and digest."""

    hierarchy = "sample"
    state = "uploaded"
    outputs: tuple[str, ...] = ()
    """Uploaded files, as named in the local archive tree."""

    @property
    def item(self) -> SampleId:
        return SampleId()


class SampleFailed(Event):
    """The sample's stacks could not be updated, published or uploaded."""

    hierarchy = "sample"
    state = "failed"
    slice_id: Number
    """Slice that was to be added; the one added last, if the stacks could not be published or uploaded."""
    reason: str
    """What went wrong."""

    @property
    def item(self) -> SampleId:
        return SampleId()


ALL_EVENTS: tuple[type[Event], ...] = (
    BatchReady,
    BatchArchived,
    BatchProcessed,
    BatchUploaded,
    BatchFailed,
    MosaicReady,
    MosaicStitched,
    MosaicVolumeStitched,
    MosaicUploaded,
    MosaicVolumeUploaded,
    MosaicFailed,
    MosaicFlagged,
    SliceReady,
    SliceRegistered,
    SliceUploaded,
    SliceFailed,
    SliceFlagged,
    TileBegun,
    TileFlagged,
    TileFailed,
    SampleUpdated,
    SampleUploaded,
    SampleFailed,
)
"""All events."""

EVENT_OF_NAME: dict[str, type[Event]] = {event.event_name(): event for event in ALL_EVENTS}
