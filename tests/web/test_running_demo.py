"""The page in a real browser while a demo runs: what an operator sees of a rig, from the first tile to the volumes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.services import program

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1800)]
PATIENCE_S = 900


@contextmanager
def started(arguments: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of ours beside the test; it ends with it."""
    with log.open("ab") as file:
        command = [sys.executable, "-m", "opticstream", *arguments]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(holds, process: subprocess.Popen[bytes], log: Path):
    end = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert process.poll() in (None, 0), log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    return found


def done_tiles(page) -> int:
    return page.locator("a.tile.done, a.tile.look, a.tile.bad").count()


def test_the_page_shows_a_running_demo_from_its_first_tile_to_its_volumes(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "OPTICSTREAM_"))}
    environment["OPTICSTREAM_HOME"] = str(tmp_path / "home")
    out = tmp_path / "demo"
    said, shown = tmp_path / "demo.log", tmp_path / "page.log"
    arguments = ["demo", "--out", str(out), "--slices", "1"]
    with started(arguments, said, environment) as demo, sync_playwright() as playwright:
        file = until(lambda: next(out.rglob("project.toml"), None), demo, said)
        browser = playwright.chromium.launch(executable_path=program("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_S * 1000)
        port = ""

        def opened_again() -> Iterator[subprocess.Popen[bytes]]:
            return started(["dashboard", str(file), "--port", port or "0"], shown, environment)

        with opened_again() as server:
            address = until(lambda: re.search(r"http://127\.0\.0\.1:(\d+)", shown.read_text()), server, shown)
            port = address[1]
            page.goto(address[0])
            first = until(lambda: done_tiles(page), demo, said)
            seen = until(lambda: (more := done_tiles(page)) > first and more, demo, said)
        with opened_again() as server:  # the page's server was killed; the open page finds the next one by itself
            until(lambda: done_tiles(page) > seen or demo.poll() == 0, demo, said)
            assert demo.wait(PATIENCE_S) == 0, said.read_text()
            page.wait_for_function("() => document.querySelectorAll('a.tile.waiting, a.tile.missing').length === 0")
            page.goto(f"{address[0]}/volumes/mosaic-001")
            page.wait_for_function("() => document.querySelector('canvas') !== null")
            page.screenshot(path=str(tmp_path / "volumes.png"))
            assert server.poll() is None
        browser.close()
