"""The memory budget that the flow runs of this host share."""

from __future__ import annotations

import os
from pathlib import Path

from opticstream.config import DeploymentSettings
from opticstream.system.host import HostIdentity
from opticstream.system.memory import MemoryBudget, memory_of_host

_PART = 0.75
"""Part of the host's memory that flow runs may use where nothing else is set."""


def budget_bytes(settings: DeploymentSettings, /) -> int | None:
    """Return how much memory the flow runs of this host may use together; None where nothing tells."""
    if settings.memory_budget is not None:
        return int(settings.memory_budget)
    memory = memory_of_host()
    return None if memory is None else int(_PART * memory)


def memory_budget(settings: DeploymentSettings, /) -> MemoryBudget | None:
    """Return the budget that flow runs of this host share; None where nothing tells how much memory there is.

    It is shared by all workers with the same home folder on this host, also where several hosts share that folder.
    """
    budget = budget_bytes(settings)
    if budget is None:
        return None
    home = Path(os.environ.get("PREFECT_HOME") or settings.home.expanduser())
    host = HostIdentity.current().host.replace("/", "-")
    return MemoryBudget(home / f"memory-{host}", budget)
