"""Write objects and parts to a server of S3 with little work for each: signed by botocore, sent by urllib3.

A request through boto3 takes 5 ms of processor, whatever it sends, so a store of 10 000 small chunks is limited by
that and not by the network. The same request takes less than half of it here.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree

import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

_UNSIGNED = "UNSIGNED-PAYLOAD"  # the Content-MD5, which is signed, says what the bytes are


class S3Writer:
    """Sends data to one bucket; connections are kept and shared by threads.

    Parameters
    ----------
    endpoint, bucket, region : str
        Address of the server, which is not Amazon's, the bucket in it, and the region to sign for.
    credentials
        Credentials as a session of boto3 gives them.
    ca_bundle : str, optional
        File with the certificates that are trusted; default: those of botocore.
    connections : int
        Connections that are kept at most.
    connect_s, read_s : float
        Time after which a connection, or an answer, is given up, in seconds.
    """

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        region: str,
        credentials: Any,
        *,
        ca_bundle: str | None = None,
        connections: int = 80,
        connect_s: float = 20,
        read_s: float = 120,
    ) -> None:
        at = urlsplit(endpoint)
        self._root = f"{at.scheme}://{at.netloc}"
        self._path = f"{at.path.rstrip('/')}/{bucket}"
        self._region = region
        self._credentials = credentials
        secure = {"ca_certs": get_cert_path(ca_bundle or True)} if at.scheme == "https" else {}
        self._pool = urllib3.connection_from_url(
            self._root,
            maxsize=connections,
            block=False,
            timeout=urllib3.Timeout(connect=connect_s, read=read_s),
            **secure,
        )

    def write(
        self,
        key: str,
        data: bytes,
        /,
        *,
        md5: str,
        sha256: str | None = None,
        metadata: Mapping[str, str] | None = None,
        part: tuple[str, int] | None = None,
    ) -> str:
        """Send an object, or a part of an upload, and return its ETag.

        Parameters
        ----------
        key : str
            Key of the object in the bucket.
        data : bytes
            What to send.
        md5, sha256 : str
            Digests of the data in hexadecimal; without the SHA-256 the signature covers the MD5 only.
        metadata : mapping, optional
            Metadata of the object.
        part : tuple of str and int, optional
            Id of the upload, and number of the part.

        Raises
        ------
        ClientError
            The server has answered something else than 200, such as a refusal or a redirection.
        urllib3.exceptions.HTTPError
            It has not answered.
        """
        path = f"{self._path}/{quote(key, safe='/~')}"
        if part is not None:
            path += "?" + urlencode({"partNumber": part[1], "uploadId": part[0]}, quote_via=quote)
        headers = {"Content-MD5": b64encode(bytes.fromhex(md5)).decode(), "User-Agent": "opticstream"}
        headers |= {f"x-amz-meta-{name}": value for name, value in (metadata or {}).items()}
        request = AWSRequest("PUT", self._root + path, headers=headers)
        _Signer(self._credentials.get_frozen_credentials(), self._region, sha256 or _UNSIGNED).add_auth(request)
        answer = self._pool.urlopen(
            "PUT", path, body=data, headers=dict(request.headers), retries=False, redirect=False, assert_same_host=False
        )
        if answer.status != 200:
            raise _refusal(answer)
        return str(answer.headers.get("ETag", ""))


class _Signer(S3SigV4Auth):  # type: ignore[misc]
    """Signs a request whose data have a digest that is known."""

    def __init__(self, credentials: Any, region: str, payload: str) -> None:
        super().__init__(credentials, "s3", region)
        self._payload = payload

    def payload(self, _request: Any) -> str:
        return self._payload


def is_behind_a_proxy(endpoint: str, /) -> bool:
    """Return whether the environment says that a server is reached through a proxy."""
    return bool(get_environ_proxies(endpoint))


def _refusal(answer: urllib3.BaseHTTPResponse) -> ClientError:
    """Return an answer as the error that boto3 makes of it."""
    said = {"Code": str(answer.status), "Message": answer.reason or ""}
    try:
        for field in ElementTree.fromstring(answer.data):
            if (name := field.tag.rpartition("}")[2]) in said:
                said[name] = field.text or ""
    except ElementTree.ParseError:
        pass  # not from the server itself but from a gateway before it
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return ClientError(
        {"Error": said, "ResponseMetadata": {"HTTPStatusCode": answer.status, "HTTPHeaders": headers}}, "PutObject"
    )
