"""Take the pictures of the dashboard in `docs/images/` anew: ``python docs/screenshots.py``, or ``make screenshots``.

A made-up project is shown by a real dashboard in Debian's Chromium (see `.ci/packages`). Look at the pictures before
they are committed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from opticstream.model.ids import SliceId
from opticstream.testing.shown_project import ShownProject
from opticstream.web import Access
from opticstream.web.server import DashboardServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

IMAGES = Path(__file__).parent / "images"
TOKEN = "0123456789abcdef-pictures"
PATIENCE_MS = 300_000
QUALITY = 82


def project_in(folder: Path) -> ShownProject:
    """Return a project in the middle of its second slice: a tile failed, one is worth a look, some columns wait."""
    shown = ShownProject(folder, columns=12, rows=9, tile_px=(48, 40), name="I55 brainstem")
    for mosaic in (1, 2):
        for column in range(1, 13):
            shown.column(mosaic, column)
        shown.stitch(mosaic, doubts=["overlap: correlation 0.41 in 3 seams"] if mosaic == 2 else [])
    shown.stitch_volumes(1)
    shown.project.facts.record(SliceId(1), "ready")
    shown.project.facts.replace(SliceId(1), "registered", why="pictures")
    shown.stack_sample(slices=1)
    for column in range(1, 6):
        shown.column(3, column)
    shown.ready(3, 7)
    return shown


def go_on(shown: ShownProject) -> None:
    """Process some tiles of the column that is under way."""
    for number in (46, 47, 49):
        shown.process(3, number, flags=["the surface jumps at the left edge"] if number == 47 else [])
    reason = (
        "mosaic_003_image_0050_spectral_0000.nii holds 734003552 bytes, expected 1003520352 for samples=2048, "
        "a_lines=350, b_lines=350 (scan.illuminations[0])"
    )
    shown.fail(3, 50, reason)


@contextlib.contextmanager
def dashboard(shown: ShownProject) -> Iterator[str]:
    """Serve the dashboard of a project; yield its address."""
    server = DashboardServer(shown.project, access=Access(port=0, token=TOKEN), retry=lambda _items: [])
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + PATIENCE_MS / 1000
    while not server.started:
        assert thread.is_alive(), "the dashboard did not start"
        assert time.monotonic() < end, "the dashboard did not start"
        time.sleep(0.05)
    try:
        yield server.access.address
    finally:
        server.should_exit = True
        thread.join()


def opened(browser: Browser, address: str, path: str, **options: Any) -> Page:
    """Return a page of the dashboard, signed in."""
    context = browser.new_context(color_scheme="dark", **options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{address}/login")
    page.fill("input[name=token]", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#summary")
    if path != "/":
        page.goto(f"{address}{path}")
    return page


def settled(page: Page) -> None:
    """Wait until all slices and flags are read, every picture is there, and the page stays the same."""
    page.wait_for_function("() => !/Reading|so far/.test(document.body.textContent)", polling=200)
    page.wait_for_function("() => [...document.images].every(one => one.complete)", polling=200)
    page.wait_for_function(
        "() => [...document.querySelectorAll('svg image')].every("
        "one => performance.getEntriesByName(new URL(one.getAttribute('href'), location).href).length)",
        polling=200,
    )
    page.wait_for_timeout(1000)


def drawn(page: Page) -> None:
    """Wait until a volume is drawn in colours and the picture stays the same."""
    end, before = time.monotonic() + PATIENCE_MS / 1000, b""
    while time.monotonic() < end:
        page.wait_for_timeout(3000)
        shot = page.screenshot()
        with Image.open(BytesIO(shot)) as picture:
            small = picture.convert("HSV").resize((130, 85))
        coloured = sum(s > 120 and v > 60 for _, s, v in np.asarray(small).reshape(-1, 3))
        if shot == before and coloured > 500:
            return
        before = shot


def keep(page: Page, name: str, *, whole: bool = False) -> None:
    """Write a picture of a page."""
    with Image.open(BytesIO(page.screenshot(full_page=whole))) as picture:
        path = IMAGES / f"{name}.jpg"
        picture.convert("RGB").save(path, quality=QUALITY)
    print(path, flush=True)  # noqa: T201  (a tool of the developers)


def main() -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        shown = project_in(Path(folder))
        batch = shown.ready(3, 6)
        program = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        with shown.project.facts.claim(batch), dashboard(shown) as address:  # type: ignore[union-attr]
            go_on(shown)
            page = opened(browser, address, "/", viewport={"width": 1300, "height": 900})
            settled(page)
            keep(page, "dashboard", whole=True)
            phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
            page = opened(browser, address, "/?modality=ori", **phone)
            settled(page)
            keep(page, "dashboard-phone")
            show = "/pictures/mosaic-001?show=mosaic_001_ori.jpg"
            page = opened(browser, address, show, viewport={"width": 1100, "height": 1000})
            page.wait_for_selector("#viewer[data-ready=yes] canvas")
            page.get_by_role("button", name="Zoom in").click()
            page.wait_for_function("() => Number(document.getElementById('viewer').dataset.zoom) > 1.5")
            settled(page)
            keep(page, "dashboard-orientation", whole=True)
            for key, name in (("mosaic-001", "dashboard-volume"), ("sample", "dashboard-sample")):
                page = opened(browser, address, f"/volumes/{key}", viewport={"width": 1300, "height": 850})
                page.wait_for_selector("#neuroglancer-container canvas")
                page.get_by_text("O3D" if key != "sample" else "normal_O3D", exact=True).click()
                drawn(page)
                keep(page, name)
        browser.close()


if __name__ == "__main__":
    main()
