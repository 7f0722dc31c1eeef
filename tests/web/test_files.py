"""The dashboard sends pictures of the project's outputs and no other file, whatever it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from opticstream.model.errors import InputError
from opticstream.web.app import create_app
from opticstream.web.files import picture_path

JPEG = b"\xff\xd8\xff\xe0 a picture"


@pytest.fixture
def outside(tmp_path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "secret.jpg").write_bytes(JPEG)
    return folder


@pytest.fixture
def stitched(shown) -> Path:
    folder = shown.project.paths.base / "mosaic-01" / "stitched"
    folder.mkdir(parents=True)
    (folder / "map.jpg").write_bytes(JPEG)
    return folder


def test_pictures_of_outputs_are_sent(shown, stitched):
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        answer = client.get("/files/mosaic-01/stitched/map.jpg")
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, JPEG, "image/jpeg")


NO_OUTPUTS = (
    "../private/secret.jpg",
    "mosaic-01/stitched/../../../private/secret.jpg",
    "mosaic-01/stitched/..%2f..%2f..%2fprivate/secret.jpg",
    "%2e%2e/private/secret.jpg",
    "mosaic-01/stitched/..\\..\\..\\private\\secret.jpg",
    "/etc/passwd",
    "//etc/passwd",
    "archive:../private/secret.jpg",
    "archive:/etc/passwd",
    "archive:archive:../private/secret.jpg",
    "mosaic-01/state/batch-001.ready",
    "mosaic-01/complex/tile.jpg",
    "mosaic-01/stitched/.map.jpg",
    "mosaic-01/stitched/map.nii",
    "mosaic-01/stitched",
    "state/settings/picture.jpg",
    "map.jpg",
    "mosaic-01/stitched/map.jpg%00.png",
    "registeredelsewhere/map.jpg",
)


def test_no_other_name_is_served(shown, stitched, outside):
    for place in ("mosaic-01/complex", "mosaic-01/state", "state/settings", "registeredelsewhere"):
        folder = shown.project.paths.base / place
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("tile.jpg", "batch-001.ready", "picture.jpg", "map.jpg"):
            (folder / file).write_bytes(JPEG)
    (stitched / "map.nii").write_bytes(b"voxels")
    (shown.project.paths.base / "map.jpg").write_bytes(JPEG)
    with TestClient(create_app(shown.project), base_url="http://127.0.0.1") as client:
        for name in NO_OUTPUTS:
            answer = client.get(f"/files/{name}")
            assert answer.status_code == 404, name
            assert JPEG not in answer.content, name
            assert str(outside) not in answer.text, name


def test_links_out_of_the_outputs_are_refused(shown, stitched, outside):
    base = shown.project.paths.base
    (stitched / "link.jpg").symlink_to(outside / "secret.jpg")
    (stitched / "folder").symlink_to(outside)
    (base / "registered").symlink_to(outside)
    (base / "state").mkdir(exist_ok=True)
    (base / "state" / "flag.jpg").write_bytes(JPEG)
    (stitched / "inside.jpg").symlink_to(base / "state" / "flag.jpg")
    (stitched / "raw.jpg").symlink_to(stitched / "map.nii")
    (stitched / "map.nii").write_bytes(b"voxels")
    (stitched / "loop.jpg").symlink_to(stitched / "loop.jpg")
    for name in ("link", "folder/secret", "inside", "raw", "loop"):
        with pytest.raises(InputError):
            picture_path(shown.project.paths, f"mosaic-01/stitched/{name}.jpg")
    with pytest.raises(InputError, match="outside"):
        picture_path(shown.project.paths, "registered/secret.jpg")


def test_results_that_are_links_into_the_archive_are_sent(shown, stitched):
    derivative = shown.project.paths.derivative_folder
    derivative.mkdir(parents=True)
    (derivative / "mosaic_001_aip.jpg").write_bytes(JPEG)
    link = stitched / "mosaic_001_aip.jpg"
    link.symlink_to(os.path.relpath(derivative / "mosaic_001_aip.jpg", stitched))
    assert picture_path(shown.project.paths, "mosaic-01/stitched/mosaic_001_aip.jpg").read_bytes() == JPEG
    name = shown.project.paths.relative(derivative / "mosaic_001_aip.jpg")
    assert picture_path(shown.project.paths, name).read_bytes() == JPEG
