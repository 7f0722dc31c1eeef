"""Figures for Prometheus while a command runs (OPTICSTREAM_METRICS_PORT)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError

if TYPE_CHECKING:
    from opticstream.pipeline.project import Project


@contextlib.contextmanager
def metrics_shown(
    settings: DeploymentSettings, projects: Callable[[], Iterable[Project]], *, folders: Sequence[Path] = ()
) -> Iterator[None]:
    """Show figures while a `with` block runs; do nothing without OPTICSTREAM_METRICS_PORT.

    Raises
    ------
    ConfigurationError
        The port cannot be used.
    """
    if settings.metrics_port is None:
        yield
        return
    from opticstream.pipeline.metrics import serve_metrics

    try:
        end = serve_metrics(settings.metrics_port, projects, host=settings.metrics_host, folders=folders)
    except OSError as error:
        where = f"OPTICSTREAM_METRICS_PORT = {settings.metrics_port} at {settings.metrics_host}"
        raise ConfigurationError(f"{where}: cannot be used ({error.strerror or error}); choose another port") from error
    try:
        yield
    finally:
        end()


def registered() -> list[Project]:
    """Return the projects that are registered at the server and that this host sees."""
    from opticstream.flows.parameters import registered_projects
    from opticstream.pipeline.project import Project
    from opticstream.system.folders import folder_trouble

    return [Project.open(config) for config in registered_projects() if not folder_trouble(config.base_path)]
