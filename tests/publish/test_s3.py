"""Uploads to a real S3 server, also when the traffic is disturbed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from opticstream.config.publish_targets import S3TargetSettings
from opticstream.model.errors import ConfigurationError, InputError, MissingInputError, TargetUnavailable, UploadError
from opticstream.publish import s3
from opticstream.publish.ledger import Ledger
from opticstream.publish.pace import Pace
from opticstream.publish.patience import Patience
from opticstream.publish.s3 import open_target, part_size
from opticstream.publish.target import LocalFile
from opticstream.publish.transfer import Published, Transfer, differences
from opticstream.state.manifest import write_manifest
from opticstream.state.record import sha256_of_path, size_of_path
from opticstream.testing.s3_server import ACCESS_KEY, CUT, SECRET, SECRET_KEY, error_answer

QUICK = Patience(total_s=20.0, first_s=0.01, longest_s=0.1)
MIB = 2**20


def target_at(endpoint: str, *, bucket: str = "brains", prefix: str = "", secret: str = SECRET, patience=QUICK):
    settings = S3TargetSettings(endpoint=endpoint, bucket=bucket, prefix=prefix, credentials="lab")
    return open_target(settings, secret, patience)


def transfer(target, base: Path, **values) -> Transfer:
    return Transfer(target, Ledger(base, target.name), **values)


def file_of(archive: Path, size: int, key: str = "derivative/sub-01/a.nii.gz", *, seed: int = 1) -> Published:
    path = archive / key
    path.parent.mkdir(parents=True, exist_ok=True)
    block = hashlib.sha256(bytes([seed])).digest() * 32768  # 1 MiB
    path.write_bytes((b"%d" % seed + os.urandom(16) + block * (size // MIB + 1))[:size])
    return Published(path, key, size, sha256_of_path(path))


def store_of(archive: Path, files: int, key: str = "derivative/sub-01/v.ome.zarr") -> Published:
    path = archive / key
    for number in range(files):
        chunk = path / "0" / "c" / str(number // 10) / str(number % 10)
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(b"%d" % number * 100)
    (path / "zarr.json").write_text("{}")
    write_manifest(path)
    return Published(path, key, size_of_path(path), sha256_of_path(path))


@pytest.fixture
def small_parts(monkeypatch):
    """Parts so small that small files have several."""
    monkeypatch.setattr(s3, "PART_SIZE", MIB)


def remote(server, key: str, prefix: str = "") -> Path:
    return server.folder / "brains" / prefix / key


def test_a_file_arrives_whole_under_its_name_in_the_archive_tree(server, archive, tmp_path):
    file = file_of(archive, 3 * MIB)
    asset = transfer(target_at(server.endpoint, prefix="one/two"), tmp_path).send(file)
    assert remote(server, file.key, "one/two").read_bytes() == file.path.read_bytes()
    assert (asset.key, asset.size, asset.sha256, asset.files) == (file.key, file.size, file.sha256, 1)
    assert asset.place == f"s3://brains/one/two at {server.endpoint}"
    assert Ledger(tmp_path, "s3").asset(file.key, place=asset.place) == asset


@pytest.mark.parametrize("size", [100, 2 * MIB + 7], ids=["at once", "in parts"])
def test_names_may_hold_what_addresses_do_not(server, archive, tmp_path, small_parts, size):
    file = file_of(archive, size, f"derivative/sub-01 b/50% + ä~#?&=;,@({size}).nii.gz")
    transfer(target_at(server.endpoint, prefix="a b"), tmp_path).send(file)
    assert sha256_of_path(remote(server, file.key, "a b")) == file.sha256


def test_a_server_that_sends_writers_elsewhere_is_followed_by_boto3(server, proxy, archive, tmp_path, small_parts):
    answers: list[bytes] = []
    proxy.fault = lambda request: answers.pop() if request.method == "PUT" and answers else None
    for size, status in ((100, 301), (2 * MIB + 7, 307)):
        answers.append(error_answer(status, "Redirect"))
        file = file_of(archive, size, f"derivative/elsewhere-{size}.nii.gz")
        transfer(target_at(proxy.endpoint), tmp_path).send(file)
        assert sha256_of_path(remote(server, file.key)) == file.sha256
        assert not answers


def test_boto3_writes_at_amazon_and_behind_a_proxy(monkeypatch, archive, tmp_path):
    """It knows regions and proxies; quick requests know one server."""
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert target_at("http://s3.example.org")._quick is not None
    assert target_at("")._quick is None
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert target_at("http://s3.example.org")._quick is None
    quick = Patience(total_s=0.0)
    with pytest.raises(TargetUnavailable, match="ProxyConnectionError"):
        transfer(target_at("http://s3.example.org", patience=quick), tmp_path).send(file_of(archive, 100))
    monkeypatch.setenv("NO_PROXY", "s3.example.org")
    assert target_at("http://s3.example.org")._quick is not None


def test_a_gateway_that_answers_without_a_word_of_s3_is_told_with_its_status(proxy, archive, tmp_path):
    page = b"<html><body>too large<p></html>"
    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(page), page)
    proxy.fault = lambda request: answer if request.method == "PUT" else None
    with pytest.raises(UploadError, match=r"413 .*Too Large") as caught:
        transfer(target_at(proxy.endpoint), tmp_path).send(file_of(archive, 100, "derivative/large.nii.gz"))
    assert not isinstance(caught.value, TargetUnavailable)


def test_an_empty_file_arrives_too(server, archive, tmp_path):
    file = file_of(archive, 0, "derivative/empty.txt")
    transfer(target_at(server.endpoint), tmp_path).send(file)
    assert remote(server, file.key).stat().st_size == 0


def test_a_rerun_sends_nothing_with_or_without_its_ledger(server, proxy, archive, tmp_path):
    file = file_of(archive, 2 * MIB, "derivative/again.nii.gz")
    store = store_of(archive, 12, "derivative/again.ome.zarr")
    for one in (file, store):
        transfer(target_at(proxy.endpoint), tmp_path / "first").send(one)
    for base in ("first", "lost"):
        proxy.seen.clear()
        for one in (file, store):
            transfer(target_at(proxy.endpoint), tmp_path / base).send(one)
        assert proxy.count("PUT") == proxy.count("POST") == 0


def test_a_changed_file_replaces_the_old_one(server, archive, tmp_path):
    first = file_of(archive, MIB, "derivative/changed.nii.gz")
    target = target_at(server.endpoint)
    transfer(target, tmp_path).send(first)
    second = file_of(archive, MIB, "derivative/changed.nii.gz", seed=2)
    transfer(target, tmp_path).send(second)
    assert remote(server, second.key).read_bytes() == second.path.read_bytes()


def test_a_store_arrives_with_all_its_files_and_without_those_of_an_earlier_one(server, archive, tmp_path):
    store = store_of(archive, 35)
    target = target_at(server.endpoint)
    told: list[int] = []
    asset = transfer(target, tmp_path, threads=4, passed=told.append).send(store)
    there = remote(server, store.key)
    assert sha256_of_path(there) == store.sha256 == asset.sha256
    assert (asset.files, asset.size, sum(told)) == (36, store.size, store.size)
    for chunk in sorted((store.path / "0" / "c" / "3").iterdir()):
        chunk.unlink()
    write_manifest(store.path)
    smaller = Published(store.path, store.key, size_of_path(store.path), sha256_of_path(store.path))
    transfer(target, tmp_path).send(smaller)
    assert sha256_of_path(there) == smaller.sha256 != store.sha256


def test_an_upload_that_was_killed_goes_on_with_the_parts_that_are_missing(
    server, proxy, archive, tmp_path, small_parts
):
    file = file_of(archive, 4 * MIB + 7, "rawdata/sub-01/resumed.nii.gz")
    sent = 0

    class Killed(BaseException):
        pass

    def killed_after_two(size: int) -> None:
        nonlocal sent
        sent += 1
        if sent == 2:
            raise Killed

    with pytest.raises(Killed):
        transfer(target_at(proxy.endpoint), tmp_path, threads=1, passed=killed_after_two).send(file)
    assert not remote(server, file.key).exists(), "a file appears whole or not at all"
    before = proxy.count("PUT", "partNumber=")
    assert before in (2, 3)
    told: list[int] = []
    transfer(target_at(proxy.endpoint), tmp_path, passed=told.append).send(file)
    assert proxy.count("PUT", "partNumber=") == 5
    assert proxy.count("POST", "uploads") == 1
    assert sum(told) == file.size
    assert sha256_of_path(remote(server, file.key)) == file.sha256


def test_a_server_that_was_killed_gets_everything_after_its_restart(server, archive, tmp_path, small_parts):
    file = file_of(archive, 3 * MIB + 7, "rawdata/sub-01/restarted.nii.gz")
    restarts = 0

    def restart_once(_size: int) -> None:
        nonlocal restarts
        if not restarts:
            restarts = 1
            server.stop()
            server.start()

    transfer(target_at(server.endpoint), tmp_path, threads=1, passed=restart_once).send(file)
    assert restarts == 1
    assert sha256_of_path(remote(server, file.key)) == file.sha256


def etags_of(data: bytes, part: int) -> tuple[str, str]:
    """Return the MD5 of data, and the ETag that is made of the MD5s of its parts."""
    md5s = [hashlib.md5(data[at : at + part]).digest() for at in range(0, len(data), part)]
    return hashlib.md5(data).hexdigest(), f"{hashlib.md5(b''.join(md5s)).hexdigest()}-{len(md5s)}"


@pytest.mark.parametrize("kind", ["of the file", "of its parts", "of neither"])
def test_what_a_server_makes_its_etags_of_is_learned_from_its_first_file_in_parts(
    server, proxy, archive, tmp_path, small_parts, kind
):
    files = [file_of(archive, 2 * MIB + 7, f"derivative/learned-{kind[-4:]}-{n}.nii.gz", seed=n) for n in (1, 2)]
    etags = {file.key: etags_of(file.path.read_bytes(), MIB) for file in files}
    place = {"of the file": 0, "of its parts": 1}

    def fault(request):
        found = [key for key in etags if request.path.endswith(key)]
        if request.method != "HEAD" or not found or not remote(server, found[0]).exists():
            return None
        etag = etags[found[0]][place[kind]] if kind in place else "f" * 32
        about = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: %s\r\nConnection: close\r\n\r\n"
        return about % (2 * MIB + 7, f'"{etag}"'.encode())

    proxy.fault = fault
    target = target_at(proxy.endpoint)
    first, second = ({*marks_of_put(target, file)} for file in files)
    assert first >= ({etags[files[0].key][place[kind]]} if kind in place else set())
    assert second == {etags[files[1].key][place.get(kind, 1)]}, "only one of them is made"
    for file in files:
        asset = transfer(target, tmp_path).send(file)  # compared, and read back where the ETag says nothing
        assert asset.sha256 == sha256_of_path(remote(server, file.key))


def marks_of_put(target, file: Published) -> frozenset[str]:
    local = LocalFile(file.path, file.key, file.size, file.sha256)
    return target.put(local, pace=Pace(), threads=2, passed=lambda _size: None)


def test_a_part_that_arrives_damaged_never_becomes_the_file(server, proxy, archive, tmp_path, small_parts):
    file = file_of(archive, 2 * MIB + 7, "derivative/damaged-part.nii.gz")
    damaged = 0

    def swap(request):
        nonlocal damaged
        if request.method == "PUT" and "partNumber=2&" in request.path:
            damaged += 1
            upload = request.path.partition("uploadId=")[2]
            answer = server.client().upload_part(
                Bucket="brains", Key=file.key, UploadId=upload, PartNumber=2, Body=bytes(MIB)
            )
            etag = answer["ETag"].encode()
            return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: %s\r\nConnection: close\r\n\r\n" % etag
        return None

    proxy.fault = swap
    with pytest.raises(UploadError, match="SHA-256"):
        transfer(target_at(proxy.endpoint), tmp_path).send(file)
    assert damaged == 1
    assert Ledger(tmp_path, "s3").assets() == {}


def test_lost_connections_and_a_server_without_time_cost_only_time(server, proxy, archive, tmp_path, small_parts):
    waits: list[float] = []
    patience = Patience(total_s=600.0, first_s=0.01, longest_s=0.1, sleep=waits.append)
    faults = [CUT, error_answer(503, "SlowDown", Retry_After="7"), CUT, error_answer(500, "InternalError")]

    def fault(request):
        return faults.pop() if request.method == "PUT" and faults else None

    proxy.fault = fault
    file = file_of(archive, 2 * MIB + 7, "derivative/disturbed.nii.gz")
    transfer(target_at(proxy.endpoint, patience=patience), tmp_path).send(file)
    assert sha256_of_path(remote(server, file.key)) == file.sha256
    assert not faults
    assert len(waits) == 4
    assert sorted(waits)[-1] == 7.0, "what the server asks for counts"


def test_an_answer_to_the_last_request_that_is_lost_completes_the_file_once(
    server, proxy, archive, tmp_path, small_parts
):
    file = file_of(archive, 2 * MIB + 7, "derivative/completed.nii.gz")
    lost = 0

    def fault(request):
        nonlocal lost
        if request.method == "POST" and "uploadId=" in request.path:
            lost += 1
            if lost == 2:
                return error_answer(404, "NoSuchUpload")
            if lost == 1:
                complete(request)
                return CUT
        return None

    def complete(_request) -> None:
        server.client().put_object(Bucket="brains", Key=file.key, Body=file.path.read_bytes())

    proxy.fault = fault
    transfer(target_at(proxy.endpoint), tmp_path).send(file)
    assert lost == 2
    assert proxy.count("PUT", "partNumber=") == 3, "nothing was sent again"
    assert sha256_of_path(remote(server, file.key)) == file.sha256


PERMANENT = {
    "forbidden": error_answer(403, "AccessDenied", "no permission"),
    "over quota": error_answer(403, "QuotaExceeded", "the bucket is full"),
    "bad request": error_answer(400, "InvalidRequest", "no"),
    "not implemented": error_answer(501, "NotImplemented", "no"),
}


@pytest.mark.parametrize("answer", PERMANENT.values(), ids=PERMANENT)
def test_a_refusal_is_told_at_once(proxy, archive, tmp_path, answer):
    proxy.fault = lambda request: answer if request.method == "PUT" else None
    with pytest.raises(UploadError) as caught:
        transfer(target_at(proxy.endpoint), tmp_path).send(file_of(archive, 100, "derivative/refused.nii.gz"))
    assert not isinstance(caught.value, TargetUnavailable)
    assert proxy.count("PUT") == 1
    message = str(caught.value)
    assert "derivative/refused.nii.gz" in message
    assert "s3://brains" in message


def test_a_missing_bucket_and_wrong_keys_are_told_at_once_without_the_secret(server, archive, tmp_path):
    file = file_of(archive, 100)
    with pytest.raises(UploadError, match="NoSuchBucket"):
        transfer(target_at(server.endpoint, bucket="nowhere"), tmp_path).send(file)
    for secret in (f"{ACCESS_KEY}:another-key", f"ANOTHER:{SECRET_KEY}"):
        target = target_at(server.endpoint, secret=secret)
        for attempt in (target.check, lambda target=target: transfer(target, tmp_path).send(file)):
            with pytest.raises(UploadError) as caught:
                attempt()
            assert not isinstance(caught.value, TargetUnavailable)
            for part in secret.split(":"):
                assert part not in str(caught.value)
    target_at(server.endpoint).check()


def test_a_secret_of_the_wrong_form_is_refused_without_showing_it():
    with pytest.raises(ConfigurationError, match=r"'lab'.*ACCESS_KEY:SECRET_KEY") as caught:
        target_at("http://127.0.0.1:1", secret="only-one-part")
    assert "only-one-part" not in str(caught.value)


def test_a_target_that_never_answers_is_given_up_after_the_time_that_was_set(archive, tmp_path):
    target = target_at("http://127.0.0.1:9", patience=Patience(total_s=0.3, first_s=0.01, longest_s=0.05))
    with pytest.raises(TargetUnavailable, match=r"given up after 0\.3 s"):
        transfer(target, tmp_path).send(file_of(archive, 100))


def test_a_file_that_is_not_the_one_of_its_record_is_not_uploaded(server, archive, tmp_path, small_parts):
    for size in (1000, 2 * MIB + 7):
        file = file_of(archive, size, f"derivative/damaged-{size}.nii.gz")
        with file.path.open("r+b") as stream:
            stream.seek(size - 1)
            stream.write(b"!")
        with pytest.raises(InputError, match="its record says"):
            transfer(target_at(server.endpoint), tmp_path).send(file)
        assert not remote(server, file.key).exists()
    with pytest.raises(MissingInputError, match="does not exist"):
        transfer(target_at(server.endpoint), tmp_path).send(Published(archive / "gone", "gone", 1))


def test_bytes_that_were_changed_on_the_way_are_never_taken_for_the_file(server, proxy, archive, tmp_path):
    """A server that accepts, and then holds other bytes of the same size, as a faulty disk or gateway would."""
    file = file_of(archive, 1000, "derivative/flipped.nii.gz")

    def flip(request):
        if request.method == "PUT":
            server.client().put_object(Bucket="brains", Key=file.key, Body=bytes(1000))
            return b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: "0"\r\nConnection: close\r\n\r\n'
        return None

    proxy.fault = flip
    with pytest.raises(UploadError, match="SHA-256"):
        transfer(target_at(proxy.endpoint), tmp_path).send(file)
    assert Ledger(tmp_path, "s3").assets() == {}


def test_a_server_that_accepts_and_keeps_nothing_is_found_out(server, proxy, archive, tmp_path):
    accepted = b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: "0"\r\nConnection: close\r\n\r\n'
    proxy.fault = lambda request: accepted if request.method == "PUT" else None
    with pytest.raises(UploadError, match="does not hold"):
        transfer(target_at(proxy.endpoint), tmp_path).send(file_of(archive, 1000, "derivative/void.nii.gz"))
    with pytest.raises(UploadError, match="does not hold"):
        transfer(target_at(proxy.endpoint), tmp_path).send(store_of(archive, 3, "derivative/void.ome.zarr"))


def test_later_changes_at_the_target_are_found(server, archive, tmp_path):
    target = target_at(server.endpoint)
    file, store = file_of(archive, 1000, "derivative/kept.nii.gz"), store_of(archive, 11, "derivative/kept.ome.zarr")
    assets = [transfer(target, tmp_path).send(one) for one in (file, store)]
    assert [differences(target, asset, contents=True) for asset in assets] == [None, None]
    client = server.client()
    client.put_object(Bucket="brains", Key=file.key, Body=bytes(1000))
    client.delete_object(Bucket="brains", Key=f"{store.key}/zarr.json")
    told = [differences(target, asset) for asset in assets]
    assert "other bytes" in told[0]
    assert told[1] == "has 11 files, expected 12"
    client.delete_object(Bucket="brains", Key=file.key)
    assert differences(target, assets[0]) == "is not there"


def test_parts_grow_with_the_file_and_stay_the_same_for_the_same_file():
    assert part_size(10 * MIB) == part_size(10**10) == s3.PART_SIZE
    assert 5 * 10**12 / part_size(5 * 10**12) <= 10_000
