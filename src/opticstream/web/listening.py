"""The address of a dashboard, which is there before the dashboard is: browsers that connect meanwhile wait."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import ItemId
from opticstream.web.access import Access

Retry = Callable[[Sequence[ItemId] | None], Sequence[str]]
"""Retries parked items, or all of them, and returns what was done in words."""


@dataclass(frozen=True)
class Listening:
    """A socket to which browsers can connect."""

    listener: socket.socket
    access: Access
    """As it was wanted, with the port that was taken."""


def listen(access: Access, /) -> Listening:
    """Return a socket that listens.

    Raises
    ------
    ConfigurationError
        The host is not one of this machine, or the port is taken.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            access.host, access.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {access.port} of {access.host} is taken, perhaps by another dashboard; choose another "
                "with --port"
            ) from error
        raise ConfigurationError(f"cannot listen on {access.host}, port {access.port}: {error}") from error
    return Listening(listening, replace(access, port=listening.getsockname()[1]))
