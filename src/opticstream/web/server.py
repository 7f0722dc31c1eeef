"""The process of a dashboard: a web server that ends when it is asked to, although pages keep their streams open."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import uvicorn

from opticstream.model.errors import ConfigurationError
from opticstream.pipeline.project import Project
from opticstream.web.access import Access
from opticstream.web.app import Dashboard, Retry, create_app

_LONGEST_GOODBYE_S = 1


def serve_dashboard(
    project: Project, /, *, access: Access, retry: Retry | None = None, ready: Callable[[str], object] = lambda _: None
) -> None:
    """Serve the dashboard of a project until the process is interrupted.

    Parameters
    ----------
    project : Project
        The project.
    access : Access
        Host, port and token. Port 0 is any free port.
    retry : callable, optional
        Does a retry; see `create_app`.
    ready : callable, optional
        Told the address when browsers can connect.

    Raises
    ------
    ConfigurationError
        The host is not one of this machine, or the port is taken.
    """
    DashboardServer(project, access=access, retry=retry, ready=ready).run()


class DashboardServer(uvicorn.Server):
    """The web server of one dashboard; see `serve_dashboard`. `should_exit` ends it, from any thread."""

    def __init__(
        self,
        project: Project,
        /,
        *,
        access: Access,
        retry: Retry | None = None,
        ready: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._listening = _listen(access)
        self.access = Access(access.host, self._listening.getsockname()[1], access.token)
        self._ready = ready
        app = create_app(project, access=self.access, retry=retry)
        self._dashboard: Dashboard = app.state.dashboard
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="on",
                server_header=False,
                timeout_graceful_shutdown=_LONGEST_GOODBYE_S,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end."""
        try:
            super().run(sockets or [self._listening])
        finally:
            self._listening.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and tell the address."""
        await super().startup(sockets)
        if not self.should_exit:
            self._ready(self.access.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams of open pages, then the server."""
        await self._dashboard.close()
        await super().shutdown(sockets)


def _listen(access: Access) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            access.host, access.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {access.port} of {access.host} is taken, perhaps by another dashboard; choose another "
                "with --port"
            ) from error
        raise ConfigurationError(f"cannot listen on {access.host}, port {access.port}: {error}") from error
    return listening
