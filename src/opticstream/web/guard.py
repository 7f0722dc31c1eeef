"""What stands before every page: foreign requests are refused, and every answer gets the strict policies."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opticstream.web.access import Access

_EMPTY_STYLE = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
"""The hash of no text: an empty style element keeps OpenSeadragon from adding its own."""
CONTENT_POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {_EMPTY_STYLE}; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
DECODER_POLICY = "default-src 'none'; script-src 'self' 'unsafe-eval'; connect-src 'self'"
"""For scripts that run as workers, where nothing of a page can be reached, and make functions from text."""
_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, forms would be sent without their origin
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_OPEN = ("/login", "/static/")
_LIBRARY = re.compile(r"/static/[a-z-]+-\d+\.\d+\.\d+[./]")
"""Files of a version of a library, which never change."""
_WITHOUT_EFFECT = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Refuses foreign hosts, requests without the token, and changes that another page asks for; adds the headers."""

    def __init__(self, app: ASGIApp, access: Access, decoders: Collection[str] = ()) -> None:
        self._app = app
        self._access = access
        self._decoders = decoders
        self._hosts = access.hosts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                if scope["path"] in self._decoders:
                    headers["Content-Security-Policy"] = DECODER_POLICY
                headers.setdefault("Cache-Control", _kept(scope["path"]))
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        host = headers.get("host", "")
        if self._hosts is not None and _without_port(host) not in self._hosts:
            return PlainTextResponse("unknown host", 400)
        if method not in _WITHOUT_EFFECT and not _comes_from_own_page(headers):
            return PlainTextResponse("a request from another page is refused", 403)
        if self._access.token is None:
            if method not in _WITHOUT_EFFECT:
                return PlainTextResponse("the dashboard is read-only: it was started without a token", 403)
            return None
        if path.startswith(_OPEN) or self._access.is_signed_in(headers):
            return None
        if method == "GET" and "text/html" in headers.get("accept", "") and headers.get("hx-request") is None:
            return RedirectResponse("/login", 303)
        return PlainTextResponse("sign in first", 401)


def _kept(path: str) -> str:
    """Return how long browsers may keep an answer that does not say so itself."""
    if _LIBRARY.match(path):
        return "private, max-age=31536000, immutable"
    return "no-cache" if path.startswith("/static/") else "no-store"  # no-cache: kept, and asked for changes


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()


def _comes_from_own_page(headers: Headers) -> bool:
    """Return whether a request was made by a page of this dashboard.

    Browsers tell it by ``Sec-Fetch-Site``, but only where they trust the connection (this host, or HTTPS); elsewhere by
    ``Origin``. What says neither is no browser, and carries no cookie that it was not given on purpose.
    """
    site = headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        return False
    origin = headers.get("origin")
    if origin is not None:
        return origin.partition("://")[2].lower() == headers.get("host", "").lower()
    return site == "same-origin" or "authorization" in headers
