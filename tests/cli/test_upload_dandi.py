"""`upload` and `secrets check` on a project with a target on an archive that speaks DANDI's protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.publish.dandi_clients import client_home
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import load_project
from opticstream.model.ids import MosaicId
from opticstream.pipeline.project import Project
from opticstream.testing.dandi_server import DANDISET, KEY, DandiServer

PROJECT = """
[project]
project_name = "p"
project_base_path = "out"
[scan]
grid_size_y = 2
illuminations = [{{ name = "normal", columns = 2, a_lines = 350 }}]
[[publish.targets]]
kind = "linc"
dandiset = "{dandiset}"
api = "{api}"
credentials = "lab"
"""


def call(*arguments: object):
    answer = CliRunner().invoke(app, list(map(str, arguments)))
    assert KEY not in answer.output
    return answer


def project_at(api: str, folder: Path) -> Path:
    """Return the file of a project with a stitched mosaic: a map and a volume."""
    path = folder / "p.toml"
    path.write_text(PROJECT.format(dandiset=DANDISET, api=api))
    project = Project.open(load_project(path))
    mosaic = MosaicId(1)
    maps = project.paths.mosaic_product(mosaic, "aip")
    maps.parent.mkdir(parents=True)
    maps.write_bytes(b"a map")
    volume = maps.with_name("mosaic_001_dBI.ome.zarr")
    (volume / "0" / "c").mkdir(parents=True)
    (volume / "0" / "c" / "0").write_bytes(b"a chunk")
    (volume / "zarr.json").write_text("{}")
    for fact, result in (("stitched", maps), ("volume_stitched", volume)):
        project.facts.record(mosaic, fact, {"outputs": [project.facts.file_record(result)]})
    return path


def test_a_target_without_a_client_is_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTICSTREAM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPTICSTREAM_LINC_PYTHON", raising=False)
    monkeypatch.setenv("OPTICSTREAM_SECRET_LAB", KEY)
    answer = call("secrets", "check", project_at("http://127.0.0.1:9/api", tmp_path))
    assert answer.exit_code == 1
    assert "opticstream dandi-client install linc" in " ".join(answer.output.split())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_results_are_uploaded_and_verified_until_the_archive_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTICSTREAM_LINC_PYTHON", str(client_home("linc", "0.6.9")))
    monkeypatch.setenv("LINC_API_KEY", "not-the-key")
    monkeypatch.delenv("OPTICSTREAM_API_URL", raising=False)
    server = DandiServer("0.6.9")
    file = project_at(server.api, tmp_path)
    assert call("secrets", "check", file).exit_code == 1
    answer = call("upload", file)
    assert answer.exit_code == 1
    assert "make another key" in " ".join(answer.output.split())
    monkeypatch.setenv("LINC_API_KEY", KEY)
    answer = call("secrets", "check", file)
    assert answer.exit_code == 0, answer.output
    answer = call("upload", file, "--json")
    assert answer.exit_code == 0, answer.output
    events = {one["event"] for one in json.loads(answer.stdout)["events"]}
    assert {"linc.oct.mosaic.uploaded", "linc.oct.mosaic.volume_uploaded"} <= events
    (key,), (store,) = server.files, server.stores
    assert server.files[key] == b"a map"
    assert server.stores[store] == {"0/c/0": b"a chunk", "zarr.json": b"{}"}
    record = Project.open(load_project(file)).facts.read(MosaicId(1), "uploaded").detail["targets"]["linc"]
    assert DANDISET in record["place"]
    assert [asset["key"] for asset in record["assets"]] == [key]
    answer = call("upload", "verify", file)
    assert answer.exit_code == 0, answer.output
    assert "2 of 2 files and stores are as they were uploaded" in answer.output
    server.forget(key)
    answer = call("upload", "verify", file, "--json")
    assert answer.exit_code == 1
    problems = {one["key"]: one["problem"] for one in json.loads(answer.stdout)}
    assert problems == {key: "is not there", store: ""}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
    server.close()
