"""What holds at every S3 server: at `rclone serve s3`, and at Ceph's `radosgw`, which checks every signature."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.services import program

from opticstream.config.publish_targets import S3TargetSettings
from opticstream.model.errors import TargetUnavailable, UploadError
from opticstream.publish import s3
from opticstream.publish.ledger import Ledger
from opticstream.publish.patience import Patience
from opticstream.publish.transfer import Published, Transfer, differences
from opticstream.state.manifest import write_manifest
from opticstream.state.record import sha256_of_path, size_of_path
from opticstream.testing.radosgw_server import PROGRAMS, RadosGateway
from opticstream.testing.s3_server import ACCESS_KEY, SECRET, SECRET_KEY, Proxy, RcloneServer

PART = 5 * 2**20  # the least that servers take


class Server(Protocol):
    port: int
    endpoint: str

    def client(self) -> Any: ...


class S3Contract:
    """A subclass has a fixture `server` with the bucket `brains`."""

    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch):
        monkeypatch.setattr(s3, "PART_SIZE", PART)

    @pytest.fixture
    def send(self, server: Server, tmp_path: Path, request):
        """Send files and stores through a transfer of its own."""

        def sent(published: Published, *, endpoint: str = server.endpoint, **values):
            target = self.target(endpoint, request.node.name)
            return target, Transfer(target, Ledger(tmp_path, target.name), **values).send(published)

        return sent

    def target(self, endpoint: str, prefix: str, secret: str = SECRET):
        prefix = prefix.replace("[", "-").replace("]", "")
        settings = S3TargetSettings(endpoint=endpoint, bucket="brains", prefix=prefix, credentials="lab")
        return s3.open_target(settings, secret, Patience(total_s=60.0, first_s=0.05, longest_s=0.5))

    def file(self, folder: Path, size: int, key: str = "derivative/a.nii.gz") -> Published:
        path = folder / "DANDISET" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(16) + bytes(max(0, size - 16)) if size >= 16 else bytes(size))
        return Published(path, key, size, sha256_of_path(path))

    def sha256(self, server: Server, key: str) -> str:
        (found,) = [
            one["Key"]
            for one in server.client().list_objects_v2(Bucket="brains")["Contents"]
            if one["Key"].endswith(f"/{key}")
        ]
        return hashlib.sha256(server.client().get_object(Bucket="brains", Key=found)["Body"].read()).hexdigest()

    @pytest.mark.parametrize("size", [0, 100, 2 * PART + 7], ids=["empty", "at once", "in parts"])
    def test_a_file_arrives_whole_under_any_name_and_is_vouched_for(self, server, tmp_path, send, size):
        file = self.file(tmp_path, size, f"sub-01 b/50% + ä~#?&=;,@({size}).nii.gz")
        target, asset = send(file)
        assert self.sha256(server, file.key) == file.sha256 == asset.sha256
        assert differences(target, asset, contents=True) is None

    def test_an_upload_that_was_killed_goes_on_with_the_parts_that_are_missing(self, server, tmp_path, send):
        file = self.file(tmp_path, 3 * PART + 7, "derivative/resumed.nii.gz")

        class Killed(BaseException):
            pass

        def killed(_size: int) -> None:
            raise Killed

        with pytest.raises(Killed):
            send(file, threads=1, passed=killed)
        proxy = Proxy(server.port)
        try:
            send(file, endpoint=proxy.endpoint)
            assert 1 <= proxy.count("PUT", "partNumber=") <= 3
            assert proxy.count("POST", "uploads") == 0
        finally:
            proxy.close()
        assert self.sha256(server, file.key) == file.sha256

    def test_a_store_is_exactly_its_files_and_a_rerun_sends_none_of_them(self, server, tmp_path, send):
        path = tmp_path / "DANDISET" / "v.ome.zarr"
        for number in range(12):
            chunk = path / "0" / f"{number}"
            chunk.parent.mkdir(parents=True, exist_ok=True)
            chunk.write_bytes(bytes([number]) * 100)

        def store() -> Published:
            write_manifest(path)
            return Published(path, "v.ome.zarr", size_of_path(path), sha256_of_path(path))

        target, asset = send(store())
        assert asset.files == 12
        (path / "0" / "3").unlink()
        target, asset = send(store())
        assert (asset.files, differences(target, asset)) == (11, None)
        held = dict(target.look_below("v.ome.zarr"))
        assert send(store())[1].mark == asset.mark
        assert dict(target.look_below("v.ome.zarr")) == held

    def test_what_is_changed_or_removed_there_is_found(self, server, tmp_path, send, request):
        file = self.file(tmp_path, 1000)
        target, asset = send(file)
        key = f"{request.node.name}/{file.key}"
        server.client().put_object(Bucket="brains", Key=key, Body=bytes(1000))
        assert "other bytes" in differences(target, asset)
        server.client().delete_object(Bucket="brains", Key=key)
        assert differences(target, asset) == "is not there"

    def test_wrong_keys_are_told_at_once_without_the_secret(self, server, request):
        for secret in (f"{ACCESS_KEY}:another-key", f"ANOTHER:{SECRET_KEY}"):
            with pytest.raises(UploadError, match="403") as caught:
                self.target(server.endpoint, request.node.name, secret).check()
            assert not isinstance(caught.value, TargetUnavailable)
            assert not [part for part in secret.split(":") if part in str(caught.value)]
        self.target(server.endpoint, request.node.name).check()


@pytest.mark.slow  # `test_s3.py` has the same promises of it, and more
class TestRclone(S3Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneServer]:
        with RcloneServer(tmp_path_factory.mktemp("rclone"), "brains") as server:
            yield server


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestRadosgw(S3Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RadosGateway]:
        for name in PROGRAMS:
            program(name)
        with RadosGateway(tmp_path_factory.mktemp("radosgw"), "brains") as server:
            yield server
