"""Volumes are shown by Neuroglancer, which gets the files of volumes and nothing else."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote, urlsplit

import pytest
from starlette.testclient import TestClient

from opticstream.model.errors import InputError
from opticstream.model.ids import MosaicId
from opticstream.web import Access
from opticstream.web.app import create_app
from opticstream.web.files import store_path
from opticstream.web.guard import CONTENT_POLICY
from opticstream.web.viewer import CLIENT, DECODERS, SCRIPTS, STYLE

STORE = "mosaic-01/stitched/mosaic_001_dBI.ome.zarr"


@pytest.fixture
def client(shown):
    shown.stitch(1)
    shown.stitch_volumes(1)
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as one:
        yield one


def state(client):
    answer = client.get("/volumes/mosaic-001", follow_redirects=False)
    assert answer.status_code == 303
    place = urlsplit(answer.headers["location"])
    assert place.path == "/v/mosaic-001/"
    return json.loads(unquote(place.fragment.removeprefix("!")))


def test_the_viewer_is_told_of_all_volumes_with_their_scale(client):
    told = state(client)
    assert told["dimensions"] == {"x": [1e-5, "m"], "y": [1e-5, "m"], "z": [2.5e-6, "m"]}
    assert [layer["name"] for layer in told["layers"]] == ["dBI", "O3D"]
    assert "range=[" in told["layers"][0]["shader"]
    assert "angle / 180" in told["layers"][1]["shader"]  # an axis has the colours of the wheel
    assert "colour wheel" in client.get("/v/mosaic-001/").text


def test_what_the_viewer_asks_for_is_there(client):
    source = urlsplit(state(client)["layers"][0]["source"].removesuffix("|zarr3:")).path
    about = client.get(source + "zarr.json").json()
    assert [axis["name"] for axis in about["attributes"]["ome"]["multiscales"][0]["axes"]] == ["z", "y", "x"]
    chunk = client.get(source + "0/c/0/0/0")
    assert "immutable" in chunk.headers["cache-control"]
    assert "content-encoding" not in chunk.headers
    index = client.get(source + "0/c/0/0/0", headers={"range": "bytes=-36"})  # the end of a shard says what is where
    assert (index.status_code, index.content) == (206, chunk.content[-36:])
    size = client.head(source + "0/c/0/0/0")
    assert int(size.headers["content-length"]) == len(chunk.content)
    assert client.get(source + "0/c/0/0/7").status_code == 404  # no value there


def test_volumes_of_the_earlier_format_are_sent_too(shown):
    shown.stitch_volumes(1, version="0.4")
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        source = state(client)["layers"][0]["source"]
        assert source.endswith("|zarr2:")
        for file in (".zattrs", "0/.zarray", "0/0/0/0"):
            assert client.get(urlsplit(source.removesuffix("|zarr2:")).path + file).status_code == 200, file


def test_a_mosaic_without_volumes_says_so(client, shown):
    answer = client.get("/volumes/mosaic-002")
    assert answer.status_code == 404
    assert "mosaic 2 has no volumes" in answer.text
    assert "/volumes/" not in client.get("/pictures/mosaic-002").text
    assert client.get("/volumes/slice-001").status_code == 404
    assert client.get("/v/nonsense/").status_code == 404


def test_finished_volumes_are_linked_from_the_mosaic(client):
    for page in ("/", "/pictures/mosaic-001"):
        assert 'href="/volumes/mosaic-001"' in client.get(page).text, page


def test_the_stacks_of_the_sample_are_shown_volumes_first(client, shown):
    assert client.get("/volumes/sample").status_code == 404
    shown.stack_sample()
    assert 'href="/volumes/sample"' in client.get("/pictures/sample").text
    answer = client.get("/volumes/sample", follow_redirects=False)
    place = urlsplit(answer.headers["location"])
    assert place.path == "/v/sample/"
    told = json.loads(unquote(place.fragment.removeprefix("!")))
    names = [layer["name"] for layer in told["layers"]]
    assert names == ["normal_dBI", "normal_O3D", "normal_ret"]  # vectors have no picture in grey
    assert ["angle / 180" in layer["shader"] for layer in told["layers"]] == [False, True, False]
    for layer in told["layers"]:
        source = urlsplit(layer["source"].removesuffix("|zarr3:")).path
        assert client.get(source + "zarr.json").status_code == 200
        assert client.get(source + "0/c/0/0/0").status_code == 200
    assert "Volumes of the sample" in client.get("/v/sample/").text


def test_a_slice_has_no_volumes_of_its_own(client):
    assert client.get("/volumes/slice-001").status_code == 404


def test_the_limits_of_grey_follow_from_the_volume(client, shown):
    low, high = map(float, re.search(r"range=\[([-\d.]+), ([-\d.]+)\]", state(client)["layers"][0]["shader"]).groups())
    tissue = shown._maps(MosaicId(1))["aip"]
    assert tissue.min() - 20 < low < high <= tissue.max() + 1
    assert high - low > 5


def test_only_decoders_may_make_functions_from_text(client):
    """They run as workers, and see nothing of a page."""
    for address in ("/v/mosaic-001/", "/volumes/mosaic-002", *(f"/static/{CLIENT}/{name}" for name in SCRIPTS)):
        assert client.get(address).headers["content-security-policy"] == CONTENT_POLICY, address
    for address in DECODERS:
        answer = client.get(address)
        assert answer.status_code == 200
        assert "'unsafe-eval'" in answer.headers["content-security-policy"]
    assert client.get(f"/static/{CLIENT}/{STYLE}").status_code == 200


def test_with_a_token_volumes_need_it(shown):
    shown.stitch_volumes(1)
    access = Access(token="0123456789abcdef-test")
    with TestClient(create_app(shown.project, access=access), base_url="http://127.0.0.1:8088") as client:
        for path in ("/volumes/mosaic-001", "/v/mosaic-001/", f"/volumes/1/{STORE}/zarr.json", "/events/mosaic-001"):
            assert client.get(path, follow_redirects=False).status_code == 401, path


NO_FILES_OF_VOLUMES = (
    f"{STORE}/secret",
    f"{STORE}/0/c/../../../../state/batch-001.ready",
    f"{STORE}/../../state/zarr.json",
    f"{STORE}/0/c/0/0",
    f"{STORE}/0/c/0/0/0/0",
    f"{STORE}//zarr.json",
    f"{STORE}",
    "mosaic-01/stitched/mosaic_001_aip.jpg",
    "mosaic-01/state/x.ome.zarr/zarr.json",
    "mosaic-01/stitched/.x.ome.zarr/zarr.json",
    "mosaic-01/stitched/../state/x.ome.zarr/zarr.json",
    "/etc/x.ome.zarr/zarr.json",
    "archive:../x.ome.zarr/zarr.json",
    "state/x.ome.zarr/zarr.json",
)


@pytest.mark.parametrize("name", NO_FILES_OF_VOLUMES)
def test_no_other_name_is_a_file_of_a_volume(shown, name):
    shown.stitch_volumes(1)
    for place in ("mosaic-01/state/x.ome.zarr", "mosaic-01/stitched/.x.ome.zarr", "state/x.ome.zarr", STORE):
        folder = shown.project.paths.base / place
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("zarr.json", "secret"):
            (folder / file).write_text("{}")
    with pytest.raises(InputError):
        store_path(shown.project.paths, name)


def test_links_out_of_a_volume_are_refused(shown, tmp_path):
    shown.stitch_volumes(1)
    base = shown.project.paths.base
    outside = tmp_path / "private.ome.zarr"
    outside.mkdir()
    (outside / "zarr.json").write_text("{}")
    store = base / STORE
    (store / "zarr.json").unlink()
    (store / "zarr.json").symlink_to(outside / "zarr.json")
    (store / "0" / "zarr.json").unlink()
    (store / "0" / "zarr.json").symlink_to(base / "state")
    (base / "mosaic-01" / "stitched" / "link.ome.zarr").symlink_to(outside)
    for name in (f"{STORE}/zarr.json", f"{STORE}/0/zarr.json", "mosaic-01/stitched/link.ome.zarr/zarr.json"):
        with pytest.raises(InputError):
            store_path(shown.project.paths, name)


def test_volumes_that_are_links_into_the_archive_are_sent(shown):
    shown.stitch_volumes(1)
    store = shown.project.paths.base / STORE
    kept = shown.project.paths.derivative_folder / store.name
    kept.parent.mkdir(parents=True)
    store.rename(kept)
    store.symlink_to(kept)
    assert store_path(shown.project.paths, f"{STORE}/0/zarr.json") == (kept / "0" / "zarr.json").resolve()
