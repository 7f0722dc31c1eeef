"""The process of a dashboard: a web server that ends when it is asked to, although pages keep their streams open."""

from __future__ import annotations

import socket

import uvicorn

from opticstream.pipeline.project import Project
from opticstream.web.access import Access
from opticstream.web.app import Dashboard, create_app
from opticstream.web.listening import Listening, Retry, listen

_LONGEST_GOODBYE_S = 1


class DashboardServer(uvicorn.Server):
    """The web server of one dashboard. `should_exit` ends it, from any thread."""

    def __init__(
        self,
        project: Project,
        /,
        *,
        access: Access,
        retry: Retry | None = None,
        listening: Listening | None = None,
    ) -> None:
        listening = listening or listen(access)
        self._listening, self.access = listening.listener, listening.access
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams of open pages, then the server."""
        await self._dashboard.close()
        await super().shutdown(sockets)
