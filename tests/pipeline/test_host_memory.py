"""Heavy steps of one host wait for each other, and keep within the host's memory."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from opticstream.config import DeploymentSettings, load_project, parameters_hash
from opticstream.flows.host_memory import budget_bytes, memory_budget
from opticstream.model.chain import STEPS
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import BatchId, MosaicId, SampleId, SliceId
from opticstream.pipeline.bindings import binding_of
from opticstream.pipeline.host_memory import memory_of_mosaic, memory_of_slice, within_memory
from opticstream.pipeline.jobs import STITCH_VOLUME, Done, Result, Skipped, perform
from opticstream.pipeline.parameters import tile_settings, volume_settings
from opticstream.pipeline.project import Project
from opticstream.system.memory import MemoryBudget, memory_of_host
from opticstream.testing.stitching_cases import make_case

GB = 10**9
MOSAIC = MosaicId(1)


@pytest.fixture
def project(project_file, tmp_path):
    budget = MemoryBudget(tmp_path / "memory", 5 * GB)
    project = Project.open(load_project(project_file), deployment=DeploymentSettings(), memory=budget)
    project.facts.record(MOSAIC, "stitched")
    return project


def test_a_step_waits_until_the_others_leave_enough_and_is_not_claimed_meanwhile(project):
    outcomes = []
    with project.memory.share(2 * GB, "another run"):
        run = threading.Thread(
            target=lambda: outcomes.append(perform(project, MOSAIC, STITCH_VOLUME, lambda _claim: Result()))
        )
        run.start()
        while len(project.memory.shares()) < 2:
            run.join(0.02)
        run.join(1.0)
        assert outcomes == []
        assert project.facts.holder(MOSAIC, STITCH_VOLUME.claim) is None
        assert project.memory.shares()[1].what == "stitch volume: p mosaic 1"
    run.join(60)
    assert isinstance(outcomes[0], Done)
    assert project.memory.shares() == []


def test_what_another_host_has_done_meanwhile_is_not_done_again(project):
    outcomes = []

    def work(_claim):
        raise AssertionError("not to be called")

    with project.memory.share(5 * GB, "another run"):
        run = threading.Thread(target=lambda: outcomes.append(perform(project, MOSAIC, STITCH_VOLUME, work)))
        run.start()
        while len(project.memory.shares()) < 2:
            run.join(0.02)
        project.facts.record(MOSAIC, STITCH_VOLUME.done)
    run.join(60)
    assert isinstance(outcomes[0], Skipped)


def test_every_step_of_the_computing_pools_says_what_it_takes(project):
    items = {"batch": BatchId(1, 1), "mosaic": MOSAIC, "slice": SliceId(1), "sample": SampleId()}
    steps = [step for step in STEPS if step.pool in ("tile", "stitch", "register") and step.hierarchy in items]
    needed = {step.name: binding_of(step).memory(project, items[step.hierarchy]) for step in steps}
    assert needed["process batch"] == 1 * GB  # processing.reconstruction.memory_budget_gb
    assert needed["stitch volume"] == 4 * GB  # processing.volume.memory_budget_gb
    assert {name for name, number in needed.items() if not 300e6 < number < 5 * GB} == set()


def test_matlab_counts_where_it_registers_a_slice_or_solves_for_its_axes(project_file):
    def needed(**engine) -> int:
        config = load_project(project_file, overrides={"processing.engine": engine})
        return memory_of_slice(Project.open(config, deployment=DeploymentSettings()), SliceId(1))

    own = needed(kind="native")
    assert needed(kind="matlab", stages=["tile"]) == own
    for stage in ("registration", "axis"):
        assert needed(kind="matlab", stages=[stage], memory_budget_gb=2.0) == own + 2 * GB


def test_blocks_keep_within_the_memory_of_the_host_and_results_stay_current(project_file, tmp_path):
    small = MemoryBudget(tmp_path / "memory", 600_000_000)
    project = Project.open(load_project(project_file), deployment=DeploymentSettings(), memory=small)
    config = within_memory(project)
    assert config.processing.reconstruction.memory_budget_gb == pytest.approx(0.6)
    assert config.processing.volume.memory_budget_gb == pytest.approx(0.6)
    assert binding_of(STITCH_VOLUME).memory(project, MOSAIC) == 600_000_000
    assert tile_settings(config, 0) == tile_settings(project.config, 0)
    assert volume_settings(config) == volume_settings(project.config)
    assert parameters_hash(project.config.processing) != parameters_hash(config.processing)


def test_the_budget_is_a_setting_or_a_part_of_the_hosts_memory(monkeypatch, tmp_path):
    monkeypatch.setenv("OPTICSTREAM_MEMORY_BUDGET", "24GiB")
    assert budget_bytes(DeploymentSettings()) == 24 << 30
    monkeypatch.delenv("OPTICSTREAM_MEMORY_BUDGET")
    assert budget_bytes(DeploymentSettings()) == int(0.75 * memory_of_host())
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with memory_budget(DeploymentSettings(memory_budget=GB)).share(GB, "this"):
        (other,) = memory_budget(DeploymentSettings(memory_budget=GB)).shares()
    assert other.what == "this"


@pytest.mark.parametrize("value", ["much", "-1", "3MB"])
def test_a_budget_that_is_none_is_refused_by_its_name(monkeypatch, value):
    monkeypatch.setenv("OPTICSTREAM_MEMORY_BUDGET", value)
    with pytest.raises(ConfigurationError, match=f"OPTICSTREAM_MEMORY_BUDGET = {value}"):
        DeploymentSettings()


MEASURED = """
import resource, sys
from pathlib import Path
from opticstream.config import load_project
from opticstream.model.ids import MosaicId
from opticstream.pipeline.project import Project
from opticstream.stages.project import MosaicStages
project = Project.open(load_project(Path(sys.argv[1])))
stages = MosaicStages(project.config, project.paths, MosaicId(1))
stages.find_coordinates(); stages.find_focus(); stages.stitch_mosaic()
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another one elsewhere")
def test_maps_take_no_more_than_they_say(tmp_path):
    case = make_case(tmp_path / "out", columns=6, rows=6, tile_shape=(300, 300), depth=2)
    file = tmp_path / "p.toml"
    shape = 'grid_size_y = 6\nb_lines = 300\nsamples = 64\ntile_overlap = 30\nscan_order = "column by column"\n'
    file.write_text(
        '[project]\nproject_name = "p"\nproject_base_path = "out"\n'
        f'[scan]\n{shape}illuminations = [{{ name = "normal", columns = 6, a_lines = 300 }}]\n'
        "[processing.mask]\nthreshold_db = { normal = 50 }\n"
    )
    project = Project.open(load_project(file))
    assert project.paths.processed_folder(MOSAIC) == case.tiles
    done = subprocess.run([sys.executable, "-c", MEASURED, str(file)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < memory_of_mosaic(project, MOSAIC)
