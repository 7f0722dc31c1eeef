"""What is posted to the event bus, and what a trigger makes of it, without a server."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.server.events.actions import RunDeployment
from prefect.server.events.schemas.events import ReceivedEvent

from opticstream.config import DeploymentSettings, config_from_mapping
from opticstream.flows import events as bus
from opticstream.flows.deployments import DEPLOYMENTS, trigger_of
from opticstream.flows.incoming import received_from
from opticstream.model.errors import EventError
from opticstream.model.events import BatchReady, MosaicStitched
from opticstream.model.ids import BatchId, MosaicId
from opticstream.pipeline.incoming import event_from_received
from opticstream.pipeline.project import Project

WITH_TRIGGER = [deployment for deployment in DEPLOYMENTS if deployment.events]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    grid = {"grid_size_y": 2, "illuminations": [{"name": "normal", "columns": 2, "a_lines": 350}]}
    data = {"project": {"project_name": "p", "project_base_path": str(tmp_path / "out")}, "scan": grid}
    return Project.open(config_from_mapping(data, source="test"), deployment=DeploymentSettings())


def rendered(deployment, body: dict, monkeypatch) -> dict:
    """Return the parameters that the server makes for a run from an event."""
    event = ReceivedEvent(**body)

    async def context(_self, _templates, _action):
        return {"event": event}

    monkeypatch.setattr(RunDeployment, "_template_context", context)
    parameters = trigger_of(deployment, collapse_s=3.0).parameters
    action = RunDeployment(deployment_id=uuid.uuid4(), parameters=parameters)
    return asyncio.run(action.render_parameters(SimpleNamespace()))


@pytest.mark.parametrize("deployment", WITH_TRIGGER, ids=lambda deployment: deployment.name)
@pytest.mark.parametrize("payload", [{}, {"mosaic_id": None, "note": "{{ event.id }} \"<'\n", "deep": [{"a": 1.5}]}])
def test_a_trigger_makes_parameters_of_every_payload(deployment, payload, monkeypatch):
    labels = {"prefect.resource.id": "another.program", "project": "Brain {{ 7 }}"}
    when = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    id_ = uuid.uuid4()
    body = {"id": id_, "occurred": when, "event": "linc.oct.mosaic.ready", "resource": labels, "payload": payload}
    parameters = rendered(deployment, body, monkeypatch)
    assert parameters.get("event", parameters.get("payload")) == payload
    received = received_from("linc.oct.mosaic.ready", payload, parameters["source"])
    assert (received.id, received.occurred, received.labels) == (str(id_), when, labels)


@pytest.mark.parametrize("deployment", WITH_TRIGGER, ids=lambda deployment: deployment.name)
def test_a_trigger_gives_a_flow_the_parameters_that_it_takes(deployment):
    inspect.signature(deployment.flow.fn).bind(**trigger_of(deployment, collapse_s=3.0).parameters)


def test_our_own_announcements_are_told_from_copies_after_their_way_through_a_trigger(project, monkeypatch):
    event = project.event(MosaicStitched, MosaicId(1))
    for automatic in (True, False):
        body = bus._body(event, automatic)
        parameters = rendered(WITH_TRIGGER[0], body, monkeypatch)
        assert received_from(event.event_name(), body["payload"], parameters["source"]).is_automatic is automatic
    later = datetime.now(UTC) + timedelta(seconds=1)
    copy = bus._body(event, True) | {"occurred": later.isoformat(), "id": str(uuid.uuid4())}
    parameters = rendered(WITH_TRIGGER[0], copy, monkeypatch)
    assert not received_from(event.event_name(), copy["payload"], parameters["source"]).is_automatic


def test_a_payload_that_is_too_large_is_sent_without_what_its_reader_finds_by_itself(project, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    files = {}
    for tile in (1, 2):
        files[tile] = f"mosaic_001_image_{tile:04d}_spectral_0000.nii"
        (raw / files[tile]).write_bytes(b"x")
    event = project.event(BatchReady, BatchId(1, 1), raw_folder=str(raw), files=files, problems={1: "x" * 500_000})
    body = bus._body(event, True)
    assert bus._size(body["payload"]) <= bus.MOST_BYTES
    assert "problems" not in body["payload"]
    received = received_from(event.event_name(), body["payload"], {"id": "1", "resource": body["resource"]})
    assert event_from_received(project, received) == event.model_copy(update={"problems": {}})
    del body["payload"]["files"]
    received = received_from(event.event_name(), body["payload"], {"id": "1", "resource": body["resource"]})
    assert event_from_received(project, received).files == files


def test_a_payload_that_stays_too_large_is_refused(project):
    event = project.event(MosaicStitched, MosaicId(1), parameters={"note": "x" * 500_000})
    with pytest.raises(EventError, match=r"linc\.oct\.mosaic\.stitched of mosaic 1 takes \d+ bytes"):
        bus._body(event, True)
