"""The deployments as a ``prefect.yaml``, for those who keep theirs in one: ``prefect deploy --all`` makes the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import prefect
import yaml

from opticstream.config import DeploymentSettings
from opticstream.flows.deployments import runner_deployments
from opticstream.io.atomic import write_text


def prefect_yaml(settings: DeploymentSettings, /) -> dict[str, Any]:
    """Return the content of the file: every deployment with its pool, triggers, schedule and limit."""
    deployments = asyncio.run(runner_deployments(collapse_s=settings.collapse_s, sweep_s=settings.sweep_s))
    return {
        "name": "opticstream",
        "prefect-version": prefect.__version__,
        "deployments": [
            {
                "name": deployment.name,
                "description": deployment.description,
                "entrypoint": deployment.entrypoint,
                "tags": deployment.tags,
                "work_pool": {"name": deployment.work_pool_name},
                "triggers": [
                    trigger.model_dump(mode="json", exclude_unset=True) | {"type": "event"}
                    for trigger in deployment.triggers
                ],
                "schedules": [
                    {"interval": schedule.model_dump(mode="json")["schedule"]["interval"]}
                    for schedule in deployment.schedules or []
                ],
                # Nothing is fetched: the package is installed where the worker is.
                "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}],
            }
            | (
                {"concurrency_limit": {"limit": deployment.concurrency_limit} | _strategy(deployment)}
                if deployment.concurrency_limit
                else {}
            )
            for deployment in deployments
        ],
    }


def write_prefect_yaml(path: Path, settings: DeploymentSettings, /) -> None:
    """Write the file, whole or not at all."""
    write_text(path, yaml.safe_dump(prefect_yaml(settings), sort_keys=False, allow_unicode=True))


def _strategy(deployment: Any) -> dict[str, Any]:
    options = deployment.concurrency_options
    return {"collision_strategy": options.collision_strategy.value} if options else {}
