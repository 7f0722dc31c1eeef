"""A batch by MATLAB: the same records, files and rules as by our own code, one call, and what failures leave."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.pipeline.one_column import BATCH, PROJECT

from opticstream.config import DeploymentSettings, load_project
from opticstream.io.nifti import read_nifti, write_nifti
from opticstream.model.errors import EngineError
from opticstream.model.events import BatchProcessed, BatchReady
from opticstream.model.ids import TileId
from opticstream.pipeline import batches
from opticstream.pipeline.failures import is_transient, kind_of
from opticstream.pipeline.parameters import slice_settings, tile_settings
from opticstream.pipeline.project import Project
from opticstream.pipeline.stale import stale_results
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

TILES = (1, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project whose folder has blanks, quotes and letters that are not ASCII in its name."""
    folder = tmp_path / 'l\'été "1" (ü)'
    (folder / "raw").mkdir(parents=True)
    (folder / "p.toml").write_text(PROJECT, encoding="utf-8")
    for tile in TILES:
        write_spectral_nifti(folder / "raw" / f"mosaic_001_image_{tile:04d}.nii", fringe_counts(channels=1, seed=tile))
    return folder


def opened(folder: Path, octave: str, *, kind: str = "matlab", **overrides) -> Project:
    config = load_project(folder / "p.toml", overrides={"processing.engine.kind": kind, **overrides})
    settings = DeploymentSettings(
        lease_s=30, attempts=1, stable_s=0.05, stall_s=60, matlab_command=octave, matlab_license_wait_s=0
    )
    return Project.open(config, deployment=settings)


def processed(project: Project, folder: Path, **options) -> list[object]:
    files = {tile: f"mosaic_001_image_{tile:04d}.nii" for tile in TILES}
    event = project.event(BatchReady, BATCH, raw_folder=str(folder / "raw"), files=files)
    if not project.facts.has(BATCH, "ready"):
        project.facts.record(BATCH, "ready", {"detail": {"event": event.payload()}})
    return batches.process_batch(project, event, **options)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in (folder / "out").rglob("*") if ".partial-" in path.name]


def test_a_batch_by_octave_leaves_the_records_and_files_of_our_own_code_and_one_bad_tile_stops_no_other(
    folder, octave, monkeypatch
):
    calls = []
    from opticstream.engines import MatlabCall

    start = MatlabCall._start
    monkeypatch.setattr(MatlabCall, "_start", lambda self, name: (calls.append(name), start(self, name)))
    (folder / "raw" / "mosaic_001_image_0001.nii").write_bytes(b"too short")
    project = opened(folder, octave)
    events = processed(project, folder)
    assert [event.failed_tiles for event in events if isinstance(event, BatchProcessed)] == [(1,)]
    assert project.facts.read(TileId(1, 1), "failed").detail["kind"] == "damaged input"
    record = project.facts.read(TileId(1, 2), "processed")
    assert calls == ["tile 1 of mosaic 1"]  # both tiles
    assert not leftovers(folder)

    shutil.copytree(folder, folder.with_name("native"), ignore=shutil.ignore_patterns("out"))
    native = opened(folder.with_name("native"), octave, kind="native")
    processed(native, folder.with_name("native"))
    theirs = native.facts.read(TileId(1, 2), "processed")
    assert [file.path for file in record.outputs] == [file.path for file in theirs.outputs]
    assert record.parameters_hash != theirs.parameters_hash
    assert record.detail["raw_sha256"] == theirs.detail["raw_sha256"]
    assert record.detail["figures"] == pytest.approx(theirs.detail["figures"], rel=1e-4, abs=1e-4)
    for file in record.outputs:
        if file.path.endswith(".nii"):
            ours = read_nifti(project.paths.absolute(file.path))
            assert np.allclose(ours, read_nifti(native.paths.absolute(file.path)), atol=1e-2), file.path
    raw = project.facts.read(TileId(1, 1), "failed")
    assert raw.detail["reason"].startswith(str(folder / "raw" / "mosaic_001_image_0001.nii"))

    native_view = opened(folder, octave, kind="native")
    assert stale_results(native_view)


class _Standing:
    """In place of `MatlabCall`: does items in Python, or fails as a plan says."""

    def __init__(self, plan, calls, program, items, *, settings, vectors, folder):
        self.plan, self.calls, self.settings = plan, calls, settings
        self.items = {item.name: item for item in items}
        calls.append(list(self.items))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def begin(self, name):
        assert name in self.items

    def wait_for(self, name):
        problem = self.plan.get(name)
        if isinstance(problem, BaseException):
            raise problem
        shape = (self.settings["a_lines"], self.settings["b_lines"])
        for step in self.items[name].steps:
            for product, path in step.outputs.items():
                volume = product == "dBI"
                values = np.full((*shape, 104) if volume else shape, 20.0, np.float32)
                write_nifti(path, problem(product, values) if callable(problem) else values)
        return self.items[name]


@pytest.fixture
def standing(monkeypatch):
    """Let `MatlabCall` be a stand-in; return its plan and its calls."""
    plan, calls = {}, []
    monkeypatch.setattr("opticstream.stages.tile._matlab_tile.MatlabCall", functools.partial(_Standing, plan, calls))
    return plan, calls


FIRST, SECOND = "tile 1 of mosaic 1", "tile 2 of mosaic 1"


def test_a_batch_that_was_killed_goes_on_with_the_tiles_that_are_not_done(folder, standing):
    plan, calls = standing
    plan[SECOND] = KeyboardInterrupt()
    project = opened(folder, shutil.which("sh"))
    with pytest.raises(KeyboardInterrupt):
        processed(project, folder)
    assert project.facts.has(TileId(1, 1), "processed")
    assert not leftovers(folder)
    del plan[SECOND]
    events = processed(opened(folder, shutil.which("sh")), folder)
    assert any(isinstance(event, BatchProcessed) for event in events)
    assert calls == [[FIRST, SECOND], [SECOND]]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda product, values: values[:-1] if product == "aip" else values, r"wrote aip with the shape \(11, 10\)"),
        (lambda product, values: values * np.nan if product == "mip" else values, "wrote mip without any finite value"),
        (lambda product, values: values * np.nan if product == "surf" else values, "surf without any finite value"),
        (
            lambda product, values: values[..., 0] if product == "dBI" else values,
            r"wrote dBI with the shape \(12, 10\)",
        ),
    ],
)
def test_wrong_results_of_a_toolbox_are_refused_by_name_and_leave_nothing(folder, standing, made, words):
    plan, _ = standing
    plan[FIRST] = made
    project = opened(folder, shutil.which("sh"))
    processed(project, folder)
    failed = project.facts.read(TileId(1, 1), "failed")
    assert re.search(words, failed.detail["reason"]), failed.detail["reason"]
    assert not list((folder / "out").rglob("*image_0001_aip*"))
    assert project.facts.has(TileId(1, 2), "processed")


def test_a_crash_is_tried_again_as_the_policy_says_and_then_parked_with_its_own_kind(folder, standing):
    plan, _ = standing
    plan[FIRST] = EngineError("tile 1 of mosaic 1: MATLAB crashed")
    tries = []

    def attempt(name, step):
        for _ in range(3):
            tries.append(name)
            try:
                return step()
            except Exception as error:
                if not is_transient(error):
                    raise
                last = error
        raise last

    project = opened(folder, shutil.which("sh"))
    processed(project, folder, attempt=attempt)
    assert tries == ["tile 1"] * 3 + ["tile 2"]
    assert project.facts.read(TileId(1, 1), "failed").detail["kind"] == "engine"
    assert kind_of(EngineError("x")) == "engine"


def test_no_matlab_on_a_host_is_said_with_the_setting_and_parks_the_tiles(folder):
    project = opened(folder, str(folder / "nowhere" / "matlab"))
    processed(project, folder)
    failed = project.facts.read(TileId(1, 2), "failed").detail
    assert failed["kind"] == "settings"
    assert "OPTICSTREAM_MATLAB_COMMAND" in failed["reason"]


def test_a_change_of_engine_or_of_a_labs_functions_makes_exactly_what_it_computes_stale(folder, tmp_path):
    toolbox = tmp_path / "toolbox"
    toolbox.mkdir()
    (toolbox / "lab_surface.m").write_text("function s = lab_surface(i, s)\n")

    def hashes(**engine) -> tuple[str, str]:
        config = load_project(folder / "p.toml", overrides={"processing.engine": engine})
        return tile_settings(config, 0).hash, slice_settings(config).hash

    native, matlab = hashes(kind="native"), hashes(kind="matlab")
    assert native[0] != matlab[0]
    assert native[1] != matlab[1]
    assert hashes(kind="matlab", stages=["tile"]) == (matlab[0], native[1])
    assert hashes(kind="matlab", stages=["registration", "axis"]) == (native[0], matlab[1])
    one_of_them = {hashes(kind="matlab", stages=[stage])[1] for stage in ("registration", "axis")}
    assert len({native[1], matlab[1], *one_of_them}) == 4
    assert hashes(kind="matlab", memory_budget_gb=3.0) == matlab
    lab = {"kind": "matlab", "functions": {"find_surface": "lab_surface"}, "paths": [str(toolbox)]}
    before = hashes(**lab)
    assert before[0] != matlab[0]
    assert before[1] == matlab[1]
    (toolbox / "lab_surface.m").write_text("function s = lab_surface(i, s) % better\n")
    assert hashes(**lab)[0] != before[0]


def test_records_of_earlier_versions_stay_good_with_our_own_code(folder):
    config = load_project(folder / "p.toml")
    assert "engine" not in json.dumps(tile_settings(config, 0).results)
    assert "engine" not in json.dumps(slice_settings(config).results)
