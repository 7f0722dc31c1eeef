"""Announcements come twice, late, in any order, or never; the result is that of an undisturbed run."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.events import Event
from opticstream.pipeline.project import Project
from opticstream.testing.bus import LocalBus
from opticstream.testing.chaos.outcome import differences


class UnreliableBus(LocalBus):
    """Loses 3 of 10 announcements, brings 3 of 10 twice, and delivers in any order."""

    def __init__(self, project: Project, seed: int) -> None:
        self.rng = random.Random(seed)
        super().__init__(project, lose=lambda _event: self.rng.random() < 0.3)

    def announce(self, events: Iterable[Event], /) -> None:
        for event in events:
            super().announce([event] * self.rng.choice((1, 1, 2)))

    def run(self, *, order=None) -> None:
        super().run(order=lambda waiting: self.rng.randrange(waiting))


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_lost_doubled_and_reordered_announcements_only_cost_time(acquisition, calm, seed):
    project = Project.open(load_project(acquisition / "project.toml"), deployment=DeploymentSettings(attempts=1))
    bus = UnreliableBus(project, seed)
    bus.feed(acquisition / "raw")
    bus.run_until_nothing_is_pending(rounds=80)
    assert differences(project, calm) == []
    names = [event.event_name() for event in bus.seen]
    assert len(names) > len(set(names))
