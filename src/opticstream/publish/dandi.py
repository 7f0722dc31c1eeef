"""A dandiset of the DANDI archive, or of another one that speaks its protocol, such as LINC.

The `dandi` client sends files and stores, in a process and an environment of its own. A store (OME-Zarr) is one asset.
Whether the archive holds the right bytes is decided by its own digests: the etag of a file, the checksum of a store.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from opticstream.config import DeploymentSettings
from opticstream.config.publish_targets import ArchiveTargetSettings
from opticstream.model.errors import ConfigurationError, TargetUnavailable, UploadError
from opticstream.publish.archive_digests import DEEPEST, Leaf, depth_of, etag_of_file, md5_of_file, zarr_checksum
from opticstream.publish.dandi_client import ClientError, DandiClient
from opticstream.publish.dandi_environment import CLIENT, NEWEST_SCHEMA, client_python, requirements_of
from opticstream.publish.pace import Pace
from opticstream.publish.patience import Patience
from opticstream.publish.target import Held, LocalFile, LocalStore, Passed, RemoteTarget

R = TypeVar("R")
_QUERY = re.compile(r"\?[^\s?()<>'\"]*=[^\s()<>'\"]*")


class ArchiveTarget:
    """See `RemoteTarget`; for credentials see `ArchiveTargetSettings`."""

    def __init__(
        self, settings: ArchiveTargetSettings, key: str, /, *, patience: Patience, deployment: DeploymentSettings
    ) -> None:
        self.name = settings.target_name
        self._settings, self._patience, self._key = settings, patience, key.strip()
        hello = {
            "api": settings.api, "name": settings.kind, "dandiset": settings.dandiset, "key": self._key,
            "patience_s": patience.total_s, "checksum_s": deployment.upload_checksum_s,
        }  # fmt: skip
        missing = f"run `opticstream dandi-client install {settings.kind}`, or set {self._variable}"
        self._client = DandiClient(client_python(settings.kind, deployment), hello, missing=missing)

    @property
    def place(self) -> str:
        """Dandiset and archive."""
        return f"dandiset {self._settings.dandiset} at {self._settings.api}"

    def look(self, key: str, /) -> Held | None:
        """Return size and etag of a file."""
        found = self._ask("look at", key, {"do": "look", "path": key})
        return None if found is None else Held(found["size"], found["mark"])

    def look_store(self, key: str, /) -> Held | None:
        """Return size, number of files and checksum of a store; no checksum while the archive computes it."""
        found = self._ask("look at", key, {"do": "look_store", "path": key})
        return None if found is None else Held(found["size"], found["mark"], found["files"])

    def put(self, file: LocalFile, /, *, pace: Pace, threads: int, passed: Passed) -> frozenset[str]:
        """Send a file in parts; one whose bytes the archive has already, under any name, is not sent."""
        if not file.size:
            raise UploadError(self._told("write", file.key, "it is empty, and the archive takes no empty files"))
        mark = etag_of_file(file)
        self._put("put", file, file.path, mark, pace, threads, passed)
        return frozenset({mark})

    def put_store(self, store: LocalStore, /, *, pace: Pace, threads: int, passed: Passed) -> Held:
        """Send the files of a store that the archive does not hold, and wait for its checksum."""
        if (depth := depth_of(map(store.name_of, store.files))) > DEEPEST:
            why = f"it has {depth} folders inside each other, and the archive takes {DEEPEST}"
            raise UploadError(self._told("write", store.key, why))
        with ThreadPoolExecutor(threads) as pool:
            md5s = list(pool.map(md5_of_file, store.files))
        leaves = (Leaf(store.name_of(one), md5, one.size) for one, md5 in zip(store.files, md5s, strict=True))
        mark = zarr_checksum(leaves)
        held = self.look_store(store.key)
        if held is None or held.mark != mark:
            self._put("put_store", store, store.path, mark, pace, threads, passed)
            held = self.look_store(store.key)
        else:
            passed(store.size)
        if held is None:
            raise UploadError(self._told("write", store.key, "it does not hold the store although it accepted it"))
        if (held.files, held.size, held.mark) != (len(store.files), store.size, mark):
            why = (
                f"it holds {held.files} files with {held.size} bytes and the checksum {held.mark or 'not known'}, "
                f"expected {len(store.files)} files, {store.size} bytes, {mark}"
            )
            raise UploadError(self._told("write", store.key, why))
        return held

    def marks(self, file: LocalFile, /) -> frozenset[str]:
        """Return the etag of a file."""
        return frozenset({etag_of_file(file)})

    def read_sha256(self, key: str, /) -> str:
        """Read a file back."""
        return self._ask("read", key, {"do": "read", "path": key})

    def check(self) -> None:
        """Ask for the dandiset, with the key."""
        self._ask("look at", "", {"do": "check"})

    def _put(
        self, do: str, what: LocalFile | LocalStore, path: Path, mark: str, pace: Pace, threads: int, passed: Passed
    ) -> None:
        told = 0

        def sent(size: int) -> None:
            """Tell the bytes that were not told before; an attempt that is repeated begins at 0."""
            nonlocal told
            new = max(0, min(size, what.size) - told)
            told += new
            passed(new)

        request = {
            "do": do, "path": what.key, "file": str(path.absolute()), "root": str(_root(path.absolute(), what.key)),
            "mark": mark, "threads": threads,
        }  # fmt: skip
        self._ask("write", what.key, request, pace=pace, sent=sent)
        passed(what.size - told)

    def _ask(self, what: str, key: str, request: dict[str, Any], **options: Any) -> Any:
        """Return the answer of the client, repeated while the archive does not answer."""
        return self._patience.repeat(lambda: self._once(what, key, lambda: self._client.ask(request, **options)))

    def _once(self, what: str, key: str, request: Callable[[], R]) -> R:
        try:
            return request()
        except TargetUnavailable as error:
            raise TargetUnavailable(self._told(what, key, str(error)), retry_after_s=error.retry_after_s) from None
        except ConfigurationError as error:
            raise ConfigurationError(self._without_secrets(f"target {self.name!r}: {error}")) from None
        except ClientError as error:
            if error.kind == "unavailable":
                told = self._told(what, key, error.why)
                raise TargetUnavailable(told, retry_after_s=error.retry_after_s) from None
            if error.kind == "client":
                why = f"{error.why}; run `opticstream dandi-client install {self._settings.kind}`"
                raise ConfigurationError(self._told(what, key, why)) from None
            why = _unfit(error, self._settings.kind, self._variable) if error.kind == "schema" else error.why
            raise UploadError(self._told(what, key, f"{why}{self._advice(error)}")) from None

    def _advice(self, error: ClientError) -> str:
        if error.status == 401 or (error.status == 403 and "token" in error.why.lower()):
            return "; make another key on the archive's page"
        if error.status == 403:
            return f"; only owners of dandiset {self._settings.dandiset} may write to it"
        if error.status == 404:
            return f"; expected a dandiset {self._settings.dandiset} there"
        return ""

    @property
    def _variable(self) -> str:
        return f"OPTICSTREAM_{self._settings.kind.upper()}_PYTHON"

    def _told(self, what: str, key: str, why: str) -> str:
        """Return a message about a request, without secrets."""
        return self._without_secrets(
            f"{self.name} ({self.place}): cannot {what} {key or 'the dandiset'}: {' '.join(why.split())}"
        )

    def _without_secrets(self, text: str) -> str:
        """Return a text without the key, and without the signatures in addresses of the archive's storage."""
        return _QUERY.sub("?***", text.replace(self._key, "***"))


def _unfit(error: ClientError, kind: str, variable: str) -> str:
    """Return the message about an archive whose schema of metadata the client does not know."""
    schema, ours = error.versions["archive_schema"], error.versions["schema"]
    fitting = requirements_of(schema)
    told = f"the archive has schema {schema}, and the client dandi {error.versions['client']} has {ours}"
    if fitting == CLIENT and _version(schema) > _version(NEWEST_SCHEMA):
        return f"{told}; install a newer client in an environment of its own, and set {variable} to its Python"
    if fitting == CLIENT and fitting[0].endswith(f"=={error.versions['client']}"):
        return f"{told}; no client that fits is known; install one in an environment, and set {variable} to its Python"
    return f"{told}; {' and '.join(fitting)} fit: run `opticstream dandi-client install {kind} --schema {schema}`"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _root(path: Path, key: str) -> Path:
    """Return the root of the archive tree, in which a file has its key as its path."""
    root = path.parents[key.count("/")]
    return root if root / key == path else path.parent


def open_target(
    settings: ArchiveTargetSettings,
    secret: str | None,
    patience: Patience,
    /,
    *,
    deployment: DeploymentSettings | None = None,
) -> RemoteTarget:
    """Return the target that settings of kind `dandi` or `linc` name; it does not connect yet.

    Raises
    ------
    ConfigurationError
        There is no key.
    """
    if not (secret or "").strip():
        raise ConfigurationError(
            f"target {settings.target_name!r}: there is no key of {urlsplit(settings.api).hostname}; set the "
            f"environment variable {settings.key_variable}, or `credentials` and run `opticstream secrets set`"
        )
    assert secret is not None
    return ArchiveTarget(settings, secret, patience=patience, deployment=deployment or DeploymentSettings())
