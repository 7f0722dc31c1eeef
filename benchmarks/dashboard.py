"""The dashboard on a project of months: how long it takes to open, and what it costs while it is open.

``python benchmarks/dashboard.py``: a project of 100 slices x 2 mosaics x 600 tiles, all processed and stitched except
for the last mosaic, of which half is done, with the small pictures of the pipeline. Printed are the seconds and
processor seconds from the command to the line with the address; from there to the page with all the pictures that it
shows (in Chromium if there is one, else without its pictures), and until all slices were read; and the processor time
of the server with five pages open: idle, and while a tile is recorded every second, with the delay from flag to page.
Seconds of a busy machine say little; processor seconds do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np

from opticstream.io.atomic import write_bytes
from opticstream.io.encoded_pictures import SMALL_PX, small_picture
from opticstream.io.tile_thumbnail import thumbnail_path, thumbnail_size, tile_thumbnail, write_strips
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId
from opticstream.state.flags import flag_path
from opticstream.state.record import FactRecord
from opticstream.testing.shown_project import FIGURES, ShownProject

COLUMNS, ROWS, TILE_PX = 30, 20, (350, 350)
PAGES = 5


def processor_s(pid: int) -> float:
    """Return the processor time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_flag(base: Path, item: ItemId, fact: str, **detail: object) -> None:
    """Write a flag as it is, without waiting for the disk."""
    path = base / flag_path(item, fact)
    record = FactRecord(item, fact, datetime.now(UTC), "host", 1, detail=detail)
    path.write_bytes(record.to_bytes())


def fill(shown: ShownProject, slices: int) -> None:
    """Record everything up to the middle of the last mosaic, with the maps of the last slice's first one."""
    base = shown.project.paths.base
    (base / "state").mkdir(parents=True, exist_ok=True)
    for slice_id in range(1, slices + 1):
        for mosaic in shown.layout.mosaics(SliceId(slice_id)):
            (base / mosaic.folder / "state" / "tiles").mkdir(parents=True)
            last = mosaic.mosaic_id == 2 * slices
            for batch in shown.layout.batches(mosaic)[: COLUMNS // 2 if last else None]:
                fill_column(shown, base, batch)
            if not last:
                for fact in ("ready", "started", "stitched"):
                    write_flag(base, mosaic, fact)
        if slice_id < slices:
            for fact in ("ready", "started", "registered"):
                write_flag(base, SliceId(slice_id), fact)
    for slice_id in range(1, slices):  # as old as they would be: a slice takes hours
        then = time.time() - 3 * 3600 * (slices - slice_id)
        for mosaic in shown.layout.mosaics(SliceId(slice_id)):
            for folder in (base / mosaic.folder / "state", base / mosaic.folder / "state" / "tiles"):
                os.utime(folder, (then, then))
    random = np.random.default_rng(1)
    image = random.normal(70, 5, TILE_PX).astype(np.float32)
    thumbnail = tile_thumbnail({"aip": image, "ret": image / 2, "ori": image}, noise_db=FIGURES["noise_db"])
    preview = small_picture(random.integers(0, 255, (SMALL_PX, SMALL_PX, 3), np.uint8))
    for number in range(1, 2 * slices + 1):
        for name in ("aip", "ret", "ori") if number < 2 * slices else ():
            write_bytes(shown.project.paths.mosaic_thumbnail(MosaicId(number), name), preview)
        if number < 2 * slices - 1:
            continue
        for batch in shown.layout.batches(MosaicId(number))[: COLUMNS // 2 if number == 2 * slices else None]:
            tiles = shown.layout.tiles(batch)
            for tile in tiles:
                write_bytes(thumbnail_path(base, tile), thumbnail)
            write_strips(base, batch, tiles, thumbnail_size(*TILE_PX))


def fill_column(shown: ShownProject, base: Path, batch: BatchId) -> None:
    notes = {}
    for tile in shown.layout.tiles(batch):
        write_flag(base, tile, "processed", figures=FIGURES, flags=[], raw_bytes=1_000_000_000)
        notes[str(tile.tile_id)] = {"outcome": "ok", "figures": FIGURES, "flags": []}
    for fact in ("ready", "started", "archived"):
        write_flag(base, batch, fact)
    write_flag(base, batch, "processed", tiles=notes, failed_tiles=[])


_OPENED = 4
"""How often the page is opened with its pictures: once while the project is read, and then by other browsers."""


class Page(threading.Thread):
    """Reads a stream of changes as an open page does, and notes when each tile was heard of."""

    def __init__(self, address: str, since: str) -> None:
        super().__init__(daemon=True)
        self._url = f"{address}/events?since={since}"
        self.heard: dict[int, float] = {}

    def run(self) -> None:
        with httpx.stream("GET", self._url, timeout=None) as answer:
            for line in answer.iter_lines():
                for number in re.findall(r'class="tile done" href="/tile/\d+/(\d+)"', line):
                    self.heard.setdefault(int(number), time.time())


@contextlib.contextmanager
def browser() -> Iterator[Callable[[str], object]]:
    """Yield what opens an address with all its pictures: Chromium that runs already; without it a plain request."""
    program = shutil.which("chromium")
    if program is None:
        yield lambda address: httpx.get(address, timeout=300).raise_for_status()
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        pages = [chromium.new_context().new_page() for _ in range(_OPENED)]  # each keeps nothing of the others
        for page in pages:
            page.goto("about:blank")
        yield lambda address: pages.pop().goto(address, wait_until="load", timeout=300_000)
        chromium.close()


def measure(slices: int, idle_s: float, tiles: int, folder: Path) -> None:
    shown = ShownProject(folder, columns=COLUMNS, rows=ROWS, tile_px=TILE_PX, name="benchmark")
    began = time.perf_counter()
    fill(shown, slices)
    print(f"load average {os.getloadavg()[0]:.0f}; project written in {time.perf_counter() - began:.0f} s", flush=True)
    command = [sys.executable, "-m", "opticstream", "dashboard", str(shown.file), "--port", "0"]
    with contextlib.ExitStack() as stack:
        with browser() as open_page:
            began = time.perf_counter()
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.callback(server.wait)
            stack.callback(server.terminate)
            assert server.stdout is not None
            address = server.stdout.readline().split()[1]
            measure_opening(server, address, open_page, began)
        measure_open(shown, server, address, mosaic=MosaicId(2 * slices), idle_s=idle_s, tiles=tiles)


def measure_opening(
    server: subprocess.Popen[str], address: str, open_page: Callable[[str], object], began: float
) -> None:
    took, used = time.perf_counter() - began, processor_s(server.pid)
    print(f"command to address: {took:.2f} s, {used:.2f} processor s")
    open_page(address)
    opened, more = time.perf_counter() - began, processor_s(server.pid) - used
    print(f"address to the page with its pictures: {opened - took:.2f} s, {more:.2f} processor s of the server")
    while "Reading the facts" in httpx.get(address, timeout=300).text:
        time.sleep(0.05)
    told = f"{time.perf_counter() - began:.2f} s, {processor_s(server.pid):.2f} processor s"
    print(f"command until all slices are read: {told}", flush=True)
    for _ in range(_OPENED - 1):
        time.sleep(5)
        began, used = time.perf_counter(), processor_s(server.pid)
        open_page(address)
        took, more = time.perf_counter() - began, processor_s(server.pid) - used
        print(f"the page with its pictures in another browser: {took:.2f} s, {more:.2f} processor s of the server")


def measure_open(
    shown: ShownProject, server: subprocess.Popen[str], address: str, *, mosaic: MosaicId, idle_s: float, tiles: int
) -> None:
    began = time.perf_counter()
    page = httpx.get(address, timeout=300).raise_for_status()
    print(f"a page again: {time.perf_counter() - began:.2f} s, {len(page.content) / 1e3:.0f} kB")
    since = re.search(r"since=([\w.]+)", page.text)
    assert since is not None
    pages = [Page(address, since[1]) for _ in range(PAGES)]
    for one in pages:
        one.start()
    time.sleep(60)  # the quality flags of all results are read by and by
    before = processor_s(server.pid)
    time.sleep(idle_s)
    used = processor_s(server.pid) - before
    print(f"idle, {PAGES} pages: {100 * used / idle_s:.2f} % of a core over {idle_s:.0f} s")
    open_columns = shown.layout.batches(mosaic)[COLUMNS // 2 :]
    waiting = [tile for batch in open_columns for tile in shown.layout.tiles(batch)][:tiles]
    recorded = {}
    before, began = processor_s(server.pid), time.perf_counter()
    for tile in waiting:
        content = {"detail": {"figures": FIGURES, "flags": [], "raw_bytes": 1_000_000_000}}
        shown.project.facts.record(tile, "processed", content)
        recorded[tile.tile_id] = time.time()
        time.sleep(1)
    time.sleep(2)
    used, took = processor_s(server.pid) - before, time.perf_counter() - began
    delays = [one.heard[n] - then for one in pages for n, then in recorded.items() if n in one.heard]
    lost = PAGES * len(recorded) - len(delays)
    print(f"live, {len(recorded) / took:.1f} tiles per s, {PAGES} pages: {100 * used / took:.1f} % of a core")
    print(f"flag to page: median {statistics.median(delays):.2f} s, longest {max(delays):.2f} s; {lost} not heard of")
    memory = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text())
    assert memory is not None
    print(f"memory: {int(memory[1]) / 1024:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of the idle measurement")
    parser.add_argument("--tiles", type=int, default=30, help="tiles of the live measurement, one a second")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(chosen.slices, chosen.idle, chosen.tiles, Path(folder))


if __name__ == "__main__":
    main()
