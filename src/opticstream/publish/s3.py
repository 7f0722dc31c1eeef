"""Objects in a bucket of S3, or of a server that speaks its protocol.

Large files are sent in parts. Parts that the server has already received from an interrupted upload are compared by
their MD5 and are not sent again. The SHA-256 of a file is kept as metadata of its object. Whether the server holds the
right bytes is decided by its own answer: size and ETag, or, if its ETag says nothing, by reading the object back.
"""

from __future__ import annotations

import email.utils
import hashlib
import threading
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, IncompleteReadError
from urllib3.exceptions import HTTPError

from opticstream.config.publish_targets import S3TargetSettings
from opticstream.model.errors import ConfigurationError, TargetUnavailable, UploadError
from opticstream.publish.objects import look_at_objects, put_objects
from opticstream.publish.pace import Pace
from opticstream.publish.patience import Patience
from opticstream.publish.s3_requests import S3Requests, is_behind_a_proxy
from opticstream.publish.target import Held, LocalFile, LocalStore, Passed, RemoteTarget, ensure_is_the_file

R = TypeVar("R")
PART_SIZE = 8 * 2**20
"""Smallest size of a part in bytes; files up to this size are sent at once. It bounds the memory of an upload."""
_MOST_PARTS = 9_000  # S3 allows 10 000
_FRESH_STARTS = 3
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset(
    {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "BadDigest", "IncompleteBody",
     "OperationAborted", "XAmzContentSHA256Mismatch"}
)  # fmt: skip
_READ_BYTES = 2**20


class _UploadIsGoneError(Exception):
    """The server does not know the multipart upload: it was completed, aborted, or lost in a restart."""


class S3Target:
    """See `RemoteTarget`; for credentials see `S3TargetSettings`."""

    def __init__(self, settings: S3TargetSettings, secret: str | None, /, *, patience: Patience) -> None:
        self.name = settings.target_name
        self._settings = settings
        self._patience = patience
        self._secrets: tuple[str, ...] = ()
        keys: dict[str, str] = {}
        if secret is not None:
            access, colon, key = secret.strip().partition(":")
            if not (access and colon and key):
                raise ConfigurationError(
                    f"the secret {settings.credentials!r} of target {self.name!r} is not of the form "
                    "ACCESS_KEY:SECRET_KEY"
                )
            self._secrets = (key, access)
            keys = {"aws_access_key_id": access, "aws_secret_access_key": key}
        config = Config(
            retries={"total_max_attempts": 1},  # `Patience` repeats
            connect_timeout=20,
            read_timeout=120,
            max_pool_connections=80,
            s3={"addressing_style": "path"} if settings.endpoint else {},
            request_checksum_calculation="when_required",  # other servers than Amazon's do not know the newer ones
            response_checksum_validation="when_required",
        )
        # A session of its own: the default one is shared by the process and not safe between threads.
        session = boto3.session.Session(region_name=settings.region, **keys)
        self._client: Any = session.client("s3", endpoint_url=settings.endpoint or None, config=config)
        self._quick = _quick_requests(settings, session)
        self._etag_of_parts: bool | None = None
        """Whether a file in parts gets an ETag of its parts' MD5s, or else its own MD5; None if not known yet."""

    @property
    def place(self) -> str:
        """Bucket and prefix, and the server if it is not Amazon's."""
        where = "/".join(part for part in (self._settings.bucket, self._settings.prefix) if part)
        return f"s3://{where}" + (f" at {self._settings.endpoint}" if self._settings.endpoint else "")

    def look(self, key: str, /) -> Held | None:
        """Return size and ETag of an object."""

        def through_boto3() -> Held:
            found = self._client.head_object(**self._object(key))
            return Held(int(found["ContentLength"]), _etag(found))

        try:
            return self._ask_quickly("look at", key, lambda quick: quick.look(self._key(key)), through_boto3)
        except _NotFoundError:
            return None

    def look_below(self, folder: str, /) -> Mapping[str, Held]:
        """Return size and ETag of every object below a folder."""
        prefix = self._key(folder.rstrip("/") + "/")
        held: dict[str, Held] = {}
        more: str | None = None
        while True:
            page, more = self._ask_quickly(
                "list", folder,
                partial(S3Requests.list_page, prefix=prefix, after=more), partial(self._page, prefix, more),
            )  # fmt: skip
            held.update((key.removeprefix(prefix), one) for key, one in page.items())
            if more is None:
                return held

    def _page(self, prefix: str, after: str | None) -> tuple[dict[str, Held], str | None]:
        about = {"Bucket": self._settings.bucket, "Prefix": prefix}
        found = self._client.list_objects_v2(**about, **({} if after is None else {"ContinuationToken": after}))
        page = {one["Key"]: Held(int(one["Size"]), _etag(one)) for one in found.get("Contents", ())}
        return page, found["NextContinuationToken"] if found.get("IsTruncated") else None

    def look_store(self, key: str, /) -> Held | None:
        """Return what the bucket holds below the key of a store."""
        return look_at_objects(self, key)

    def put_store(self, store: LocalStore, /, *, pace: Pace, threads: int, passed: Passed) -> Held:
        """Send the files of a store that the bucket does not hold, and remove those of an earlier store."""
        return put_objects(self, store, pace=pace, threads=threads, passed=passed)

    def put(self, file: LocalFile, /, *, pace: Pace, threads: int, passed: Passed) -> frozenset[str]:
        """Send a file, at once or in parts."""
        if file.size <= PART_SIZE:
            marks = self._put_whole(file, pace)
            passed(file.size)
            return marks
        for _ in range(_FRESH_STARTS):
            try:
                return self._put_parts(file, pace, threads, passed)
            except _UploadIsGoneError:  # completed although the answer was lost, or begun anew
                held, marks = self.look(file.key), self.marks(file)
                if held is not None and held.size == file.size and held.mark in marks:
                    return marks
        raise TargetUnavailable(f"{self.name}: the server has lost the upload of {file.key} {_FRESH_STARTS} times")

    def marks(self, file: LocalFile, /) -> frozenset[str]:
        """Return the ETags that servers give to the bytes of a file: their MD5, or that of the MD5s of the parts."""
        digests, parts = _Digests(md5=True), []
        with file.path.open("rb") as stream:
            while part := stream.read(part_size(file.size)):
                digests.add(part)
                parts.append(_md5(part))
        return digests.marks(file) | {_etag_of_parts(parts)}

    def read_sha256(self, key: str, /) -> str:
        """Read an object and return its SHA-256."""

        def read() -> str:
            digest = hashlib.sha256()
            body = self._client.get_object(**self._object(key))["Body"]
            with body:
                for block in body.iter_chunks(_READ_BYTES):
                    digest.update(block)
            return digest.hexdigest()

        return self._ask("read", key, read)

    def remove(self, key: str, /) -> None:
        """Remove an object."""
        self._ask("remove", key, lambda: self._client.delete_object(**self._object(key)))

    def check(self) -> None:
        """List one object of the bucket."""
        self._ask(
            "list", "",
            lambda: self._client.list_objects_v2(
                Bucket=self._settings.bucket, Prefix=self._settings.prefix, MaxKeys=1
            ),
        )  # fmt: skip

    def _put_whole(self, file: LocalFile, pace: Pace) -> frozenset[str]:
        data = file.path.read_bytes()
        md5 = _md5(data)
        ensure_is_the_file(file, len(data), hashlib.sha256(data).hexdigest())
        pace.take(len(data))

        metadata = {"sha256": file.sha256}

        def through_boto3() -> str:
            answer = self._client.put_object(
                **self._object(file.key), Body=data, ContentMD5=_base64(md5), Metadata=metadata
            )
            return str(answer["ETag"])

        def quickly(quick: S3Requests) -> str:
            return quick.write(self._key(file.key), data, sha256=file.sha256, md5=md5, metadata=metadata)

        self._ask_quickly("write", file.key, quickly, through_boto3)
        return frozenset({md5, _etag_of_parts([md5])})

    def _put_parts(self, file: LocalFile, pace: Pace, threads: int, passed: Passed) -> frozenset[str]:
        upload, present = self._begun_upload(file)
        about = {**self._object(file.key), "UploadId": upload}
        of_file = self._etag_of_parts is False
        digests = _Digests(md5=of_file)
        etags: dict[int, str] = {}
        md5s: list[str] = []
        stop = threading.Event()

        def send(number: int, data: memoryview) -> tuple[int, str]:
            md5 = "" if of_file and number not in present else _md5(data)
            if stop.is_set():
                return 0, md5
            if present.get(number) == (len(data), md5):
                etags[number] = f'"{md5}"'
                return len(data), md5
            pace.take(len(data))

            def through_boto3() -> str:
                checked = _base64(md5 or _md5(data))
                answer = self._client.upload_part(**about, PartNumber=number, Body=bytes(data), ContentMD5=checked)
                return str(answer["ETag"])

            def quickly(quick: S3Requests) -> str:
                return quick.write(self._key(file.key), data, sha256=_sha256(data), part=(upload, number))

            etags[number] = self._ask_quickly("write", file.key, quickly, through_boto3)
            return len(data), md5

        # The digests of the whole file are made beside, in the order of the parts.
        with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as beside, file.path.open("rb") as stream:
            sending: deque[tuple[Future[tuple[int, str]], Future[None], bytearray]] = deque()
            spare: list[bytearray] = []  # used again, because new memory takes longer than what is done with it

            def wait_for_one() -> None:
                sent, digested, buffer = sending.popleft()
                size, md5 = sent.result()
                digested.result()
                spare.append(buffer)
                md5s.append(md5)
                passed(size)

            try:
                for number in count(1):
                    if len(sending) >= threads:
                        wait_for_one()
                    buffer = spare.pop() if spare else bytearray(part_size(file.size))
                    data = memoryview(buffer)[: stream.readinto(buffer)]
                    if not data:
                        break
                    sending.append((pool.submit(send, number, data), beside.submit(digests.add, data), buffer))
                while sending:
                    wait_for_one()
            except BaseException:
                stop.set()
                raise
        marks = digests.marks(file)  # compared with the record before the object appears
        parts = [{"PartNumber": n, "ETag": etags[n]} for n in sorted(etags)]

        def complete() -> None:
            self._ask(
                "complete", file.key,
                lambda: self._client.complete_multipart_upload(**about, MultipartUpload={"Parts": parts}),
            )  # fmt: skip

        if of_file:
            complete()
            return marks
        mark = _etag_of_parts(md5s)
        if self._etag_of_parts:
            complete()
            return frozenset({mark})
        return self._marks_after(complete, file, mark)

    def _marks_after(self, complete: Callable[[], None], file: LocalFile, of_parts: str) -> frozenset[str]:
        """Complete a first upload in parts, and return the marks of the file, given the one that is made of its parts.

        Few servers make the ETag of the whole file. Whether this one does is known only afterwards, so the file's MD5
        is begun while the server puts the parts together.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(1) as beside:
            of_file = beside.submit(_md5_of_file, file.path, stop)
            try:
                complete()
                held = self.look(file.key)
                if held is None or held.mark == of_parts:
                    self._etag_of_parts = None if held is None else True
                    return frozenset({of_parts})
                md5 = of_file.result()
                self._etag_of_parts = held.mark != md5  # neither: encrypted, and no MD5 is worth another reading
                return frozenset({of_parts, md5})
            finally:
                stop.set()

    def _begun_upload(self, file: LocalFile) -> tuple[str, dict[int, tuple[int, str]]]:
        """Return an upload of the file that was interrupted, with its parts by number; a new one if there is none."""
        key = self._key(file.key)
        try:
            found = self._ask(
                "list the uploads of",
                file.key,
                lambda: self._client.list_multipart_uploads(Bucket=self._settings.bucket, Prefix=key),
            )
        except (_UploadIsGoneError, _NotFoundError):  # some servers say so where there are none
            found = {}
        own = [one for one in found.get("Uploads", ()) if one["Key"] == key]
        for one in sorted(own, key=lambda upload: upload.get("Initiated", datetime.min), reverse=True):
            try:
                return one["UploadId"], self._parts(file, one["UploadId"])
            except (_UploadIsGoneError, _NotFoundError):
                continue
        begun = self._ask(
            "begin", file.key,
            lambda: self._client.create_multipart_upload(**self._object(file.key), Metadata={"sha256": file.sha256}),
        )  # fmt: skip
        return begun["UploadId"], {}

    def _parts(self, file: LocalFile, upload: str) -> dict[int, tuple[int, str]]:
        parts: dict[int, tuple[int, str]] = {}
        marker = 0
        while True:
            about = {**self._object(file.key), "UploadId": upload, "PartNumberMarker": marker}
            found = self._ask("list the parts of", file.key, partial(self._client.list_parts, **about))
            for one in found.get("Parts", ()):
                parts[one["PartNumber"]] = (int(one["Size"]), _etag(one))
            if not found.get("IsTruncated"):
                return parts
            marker = found["NextPartNumberMarker"]

    def _key(self, key: str) -> str:
        return f"{self._settings.prefix}/{key}" if self._settings.prefix else key

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._settings.bucket, "Key": self._key(key)}

    def _ask(self, what: str, key: str, request: Callable[[], R]) -> R:
        """Return the answer to a request, repeated while the server does not answer."""

        def once() -> R:
            try:
                return request()
            except ClientError as error:
                raise self._refusal(what, key, error) from None  # the original error shows the request
            except (ConnectionError, HTTPClientError, IncompleteReadError, HTTPError, OSError) as error:
                raise TargetUnavailable(self._told(what, key, f"{type(error).__name__}: {error}")) from None
            except BotoCoreError as error:
                raise UploadError(self._told(what, key, f"{type(error).__name__}: {error}")) from None

        return self._patience.repeat(once)

    def _ask_quickly(
        self, what: str, key: str, quickly: Callable[[S3Requests], R], through_boto3: Callable[[], R]
    ) -> R:
        """Return the answer to a request, which is made the quick way at first.

        What that does not know is left to boto3, which follows a server to another region, and asks before it sends
        much: a refusal then arrives before the connection is closed.
        """
        attempts = count()

        def request() -> R:
            if self._quick is None or next(attempts):
                return through_boto3()
            try:
                return quickly(self._quick)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] // 100 == 3:
                    return through_boto3()
                raise

        return self._ask(what, key, request)

    def _refusal(self, what: str, key: str, error: ClientError) -> Exception:
        about: Mapping[str, Any] = error.response
        status = int(about.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code, message = str(about.get("Error", {}).get("Code", "")), str(about.get("Error", {}).get("Message", ""))
        if code == "NoSuchUpload":
            return _UploadIsGoneError()
        if status == 404 and code in ("404", "NoSuchKey", "NotFound"):
            return _NotFoundError()
        told = self._told(what, key, " ".join(part for part in (str(status or ""), code, message) if part))
        if status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES:
            headers = about.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            return TargetUnavailable(told, retry_after_s=_seconds_of(headers.get("retry-after")))
        return UploadError(told)

    def _told(self, what: str, key: str, why: str) -> str:
        """Return a message about a request, without secrets."""
        text = f"{self.name} ({self.place}): cannot {what} {key or 'the bucket'}: {' '.join(why.split())}"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class _NotFoundError(Exception):
    """The server has no such object."""


class _Digests:
    """Digests of a whole file, from its parts in order."""

    def __init__(self, *, md5: bool) -> None:
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._size = 0

    def add(self, part: bytes | memoryview, /) -> None:
        """Add a part."""
        self._sha256.update(part)
        if self._md5 is not None:
            self._md5.update(part)
        self._size += len(part)

    def marks(self, file: LocalFile, /) -> frozenset[str]:
        """Return the ETag of the whole file if its MD5 was made.

        Raises
        ------
        InputError
            It is not the file that its record describes.
        """
        ensure_is_the_file(file, self._size, self._sha256.hexdigest())
        return frozenset() if self._md5 is None else frozenset({self._md5.hexdigest()})


def part_size(size: int, /) -> int:
    """Return the size of the parts of a file, which depends on nothing else, so that an upload can be continued.

    Examples
    --------
    >>> part_size(10**9) == PART_SIZE, part_size(10**12) > PART_SIZE, 10**12 / part_size(10**12) <= 9000
    (True, True, True)
    """
    needed = -(-size // _MOST_PARTS)
    return max(PART_SIZE, -(-needed // 2**20) * 2**20)


def open_target(settings: S3TargetSettings, secret: str | None, patience: Patience, /) -> RemoteTarget:
    """Return the target that settings of kind `s3` name; it does not connect yet."""
    return S3Target(settings, secret, patience=patience)


def _etag(found: Mapping[str, Any]) -> str:
    return str(found.get("ETag", "")).strip('"')


def _quick_requests(settings: S3TargetSettings, session: Any) -> S3Requests | None:
    """Return the quick requests to a server; None where boto3 knows more: at Amazon, and behind a proxy."""
    credentials = session.get_credentials()
    if not settings.endpoint or credentials is None or is_behind_a_proxy(settings.endpoint):
        return None
    bundle = session._session.get_config_variable("ca_bundle")
    return S3Requests(settings.endpoint, settings.bucket, settings.region, credentials, ca_bundle=bundle)


def _etag_of_parts(md5s: Sequence[str]) -> str:
    """Return the ETag of an object that was sent in parts with these MD5s."""
    together = b"".join(map(bytes.fromhex, md5s))
    return f"{_md5(together)}-{len(md5s)}"


def _md5(data: bytes | memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _md5_of_file(path: Path, stop: threading.Event) -> str:
    """Return the MD5 of a file; of its beginning only if it is stopped."""
    digest = hashlib.md5(usedforsecurity=False)
    block = bytearray(_READ_BYTES)
    with path.open("rb", buffering=0) as stream:
        while not stop.is_set() and (size := stream.readinto(block)):
            digest.update(memoryview(block)[:size])
    return digest.hexdigest()


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _base64(digest: str) -> str:
    return b64encode(bytes.fromhex(digest)).decode()


def _seconds_of(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or a date.

    Examples
    --------
    >>> _seconds_of("2"), _seconds_of("soon"), _seconds_of(None)
    (2.0, None, None)
    """
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, IndexError):  # a date without a zone, or none
        return None
