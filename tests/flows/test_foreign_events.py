"""Events of other programs on a real server: every one makes a run, and what is wrong with it is told to people."""

from __future__ import annotations

import json
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.parameters import save_parameters
from opticstream.model.ids import BatchId, MosaicId, TileId
from opticstream.pipeline.project import Project

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]

PROJECT = """
[project]
project_name = "NAME"
project_base_path = "out"
[scan]
grid_size_y = 2
illuminations = [{ name = "normal", columns = 2, a_lines = 350 }, { name = "tilted", columns = 1, a_lines = 200 }]
"""


@pytest.fixture
def project(request, tmp_path: Path, prefect_server) -> Project:
    """A registered project whose raw tiles are cut: its batches are processed in a moment, and all tiles parked."""
    file = tmp_path / "p.toml"
    file.write_text(PROJECT.replace("NAME", f"Foreign {uuid.uuid4().hex[:6]}"))
    (tmp_path / "raw").mkdir()
    for tile in (1, 2):
        (tmp_path / "raw" / f"mosaic_001_image_{tile:04d}_spectral_0000.nii").write_bytes(b"cut")
    config = load_project(file)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        save_parameters(config)
    return Project.open(config, deployment=DeploymentSettings())


def emit(worker, name, payload, *, labels=None, id_=None, occurred=None) -> str:
    """Send an event as any program can, and return its id."""
    body = {
        "id": id_ or str(uuid.uuid4()),
        "occurred": occurred or datetime.now(UTC).isoformat(),
        "event": name,
        "resource": {"prefect.resource.id": "another.program", **(labels or {})},
        "related": [],
        "payload": payload,
    }
    worker._ask("POST", "/events", [body])
    return body["id"]


def runs_of(worker, id_: str) -> list[dict]:
    found = worker.flow_runs()
    return [run for run in found if (run["parameters"].get("source") or {}).get("id") == id_]


def ended(worker, id_: str, count: int = 1) -> list[dict]:
    """Return the runs that an event has started, once all of them have ended."""

    def done() -> bool:
        runs = runs_of(worker, id_)
        return len(runs) >= count and all(r["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED") for r in runs)

    worker.wait_until(done)
    return runs_of(worker, id_)


def withdrawn(project: Project, item) -> list[str]:
    return [str(e.why) for e in project.facts.journal.history(item) if e.event == "withdrawn"]


def test_a_batch_that_another_program_announces_is_processed_and_tried_again_when_it_does_so_again(
    project, worker, tmp_path
):
    payload = {"project_name": project.config.name, "mosaic_id": "001", "batch_id": "1", "operator": "A",
               "raw_folder": str(tmp_path / "raw")}  # fmt: skip
    first = emit(worker, "linc.oct.batch.ready", payload)
    (run,) = ended(worker, first)
    assert run["state"]["type"] == "COMPLETED", run["state"]
    assert run["name"] == f"{project.config.name} mosaic 001 batch 1"
    assert project.facts.has(BatchId(1, 1), "ready"), "sweep and retry know it"
    assert project.facts.has(BatchId(1, 1), "processed")
    assert project.facts.read(TileId(1, 1), "failed").detail["attempts"] == 1
    worker.wait_until_quiet()
    assert withdrawn(project, BatchId(1, 1)) == []

    second = emit(worker, "linc.oct.batch.ready", payload)
    ended(worker, second)
    assert project.facts.read(TileId(1, 1), "failed").detail["attempts"] == 2
    assert {why.partition(" of ")[0] for why in withdrawn(project, BatchId(1, 1))} == {
        "re-emitted event linc.oct.batch.ready"
    }
    worker.wait_until_quiet()

    known = len(withdrawn(project, BatchId(1, 1)))
    late = emit(worker, "linc.oct.batch.ready", payload, occurred="2026-01-02T03:04:05+00:00")
    ended(worker, late)
    assert len(withdrawn(project, BatchId(1, 1))) == known, "it was sent before the batch was processed"


def test_what_cannot_be_understood_is_told_to_people(project, worker, tmp_path):
    name = project.config.name
    wrong = {
        "mosaic 0": emit(worker, "linc.oct.mosaic.ready", {"project_name": name, "mosaic_id": 0}),
        "batch 9": emit(worker, "linc.oct.batch.archived", {"mosaic_id": 1, "batch_id": 9}, labels={"project": name}),
    }
    for id_ in wrong.values():
        for run in ended(worker, id_):
            assert run["state"]["type"] == "FAILED"
            assert "expected" in run["state"]["message"]
            assert "Traceback" not in run["state"]["message"]
    told = [path.read_text() for path in (project.paths.base / "state" / "notified").glob("event-*")]
    assert len(told) == 2
    assert any("linc.oct.mosaic.ready" in line and "mosaic_id: expected a whole number" in line for line in told)
    assert any("linc.oct.batch.archived" in line and "batch_id: expected 1 to 2" in line for line in told)
    for command in ("status", "failures"):
        answer = CliRunner().invoke(app, [command, str(tmp_path / "p.toml")])
        assert "event not understood" in answer.output
    plain = json.loads(CliRunner().invoke(app, ["status", str(tmp_path / "p.toml"), "--json"]).output)
    assert {one["name"] for one in plain["refused_events"]} == {"linc.oct.mosaic.ready", "linc.oct.batch.archived"}


@pytest.mark.parametrize(
    ("payload", "labels", "told"),
    [
        ({}, {}, "project_name is missing"),
        ({"project_name": "nobody knows it", "slice_id": 1}, {}, "is not registered"),
        ({"project_name": "p", "slice_id": 1}, {"project": "q"}, "contradicts the label project 'q'"),
    ],
    ids=["no payload", "unknown project", "two projects"],
)
def test_without_a_known_project_the_server_tells_it(worker, payload, labels, told):
    id_ = emit(worker, "linc.oct.slice.ready", payload, labels=labels)
    runs = ended(worker, id_, 2)
    assert len(runs) == 2, "register-slice and update-sample"
    for run in runs:
        assert run["state"]["type"] == "FAILED"
        assert told in run["state"]["message"]
    written = worker.artifacts()
    assert any(a["key"] == "opticstream--event-not-understood" and told in a["data"] for a in written)


@pytest.mark.parametrize("second_after_s", [0.0, -0.2], ids=["in order", "the second one is older"])
def test_parked_uploads_of_which_the_events_come_at_once_are_all_tried_again(project, worker, second_after_s):
    batches = project.layout.batches(MosaicId(1))
    for batch in batches:
        project.facts.record(batch, "archived", {"detail": {"failed_tiles": []}})
        project.facts.record(batch, "publish_failed", {"detail": {"reason": "the share was away"}})
    payload = {"project_name": project.config.name, "mosaic_id": 1}
    time.sleep(0.3)  # an event that is older than the failure would not ask for another attempt
    for number, batch in enumerate(batches):
        occurred = (datetime.now(UTC) + number * timedelta(seconds=second_after_s)).isoformat()
        emit(worker, "linc.oct.batch.archived", {**payload, "batch_id": batch.batch_id}, occurred=occurred)
    worker.wait_until(lambda: project.facts.reached(batches, "published"), sweeps=project)
    assert all(withdrawn(project, batch) for batch in batches)


def test_events_that_do_not_name_their_project_as_a_label_do_not_swallow_each_other(project, worker, tmp_path):
    config = load_project(tmp_path / "p.toml", overrides={"project_name": f"{project.config.name} b",
                                                          "project_base_path": str(tmp_path / "b")})  # fmt: skip
    with temporary_settings({PREFECT_API_URL: worker.api_url}):
        save_parameters(config)
    other = Project.open(config)
    for one in (project, other):
        for batch in one.layout.batches(MosaicId(1)):
            one.facts.record(batch, "processed")
    for one in (project, other):
        payload = {"project_name": one.config.name, "mosaic_id": 1, "batch_id": 1}
        emit(worker, "linc.oct.batch.processed", payload)
    worker.wait_until(lambda: all(one.facts.has(MosaicId(1), "ready") for one in (project, other)))
