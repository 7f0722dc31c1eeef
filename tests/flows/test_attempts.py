"""Steps of a flow are tried again where that may help, with growing waits, and told in the journal."""

from __future__ import annotations

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.oct import _attempt
from opticstream.model.errors import TileSizeError
from opticstream.model.ids import BatchId
from opticstream.pipeline.project import Project

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("default")]
BATCH = BatchId(1, 1)


@pytest.fixture
def project(tmp_path, prefect_server):
    file = tmp_path / "p.toml"
    file.write_text('[project]\nproject_name = "p"\nproject_base_path = "out"\n')
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        yield Project.open(load_project(file), deployment=DeploymentSettings(attempts=3, retry_delay_s=0.01))


def tries_of(project, errors):
    """Try a step that raises these errors one after the other; return how often it was tried, and the outcome."""
    left, tries = list(errors), []

    def step():
        tries.append(len(tries) + 1)
        if left:
            raise left.pop(0)
        return "done"

    try:
        outcome = _attempt(project, BATCH, "process batch")("tile 7", step)
    except Exception as error:
        outcome = type(error).__name__
    return len(tries), outcome


def told(project):
    entries = [entry for entry in project.facts.journal.history(BATCH) if entry.event == "failed"]
    return [(entry.detail["kind"], entry.detail["stage"], entry.fact, entry.why) for entry in entries]


def test_trouble_that_passes_is_tried_again_and_told(project):
    assert tries_of(project, [OSError(116, "Stale file handle"), OSError(28, "No space")]) == (3, "done")
    assert told(project) == [
        ("disk or network", "process batch", None, "tile 7: OSError: [Errno 116] Stale file handle"),
        ("disk full", "process batch", None, "tile 7: OSError: [Errno 28] No space"),
    ]


def test_trouble_that_stays_is_given_up_after_all_tries(project):
    assert tries_of(project, [OSError(5, "I/O error")] * 9) == (3, "OSError")


def test_bad_input_is_not_tried_again(project):
    assert tries_of(project, [TileSizeError("too short")] * 9) == (1, "TileSizeError")
    assert told(project) == []
