"""A small HTTP server with as much of Prefect's protocol as a test needs: another version, or another program."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, str, bytes]


def as_json(value: Any, status: int = 200) -> Reply:
    """Return an answer with a JSON value."""
    return status, "application/json", json.dumps(value).encode()


HTML: Reply = (200, "text/html; charset=utf-8", b"<!doctype html><html>another program</html>")


class FakeApi:
    """Answers by path; `seen` are the requests with their headers."""

    def __init__(self, replies: dict[str, Reply | Callable[[], Reply]], *, port: int = 0, skew_s: float = 0.0) -> None:
        self.replies = replies
        self.skew_s = skew_s
        self.seen: list[tuple[str, dict[str, str]]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.answer(self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                api.answer(self)

            def date_time_string(self, timestamp: float | None = None) -> str:
                import time

                return formatdate((time.time() if timestamp is None else timestamp) + api.skew_s, usegmt=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/api"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0].removeprefix("/api")
        self.seen.append((path, {name.lower(): value for name, value in request.headers.items()}))
        reply = self.replies.get(path, self.replies.get("*", as_json({"detail": "Not Found"}, 404)))
        status, kind, body = reply() if callable(reply) else reply
        request.send_response(status)
        request.send_header("content-type", kind)
        request.send_header("content-length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def fake_api(replies: dict[str, Any], **options: Any) -> Iterator[FakeApi]:
    """Run a server for a block."""
    api = FakeApi(replies, **options)
    try:
        yield api
    finally:
        api.close()


def prefect(version: str, **replies: Any) -> dict[str, Any]:
    """Return the answers of a Prefect server of a version."""
    return {"/admin/version": as_json(version), "/health": as_json(True)} | replies
