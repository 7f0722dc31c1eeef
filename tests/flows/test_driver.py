"""What `run` and `watch` do next to the server, when the server or the raw folder is away for a while."""

from __future__ import annotations

import os
import time

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.driver import Driver
from opticstream.model.errors import MissingInputError, ServerError
from opticstream.model.ids import MosaicId
from opticstream.pipeline.project import Project
from opticstream.pipeline.sweep import Sweeper
from opticstream.state import Facts
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
