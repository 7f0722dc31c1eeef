"""A small server for tests that speaks the protocol of the DANDI archive, with its storage, and can misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from opticstream.publish.archive_digests import Leaf, archive_part_size, zarr_checksum
from opticstream.testing.s3_server import CUT, Answer, Request

KEY = "the-key-of-the-tests"
DANDISET = "000123"
_ASSETS = f"/api/dandisets/{DANDISET}/versions/draft/assets/"


class DandiServer:
    """An archive with one dandiset, whose contents are in memory.

    Attributes
    ----------
    schema : str
        Version of the schema of its metadata.
    fault : callable
        Gets each request and returns None to serve it, an answer to give instead, or `CUT` to close the connection.
    seen : list of Request
        What was requested.
    files : dict
        Contents by the path of the asset.
    stores : dict
        Contents by the path of the asset and the path in the store.
    keeps : bool
        Whether it keeps what it accepts.
    finalizes : bool
        Whether it ever computes the checksum of a store.
    damage : callable
        Applied to every content that it stores.
    """

    def __init__(self, schema: str = "0.7.0") -> None:
        self.schema = schema
        self.behave()
        self.seen: list[Request] = []
        self.info: dict[str, Any] = {}
        self.lock = threading.RLock()
        self._assets: dict[str, dict[str, Any]] = {}
        self._blobs: dict[str, tuple[str, bytes]] = {}
        self._uploads: dict[str, dict[str, Any]] = {}
        self._zarrs: dict[str, dict[str, Any]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"archive": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def behave(self) -> None:
        """Do everything right from now on."""
        self.fault: Callable[[Request], Answer | None] = lambda _request: None
        self.damage: Callable[[bytes], bytes] = lambda data: data
        self.keeps = self.finalizes = True

    def forget(self, path: str) -> None:
        """Remove an asset, as an owner may."""
        with self.lock:
            del self._assets[path]

    @property
    def address(self) -> str:
        """Address without a path."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def api(self) -> str:
        """Address of the API."""
        return f"{self.address}/api"

    @property
    def files(self) -> dict[str, bytes]:
        """Contents of its files by their paths."""
        return {path: self._blobs[one["blob"]][1] for path, one in self._assets.items() if one["blob"]}

    @property
    def stores(self) -> dict[str, dict[str, bytes]]:
        """Contents of its stores by their paths, and the paths in them."""
        return {path: self._zarrs[one["zarr"]]["files"] for path, one in self._assets.items() if one["zarr"]}

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def count(self, method: str, part: str = "") -> int:
        """Return how many requests of a method had a text in their path."""
        return sum(one.method == method and part in one.path for one in self.seen)

    def sent(self) -> int:
        """Return how many requests have changed something, or would have."""
        return len([one for one in self.seen if one.method != "GET"])

    # The routes: each gets the parts of its path, the query and the body, and returns status and JSON value.

    def serve(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        """Return status and answer of a request."""
        value: Any = json.loads(body) if body and path.startswith("/api") else None
        parts = path.strip("/").split("/")
        if path == "/api/info/":
            return 200, {"version": "0.1", "schema_version": self.schema, **self.info}
        if path in ("/api/auth/token", f"/api/dandisets/{DANDISET}/versions/draft/info/"):
            return 200, {"token": "", "name": "a brain"}
        if path == _ASSETS:
            return self._new_asset(value) if method == "POST" else self._listed_assets(query)
        if path.startswith(_ASSETS):
            return self._asset(method, parts[-1], value)
        if path == "/api/uploads/initialize/":
            return self._new_upload(value)
        if parts[:2] == ["api", "uploads"]:
            return self._upload(parts[2], parts[3])
        if parts[:2] == ["api", "zarr"]:
            return self._zarr_route(method, parts[2:], query, value)
        return 404, {"detail": "Not found."}

    def store(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Return the answer of the storage: status, body and headers."""
        kind, one, rest = path.removeprefix("/storage/").split("/", 2)
        if kind == "zarr":
            if b64decode(headers["content-md5"]) != hashlib.md5(body, usedforsecurity=False).digest():
                return 400, b"BadDigest", {}
            if self.keeps:
                self._zarrs[one]["files"][unquote(rest)] = self.damage(body)
            return 200, b"", {}
        upload = self._uploads[one]
        if method == "PUT":
            upload["parts"][int(rest)] = body
            return 200, b"", {"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'}
        parts = [upload["parts"][number] for number in sorted(upload["parts"])]
        upload["etag"] = _etag(parts)
        upload["data"] = self.damage(b"".join(parts))
        xml = f'<C xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><ETag>"{upload["etag"]}"</ETag></C>'
        return 200, xml.encode(), {}

    def _new_upload(self, about: dict[str, Any]) -> tuple[int, Any]:
        size, etag = about["contentSize"], about["digest"]["value"]
        for blob, (known, data) in self._blobs.items():
            if (known, len(data)) == (etag, size):
                return 409, blob
        if not size:
            return 400, {"contentSize": ["Ensure this value is greater than or equal to 1."]}
        upload, part = str(uuid.uuid4()), archive_part_size(size)
        self._uploads[upload] = {"etag": etag, "size": size, "parts": {}}
        parts = [
            {"part_number": n + 1, "size": min(part, size - n * part),
             "upload_url": f"{self.address}/storage/blob/{upload}/{n + 1}?signature=secret"}
            for n in range(-(-size // part))
        ]  # fmt: skip
        return 200, {"upload_id": upload, "parts": parts}

    def _upload(self, upload: str, what: str) -> tuple[int, Any]:
        if what == "complete":
            return 200, {"complete_url": f"{self.address}/storage/blob/{upload}/complete", "body": "<C/>"}
        blob, data = str(uuid.uuid4()), self._uploads[upload]["data"]
        self._blobs[blob] = (_etag_of(data), data)
        return 200, {"blob_id": blob, "etag": self._blobs[blob][0], "size": len(data)}

    def _listed_assets(self, query: dict[str, str]) -> tuple[int, Any]:
        prefix = query.get("path", "").lower()  # the archive compares without case
        found = [self._shown(one) for path, one in self._assets.items() if path.lower().startswith(prefix)]
        return 200, {"count": len(found), "next": None, "previous": None, "results": found}

    def _new_asset(self, about: dict[str, Any]) -> tuple[int, Any]:
        path = about["metadata"]["path"]
        if path in self._assets:
            return 409, "An asset with that path already exists"
        if about["metadata"].get("schemaKey") != "Asset" or "schemaVersion" not in about["metadata"]:
            return 400, {"metadata": ["it is not of the schema"]}
        asset = {
            "asset_id": str(uuid.uuid4()), "path": path, "blob": about.get("blob_id"), "zarr": about.get("zarr_id"),
            "metadata": about["metadata"],
        }  # fmt: skip
        if self.keeps:
            self._assets[path] = asset
        return 200, self._shown(asset)

    def _asset(self, method: str, last: str, about: dict[str, Any] | None) -> tuple[int, Any]:
        found = next((one for one in self._assets.values() if one["asset_id"] == last), None)
        if found is None:
            return 404, {"detail": "Not found."}
        if method == "PUT" and about is not None:
            del self._assets[found["path"]]
            return self._new_asset(about)
        metadata = {**found["metadata"], "path": found["path"], "contentSize": self._size(found)}
        if found["blob"]:
            metadata["digest"] = {"dandi:dandi-etag": self._blobs[found["blob"]][0]}
        return 200, metadata

    def contents(self, asset: str) -> bytes:
        """Return the bytes of the file of an asset."""
        (found,) = (one for one in self._assets.values() if one["asset_id"] == asset)
        return self._blobs[found["blob"]][1]

    def _shown(self, asset: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat()
        return {**asset, "size": self._size(asset), "created": now, "modified": now}

    def _size(self, asset: dict[str, Any]) -> int:
        if asset["blob"]:
            return len(self._blobs[asset["blob"]][1])
        return sum(map(len, self._zarrs[asset["zarr"]]["files"].values()))

    def _zarr_route(self, method: str, parts: list[str], query: dict[str, str], about: Any) -> tuple[int, Any]:
        if not parts:
            if method == "GET":
                found = [self._shown_zarr(one) for one, zarr in self._zarrs.items() if zarr["name"] == query["name"]]
                return 200, {"count": len(found), "next": None, "results": found}
            if any(zarr["name"] == about["name"] for zarr in self._zarrs.values()):
                return 400, ["Zarr already exists"]
            one = str(uuid.uuid4())
            self._zarrs[one] = {"name": about["name"], "files": {}, "status": "Pending"}
            return 200, self._shown_zarr(one)
        one, zarr = parts[0], self._zarrs[parts[0]]
        if parts[1:] == []:
            if zarr["status"] == "Ingesting" and self.finalizes:
                zarr["status"] = "Complete"
            return 200, self._shown_zarr(one)
        if parts[1] == "finalize":
            if zarr["status"] != "Pending":
                return 400, "Zarr archive is currently ingesting."
            zarr["status"] = "Ingesting"
            return 204, None
        if method == "GET":
            shown = [
                {"Key": name, "LastModified": datetime.now(UTC).isoformat(), "ETag": _md5(data), "Size": len(data)}
                for name, data in zarr["files"].items()
            ]
            return 200, {"count": len(shown), "next": None, "results": shown}
        if zarr["status"] == "Ingesting":
            return 400, "Zarr archive is currently ingesting."
        zarr["status"] = "Pending"
        if method == "DELETE":
            for file in about:
                del zarr["files"][file["path"]]
            return 204, None
        return 200, [f"{self.address}/storage/zarr/{one}/{quote(file['path'])}?signature=secret" for file in about]

    def _shown_zarr(self, one: str) -> dict[str, Any]:
        zarr = self._zarrs[one]
        leaves = [Leaf(name, _md5(data), len(data)) for name, data in zarr["files"].items()]
        complete = zarr["status"] == "Complete"
        return {
            "zarr_id": one, "name": zarr["name"], "dandiset": DANDISET, "status": zarr["status"],
            "checksum": zarr_checksum(leaves) if complete else None,
            "file_count": len(leaves) if complete else 0, "size": sum(leaf.size for leaf in leaves) if complete else 0,
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    archive: DandiServer
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client went away, or was killed
            self.close_connection = True

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, len(body))
        self.archive.seen.append(request)
        answer = self.archive.fault(request)
        if answer is not None:
            self.close_connection = True
            if answer != CUT:
                self.wfile.write(answer)
            return
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        names = {name.lower(): value for name, value in self.headers.items()}
        with self.archive.lock:
            if parts.path.startswith("/storage/"):
                status, data, headers = self.archive.store(self.command, parts.path, names, body)
                self._send(status, data, headers)
            elif parts.path != "/api/info/" and names.get("authorization") != f"token {KEY}":
                self._send(401, b'{"detail": "Invalid token."}', {"Content-Type": "application/json"})
            elif parts.path.endswith("/download/"):
                self._send(200, self.archive.contents(parts.path.split("/")[-3]), {})
            else:
                status, value = self.archive.serve(self.command, parts.path, query, body)
                data = b"" if value is None else json.dumps(value).encode()
                headers = {"Content-Type": "application/json"}
                if status == 409 and parts.path.endswith("/initialize/"):
                    headers["Location"] = str(value)
                self._send(status, data, headers)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815  (as the base class looks for them)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _etag(parts: list[bytes]) -> str:
    digests = b"".join(hashlib.md5(part, usedforsecurity=False).digest() for part in parts)
    return f"{_md5(digests)}-{len(parts)}"


def _etag_of(data: bytes) -> str:
    size = archive_part_size(len(data))
    return _etag([data[begin : begin + size] for begin in range(0, len(data), size)])
