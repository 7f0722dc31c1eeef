"""What `run` and `watch` do next to the server, when the server or the raw folder is away for a while."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.driver import Driver
from opticstream.io.paths import look_folder
from opticstream.model.errors import MissingInputError, ServerError
from opticstream.model.ids import BatchId, MosaicId, TileId
from opticstream.pipeline import first_looks
from opticstream.pipeline.arriving import lag_of
from opticstream.pipeline.columns import process_tiles
from opticstream.pipeline.conditions import conditions
from opticstream.pipeline.milestones import notifier, tell_milestones
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.sweep import Sweeper
from opticstream.state import Facts
from opticstream.system.host import HostIdentity
from opticstream.testing.bus import LocalBus
from opticstream.watch import Watcher


class Bus:
    """Takes announcements, unless it is away."""

    def __init__(self):
        self.away = False
        self.seen = []

    def __call__(self, events):
        if self.away:
            raise ServerError("the server is away")
        self.seen += events


@pytest.fixture
def project(acquisition):
    return Project.open(load_project(acquisition / "project.toml"), deployment=DeploymentSettings())


def driver_of(project, folder, bus):
    facts = project.facts
    watcher = Watcher(folder, project.config.scan, stable_s=0, settled=lambda batch: facts.has(batch, "ready"))
    return Driver(project, watcher, announce=bus)


def test_batches_found_while_the_server_is_away_are_announced_when_it_is_back(acquisition, project):
    bus = Bus()
    bus.away = True
    driver = driver_of(project, acquisition / "raw", bus)
    driver.step()
    driver.step()
    assert bus.seen == []
    assert driver.start() == []
    bus.away = False
    assert len(driver.start()) == 6
    assert {event.event_name() for event in bus.seen} == {"linc.oct.batch.ready"}


def test_a_restarted_driver_does_not_announce_what_is_ready_already(acquisition, project):
    bus = Bus()
    for _ in range(2):
        driver = driver_of(project, acquisition / "raw", bus)
        driver.step()
        driver.step()
    assert len(bus.seen) == 6


def test_a_raw_folder_that_goes_away_for_a_while_does_not_end_the_watch(acquisition, project):
    driver = driver_of(project, acquisition / "raw", Bus())
    driver.step()
    (acquisition / "raw").rename(acquisition / "away")
    assert driver.step() == []
    assert "raw" in driver.trouble
    (acquisition / "away").rename(acquisition / "raw")
    driver.step()
    assert driver.trouble is None


def test_a_full_disk_does_not_end_the_watch_nor_lose_a_batch(acquisition, project, monkeypatch):
    bus = Bus()
    driver = driver_of(project, acquisition / "raw", bus)
    record = Facts.record

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Facts, "record", full)
    assert driver.step() == []
    assert "No space left" in driver.trouble
    assert not driver.is_finished(), "what was found and not recorded is still to be done"
    monkeypatch.setattr(Facts, "record", record)
    assert len(driver.step()) == 6
    assert driver.trouble is None
    assert len(bus.seen) == 6


def test_facts_that_cannot_be_read_for_a_while_do_not_end_the_watch(acquisition, project, monkeypatch):
    driver = driver_of(project, acquisition / "raw", Bus())
    driver.step()
    driver.step()
    before = driver.progress()
    snapshot = Facts.snapshot

    def away(*_arguments, **_options):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Facts, "snapshot", away)
    driver.step()
    assert driver.progress() == before
    assert "Stale file handle" in driver.trouble
    assert not driver.is_finished()
    monkeypatch.setattr(Facts, "snapshot", snapshot)
    driver.step()
    assert driver.trouble is None


def test_a_driver_removes_what_killed_writers_have_left(acquisition, project):
    old = project.paths.processed_folder(MosaicId(1)) / ".mosaic_001_aip.partial-1-ab.nii"
    fresh = old.with_name(".mosaic_001_mip.partial-2-cd.nii")
    for path in (old, fresh):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    driver_of(project, acquisition / "raw", Bus()).start()
    while old.exists():
        time.sleep(0.01)
    assert fresh.exists(), "somebody may be writing it"


def test_a_damaged_tile_does_not_hold_up_its_column_once_nobody_writes_any_more(acquisition):
    raw = next((acquisition / "raw").glob("mosaic_001_image_0002_*"))
    raw.write_bytes(raw.read_bytes()[:1000])
    settings = DeploymentSettings(stable_s=0, stall_s=600)
    for live, expected in ((True, 5), (False, 6)):
        overrides = {"project_base_path": str(acquisition / f"out-{live}")}
        project = Project.open(load_project(acquisition / "project.toml", overrides=overrides), deployment=settings)
        driver = Driver.on_folder(project, acquisition / "raw", live=live)
        driver._announce = Bus()
        driver.sweeper.announce = Bus()
        driver.step()
        driver.step()
        assert project.facts.count(project.layout.batches(MosaicId(1)), "ready") == expected - 3


def test_a_run_in_which_nothing_goes_on_ends_and_tells_what_is_left(acquisition):
    settings = DeploymentSettings(stable_s=0, give_up_s=0.2)
    project = Project.open(load_project(acquisition / "project.toml"), deployment=settings)
    driver = Driver.on_folder(project, acquisition / "raw", live=False, announce=lambda _events: None)
    driver.step()
    driver.step()
    driver.progress()
    assert not driver.is_finished()
    with project.facts.claim(BatchId(1, 1)):
        time.sleep(0.3)
        assert not driver.gives_up(), "somebody is at work"
    while not driver.gives_up():
        time.sleep(0.05)
    assert any("batch 1 of mosaic 1: linc.oct.batch.ready was announced" in line for line in driver.undone)


@pytest.mark.slow
def test_late_files_are_taken_together_once_their_column_is_whole_or_quiet(acquisition):
    raws = sorted((acquisition / "raw").glob("mosaic_001_image_000[12]_*"))
    late = [raw.rename(acquisition / raw.name) for raw in raws]
    settings = DeploymentSettings(stable_s=0, stall_s=0.01, attempts=1)
    project = Project.open(load_project(acquisition / "project.toml"), deployment=settings)
    bus = LocalBus(project)
    bus.run_folder(acquisition / "raw")
    announced = [event for event in bus.seen if getattr(event, "batch", None) == BatchId(1, 1)]
    patient = Project.open(load_project(acquisition / "project.toml"), deployment=DeploymentSettings(stable_s=0))
    driver = Driver.on_folder(patient, acquisition / "raw", announce=bus.announce)
    for raw, path in zip(late, raws, strict=True):
        raw.rename(path)
        for _ in range(3):
            driver.progress()
            driver.step()
    again = [event for event in bus.seen if getattr(event, "batch", None) == BatchId(1, 1)]
    assert len(again) == len(announced) + 1
    bus.run()
    assert project_progress(project).mosaics[0].tiles_failed == 0


@pytest.mark.slow
def test_late_files_wait_while_somebody_works_on_their_batch(acquisition):
    raw = next((acquisition / "raw").glob("mosaic_001_image_0001_*"))
    late = raw.rename(acquisition / raw.name)
    settings = DeploymentSettings(stable_s=0, stall_s=0.01, attempts=1)
    project = Project.open(load_project(acquisition / "project.toml"), deployment=settings)
    bus = LocalBus(project)
    bus.run_folder(acquisition / "raw")
    seen = len(bus.seen)
    late.rename(raw)
    driver = Driver.on_folder(project, acquisition / "raw", announce=bus.announce)
    with project.facts.claim(BatchId(1, 1)):
        for _ in range(3):
            driver.progress()
            driver.step()
        assert len(bus.seen) == seen
        assert driver.waits_for_files()
    driver.step()
    assert [event.event_name() for event in bus.seen[seen:]] == ["linc.oct.batch.ready"]


def test_what_a_target_could_not_be_told_is_told_by_a_sweep_of_the_driver(acquisition):
    settings = DeploymentSettings(sweep_s=0.01, notify_targets=[{"kind": "file"}])
    project = Project.open(load_project(acquisition / "project.toml"), deployment=settings)
    project.facts.record(MosaicId(1), "failed", {"detail": {"reason": "no template"}})
    told = project.paths.base / "milestones.jsonl"
    told.mkdir()  # in the way
    tell_milestones(project, notifier(project, say=print, warn=print))
    driver = driver_of(project, acquisition / "raw", Bus())
    driver.step()
    told.rmdir()
    while not told.is_file() or not told.read_text().endswith("\n"):
        driver.step()
        time.sleep(0.02)
    assert [json.loads(line)["key"] for line in told.read_text().splitlines()] == ["small/mosaic-001.failed-1"]


def test_a_raw_folder_that_was_never_there_is_an_error(acquisition, project):
    with pytest.raises(MissingInputError, match="nowhere"):
        driver_of(project, acquisition / "nowhere", Bus()).step()


def test_sweeps_are_patient_and_ever_more_so(acquisition, project):
    now = [0.0]
    bus = Bus()
    driver = driver_of(project, acquisition / "raw", lambda _events: None)
    driver.step()
    driver.step()
    sweeper = Sweeper(project, 10.0, bus, clock=lambda: now[0])
    times = []
    for now[0] in range(0, 100, 2):
        if sweeper.sweep():
            times.append(now[0])
    assert times == [10, 30, 70]


def test_what_waits_in_the_servers_queue_is_not_announced_again(acquisition, project):
    now = [0.0]
    driver = driver_of(project, acquisition / "raw", lambda _events: None)
    driver.step()
    driver.step()
    sweeper = Sweeper(project, 10.0, Bus(), is_queued=lambda _event: True, clock=lambda: now[0])
    sweeper.sweep()
    now[0] = 1000.0
    assert sweeper.sweep() == []


# -- tiles of columns that are not complete ----------------------------------------------------------------------------


@pytest.fixture
def half_a_column(acquisition):
    """The acquisition without its last tiles: of the first column only one tile is there."""
    files = sorted((acquisition / "raw").iterdir())
    for path in files[1:]:
        path.rename(acquisition / path.name)
    return acquisition


def live_driver(project, folder, bus, **more):
    watcher = Watcher(folder, project.config.scan, stable_s=60, tile_stable_s=0)
    return Driver(project, watcher, announce=bus, **more)


def names(bus):
    return [event.event_name() for event in bus.seen]


def test_the_first_tile_of_a_column_is_announced_once_and_the_lag_is_known(half_a_column, project):
    bus = Bus()
    driver = live_driver(project, half_a_column / "raw", bus)
    for _ in range(3):
        driver.step()
    assert names(bus) == ["linc.oct.tile.begun"]
    assert lag_of(project).tiles == 1


def test_a_tile_that_comes_after_a_run_has_left_calls_another_one(half_a_column, project):
    bus = Bus()
    driver = live_driver(project, half_a_column / "raw", bus)
    driver.step()
    batch = BatchId(1, 1)
    with project.facts.claim(batch, "started", lease_s=60):
        (second,) = [path for path in half_a_column.iterdir() if "mosaic_001_image_0002" in path.name]
        second.rename(half_a_column / "raw" / second.name)
        driver.step()
        assert names(bus) == ["linc.oct.tile.begun"], "a run looks after the column"
    project.facts.record(TileId(1, 1), "processed")
    driver.step()
    assert names(bus) == ["linc.oct.tile.begun"] * 2


def test_a_run_is_called_once_when_the_first_tile_of_a_column_is_half_written(half_a_column, project):
    raw = next((half_a_column / "raw").iterdir())
    content, bus = raw.read_bytes(), Bus()
    raw.write_bytes(content[:1000])
    watcher = Watcher(raw.parent, project.config.scan, stable_s=60, tile_stable_s=60)
    driver = Driver(project, watcher, announce=bus)
    driver.step()
    for share in (0.1, 0.4):
        raw.write_bytes(content[: int(share * len(content))])
        driver.step()
    assert bus.seen == [], "it would only wait"
    for share in (0.6, 0.8, 1.0):
        raw.write_bytes(content[: int(share * len(content))])
        driver.step()
    assert [(event.event_name(), event.item) for event in bus.seen] == [("linc.oct.tile.begun", TileId(1, 1))]
    assert lag_of(project).tiles == 0
    watcher._tile_stable_s = 0
    driver.step()
    assert lag_of(project).tiles == 1
    assert len(bus.seen) == 1, "the run that is on its way takes the tile"


def test_a_file_that_was_there_before_calls_no_run_before_it_is_judged(half_a_column, project):
    bus = Bus()
    watcher = Watcher(half_a_column / "raw", project.config.scan, stable_s=60, tile_stable_s=60)
    driver = Driver(project, watcher, announce=bus)
    driver.step()
    driver.step()
    assert bus.seen == []


@pytest.mark.parametrize(("reserved", "looks"), [(False, [TileId(1, 2)]), (True, [])], ids=["appends", "reserves"])
def test_a_tile_is_looked_at_before_its_file_has_stood_still_where_its_writer_appends(
    half_a_column, project, monkeypatch, reserved, looks
):
    now, taken = [100.0], []
    watcher = Watcher(half_a_column / "raw", project.config.scan, stable_s=60, tile_stable_s=0.5, clock=lambda: now[0])
    driver = Driver(project, watcher, announce=Bus())
    look_at_tile = first_looks.look_at_tile

    def look(source, tile, **more):
        taken.append(tile)
        return look_at_tile(source, tile, **more)

    monkeypatch.setattr(first_looks, "look_at_tile", look)
    for _ in range(2):  # the first tile stands still
        driver.step()
        now[0] += 0.6
    (second,) = [path for path in half_a_column.iterdir() if "mosaic_001_image_0002" in path.name]
    content, written = second.read_bytes(), [0.0]
    shares = [0.2, 0.4, 0.6, 0.8, 1.0]

    def goes_on(_s):
        now[0] += 0.2
        if shares:
            part = content[: int(shares.pop(0) * len(content))]
            (half_a_column / "raw" / second.name).write_bytes(part.ljust(len(content) if reserved else 0, b"\0"))
            written[0] = now[0]
        driver.step()
        if now[0] < written[0] + 0.5:
            assert not look_folder(project.paths.base, TileId(1, 2)).exists(), "its file may still be written"

    process_tiles(project, BatchId(1, 1), sleep=goes_on)
    assert taken == looks
    assert all(project.facts.has(TileId(1, number), "processed") for number in (1, 2))


def test_while_a_column_waits_for_its_run_no_later_one_is_announced_ahead(half_a_column, project):
    (second,) = [path for path in half_a_column.iterdir() if "mosaic_001_image_0002" in path.name]
    second.rename(half_a_column / "raw" / second.name)
    bus = Bus()
    driver = Driver(
        project, Watcher(half_a_column / "raw", project.config.scan, stable_s=0, tile_stable_s=0), announce=bus
    )
    while "linc.oct.batch.ready" not in names(bus):  # two looks see the first column standing still
        driver.step()
    before = names(bus)
    (third,) = [path for path in half_a_column.iterdir() if "mosaic_001_image_0003" in path.name]
    third.rename(half_a_column / "raw" / third.name)
    driver.step()
    driver.step()
    assert lag_of(project).tiles == 3, "the tile of the second column has come"
    assert names(bus) == before, "its run could only wait behind that of the first column"
    with project.facts.claim(BatchId(1, 1), "started", lease_s=60):
        driver.step()
    assert [(e.event_name(), e.item) for e in bus.seen][len(before) :] == [("linc.oct.tile.begun", TileId(1, 3))]


def test_tiles_that_a_run_has_seen_and_could_not_process_call_no_other_run(half_a_column, project):
    bus = Bus()
    driver = live_driver(project, half_a_column / "raw", bus)
    driver.step()
    with project.facts.claim(BatchId(1, 1), "started", lease_s=60):
        driver.step()
    for _ in range(3):
        driver.step()
    assert names(bus) == ["linc.oct.tile.begun"]


def test_nothing_is_announced_ahead_where_the_settings_say_so(half_a_column):
    settings = DeploymentSettings(tile_by_tile=False)
    project = Project.open(load_project(half_a_column / "project.toml"), deployment=settings)
    bus = Bus()
    driver = live_driver(project, half_a_column / "raw", bus)
    driver.step()
    assert bus.seen == []
    assert driver.pause_s(2.0, 0.0) == 2.0


def test_looks_for_tiles_take_a_tenth_of_the_time_at_most(project, acquisition):
    driver = live_driver(project, acquisition / "raw", Bus())
    assert driver.pause_s(2.0, 0.0) == 0.2
    assert driver.pause_s(2.0, 0.1) == pytest.approx(0.9)
    assert driver.pause_s(2.0, 5.0) == 2.0


def test_a_rig_that_stops_in_mid_column_is_reported_within_a_minute(half_a_column, project, monkeypatch):
    driver = live_driver(project, half_a_column / "raw", Bus())
    driver.step()
    quiet = {"s": 20.0}
    monkeypatch.setattr(driver.watcher, "folder_quiet_s", lambda: quiet["s"])
    driver._note_acquisition()
    assert conditions(project) == []
    quiet["s"], driver._next_note = 31.0, 0.0
    driver._next_telling = float("inf")
    driver._note_acquisition()
    assert driver._next_telling == 0.0, "people are told at once"
    (stalled,) = conditions(project)
    assert stalled.title == "acquisition stalled"
    assert "OPTICSTREAM_COLUMN_ALARM_S" in stalled.text


def test_a_rig_that_pauses_longer_between_tiles_is_given_three_times_that(half_a_column, project, monkeypatch):
    driver = live_driver(project, half_a_column / "raw", Bus())
    driver.step()
    monkeypatch.setattr(driver.watcher, "longest_pause_s", lambda: 40.0)
    monkeypatch.setattr(driver.watcher, "folder_quiet_s", lambda: 100.0)
    driver._next_note = 0.0
    driver._note_acquisition()
    assert conditions(project) == []


def test_the_tiles_of_a_run_that_died_are_announced_again(half_a_column, project):
    bus = Bus()
    driver = live_driver(project, half_a_column / "raw", bus)
    driver.step()
    dead = Facts(project.paths.base, host=HostIdentity(HostIdentity.current().host, 2**22 + 1))
    assert dead.claim(BatchId(1, 1), "started", lease_s=0.1) is not None
    driver.step()
    assert names(bus) == ["linc.oct.tile.begun"], "a run is given some seconds to come"
    deadline = time.monotonic() + 60
    while len(names(bus)) < 2 and time.monotonic() < deadline:  # until the claim of the dead run has ended
        driver._called = {batch: replace(called, again_s=0.0) for batch, called in driver._called.items()}
        driver.step()
    assert names(bus) == ["linc.oct.tile.begun"] * 2
    assert driver._called[BatchId(1, 1)].wait_s > 10, "with growing delays"
