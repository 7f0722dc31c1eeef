"""Drive the `dandi` client on behalf of `opticstream.publish.dandi_client`, in an environment that has the client.

This file is run as a program by the interpreter of that environment. It imports nothing of OpticStream. Requests arrive
as lines of JSON on standard input, one after the other, and answers leave on standard output; the key of the archive
is in the first request, so that it appears in no argument and no variable. The program ends when its input ends.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

CONNECT_S, READ_S = 20, 300
"""Time-outs of each request to the archive or its storage, in seconds; the client has none of its own."""
MOST_CHECKSUMS = 2
"""Checksums of a store that may be wrong before its upload is given up."""
ALIVE_S = 2.0
"""Time between two signs of life, in seconds."""
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
_ZARR_DIGEST, _FILE_DIGEST = "dandi:dandi-zarr-checksum", "dandi:dandi-etag"


class Refused(Exception):
    """The archive refuses; waiting does not help."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class NotNow(Exception):
    """The archive does not answer, or has no time."""

    def __init__(self, why: str, retry_after_s: float | None = None) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class Caller:
    """The process that started this one: its requests, and the bandwidth that it grants."""

    def __init__(self) -> None:
        self.requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print is not part of the answers
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, threading.Event] = {}
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._live, daemon=True).start()

    def say(self, **message: Any) -> None:
        """Send a line."""
        with self._lock:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()

    def wait_for_bandwidth(self, size: int) -> None:
        """Return when `size` more bytes may be sent."""
        number, granted = next(self._numbers), threading.Event()
        self._waiting[number] = granted
        self.say(wants=size, number=number)
        granted.wait()

    def _read(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "granted" in message:
                self._waiting.pop(message["granted"]).set()
            else:
                self.requests.put(message)
        os._exit(0)

    def _live(self) -> None:
        while True:
            time.sleep(ALIVE_S)
            self.say(alive=True)


class Line:
    """Watches every request of the client: time-outs, bandwidth, and how long the archive has been silent."""

    def __init__(self, caller: Caller, patience_s: float, checksum_s: float) -> None:
        self._caller, self._patience_s, self._checksum_s = caller, patience_s, checksum_s
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._forbidden: set[str] = set()
        self._checksum_until: dict[str, float] = {}

    def watch(self) -> None:
        """Watch the requests of all sessions from now on."""
        import requests

        send = requests.adapters.HTTPAdapter.send

        def watched(adapter: Any, request: Any, **options: Any) -> Any:
            options["timeout"] = (CONNECT_S, READ_S)
            self._before(request)
            try:
                response = send(adapter, request, **options)
            except requests.RequestException as error:
                self._failed(f"{type(error).__name__}: {error}", None)
                raise
            self._after(request, response)
            return response

        requests.adapters.HTTPAdapter.send = watched  # type: ignore[method-assign,assignment]

    def checksum_begins(self, zarr: str) -> None:
        """Say that the archive has been asked for the checksum of a store."""
        self._checksum_until[zarr] = time.monotonic() + self._checksum_s

    def ensure_checksum_in_time(self, zarr: str) -> None:
        """Raise NotNow if the archive has had its time for the checksum of a store."""
        if time.monotonic() > self._checksum_until.setdefault(zarr, time.monotonic() + self._checksum_s):
            raise NotNow(f"it has not computed the checksum of the store within {self._checksum_s:g} s")

    def _before(self, request: Any) -> None:
        parts = request.path_url.partition("?")[0].rstrip("/").split("/")
        if request.method == "POST" and parts[-1] == "finalize":
            self.checksum_begins(parts[-2])
        if request.method == "GET" and parts[-2] == "zarr" and parts[-1] in self._checksum_until:
            self.ensure_checksum_in_time(parts[-1])
        size = int(request.headers.get("Content-Length") or 0)
        if request.method == "PUT" and size and "Authorization" not in request.headers:  # to the storage
            self._caller.wait_for_bandwidth(size)

    def _after(self, request: Any, response: Any) -> None:
        if response.status_code in _BUSY[3:]:
            after = _seconds(response.headers.get("Retry-After"))
            self._failed(f"{response.status_code} {response.text[:300]}", after)
        elif response.status_code == 403 and request.method == "PUT":
            # The client asks for another address and repeats, since addresses expire; once is enough for that.
            path = request.path_url.partition("?")[0]
            if path in self._forbidden:
                raise Refused(f"403 {response.text[:300]}", 403)
            self._forbidden.add(path)
        else:
            self._failing_since = None

    def _failed(self, why: str, after_s: float | None) -> None:
        with self._lock:
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            if now - self._failing_since + (after_s or 0.0) > self._patience_s:
                self._failing_since = None
                raise NotNow(why, after_s)


class Archive:
    """A dandiset of an archive."""

    def __init__(self, caller: Caller, about: dict[str, Any]) -> None:
        self._caller, self._about = caller, about
        self._line = Line(caller, about["patience_s"], about["checksum_s"])
        import dandi
        import dandischema
        from dandi.consts import DandiInstance
        from dandi.dandiapi import DandiAPIClient
        from dandischema.models import get_schema_version

        self.versions = {
            "client": dandi.__version__, "dandischema": dandischema.__version__, "schema": get_schema_version(),
        }  # fmt: skip
        self._line.watch()
        instance = DandiInstance(name=about["name"], gui=None, api=about["api"])
        self._client = DandiAPIClient(dandi_instance=instance)
        self._dandiset = self._client.get_dandiset(about["dandiset"], "draft")

    def connect(self, _request: dict[str, Any]) -> dict[str, str]:
        """Return the versions of client and archive, once the archive has accepted client and key."""
        self._ensure_that_it_takes_the_client()
        self._client.authenticate(self._about["key"])
        return self.versions

    def _ensure_that_it_takes_the_client(self) -> None:
        from dandi.exceptions import SchemaVersionError
        from packaging.version import Version

        info = self._client.get("/info/")
        self.versions["archive_schema"] = str(info.get("schema_version", ""))
        try:
            self._client.check_schema_version()
        except SchemaVersionError:
            raise Refused("schema") from None
        least = str(info.get("cli-minimal-version") or "0")
        if Version(self.versions["client"]) < Version(least):
            raise Refused(f"it takes clients from dandi {least} on, and {self.versions['client']} is installed")
        if self.versions["client"] in (info.get("cli-bad-versions") or ()):
            raise Refused(f"it takes every client but some, and dandi {self.versions['client']} is one of these")

    def check(self, _request: dict[str, Any]) -> dict[str, str]:
        """Return what the archive says about the dandiset."""
        found = self._client.get(f"/dandisets/{self._dandiset.identifier}/versions/draft/info/")
        return {"name": found.get("name", "")}

    def look(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return size and digest of a file; None if there is none."""
        asset = self._asset(request["path"])
        if asset is None or not _is_blob(asset):
            return None
        # Not `get_raw_metadata`, which may give back what was sent instead of what the archive has computed.
        about = self._client.get(asset.api_path)
        size = about.get("contentSize", asset.size)
        return {"size": int(size), "mark": str(about.get("digest", {}).get(_FILE_DIGEST, ""))}

    def look_store(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return size, number of files and checksum of a store; None if there is none."""
        asset = self._asset(request["path"])
        if asset is None or _is_blob(asset):
            return None
        found = self._client.get(f"/zarr/{asset.zarr}/")
        complete = found.get("status") == "Complete"
        return {
            "size": int(found.get("size") or 0),
            "files": int(found.get("file_count") or 0),
            "mark": str(found.get("checksum") or "") if complete else "",
        }

    def put(self, request: dict[str, Any]) -> None:
        """Send a file."""
        from dandi.files import GenericAsset
        from dandi.misctypes import Digest

        local = GenericAsset(Path(request["file"]), Path(request["root"]), request["path"])
        self._send(local, Digest.dandi_etag(request["mark"]), request)

    def put_store(self, request: dict[str, Any]) -> None:
        """Send a store, and wait for its checksum."""
        from dandi.files import ZarrAsset
        from dandi.misctypes import Digest

        held = self._asset(request["path"])
        if held is not None and not _is_blob(held):
            self._complete(held.zarr, begin=False)
        local = ZarrAsset(Path(request["file"]), Path(request["root"]), request["path"])
        self._send(local, Digest.dandi_zarr(request["mark"]), request)
        self._complete(self._asset(request["path"]).zarr, begin=True)

    def read(self, request: dict[str, Any]) -> str:
        """Return the SHA-256 of a file, read back."""
        digest = hashlib.sha256()
        path = f"{self._dandiset.version_api_path}assets/{self._asset(request['path']).identifier}/download/"
        answer = self._client.get(path, stream=True, json_resp=False)
        for block in answer.iter_content(2**20):
            digest.update(block)
        return digest.hexdigest()

    def _asset(self, path: str) -> Any:
        found = [one for one in self._dandiset.get_assets_with_path_prefix(path) if one.path == path]
        return found[0] if found else None

    def _send(self, local: Any, digest: Any, request: dict[str, Any]) -> None:
        metadata = local.get_metadata(digest=digest).model_dump(mode="json", exclude_none=True)
        replacing = self._asset(request["path"])
        sending = local.iter_upload(self._dandiset, metadata, jobs=request["threads"], replacing=replacing)
        others = 0
        for status in sending:
            if status["status"] == "uploading":
                self._caller.say(sent=status["current"])
            elif status["status"] == "Checksum mismatch":  # the client sends again what differs, for ever
                others += 1
                if others == MOST_CHECKSUMS:
                    raise Refused("it computes another checksum of the store than that of the bytes that were sent")

    def _complete(self, zarr: str, begin: bool) -> None:
        """Wait until the archive knows the checksum of a store.

        An earlier attempt may have ended before it asked for the checksum, or before it was there.
        """
        asked = False
        while True:
            status = self._client.get(f"/zarr/{zarr}/")["status"]
            if status == "Complete" or (status == "Pending" and not begin):
                return
            if status == "Pending" and not asked:
                self._client.post(f"/zarr/{zarr}/finalize/")
                asked = True
            self._line.ensure_checksum_in_time(zarr)
            time.sleep(0.5)


def main() -> None:
    """Answer requests until there are no more."""
    caller = Caller()
    logging.disable(logging.CRITICAL)  # the client logs addresses of its requests, which are secrets
    archive: Archive | None = None
    while True:
        request = caller.requests.get()
        try:
            if archive is None:
                archive = Archive(caller, request)
            caller.say(ok=getattr(archive, request["do"])(request))
        except BaseException as error:
            versions = {} if archive is None else archive.versions
            caller.say(error=_described(error), versions=versions)


def _described(error: BaseException) -> dict[str, Any]:
    import requests

    for one in _causes(error):
        if isinstance(one, NotNow):
            return {"kind": "unavailable", "why": str(one), "retry_after_s": one.retry_after_s}
        if isinstance(one, Refused):
            return {"kind": "schema" if str(one) == "schema" else "refused", "why": str(one), "status": one.status}
    response = getattr(error, "response", None)
    if response is not None:
        status, why = response.status_code, f"{response.status_code} {_text(response)}"
        if status in _BUSY or "ingest" in why.lower():
            after = _seconds(response.headers.get("Retry-After"))
            return {"kind": "unavailable", "why": why, "retry_after_s": after}
        return {"kind": "refused", "why": why, "status": status}
    away = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    if isinstance(error, (ImportError, *away)):
        missing = isinstance(error, ImportError)
        return {"kind": "client" if missing else "unavailable", "why": f"{type(error).__name__}: {error}"}
    status = 404 if type(error).__name__ in ("NotFoundError", "HTTP404Error") else None
    return {"kind": "refused", "why": f"{type(error).__name__}: {error}", "status": status}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _text(response: Any) -> str:
    try:
        about = response.json()
        return str(about["detail"]) if isinstance(about, dict) and "detail" in about else json.dumps(about)[:500]
    except ValueError:
        return " ".join(response.text.split())[:300]


def _seconds(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or a date; None if it has neither."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError, IndexError):
        return None


def _is_blob(asset: Any) -> bool:
    return type(asset).__name__ == "RemoteBlobAsset"


if __name__ == "__main__":
    main()
