"""The benchmark of graphics cards runs from end to end; here on a stand-in, whose figures mean nothing."""

import importlib.util
import json
from pathlib import Path

import array_api_compat.numpy as numpy_library
import pytest

from opticstream.compute.array_engine import HostDevice
from opticstream.model.errors import CardError

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "cuda.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("cuda_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class StandIn(HostDevice):
    name = "stand-in"

    def __init__(self):
        super().__init__(numpy_library)

    def release(self):
        """Nothing is kept."""


def test_the_benchmark_measures_card_copies_and_cores(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "check_card", lambda: "stand-in")
    monkeypatch.setattr(script, "CupyCard", StandIn)
    monkeypatch.setattr(script, "copies", lambda *_: {"to_card": 2e9, "back": 1e9})
    sizes = ["--samples", "128", "--a-lines", "9", "--b-lines", "8", "--repeats", "1", "--threads", "2"]
    out = tmp_path / "cuda.json"
    monkeypatch.setattr("sys.argv", ["cuda.py", "--skip-tests", "--json", str(out), *sizes])
    assert script.main() == 0
    report = json.loads(out.read_text())
    assert {"card, gradient, maps and volumes", "cores, robust, maps", "one core, gradient, maps"} <= set(
        report["A-lines/s"]
    )
    assert report["limit of the copy, A-lines/s"] == pytest.approx(2e9 / (2 * 128 * 2))
    assert "x the cores of this machine" in capsys.readouterr().out


def test_without_a_card_nothing_is_measured_and_the_status_says_so(script, monkeypatch, capsys):
    def none():
        raise CardError("CuPy finds no graphics card")

    monkeypatch.setattr(script, "check_card", none)
    monkeypatch.setattr("sys.argv", ["cuda.py"])
    assert script.main() == 1
    assert capsys.readouterr().out == "nothing was measured: CuPy finds no graphics card\n"
