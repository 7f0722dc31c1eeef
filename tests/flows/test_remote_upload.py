"""Events make the `upload` pool upload to a real S3 server, and nothing that is left behind shows the credentials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.deployments import DEPLOYMENTS
from opticstream.flows.leftovers import project_of
from opticstream.flows.parameters import save_parameters
from opticstream.flows.secrets import keep_secret
from opticstream.model.ids import MosaicId
from opticstream.pipeline.project import Project
from opticstream.pipeline.uploads import release_uploads
from opticstream.pipeline.verify_uploads import OpenTargets, verified_uploads
from opticstream.testing.s3_server import SECRET, SECRET_KEY, RcloneServer

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("default"),
]

NAME = "Remote Chain"
WRONG_KEY = "another-key-that-the-server-refuses"
PROJECT = """
[project]
project_name = "{name}"
project_base_path = "out"
[scan]
grid_size_y = 2
illuminations = [{{ name = "normal", columns = 2, a_lines = 350 }}]
[[publish.targets]]
kind = "s3"
endpoint = "{endpoint}"
bucket = "brains"
credentials = "remote-chain"
"""


@pytest.fixture
def home(tmp_path: Path):
    """A Prefect server of this test's own, so that its database and log can be searched."""
    from opticstream.flows.server import EmbeddedServer

    with EmbeddedServer(tmp_path / "home") as server:
        yield server


def stitched_project(folder: Path, endpoint: str) -> Project:
    """Return a registered project with two mosaics that have just been stitched."""
    folder.mkdir()
    file = folder / "project.toml"
    file.write_text(PROJECT.format(name=NAME, endpoint=endpoint))
    config = load_project(file)
    save_parameters(config)
    project = Project.open(config, deployment=DeploymentSettings())
    for mosaic in (MosaicId(1), MosaicId(2)):
        maps = project.paths.mosaic_product(mosaic, "aip")
        maps.parent.mkdir(parents=True)
        maps.write_bytes(b"map of %d" % mosaic.mosaic_id)
        project.facts.record(mosaic, "stitched", {"outputs": [project.facts.file_record(maps)]})
    return project


def is_uploaded(project: Project) -> bool:
    return all(project.facts.has(MosaicId(number), "uploaded") for number in (1, 2))


def has_failed(project: Project) -> bool:
    return any(project.facts.has(MosaicId(number), "upload_failed") for number in (1, 2))


def test_the_upload_pool_uploads_on_events_and_shows_its_secrets_nowhere(home, tmp_path, monkeypatch):
    """The first secret is refused, so that the messages of a failure are searched, too."""
    from tests.flows.conftest import InlineWorker

    monkeypatch.delenv("OPTICSTREAM_SECRET_REMOTE_CHAIN", raising=False)
    with RcloneServer(tmp_path / "s3", "brains") as server:
        with InlineWorker(home.api_url) as worker, temporary_settings({PREFECT_API_URL: home.api_url}):
            for deployment in DEPLOYMENTS:
                if deployment.events and deployment.name != "upload":
                    worker.set_enabled(deployment.name, False)
            keep_secret("remote-chain", f"SOMEBODY:{WRONG_KEY}")
            project = stitched_project(tmp_path / "project", server.endpoint)
            worker.wait_until(lambda: has_failed(project), sweeps=project)
            worker.wait_until_quiet()
            keep_secret("remote-chain", SECRET)
            assert release_uploads(project, lambda _item: True) > 0
            worker.wait_until(lambda: is_uploaded(project), sweeps=project)
            worker.wait_until_quiet()
            compared = list(
                verified_uploads(project, lambda _item: True, {"s3"}, OpenTargets(project, lambda _name: SECRET))
            )
            traces = traces_of(worker, home.api_url)
            runs = [run for run in worker.flow_runs() if project_of(run) == NAME]
            assert worker.events("linc.oct.mosaic.uploaded", project=NAME)
        assert [one.problem for one in compared] == [None, None]
        assert {run["created_by"]["type"] for run in runs} == {"AUTOMATION"}
    assert all(traces.values()), f"nothing to search in {[kind for kind, found in traces.items() if not found]}"
    for kind, found in traces.items():
        for trace in found:
            text = json.dumps(trace)
            for secret in (SECRET_KEY, WRONG_KEY):
                assert secret not in text, f"{kind}: {text[:500]}"
    searched = 0
    for path in tmp_path.rglob("*"):
        if path.is_file() and not path.is_relative_to(tmp_path / "s3"):
            searched += 1
            data = path.read_bytes()
            for secret in (SECRET_KEY, WRONG_KEY):
                assert secret.encode() not in data, path
    assert searched > 5


def traces_of(worker: Any, api_url: str) -> dict[str, list[Any]]:
    """Return everything that the server tells about what has happened."""
    events, page = [], worker._ask("POST", "/events/filter", {"limit": 50})
    while True:
        events += page["events"]
        if not page.get("next_page"):
            break
        after = urlsplit(page["next_page"])
        page = worker._ask("GET", f"{after.path.removeprefix(urlsplit(api_url).path)}?{after.query}", {})
    return {
        "logs": worker.logs(),
        "artifacts": worker.artifacts(),
        "events": events,
        "flow runs": worker.flow_runs(),
        "blocks": worker._ask("POST", "/block_documents/filter", {"include_secrets": False}),
    }
