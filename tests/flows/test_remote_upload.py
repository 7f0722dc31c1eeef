"""The event chain uploads to a real S3 server, and nothing that the run leaves behind shows the credentials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.driver import Driver
from opticstream.flows.leftovers import project_of
from opticstream.flows.parameters import save_parameters
from opticstream.flows.secrets import keep_secret
from opticstream.model.chain import chain
from opticstream.pipeline.project import Project
from opticstream.pipeline.uploads import release_uploads
from opticstream.pipeline.verify_uploads import verified_uploads
from opticstream.testing.s3_server import SECRET, SECRET_KEY, RcloneServer
from opticstream.watch import Watcher

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("default"),
]

NAME = "Remote Chain"
WRONG_KEY = "another-key-that-the-server-refuses"
TARGET = """
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


def started(acquisition: Path, endpoint: str) -> Driver:
    file = acquisition / "project.toml"
    file.write_text(file.read_text() + TARGET.format(endpoint=endpoint))
    config = load_project(file, overrides={"project_name": NAME})
    save_parameters(config)
    driver = Driver(
        Project.open(config, deployment=DeploymentSettings()), Watcher(acquisition / "raw", config.scan, stable_s=0)
    )
    driver.step()
    driver.step()
    return driver


def uploads_of(project: Project) -> dict[tuple[str, str], str]:
    """Return of everything that is to be uploaded whether it is `uploaded`, has failed, or neither."""
    snapshot = project.facts.snapshot()
    found = {}
    for step in (step for step in chain().steps if step.uploads):
        for item in snapshot.items(step.hierarchy):
            if snapshot.has(item, step.after):
                failed = step.failed is not None and snapshot.has(item, step.failed)
                found[item.key, step.name] = "failed" if failed else "done" if snapshot.has(item, step.done) else ""
    return found


def test_the_chain_uploads_by_itself_and_shows_its_secrets_nowhere(acquisition, home, tmp_path, monkeypatch):
    from tests.flows.conftest import InlineWorker

    monkeypatch.delenv("OPTICSTREAM_SECRET_REMOTE_CHAIN", raising=False)
    server = RcloneServer(tmp_path / "s3", "brains")
    server.start()
    try:
        with InlineWorker(home.api_url) as worker, temporary_settings({PREFECT_API_URL: home.api_url}):
            keep_secret("remote-chain", f"SOMEBODY:{WRONG_KEY}")
            driver = started(acquisition, server.endpoint)
            project = driver.project
            worker.wait_until(lambda: "failed" in uploads_of(project).values(), sweeps=project)
            keep_secret("remote-chain", SECRET)

            def everything_is_there() -> bool:
                found = uploads_of(project)
                if "failed" in found.values():
                    release_uploads(project, lambda _item: True)
                return len({name for _, name in found}) >= 4 and set(found.values()) == {"done"}

            worker.wait_until(everything_is_there, sweeps=project, timeout_s=2400.0)
            worker.wait_until_quiet()
            compared = list(verified_uploads(project, lambda _item: True, {"s3"}, lambda _name: SECRET))
            traces = traces_of(worker, home.api_url)
            runs = [run for run in worker.flow_runs() if project_of(run) == NAME]
        assert compared
        assert [one for one in compared if one.problem] == []
        assert {run["created_by"]["type"] for run in runs} == {"AUTOMATION"}
        assert worker.events("linc.oct.mosaic.uploaded", project=NAME)
    finally:
        server.stop()
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
    assert searched > 20


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
