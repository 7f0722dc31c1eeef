"""Pictures of quality control, and links to published results, can be seen on Prefect's own page."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tests.servers import ServerProcess, running
from tests.services import program

from opticstream.flows.picture_artifacts import image_markdown
from opticstream.model.ids import MosaicId, SliceId
from opticstream.pipeline.payloads import mosaic_picture_key, mosaic_progress_key, slice_picture_key

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1800)]
PATIENCE_MS = 600_000
LINK = "https://dandiarchive.org/dandiset/000123/draft/files"


def test_pictures_and_links_of_artifacts_are_shown(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    names = ("tiles", "qc-overlap", "qc-focus", "qc-mask")
    keys = {name: mosaic_picture_key("My Brain", MosaicId(1), name) for name in names}
    keys["axis"] = slice_picture_key("My Brain", SliceId(1), "slice_001_axis")
    progress = mosaic_progress_key("My Brain", MosaicId(1))
    server = ServerProcess(tmp_path)
    with running(server), httpx.Client(base_url=server.url, trust_env=False, timeout=300) as api:
        made: dict[str, str] = {}
        for n, (name, key) in enumerate(keys.items()):
            path = tmp_path / f"{name}.png"
            Image.new("RGB", (300 + n, 100), (200, 40 * n, 0)).save(path)
            artifact = {"key": key, "type": "markdown", "data": image_markdown(path, title=f"Mosaic 1: {name}")}
            made[name] = api.post("/artifacts/", json=artifact).raise_for_status().json()["id"]
        table = json.dumps([{"state": "archived", "batches": 3}])
        about = {"key": progress, "type": "table", "data": table, "description": f"Published: [dandi]({LINK})"}
        made["progress"] = api.post("/artifacts/", json=about).raise_for_status().json()["id"]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(PATIENCE_MS)
            root = server.url.removesuffix("/api")
            for n, name in enumerate(keys):
                page.goto(f"{root}/artifacts/artifact/{made[name]}")
                is_shown = f"one.alt.endsWith('{name}') && one.naturalWidth === {300 + n}"
                page.wait_for_function(f"() => [...document.images].some(one => {is_shown})")
            page.goto(f"{root}/artifacts/artifact/{made['progress']}")
            page.wait_for_selector(f'a[href="{LINK}"]')
            page.get_by_text("archived").first.wait_for()
            page.goto(f"{root}/artifacts/key/{progress}")  # where messages lead
            page.wait_for_selector(f'a[href="{LINK}"]')
            browser.close()
