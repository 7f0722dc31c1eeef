"""Decisions about slices are facts: the pipeline follows them, and no reset, redo or rebuild takes them back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.io.nifti import read_nifti
from opticstream.model.errors import InputError, StateError
from opticstream.model.events import SampleUpdated, SliceFlagged, SliceReady
from opticstream.model.ids import SampleId, SliceId
from opticstream.pipeline.jobs import UPDATE_SAMPLE
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.project import Project
from opticstream.pipeline.quality_flags import flagged_results
from opticstream.pipeline.sample_decisions import exclude_slice, include_slice, place_slice, remove_place
from opticstream.pipeline.stacking import register_sample, report_sample, stack_slices, unstacked, update_sample
from opticstream.state.reset import apply_reset, plan_reset
from opticstream.state.verify import verify
from opticstream.testing.slice_phantom import Picture, SlicePhantom, make_slice
from opticstream.testing.stitched_project import stitched_project

SHAPE = (72, 64)
MORE = '\n[processing.volume]\nenabled = false\n[processing.sample]\nalign = "translation"\nformats = ["nifti"]\n'
RUNNER = CliRunner()


def phantom(seed: int) -> SlicePhantom:
    return make_slice((Picture(shape=SHAPE),), seed=seed, grain_px=6.0)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project of three slices of one illumination, all in the stacks."""
    made = stitched_project(tmp_path, [phantom(1)] * 3, more=MORE)
    list(update_sample(made))
    assert unstacked(made) == []
    return made


def gaps(project: Project) -> list[int]:
    stack = read_nifti(project.paths.sample_folder / "normal_aip.nii")
    return [n + 1 for n in range(stack.shape[2]) if np.isnan(stack[:, :, n]).all()]


def test_the_pipeline_notices_decisions_and_follows_them(project: Project) -> None:
    exclude_slice(project, SliceId(2), "torn")
    assert unstacked(project) == [SliceId(2)]
    assert SliceReady in {type(event) for event in pending_announcements(project) if event.item == SliceId(2)}
    events = [event for event in update_sample(project) if isinstance(event, SampleUpdated)]
    assert [(event.slices, event.missing) for event in events] == [((1, 3), (2,))]
    assert gaps(project) == [2]
    assert unstacked(project) == []
    place_slice(project, SliceId(3), shift_px=(4.0, 0.0))
    with pytest.raises(StateError, match="not applied yet"):
        place_slice(project, SliceId(3), shift_px=(4.0, 0.0))
    assert len(unstacked(project)) == 1
    list(update_sample(project))
    assert unstacked(project) == []
    remove_place(project, SliceId(3))
    include_slice(project, SliceId(2))
    assert set(unstacked(project)) == {SliceId(1), SliceId(2)}
    list(update_sample(project))
    assert unstacked(project) == []
    assert gaps(project) == []


def test_decisions_survive_reset_and_rebuild(project: Project) -> None:
    exclude_slice(project, SliceId(2), "torn")
    place_slice(project, SliceId(3), shift_px=(4.0, 0.0), against=SliceId(1))
    plan = plan_reset(project.facts, SliceId(2), project.layout, downstream=True)
    apply_reset(project.facts, plan, project.layout, reason="a test")
    assert project.facts.has(SliceId(2), "excluded")
    assert not project.facts.has(SliceId(2), "stacked")
    stack_slices(project, rebuild=True)
    assert gaps(project) == [2]
    placed = json.loads((project.paths.sample_folder / "poses.json").read_text())["placed"]
    assert [(e["first"], e["second"]) for e in placed] == [(1, 3)]


def test_a_failure_to_follow_a_decision_is_parked_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from opticstream.stages import sample

    def broken(_new: object) -> None:
        raise InputError("broken")

    place_slice(project, SliceId(3), shift_px=(4.0, 0.0))
    monkeypatch.setattr(sample, "update_sample", broken)
    assert len(list(update_sample(project))) == 1
    assert unstacked(project) == []


@pytest.mark.parametrize(("work", "made"), [(register_sample, SimpleNamespace(name="mri")), (report_sample, {})])
def test_nobody_adds_slices_while_the_sample_is_registered_or_reported(
    project: Project, monkeypatch: pytest.MonkeyPatch, work: Callable[[Project], object], made: object
) -> None:
    from opticstream.stages import sample

    before = project.facts.read(SampleId(), "updated")

    def during(_new: object) -> object:
        list(update_sample(project))  # what the pipeline does as soon as a slice is ready
        assert project.facts.read(SampleId(), "updated") == before
        return made

    monkeypatch.setattr(sample, work.__name__, during)
    exclude_slice(project, SliceId(2), "torn")
    work(project)
    assert unstacked(project) == [SliceId(2)]
    claim = project.facts.claim(SampleId(), UPDATE_SAMPLE.claim)
    assert claim is not None
    with claim, pytest.raises(StateError, match="are being updated by"):
        work(project)
    assert gaps(project) == []
    list(update_sample(project))
    assert gaps(project) == [2]


def test_a_report_that_is_written_again_is_recorded(project: Project) -> None:
    page = project.paths.sample_folder / "report.html"
    page.write_text("spoiled")
    assert SampleId() in {found.item for found in verify(project.facts, layout=project.layout)}
    report_sample(project)
    assert SampleId() not in {found.item for found in verify(project.facts, layout=project.layout)}


def test_a_slice_unlike_its_neighbours_is_flagged(tmp_path: Path) -> None:
    project = stitched_project(tmp_path, [phantom(1), phantom(1), phantom(9), phantom(1)], more=MORE)
    flagged = [event for event in update_sample(project) if isinstance(event, SliceFlagged)]
    assert [(event.slice_id, event.verdict) for event in flagged][-1] == (3, "bad")
    assert "processing.quality.slice_agreement" in flagged[-1].reasons[0]
    found = {one.item: one for one in flagged_results(project, project.facts.snapshot())}
    assert set(found) == {SliceId(3)}
    assert found[SliceId(3)].grade == "bad"


def test_commands_decide_show_and_explain(project: Project, tmp_path: Path) -> None:
    file = str(tmp_path / "project.toml")

    def said(*arguments: str, code: int = 0) -> str:
        result = RUNNER.invoke(app, ["sample", *arguments])
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    assert "excluded: torn" in said("exclude", file, "2", "--reason", "torn")
    assert "placed by hand against slice 1" in said("place", file, "3", "--shift", "2,-1", "--against", "1")
    shown = json.loads(RUNNER.invoke(app, ["sample", "show", file, "--json"]).stdout)
    assert shown["excluded"] == {"2": {"reason": "torn", "applied": False}}
    assert [one["applied"] for one in shown["placed"]] == [False]
    said(file)  # `opticstream sample PROJECT` adds what is due
    shown = json.loads(RUNNER.invoke(app, ["sample", "show", file, "--json"]).stdout)
    assert shown["excluded"]["2"]["applied"]
    assert shown["placed"][0]["applied"]
    assert [one["state"] for one in shown["slices"]] == ["present", "excluded", "present"]
    assert "slice 2 is excluded: torn" in said("show", file)
    assert "report.html" in said("report", file)
    assert "slice 2 is included again" in said("exclude", file, "2", "--include")
    assert "by comparisons alone" in said("place", file, "3", "--remove")
    for arguments, message in (
        (("exclude", file, "2"), "expected a reason"),
        (("exclude", file, "1", "--include"), "slice 1 is not excluded"),
        (("exclude", file, "9", "--reason", "x"), "no such slice yet; known: 1, 2, 3"),
        (("place", file, "3"), "expected --shift X,Y or --turn DEG"),
        (("place", file, "3", "--shift", "2"), "expected two numbers of pixels"),
        (("place", file, "3", "--shift", "2,nan"), "expected a shift"),
        (("place", file, "3", "--remove"), "was not placed"),
        (("place", file, "3", "--turn", "1"), "leave --turn out"),
    ):
        assert message in said(*arguments, code=1), arguments
