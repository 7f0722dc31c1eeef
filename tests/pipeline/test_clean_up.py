"""Intermediate files are removed only when every target holds what they led to; what was removed can be made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.pipeline.one_column import BATCH, PROJECT
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import DeploymentSettings, load_project
from opticstream.model.events import BatchReady
from opticstream.model.ids import MosaicId
from opticstream.pipeline import batches
from opticstream.pipeline.clean_up import clean_up
from opticstream.pipeline.jobs import STITCH_MOSAIC
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import RedoPlan, apply_plan
from opticstream.pipeline.uploads import upload_pending
from opticstream.state.verify import verify
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti
from opticstream.testing.s3_server import SECRET, RcloneServer

MOSAIC = MosaicId(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with RcloneServer(tmp_path_factory.mktemp("s3"), "brains") as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, server) -> Path:
    (tmp_path / "raw").mkdir()
    (tmp_path / "p.toml").write_text(
        PROJECT.replace("[processing.volume]", "[processing.volume]\nenabled = false")
        + f'[[publish.targets]]\nkind = "s3"\nbucket = "brains"\n'
        f'endpoint = "{server.endpoint}"\nprefix = "{tmp_path.name}"\ncredentials = "lab"\n'
    )
    for tile in (1, 2):
        write_spectral_nifti(raw(tmp_path, tile), fringe_counts(channels=1, seed=tile))
    return tmp_path


def raw(folder: Path, tile: int) -> Path:
    return folder / "raw" / f"mosaic_001_image_{tile:04d}.nii"


def opened(folder: Path) -> Project:
    settings = DeploymentSettings(lease_s=5, attempts=1, upload_patience_s=30.0)
    return Project.open(load_project(folder / "p.toml"), deployment=settings)


def secrets(_name: str) -> str:
    return SECRET


def processed(folder: Path) -> Project:
    project = opened(folder)
    files = {tile: raw(folder, tile).name for tile in (1, 2)}
    event = project.event(BatchReady, BATCH, raw_folder=str(folder / "raw"), files=files)
    project.facts.record(BATCH, "ready", {"detail": {"event": event.payload()}})
    batches.process_batch(project, event)
    project.facts.record(MOSAIC, "ready")
    maps = project.paths.mosaic_product(MOSAIC, "aip")
    maps.parent.mkdir()
    maps.write_bytes(b"map")
    project.facts.record(MOSAIC, "stitched", {"outputs": [project.facts.file_record(maps)]})
    return project


@pytest.fixture
def project(folder: Path) -> Project:
    """A mosaic of one batch, uploaded."""
    project = processed(folder)
    list(upload_pending(project, secrets=secrets))
    assert project.facts.has(BATCH, "uploaded")
    assert project.facts.has(MOSAIC, "uploaded")
    return project


def intermediates(project: Project) -> list[Path]:
    return [path for path in project.paths.processed_folder(MOSAIC).iterdir() if path.suffix == ".nii"]


def others(project: Project) -> dict[Path, bytes]:
    """Return everything that a clean-up must not touch."""
    base = project.paths.base
    kept = [
        path for path in base.parent.rglob("*") if path.is_file() and "state" not in path.relative_to(base.parent).parts
    ]
    return {path: path.read_bytes() for path in kept if path.parent != project.paths.processed_folder(MOSAIC)}


def test_what_every_target_holds_loses_its_intermediate_files_and_stays_done(project):
    before = others(project)
    size = sum(path.stat().st_size for path in project.paths.processed_folder(MOSAIC).iterdir())
    (planned,) = clean_up(project, secrets, dry_run=True)
    assert (planned.kept, planned.size) == ("", size)
    assert intermediates(project), "a dry run removes nothing"
    (done,) = clean_up(project, secrets)
    assert done == planned
    assert intermediates(project) == []
    assert others(project) == before, "raw tiles, archive and results are as they were"
    assert project.facts.has(BATCH, "cleaned")
    assert verify(project.facts, layout=project.layout) == [], "nothing is missed"
    assert [event for event in pending_announcements(project) if isinstance(event, BatchReady)] == []
    (mosaic,) = project_progress(project).mosaics
    assert (mosaic.tiles_processed, mosaic.state, mosaic.batches_cleaned) == (2, "stitched", 1)
    assert list(clean_up(project, secrets)) == [], "there is nothing more to do"


@pytest.mark.parametrize("missing", ["uploaded", "published", "stitched"])
def test_without_an_upload_of_the_mosaic_everything_stays(project, missing):
    for fact in ("uploaded", "published", "stitched")[: ("uploaded", "published", "stitched").index(missing) + 1]:
        project.facts.withdraw(MOSAIC, fact, reason="test")
    before = intermediates(project)
    (kept,) = clean_up(project, secrets)
    assert kept.kept
    assert intermediates(project) == before


def test_without_a_copy_of_the_raw_tiles_at_a_target_everything_stays(folder):
    text = (folder / "p.toml").read_text().replace('credentials = "lab"', 'credentials = "lab"\nwhat = ["derivatives"]')
    (folder / "p.toml").write_text(text)
    project = processed(folder)
    list(upload_pending(project, secrets=secrets))
    (kept,) = clean_up(project, secrets)
    assert kept.kept == "batch 1 of mosaic 1 is not uploaded"
    assert intermediates(project)


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_the_targets_answer_counts_and_not_the_flag(project, server, damage):
    (held,) = (server.folder / "brains" / project.paths.base.parent.name).rglob("*chunk-0002*.nii.gz")
    held.unlink() if damage == "lost" else held.write_bytes(b"x" * held.stat().st_size)
    (kept,) = clean_up(project, secrets)
    assert "chunk-0002" in kept.kept
    assert intermediates(project)


def test_raw_tiles_and_links_are_never_removed(project, folder):
    """A tile of complex data may be a link to its raw file, or the raw file itself under another name."""
    product, other = sorted(intermediates(project))[:2]
    product.unlink()
    os.link(raw(folder, 1), product)
    other.unlink()
    other.symlink_to(raw(folder, 2))
    before = raw(folder, 1).read_bytes(), raw(folder, 2).read_bytes()
    list(clean_up(project, secrets))
    assert sorted(intermediates(project)) == [product, other]
    assert (raw(folder, 1).read_bytes(), raw(folder, 2).read_bytes()) == before


def test_a_clean_up_that_was_killed_goes_on(project, folder):
    script = f"""
import os, pathlib
from opticstream.pipeline import clean_up
from tests.pipeline.test_clean_up import opened, secrets
removed = []
def unlink(self, **_options):
    if "processed" in self.parts:
        removed.append(self)
        if len(removed) == 2:
            os._exit(9)
    os.unlink(self)
pathlib.Path.unlink = unlink
list(clean_up.clean_up(opened(pathlib.Path({str(folder)!r})), secrets))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, check=False, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert done.returncode == 9
    assert project.facts.has(BATCH, "cleaned"), "it is known before the first file goes"
    assert intermediates(project)
    assert verify(project.facts, layout=project.layout) == []
    list(clean_up(project, secrets))
    assert intermediates(project) == []
    assert verify(project.facts, layout=project.layout) == []


def test_doing_the_mosaic_again_makes_its_tiles_again(project):
    list(clean_up(project, secrets))
    plan = RedoPlan(project)
    plan.redo(STITCH_MOSAIC, MOSAIC)
    assert plan.refused == []
    assert [type(event) for event in plan.announce] == [BatchReady], "the mosaic follows by itself"
    apply_plan(project, plan, reason="test")
    for event in plan.announce:
        batches.process_batch(project, event)
    assert intermediates(project)
    assert not project.facts.has(BATCH, "cleaned")
    assert verify(project.facts, layout=project.layout) == []


def test_doing_the_mosaic_again_without_its_raw_tiles_is_refused_with_what_is_missing(project, folder):
    list(clean_up(project, secrets))
    raw(folder, 2).rename(folder / "away")
    plan = RedoPlan(project)
    plan.redo(STITCH_MOSAIC, MOSAIC)
    (refused,) = plan.refused
    assert str(raw(folder, 2)) in refused
    assert (plan.withdraw, plan.announce) == ([], []), "what is there stays"


def test_a_mosaic_is_never_stitched_from_tiles_that_were_removed(project):
    from opticstream.model.events import MosaicReady
    from opticstream.pipeline.mosaics import stitch_mosaic

    list(clean_up(project, secrets))
    for fact in ("uploaded", "published", "stitched"):
        project.facts.withdraw(MOSAIC, fact, reason="by hand")
    stitch_mosaic(project, project.event(MosaicReady, MOSAIC))
    reason = project.facts.read(MOSAIC, "failed").detail["reason"]
    assert "were removed by a clean-up after their upload" in reason
    assert "opticstream retry" in reason


def test_the_command_tells_the_bytes_and_removes_nothing_in_a_dry_run(project, folder, monkeypatch):
    monkeypatch.setenv("OPTICSTREAM_SECRET_LAB", SECRET)

    def call(*arguments: str) -> dict:
        answer = CliRunner().invoke(app, ["upload", "clean-up", str(folder / "p.toml"), *arguments, "--json"])
        assert answer.exit_code == 0, answer.output
        return json.loads(answer.output)

    size = sum(path.stat().st_size for path in project.paths.processed_folder(MOSAIC).iterdir())
    planned = call("--dry-run")
    assert intermediates(project)
    assert planned["bytes"] == size
    assert call()["bytes"] == size
    assert intermediates(project) == []
    assert call()["bytes"] == 0
