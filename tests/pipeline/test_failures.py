"""Failures have kinds, are counted, parked after their tries, released, and told in groups with a remedy."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import DeploymentSettings, load_project
from opticstream.model.errors import CalibrationError, MissingInputError, ProcessingError, ServerError, TileSizeError
from opticstream.model.ids import BatchId, MosaicId, TileId
from opticstream.pipeline import batches
from opticstream.pipeline.failure_patterns import failure_patterns
from opticstream.pipeline.failures import SUGGESTIONS, kind_of
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.retry import apply_plan, retry_plan
from opticstream.state import Facts
from opticstream.system.host import HostIdentity
from opticstream.testing.bus import LocalBus


def opened(folder, **settings) -> Project:
    given = {"lease_s": 5, "attempts": 3} | settings
    return Project.open(load_project(folder / "project.toml"), deployment=DeploymentSettings(**given))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MissingInputError("gone"), "missing input"),
        (TileSizeError("short"), "damaged input"),
        (CalibrationError("no"), "calibration"),
        (ProcessingError("blank"), "no result"),
        (OSError(28, "No space left on device"), "disk full"),
        (OSError(116, "Stale file handle"), "disk or network"),
        (PermissionError(13, "denied"), "no access"),
        (MemoryError(), "memory"),
        (ServerError("away"), "server"),
        (ZeroDivisionError(), "unexpected"),
        (ExceptionGroup("both", [TileSizeError("short"), OSError()]), "damaged input"),
    ],
)
def test_every_error_has_a_kind_with_a_remedy(error, kind):
    assert kind_of(error) == kind
    assert SUGGESTIONS[kind]


def test_a_project_without_failures_says_so(acquisition):
    answer = CliRunner().invoke(app, ["failures", str(acquisition / "project.toml")])
    assert (answer.exit_code, answer.output) == (0, "nothing has failed\n")
    assert failure_patterns(opened(acquisition)) == []


@pytest.fixture(scope="module")
def failing(acquired, tmp_path_factory):
    """A run in which two tiles are damaged, one is missing, and a worker of another host has died."""
    acquisition = Path(shutil.copytree(acquired, tmp_path_factory.mktemp("failing") / "acquisition"))
    for number in (2, 3):
        os.truncate(next((acquisition / "raw").glob(f"mosaic_001_image_{number:04d}_*")), 100)
    project = opened(acquisition)
    identity = HostIdentity.current()
    dead = HostIdentity("opal", 2**22 + 1, identity.boot_id, identity.pid_namespace, process_start=1)
    Facts(project.facts.project_dir, host=dead).claim(BatchId(2, 1))
    bus = LocalBus(project)
    bus.feed(acquisition / "raw")
    next((acquisition / "raw").glob("mosaic_002_image_0001_*")).unlink()
    bus.run()
    return acquisition


def test_failures_of_a_real_run_are_grouped_by_kind_stage_and_host(failing):
    project = opened(failing)
    here = project.facts.host.host
    found = {(p.kind, p.stage, p.host): p for p in failure_patterns(project)}
    assert found.keys() == {
        ("damaged input", "process batch", here),
        ("missing input", "process batch", here),
        ("process died", "process batch", "opal"),
    }
    damaged = found["damaged input", "process batch", here]
    assert (damaged.count, damaged.parked) == (2, 2)
    assert damaged.items == ("mosaic-001/tile-0002", "mosaic-001/tile-0003")
    assert "mosaic_001_image_0003" in damaged.message
    assert sum(damaged.per_day.values()) == 2
    assert damaged.first <= damaged.last <= datetime.now(UTC)
    assert failure_patterns(project, since=datetime.now(UTC) + timedelta(seconds=1)) == []


def test_without_a_journal_what_is_parked_is_still_told(failing, monkeypatch):
    project = opened(failing)
    monkeypatch.setattr(project.facts.journal, "entries", lambda: iter(()))
    found = {(p.kind, p.stage): p.count for p in failure_patterns(project)}
    assert found == {("damaged input", "process batch"): 2, ("missing input", "process batch"): 1}


def test_the_command_tells_times_and_remedies(failing):
    answer = CliRunner().invoke(app, ["failures", str(failing / "project.toml")])
    assert answer.exit_code == 0
    assert "damaged input" in answer.output
    assert SUGGESTIONS["process died"] in answer.output
    plain = json.loads(CliRunner().invoke(app, ["failures", str(failing / "project.toml"), "--json"]).output)
    assert {entry["kind"] for entry in plain} == {"damaged input", "missing input", "process died"}
    assert datetime.fromisoformat(plain[0]["last"]) >= datetime.fromisoformat(plain[0]["first"])


def test_what_a_later_attempt_has_mended_is_counted_but_not_parked(failing):  # the last one: it mends
    project = opened(failing)
    for file in (failing / "raw").glob("mosaic_001_image_000[23]_*"):
        good = next((failing / "raw").glob("mosaic_001_image_0001_*")).read_bytes()
        file.write_bytes(good)
    plan = retry_plan(project, only=[MosaicId(1)])
    apply_plan(project, plan, reason="test")
    bus = LocalBus(project)
    bus.announce(plan.announce)
    bus.run()
    (damaged,) = [p for p in failure_patterns(project) if p.kind == "damaged input"]
    assert (damaged.count, damaged.parked) == (2, 0)


def fail_whole_batches(monkeypatch, error):
    """Let the record of a batch's archive copies fail, which no retry of a single tile covers."""

    def failing(project, tile):
        raise error

    monkeypatch.setattr(batches, "_archive_names", failing)


def run_once(project, folder):
    bus = LocalBus(project)
    bus.feed(folder / "raw")
    bus.sweep()
    try:
        bus.run()
    except OSError:
        return "raised"
    return "ended"


def test_a_batch_that_fails_three_times_is_parked_told_and_released(acquisition, monkeypatch):
    for raw in (acquisition / "raw").glob("mosaic_002_*"):
        raw.unlink()
    for raw in (acquisition / "raw").glob("mosaic_001_*"):
        if int(raw.name.split("_")[3]) > 2:  # one column is enough
            raw.unlink()
    project = opened(acquisition)
    with monkeypatch.context() as patch:
        fail_whole_batches(patch, OSError(5, "Input/output error"))
        assert [run_once(project, acquisition) for _ in range(3)] == ["raised", "raised", "ended"]
        (failure,) = project_progress(project).failures
        assert (failure.item, failure.fact) == (BatchId(1, 1), "failed")
        assert is_finished(project, project.facts.snapshot()), "what is parked waits for nobody"
        assert run_once(project, acquisition) == "ended"
        assert project.facts.claims.failures(BatchId(1, 1), "started") == 0
        (pattern,) = failure_patterns(project)
        assert (pattern.kind, pattern.count, pattern.parked) == ("disk or network", 3, 1)

        apply_plan(project, retry_plan(project), reason="test")
        assert run_once(project, acquisition) == "raised", "after its release it has all its tries again"
    assert run_once(project, acquisition) == "ended"
    assert project_progress(project).failures == ()
    assert project.facts.has(BatchId(1, 1), "processed")


def test_bad_input_parks_a_batch_at_once(acquisition, monkeypatch):
    project = opened(acquisition)
    fail_whole_batches(monkeypatch, ValueError("not what was expected"))
    assert run_once(project, acquisition) == "ended"
    batches_failed = [f for f in project_progress(project).failures if isinstance(f.item, BatchId)]
    assert len(batches_failed) == 6
    assert project.facts.has(MosaicId(1), "ready"), "parked batches do not hold up their mosaic"
    assert not project.facts.has(TileId(1, 1), "failed")
