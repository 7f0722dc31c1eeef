"""Any service that Apprise knows is told; a refusal is an error without the address."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from opticstream.config.notify_targets import AppriseTargetSettings
from opticstream.model.errors import ConfigurationError
from opticstream.notify import Milestone, RetryLater, TargetContext, open_targets


class Service:
    """A web service that takes JSON."""

    def __init__(self) -> None:
        self.taken: list[dict] = []
        self.status = 200
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if service.status == 200:
                    service.taken.append(json.loads(body))
                self.send_response(service.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"json://me:S3CRETWORD@127.0.0.1:{self.server.server_address[1]}/S3CRETPATH"


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    thread = threading.Thread(target=service.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()


def tell(url: str, *pictures: Path) -> None:
    (target,) = open_targets([AppriseTargetSettings(url=url)], TargetContext(Path(), print))
    target.tell(Milestone("k", "brain", None, "failed", "tile 3", "tile 3 failed: cut", "failure", pictures))


def test_a_service_receives_subject_text_urgency_and_picture(service, picture):
    tell(service.url, picture)
    (taken,) = service.taken
    assert (taken["title"], taken["message"], taken["type"]) == ("brain: tile 3", "tile 3 failed: cut", "failure")
    (attached,) = taken["attachments"]
    assert attached["filename"] == "mosaic_001_aip.jpg"
    assert base64.b64decode(attached["base64"])[:2] == b"\xff\xd8"


@pytest.mark.parametrize(("status", "kind"), [(500, ConnectionError), (403, ConnectionError), (429, RetryLater)])
def test_a_refusal_is_an_error_that_shows_no_part_of_the_address(service, status, kind):
    service.status = status
    with pytest.raises(kind, match=str(status)) as refused:
        tell(service.url)
    assert "S3CRET" not in str(refused.value)


def test_an_outage_is_an_error(service):
    service.server.server_close()
    with pytest.raises(ConnectionError):
        tell("json://127.0.0.1:9/x")


def test_an_address_that_apprise_does_not_understand_is_an_error_that_does_not_show_it():
    with pytest.raises(ConfigurationError, match="Apprise does not understand its address") as refused:
        tell("S3CRET")
    assert "S3CRET" not in str(refused.value)
