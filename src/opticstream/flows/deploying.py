"""Work pools, limits and deployments at a server: made, brought up to date, and removed when they no longer exist.

Everything here may be repeated at any time, also while flows run. What has not changed is not touched, so that no event
meets a moment without its trigger.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import VersionInfo
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound

from opticstream import __version__
from opticstream.config import DeploymentSettings
from opticstream.flows.deployments import TAG, runner_deployments
from opticstream.flows.pool_state import trouble_of_pools
from opticstream.flows.pools import DESCRIPTIONS, POOLS, pool_limits
from opticstream.flows.transfer_slots import LIMIT, sets_transfer_limit, transfer_limit
from opticstream.flows.worker_type import WarmWorker
from opticstream.model.errors import ServerError

_PAGE = 200


@dataclass(frozen=True)
class Deployed:
    """What `deploy` has changed at the server.

    Attributes
    ----------
    pools, limits, deployments : dict
        Name -> ``"created"``, ``"updated"`` or ``"unchanged"``.
    removed : tuple of str
        Deployments of an earlier version of the package that no longer exist.
    ids : dict
        Name of a deployment -> its id at the server.
    """

    pools: dict[str, str]
    limits: dict[str, str]
    deployments: dict[str, str]
    removed: tuple[str, ...]
    ids: dict[str, UUID]


async def deploy(settings: DeploymentSettings, /, *, sweeps: bool = True) -> Deployed:
    """Bring the work pools and deployments of a server up to date with this package.

    A pool's limit is set when the pool is made, and later only where the environment sets it
    (``OPTICSTREAM_TILE_LIMIT`` and others): a limit that somebody has changed in Prefect's page stays. The same holds
    for the limit of transfers.

    Parameters
    ----------
    settings : DeploymentSettings
        Limits, the window of shared runs, and the time between sweeps.
    sweeps : bool
        Whether sweeps are scheduled; not where the process that feeds the project sweeps itself.

    Raises
    ------
    ServerError
        The server has a pool of the same name and of another type.
    """
    async with get_client() as client:
        limits = {LIMIT: await _deploy_transfer_limit(client, settings)}
        pools = {pool: await _deploy_pool(client, pool, settings) for pool in POOLS}
        known = {deployment.name: deployment for deployment in await _deployed(client)}
        states: dict[str, str] = {}
        ids: dict[str, UUID] = {}
        wanted = await runner_deployments(collapse_s=settings.collapse_s, sweep_s=settings.sweep_s if sweeps else None)
        for deployment in wanted:
            name = str(deployment.name)
            deployment.version = version_of(deployment)
            found = known.pop(name, None)
            if found is not None and await _is_current(client, found, deployment):
                states[name], ids[name] = "unchanged", found.id
                continue
            # Said here, or Prefect puts the commit of the checkout that it is run in, if any, in the version's place.
            said = VersionInfo(type="prefect:simple", version=deployment.version)
            ids[name] = await deployment.aapply(version_info=said)
            states[name] = "created" if found is None else "updated"
        for gone in known.values():
            await client.delete_resource_owned_automations(f"prefect.deployment.{gone.id}")
            await client.delete_deployment(gone.id)
    return Deployed(pools, limits, states, tuple(sorted(known)), ids)


async def _deploy_pool(client: PrefectClient, pool: str, settings: DeploymentSettings) -> str:
    template, limit = WarmWorker.get_default_base_job_template(), pool_limits(settings)[pool]
    try:
        found = await client.read_work_pool(pool)
    except ObjectNotFound:
        await client.create_work_pool(
            WorkPoolCreate(
                name=pool,
                type=WarmWorker.type,
                description=DESCRIPTIONS[pool],
                base_job_template=template,
                concurrency_limit=limit,
            )
        )
        return "created"
    if trouble := trouble_of_pools([pool], {pool: {"type": found.type}}):
        raise ServerError(trouble)
    changes: dict[str, Any] = {}
    if found.base_job_template != template:
        changes["base_job_template"] = template
    if f"{pool}_limit" in settings.model_fields_set and found.concurrency_limit != limit:
        changes["concurrency_limit"] = limit
    if not changes:
        return "unchanged"
    await client.update_work_pool(pool, WorkPoolUpdate(**changes))
    return "updated"


async def _deploy_transfer_limit(client: PrefectClient, settings: DeploymentSettings) -> str:
    limit = transfer_limit(settings)
    try:
        found = await client.read_global_concurrency_limit_by_name(LIMIT)
    except ObjectNotFound:
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=limit))
        return "created"
    if found.limit == limit or not sets_transfer_limit(settings):
        return "unchanged"
    await client.update_global_concurrency_limit(LIMIT, GlobalConcurrencyLimitUpdate(limit=limit))
    return "updated"


async def _deployed(client: PrefectClient) -> list[DeploymentResponse]:
    """Return all deployments of this package, of any version, at the server."""
    found: list[DeploymentResponse] = []
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    while page := await client.read_deployments(deployment_filter=ours, limit=_PAGE, offset=len(found)):
        found += page
        if len(page) < _PAGE:
            break
    return found


def version_of(deployment: RunnerDeployment, /) -> str:
    """Return the package's version with a hash of everything that a deployment says."""
    said = deployment.model_dump(exclude={"version", "triggers", "schedules"})
    said["triggers"] = [trigger.model_dump() for trigger in deployment.triggers]
    # Not the whole schedules: they begin when they are made.
    said["intervals"] = [getattr(schedule.schedule, "interval", None) for schedule in deployment.schedules or []]
    text = json.dumps(
        said, sort_keys=True, default=lambda value: sorted(value) if isinstance(value, set) else str(value)
    )
    return f"{__version__}+{hashlib.sha256(text.encode()).hexdigest()[:12]}"


async def _is_current(client: PrefectClient, found: DeploymentResponse, wanted: RunnerDeployment) -> bool:
    """Return whether a deployment at the server says what it should, and all its triggers are there."""
    if found.version != wanted.version or found.work_pool_name != wanted.work_pool_name:
        return False
    owned = await client.read_resource_related_automations(f"prefect.deployment.{found.id}")
    return len(owned) >= len(wanted.triggers)
