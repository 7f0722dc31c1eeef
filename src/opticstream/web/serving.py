"""A dashboard as a command runs it: its address is told first, and browsers that connect wait for the rest."""

from __future__ import annotations

from collections.abc import Callable

from opticstream.pipeline.project import Project
from opticstream.web.access import Access
from opticstream.web.listening import Retry, listen


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
    listening = listen(access)
    ready(listening.access.address)
    from opticstream.web.server import DashboardServer  # the web framework takes most of the time of a start

    DashboardServer(project, access=access, retry=retry, listening=listening).run()
