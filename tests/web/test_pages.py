"""What the page shows follows from the facts, and only what has changed is sent again."""

from __future__ import annotations

import io
import json
import re
import time

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from opticstream.cli.dashboard import _retried
from opticstream.io.paths import LOOK_DESCRIPTION, look_folder, look_picture, strip_path
from opticstream.io.tile_thumbnail import thumbnail_path
from opticstream.model.events import BatchReady
from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.pipeline.arriving import note_arriving
from opticstream.web import Access
from opticstream.web.app import create_app
from opticstream.web.board import Board
from opticstream.web.views import Views

TOKEN = "0123456789abcdef-test"


@pytest.fixture
def views(shown):
    return Views(Board(shown.project), may_retry=False)


def refreshed(views):
    views.board.refresh()
    return views


def ids_in(html):
    """The ids of the parts, without what lies inside them."""
    return set(re.findall(r'<\w+ id="([^"]+)" hx-swap-oob', html))


def states(html):
    return dict(re.findall(r'<a id="t-\d+-\d+-\d+" class="tile (\w+)" href="/tile/\d+/(\d+)"', html))


def test_an_empty_project_says_what_to_do(shown):
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        page = client.get("/").text
    assert "No tile yet" in page
    assert "opticstream watch" in page


def test_every_state_of_a_tile_has_its_sign(shown, views):
    batch = shown.ready(1, 1)
    shown.ready(1, 2)
    with shown.project.facts.claim(batch):
        shown.process(1, 1)
        shown.fail(1, 2, "cut")
        shown.process(1, 4, flags=["blank"])
        html = refreshed(views).get(None, "aip").parts()["mosaics"]
    found = {number: state for state, number in re.findall(r'class="tile (\w+)" href="/tile/1/(\d+)"', html)}
    assert [found[str(n)] for n in (1, 2, 3, 4, 5, 7)] == ["done", "failed", "working", "look", "waiting", "missing"]
    for state in ("failed", "working", "look", "waiting", "missing"):
        assert f'<symbol id="s-{state}"' in html
        assert f'<use href="#s-{state}"' in html


def test_tiles_lie_where_the_stage_was(shown, views):
    shown.column(1, 1)
    html = refreshed(views).get(None, "aip").parts()["mosaics"]
    for tile_id, (column, row) in {1: (0, 0), 3: (0, 2), 4: (1, 2), 6: (1, 0)}.items():
        assert re.search(rf'id="t-1-{column}-{row}" class="tile \w+" href="/tile/1/{tile_id}"', html)


def test_only_the_column_of_a_new_tile_is_sent(shown, views):
    shown.column(1, 1)
    view = refreshed(views).get(None, "aip")
    _, version = view.since(-1)
    shown.process(1, 4)
    views.board.refresh()
    html, version = view.since(version)
    assert {"column-1-2", "caption-1", "summary"} <= ids_in(html)
    assert not {"column-1-1", "column-1-3", "mosaics", "failures"} & ids_in(html)
    assert view.since(version)[0] == ""


def test_a_page_of_an_earlier_server_gets_everything(shown, views):
    shown.column(1, 1)
    view = refreshed(views).get(None, "aip")
    assert views.version_seen(f"00000000.{views.board.version}") == -1
    assert views.version_seen("nonsense") == -1
    assert views.version_seen(views.event_id(7)) == 7
    assert {"mosaics", "summary", "slices", "failures", "flagged", "uploads", "disk"} <= ids_in(view.since(-1)[0])


def test_the_page_follows_the_rig_to_the_next_slice_unless_a_slice_is_chosen(shown, views):
    shown.column(1, 1)
    follows, chosen = refreshed(views).get(None, "aip"), views.get(SliceId(1), "aip")
    versions = [view.since(-1)[1] for view in (follows, chosen)]
    shown.ready(3, 1)
    views.board.refresh()
    html = follows.since(versions[0])[0]
    assert "mosaics" in ids_in(html)
    assert "Slice 2" in html
    html = chosen.since(versions[1])[0]
    assert "mosaics" not in ids_in(html)
    assert "slices" in ids_in(html)


def test_messages_are_shown_as_text(shown):
    shown.fail(1, 1, "<script>alert(1)</script> & co")
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        for path in ("/", "/tile/1/1"):
            page = client.get(path).text
            assert "<script>alert" not in page
            assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in page


def test_flagged_results_and_failures_are_listed(shown, views):
    batch = shown.ready(1, 1)
    shown.process(1, 1, flags=["saturated: 3 %"])
    shown.process(1, 2)
    shown.fail(1, 3, "cut file")
    shown.finish(batch)
    shown.stitch(1, doubts=["seams do not fit"])
    parts = refreshed(views).get(None, "aip").parts()
    assert "tile 1 of mosaic 1</a>: saturated: 3 %" in parts["flagged"]
    assert "mosaic 1</a>: seams do not fit" in parts["flagged"]
    assert "tile 3 of mosaic 1" in parts["failures"]
    assert "cut file" in parts["failures"]
    shown.project.facts.withdraw(MosaicId(1), "stitched", reason="a test")
    assert "seams" not in refreshed(views).get(None, "aip").parts()["flagged"]


def test_throughput_lag_and_finish_follow_from_the_facts(shown, views):
    shown.column(1, 1)
    shown.ready(1, 2)
    vitals = refreshed(views).board.vitals
    assert vitals.per_minute == 3
    assert vitals.waiting_columns == 1
    assert vitals.lag_s is not None
    assert vitals.finish_s == pytest.approx(60 * 21 / 3, abs=5)  # two mosaics of 12 tiles, 3 of which are done
    assert sum(vitals.histogram) == 3


def test_tiles_that_have_come_before_their_column_count_as_waiting(shown, views):
    project, batch = shown.project, BatchId(1, 1)
    files = {tile.tile_id: f"{tile.tile_id}.nii" for tile in project.layout.tiles(batch)[:2]}
    shown.column(1, 2)  # the slice has begun
    note_arriving(project, project.event(BatchReady, batch, raw_folder="/rig", files=files), now=time.time() - 40)
    vitals = refreshed(views).board.vitals
    assert vitals.waiting_tiles == 2
    assert vitals.lag_s is not None
    assert vitals.lag_s >= 30
    assert "2 tiles to do" in refreshed(views).get(None, "aip").parts()["summary"]


def test_a_tile_that_waits_shows_its_first_look_and_says_so(shown):
    shown.column(1, 2)
    folder = look_folder(shown.project.paths.base, TileId(1, 1))
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        assert "first look" not in client.get("/tile/1/1").text
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(look_picture(shown.project.paths.base, TileId(1, 1)))
        (folder / LOOK_DESCRIPTION).write_text(json.dumps({"figures": {"signal_db": 67.9}, "flags": ["faint"]}))
        page = client.get("/tile/1/1").text
        assert "a first look" in page
        assert "67.9 dB" in page
        assert "faint" in page
        picture = client.get(re.search(r'<img class="qc" src="([^"]+)"', page)[1].replace("&amp;", "&"))
        assert picture.headers["content-type"] == "image/jpeg"


def test_a_tile_shows_its_picture_and_figures(shown):
    shown.process(1, 1, flags=["weak"])
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        page = client.get("/tile/1/1").text
        assert "71.3 dB" in page
        assert "weak" in page
        picture = client.get(re.search(r'<img class="qc" src="([^"]+)"', page)[1].replace("&amp;", "&"))
        assert Image.open(io.BytesIO(picture.content)).format == "JPEG"
        assert "<html" not in client.get("/tile/1/1", headers={"hx-request": "true"}).text
        assert client.get("/tile/1/99").status_code == 404
        assert client.get("/tile/0/1").status_code == 422


def test_a_strip_shows_the_tiles_of_a_column_from_the_top(shown):
    shown.column(1, 1)
    shown.column(1, 2)
    shown.fail(1, 7, "cut")
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        page = client.get("/").text
        address = re.search(r'href="(/strip/1/2/aip.jpg\?v=\w+)"', page)[1]
        answer = client.get(address)
        assert "immutable" in answer.headers["cache-control"]
        strip = np.asarray(Image.open(io.BytesIO(answer.content)).convert("L"), float)
        assert "/strip/1/3/" not in page  # nothing to be seen there
        assert client.get("/strip/1/9/aip.jpg").status_code == 404
        assert client.get("/strip/1/1/passwd.jpg").status_code == 404
    tiles = [shown.maps(TileId(1, t))["aip"].T for t in (6, 5, 4)]  # the second column runs upwards
    wanted = np.concatenate([np.asarray(Image.fromarray(t).resize((72, 60))) for t in tiles])
    assert strip.shape == wanted.shape
    assert np.corrcoef(strip.ravel(), wanted.ravel())[0, 1] > 0.95


def test_stitched_maps_are_listed_with_their_legend(shown):
    shown.stitch(1, doubts=["seams do not fit"])
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        page = client.get("/pictures/mosaic-001?show=mosaic_001_ori.jpg").text
        assert "colour wheel" in page
        assert "seams do not fit" in page
        shown_now = re.search(r'data-picture="(/files/[^"?]+)', page)[1]
        assert shown_now.endswith("mosaic_001_ori.jpg")
        assert client.get(shown_now).status_code == 200
        assert Image.open(io.BytesIO(client.get("/preview/1.jpg").content)).size[0] <= 160
        assert "not stitched yet" in client.get("/pictures/mosaic-002").text
        assert client.get("/pictures/nothing-1").status_code == 404


def test_a_large_mosaic_is_shown_at_full_size_part_by_part(shown):
    shown.stitch(1, zoom=True)
    shown.stitch(2)
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        page = client.get("/pictures/mosaic-001?show=mosaic_001_ori.jpg").text
        address = re.search(r'data-zoomable="([^"]+)\.dzi"', page)[1]
        about = client.get(f"{address}.dzi")
        assert 'Width="192" Height="120"' in about.text
        tile = client.get(f"{address}_files/8/0_0.jpg")
        assert "immutable" in tile.headers["cache-control"]
        assert Image.open(io.BytesIO(tile.content)).size == (192, 120)
        for wrong in ("_files/8/9_9.jpg", "_files/8/..%2f..%2fx.jpg", ".szi", "_files/8/0_0.png"):
            assert client.get(f"{address}{wrong}").status_code == 404, wrong
        assert client.get("/zoom/1/2/aip.dzi").status_code == 404
        assert "data-zoomable" not in client.get("/pictures/mosaic-002").text


def test_the_small_picture_of_a_mosaic_is_that_of_the_pipeline(shown, tmp_path):
    shown.stitch(1)
    made = shown.project.paths.mosaic_thumbnail(MosaicId(1), "aip")
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        assert client.get("/preview/1.jpg").content == made.read_bytes()
        made.unlink()  # a project of an earlier version
        assert Image.open(io.BytesIO(client.get("/preview/1.jpg").content)).size == (160, 100)
        (tmp_path / "private.jpg").write_bytes(b"private")
        made.symlink_to(tmp_path / "private.jpg")
        assert client.get("/preview/1.jpg").content != b"private"


def test_a_strip_is_kept_by_browsers_only_under_the_stamp_that_it_has(shown):
    shown.column(1, 1)
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        address = re.search(r'href="(/strip/1/1/aip.jpg\?v=\w+)"', client.get("/").text)[1]
        assert "immutable" in client.get(address).headers["cache-control"]
        for other in ("", "?v=", "?v=0123456789ab"):
            assert client.get(f"/strip/1/1/aip.jpg{other}").headers["cache-control"] == "no-store"


def test_the_strip_of_a_column_that_is_done_is_that_of_the_pipeline(shown):
    shown.column(1, 1)
    made = strip_path(shown.project.paths.base, BatchId(1, 1), "aip")
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        assert client.get("/strip/1/1/aip.jpg").content == made.read_bytes()


def test_a_tile_that_is_processed_again_is_shown_as_it_is_now(shown):
    shown.column(1, 1)
    made = strip_path(shown.project.paths.base, BatchId(1, 1), "aip")
    tile = shown.process(1, 2)
    path = thumbnail_path(shown.project.paths.base, tile)
    with Image.open(path) as picture:
        size, names = picture.size, picture.info["comment"]
    Image.new("RGB", size, (255, 255, 255)).save(path, comment=names)
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        content = client.get("/strip/1/1/aip.jpg").content
    assert content != made.read_bytes()
    strip = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    assert strip[70:110].min() > 200
    assert strip[:50].mean() < 200


def test_strips_are_put_together_from_thumbnails(shown):
    for tile in (1, 2, 3):
        shown.process(1, tile)
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        address = re.search(r'href="(/strip/1/1/aip.jpg\?v=\w+)"', client.get("/").text)[1]
        for tile in shown.layout.tiles(BatchId(1, 1)):
            shown.project.paths.tile_product(tile, "aip").unlink()  # the maps may have been removed since
        strip = np.asarray(Image.open(io.BytesIO(client.get(address).content)).convert("L"))
    assert strip.std() > 10


def test_projects_of_earlier_versions_are_drawn_from_their_maps(shown):
    shown.column(1, 1)
    for tile in shown.layout.tiles(BatchId(1, 1)):
        thumbnail_path(shown.project.paths.base, tile).unlink()
    strip_path(shown.project.paths.base, BatchId(1, 1), "aip").unlink()
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        strip = np.asarray(Image.open(io.BytesIO(client.get("/strip/1/1/aip.jpg").content)).convert("L"))
    assert strip.std() > 10


def test_a_retry_withdraws_the_failure_as_the_command_does(shown):
    batch = shown.ready(1, 1)
    for number in (1, 2):
        shown.process(1, number)
    tile = shown.fail(1, 3, "cut file")
    shown.finish(batch)
    project = shown.project
    app = create_app(project, access=Access(token=TOKEN), retry=lambda items: _retried(project, items))
    with TestClient(app, base_url="http://127.0.0.1:8088") as client:
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert "Retry all" in client.get("/", headers=headers).text
        answer = client.post("/retry", data={"item": tile.key}, headers=headers)
        assert "will be done again" in answer.text
        assert client.post("/retry", data={"item": "nonsense"}, headers=headers).status_code == 404
        app.state.dashboard.board.refresh()
        page = client.get("/", headers=headers).text
        assert "its column is still to be done" in page
        assert "Retry tile 3" not in page
    assert not project.facts.has(BatchId(1, 1), "processed")
    assert project.facts.has(TileId(1, 1), "processed")


def test_a_damaged_record_hides_nothing_else(shown, views):
    shown.process(1, 1)
    shown.process(1, 2)
    shown.project.facts.path(TileId(1, 1), "processed").write_text("{")
    html = refreshed(views).get(None, "aip").parts()["mosaics"]
    assert re.search(r'class="tile done" href="/tile/1/2"', html)


def test_the_page_says_when_the_facts_cannot_be_read(shown, monkeypatch):
    shown.process(1, 1)
    app = create_app(shown.project)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        board, look = app.state.dashboard.board, app.state.dashboard.board.watch.look

        def fail(_wanted):
            raise OSError(5, "Input/output error", "project")

        def wait_for(problem):
            end = time.monotonic() + 120
            while board.problem != problem:
                assert time.monotonic() < end
                time.sleep(0.02)

        monkeypatch.setattr(board.watch, "look", fail)
        wait_for("OSError: [Errno 5] Input/output error: 'project'")
        page = client.get("/").text
        assert "Input/output error" in page
        assert 'class="tile done"' in page  # what was known stays
        monkeypatch.setattr(board.watch, "look", look)
        wait_for("")
        assert "Input/output error" not in client.get("/").text
