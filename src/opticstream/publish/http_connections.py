"""Requests over HTTP/1.1 with little work for each, over connections that are kept.

urllib3 and http.client take up to a millisecond of processor for a request, most of it for headers that nobody reads;
this takes less than a tenth of that. It has what a server of S3 needs and nothing else: no proxies, no redirections, no
cookies, no compressed answers.
"""

from __future__ import annotations

import socket
import ssl
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from urllib3.util import wait_for_read

_MOST_HEAD_BYTES = 2**18
_RECEIVED_BYTES = 2**16
_SENT_BYTES = 2**18
"""Bytes of one step of sending; each has a time limit of its own, so that a slow line is not taken for a dead one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server has answered."""

    status: int
    reason: str
    headers: Mapping[str, str]
    """By name, in lower case."""
    body: bytes


class HttpConnections:
    """Connections to one server, shared by threads.

    Parameters
    ----------
    endpoint : str
        Address of the server, with `http` or `https`; its path is not used.
    ca_certs : str, optional
        File or folder with the certificates that are trusted with `https`.
    kept : int
        Connections that are kept at most.
    connect_s, step_s : float
        Time after which connecting, or a step of sending or receiving without any progress, is given up, in seconds.
    """

    def __init__(
        self, endpoint: str, *, ca_certs: str | None = None, kept: int = 80, connect_s: float = 20, step_s: float = 120
    ) -> None:
        at = urlsplit(endpoint)
        if not at.hostname:
            raise ValueError(f"{endpoint!r} is not the address of a server, such as https://s3.example.org")
        default = 443 if at.scheme == "https" else 80
        name = f"[{at.hostname}]" if ":" in at.hostname else at.hostname
        self.host = name if at.port in (None, default) else f"{name}:{at.port}"
        """The value of the header `Host`, which every request has."""
        self._name = at.hostname
        self._at = (at.hostname, at.port or default)
        self._context = _context(ca_certs) if at.scheme == "https" else None
        self._kept = kept
        self._connect_s, self._step_s = connect_s, step_s
        self._free: deque[socket.socket] = deque()
        weakref.finalize(self, _close_all, self._free)

    def request(
        self, method: str, address: str, headers: Mapping[str, str], body: bytes | memoryview = b"", /
    ) -> Answer:
        """Send a request and return its answer, whatever its status.

        Parameters
        ----------
        method, address : str
            Such as `PUT`, and path and query as they are sent.
        headers : mapping
            Headers besides `Host` and `Content-Length`.
        body : bytes-like
            The data to send.

        Raises
        ------
        OSError
            The server cannot be reached, does not answer in time, or gives no answer of HTTP.
        """
        lines = [f"{method} {address} HTTP/1.1", f"Host: {self.host}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        connection = self._connection()
        keep = False
        try:
            _send(connection, head, body)
            answer, keep = _received(connection, without_body=method == "HEAD")
        finally:
            if keep and len(self._free) < self._kept:
                self._free.append(connection)
            else:
                connection.close()
        return answer

    def _connection(self) -> socket.socket:
        while self._free:
            try:
                connection = self._free.pop()
            except IndexError:  # another thread has taken it
                break
            if not wait_for_read(connection, timeout=0):
                return connection
            connection.close()  # the server has closed it
        opened = socket.create_connection(self._at, timeout=self._connect_s)
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                opened = self._context.wrap_socket(opened, server_hostname=self._name)
            opened.settimeout(self._step_s)
        except BaseException:
            opened.close()
            raise
        return opened


def _close_all(connections: deque[socket.socket]) -> None:
    while connections:
        connections.pop().close()


def _context(ca_certs: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_certs is not None:
        context.load_verify_locations(ca_certs)
    return context


def _send(connection: socket.socket, head: bytes, body: bytes | memoryview) -> None:
    try:
        if len(body) <= _SENT_BYTES:
            connection.sendall(head + body)
            return
        connection.sendall(head)
        whole = memoryview(body)
        for begin in range(0, len(whole), _SENT_BYTES):
            connection.sendall(whole[begin : begin + _SENT_BYTES])
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server does not want the rest; its answer says why


def _received(connection: socket.socket, *, without_body: bool) -> tuple[Answer, bool]:
    """Return an answer, and whether the connection can be used again."""
    reader = _Reader(connection)
    status = 100
    while status < 200:  # a server may say first that it goes on
        version, status, reason, headers = _head(reader.until(b"\r\n\r\n", _MOST_HEAD_BYTES))
    keep = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    if without_body or status in (204, 304):
        body = b""
    elif headers.get("transfer-encoding", "").lower() == "chunked":
        body = _chunks(reader)
    elif "content-length" in headers:
        body = reader.exactly(_number(headers["content-length"], 10))
    else:
        body, keep = reader.rest(), False
    return Answer(status, reason, headers, body), keep and reader.is_empty


def _head(text: bytes) -> tuple[str, int, str, dict[str, str]]:
    first, *lines = text.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/1.") or not (status.isdecimal() and len(status) == 3):
        raise ConnectionError(f"the server answers {first[:80]!r}, which is not HTTP")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return version, int(status), reason, headers


def _chunks(reader: _Reader) -> bytes:
    """Return a body that is sent in pieces, each with its size."""
    pieces = []
    while size := _number(reader.until(b"\r\n", 2**12).partition(b";")[0].decode("latin-1"), 16):
        pieces.append(reader.exactly(size))
        reader.exactly(2)
    while reader.until(b"\r\n", _MOST_HEAD_BYTES):
        pass  # headers after the body
    return b"".join(pieces)


def _number(text: str, base: int) -> int:
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if number < 0:
        raise ConnectionError(f"the server gives a size of {text[:80]!r}, expected a number")
    return number


class _Reader:
    """Reads from a connection, and keeps what came too early."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""

    @property
    def is_empty(self) -> bool:
        return not self._data

    def until(self, mark: bytes, most: int) -> bytes:
        """Return the bytes before a mark, and skip the mark."""
        while (at := self._data.find(mark)) < 0:
            if len(self._data) > most:
                raise ConnectionError(f"the server answers with more than {most} bytes of headers")
            self._data += self._more()
        found, self._data = self._data[:at], self._data[at + len(mark) :]
        return found

    def exactly(self, size: int) -> bytes:
        pieces, missing = [self._data], size - len(self._data)
        while missing > 0:
            pieces.append(self._more())
            missing -= len(pieces[-1])
        together = b"".join(pieces)
        self._data = together[size:]
        return together[:size]

    def rest(self) -> bytes:
        """Return what comes until the server closes the connection."""
        pieces = [self._data]
        while piece := self._connection.recv(_RECEIVED_BYTES):
            pieces.append(piece)
        self._data = b""
        return b"".join(pieces)

    def _more(self) -> bytes:
        data = self._connection.recv(_RECEIVED_BYTES)
        if not data:
            raise ConnectionError("the server has closed the connection before its answer was complete")
        return data
