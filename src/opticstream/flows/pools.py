"""The work pools: kinds of work that differ in what they need of a host."""

from __future__ import annotations

from opticstream.config import DeploymentSettings

DESCRIPTIONS = {
    "tile": "Reconstruction of raw tiles: many at a time, processors, moderate memory.",
    "stitch": "Mosaics and their volumes: few at a time, memory.",
    "register": "Registration of slices, and the sample: few at a time, processors and memory; may run on other hosts.",
    "upload": "Publication: many at a time, input and output.",
    "state": "Project state, notifications and sweeps: short runs that hold up nothing.",
}
"""What each pool is for, as Prefect's page shows it."""
POOLS = tuple(DESCRIPTIONS)
POOL_TYPE = "opticstream"
"""Type of the pools, which is that of our workers."""


def pool_limits(settings: DeploymentSettings, /) -> dict[str, int]:
    """Return how many flow runs of each pool run at a time, on all hosts together."""
    return {pool: int(getattr(settings, f"{pool}_limit")) for pool in POOLS}
