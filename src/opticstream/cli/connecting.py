"""Point a command at the server of OPTICSTREAM_API_URL, once it is known that one answers there that fits."""

from __future__ import annotations

from pathlib import Path

from opticstream.cli.console import err, styled
from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError


def configured_url(settings: DeploymentSettings, /) -> str:
    """Return the address of the configured server; raise ConfigurationError where none is set."""
    if not settings.api_url:
        raise ConfigurationError("OPTICSTREAM_API_URL is not set; set it to the address of a server's API")
    return settings.api_url


def connect(settings: DeploymentSettings, /, *, waits: bool = False) -> Path:
    """Point this process at the configured server and return the folder of our settings.

    With `waits` a server that is away is waited for, however long; otherwise it is an error after some seconds.

    Raises
    ------
    ConfigurationError
        No address is set, it is none, or another program answers there.
    ServerError
        No server answers, or not one that this host can work with.
    """
    home = point_at_server(settings)
    check_configured_server(settings, waits=waits)
    return home


def point_at_server(settings: DeploymentSettings, /) -> Path:
    """Point this process at the configured server, whatever answers there, and return the folder of our settings."""
    from opticstream.flows.surroundings import talk_to_server

    configured_url(settings)
    return talk_to_server(settings)


def check_configured_server(settings: DeploymentSettings, /, *, waits: bool = False, once: bool = False) -> None:
    """Raise the error of `connect` unless a server answers that fits, and warn of one that hardly does.

    With `once` a server that is away is not asked again.
    """
    from opticstream.flows.clock_skew import judged_skew
    from opticstream.flows.contact import PATIENCE_S, check_server, wait_for_server

    url = configured_url(settings)
    found = wait_for_server(url, say=_say) if waits else check_server(url, patience_s=0 if once else PATIENCE_S)
    if found.advice:
        warn(f"{found.said}; {found.advice}")
    skew = judged_skew(found, lease_s=settings.lease_s)
    if skew is not None and skew.level != "ok":
        warn(f"{skew.said}; {skew.advice}")


def warn(line: str, /) -> None:
    """Print a line about something that does not stop the command."""
    err.print(styled("warning:", "yellow"), line)


def _say(line: str) -> None:
    err.print(styled(line, "yellow"))
