"""On a real server: an event that names a project's folder as another host does is worked on where this one sees it."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from opticstream.config import DeploymentSettings, load_project
from opticstream.config.path_map import PathMapping
from opticstream.flows.parameters import load_parameters, registered_parameters, save_parameters
from opticstream.model.ids import BatchId, MosaicId, TileId
from opticstream.pipeline.project import Project

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]

PROJECT = """
[project]
project_name = "NAME"
project_base_path = 'RIG\\out'
[scan]
grid_size_y = 2
illuminations = [{ name = "normal", columns = 2, a_lines = 350 }, { name = "tilted", columns = 1, a_lines = 200 }]
"""


@pytest.fixture
def mount(tmp_path: Path, monkeypatch) -> Path:
    """Where this host sees the share of the rig: with two raw tiles that are cut short."""
    folder = tmp_path / "mnt"
    (folder / "raw").mkdir(parents=True)
    (folder / "out").mkdir()
    for tile in (1, 2):
        (folder / "raw" / f"mosaic_001_image_{tile:04d}_spectral_0000.nii").write_bytes(b"cut")
    return folder


@pytest.fixture
def rig(mount: Path, monkeypatch) -> str:
    """The share's name at the rig; one of its own for each test, as runs of an earlier test may come late."""
    share = rf"\\rig\data-{uuid.uuid4().hex[:6]}"
    monkeypatch.setenv("OPTICSTREAM_PATH_MAP", json.dumps([{"from": share, "to": str(mount)}]))
    return share


@pytest.fixture
def name(mount: Path, rig: str) -> str:
    """A project whose file in its own folder was written on the rig."""
    name = f"Hosts {uuid.uuid4().hex[:6]}"
    (mount / "out" / "project.toml").write_text(PROJECT.replace("NAME", name).replace("RIG", rig), encoding="utf-8")
    return name


def opened(mount: Path) -> Project:
    path_map = DeploymentSettings().path_map
    return Project.open(load_project(mount / "out" / "project.toml", path_map=path_map))


def emit(worker, event: str, payload: dict) -> str:
    body = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": "the.rig", "project": payload["project_name"]},
        "related": [],
        "payload": payload,
    }
    worker._ask("POST", "/events", [body])
    return body["id"]


def ended(worker, id_: str) -> dict:
    """Return the run that an event has started, once it has ended."""

    def runs() -> list[dict]:
        return [run for run in worker.flow_runs() if (run["parameters"].get("source") or {}).get("id") == id_]

    worker.wait_until(lambda: any(run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED") for run in runs()))
    return runs()[0]


@pytest.mark.parametrize(
    "is_registered",
    [pytest.param(True, id="registered", marks=pytest.mark.slow), pytest.param(False, id="known by its file")],
)
def test_an_event_of_a_windows_rig_is_worked_on_where_this_host_sees_the_share(worker, mount, rig, name, is_registered):
    with temporary_settings({PREFECT_API_URL: worker.api_url}):
        if is_registered:
            save_parameters(opened(mount).config)
            (mount / "out" / "project.toml").rename(mount / "kept.toml")
            assert load_parameters(name).base_path == mount / "out"
        else:
            assert registered_parameters(name) is None
    payload = {"project_name": name, "project_base_path": rf"{rig.upper()}\out", "mosaic_id": 1, "batch_id": 1,
               "raw_folder": rf"{rig}\raw"}  # fmt: skip
    run = ended(worker, emit(worker, "linc.oct.batch.ready", payload))
    assert run["state"]["type"] == "COMPLETED", run["state"]
    if is_registered:
        (mount / "kept.toml").rename(mount / "out" / "project.toml")
    facts = opened(mount).facts
    assert facts.has(BatchId(1, 1), "processed")
    assert "is not a NIfTI file" in facts.read(TileId(1, 1), "failed").detail["reason"]
    worker.wait_until(lambda: worker.events("linc.oct.batch.processed", project=name))
    (event,) = worker.events("linc.oct.batch.processed", project=name)
    assert event["payload"]["project_base_path"] == rf"{rig.upper()}\out", "every host can map the name that came"
    worker.wait_until_quiet()


def test_what_is_registered_keeps_the_names_as_configured(worker, mount, rig, name, monkeypatch):
    with temporary_settings({PREFECT_API_URL: worker.api_url}):
        save_parameters(opened(mount).config)
        elsewhere = [{"from": rig, "to": "/srv/rig"}]
        monkeypatch.setenv("OPTICSTREAM_PATH_MAP", json.dumps(elsewhere))
        assert DeploymentSettings().path_map == (PathMapping(from_=rig, to=Path("/srv/rig")),)
        assert load_parameters(name).base_path == Path("/srv/rig/out")


def test_a_folder_that_this_host_does_not_see_fails_the_run_and_is_told(worker, mount, rig, name):
    with temporary_settings({PREFECT_API_URL: worker.api_url}):
        save_parameters(opened(mount).config)
    before = sorted((mount / "out").rglob("*"))
    payload = {"project_name": name, "project_base_path": rf"{rig}\gone", "mosaic_id": 1}
    run = ended(worker, emit(worker, "linc.oct.mosaic.ready", payload))
    assert run["state"]["type"] == "FAILED"
    told = run["state"]["message"]
    gone = rf"{rig}\gone"
    assert f"project_base_path {gone!r}" in told
    assert f"which is {mount}/gone by OPTICSTREAM_PATH_MAP, cannot be found on this host" in told
    written = worker.artifacts()
    assert any(a["key"] == "opticstream--event-not-understood" and f"{mount}/gone" in a["data"] for a in written)
    worker.wait_until_quiet()
    assert sorted((mount / "out").rglob("*")) == before
    assert not opened(mount).facts.has(MosaicId(1), "failed")
