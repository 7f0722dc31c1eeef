"""`upload` and `secrets` on a project with a target on a real S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import load_project
from opticstream.model.ids import MosaicId, SliceId
from opticstream.pipeline.project import Project
from opticstream.testing.s3_server import SECRET, SECRET_KEY, RcloneServer

PROJECT = """
[project]
project_name = "p"
project_base_path = "out"
[scan]
grid_size_y = 2
illuminations = [{{ name = "normal", columns = 2, a_lines = 350 }}]
[[publish.targets]]
kind = "s3"
endpoint = "{endpoint}"
bucket = "brains"
prefix = "{prefix}"
credentials = "lab"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with RcloneServer(tmp_path_factory.mktemp("s3"), "brains") as server:
        yield server


@pytest.fixture
def file(server, tmp_path: Path, request, monkeypatch) -> Path:
    """A project file with two stitched mosaics, whose target has its secret in the environment."""
    path = tmp_path / "p.toml"
    path.write_text(PROJECT.format(endpoint=server.endpoint, prefix=request.node.name))
    project = Project.open(load_project(path))
    for mosaic in (MosaicId(1), MosaicId(2)):
        maps = project.paths.mosaic_product(mosaic, "aip")
        maps.parent.mkdir(parents=True)
        maps.write_bytes(b"map of %d" % mosaic.mosaic_id)
        project.facts.record(mosaic, "stitched", {"outputs": [project.facts.file_record(maps)]})
    monkeypatch.setenv("OPTICSTREAM_SECRET_LAB", SECRET)
    monkeypatch.delenv("OPTICSTREAM_API_URL", raising=False)
    return path


def call(*arguments: object):
    answer = CliRunner().invoke(app, list(map(str, arguments)))
    assert SECRET_KEY not in answer.output
    return answer


def uploaded(file: Path) -> list[int]:
    facts = Project.open(load_project(file)).facts
    return [number for number in (1, 2) if facts.has(MosaicId(number), "uploaded")]


def test_chosen_items_are_uploaded_then_verified_and_the_rest_waits(file, server, request):
    answer = call("upload", file, "mosaic-002", "--json")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["events"] == [{"event": "linc.oct.mosaic.uploaded", "item": "mosaic-002"}]
    assert uploaded(file) == [2]
    planned = json.loads(call("upload", file, "--dry-run", "--json").stdout)
    assert [(one["item"], one["targets"]) for one in planned] == [("mosaic-001", ["s3"])]
    assert uploaded(file) == [2]
    for words in (("upload", "verify", file), ("upload", file, "--verify", "--read")):
        answer = call(*words)
        assert answer.exit_code == 0, answer.output
        assert "1 of 1 files and stores are as they were uploaded" in answer.output
    key = f"{request.node.name}/derivative/sub-01/mosaic_002_aip.nii.gz"
    server.client().put_object(Bucket="brains", Key=key, Body=b"map of 3")
    answer = call("upload", "verify", file, "--json")
    assert answer.exit_code == 1
    (one,) = json.loads(answer.stdout)
    assert (one["item"], one["target"], one["withdrawn"]) == ("mosaic-002", "s3", True)
    assert "other bytes" in one["problem"]
    assert uploaded(file) == []
    assert call("upload", file, "mosaic-002").exit_code == 0
    assert uploaded(file) == [2]
    assert call("upload", "verify", file).exit_code == 0


def test_verifying_with_dry_run_only_compares(file, server, request):
    planned = json.loads(call("upload", file, "--dry-run", "--json").stdout)
    assert {(one["item"], one["before"]) for one in planned} == {("mosaic-001", "publish"), ("mosaic-002", "publish")}
    told = call("upload", file, "--dry-run").output
    assert "would publish and upload derivative/sub-01/mosaic_001_aip.nii.gz" in told
    assert call("upload", file).exit_code == 0
    key = f"{request.node.name}/derivative/sub-01/mosaic_002_aip.nii.gz"
    server.client().delete_object(Bucket="brains", Key=key)
    answer = call("upload", "verify", file, "--dry-run")
    assert answer.exit_code == 1
    assert "is not there" in answer.output
    assert uploaded(file) == [1, 2]
    answer = call("upload", "verify", file)
    assert answer.exit_code == 1
    assert "no longer uploaded: 1 items" in " ".join(answer.output.split())
    assert uploaded(file) == [1]


def test_a_failed_upload_is_tried_again_by_hand(file, monkeypatch):
    monkeypatch.setenv("OPTICSTREAM_SECRET_LAB", f"WRONG:{SECRET_KEY}")
    answer = call("upload", file)
    assert answer.exit_code == 1
    assert "upload failed" in answer.output.replace("_", " ")
    assert call("secrets", "check", file).exit_code == 1
    monkeypatch.setenv("OPTICSTREAM_SECRET_LAB", SECRET)
    assert call("secrets", "check", file).exit_code == 0
    assert call("upload", file).exit_code == 0
    assert uploaded(file) == [1, 2]
    assert "published" in call("status", file).output


def test_what_cannot_be_meant_is_told(file):
    answer = call("upload", file, "--target", "s4")
    assert answer.exit_code == 2
    assert "expected one of s3" in answer.output
    file.write_text(file.read_text().partition("[[publish.targets]]")[0])
    answer = call("upload", file)
    assert answer.exit_code == 2
    assert "[[publish.targets]]" in answer.output
    assert call("secrets", "set", "Not A Name").exit_code == 2


def test_only_the_part_that_was_chosen_counts_as_part(file):
    assert call("upload", file, SliceId(1).key).exit_code == 0
    assert uploaded(file) == [1], "mosaic 2 is of slice 2"
