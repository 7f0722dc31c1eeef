"""A folder cannot be read for a while, by processes that obey permissions: people are told, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from opticstream.config import load_project
from opticstream.pipeline.project import Project
from opticstream.testing.chaos.outcome import differences
from opticstream.testing.chaos.privileges import obey_permissions

SCRIPT = """
import json, sys
from pathlib import Path
from opticstream.config import DeploymentSettings, load_project
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.retry import apply_plan, retry_plan
from opticstream.testing.bus import LocalBus

acquisition, moment, closed = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
project = Project.open(load_project(acquisition / "project.toml"), deployment=DeploymentSettings(attempts=1))
modes = {}

def close(event):
    if event.event_name() == moment and not modes:
        modes[closed] = closed.stat().st_mode
        closed.chmod(0)
    return False

bus = LocalBus(project, lose=close, tolerate=OSError)
bus.feed(acquisition / "raw")
bus.run()
for path, mode in modes.items():
    path.chmod(mode)
reasons = [failure.reason for failure in project_progress(project).failures] + [str(error) for error in bus.errors]
plan = retry_plan(project)
apply_plan(project, plan, reason="it can be read again")
bus = LocalBus(project)
bus.announce(plan.announce)
bus.run_until_nothing_is_pending()
print(json.dumps(reasons))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs capabilities that can be dropped")
@pytest.mark.parametrize(
    ("moment", "closed"),
    [
        ("linc.oct.batch.ready", "raw"),
        ("linc.oct.mosaic.ready", "project/mosaic-01/processed"),
        ("linc.oct.mosaic.stitched", "project/mosaic-01/state"),
        ("linc.oct.slice.ready", "project/mosaic-02/stitched"),
        ("linc.oct.slice.ready", "project/state"),
    ],
)
@pytest.mark.slow
def test_a_folder_that_is_unreadable_for_a_while_costs_time_only(acquisition, calm, moment, closed):
    command = [sys.executable, "-c", SCRIPT, str(acquisition), moment, str(acquisition / closed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=obey_permissions)
    assert done.returncode == 0, done.stderr[-3000:]
    reasons = json.loads(done.stdout)
    assert any("Permission denied" in reason and Path(closed).name in reason for reason in reasons), reasons
    project = Project.open(load_project(acquisition / "project.toml"))
    assert differences(project, calm, unwritten=100) == []
