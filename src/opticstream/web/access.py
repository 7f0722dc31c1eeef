"""Who may see the dashboard, and who may change something through it.

Without a token the dashboard is read-only and answers on this host alone. With a token everything needs it: it is given
once on the sign-in page, and the browser keeps what was derived from it in a cookie that scripts cannot read.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from opticstream.model.errors import ConfigurationError

SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Access:
    """Host, port and token of a dashboard.

    Raises
    ------
    ConfigurationError
        Another host than this one, and no token; or the token is too short.
    """

    host: str = "127.0.0.1"
    port: int = 8088
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is None and not self.is_local:
            raise ConfigurationError(
                f"--host {self.host}: others could see and reach the dashboard there; give a token with --token-file, "
                "or leave --host out and use an SSH tunnel"
            )
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise ConfigurationError(
                f"the token of the dashboard has {len(self.token)} characters; expected at least {SHORTEST_TOKEN}, "
                "for example from `openssl rand -hex 16`"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this host can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def address(self) -> str:
        """Address to open in a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def warning(self) -> str:
        """Why another host is a risk; empty for this one."""
        if self.is_local:
            return ""
        return (
            f"the dashboard on {self.host} can be reached by everyone on that network: whoever has the token sees the "
            "pictures of the sample and can retry work, and the connection is not encrypted, so that the token and the "
            "pictures can be read on the way; on a network that you do not trust use an SSH tunnel instead"
        )

    @property
    def cookie(self) -> str:
        """Name of the cookie; browsers share cookies between the ports of a host."""
        return f"opticstream-{self.port}"

    def cookie_value(self) -> str:
        """Return what a browser keeps that has given the token; the same after a restart of the server."""
        assert self.token is not None
        return hmac.new(self.token.encode(), b"opticstream dashboard", hashlib.sha256).hexdigest()

    def is_token(self, given: str, /) -> bool:
        """Return whether a text is the token."""
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def is_signed_in(self, headers: Mapping[str, str], /) -> bool:
        """Return whether a request comes from a browser that has given the token, or gives it itself."""
        if self.token is None:
            return False
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        found = cookies.get(self.cookie)
        return found is not None and hmac.compare_digest(found.value.encode(), self.cookie_value().encode())

    def hosts(self) -> frozenset[str] | None:
        """Return the names under which a browser may address the dashboard; None for any (it is bound to all)."""
        if self.is_local:
            return frozenset({"127.0.0.1", "localhost", "[::1]", f"[{self.host}]", self.host})
        try:
            if ipaddress.ip_address(self.host).is_unspecified:
                return None  # every request needs the token
        except ValueError:
            pass
        return frozenset({self.host, f"[{self.host}]"})


def token_from_file(path: Path, /) -> str:
    """Return the token that a file holds on its only line.

    Raises
    ------
    ConfigurationError
        It cannot be read, is empty, or others than its owner may read it.
    """
    try:
        text, mode = path.read_text(encoding="utf-8").strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--token-file {path}: {error}") from error
    if not text or len(text.splitlines()) != 1:
        raise ConfigurationError(f"--token-file {path}: expected one line with the token")
    if mode & 0o077:
        raise ConfigurationError(f"--token-file {path}: other accounts can read it; run `chmod 600 {path}`")
    return text
