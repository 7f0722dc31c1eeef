"""The event catalogue: one class for producer and consumer."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from opticstream.model.events import ALL_EVENTS, EVENT_OF_NAME, BatchReady, MosaicStitched, SliceReady

COMMON = {"project_name": "p", "project_base_path": "/data/p"}
CATALOGUE = {
    "linc.oct.batch.ready", "linc.oct.batch.archived", "linc.oct.batch.processed", "linc.oct.batch.uploaded",
    "linc.oct.mosaic.ready", "linc.oct.mosaic.stitched", "linc.oct.mosaic.volume_stitched", "linc.oct.slice.ready",
    "linc.oct.slice.registered", "linc.oct.mosaic.uploaded", "linc.oct.mosaic.volume_uploaded",
    "linc.oct.slice.uploaded", "linc.oct.sample.updated", "linc.oct.tile.flagged", "linc.oct.mosaic.flagged",
    "linc.oct.slice.flagged", "linc.oct.batch.failed", "linc.oct.mosaic.failed", "linc.oct.slice.failed",
    "linc.oct.tile.failed", "linc.oct.sample.failed",
}  # fmt: skip


def test_the_catalogue_is_complete_and_without_double_names():
    assert set(EVENT_OF_NAME) == CATALOGUE
    assert len(ALL_EVENTS) == len(CATALOGUE)


def test_a_payload_comes_back_as_the_same_event():
    event = BatchReady(
        **COMMON, slice_id=1, mosaic_id=2, batch_id=3, illumination="tilted", total_batches=4, grid_size_y=5,
        raw_folder="/raw", files={7: "a.nii", 8: "b.nii"}, problems={9: "two files"}, parameters={"depth": 60},
    )  # fmt: skip
    assert BatchReady.from_payload(event.payload()) == event


def test_resources_carry_project_hierarchy_and_ids_as_labels():
    event = SliceReady(**COMMON, slice_id=4, mosaic_ids=(7, 8))
    assert event.resource() == {
        "prefect.resource.id": "linc.oct.p.slice-004",
        "prefect.resource.name": "p: slice 4",
        "project": "p",
        "hierarchy": "slice",
        "slice_id": "4",
    }


def test_unknown_and_missing_fields_are_refused():
    with pytest.raises(ValidationError, match="slice_id"):
        MosaicStitched.from_payload(COMMON)
    with pytest.raises(ValidationError, match="colour"):
        SliceReady.from_payload({**COMMON, "slice_id": 1, "mosaic_ids": [1], "colour": "red"})
