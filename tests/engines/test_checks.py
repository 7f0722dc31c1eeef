"""`opticstream engines check`: what it says of programs, of a lab's functions, and of a graphics card."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import array_api_strict
import numpy as np
import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.compute.array_engine import CupyCard, HostDevice
from opticstream.compute.arrays import in_numpy
from opticstream.engines import _card, _checks
from opticstream.model.errors import CardError

PROJECT = """
[project]
project_name = "p"
project_base_path = "out"
[processing.engine]
kind = "matlab"
paths = ["tool box"]
functions = { find_surface = "lab_surface", spectral_to_processed = "lab_process" }
"""


def checked(*arguments: str) -> tuple[int, list[dict[str, str]]]:
    ran = CliRunner().invoke(app, ["engines", "check", "--json", *arguments])
    return ran.exit_code, json.loads(ran.stdout)


@pytest.fixture
def no_card(monkeypatch):
    def check_card():
        raise CardError("CuPy finds no graphics card")

    monkeypatch.setattr(_checks, "check_card", check_card)


def test_programs_that_nothing_asks_for_may_be_absent(monkeypatch, tmp_path, no_card):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, lines = checked()
    assert status == 0
    assert [(line["engine"], line["result"]) for line in lines] == [
        ("MATLAB", "absent"),
        ("Fiji", "absent"),
        ("CUDA", "absent"),
    ]


@pytest.mark.parametrize(
    ("engine", "status", "result", "words"),
    [
        ('kind = "cuda"', 0, "absent", "finds no graphics card; our compiled code makes the tiles"),
        ('kind = "cuda"\nrequired = true', 1, "problem", "finds no graphics card; processing.engine.required = true"),
    ],
)
def test_a_card_that_is_absent_is_a_problem_where_it_is_required(tmp_path, no_card, engine, status, result, words):
    (tmp_path / "p.toml").write_text(PROJECT[: PROJECT.index("kind")] + engine + "\n")
    found, lines = checked(str(tmp_path / "p.toml"))
    assert found == status
    assert [(line["engine"], line["result"]) for line in lines] == [("CUDA", result)]
    assert words in lines[0]["message"]


def test_a_card_is_tried_by_a_tile_that_is_compared_with_ours(monkeypatch):
    class StandIn(HostDevice):
        name, free_bytes = "CuPy 0, stand-in", 2_500_000_000

        def release(self):
            """Nothing is kept."""

    class Wrong(StandIn):
        def fetched(self, array):
            return lambda: in_numpy(array) + 1

    monkeypatch.setattr(_card, "CupyCard", lambda: StandIn(array_api_strict))
    assert _card.check_card() == "CuPy 0, stand-in, 2.5 GB free"
    monkeypatch.setattr(_card, "CupyCard", lambda: Wrong(array_api_strict))
    with pytest.raises(CardError, match=r"stand-in: the mean intensity of a test tile differs by [0-9.]+ dB from ours"):
        _card.check_card()


def test_without_cupy_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(CardError, match=r"CuPy is not installed \(.*\): pip install 'opticstream\[cuda\]'"):
        CupyCard()


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (lambda: 0, r"CuPy 14 finds no graphics card \(CUDA_VISIBLE_DEVICES='7'\)"),
        (lambda: 1 / 0, "no graphics card: div"),
    ],
)
def test_without_a_card_it_is_said_where_it_was_looked_for(monkeypatch, count, words):
    runtime = SimpleNamespace(getDeviceCount=count)
    cupy = SimpleNamespace(__version__="14", cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(CardError, match=words):
        CupyCard()


def test_a_program_that_a_project_asks_for_and_a_missing_toolbox_are_problems(monkeypatch, tmp_path):
    (tmp_path / "p.toml").write_text(PROJECT)
    monkeypatch.setenv("PATH", str(tmp_path))
    status, lines = checked(str(tmp_path / "p.toml"))
    assert status == 1
    assert "OPTICSTREAM_MATLAB_COMMAND" in lines[0]["message"]
    monkeypatch.setenv("OPTICSTREAM_MATLAB_COMMAND", "/bin/sh")
    _, lines = checked(str(tmp_path / "p.toml"))
    assert "processing.engine.paths" in lines[0]["message"]
    assert "tool box" in lines[0]["message"]


@pytest.mark.slow
def test_a_labs_functions_must_be_found_and_have_the_signature(octave, monkeypatch, tmp_path):
    (tmp_path / "p.toml").write_text(PROJECT)
    (tmp_path / "tool box").mkdir()
    (tmp_path / "tool box" / "lab_surface.m").write_text("function s = lab_surface(intensity)\n  s = intensity;\nend\n")
    monkeypatch.setenv("OPTICSTREAM_MATLAB_COMMAND", octave)
    status, lines = checked(str(tmp_path / "p.toml"))
    assert status == 1
    problems = [line["message"] for line in lines if line["result"] == "problem"]
    assert len(problems) == 2
    assert "lab_process was not found" in problems[0]
    assert "lab_surface takes 1 arguments, expected 2" in problems[1]
    assert lines[0]["message"].startswith("Octave ")


def example_of_the_docs(name: str) -> str:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "matlab.md").read_text(encoding="utf-8")
    (found,) = [block for block in re.findall(r"```matlab\n(.*?)```", page, re.DOTALL) if f"{name}(" in block]
    return found


@pytest.mark.slow
def test_the_example_of_a_labs_surface_is_found_and_used_in_place_of_ours(octave, monkeypatch, acquired, tmp_path):
    from opticstream.config import DeploymentSettings, load_project
    from opticstream.io.nifti import read_nifti
    from opticstream.model.ids import TileId
    from opticstream.stages.tile import MatlabTiles, process_tile

    (tmp_path / "tool box").mkdir()
    (tmp_path / "tool box" / "lab_surface.m").write_text(example_of_the_docs("lab_surface"))
    functions = 'functions = { find_surface = "lab_surface" }'
    (tmp_path / "p.toml").write_text(re.sub(r"functions = .*", functions, PROJECT))
    monkeypatch.setenv("OPTICSTREAM_MATLAB_COMMAND", octave)
    status, lines = checked(str(tmp_path / "p.toml"))
    assert (status, [line["message"] for line in lines if "lab_" in line["message"]]) == (
        0,
        ["find_surface: lab_surface"],
    )
    engine = {"kind": "matlab", "functions": {"find_surface": "lab_surface"}, "paths": [str(tmp_path / "tool box")]}
    project = load_project(acquired / "project.toml", overrides={"processing.engine": engine})
    source = sorted((acquired / "raw").glob("mosaic_001_image_0006*"))[0]
    with MatlabTiles(
        {TileId(1, 6): source},
        scan=project.scan,
        processing=project.processing,
        deployment=DeploymentSettings(matlab_command=octave),
        folder=tmp_path / "out",
    ) as call:
        made = process_tile(
            source,
            TileId(1, 6),
            scan=project.scan,
            processing=project.processing,
            out_dir=tmp_path / "out",
            matlab=call,
        )
    unfiltered, intensity = (read_nifti(made.outputs[name].path) for name in ("surfraw", "dBI"))
    above = intensity >= np.median(intensity[..., -21:], axis=2, keepdims=True) + 12
    assert np.mean(unfiltered.squeeze() == above.argmax(axis=2)) > 0.99
