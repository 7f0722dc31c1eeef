"""A retry from the dashboard's page is done by the workers of the server: the column is really processed again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.driver import Driver
from opticstream.flows.events import announce
from opticstream.flows.parameters import save_parameters
from opticstream.model.ids import BatchId, TileId
from opticstream.pipeline.project import Project
from opticstream.watch import Watcher

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]
TOKEN = "0123456789abcdef-test"
BATCH, LOST = BatchId(1, 1), TileId(1, 2)


@pytest.fixture
def project(acquired, tmp_path, prefect_server) -> Project:
    """A project of which one column has come."""
    shutil.copytree(acquired, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "project.toml"
    file.write_text(file.read_text().replace('project_name = "small"', 'project_name = "retried"'))
    config = load_project(file)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        save_parameters(config)
    return Project.open(config, deployment=DeploymentSettings())


def test_a_failed_tile_is_processed_after_a_retry_from_the_page(project, tmp_path, prefect_server, worker):
    events = []
    driver = Driver(project, Watcher(tmp_path / "raw", project.config.scan, stable_s=0), announce=events.extend)
    driver.step()
    driver.step()
    (ready,) = (event for event in events if event.item == BATCH)
    raw = tmp_path / "raw" / ready.files[LOST.tile_id]
    aside = raw.rename(tmp_path / raw.name)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        announce([ready])
    worker.wait_until(lambda: project.facts.has(BATCH, "processed"))
    assert project.facts.has(LOST, "failed")
    worker.wait_until_quiet()
    aside.rename(raw)

    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    command = [sys.executable, "-m", "opticstream", "dashboard", str(tmp_path / "project.toml"), "--port", "0",
               "--token-file", str(token)]  # fmt: skip
    environment = os.environ | {"OPTICSTREAM_API_URL": prefect_server, "OPTICSTREAM_HOME": str(tmp_path / "home")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
            own = {"sec-fetch-site": "same-origin", "origin": address}
            with httpx.Client(base_url=address, trust_env=False, timeout=600, follow_redirects=True) as browser:
                assert browser.post("/retry", data={"item": LOST.key}, headers=own).status_code == 401
                page = browser.post("/login", data={"token": TOKEN}, headers=own).text
                form = re.search(
                    rf'<form hx-post="/retry" hx-confirm="([^"]+)"[^>]*><input[^>]*value="{LOST.key}"', page
                )
                assert "Retry tile 2 of mosaic 1" in form[1]  # the page asks first
                foreign = {"sec-fetch-site": "cross-site", "origin": "http://elsewhere.example"}
                assert browser.post("/retry", data={"item": LOST.key}, headers=foreign).status_code == 403
                assert project.facts.has(LOST, "failed")
                told = browser.post("/retry", data={"item": LOST.key}, headers=own | {"hx-request": "true"}).text
                assert "will be done again" in told
                assert "could not be told" not in told
                worker.wait_until(
                    lambda: project.facts.has(BATCH, "processed") and project.facts.has(LOST, "processed")
                )
                assert not project.facts.has(LOST, "failed")
        finally:
            process.terminate()
            process.wait(120)
