"""What the page says beside the pictures: the figures of tiles, the space on the disks, and what is being uploaded."""

from __future__ import annotations

import re
from collections import namedtuple
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from opticstream.model.chain import chain
from opticstream.model.ids import MosaicId, SliceId, TileId
from opticstream.pipeline.under_way import shown_under_way
from opticstream.web import app as app_module
from opticstream.web import board as board_module
from opticstream.web.app import create_app
from opticstream.web.board import Board
from opticstream.web.viewer import CLIENT, STYLE
from opticstream.web.views import Views

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def views(shown):
    return Views(Board(shown.project), may_retry=False)


def part(views, name):
    views.board.refresh()
    return unescape(views.get(None, "aip").parts()[name])


def test_pointing_at_a_tile_tells_its_state_its_figures_and_why_it_failed(shown, views):
    batch = shown.ready(1, 1)
    shown.ready(1, 2)
    with shown.project.facts.claim(batch):
        shown.process(1, 1)
        shown.process(1, 2, flags=["weak signal"])
        shown.fail(1, 3, "cut file")
        html = part(views, "mosaics")
    told = dict(re.findall(r'href="/tile/1/(\d+)"[^>]*aria-label="([^"]*)"', html))
    shown_on_hover = dict(re.findall(r'href="/tile/1/(\d+)"[^>]*><title>([^<]*)</title>', html))
    assert told == shown_on_hover  # the same for those who hear the page
    assert told["1"] == "tile 1: done; signal 71.3 dB; noise 50.0 dB; tissue 93%"
    assert told["2"].startswith("tile 2: done, worth a look; weak signal; signal 71.3 dB")
    assert told["3"] == "tile 3: failed; cut file"
    assert told["4"] == "tile 4: column waits for a worker"
    assert told["7"] == "tile 7: not complete at the rig yet"


def test_a_figure_that_was_not_measured_is_left_out(shown, views):
    tile = TileId(1, 1)
    shown.project.facts.record(tile, "processed", {"detail": {"figures": {"signal_db": None, "noise_db": 50.0}}})
    assert "<title>tile 1: done; noise 50.0 dB</title>" in part(views, "mosaics")


def test_a_disk_shows_its_space_and_the_time_until_it_is_full_at_the_present_rate(shown, views, monkeypatch):
    now, free = [1000.0], [800 * 10**9]
    monkeypatch.setattr(board_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(board_module.shutil, "disk_usage", lambda _place: Usage(10**12, 10**12 - free[0], free[0]))
    shown.process(1, 1)
    html = part(views, "disk")
    assert "project: 800 GB of 1.0 TB free " in html
    assert "archive" not in html  # on the same disk
    assert "full in" not in html
    assert 'class="bad"' not in html
    assert 'value="20"' in html
    for _ in range(10):  # 40 GB in ten minutes
        now[0] += 60
        free[0] -= 4 * 10**9
        html = part(views, "disk")
    assert "full in about 3 h at the present rate" in html
    assert "✕ 760 GB" in html  # it ends before the next day


def test_a_disk_that_is_nearly_full_has_a_sign_of_its_own(shown, views, monkeypatch):
    monkeypatch.setattr(board_module.shutil, "disk_usage", lambda _place: Usage(10**12, 95 * 10**10, 5 * 10**10))
    shown.process(1, 1)
    assert "✕ 50 GB of 1.0 TB free" in part(views, "disk")


def test_uploads_show_how_far_they_are_and_how_fast(shown, views):
    shown.column(1, 1)
    batch = shown.ready(1, 2)
    step = next(one for one in chain().of("batch") if one.uploads)
    assert "raw columns: 0 archived, 0 uploaded" in part(views, "uploads")
    shown.project.facts.record(batch, "archived")
    shown.project.facts.record(batch, "published")
    with (
        shown.project.facts.claim(batch, step.claim),
        shown_under_way(shown.project, batch, step, "lab", 200_000_000) as passed,
    ):
        passed(50_000_000)
        views.board._vitals_s = 0.0
        html = part(views, "uploads")
        done = re.search(r"↑ batch 2 of mosaic 1: (\d+) of 200 MB \((\d+) %\) at lab, [\d.]+ MB/s", html)
        assert done is not None
        assert f'<progress max="100" value="{done[2]}">' in html
    shown.project.facts.record(batch, "uploaded")
    html = part(views, "uploads")
    assert "raw columns: 1 archived, 1 uploaded" in html
    assert "↑" not in html


def test_the_strip_of_slices_shows_the_state_of_each_mosaic_and_of_the_registration(shown, views):
    for mosaic in (1, 2):
        shown.column(mosaic, 1)
        shown.stitch(mosaic)
    shown.project.facts.record(SliceId(1), "ready")
    shown.project.facts.record(SliceId(1), "registered")
    shown.column(3, 1)
    shown.project.facts.record(MosaicId(4), "failed", {"detail": {"reason": "no template"}})
    html = part(views, "slices")
    assert re.findall(r'href="/\?slice=(\d+)', html) == ["2", "1"]  # the latest comes first
    second, first = html.split("<li>")[1:]
    assert 'src="/preview/1.jpg?v=' in first
    assert 'title="mosaic 1, normal: stitched, 25 %"' in first
    assert 'title="registration: registered"' in first
    assert "25%" in second
    assert 'class="state failed" href="/pictures/mosaic-004"' in second
    assert "✕" in second  # a sign as well as a colour


def test_the_map_of_the_live_mosaic_can_be_chosen(shown, views):
    shown.column(1, 1)
    for name in ("aip", "ori"):
        views.board.refresh()
        html = unescape(views.get(None, name).parts()["mosaics"])
        assert re.search(rf'href="/strip/1/1/{name}\.jpg\?v=', html)
        assert re.search(rf'href="/\?slice=&modality={name}" aria-current="true"', html)
    assert "colour wheel" in html  # of directions only


def test_the_libraries_of_the_page_are_local_and_listed_with_their_licences(shown):
    static = Path(app_module.__file__).with_name("static")
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        listed = client.get("/static/LICENSES.txt").text
        for page in ("/", "/pictures/mosaic-001", "/v/mosaic-001/"):
            html = client.get(page).text
            addresses = re.findall(r'(?:src|href)="([^"#]+)"', html)
            assert addresses
            assert all(one.startswith(("/", "?")) and not one.startswith("//") for one in addresses), page
    libraries = [one.name for one in static.iterdir() if re.search(r"-\d+\.\d+", one.name)]
    assert len(libraries) == 4
    for name in libraries:
        library, version = re.match(r"(.+?)-(\d[\d.]*\d)", name).groups()
        assert version in listed, name
        assert library.split("-")[0].lower() in listed.lower(), name
    for licence in ("Zero-Clause BSD", "Redistribution and use in source and binary forms", "Apache License"):
        assert licence in listed


def test_browsers_keep_the_libraries_and_ask_whether_our_own_files_have_changed(shown):
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        for name in ("htmx-4.0.1.min.js", "openseadragon-6.1.1.min.js", f"{CLIENT}/{STYLE}"):
            assert "immutable" in client.get(f"/static/{name}").headers["cache-control"], name
        for name in ("dashboard.js", "dashboard.css", "LICENSES.txt"):
            answer = client.get(f"/static/{name}")
            assert answer.headers["cache-control"] == "no-cache", name
            again = client.get(f"/static/{name}", headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b""), name
        assert client.get("/").headers["cache-control"] == "no-store"


def test_the_page_is_dark_and_fits_a_phone(shown):
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        page, style = client.get("/").text, client.get("/static/dashboard.css").text
    assert '<meta name="color-scheme" content="dark">' in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "color-scheme: dark" in style
    assert "@media (max-width: 700px)" in style
