"""Figures that a server process shows for Prometheus beside those of the projects: flow runs that wait or run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import httpx
from prometheus_client.core import GaugeMetricFamily, Metric

from opticstream.config import DeploymentSettings
from opticstream.flows.pool_state import api_client
from opticstream.flows.pools import POOLS
from opticstream.flows.surroundings import header_of
from opticstream.pipeline.metrics import PREFIX, serve_metrics
from opticstream.pipeline.project import Project
from opticstream.system.folders import folder_trouble

STATES = ("SCHEDULED", "PENDING", "RUNNING")
"""Kinds of states of flow runs that have not ended, as Prefect names them."""
_PATIENCE_S = 10.0
_log = logging.getLogger(__name__)


def show_figures(settings: DeploymentSettings, /, *, api_url: str, auth: str | None) -> Callable[[], None]:
    """Show the figures of a server at OPTICSTREAM_SERVER_METRICS_PORT, and return a function that ends that.

    That the port cannot be used is a warning, and no reason for a server not to run.

    Parameters
    ----------
    settings : DeploymentSettings
        Port and address.
    api_url : str
        The API of this server, as this process reaches it.
    auth : str or None
        ``user:password`` that the API asks for.
    """
    if settings.server_metrics_port is None:
        return lambda: None

    def projects() -> list[Project]:
        return _projects_at(api_url, auth, settings)

    def runs() -> Iterator[Metric]:
        yield figures_of_runs(api_url, headers=header_of(auth, None))

    try:
        return serve_metrics(settings.server_metrics_port, projects, host=settings.metrics_host, more=runs)
    except OSError as error:
        where = f"OPTICSTREAM_SERVER_METRICS_PORT = {settings.server_metrics_port} at {settings.metrics_host}"
        _log.warning("%s cannot be used (%s); the server shows no figures", where, error.strerror or error)
        return lambda: None


def figures_of_runs(api_url: str, /, *, headers: dict[str, str]) -> Metric:
    """Return how many flow runs wait and run in each pool; without any where the server does not answer."""
    family = GaugeMetricFamily(
        f"{PREFIX}_flow_runs", "Flow runs that have not ended, by pool and state.", labels=("pool", "state")
    )
    with contextlib.suppress(httpx.HTTPError), api_client(api_url, headers, timeout_s=_PATIENCE_S) as api:
        for pool in POOLS:
            for state in STATES:
                body = {
                    "work_pools": {"name": {"any_": [pool]}},
                    "flow_runs": {"state": {"type": {"any_": [state]}}},
                }
                answer = api.post("/flow_runs/count", json=body).raise_for_status()
                family.add_metric([pool, state.lower()], float(answer.json()))
    return family


def _projects_at(api_url: str, auth: str | None, settings: DeploymentSettings) -> list[Project]:
    """Return the projects that are registered at a server and whose folders this host sees."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from opticstream.flows.parameters import registered_projects

    # In this thread only: the settings of the server itself stay as they are.
    with temporary_settings({PREFECT_API_URL: api_url, PREFECT_API_AUTH_STRING: auth}):
        configs = registered_projects()
    return [Project.open(config, deployment=settings) for config in configs if not folder_trouble(config.base_path)]
