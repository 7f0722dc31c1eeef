"""What a command uses where file, `--set` and registered parameters differ: told, used, and not registered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from opticstream.cli.run import config_of, run_parameters_of
from opticstream.cli.run_parameters import parameters_for_run
from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.driver import Driver
from opticstream.flows.parameters import load_parameters, registered_parameters, save_parameters
from opticstream.model.ids import SliceId
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.stale import stale_results
from opticstream.watch import Watcher

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]

PROJECT = """
[project]
project_name = "{name}"
project_base_path = "out"
[processing.enface]
depth = {depth}
"""


@pytest.fixture
def server(prefect_server):
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        yield prefect_server


def written(file: Path, name: str, depth: int) -> str:
    file.write_text(PROJECT.format(name=name, depth=depth))
    return str(file)


def test_the_first_run_registers_the_file_without_the_options_and_says_so(server, tmp_path):
    file = written(tmp_path / "p.toml", "First Run", 70)
    assert registered_parameters("First Run") is None
    config, bare = config_of(file, ["depth=61"]), config_of(file, [])
    chosen = parameters_for_run(file, config, bare, register=True)
    assert load_parameters("First Run").processing.enface.depth == 70
    assert chosen.overrides == {"processing.enface.depth": 61}
    assert any(note.startswith("registered First Run") for note in chosen.notes)
    assert any("processing.enface.depth: 70 -> 61, for this run (--set)" in note for note in chosen.notes)

    again = parameters_for_run(file, bare, bare, register=True)
    assert (again.overrides, again.notes) == ({}, ())


def test_a_file_that_differs_is_used_and_told_and_not_registered(server, tmp_path, capsys):
    file = written(tmp_path / "p.toml", "Changed File", 70)
    save_parameters(load_project(file))
    written(tmp_path / "p.toml", "Changed File", 50)
    chosen = run_parameters_of(file, [])
    assert chosen.config.processing.enface.depth == 50
    assert chosen.overrides == {"processing.enface.depth": 50}
    told = capsys.readouterr().err
    assert "processing.enface.depth: 70 -> 50" in told
    assert "and the registered ones stay" in told
    assert "opticstream project register" in told
    assert load_parameters("Changed File").processing.enface.depth == 70
    assert load_parameters("Changed File", overrides=chosen.overrides) == chosen.config


def test_a_command_that_only_looks_registers_nothing(server, tmp_path):
    file = written(tmp_path / "p.toml", "Only Looked At", 70)
    chosen = run_parameters_of(file, [], register=False)
    assert (chosen.overrides, chosen.notes) == ({}, ())
    assert registered_parameters("Only Looked At") is None


@pytest.mark.slow  # tests/pipeline/test_run_parameters.py has the same chain without a server
def test_flow_runs_of_a_run_use_its_parameters_to_the_end_of_the_chain(server, acquired, tmp_path, worker):
    shutil.copytree(acquired, tmp_path, dirs_exist_ok=True)
    registered = load_project(tmp_path / "project.toml", overrides={"project_name": "Set For One Run"})
    save_parameters(registered)
    overrides = {"processing.enface.depth": 61}
    config = load_parameters("Set For One Run", overrides=overrides)
    project = Project.open(config, deployment=DeploymentSettings(), parameters=overrides)
    driver = Driver(project, Watcher(tmp_path / "raw", config.scan, stable_s=0))
    driver.step()
    driver.step()
    worker.wait_until(lambda: is_finished(project, project.facts.snapshot()), sweeps=project)
    worker.wait_until_quiet()
    assert worker.errors == []
    assert project_progress(project).failures == ()
    assert project.facts.has(SliceId(1), "registered")
    assert stale_results(project) == []
    assert load_parameters("Set For One Run") == registered
    told = {why for one in stale_results(Project.open(registered)) for why in one.why}
    assert "processing.enface.depth: 61 -> 80" in told
