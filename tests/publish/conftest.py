"""A real S3 server, and a proxy in front of it that disturbs the traffic."""

from __future__ import annotations

from pathlib import Path

import pytest

from opticstream.testing.s3_server import Proxy, RcloneServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """Yield a running server with the bucket `brains`."""
    with RcloneServer(tmp_path_factory.mktemp("s3"), "brains") as server:
        yield server


@pytest.fixture
def proxy(server: RcloneServer):
    """Yield a proxy in front of the server; set its `fault`."""
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The folder of a local archive tree."""
    folder = tmp_path / "DANDISET"
    folder.mkdir()
    return folder
