"""The periodic sweep over all registered projects: lost announcements are repeated, what is stuck is reported,
and targets are told what they were not told, and what lasts: a rig that stands still, a disk that fills up.
"""

from __future__ import annotations

import time

import httpx
from prefect import flow, get_run_logger
from prefect.settings import PREFECT_API_URL

from opticstream.config import DeploymentSettings, ProjectConfig
from opticstream.config.path_map import said_of_path
from opticstream.flows.events import announce_automatically
from opticstream.flows.leftovers import crash_runs_of_workers, lost_workers
from opticstream.flows.parameters import registered_projects
from opticstream.flows.picture import publish_picture, publish_stuck
from opticstream.flows.pools import POOLS
from opticstream.flows.queues import credentials, is_queued
from opticstream.pipeline.conditions import conditions
from opticstream.pipeline.milestones import notifier, tell_milestones
from opticstream.pipeline.project import Project
from opticstream.pipeline.stuck import stuck_items
from opticstream.pipeline.sweep import Sweeper, keep_memory_of_sweeps, memory_of_sweeps
from opticstream.system.folders import folder_trouble


@flow(name="sweep")
def sweep() -> None:
    """Announce again what is ready and not started in any project, and report what is stuck."""
    logger = get_run_logger()
    settings = DeploymentSettings()
    _crash_runs_of_lost_workers()
    for config in registered_projects():
        if trouble := folder_trouble(config.base_path, writes=True):
            said = said_of_path(config.as_configured.base_path, config.base_path)
            logger.info("%s: its folder %s, cannot be used on this host: %s", config.name, said, trouble)
            continue
        try:
            _sweep_project(config, settings)
        except Exception as error:  # one project must not keep the others from being swept
            logger.exception("%s could not be swept: %s", config.name, error)


def _crash_runs_of_lost_workers() -> None:
    """Mark the flow runs of workers that the server has not heard from for a while as crashed."""
    logger = get_run_logger()
    try:
        api_url = str(PREFECT_API_URL.value())
        lost = lost_workers(api_url, POOLS, headers=credentials())
        for name in crash_runs_of_workers(api_url, lost, headers=credentials()):
            logger.warning("flow run %s was left by a worker that has ended", name)
    except httpx.HTTPError as error:  # a busy server; the next sweep asks again
        logger.warning("flow runs of lost workers were not looked for: %s", error)


def _sweep_project(config: ProjectConfig, settings: DeploymentSettings) -> None:
    logger = get_run_logger()
    project = Project.open(config, deployment=settings)
    memory = memory_of_sweeps(project)
    sweeper = Sweeper(
        project, settings.sweep_s, announce_automatically, is_queued, clock=time.time, memory=dict(memory)
    )
    for event in sweeper.sweep():
        logger.info("%s: announced %s of %s again", config.name, event.event_name(), event.item)
    if sweeper.memory != memory:
        keep_memory_of_sweeps(project, sweeper.memory)
    stuck = stuck_items(project)
    for one in stuck:
        logger.warning("%s: %s, %s: %s", config.name, one.item, one.what, one.why)
    publish_stuck(project, stuck)
    progress = publish_picture(project)  # facts whose event was lost, or that have none, are seen here at the latest
    look = notifier(project, say=logger.info, warn=logger.warning)
    tell_milestones(project, look, also=conditions(project), progress=progress)
