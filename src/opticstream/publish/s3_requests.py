"""The requests to a server of S3 that are made for every file: writing, looking and listing, with little work for each.

A request through boto3 takes 5 ms of processor, whatever it sends, and half a millisecond for each object that is
listed. A store of 10 000 small chunks is then limited by that and not by the network or the server.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote_plus, urlencode, urlsplit
from xml.etree import ElementTree

from botocore.exceptions import ClientError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from opticstream.publish.http_connections import Answer, HttpConnections
from opticstream.publish.s3_signature import signed_headers
from opticstream.publish.target import Held

_NO_DATA = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of no bytes


class S3Requests:
    """Requests to one bucket; connections are kept and shared by threads.

    Parameters
    ----------
    endpoint, bucket, region : str
        Address of the server, which is not Amazon's, the bucket in it, and the region to sign for.
    credentials
        Credentials as a session of boto3 gives them.
    ca_bundle : str, optional
        File with the certificates that are trusted; default: those of botocore.

    Notes
    -----
    Every method raises ClientError if the server answers with something else than 200, such as a refusal or a
    redirection, and OSError if it does not answer.
    """

    def __init__(
        self, endpoint: str, bucket: str, region: str, credentials: Any, *, ca_bundle: str | None = None
    ) -> None:
        at = urlsplit(endpoint)
        self._bucket_path = f"{at.path.rstrip('/')}/{bucket}"
        self._region = region
        self._credentials = credentials
        ca_certs = get_cert_path(ca_bundle or True) if at.scheme == "https" else None
        self._connections = HttpConnections(endpoint, ca_certs=ca_certs)

    def write(
        self,
        key: str,
        data: bytes | memoryview,
        /,
        *,
        sha256: str,
        md5: str | None = None,
        metadata: Mapping[str, str] | None = None,
        part: tuple[str, int] | None = None,
    ) -> str:
        """Send an object, or a part of an upload, and return its ETag.

        Parameters
        ----------
        key : str
            Key of the object in the bucket.
        data : bytes-like
            What to send.
        sha256, md5 : str
            Digests of the data in hexadecimal. The server refuses data with another SHA-256, or another MD5 if it is
            given.
        metadata : mapping, optional
            Metadata of the object.
        part : tuple of str and int, optional
            Id of the upload, and number of the part.
        """
        headers = {f"x-amz-meta-{name}": value for name, value in (metadata or {}).items()}
        if md5 is not None:
            headers["Content-MD5"] = b64encode(bytes.fromhex(md5)).decode()
        query = {} if part is None else {"partNumber": part[1], "uploadId": part[0]}
        return _etag(self._answer("PUT", key, query, headers, data, sha256))

    def look(self, key: str, /) -> Held:
        """Return size and ETag of an object."""
        answer = self._answer("HEAD", key)
        size = answer.headers.get("content-length", "")
        if not size.isdecimal():
            raise ConnectionError(f"the server gives a size of {size!r} for {key}, expected a number")
        return Held(int(size), _etag(answer))

    def list_page(self, prefix: str, after: str | None = None) -> tuple[dict[str, Held], str | None]:
        """Return size and ETag of objects by key, and what to give for `after` to get more of them, if there are more.

        Parameters
        ----------
        prefix : str
            What the keys begin with.
        after : str, optional
            What the call before this one has returned.
        """
        query = {"encoding-type": "url", "list-type": "2", "prefix": prefix}
        answer = self._answer("GET", "", query if after is None else {"continuation-token": after, **query})
        try:
            return _page(answer.body)
        except (ElementTree.ParseError, KeyError, ValueError) as error:
            raise ConnectionError(f"the server's list of objects cannot be read: {error!r}") from None

    def _answer(
        self,
        method: str,
        key: str,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | memoryview = b"",
        sha256: str = _NO_DATA,
    ) -> Answer:
        path = f"{self._bucket_path}/{quote(key, safe='/~')}" if key else self._bucket_path
        asked = urlencode(query, quote_via=quote, safe="~") if query else ""
        complete = signed_headers(
            method, path, asked, headers or {}, sha256,
            host=self._connections.host, region=self._region, credentials=self._credentials.get_frozen_credentials(),
        )  # fmt: skip
        complete["User-Agent"] = "opticstream"
        answer = self._connections.request(method, f"{path}?{asked}" if asked else path, complete, data)
        if answer.status != 200:
            raise _refusal(answer)
        return answer


def is_behind_a_proxy(endpoint: str, /) -> bool:
    """Return whether the environment says that a server is reached through a proxy."""
    return bool(get_environ_proxies(endpoint))


def _etag(answer: Answer) -> str:
    return answer.headers.get("etag", "").strip('"')


def _page(text: bytes) -> tuple[dict[str, Held], str | None]:
    found: dict[str, Held] = {}
    about: dict[str, str] = {}
    for field in ElementTree.fromstring(text):
        name = field.tag.rpartition("}")[2]
        if name == "Contents":
            one = {part.tag.rpartition("}")[2]: part.text or "" for part in field}
            found[one["Key"]] = Held(int(one["Size"]), one.get("ETag", "").strip('"'))
        else:
            about[name] = field.text or ""
    if about.get("EncodingType") == "url":
        found = {unquote_plus(key): held for key, held in found.items()}
    return found, about["NextContinuationToken"] if about.get("IsTruncated") == "true" else None


def _refusal(answer: Answer) -> ClientError:
    """Return an answer as the error that boto3 makes of it."""
    said = {"Code": str(answer.status), "Message": answer.reason}
    try:
        for field in ElementTree.fromstring(answer.body):
            if (name := field.tag.rpartition("}")[2]) in said:
                said[name] = field.text or ""
    except ElementTree.ParseError:
        pass  # not from the server itself but from a gateway before it
    about = {"HTTPStatusCode": answer.status, "HTTPHeaders": dict(answer.headers)}
    return ClientError({"Error": said, "ResponseMetadata": about}, "S3")
