"""Requests over kept connections, against servers that answer in every way of HTTP, and in some that are not HTTP."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from opticstream.publish import http_connections
from opticstream.publish.http_connections import Answer, HttpConnections

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def server(answer: Callable[[int, bytes], bytes | None]) -> Iterator[tuple[str, list[int]]]:
    """Yield the address of a server, and the connection on which each request came.

    `answer` gets the number of the request and its text, and returns what is sent; None closes the connection.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    came: list[int] = []

    def serve(number: int, client: socket.socket) -> None:
        with suppress(OSError), client, client.makefile("rb") as reader:  # the client may close first
            while head := reader.readline():
                size = 0
                while (line := reader.readline()) not in (b"\r\n", b""):
                    head += line
                    if line.lower().startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                came.append(number)
                text = answer(len(came), head + reader.read(size))
                if text is None:
                    return
                client.sendall(text)

    def accept() -> None:
        number = 0
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            number += 1
            threading.Thread(target=serve, args=(number, client), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", came
    finally:
        listener.close()


ANSWERS = {
    "with its size": OK,
    "in pieces": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\no\r\n1\r\nk\r\n0\r\nMore: x\r\n\r\n",
    "after an interim answer": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
    "without a reason": b"HTTP/1.1 200\r\ncontent-length:2\r\n\r\nok",
}


@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_read_and_its_connection_used_again(text):
    with server(lambda _number, _request: text) as (address, came):
        connections = HttpConnections(address)
        for _ in range(3):
            answer = connections.request("GET", "/", {})
            assert (answer.status, answer.body) == (200, b"ok")
        assert came == [1, 1, 1]


def test_a_request_has_its_headers_and_its_data():
    seen: list[bytes] = []
    with server(lambda _number, request: seen.append(request) or OK) as (address, _came):
        HttpConnections(address).request("PUT", "/a%20b?c=d", {"X-One": "1"}, b"data")
    host = address.removeprefix("http://").encode()
    assert seen == [b"PUT /a%20b?c=d HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 4\r\nX-One: 1\r\ndata"]


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"more than was announced",
    ],
    ids=["the server says so", "an old server", "the server sends too much"],
)
def test_a_connection_that_ends_is_not_used_again(text):
    with server(lambda _number, _request: text) as (address, came):
        connections = HttpConnections(address)
        assert [connections.request("GET", "/", {}).body for _ in range(2)] == [b"ok", b"ok"]
        assert came == [1, 2]


def test_an_answer_without_a_size_ends_with_its_connection():
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    answer = HttpConnections(f"http://127.0.0.1:{listener.getsockname()[1]}").request("GET", "/", {})
    thread.join()
    listener.close()
    assert answer.body == b"all of it"


def test_a_connection_that_the_server_has_closed_meanwhile_is_replaced():
    closing = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(OK)
            closing.set()

    threading.Thread(target=serve, daemon=True).start()
    connections = HttpConnections(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert connections.request("GET", "/", {}).body == b"ok"
    assert closing.wait(60)
    assert connections.request("GET", "/", {}).body == b"ok"
    listener.close()


def test_the_answer_to_a_request_for_headers_has_no_body():
    head = b'HTTP/1.1 200 OK\r\nContent-Length: 123456\r\nETag: "e"\r\n\r\n'
    with server(lambda _number, _request: head) as (address, came):
        connections = HttpConnections(address)
        answers = [connections.request("HEAD", "/", {}) for _ in range(2)]
    expected = Answer(200, "OK", {"content-length": "123456", "etag": '"e"'}, b"")
    assert answers == [expected, expected]
    assert came == [1, 1]


WRONG = {
    "nothing": (None, "before its answer was complete"),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nok", "timed out|complete"),
    "another protocol": (b"220 mail.example.org\r\n\r\n", "which is not HTTP"),
    "a size that is none": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "a size of '-1'"),
    "endless headers": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 60_000, "bytes of headers"),
}


@pytest.mark.parametrize(("text", "told"), WRONG.values(), ids=WRONG)
def test_what_is_no_answer_is_told_as_a_failure_of_the_network(text, told):
    with server(lambda _number, _request: text) as (address, _came), pytest.raises(OSError, match=told):
        HttpConnections(address, step_s=0.5).request("GET", "/", {})


def test_data_are_sent_in_steps_so_that_a_slow_line_is_not_taken_for_a_dead_one():
    """The time limit of a socket is for a whole `sendall`, which may be a large part over a slow line."""
    sent: list[bytes] = []

    class Line:
        def sendall(self, data: bytes | memoryview) -> None:
            sent.append(bytes(data))

    data = bytes(range(256)) * 5000
    http_connections._send(Line(), b"head", data)
    assert b"".join(sent) == b"head" + data
    assert max(map(len, sent)) <= http_connections._SENT_BYTES < len(data)


def test_a_line_that_stands_still_is_given_up():
    listener = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(TimeoutError):
        HttpConnections(f"http://127.0.0.1:{listener.getsockname()[1]}", step_s=0.2).request(
            "PUT", "/", {}, bytes(2**26)
        )
    listener.close()


def test_a_refusal_that_comes_while_data_are_sent_is_read():
    refused = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(1000)
            client.sendall(refused)
            client.shutdown(socket.SHUT_WR)
            while client.recv(2**20):
                pass

    threading.Thread(target=serve, daemon=True).start()
    answer = HttpConnections(f"http://127.0.0.1:{listener.getsockname()[1]}").request("PUT", "/", {}, bytes(2**24))
    assert (answer.status, answer.body) == (403, b"no")
    listener.close()


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("http://s3.example.org", "s3.example.org"),
        ("http://s3.example.org:80/path", "s3.example.org"),
        ("https://s3.example.org:443", "s3.example.org"),
        ("https://s3.example.org:80", "s3.example.org:80"),
        ("http://[::1]:9000", "[::1]:9000"),
    ],
)
def test_the_host_is_named_as_in_the_address(address, host):
    assert HttpConnections(address).host == host


def test_an_address_without_a_server_is_refused():
    with pytest.raises(ValueError, match="is not the address of a server"):
        HttpConnections("s3.example.org")


def test_an_encrypted_server_is_trusted_by_its_certificate_only(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, tmp_path / "key.pem")
    data, got = bytes(range(256)) * 5000, []

    def serve(listener: socket.socket) -> None:
        while True:
            with suppress(ssl.SSLError), context.wrap_socket(listener.accept()[0], server_side=True) as client:
                with client.makefile("rb") as reader:
                    while reader.readline() not in (b"\r\n", b""):
                        pass
                    got.append(reader.read(len(data)))
                client.sendall(OK)
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        address = f"https://localhost:{listener.getsockname()[1]}"
        with pytest.raises(ssl.SSLCertVerificationError):
            HttpConnections(address).request("PUT", "/", {}, data)
        assert HttpConnections(address, ca_certs=str(trusted)).request("PUT", "/", {}, data).body == b"ok"
        thread.join(60)
    assert got == [data]
