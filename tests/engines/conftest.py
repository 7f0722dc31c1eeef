"""Stand-ins for MATLAB and Fiji, which do what a test asks of them, and the real Octave."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

_MATLAB = """#!{python} -IS
import json, os, signal, subprocess, sys, time
if not any("run_call" in word for word in sys.argv):
    sys.exit("an unknown statement: " + " ".join(sys.argv))
call = json.load(open(os.environ["OPTICSTREAM_CALL"], encoding="utf-8"))
plan = json.load(open({plan!r}, encoding="utf-8"))
with open({calls!r}, "a", encoding="utf-8") as log:
    log.write(json.dumps([item["name"] for item in call["items"]]) + "\\n")
first = plan.pop("*", None)
if first:
    left = first.get("times", 10**9)
    if left > 0:
        first["times"] = left - 1
        json.dump(plan | {{"*": first}}, open({plan!r}, "w"))
        print(first["says"], flush=True)
        sys.exit(first.get("status", 1))
for item in call["items"]:
    todo = plan.get(item["name"], {{}})
    print("opticstream: " + item["name"] + " begins", flush=True)
    print(todo.get("says", "working on it"), flush=True)
    do = todo.get("do")
    if do == "signal":
        os.kill(os.getpid(), getattr(signal, todo["signal"]))
    if do == "exit":
        sys.exit(todo["status"])
    if do == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(todo["pids"], "w").write(f"{{os.getpid()}} {{child.pid}}")
        time.sleep(600)
    for step in item["steps"]:
        for product, path in step["outputs"].items():
            if not (do == "leave out" and product == todo["product"]):
                open(path, "wb").write(open(todo.get("answer", step["source"]), "rb").read())
    status = {{"ok": do != "error", "seconds": 0.1, "message": todo.get("message", ""), "identifier": ""}}
    open(item["status"] + ".partial", "w").write(json.dumps(status))
    os.rename(item["status"] + ".partial", item["status"])
"""


class StandIn:
    """A program that stands in for MATLAB; `plan` says what it does to which item."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = folder / "matlab"
        self._plan, self._calls = folder / "plan.json", folder / "calls.txt"
        self.plan()
        text = _MATLAB.format(python=sys.executable, plan=str(self._plan), calls=str(self._calls))
        self.path.write_text(text, encoding="utf-8")
        self.path.chmod(0o755)

    def plan(self, **steps: dict[str, object]) -> None:
        """Say what happens to items, by name with underscores for blanks; `any` is what happens at the start."""
        named = {{"any": "*"}.get(name, name.replace("_", " ")): step for name, step in steps.items()}
        self._plan.write_text(json.dumps(named), encoding="utf-8")

    @property
    def calls(self) -> list[list[str]]:
        """The items of each call."""
        return [json.loads(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "stand-in")
