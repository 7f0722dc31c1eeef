"""Signatures are those of botocore, which signs for all of Amazon."""

from __future__ import annotations

import time
from urllib.parse import quote

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from opticstream.publish.s3_signature import signed_headers

PAYLOAD = "ab" * 32


def signed_by_botocore(method, path, query, headers, *, host, region, credentials):
    class Signer(botocore.auth.S3SigV4Auth):
        def payload(self, _request):
            return PAYLOAD

    address = f"http://{host}{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method, address, headers=headers)
    Signer(credentials, "s3", region).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@given(
    key=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    values=st.dictionaries(st.sampled_from(["list-type", "prefix", "partNumber", "uploadId"]), st.text("aB1~/+ &=")),
    secret=st.text("abcXYZ019/+", min_size=1),
    token=st.sampled_from([None, "a-token"]),
    host=st.sampled_from(["127.0.0.1:9000", "s3.example.org"]),
)
def test_a_request_is_signed_as_by_botocore(key, values, secret, token, host):
    credentials = ReadOnlyCredentials("ACCESS", secret, token)
    path = "/bucket/" + quote(key, safe="/~")
    query = "&".join(f"{name}={quote(value, safe='~')}" for name, value in sorted(values.items()))
    headers = {"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg==", "x-amz-meta-sha256": PAYLOAD}
    about = {"host": host, "region": "eu-north-1", "credentials": credentials}
    expected = signed_by_botocore("PUT", path, query, headers, **about)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.gmtime", lambda _at: _moment(expected["x-amz-date"]))
        found = signed_headers("PUT", path, query, headers, PAYLOAD, **about)
    assert {name.lower(): value for name, value in found.items()} == expected


def _moment(stamp: str):
    return time.strptime(stamp, "%Y%m%dT%H%M%SZ")
