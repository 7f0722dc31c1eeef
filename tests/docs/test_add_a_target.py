"""The guide to a new target is followed step by step, on a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "add-a-target.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "src" / "opticstream"

PROGRAM = """
import sys
from pathlib import Path
from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError
from opticstream.notify import Milestone, Notifier, TargetContext, open_targets

base, keys = Path(sys.argv[1]), sys.argv[2:]
said = []
targets = open_targets(DeploymentSettings().notify_targets, TargetContext(base, said.append))
failures = []
told = Notifier(base, targets, on_failure=failures.append).tell(
    [Milestone(key, "brain", None, "made up", f"title of {key}", f"text of {key}") for key in keys]
)
print([target.name for target in targets], told, len(said), [str(one.problem) for one in failures])
try:
    DeploymentSettings(notify_targets=[{"kind": "folder", "colour": "red"}, {"kind": "pigeon"}])
except ConfigurationError as error:
    print(error)
"""


@pytest.fixture
def followed(tmp_path: Path) -> Path:
    """A copy of the package in which the steps of the guide were taken."""
    copy = Path(
        shutil.copytree(PACKAGE, tmp_path / "copy" / "opticstream", ignore=shutil.ignore_patterns("__pycache__"))
    )
    settings, module = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    new_class, union = re.split(r"(?=^NotifyTarget = )", settings, flags=re.MULTILINE)
    file = copy / "config" / "notify_targets.py"
    text, n = re.subn(r"(?=^NotifyTarget = )", lambda _m: new_class, file.read_text(), flags=re.MULTILINE)
    assert n == 1
    text, n = re.subn(
        r"^NotifyTarget = Annotated\[.*?\)\n?\]\n", lambda _m: union, text, flags=re.MULTILINE | re.DOTALL
    )
    assert n == 1
    file.write_text(text)
    (named,) = re.findall(r"^`src/opticstream/(notify/\w+\.py)`:$", GUIDE, re.MULTILINE)
    (copy / named).write_text(module)
    return copy


def test_a_target_made_after_the_guide_is_told_each_milestone_once_and_again_after_a_failure(followed, tmp_path):
    changed = [
        path.relative_to(followed)
        for path in followed.rglob("*.py")
        if not (PACKAGE / path.relative_to(followed)).exists()
        or path.read_bytes() != (PACKAGE / path.relative_to(followed)).read_bytes()
    ]
    assert len(changed) == 2, changed
    base = tmp_path / "project"
    base.mkdir()
    (variable,) = re.findall(r"export OPTICSTREAM_NOTIFY_TARGETS='(.*)'", GUIDE)

    def look(*keys: str) -> list[str]:
        environment = os.environ | {"PYTHONPATH": str(followed.parent), "OPTICSTREAM_NOTIFY_TARGETS": variable}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(base), *keys], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first, refused = look("a")
    assert first == "['log', 'folder'] 2 1 []"
    assert "OPTICSTREAM_NOTIFY_TARGETS[0].colour = red: unknown setting" in refused
    assert "unknown kind 'pigeon'; expected one of 'log', 'file', 'slack', 'apprise', 'folder'" in refused
    assert (base / "outbox" / "brain--a.txt").read_text() == "title of a\n\ntext of a\n"

    shutil.rmtree(base / "outbox")
    (base / "outbox").write_text("in the way")
    assert look("a", "b")[0].startswith("['log', 'folder'] 1 1 [\"[Errno"), "the log is told of b, the folder fails"
    (base / "outbox").unlink()
    assert look("a", "b")[0] == "['log', 'folder'] 1 0 []"
    assert [path.name for path in (base / "outbox").iterdir()] == ["brain--b.txt"], "a was told before"
    assert look("a", "b")[0] == "['log', 'folder'] 0 0 []"
