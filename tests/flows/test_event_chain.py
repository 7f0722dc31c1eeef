"""The event chain on a real Prefect server: every arrow is a trigger, and each of them matters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.driver import Driver
from opticstream.flows.leftovers import project_of
from opticstream.flows.parameters import load_parameters, save_parameters
from opticstream.flows.picture import picture_is_current
from opticstream.flows.prefect_state import OCT_STATE_SERVICE
from opticstream.flows.queues import unfinished_runs
from opticstream.model.ids import BatchId, MosaicId, SampleId, SliceId
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.state.mirror import oct_state_from_facts
from opticstream.state.slugs import artifact_key
from opticstream.watch import Watcher

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]

BATCH, MOSAIC, SLICE, SAMPLE = BatchId(1, 1), MosaicId(1), SliceId(1), SampleId()
# What must have happened, and what must not, when the trigger of a deployment is off.
WITHOUT = {
    "process-batch": ([(BATCH, "ready")], [(BATCH, "started"), (BATCH, "processed"), (MOSAIC, "ready")]),
    "batch-state": ([(BATCH, "processed"), (BATCH, "published")], [(MOSAIC, "ready"), (MOSAIC, "started")]),
    "stitch-mosaic": ([(MOSAIC, "ready")], [(MOSAIC, "started"), (MOSAIC, "stitched"), (SLICE, "ready")]),
    "stitch-volume": ([(SLICE, "registered"), (MOSAIC, "published")], [(MOSAIC, "volume_started")]),
    "slice-state": ([(MOSAIC, "volume_stitched"), (MOSAIC, "published")], [(SLICE, "ready"), (SLICE, "started")]),
    "register-slice": ([(SLICE, "ready")], [(SLICE, "started"), (SLICE, "registered"), (SAMPLE, "updated")]),
    "update-sample": ([(SLICE, "registered"), (SLICE, "published")], [(SLICE, "stacked"), (SAMPLE, "updated")]),
    "upload": ([(SLICE, "stacked"), (MOSAIC, "volume_stitched")], [(BATCH, "published"), (MOSAIC, "published")]),
}

_QUICK = ("process-batch", "batch-state")
"""Those that the chain reaches soon; the others take a minute and more each."""


def start(acquired: Path, folder: Path, name: str, *, tile_by_tile: bool = False) -> Driver:
    """Register a copy of the small acquisition as a project of its own, announce its batches, and return its driver.

    With `tile_by_tile` the second tile of the first column comes after the first one was announced.
    """
    shutil.copytree(acquired, folder, dirs_exist_ok=True)
    config = load_project(folder / "project.toml", overrides={"project_name": name})
    save_parameters(config)
    project = Project.open(config, deployment=DeploymentSettings())
    (second,) = (folder / "raw").glob("mosaic_001_image_0002*")
    if tile_by_tile:
        second = second.rename(folder / second.name)
    driver = Driver(project, Watcher(folder / "raw", config.scan, stable_s=0))
    driver.step()
    driver.step()
    if tile_by_tile:
        second.rename(folder / "raw" / second.name)
        driver.step()
        driver.step()
    return driver


def test_the_chain_runs_on_events_alone(acquired, tmp_path, worker, prefect_server):
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        driver = start(acquired, tmp_path, "Whole Chain", tile_by_tile=True)
        project = driver.project
        worker.wait_until(lambda: is_finished(project, project.facts.snapshot()), sweeps=project)
        driver.finish()
        assert unfinished_runs("Whole Chain") == []
        assert load_parameters("Whole Chain") == project.config
    assert worker.errors == []
    progress = project_progress(project)
    assert progress.failures == ()
    assert [(s.state, s.stacked, s.published) for s in progress.slices] == [("registered", True, True)]

    runs = [run for run in worker.flow_runs() if project_of(run) == "Whole Chain"]
    assert {run["created_by"]["type"] for run in runs} == {"AUTOMATION"}
    assert all(run["state"]["type"] == "COMPLETED" for run in runs)
    computing = {(run["name"], run["deployment_id"]) for run in runs}
    tiles, batches, maps, volumes = 1, 6, 2, 2
    of_mosaics = sum(name.startswith("Whole Chain mosaic") for name, _ in computing)
    assert of_mosaics == tiles + batches + maps + volumes
    assert sum(name.startswith("Whole Chain slice") for name, _ in computing) == 1
    assert any(name == "Whole Chain sample" for name, _ in computing)
    assert {run["deployment_id"] for run in runs} == worker.triggered_deployments(), "each trigger has started its flow"

    artifacts = worker.artifacts(of=runs)
    keys = {artifact["key"] for artifact in artifacts}
    assert any(key.endswith("--parameters") for key in keys)
    assert any(key.endswith("--mosaic-1-progress") for key in keys)
    (preview, *_) = [a for a in artifacts if a["key"].endswith("--sample")]
    assert "](data:image/jpeg;base64," in preview["data"]
    assert "No slice is missing." in preview["data"]
    for kind in ("qc-overlap", "qc-coordinates", "qc-focus"):
        (shown,) = [a for a in artifacts if a["key"].endswith(f"--mosaic-1-{kind}")]
        assert "](data:image/jpeg;base64," in shown["data"]
        assert "No tile is missing." in shown["data"]
    kept = {a["flow_run_id"] for a in artifacts if a["key"].endswith("--parameters")}
    computing = {run["id"] for run in runs if run["name"].startswith(("Whole Chain mosaic", "Whole Chain slice"))}
    assert kept == computing, "runs that only look do not keep the same parameters over and over"
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        name, facts, layout = project.config.name, project.facts, project.layout
        assert picture_is_current(project)
        view = OCT_STATE_SERVICE.peek_project(name)
    assert view == oct_state_from_facts(name, facts, layout).to_view()
    assert all(mosaic.finished and mosaic.has("volume_published") for mosaic in view.mosaics())
    assert view.slices[1].finished
    assert view.slices[1].has("stacked")
    own = artifact_key("Whole Chain", "")  # the last look may be that of the feeding process, which is no flow run
    tables = {a["key"].removeprefix(own): a["data"] for a in worker.artifacts() if a["key"].startswith(own)}
    for mosaic in (1, 2):
        for row in ("maps: stitched", "volumes: stitched", "maps published"):
            assert row in tables[f"mosaic-{mosaic}-progress"]
    rows = [row for row in json.loads(tables["progress"]) if row["slice"] == 1]
    assert [(r["slice state"], r["in the sample"], r["slice published"], r["state"]) for r in rows] == [
        ("registered", True, True, "stitched")
    ] * 2
    stitched = [e["payload"] for e in worker.events("linc.oct.mosaic.stitched", project=name)]
    assert {p["mosaic_id"]: p["artifacts"]["qc_overlap"] for p in stitched}[1] in keys
    assert all(
        (project.paths.base / path).exists() for p in stitched for path in [p["template"], *p["outputs"].values()]
    )
    told = sorted(path.name for path in (project.paths.base / "state" / "notified").iterdir())
    assert {"mosaic-001.stitched", "mosaic-002.stitched", "slice-001.registered"} <= set(told)


@pytest.mark.parametrize(
    "removed", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WITHOUT]
)
def test_without_one_trigger_the_chain_stops_exactly_there(acquired, tmp_path, worker, prefect_server, removed):
    reached, not_reached = WITHOUT[removed]
    worker.set_enabled(removed, False)
    try:
        with temporary_settings({PREFECT_API_URL: prefect_server}):
            project = start(acquired, tmp_path, f"without-{removed}").project
        worker.wait_until(lambda: all(project.facts.has(*fact) for fact in reached), sweeps=project)
        worker.wait_until_quiet()
    finally:
        worker.set_enabled(removed, True)
    for item, fact in not_reached:
        assert not project.facts.has(item, fact), f"{item} {fact}"


def test_an_announcement_with_parameters_overrides_the_registered_ones(acquired, tmp_path, worker, prefect_server):
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        from opticstream.flows.incoming import received_from, take
        from opticstream.model.events import MosaicReady

        shutil.copytree(acquired, tmp_path, dirs_exist_ok=True)
        config = load_project(tmp_path / "project.toml", overrides={"project_name": "overridden"})
        save_parameters(config)
        project = Project.open(config)
        event = project.event(MosaicReady, MOSAIC, parameters={"mask_threshold_normal": 33.0, "depth": 10})
        received = received_from(event.event_name(), event.payload(), None)
        opened = take(received, overrides={"depth": 20}).project
        assert opened.config.processing.mask.threshold_for("normal") == 33.0
        assert opened.config.processing.enface.depth == 20
