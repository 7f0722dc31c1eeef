"""The event catalogue: one class for producer and consumer."""

from __future__ import annotations

import logging

import pytest
from pydantic import ValidationError

from opticstream.model.errors import DuplicateTileError, EventError, InputError, MissingInputError
from opticstream.model.events import (
    ALL_EVENTS,
    EVENT_OF_NAME,
    BatchReady,
    MosaicStitched,
    SliceReady,
    number_from,
)
from opticstream.model.tile_problem import TileProblem

COMMON = {"project_name": "p", "project_base_path": "/data/p"}
CATALOGUE = {
    "linc.oct.batch.ready", "linc.oct.batch.archived", "linc.oct.batch.processed", "linc.oct.batch.uploaded",
    "linc.oct.mosaic.ready", "linc.oct.mosaic.stitched", "linc.oct.mosaic.volume_stitched", "linc.oct.slice.ready",
    "linc.oct.slice.registered", "linc.oct.mosaic.uploaded", "linc.oct.mosaic.volume_uploaded",
    "linc.oct.slice.uploaded", "linc.oct.sample.updated", "linc.oct.sample.uploaded", "linc.oct.tile.flagged",
    "linc.oct.tile.begun",
    "linc.oct.mosaic.flagged", "linc.oct.slice.flagged", "linc.oct.batch.failed", "linc.oct.mosaic.failed",
    "linc.oct.slice.failed", "linc.oct.tile.failed", "linc.oct.sample.failed",
}  # fmt: skip


def test_the_catalogue_is_complete_and_without_double_names():
    assert set(EVENT_OF_NAME) == CATALOGUE
    assert len(ALL_EVENTS) == len(CATALOGUE)


def test_a_payload_comes_back_as_the_same_event():
    event = BatchReady(
        **COMMON, slice_id=1, mosaic_id=2, batch_id=3, illumination="tilted", total_batches=4, grid_size_y=5,
        raw_folder="/raw", files={7: "a.nii", 8: "b.nii"},
        problems={9: TileProblem(kind="duplicate", text="two files")}, parameters={"depth": 60},
    )  # fmt: skip
    assert BatchReady.from_payload(event.payload()) == event


@pytest.mark.parametrize(
    ("announced", "kind"),
    [
        ({"kind": "duplicate", "text": "two files"}, "duplicate"),
        ("2 files claim to be it", "unusable"),  # earlier versions announced the text only
        ({"kind": "eaten by a newer version", "text": "gone", "page": 3}, "unusable"),
    ],
)
def test_problems_of_tiles_are_read_from_payloads_of_any_version(announced, kind):
    payload = BatchReady(
        **COMMON, slice_id=1, mosaic_id=1, batch_id=1, illumination="normal", total_batches=1, grid_size_y=1,
        raw_folder="/raw", files={},
    ).payload() | {"problems": {"1": announced}}  # fmt: skip
    assert BatchReady.from_payload(payload).problems[1].kind == kind


@pytest.mark.parametrize(
    ("kind", "error"), [("missing", MissingInputError), ("duplicate", DuplicateTileError), ("unusable", InputError)]
)
def test_the_kind_of_a_problem_chooses_the_error_and_its_text_does_not(kind, error):
    problem = TileProblem(kind=kind, text="2 files claim to be it; no raw file came")
    assert type(problem.error()) is error
    assert str(problem.error()) == problem.text


def test_resources_carry_project_hierarchy_and_ids_as_labels():
    event = SliceReady(**COMMON, slice_id=4, mosaic_ids=(7, 8))
    assert event.resource() == {
        "resource.id": "linc.oct.p.slice-004",
        "resource.name": "p: slice 4",
        "project": "p",
        "hierarchy": "slice",
        "slice_id": "4",
    }


def test_missing_fields_are_refused_and_unknown_ones_ignored_with_a_line_in_the_log(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(EventError, match=r"linc\.oct\.mosaic\.stitched: slice_id is missing; mosaic_id is missing"):
        MosaicStitched.from_payload(COMMON)
    fields = {"slice_id": "004", "mosaic_ids": [1.0], "colour": "red", "parameters": None}
    event = SliceReady.from_payload({**COMMON, **fields})
    assert event == SliceReady(**COMMON, slice_id=4, mosaic_ids=(1,))
    assert "linc.oct.slice.ready: unknown fields are ignored: colour" in caplog.text


def test_what_this_program_makes_has_no_unknown_fields():
    with pytest.raises(ValidationError, match="colour"):
        SliceReady(**COMMON, slice_id=1, mosaic_ids=(1,), colour="red")


@pytest.mark.parametrize("value", [0, -1, True, "one", 1.5, "", "1.0", float("nan"), float("inf"), None, [1], {}])
def test_an_id_is_a_whole_number_from_1_up(value):
    with pytest.raises(ValueError, match="expected a whole number from 1 up, got"):
        number_from(value)
