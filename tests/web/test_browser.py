"""The page in a real browser: Debian's Chromium, driven by Playwright. `.ci/packages` installs it."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.services import program

from opticstream.cli.dashboard import _retried
from opticstream.testing.shown_project import ShownProject
from opticstream.web import Access
from opticstream.web.server import DashboardServer

TOKEN = "0123456789abcdef-test"
PATIENCE_MS = 120_000


@contextlib.contextmanager
def serving(shown: ShownProject, access: Access) -> Iterator[str]:
    """Serve a dashboard from a thread, and yield its address; leaving ends it although streams are open."""
    server = DashboardServer(shown.project, access=access, retry=lambda items: _retried(shown.project, items))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 120
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < end, "the dashboard did not start"
        time.sleep(0.02)
    try:
        yield access.address
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive(), "the dashboard did not end"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=program("chromium"), args=["--no-sandbox"])
        yield one
        one.close()


class Watched:
    """A page, with what it complained of and which hosts it asked."""

    def __init__(self, browser, address: str, **options) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.asked: list[str] = []
        self.page.on("request", lambda one: self.asked.append(one.url))
        self.page.on("console", lambda one: self.complaints.append(one.text) if one.type == "error" else None)
        self.page.on("pageerror", lambda one: self.complaints.append(str(one)))
        self.page.on(
            "request", lambda one: None if one.url.startswith((address, "data:")) else self.foreign.append(one.url)
        )


@pytest.fixture
def opened(browser):
    pages = []

    def open_page(address: str, **options) -> Watched:
        one = Watched(browser, address, **options)
        pages.append(one)
        return one

    yield open_page
    for one in pages:
        one.context.close()


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_MS / 1000
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def tile(mosaic_id: int, tile_id: int, state: str) -> str:
    return f'a.tile.{state}[href="/tile/{mosaic_id}/{tile_id}"]'


def connected(page) -> None:
    page.wait_for_function(
        "() => document.querySelector('[hx-sse\\\\:connect]')?._htmx?.sse?.status === 200", polling=100
    )


def test_a_tile_appears_by_itself_and_opens_by_keyboard(shown, opened):
    shown.column(1, 1)
    with serving(shown, Access(port=free_port())) as address:
        watched = opened(address)
        page = watched.page
        page.goto(address)
        connected(page)
        assert page.locator(tile(1, 4, "missing")).count() == 1
        shown.ready(1, 2)
        shown.process(1, 4)
        page.wait_for_selector(tile(1, 4, "done"), state="attached")
        page.wait_for_function("() => document.querySelector('#column-1-2 image') !== null")
        assert page.locator("#caption-1").inner_text().startswith("mosaic 1, normal: 4 of 12 tiles")
        # keyboard only
        while not page.evaluate("() => document.activeElement.matches('svg.mosaic')"):
            page.keyboard.press("Tab")
        for key in ("ArrowDown", "ArrowRight", "ArrowDown", "ArrowDown"):
            page.keyboard.press(key)
        assert page.evaluate("() => document.activeElement.id") == "t-1-1-2"
        shown.process(1, 4, flags=["weak"])  # the focus stays where it was when the column is replaced
        page.wait_for_selector(tile(1, 4, "look"), state="attached")
        page.wait_for_function("() => document.activeElement.id === 't-1-1-2'")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('dialog[open] img.qc')?.naturalWidth > 0")
        assert "71.3 dB" in page.locator("dialog").inner_text()
        page.keyboard.press("Escape")
        assert page.locator("dialog[open]").count() == 0
        assert page.evaluate("() => document.body.scrollWidth <= window.innerWidth")
        assert watched.complaints == []
        assert watched.foreign == []


@pytest.mark.slow
def test_the_page_catches_up_after_a_restart_of_the_dashboard(shown, opened):
    shown.column(1, 1)
    access = Access(port=free_port())
    with serving(shown, access) as address:
        page = opened(address).page
        page.goto(address)
        connected(page)
    page.wait_for_selector("#connection .offline", state="visible")
    assert re.search(r"\d", page.locator("#offline-since").inner_text())
    shown.column(1, 2)
    with serving(shown, access):
        page.wait_for_selector(tile(1, 6, "done"), state="attached")
        page.wait_for_selector("#connection .offline", state="hidden")
        shown.process(1, 7)
        page.wait_for_selector(tile(1, 7, "done"), state="attached")


@pytest.mark.slow
def test_a_retry_asks_first(shown, opened):
    batch = shown.ready(1, 1)
    shown.process(1, 1)
    shown.process(1, 2)
    failed = shown.fail(1, 3, "cut file")
    shown.finish(batch)
    with serving(shown, Access(port=free_port(), token=TOKEN)) as address:
        page = opened(address).page
        page.goto(address)
        page.fill("input[name=token]", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#failures", state="attached")
        connected(page)
        questions = []

        def answer(yes: bool):
            def told(dialog):
                questions.append(dialog.message)
                dialog.accept() if yes else dialog.dismiss()

            return told

        button = page.get_by_role("button", name="Retry tile 3 of mosaic 1")
        page.once("dialog", answer(False))
        button.press("Enter")
        page.wait_for_timeout(500)
        assert shown.project.facts.has(batch, "processed")
        page.once("dialog", answer(True))
        button.press("Enter")
        page.wait_for_function("() => document.getElementById('message').textContent.includes('done again')")
        page.wait_for_function("() => document.getElementById('failures').textContent.includes('still to be done')")
        assert not shown.project.facts.has(batch, "processed")
        shown.process(1, 3)
        shown.project.facts.withdraw(failed, "failed", reason="a test")
        page.wait_for_function("() => document.getElementById('failures').textContent.includes('No failure')")
        assert len(questions) == 2
        assert "tile 3 of mosaic 1" in questions[0]


@pytest.mark.slow
@pytest.mark.parametrize("at_full_size", [False, True])
def test_stitched_maps_zoom_and_the_page_fits_a_phone(shown, opened, at_full_size):
    shown.column(1, 1)
    shown.stitch(1, zoom=at_full_size)
    with serving(shown, Access(port=free_port())) as address:
        watched = opened(address)
        page = watched.page
        page.goto(f"{address}/pictures/mosaic-001?show=mosaic_001_ori.jpg")
        page.wait_for_selector("#viewer[data-ready=yes] canvas")
        page.get_by_role("button", name="Zoom in").click()
        page.wait_for_function("() => Number(document.getElementById('viewer').dataset.zoom) > 1")
        assert any("/zoom/" in one and one.endswith(".jpg") for one in watched.asked) == at_full_size
        assert page.get_by_alt_text(re.compile("colour wheel")).is_visible()
        phone = opened(address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        phone.page.goto(f"{address}/?modality=ori")
        connected(phone.page)
        assert phone.page.evaluate("() => document.documentElement.scrollWidth") <= 390
        phone.page.locator(tile(1, 1, "done")).tap()
        phone.page.wait_for_selector("dialog[open] img.qc")
        box = phone.page.locator("dialog").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert watched.complaints + phone.complaints == []
        assert watched.foreign + phone.foreign == []


@pytest.mark.slow
@pytest.mark.parametrize(("key", "axes"), [("mosaic-001", "O3D"), ("sample", "normal_O3D")])
def test_volumes_are_drawn(shown, opened, key, axes):
    shown.column(1, 1)
    shown.stitch(1)
    shown.stitch_volumes(1)
    shown.stack_sample()
    with serving(shown, Access(port=free_port(), token=TOKEN)) as address:
        watched = opened(address)
        page = watched.page
        page.goto(address)
        page.fill("input[name=token]", TOKEN)
        page.keyboard.press("Enter")
        if key == "sample":
            page.get_by_role("link", name="the whole sample").click()
            page.wait_for_url("**/pictures/sample")
        page.get_by_role("link", name="volumes").first.click()
        page.wait_for_selector("#neuroglancer-container canvas")

        def share_of(colour) -> float:
            """The share of the pixels that are tissue of a grey or of a full colour."""
            with Image.open(io.BytesIO(page.screenshot())) as picture:
                pixels = np.asarray(picture.convert("RGB"), int)[120:]  # below the bars
            spread = pixels.max(-1) - pixels.min(-1)
            bright = pixels.max(-1) > 60
            return float((bright & (spread > 60 if colour else spread < 10)).mean())

        wait_until(lambda: share_of(colour=False) > 0.1)
        assert share_of(colour=True) < 0.02
        page.get_by_text(axes, exact=True).click()
        wait_until(lambda: share_of(colour=True) > 0.1)
        refused = [one for one in watched.complaints if "404" not in one]  # parts of a volume without a value
        assert refused == []
        assert watched.foreign == []


@pytest.mark.slow
def test_the_command_ends_when_it_is_asked_to_although_a_page_is_open(shown):
    command = [sys.executable, "-m", "opticstream", "dashboard", str(shown.file), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
            assert "read-only" in line
            with httpx.stream("GET", f"{address}/events", timeout=60) as answer:
                next(answer.iter_lines())
                process.send_signal(signal.SIGTERM)
                process.wait(60)
            assert process.stderr.read() == ""
        finally:
            process.kill()


@pytest.mark.slow
def test_a_wrong_use_of_the_command_is_one_line(shown, tmp_path):
    def told(*options: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "opticstream", "dashboard", str(shown.file), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stderr

    status, text = told("--host", "0.0.0.0")
    assert (status, text.count("\n")) == (2, 1)
    assert "--token-file" in text
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, text = told("--port", str(taken.getsockname()[1]))
    assert (status, text.count("\n")) == (2, 1)
    assert "--port" in text
