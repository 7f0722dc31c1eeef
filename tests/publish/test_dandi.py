"""Targets of kind `dandi` and `linc` without the client: digests, settings, messages, and the process around it."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings
from opticstream.config.publish_targets import DandiTargetSettings, LincTargetSettings, PublishSettings
from opticstream.model.errors import ConfigurationError, InputError, TargetUnavailable, UploadError
from opticstream.publish import archive_digests
from opticstream.publish.archive_digests import archive_part_size, depth_of, etag_of_file, md5_of_file
from opticstream.publish.dandi import open_target
from opticstream.publish.dandi_client import ClientError
from opticstream.publish.dandi_environment import client_python
from opticstream.publish.opening import open_remote_target
from opticstream.publish.pace import Pace
from opticstream.publish.patience import Patience
from opticstream.publish.target import LocalFile, LocalStore
from opticstream.state.record import sha256_of_path

QUICK = Patience(total_s=5.0, first_s=0.01, longest_s=0.1)
VERSIONS = {"client": "0.81.0", "schema": "0.8.0", "archive_schema": "0.7.0"}


@pytest.fixture(autouse=True)
def _no_client_of_this_host(monkeypatch):
    for name in ("OPTICSTREAM_DANDI_PYTHON", "OPTICSTREAM_LINC_PYTHON"):
        monkeypatch.delenv(name, raising=False)


def local(path: Path, data: bytes, key: str = "a.nii.gz") -> LocalFile:
    path.write_bytes(data)
    return LocalFile(path, key, len(data), sha256_of_path(path))


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def target_with(answer, tmp_path, kind="dandi", key="the-key", patience=QUICK):
    """Return a target whose client answers as a function says."""
    settings = (DandiTargetSettings if kind == "dandi" else LincTargetSettings)(dandiset="000123")
    target = open_target(settings, key, patience, deployment=DeploymentSettings(home=tmp_path))

    def ask(request, **_options):
        found = answer(request)
        if isinstance(found, Exception):
            raise found
        return found

    target._client.ask = ask
    return target


def failure(kind: str, why: str, status: int | None = None, **versions: str) -> ClientError:
    return ClientError({"kind": kind, "why": why, "status": status}, {**VERSIONS, **versions})


def test_the_etag_is_that_of_the_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_digests, "_PART_SIZE", 3 * 2**20)
    data = os.urandom(3 * 2**20) + os.urandom(3 * 2**20) + b"rest"
    parts = [data[: 3 * 2**20], data[3 * 2**20 : 6 * 2**20], b"rest"]
    file = local(tmp_path / "a", data)
    assert etag_of_file(file) == f"{md5(b''.join(map(md5, parts))).hex()}-3"
    assert md5_of_file(file) == md5(data).hex()
    assert etag_of_file(local(tmp_path / "b", b"small")) == f"{md5(md5(b'small')).hex()}-1"


def test_parts_are_so_large_that_there_are_never_too_many():
    assert archive_part_size(1) == archive_part_size(9_999 * 2**26) == 2**26
    for size in (10_000 * 2**26, 2 * 10**12):
        assert -(-size // archive_part_size(size)) <= 10_000


def test_a_file_that_is_not_the_one_of_its_record_has_no_digest(tmp_path):
    file = local(tmp_path / "a", b"abc")
    file.path.write_bytes(b"abd")
    for digest in (etag_of_file, md5_of_file):
        with pytest.raises(InputError, match="its record says"):
            digest(file)


def test_the_depth_of_a_store_is_that_of_its_folders():
    assert depth_of(["zarr.json"]) == 0
    assert depth_of(["zarr.json", "0/c/1/2/3/4/5"]) == 6


def test_each_kind_has_its_settings():
    publish = PublishSettings.model_validate(
        {"targets": [
            {"kind": "dandi", "dandiset": "000123", "credentials": "key"},
            {"kind": "linc", "dandiset": "000004", "api": "http://localhost:8000/api/"},
            {"kind": "s3", "bucket": "brains"},
        ]}
    )  # fmt: skip
    dandi, linc, _s3 = publish.targets
    assert (dandi.api, dandi.key_variable) == ("https://api.dandiarchive.org/api", "DANDI_API_KEY")
    assert (linc.api, linc.key_variable) == ("http://localhost:8000/api", "LINC_API_KEY")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "dandiset"),
        ({"dandiset": "123"}, "dandiset"),
        ({"dandiset": "000123", "api": "api.dandiarchive.org"}, "expected an address"),
        ({"dandiset": "000123", "api": "https://key:s3cret@api.dandiarchive.org"}, "must not contain a user"),
        ({"dandiset": "000123", "api": "https://[::1"}, "expected an address"),
        ({"dandiset": "000123", "bucket": "brains"}, "bucket"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        PublishSettings.model_validate({"targets": [{"kind": "dandi", **values}]})


def test_the_key_comes_from_the_secret_or_else_from_the_variable_of_the_archives_tools(monkeypatch, tmp_path):
    monkeypatch.setenv("OPTICSTREAM_HOME", str(tmp_path))
    monkeypatch.delenv("LINC_API_KEY", raising=False)
    named = LincTargetSettings(dandiset="000004", credentials="lab")
    unnamed = LincTargetSettings(dandiset="000004")
    with pytest.raises(ConfigurationError, match=r"OPTICSTREAM_SECRET_LAB or LINC_API_KEY"):
        open_remote_target(named, lambda _name: None, QUICK)
    with pytest.raises(ConfigurationError, match=r"no key of api\.lincbrain\.org.*LINC_API_KEY"):
        open_remote_target(unnamed, lambda _name: None, QUICK)
    monkeypatch.setenv("LINC_API_KEY", "from-the-environment")
    for settings, secret, expected in (
        (named, "from-the-block", "from-the-block"),
        (named, None, "from-the-environment"),
        (unnamed, None, "from-the-environment"),
    ):
        target = open_remote_target(settings, lambda _name, value=secret: value, QUICK)
        assert target._client._hello["key"] == expected


def test_the_client_of_each_kind_is_in_an_environment_of_its_own(tmp_path):
    settings = DeploymentSettings(home=tmp_path, linc_python=tmp_path / "other" / "python")
    assert client_python("dandi", settings).is_relative_to(tmp_path / "clients" / "dandi")
    assert client_python("linc", settings) == tmp_path / "other" / "python"


REFUSALS = {
    "invalid key": (failure("refused", "401 Invalid token.", 401), "make another key"),
    "not an owner": (failure("refused", "403 Forbidden", 403), "only owners of dandiset 000123"),
    "no such dandiset": (failure("refused", "NotFoundError: nothing", 404), "expected a dandiset 000123 there"),
    "over quota": (failure("refused", "400 quota exceeded", 400), "quota exceeded"),
    "older schema": (
        failure("schema", "schema", archive_schema="0.6.9"),
        r"schema 0\.6\.9, and the client dandi 0\.81\.0 has 0\.8\.0; dandi==0\.73\.2 and dandischema==0\.11\.1 fit: "
        r"run `opticstream dandi-client install dandi --schema 0\.6\.9`",
    ),
    "newer schema": (failure("schema", "schema", archive_schema="0.9.0"), "install a newer client"),
    "old client": (
        failure("schema", "schema", archive_schema="0.7.0", client="0.73.2"),
        r"dandi==0\.81\.0 and dandischema==0\.14\.0 fit",
    ),
    "unknown schema": (failure("schema", "schema", archive_schema="0.5.0"), "no client that fits is known"),
}


@pytest.mark.parametrize(("error", "said"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_told_at_once_with_what_to_do(error, said, tmp_path):
    asked = []
    target = target_with(lambda request: asked.append(request) or error, tmp_path)
    with pytest.raises(UploadError, match=said) as caught:
        target.check()
    assert not isinstance(caught.value, TargetUnavailable)
    assert len(asked) == 1
    assert "dandiset 000123 at https://api.dandiarchive.org/api" in str(caught.value)


def test_no_message_shows_the_key(tmp_path):
    target = target_with(lambda _request: failure("refused", "401 bad token the-key", 401), tmp_path)
    with pytest.raises(UploadError, match=r"bad token \*\*\*") as caught:
        target.check()
    assert "the-key" not in str(caught.value)


def test_no_message_shows_the_signature_of_an_address(tmp_path):
    why = "ConnectionError: HTTPSConnectionPool(host='s3', port=443): url: /b/k?X-Amz-Signature=abc&X=1 (Caused by it?)"
    for kind in ("unavailable", "refused"):
        target = target_with(lambda _request, kind=kind: failure(kind, why), tmp_path, patience=Patience(0.0))
        with pytest.raises(UploadError) as caught:
            target.check()
        assert "url: /b/k?*** (Caused by it?)" in str(caught.value)


def test_an_archive_without_time_is_asked_again(tmp_path):
    answers = [failure("unavailable", "503"), failure("unavailable", "lost"), {"size": 3, "mark": "m"}]
    target = target_with(lambda _request: answers.pop(0), tmp_path)
    assert target.look("a").size == 3
    gone = target_with(lambda _request: failure("unavailable", "503 busy"), tmp_path, patience=Patience(0.0))
    with pytest.raises(TargetUnavailable, match="503 busy; given up"):
        gone.look("a")


def test_what_the_archives_never_take_is_not_sent(tmp_path):
    target = target_with(lambda request: pytest.fail(f"sent {request}"), tmp_path)
    options = {"pace": Pace(), "threads": 1, "passed": lambda _size: None}
    with pytest.raises(UploadError, match="takes no empty files"):
        target.put(local(tmp_path / "empty", b""), **options)
    deep = local(tmp_path / "deep", b"x", "v.ome.zarr/1/2/3/4/5/6/7/8/c")
    with pytest.raises(UploadError, match="8 folders inside each other, and the archive takes 7"):
        target.put_store(LocalStore(tmp_path, "v.ome.zarr", 1, "", (deep,)), **options)


def test_an_archive_that_accepts_and_then_holds_another_store_is_found_out(tmp_path):
    chunk = local(tmp_path / "c", b"x", "v.ome.zarr/c")
    store = LocalStore(tmp_path, "v.ome.zarr", 1, "", (chunk,))
    options = {"pace": Pace(), "threads": 1, "passed": lambda _size: None}
    for held, said in (
        (None, "does not hold the store although it accepted it"),
        ({"size": 1, "files": 1, "mark": "0-1--1"}, "checksum 0-1--1, expected 1 files"),
        ({"size": 1, "files": 1, "mark": ""}, "checksum not known"),
    ):
        target = target_with(lambda request, held=held: held if request["do"] == "look_store" else None, tmp_path)
        with pytest.raises(UploadError, match=said):
            target.put_store(store, **options)


def test_progress_is_told_once_for_each_byte_although_an_attempt_is_repeated(tmp_path):
    told: list[int] = []
    target = target_with(lambda _request: None, tmp_path)
    attempts = [[10, 20], [10, 20, 30]]

    def ask(request, *, pace, sent):
        sizes = attempts.pop(0)
        for size in sizes:
            sent(size)
        if attempts:
            raise failure("unavailable", "lost")

    target._client.ask = ask
    target.put(local(tmp_path / "a", bytes(40)), pace=Pace(), threads=1, passed=told.append)
    assert sum(told) == 40
    assert min(told) >= 0


def test_a_missing_client_is_told_with_the_command_that_installs_it(tmp_path):
    settings = LincTargetSettings(dandiset="000004", api="http://127.0.0.1:9/api")
    nowhere = open_target(settings, "the-key", QUICK, deployment=DeploymentSettings(home=tmp_path))
    with pytest.raises(ConfigurationError, match=r"no such Python; run `opticstream dandi-client install linc`"):
        nowhere.check()


def test_a_python_without_the_client_is_told_without_the_key(tmp_path):
    """The real driver, run by an interpreter that has no `dandi`."""
    settings = DandiTargetSettings(dandiset="000123")
    deployment = DeploymentSettings(home=tmp_path, dandi_python=Path(sys.executable))
    target = open_target(settings, "the-key", QUICK, deployment=deployment)
    with pytest.raises(ConfigurationError, match=r"No module named 'dandi'.*dandi-client install dandi") as caught:
        target.check()
    assert "the-key" not in str(caught.value)


def test_a_program_that_is_no_python_is_told_at_once(tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho this is no Python, the-key >&2\nexit 3\n")
    program.chmod(0o755)
    deployment = DeploymentSettings(home=tmp_path, dandi_python=program)
    target = open_target(DandiTargetSettings(dandiset="000123"), "the-key", QUICK, deployment=deployment)
    with pytest.raises(ConfigurationError, match=r"ended with status 3: this is no Python, \*\*\*"):
        target.check()
