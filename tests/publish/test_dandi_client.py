"""Uploads with the real `dandi` client to a server that speaks the protocol of the archive, also when it misbehaves."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from tests.publish.dandi_clients import client_home

from opticstream.config import DeploymentSettings
from opticstream.config.publish_targets import DandiTargetSettings, LincTargetSettings
from opticstream.model.errors import InputError, TargetUnavailable, UploadError
from opticstream.publish.dandi import open_target
from opticstream.publish.ledger import Ledger
from opticstream.publish.pace import Pace
from opticstream.publish.patience import Patience
from opticstream.publish.transfer import Published, Transfer, differences
from opticstream.state.manifest import write_manifest
from opticstream.state.record import sha256_of_path, size_of_path
from opticstream.testing.dandi_server import DANDISET, KEY, DandiServer
from opticstream.testing.s3_server import CUT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # the first one installs the client
QUICK = Patience(total_s=20.0, first_s=0.01, longest_s=0.1)
MIB = 2**20


@pytest.fixture(scope="module")
def archive():
    server = DandiServer()
    yield server
    server.close()


@pytest.fixture
def server(archive):
    yield archive
    archive.behave()


@pytest.fixture(scope="module")
def targets(archive):
    """Return targets at the archive; equal ones share a client, which takes seconds to start."""
    known: dict[tuple[object, ...], object] = {}

    def target(key: str = KEY, patience: Patience = QUICK, checksum_s: float = 60.0):
        about = (key, patience.total_s, checksum_s)
        if about not in known:
            python = client_home("dandi")
            deployment = DeploymentSettings(dandi_python=python, upload_checksum_s=checksum_s)
            settings = DandiTargetSettings(dandiset=DANDISET, api=archive.api)
            known[about] = open_target(settings, key, patience, deployment=deployment)
        return known[about]

    return target


def transfer(target, base: Path, **values) -> Transfer:
    return Transfer(target, Ledger(base, target.name), **values)


def file_of(root: Path, key: str, size: int = 1000) -> Published:
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return Published(path, key, size, sha256_of_path(path))


def store_of(root: Path, key: str, files: int = 25) -> Published:
    path = root / key
    for number in range(files):
        chunk = path / "0" / "c" / str(number // 10) / str(number % 10)
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(os.urandom(100 + number))
    (path / "zarr.json").write_text("{}")
    write_manifest(path)
    return Published(path, key, size_of_path(path), sha256_of_path(path))


def contents(store: Published) -> dict[str, bytes]:
    files = (path for path in store.path.rglob("*") if path.is_file())
    return {path.relative_to(store.path).as_posix(): path.read_bytes() for path in files}


def answer(status: int, about: object = "", **headers: str) -> bytes:
    body = json.dumps(about).encode()
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{more}\r\n".encode() + body


def test_files_and_stores_arrive_and_a_rerun_sends_nothing_with_or_without_its_ledger(server, targets, tmp_path):
    """A `.nii.gz` outside of BIDS is what the client's own command leaves out without a word."""
    target = targets()
    file = file_of(tmp_path, "derivative/sub-01/mosaic_001_aip.nii.gz", 3 * MIB)
    store = store_of(tmp_path, "derivative/sub-01/mosaic_001_dBI.ome.zarr")
    told: list[int] = []
    assets = [transfer(target, tmp_path / "first", passed=told.append).send(one) for one in (file, store)]
    assert server.files[file.key] == file.path.read_bytes()
    assert server.stores[store.key] == contents(store)
    assert [(one.size, one.files, one.sha256) for one in assets] == [
        (file.size, 1, file.sha256), (store.size, 26, store.sha256),
    ]  # fmt: skip
    assert sum(told) == file.size + store.size
    assert [differences(target, asset, contents=True) for asset in assets] == [None, None]
    before = server.sent()
    for base in ("first", "lost"):
        for one in (file, store):
            transfer(target, tmp_path / base).send(one)
    assert server.sent() == before


def test_changed_files_and_stores_replace_the_earlier_ones(server, targets, tmp_path):
    key, store_key = "derivative/changed.nii.gz", "derivative/changed.ome.zarr"
    first, store = file_of(tmp_path, key), store_of(tmp_path, store_key)
    for one in (first, store):
        transfer(targets(), tmp_path).send(one)
    second = file_of(tmp_path, key)
    for chunk in sorted((store.path / "0" / "c" / "2").iterdir()):
        chunk.unlink()
    (store.path / "0" / "c" / "0" / "0").write_bytes(b"changed")
    write_manifest(store.path)
    server.seen.clear()
    for one in (second, Published(store.path, store_key, size_of_path(store.path))):
        transfer(targets(), tmp_path).send(one)
    assert server.files[key] == second.path.read_bytes()
    assert server.stores[store_key] == contents(store)
    assert server.count("PUT", "/storage/zarr/") == 1, "the other files were there"


def test_bytes_that_the_archive_has_under_another_name_are_not_sent(server, targets, tmp_path):
    one = file_of(tmp_path, "derivative/one.nii.gz")
    transfer(targets(), tmp_path).send(one)
    other = tmp_path / "derivative" / "other.nii.gz"
    other.write_bytes(one.path.read_bytes())
    server.seen.clear()
    transfer(targets(), tmp_path).send(Published(other, "derivative/other.nii.gz", one.size, one.sha256))
    assert server.count("PUT", "/storage/") == 0
    assert server.files["derivative/other.nii.gz"] == one.path.read_bytes()


def test_names_that_differ_in_case_or_begin_alike_are_different_files(server, targets, tmp_path):
    keys = ("derivative/like.nii", "derivative/like.nii.gz", "derivative/LIKE.nii")
    files = [file_of(tmp_path, key) for key in keys]
    for file in files:
        transfer(targets(), tmp_path).send(file)
    for file in files:
        assert server.files[file.key] == file.path.read_bytes()


def test_a_wrong_key_is_told_at_once_and_never_shown(server, targets, tmp_path):
    wrong = targets(key="not-the-key")
    for attempt in (wrong.check, lambda: transfer(wrong, tmp_path).send(file_of(tmp_path, "derivative/a.nii.gz"))):
        with pytest.raises(UploadError, match=r"401 Invalid token\.; make another key") as caught:
            attempt()
        assert not isinstance(caught.value, TargetUnavailable)
        assert "not-the-key" not in str(caught.value)
    targets().check()


def test_the_key_is_in_no_argument_and_no_variable_of_the_client(server, targets, monkeypatch):
    monkeypatch.setenv("OPTICSTREAM_SECRET_LAB", KEY)
    monkeypatch.setenv("DANDI_API_KEY", KEY)
    target = targets(checksum_s=59.0)
    target.check()
    process = Path("/proc", str(target._client._process._process.pid))
    for file in ("cmdline", "environ"):
        assert KEY.encode() not in (process / file).read_bytes()


PERMANENT = {
    "no owner": ("/uploads/initialize/", answer(403, {"detail": "You do not have permission."}), "only owners"),
    "over quota": ("/uploads/initialize/", answer(400, {"detail": "Dandiset is over its quota."}), "over its quota"),
    "no space": ("/uploads/initialize/", answer(507, "the storage is full"), "507"),
    "bad metadata": ("/assets/", answer(400, {"metadata": ["it is not of the schema"]}), "not of the schema"),
    "storage": ("/storage/", answer(403, "AccessDenied"), "403"),
}


@pytest.mark.parametrize(("part", "refusal", "said"), PERMANENT.values(), ids=PERMANENT)
def test_a_refusal_is_told_at_once(server, targets, tmp_path, part, refusal, said):
    file = file_of(tmp_path, "derivative/refused.nii.gz")
    server.seen.clear()
    server.fault = lambda request: refusal if request.method != "GET" and part in request.path else None
    with pytest.raises(UploadError, match=said) as caught:
        transfer(targets(), tmp_path).send(file)
    assert not isinstance(caught.value, TargetUnavailable)
    assert "derivative/refused.nii.gz" in str(caught.value)
    assert "signature" not in str(caught.value), "the addresses of the storage are signed"
    assert len([one for one in server.seen if one.method != "GET" and part in one.path]) == 1
    assert Ledger(tmp_path, "dandi").assets() == {}


def test_a_file_of_a_store_that_the_storage_refuses_is_tried_once_more_with_another_address(server, targets, tmp_path):
    store = store_of(tmp_path, "derivative/refused.ome.zarr", 1)
    server.fault = lambda request: answer(403, "AccessDenied") if "/storage/zarr/" in request.path else None
    with pytest.raises(UploadError, match="403") as caught:
        transfer(targets(), tmp_path).send(store)
    assert not isinstance(caught.value, TargetUnavailable)
    assert server.count("PUT", "/storage/zarr/") <= 4


def test_lost_connections_and_an_archive_without_time_cost_only_time(server, targets, tmp_path):
    """Each kind of request is disturbed once, in each of four ways."""
    faults = [CUT, answer(503, "busy"), answer(429, "slow down", Retry_After="1"), answer(502, "gateway")]
    file, store = file_of(tmp_path, "derivative/disturbed.nii.gz"), store_of(tmp_path, "derivative/d.ome.zarr", 4)
    disturbed: set[str] = set()

    def fault(request):
        kind = next(
            (one for one in ("initialize", "complete", "validate", "finalize", "/files/") if one in request.path), ""
        )
        kind = kind or ("storage" if "/storage/" in request.path else "assets")
        if request.method == "GET" or kind in disturbed:
            return None
        disturbed.add(kind)
        return faults[len(disturbed) % len(faults)]

    server.fault = fault
    for one in (file, store):
        transfer(targets(), tmp_path).send(one)
    assert len(disturbed) >= 6
    assert server.files[file.key] == file.path.read_bytes()
    assert server.stores[store.key] == contents(store)


def test_a_wait_longer_than_the_patience_is_not_waited_for(server, targets, tmp_path):
    server.fault = lambda request: answer(429, "later", Retry_After="3600") if request.method == "POST" else None
    with pytest.raises(TargetUnavailable, match="429") as caught:
        transfer(targets(), tmp_path).send(file_of(tmp_path, "derivative/later.nii.gz"))
    assert caught.value.retry_after_s == 3600


def test_an_archive_that_never_answers_is_given_up_after_the_time_that_was_set(server, targets, tmp_path):
    server.fault = lambda _request: CUT
    with pytest.raises(TargetUnavailable, match="given up after 1 s"):
        transfer(targets(patience=Patience(1.0, 0.01, 0.1)), tmp_path).send(file_of(tmp_path, "derivative/a.nii.gz"))


def test_a_checksum_that_never_comes_is_given_up_and_the_next_attempt_sends_nothing(server, targets, tmp_path):
    store = store_of(tmp_path, "derivative/ingesting.ome.zarr", 5)
    server.finalizes = False
    impatient = targets(patience=Patience(0.0), checksum_s=3.0)
    for _ in range(2):
        with pytest.raises(TargetUnavailable, match="has not computed the checksum of the store within 3 s"):
            transfer(impatient, tmp_path).send(store)
    assert Ledger(tmp_path, "dandi").assets() == {}
    sent = server.count("PUT", "/storage/")
    server.finalizes = True
    asset = transfer(targets(), tmp_path).send(store)
    assert asset.files == 6
    assert server.count("PUT", "/storage/") == sent


def test_a_store_whose_upload_ended_before_its_checksum_was_asked_for_is_completed(server, targets, tmp_path):
    store = store_of(tmp_path, "derivative/cut.ome.zarr", 5)
    server.fault = lambda request: answer(400, "no") if "finalize" in request.path else None
    with pytest.raises(UploadError):
        transfer(targets(), tmp_path).send(store)
    server.fault = lambda _request: None
    sent = server.count("PUT", "/storage/")
    assert transfer(targets(), tmp_path).send(store).files == 6
    assert server.count("PUT", "/storage/") == sent


def test_bytes_that_the_archive_has_changed_are_never_taken_for_the_file(server, targets, tmp_path):
    server.damage = lambda data: bytes(len(data))
    with pytest.raises(UploadError, match="SHA-256"):
        transfer(targets(), tmp_path).send(file_of(tmp_path, "derivative/flipped.nii.gz"))
    with pytest.raises(UploadError, match="another checksum of the store"):
        transfer(targets(), tmp_path).send(store_of(tmp_path, "derivative/flipped.ome.zarr", 3))
    assert Ledger(tmp_path, "dandi").assets() == {}


def test_an_archive_that_accepts_and_keeps_nothing_is_found_out(server, targets, tmp_path):
    server.keeps = False
    with pytest.raises(UploadError, match="does not hold derivative/void"):
        transfer(targets(), tmp_path).send(file_of(tmp_path, "derivative/void.nii.gz"))


def test_a_file_that_is_not_the_one_of_its_record_is_not_uploaded(server, targets, tmp_path):
    file, store = file_of(tmp_path, "derivative/damaged.nii.gz"), store_of(tmp_path, "derivative/damaged.ome.zarr", 3)
    for path in (file.path, store.path / "0" / "c" / "0" / "0"):
        path.write_bytes(bytes(path.stat().st_size))
    for one in (file, store):
        with pytest.raises(InputError, match="its record says"):
            transfer(targets(), tmp_path).send(one)
        assert one.key not in server.files | server.stores


def test_later_changes_at_the_archive_are_found(server, targets, tmp_path):
    file, store = file_of(tmp_path, "derivative/kept.nii.gz"), store_of(tmp_path, "derivative/kept.ome.zarr", 3)
    assets = [transfer(targets(), tmp_path).send(one) for one in (file, store)]
    server.stores[store.key].pop("0/c/0/0")
    server.forget(file.key)
    assert differences(targets(), assets[0]) == "is not there"
    assert differences(targets(), assets[1]) == "has 3 files, expected 4"


def test_a_client_that_is_killed_is_started_again(server, targets, tmp_path):
    target = targets(checksum_s=58.0)
    target.check()
    killed = target._client._process._process
    os.kill(killed.pid, signal.SIGKILL)
    file = file_of(tmp_path, "derivative/killed.nii.gz")
    transfer(target, tmp_path).send(file)
    assert server.files[file.key] == file.path.read_bytes()
    assert killed.returncode == -signal.SIGKILL


def test_an_upload_that_is_stopped_ends_the_client_and_begins_anew_later(server, targets, tmp_path):
    class Stopped(BaseException):
        pass

    def stop(_size: int) -> None:
        raise Stopped

    target = targets(checksum_s=57.0)
    file = file_of(tmp_path, "derivative/stopped.nii.gz", 3 * MIB)
    with pytest.raises(Stopped):
        transfer(target, tmp_path, passed=stop).send(file)
    assert target._client._process is None
    assert file.key not in server.files
    transfer(target, tmp_path).send(file)
    assert server.files[file.key] == file.path.read_bytes()


def test_the_bandwidth_limit_holds_for_the_client_too(server, targets, tmp_path):
    taken: list[int] = []
    waits: list[float] = []
    pace = Pace(lambda: 1000.0, clock=lambda: 0.0, sleep=waits.append)
    file, store = file_of(tmp_path, "derivative/slow.nii.gz", 5000), store_of(tmp_path, "derivative/slow.ome.zarr", 4)
    for one in (file, store):
        transfer(targets(), tmp_path, pace=pace, passed=taken.append).send(one)
    assert max(waits) >= (file.size + store.size) / 1000.0 - 5.0
    assert len(waits) >= 5


def test_a_schema_that_the_client_does_not_know_is_told_with_the_client_that_does(tmp_path):
    python = client_home("dandi")
    server = DandiServer(schema="0.6.9")
    settings = LincTargetSettings(dandiset=DANDISET, api=server.api)
    target = open_target(settings, KEY, QUICK, deployment=DeploymentSettings(linc_python=python))
    with pytest.raises(UploadError, match=r"schema 0\.6\.9.*dandi-client install linc --schema 0\.6\.9"):
        target.check()
    server.schema, server.info = "0.9.0", {"allowed_schema_versions": ["0.9.0"]}
    newer = open_target(settings, KEY, QUICK, deployment=DeploymentSettings(linc_python=python))
    with pytest.raises(UploadError, match=r"schema 0\.9\.0.*install a newer client.*OPTICSTREAM_LINC_PYTHON"):
        newer.check()
    server.close()


@pytest.mark.parametrize("schema", ["0.6.10", "0.8.0"])
def test_archives_with_other_schemas_are_served_by_the_same_client(schema, tmp_path):
    _uploads_to(DandiServer(schema), client_home("dandi"), tmp_path)


def test_an_archive_with_an_older_schema_is_served_by_the_client_that_fits(tmp_path):
    _uploads_to(DandiServer("0.6.9"), client_home("linc", "0.6.9"), tmp_path)


def _uploads_to(server: DandiServer, python: Path, base: Path) -> None:
    settings = LincTargetSettings(dandiset=DANDISET, api=server.api)
    target = open_target(settings, KEY, QUICK, deployment=DeploymentSettings(linc_python=python))
    file, store = file_of(base, "derivative/a.nii.gz"), store_of(base, "derivative/a.ome.zarr", 3)
    for one in (file, store):
        transfer(target, base).send(one)
    assert server.files[file.key] == file.path.read_bytes()
    assert server.stores[store.key] == contents(store)
    before = server.sent()
    for one in (file, store):
        transfer(target, base / "lost").send(one)
    assert server.sent() == before
    server.close()
