"""What answers at the address of a server: a Prefect API that this host can work with, or why it cannot.

Commands look here before they begin, so that a server that is away, another program on its port, missing credentials or
another version of Prefect is told in one line. Does not import Prefect.
"""

from __future__ import annotations

import email.utils
import importlib.metadata
import importlib.util
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from opticstream.flows.surroundings import credentials_header, is_this_machine, refused
from opticstream.model.errors import ConfigurationError, ServerError
from opticstream.system.time_limit import within

SETTING = "OPTICSTREAM_API_URL"
LIMIT_S = 8.0
"""Longest time that one look takes, in seconds."""
PATIENCE_S = 4.0
"""How long a command tries to reach a server before it says that none answers, in seconds."""
_MOST_BYTES = 64 * 1024
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 15.0
_SAID_AGAIN_S = (60.0, 600.0, 3600.0)
"""Times of waiting after which it is said again that a server is away; the last one is repeated."""

State = Literal["ready", "away", "refused", "no Prefect", "wrong address", "other version"]


@dataclass(frozen=True)
class Contact:
    """What one look at a server has found.

    Attributes
    ----------
    state : str
        ``ready``; ``away``: nothing answers for the moment; ``refused``: it wants other credentials; ``no Prefect``:
        another program answers; ``wrong address``: it is none; ``other version``: its Prefect does not fit this host's.
    said : str
        What was found, without the address.
    advice : str
        What to do; empty where all is well.
    version : str, optional
        Version of the server's Prefect.
    round_trip_s : float
        How long the answer took, in seconds.
    skew_s : float, optional
        How much later this host's clock is than the server's, in seconds.
    skew_error_s : float
        How exactly `skew_s` is known: the server tells whole seconds, and the way takes time.
    """

    state: State
    said: str
    advice: str = ""
    version: str | None = None
    round_trip_s: float = 0.0
    skew_s: float | None = None
    skew_error_s: float = 0.0

    def error(self, api_url: str, /) -> ConfigurationError | ServerError:
        """Return the error of a command that needs this server."""
        kind = ConfigurationError if self.state in ("refused", "no Prefect", "wrong address") else ServerError
        return kind(f"{SETTING} = {shown_url(api_url)}: {self.said}; {self.advice}")


def check_server(
    api_url: str,
    /,
    *,
    patience_s: float = PATIENCE_S,
    headers: Mapping[str, str] | None = None,
    look: Callable[[str, Mapping[str, str]], Contact] | None = None,
) -> Contact:
    """Return what answers at an address where a Prefect API is needed now; one that is away is asked again for a while.

    Raises
    ------
    ConfigurationError
        The address is none, another program answers there, or it refuses user and password.
    ServerError
        Nothing answers, or the versions of Prefect do not fit.
    """
    ask = look or look_at_server
    known = credentials_header() if headers is None else headers
    end = time.monotonic() + patience_s
    while (found := ask(api_url, known)).state == "away" and time.monotonic() < end:
        time.sleep(_FIRST_WAIT_S)
    if found.state != "ready":
        raise found.error(api_url)
    return found


def wait_for_server(
    api_url: str,
    /,
    *,
    say: Callable[[str], object],
    headers: Mapping[str, str] | None = None,
    look: Callable[[str, Mapping[str, str]], Contact] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Contact:
    """Wait until a Prefect API answers at an address, however long, and say what is waited for: at first and then now
    and then. Only what passes by itself is waited for.

    Raises
    ------
    ConfigurationError, ServerError
        As `check_server` where waiting cannot help.
    """
    ask = look or look_at_server
    known = credentials_header() if headers is None else headers
    begin, wait_s, told, reason = clock(), _FIRST_WAIT_S, 0, ""
    while (found := ask(api_url, known)).state == "away":
        waited_s = clock() - begin
        due_s = 0.0 if told == 0 else _time_to_say(told)
        if waited_s >= due_s or found.said != reason:
            so_far = f", {_in_words(waited_s)} so far" if told else ""
            say(f"{SETTING} = {shown_url(api_url)}: {found.said}; waiting for it{so_far}")
            while _time_to_say(told) <= waited_s:
                told += 1
            told, reason = max(told, 1), found.said
        sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
    if found.state != "ready":
        raise found.error(api_url)
    if told:
        say(f"{SETTING} = {shown_url(api_url)}: the server answers, after {_in_words(clock() - begin)}")
    return found


def _time_to_say(told: int) -> float:
    """Return after how much waiting the line number `told` is due, in seconds; the first one is due at once."""
    if told <= 0:
        return 0.0
    if told <= len(_SAID_AGAIN_S):
        return _SAID_AGAIN_S[told - 1]
    return _SAID_AGAIN_S[-1] * (told - len(_SAID_AGAIN_S) + 1)


def _in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def look_at_server(api_url: str, headers: Mapping[str, str], /, *, limit_s: float = LIMIT_S) -> Contact:
    """Return what answers at an address, after `limit_s` seconds at the latest, whatever is there."""
    try:
        return within(limit_s, lambda: _look(api_url, headers, limit_s))
    except TimeoutError:
        return _away(f"no answer within {limit_s:g} s")


def _look(api_url: str, headers: Mapping[str, str], limit_s: float) -> Contact:
    trouble = _trouble_of_address(api_url)
    if trouble is not None:
        return Contact("wrong address", trouble, "expected an address such as http://10.0.0.1:4200/api")
    begin_s, begin = time.time(), time.monotonic()
    try:
        answer = _asked(api_url, "/admin/version", headers, limit_s)
    except httpx.HTTPError as error:
        return _contact_of_error(api_url, error)
    took_s = time.monotonic() - begin
    found = _contact_of_answer(api_url, answer)
    server_s = _date_of(answer)
    # The date that the server tells is cut to whole seconds: in the middle, it is half a second later than it says.
    skew_s = None if server_s is None else begin_s + took_s / 2 - (server_s + 0.5)
    return Contact(found.state, found.said, found.advice, found.version, took_s, skew_s, 0.5 + took_s / 2)


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def value(self) -> object:
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def detail(self) -> str:
        value = self.value
        detail = value.get("detail") or value.get("exception_message") if isinstance(value, dict) else None
        return " ".join(str(detail or "").split())[:300].rstrip(".")


def _asked(api_url: str, path: str, headers: Mapping[str, str], limit_s: float) -> _Answer:
    trusts = not is_this_machine(api_url)
    with (
        httpx.Client(timeout=limit_s, trust_env=trusts, headers={**_version_header(), **headers}) as client,
        client.stream("GET", api_url.rstrip("/") + path) as answer,
    ):
        body = b""
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > _MOST_BYTES:
                break
        return _Answer(answer.status_code, answer.headers, body)


def _contact_of_answer(api_url: str, answer: _Answer) -> Contact:
    status = answer.status
    if status >= 500 or status == 429:
        advice = "wait until it has started or is less busy, or look at its log"
        return Contact("away", f"the server is not ready (HTTP {status}{_after(answer.detail)})", advice)
    if (trouble := refused(status)) is not None:
        return Contact("refused", *trouble)
    if status == 400 and "version" in answer.detail:
        return _other_version(f"the server refuses the API version of this host's Prefect: {answer.detail}")
    value = answer.value
    if status == 200 and isinstance(value, str) and (version := _version(value)) is not None:
        return _contact_of_version(version)
    if 300 <= status < 400:
        goal = shown_url(answer.headers.get("location", "another address"))
        return Contact("no Prefect", f"no Prefect API answers there, but a redirection to {goal}", _RIGHT_ADDRESS)
    return Contact("no Prefect", f"what answers there is not a Prefect API ({_described(answer)})", _advice(api_url))


_RIGHT_ADDRESS = "set it to the address of the API, such as http://10.0.0.1:4200/api"


def _advice(api_url: str) -> str:
    """Return what to do about an address where another program answers; often only the end is missing."""
    if not is_this_machine(api_url) and (
        proxy := urllib.request.getproxies().get(urllib.parse.urlsplit(api_url).scheme)
    ):
        host = urllib.parse.urlsplit(api_url).hostname
        if not urllib.request.proxy_bypass(host or ""):
            return (
                f"the request went through the proxy {shown_url(proxy)}: name {host} in NO_PROXY, or {_RIGHT_ADDRESS}"
            )
    if urllib.parse.urlsplit(api_url).path.rstrip("/").endswith("/api"):
        return "is this the right host and port? " + _RIGHT_ADDRESS
    with_end = f"{api_url.rstrip('/')}/api"
    try:
        answer = _asked(with_end, "/health", {}, 2.0)
    except httpx.HTTPError:
        return _RIGHT_ADDRESS
    return f"set it to {shown_url(with_end)}" if answer.value is True else _RIGHT_ADDRESS


def _described(answer: _Answer) -> str:
    kind = answer.headers.get("content-type", "").partition(";")[0].strip() or "no type"
    return f"HTTP {answer.status}, {kind}"


def _after(detail: str) -> str:
    return f": {detail}" if detail else ""


def _contact_of_version(version: Version) -> Contact:
    own, needed = installed_version("prefect"), _needed_of("prefect")
    if version not in needed.specifier:
        return _other_version(f"the server runs Prefect {version}, and this host {own}", str(version))
    if own is not None and version.major != own.major:
        return _other_version(f"the server runs Prefect {version}, and this host {own}", str(version))
    if own is not None and version < own:
        return Contact(
            "ready",
            f"the server runs Prefect {version}, which is older than this host's {own}",
            f"bring the server to Prefect {own}: its own clients may ask for what it does not have yet",
            str(version),
        )
    return Contact("ready", f"Prefect {version}", "", str(version))


def _other_version(said: str, version: str | None = None) -> Contact:
    own = installed_version("prefect")
    advice = f"install the same Prefect on both hosts, such as {own} on the server's (`pip install prefect=={own}`)"
    return Contact("other version", said, f"{advice}; OpticStream needs {_needed_of('prefect')}", version)


def _contact_of_error(api_url: str, error: httpx.HTTPError) -> Contact:
    said = " ".join(str(error).split()) or type(error).__name__
    host = urllib.parse.urlsplit(api_url).hostname
    if isinstance(error, httpx.TimeoutException):
        return _away("no answer in time (the host may be down, or a firewall drops what is sent)")
    if re.search(r"Name or service not known|nodename nor servname|No address associated|getaddrinfo failed", said):
        return Contact(
            "away", f"the host name {host!r} cannot be resolved", f"correct the name in {SETTING}, or in DNS"
        )
    if "Temporary failure in name resolution" in said:
        return Contact("away", f"the name server does not answer for {host!r}", "check the network of this host")
    if "SSL" in said or "certificate" in said.lower():
        advice = "check http:// or https://, and PREFECT_API_SSL_CERT_FILE for a certificate of your own"
        return Contact("wrong address", f"no secure connection ({said})", advice)
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" in said.lower():
        return _away(
            "what listens there closed the connection without an answer: another program, or a server that is starting"
        )
    if isinstance(error, httpx.RemoteProtocolError):
        return Contact("no Prefect", f"what answers there is not a Prefect API (no HTTP: {said})", _RIGHT_ADDRESS)
    if isinstance(error, httpx.ProxyError):
        return _away(f"the proxy does not lead there ({said}); see HTTP_PROXY and NO_PROXY")
    return _away(f"no Prefect server answers there ({said})")


def _away(said: str) -> Contact:
    return Contact("away", said, "start one with `opticstream server`, or correct the address")


def _trouble_of_address(api_url: str) -> str | None:
    try:
        parts = urllib.parse.urlsplit(api_url)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        return f"not an address ({error})"
    if parts.scheme not in ("http", "https"):
        return "the address does not begin with http:// or https://"
    if not host or any(character.isspace() for character in api_url):
        return "the address names no host"
    try:
        httpx.URL(api_url)
    except httpx.InvalidURL as error:
        return f"not an address ({error})"
    return None


def shown_url(url: str, /) -> str:
    """Return an address without the user and password that may be in it.

    Examples
    --------
    >>> shown_url("http://me:secret@10.0.0.1:4200/api")
    'http://10.0.0.1:4200/api'
    """
    return re.sub(r"(?<=://)[^/@\s]*@", "", url)


def installed_version(package: str, /) -> Version | None:
    """Return the installed version of a package, None where there is none."""
    try:
        return Version(importlib.metadata.version(package))
    except (importlib.metadata.PackageNotFoundError, InvalidVersion):
        return None


def needed_packages() -> list[Requirement]:
    """Return the packages that OpticStream needs, each with the versions that it was made for."""
    try:
        found = importlib.metadata.requires("opticstream") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    needed = [Requirement(text) for text in found]
    return [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]


def _needed_of(package: str) -> Requirement:
    return next((one for one in needed_packages() if one.name == package), Requirement(package))


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _version_header() -> dict[str, str]:
    """Return the header by which Prefect's own clients say which API they speak; servers refuse one that is too old."""
    spec = importlib.util.find_spec("prefect")
    if spec is None or spec.origin is None:
        return {}
    try:
        text = (Path(spec.origin).parent / "client" / "constants.py").read_text(encoding="utf-8")
    except OSError:
        return {}
    found = re.search(r"^SERVER_API_VERSION\s*=\s*[\"'](.+?)[\"']", text, re.MULTILINE)
    return {"X-PREFECT-API-VERSION": found[1]} if found else {}


def _date_of(answer: _Answer) -> float | None:
    """Return the time of the server's clock in seconds since 1970, in whole seconds."""
    try:
        return email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return None


def said_of_http_error(error: httpx.HTTPError, api_url: str, /) -> str:
    """Return one line about a request to the server that failed, for a command that cannot go on without it."""
    if not isinstance(error, httpx.HTTPStatusError):
        return str(_contact_of_error(api_url, error).error(api_url))
    answer = _Answer(error.response.status_code, error.response.headers, error.response.content)
    found = _contact_of_answer(api_url, answer)
    if found.state != "no Prefect":
        return str(found.error(api_url))
    what = f"{error.request.method} {error.request.url.path} (HTTP {answer.status}{_after(answer.detail)})"
    return f"{SETTING} = {shown_url(api_url)}: the server refused {what}"


def is_passing(error: httpx.HTTPError, /) -> bool:
    """Return whether a request that failed may succeed later, because the server was away or busy."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
