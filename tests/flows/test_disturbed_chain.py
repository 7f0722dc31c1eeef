"""On a real server: announcements that get lost, come twice or late, and a project that fails beside a good one."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from opticstream.config import DeploymentSettings, load_project
from opticstream.flows import oct as flows
from opticstream.flows.driver import Driver, is_queued
from opticstream.flows.events import announce
from opticstream.flows.parameters import save_parameters
from opticstream.model.events import Event
from opticstream.model.ids import TileId
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.testing.bus import LocalBus
from opticstream.testing.chaos.outcome import Outcome, differences
from opticstream.watch import Watcher

pytestmark = [
    pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default"),
]  # fmt: skip


class UnreliablePost:
    """Announces one event in four not at all, one twice, and one later than those that come after it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.fates = dict.fromkeys(("lost", "once", "twice", "late"), 0)
        self._late: list[Event] = []

    def __call__(self, events: Iterable[Event]) -> None:
        for event in events:
            fate = self.rng.choice(list(self.fates))
            self.fates[fate] += 1
            late, self._late = self._late, [event] if fate == "late" else []
            announce([event] * {"lost": 0, "once": 1, "twice": 2, "late": 0}[fate])
            announce(late)


def opened(acquired: Path, folder: Path, name: str) -> Project:
    shutil.copytree(acquired, folder, dirs_exist_ok=True)
    config = load_project(folder / "project.toml", overrides={"project_name": name})
    return Project.open(config, deployment=DeploymentSettings(sweep_s=6, lease_s=5))


def fed(project: Project, folder: Path, post: Callable[[Iterable[Event]], object]) -> Driver:
    save_parameters(project.config)
    driver = Driver(
        project, Watcher(folder / "raw", project.config.scan, stable_s=0), announce=post, is_queued=is_queued
    )
    driver.step()
    return driver


def test_unreliable_announcements_only_cost_time(acquired, tmp_path, worker, prefect_server, monkeypatch):
    calm = LocalBus(opened(acquired, tmp_path / "calm", "Unreliable Post"))
    calm.feed(tmp_path / "calm" / "raw")
    calm.run()
    post = UnreliablePost(5)
    monkeypatch.setattr(flows, "announce", post)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        project = opened(acquired, tmp_path / "unreliable", "Unreliable Post")
        driver = fed(project, tmp_path / "unreliable", post)

        def finished() -> bool:
            driver.step()
            return driver.is_finished()

        worker.wait_until(finished, timeout_s=900)
        worker.wait_until_quiet()
    assert min(post.fates.values()) > 0
    assert differences(project, Outcome.of(calm.project)) == []


def test_a_project_that_fails_everywhere_does_not_disturb_another(
    acquired, tmp_path, worker, prefect_server, monkeypatch
):
    monkeypatch.setenv("OPTICSTREAM_ATTEMPTS", "1")
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        bad = opened(acquired, tmp_path / "bad", "All Goes Wrong")
        good = opened(acquired, tmp_path / "good", "All Is Well")
        (tmp_path / "bad" / "calibration" / "wavelength_1.npy").unlink()
        drivers = [fed(bad, tmp_path / "bad", announce), fed(good, tmp_path / "good", announce)]

        def finished() -> bool:
            for driver in drivers:
                driver.step()
            time.sleep(0.2)
            return all(is_finished(project, project.facts.snapshot()) for project in (bad, good))

        worker.wait_until(finished, timeout_s=900)
        worker.wait_until_quiet()
    assert [(s.state, s.stacked, s.published) for s in project_progress(good).slices] == [("registered", True, True)]
    assert project_progress(good).failures == ()
    failed = project_progress(bad).failures
    assert sum(isinstance(failure.item, TileId) for failure in failed) == 12
    assert all("wavelength_1.npy" in f.reason for f in failed if isinstance(f.item, TileId))
    told = {path.name for path in (bad.paths.base / "state" / "notified").iterdir()}
    assert any(name.startswith("mosaic-001.tile-0001.failed") for name in told)
