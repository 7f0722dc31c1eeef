"""What a run on one host comes to, and hosts that see one share under different names."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.hosts.namespaces import Network, namespaces_or_skip
from tests.hosts.walk import ADDRESSES, SHARE, Walk

from opticstream.config import DeploymentSettings, load_project
from opticstream.pipeline.project import Project
from opticstream.testing.bus import LocalBus
from opticstream.testing.chaos.outcome import Outcome, differences

NAMES = {"A": "servers", "B": "tiles", "C": "slices"}


def outcome_on_one_host(folder: Path, /) -> Outcome:
    """Process the raw tiles in a folder without any trouble, in this process, and return the outcome."""
    project = Project.open(load_project(folder / "project.toml"), deployment=DeploymentSettings())
    bus = LocalBus(project)
    bus.feed(folder / "raw")
    bus.run()
    outcome = Outcome.of(project)
    assert differences(project, outcome) == []
    return outcome


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """The folder that all hosts see."""
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture
def walk_on(tmp_path: Path, share: Path) -> Iterator[Callable[..., Walk]]:
    """Makes hosts of the page, by their letters, and whatever is started there is ended with the test."""
    namespaces_or_skip()
    with Network(tmp_path / "hosts") as network:

        def walk_on(letters: str, *, settings: Sequence[str]) -> Walk:
            hosts = {
                letter: network.host(NAMES[letter], ADDRESSES[letter], mounts={SHARE[letter]: share})
                for letter in letters
            }
            return Walk(hosts, Path(sys.executable).parent, settings)

        yield walk_on
    shutil.rmtree(share)  # large, and a test that failed has said what was wrong
