"""A local server that speaks the part of Slack's API that notifications use, with webhooks; it can be disturbed."""

from __future__ import annotations

import email.parser
import email.policy
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "xoxb-a-token-of-the-tests"
CHANNEL = "C0123456789"
WEBHOOK = "/services/T0/B0/a-secret-of-the-tests"


@dataclass
class Message:
    """A message in the channel."""

    text: str
    files: dict[str, bytes] = field(default_factory=dict)


class SlackServer:
    """Slack, as far as tests need it.

    Attributes
    ----------
    messages : list of Message
        What was posted, in order.
    calls : list of str
        Names of the methods that were called, in order, refused ones included.
    answer : callable
        Returns, for the name of a method, another status, headers and JSON than usual, or None.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.calls: list[str] = []
        self.answer: Callable[[str], tuple[int, dict[str, str], dict[str, Any]] | None] = lambda _method: None
        self._uploads: dict[str, bytes] = {}
        self._names: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> SlackServer:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def api_url(self) -> str:
        """Address of the API."""
        return f"{self.address}/api/"

    @property
    def webhook(self) -> str:
        """Address of an incoming webhook."""
        return f"{self.address}{WEBHOOK}"

    def refuse_for(self, wait_s: float, *methods: str, times: int = 1_000_000) -> None:
        """Answer the next calls of some methods, of all without names, with 429 and the time to wait."""
        left = [times]

        def answer(method: str) -> tuple[int, dict[str, str], dict[str, Any]] | None:
            if left[0] <= 0 or (methods and method not in methods):
                return None
            left[0] -= 1
            return 429, {"Retry-After": f"{wait_s:g}"}, {"ok": False, "error": "ratelimited"}

        self.answer = answer

    def handle(self, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], dict[str, Any] | str]:
        """Return status, headers and content of the answer to a request."""
        method = urlsplit(path).path.removeprefix("/api/")
        if path == WEBHOOK:
            method = "webhook"
        elif method.startswith("/upload/"):
            method = "upload"
        self.calls.append(method)
        if (disturbed := self.answer(method)) is not None:
            return disturbed
        if method == "upload":
            self._uploads[path.rpartition("/")[2]] = _file_in(headers, body)
            return 200, {}, "OK"
        if method == "webhook":
            self.messages.append(Message(json.loads(body)["text"]))
            return 200, {}, "ok"
        given = _fields(headers, body) | {key: values[0] for key, values in parse_qs(urlsplit(path).query).items()}
        if headers.get("Authorization", f"Bearer {given.get('token')}") != f"Bearer {TOKEN}":
            return 200, {}, {"ok": False, "error": "invalid_auth"}
        return 200, {}, self._call(method, given)

    def _call(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        channel = given.get("channel") or given.get("channel_id")
        if method in ("chat.postMessage", "files.completeUploadExternal") and channel != CHANNEL:
            return {"ok": False, "error": "channel_not_found"}
        if method == "chat.postMessage":
            self.messages.append(Message(given["text"]))
            return {"ok": True, "ts": "1.0"}
        if method == "files.getUploadURLExternal":
            number = f"F{len(self._names)}"
            self._names[number] = given["filename"]
            return {"ok": True, "upload_url": f"{self.address}/upload/{number}", "file_id": number}
        if method == "files.completeUploadExternal":
            files = given["files"]
            named = json.loads(files) if isinstance(files, str) else files
            found = {self._names[one["id"]]: self._uploads[one["id"]] for one in named}
            self.messages.append(Message(given.get("initial_comment", ""), found))
            return {"ok": True, "files": named}
        return {"ok": False, "error": "unknown_method"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        slack = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, headers, content = slack.handle(self.path, self.headers, body)
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                kind = "text/plain" if isinstance(content, str) else "application/json"
                for name, value in (headers | {"Content-Type": kind, "Content-Length": str(len(data))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler


def _fields(headers: Any, body: bytes) -> dict[str, Any]:
    if "json" in headers.get("Content-Type", ""):
        return dict(json.loads(body))
    return {key: values[0] for key, values in parse_qs(body.decode()).items()}


def _file_in(headers: Any, body: bytes) -> bytes:
    """Return the file of an upload, which may be a form."""
    kind = headers.get("Content-Type", "")
    if "multipart" not in kind:
        return body
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    form = parser.parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    return next(bytes(part.get_payload(decode=True)) for part in form.iter_parts())
