"""A step in the table of the chain runs, is stale, parked, retried, reset and shown, without any other change."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from opticstream.config import load_project
from opticstream.model.chain import Source, Step, chain, extended
from opticstream.model.errors import ProcessingError
from opticstream.model.events import Event, MosaicEvent, MosaicFailed, MosaicStitched
from opticstream.model.ids import MosaicId, SliceId
from opticstream.pipeline.bindings import BINDINGS, Binding
from opticstream.pipeline.failures import describe
from opticstream.pipeline.jobs import STITCH_MOSAIC, Result, announcements, perform
from opticstream.pipeline.parameters import StageSettings
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import apply_plan
from opticstream.pipeline.retry import retry_plan
from opticstream.pipeline.stale import stale_plan, stale_results
from opticstream.pipeline.stuck import stuck_items
from opticstream.state.facts import Facts
from opticstream.state.mirror import oct_state_from_facts
from opticstream.state.reset import apply_reset, plan_reset
from opticstream.state.vocabulary import is_claim, is_failure
from opticstream.system.host import HostIdentity
from opticstream.testing.bus import LocalBus

MOSAIC = MosaicId(1)


class MosaicCounted(MosaicEvent):
    """The pixels of a mosaic are counted."""

    state = "counted"


COUNT = Step(
    name="count pixels",
    hierarchy="mosaic",
    claim="count_started",
    done="counted",
    failed="count_failed",
    after="stitched",
    made_from=(Source("own", "stitched"),),
    started_by=(MosaicStitched,),
    announces=(MosaicCounted,),
    announces_failure=MosaicFailed,
    failure="counting failed",
)


class Counter:
    """The work of the made-up step: writes how many maps there are, with a setting of its own."""

    def __init__(self) -> None:
        self.unit = "maps"
        self.broken = False

    def settings(self, *_: object) -> StageSettings:
        return StageSettings({"processing": {"count": {"unit": self.unit}}})

    def work(self, project: Project, event: Event) -> Iterable[Event]:
        mosaic = event.item

        def compute(_claim: object) -> Result:
            if self.broken:
                raise ProcessingError("cannot count")
            path = project.paths.stitched_folder(MosaicId(event.mosaic_id)) / "count.txt"
            path.write_text(f"{len(project.facts.read(mosaic, 'stitched').outputs)} {self.unit}")
            return Result(outputs=[project.facts.file_record(path)])

        return announcements(project, mosaic, COUNT, perform(project, mosaic, COUNT, compute))


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    counter = Counter()
    monkeypatch.setitem(BINDINGS, COUNT.name, Binding(settings=counter.settings, work=counter.work))
    with extended(COUNT, after=STITCH_MOSAIC):
        yield counter


@pytest.fixture(scope="module")
def finished(acquired: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small project that was finished before anybody thought of the step; not to be changed."""
    folder = Path(shutil.copytree(acquired, tmp_path_factory.mktemp("finished") / "small"))
    bus = LocalBus(Project.open(load_project(folder / "project.toml")))
    bus.feed(folder / "raw")
    bus.run()
    return folder


@pytest.fixture
def bus(finished: Path, tmp_path: Path, counter: Counter) -> LocalBus:
    """A bus of a copy of the finished project, to which stitched mosaics are announced again."""
    folder = Path(shutil.copytree(finished, tmp_path / "small"))
    bus = LocalBus(Project.open(load_project(folder / "project.toml")))
    bus.announce(bus.project.event(MosaicStitched, mosaic) for mosaic in bus.project.layout.mosaics(SliceId(1)))
    return bus


def count_of(project: Project) -> str:
    return (project.paths.stitched_folder(MOSAIC) / "count.txt").read_text()


def test_it_runs_is_announced_and_shown(bus):
    project = bus.project
    bus.run()
    assert project.facts.has(MOSAIC, "counted")
    assert sum(isinstance(event, MosaicCounted) for event in bus.seen) == 2
    assert is_finished(project, project.facts.snapshot())
    assert project_progress(project).mosaics[0].steps["count pixels"] == "done"
    assert oct_state_from_facts("small", project.facts, project.layout).to_view().slices[1].has("registered")


def test_without_its_event_it_is_pending_until_the_sweep(bus):
    project = bus.project
    assert not is_finished(project, project.facts.snapshot())
    assert project_progress(project).mosaics[0].steps["count pixels"] == "due"
    assert MosaicStitched in {type(event) for event in pending_announcements(project)}
    later = LocalBus(project)
    later.run_until_nothing_is_pending()
    assert project.facts.has(MOSAIC, "counted")


def test_it_is_parked_told_and_retried(bus, counter):
    counter.broken = True
    bus.run()
    project = bus.project
    told = [event for event in bus.seen if isinstance(event, MosaicFailed)]
    assert {(event.stage, event.reason) for event in told} == {
        ("count pixels", describe(ProcessingError("cannot count")))
    }
    assert [failure.fact for failure in project_progress(project).failures] == ["count_failed"] * 2
    assert project.facts.has(MOSAIC, "volume_stitched"), "nothing else rests on it"
    assert stale_results(project) == [], "it is parked, and what it would be made from has not changed"
    counter.broken = False
    plan = retry_plan(project)
    assert set(plan.withdraw) == {(MosaicId(n), "count_failed") for n in (1, 2)}
    apply_plan(project, plan, reason="test")
    bus.announce(plan.announce)
    bus.run()
    assert count_of(project).endswith("maps")
    assert project_progress(project).failures == ()


def test_a_re_emitted_event_tries_it_again(bus, counter):
    counter.broken = True
    bus.run()
    counter.broken = False
    bus.emit("linc.oct.mosaic.stitched", {"project_name": "small", "mosaic_id": 1})
    bus.run()
    assert bus.project.facts.has(MOSAIC, "counted")
    assert not bus.project.facts.has(MosaicId(2), "counted")


def test_it_is_stale_by_its_settings_and_by_what_it_is_made_from(bus, counter):
    bus.run()
    project = bus.project
    assert stale_results(project) == []
    counter.unit = "pictures"
    stale = stale_results(project)
    assert [(one.item, one.fact, one.why) for one in stale] == [
        (MosaicId(n), "counted", ("processing.count.unit: 'maps' -> 'pictures'",)) for n in (1, 2)
    ]
    plan = stale_plan(project, stale)
    apply_plan(project, plan, reason="test")
    bus.announce(plan.announce)
    bus.run()
    assert count_of(project).endswith("pictures")
    assert stale_results(project) == []
    plan = retry_plan(project)
    assert plan.withdraw == []


def test_it_is_taken_back_with_its_mosaic_and_by_a_reset(bus):
    bus.run()
    project = bus.project
    reset = plan_reset(project.facts, MOSAIC, project.layout)
    assert (MOSAIC, "counted") in reset.withdraw
    assert any(name.endswith("count.txt") for name in reset.remove)
    apply_reset(project.facts, reset, project.layout, reason="test")
    assert not project.facts.has(MOSAIC, "counted")
    bus.run_until_nothing_is_pending()
    assert project.facts.has(MOSAIC, "counted")


def test_a_dead_holder_of_it_is_stuck(bus):
    bus.run()
    project = bus.project
    project.facts.withdraw(MOSAIC, "counted", reason="test")
    identity = HostIdentity.current()
    dead = HostIdentity("opal", 2**22 + 1, identity.boot_id, identity.pid_namespace, process_start=1)
    Facts(project.facts.project_dir, host=dead).claim(MOSAIC, "count_started")
    assert [(one.item, one.what) for one in stuck_items(project)] == [(MOSAIC, "lease dead")]
    assert project_progress(project).mosaics[0].steps["count pixels"] == "under way"


def test_the_facts_of_every_step_are_called_what_they_are():
    for step in chain().steps:
        assert is_claim(step.claim)
        assert step.failed is None or is_failure(step.failed)
        assert not is_claim(step.done)
        assert not is_failure(step.done)
        for source in step.made_from:
            places = {"own": step.hierarchy, "parts": {"slice": "mosaic", "mosaic": "batch"}.get(step.hierarchy)}
            place = places.get(source.whose, places["parts"])
            assert source.fact in chain().facts[place]
        assert step.after in chain().facts[step.hierarchy]
        assert step.failure
