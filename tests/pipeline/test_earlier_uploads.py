"""Projects of the earlier version, whose `uploaded` meant the local archive tree, are read correctly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.ids import BatchId, MosaicId, SliceId
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import RedoPlan, apply_plan
from opticstream.pipeline.retry import retry_plan
from opticstream.pipeline.stale import stale_results
from opticstream.pipeline.uploads import upload_queue
from opticstream.state.mirror import oct_state_from_facts

BATCH, MOSAIC, SLICE = BatchId(1, 1), MosaicId(1), SliceId(1)
FLAGS = {
    BATCH: "mosaic-01/state/batch-001",
    MOSAIC: "state/mosaic-001",
    SLICE: "state/slice-001",
}


def written_by_the_earlier_version(base: Path, item, fact: str, **fields) -> None:
    path = base / f"{FLAGS[item]}.{fact}"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"fact": fact, "item": item.key, "time": "2026-01-02T03:04:05.600000Z", "host": "rig", "pid": 7, **fields}
    path.write_text(json.dumps(record, indent=1) + "\n")


@pytest.fixture
def project(project_file: Path) -> Project:
    """A project as the earlier version left it: published locally, but for a slice whose publication failed."""
    config = load_project(project_file)
    base = config.base_path
    for fact in ("ready", "started", "archived", "processed", "upload_started", "uploaded"):
        written_by_the_earlier_version(base, BATCH, fact)
    for fact in ("ready", "stitched", "volume_stitched", "upload_started", "volume_upload_started", "volume_uploaded"):
        written_by_the_earlier_version(base, MOSAIC, fact)
    outputs = [{"path": "archive:derivative/sub-01/mosaic_001_aip.nii.gz", "size": 3}]
    written_by_the_earlier_version(base, MOSAIC, "uploaded", outputs=outputs)
    for fact in ("ready", "registered", "upload_started"):
        written_by_the_earlier_version(base, SLICE, fact)
    written_by_the_earlier_version(base, SLICE, "upload_failed", detail={"reason": "the share was away"})
    return Project.open(config, deployment=DeploymentSettings())


LOCAL = {
    BATCH: {"publish_started", "published"},
    MOSAIC: {"publish_started", "published", "volume_publish_started", "volume_published"},
    SLICE: {"publish_started", "publish_failed"},
}


@pytest.mark.parametrize("item", LOCAL, ids=str)
def test_an_earlier_upload_is_a_publication_and_no_upload(project, item):
    for known in (project.facts.facts_of(item), project.facts.snapshot().facts_of(item)):
        assert {fact for fact in known if "publish" in fact} == LOCAL[item]
        assert not any("upload" in fact for fact in known)
    for fact in ("uploaded", "upload_started", "upload_failed"):
        assert not project.facts.has(item, fact)
        assert project.facts.read(item, fact) is None
        assert project.facts.hashes(item, fact) is None
    for fact in LOCAL[item]:
        assert project.facts.has(item, fact)
        assert project.facts.read(item, fact).fact == fact


def test_what_an_earlier_version_published_is_not_published_again_and_its_files_are_known(project):
    assert upload_queue(project, project.facts.snapshot()) == []
    (file,) = project.facts.read(MOSAIC, "published").outputs
    assert file.path == "archive:derivative/sub-01/mosaic_001_aip.nii.gz"
    assert stale_results(project) == []


def test_status_and_shared_state_of_an_earlier_project_say_published(project):
    progress = project_progress(project)
    assert [(m.published, m.uploaded) for m in progress.mosaics] == [(True, False)]
    assert progress.mosaics[0].batches["published"] == 1
    assert progress.mosaics[0].batches["uploaded"] == 0
    assert [(f.item, f.fact, f.reason) for f in progress.failures] == [(SLICE, "publish_failed", "the share was away")]
    view = oct_state_from_facts("p", project.facts, project.layout).to_view()
    mosaic = view.slices[1].mosaics[1]
    assert (mosaic.published, mosaic.uploaded, mosaic.uploaded_at) == (True, False, None)
    assert mosaic.volume_published_at is not None
    assert mosaic.volume_uploaded_at is None


def test_an_upload_of_an_earlier_project_leaves_both_facts_each_with_its_own_record(project):
    with project.facts.claim(MOSAIC, "upload_started"):
        assert project.facts.has(MOSAIC, "upload_started")
        assert project.facts.record(MOSAIC, "uploaded", {"detail": {"targets": {"s3": {}}}})
    assert {"published", "uploaded"} <= project.facts.facts_of(MOSAIC)
    assert project.facts.read(MOSAIC, "uploaded").detail["targets"] == {"s3": {}}
    assert "targets" not in project.facts.read(MOSAIC, "published").detail
    assert "volume_published" in project.facts.facts_of(MOSAIC)
    assert "volume_uploaded" not in project.facts.facts_of(MOSAIC), "the volumes are another matter"


def test_an_earlier_publication_is_withdrawn_with_its_result_and_retried_after_a_failure(project):
    plan = retry_plan(project)
    assert (SLICE, "publish_failed") in plan.withdraw
    apply_plan(project, plan, reason="test")
    assert not project.facts.facts_of(SLICE) & {"publish_failed", "upload_failed", "published"}
    plan = RedoPlan(project)
    plan.redo(next(s for s in _steps() if s.done == "stitched"), MOSAIC)
    apply_plan(project, plan, reason="test")
    assert not project.facts.facts_of(MOSAIC) & {"published", "uploaded", "volume_published", "volume_uploaded"}
    kept = {path.name.split(".")[1] for path in (project.paths.base / "state/withdrawn").glob("mosaic-001.*")}
    assert {"published", "volume_published", "stitched"} <= kept


def test_an_upload_is_withdrawn_before_the_publication_that_it_rests_on(project):
    project.facts.record(MOSAIC, "uploaded")
    order = []
    original = type(project.facts).withdraw

    plan = RedoPlan(project)
    plan.redo(next(s for s in _steps() if s.done == "stitched"), MOSAIC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(project.facts),
            "withdraw",
            lambda self, item, fact, *, reason: order.append((item, fact)) or original(self, item, fact, reason=reason),
        )
        apply_plan(project, plan, reason="test")
    about = [fact for item, fact in order if item == MOSAIC]
    assert about.index("uploaded") < about.index("published") < about.index("stitched")


def test_a_flag_of_an_earlier_version_that_is_damaged_or_empty_is_no_upload_either(project):
    (project.paths.base / "state/mosaic-001.uploaded").write_text("{ cut")
    (project.paths.base / "mosaic-01/state/batch-001.uploaded").write_text("")
    assert project.facts.has(MOSAIC, "published")
    assert not project.facts.has(MOSAIC, "uploaded")
    assert project.facts.read(BATCH, "published").outputs == ()


def _steps():
    from opticstream.model.chain import chain

    return chain().steps
