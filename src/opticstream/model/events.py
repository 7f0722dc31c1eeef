"""Announcements of facts: one frozen class for each event, shared by producer and consumer.

An event is named ``linc.oct.{hierarchy}.{state}``; its resource carries project, hierarchy and ids as labels; its
payload carries what the next stage needs to find its input. File paths are relative to the project's base, because
hosts mount it in different places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.model.tile_problem import TileProblem

PREFIX = "linc.oct"


class Event(BaseModel):
    """What every event carries."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    hierarchy: ClassVar[str]
    state: ClassVar[str]

    project_name: str
    """Project, as configured."""
    project_base_path: str
    """Base folder of the project, as configured on the host that announces."""
    parameters: dict[str, Any] = {}
    """Project parameters that what this event starts shall use instead of the registered ones."""

    @classmethod
    def event_name(cls) -> str:
        return f"{PREFIX}.{cls.hierarchy}.{cls.state}"

    @property
    def item(self) -> ItemId:
        """What the event is about."""
        raise NotImplementedError

    def resource(self) -> dict[str, str]:
        """Return the resource of the event: an id and labels that triggers can match."""
        labels = {
            "prefect.resource.id": f"{PREFIX}.{self.project_name}.{self.item.key.replace('/', '.')}",
            "prefect.resource.name": f"{self.project_name}: {self.item}",
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
        """Return the event that a payload describes; unknown or missing fields are refused."""
        return cls.model_validate(payload)


class BatchEvent(Event):
    """Something happened to a batch (a column of a mosaic)."""

    hierarchy = "batch"

    slice_id: int
    """1-based slice."""
    mosaic_id: int
    """1-based mosaic."""
    batch_id: int
    """1-based column of the mosaic."""
    illumination: str
    """Name of the illumination."""
    total_batches: int
    """Columns of the mosaic."""
    grid_size_y: int
    """Tiles of the batch."""

    @property
    def batch(self) -> BatchId:
        return BatchId(self.mosaic_id, self.batch_id)

    @property
    def item(self) -> BatchId:
        return self.batch


class BatchReady(BatchEvent):
    """All files of a batch are there and stand still."""

    state = "ready"
    raw_folder: str
    """Folder of the raw files on the host that saw them."""
    files: dict[int, str]
    """Raw file of each tile number, relative to `raw_folder`; a tile without one has none."""
    spectra: dict[int, str] = {}
    """Spectral file of each tile number, where the rig writes it beside the complex tile in `files`."""
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
    failed_tiles: tuple[int, ...] = ()
    """Tiles parked as failed."""


class BatchUploaded(BatchEvent):
    """A batch is published."""

    state = "uploaded"


class BatchFailed(BatchEvent):
    """A batch is parked as failed, or some of its tiles are."""

    state = "failed"
    reason: str
    """What went wrong."""


class MosaicEvent(Event):
    """Something happened to a mosaic."""

    hierarchy = "mosaic"

    slice_id: int
    """1-based slice."""
    mosaic_id: int
    """1-based mosaic."""
    illumination: str
    """Name of the illumination."""
    grid_size_x: int
    """Columns of the mosaic."""
    grid_size_y: int
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
    outputs: dict[str, str] = {}
    """Stitched store of each modality."""


class MosaicUploaded(MosaicEvent):
    """The maps of a mosaic are published."""

    state = "uploaded"


class MosaicVolumeUploaded(MosaicEvent):
    """The volumes of a mosaic are published."""

    state = "volume_uploaded"


class MosaicFailed(MosaicEvent):
    """A stage of a mosaic is parked as failed."""

    state = "failed"
    stage: str
    """Stage that failed."""
    reason: str
    """What went wrong."""


class MosaicFlagged(MosaicEvent):
    """Quality control doubts a mosaic."""

    state = "flagged"
    reasons: tuple[str, ...]
    """What exceeded which limit."""


class SliceEvent(Event):
    """Something happened to a slice."""

    hierarchy = "slice"

    slice_id: int
    """1-based slice."""
    mosaic_ids: tuple[int, ...]
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
    """The illuminations of a slice are registered and its fibre axes known."""

    state = "registered"
    outputs: dict[str, str] = {}
    """File of each product."""


class SliceUploaded(SliceEvent):
    """The results of a slice are published."""

    state = "uploaded"


class SliceFailed(SliceEvent):
    """A stage of a slice is parked as failed, or the slice is skipped.

    A registration that failed costs the slice its fibre axes; its maps go on into the sample all the same.
    """

    state = "failed"
    stage: str
    """Stage that failed."""
    reason: str
    """What went wrong."""


class SliceFlagged(SliceEvent):
    """Quality control doubts a slice."""

    state = "flagged"
    reasons: tuple[str, ...]
    """What exceeded which limit."""


class TileEvent(Event):
    """Something happened to a tile."""

    hierarchy = "tile"

    slice_id: int
    """1-based slice."""
    mosaic_id: int
    """1-based mosaic."""
    tile_id: int
    """1-based tile of the mosaic."""

    @property
    def item(self) -> TileId:
        return TileId(self.mosaic_id, self.tile_id)


class TileFlagged(TileEvent):
    """Quality control doubts a tile."""

    state = "flagged"
    reasons: tuple[str, ...]
    """What exceeded which limit."""


class TileFailed(TileEvent):
    """A tile is parked as failed."""

    state = "failed"
    reason: str
    """What went wrong."""


class SampleUpdated(Event):
    """A slice was added to the sample's stacks."""

    hierarchy = "sample"
    state = "updated"

    slice_id: int
    """Slice that was added."""
    slices: tuple[int, ...]
    """Slices that the stacks hold now."""
    missing: tuple[int, ...] = ()
    """Slices that are left out so far."""

    @property
    def item(self) -> SampleId:
        return SampleId()


class SampleFailed(Event):
    """The sample's stacks could not be updated."""

    hierarchy = "sample"
    state = "failed"
    slice_id: int
    """Slice that was to be added."""
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
    TileFlagged,
    TileFailed,
    SampleUpdated,
    SampleFailed,
)
"""The whole catalogue."""

EVENT_OF_NAME: dict[str, type[Event]] = {event.event_name(): event for event in ALL_EVENTS}
