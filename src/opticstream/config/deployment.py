"""How and where the pipeline runs on this host; the only settings that read the environment (``OPTICSTREAM_...``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from opticstream.config.notify_targets import LogTargetSettings, NotifyTargets
from opticstream.config.path_map import PathMap
from opticstream.model.errors import ConfigurationError


class DeploymentSettings(BaseSettings):
    """Paths, limits and waiting times of this host.

    Every field can be set by an environment variable, e.g. ``OPTICSTREAM_LEASE_S=120``.
    """

    model_config = SettingsConfigDict(
        env_prefix="OPTICSTREAM_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    def __init__(self, **values: Any) -> None:
        """Read the environment, with `values` on top; ConfigurationError if one of them is not possible."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError("; ".join(map(_described, error.errors()))) from error

    home: Path = Path("~/.opticstream")
    """Folder of the embedded server's database and logs."""
    api_url: str | None = None
    """Address of the Prefect server's API; default: the embedded one."""
    tile_limit: int = Field(default=2, ge=1)
    """Batches processed at a time on this host."""
    stitch_limit: int = Field(default=1, ge=1)
    """Mosaics stitched at a time on this host."""
    register_limit: int = Field(default=1, ge=1)
    """Slices registered at a time on this host."""
    upload_limit: int = Field(default=1, ge=1)
    """Upload runs at a time on this host."""
    state_limit: int = Field(default=4, ge=1)
    """State and notification runs at a time on this host."""
    lease_s: float = Field(default=300.0, gt=0)
    """Lease of a claim, in seconds; a runner that has not renewed it for so long is taken for dead."""
    poll_s: float = Field(default=2.0, gt=0)
    """Time between two looks at the raw folder, in seconds."""
    stable_s: float = Field(default=5.0, ge=0)
    """Time that size and modification time of a raw file must have stood still, in seconds."""
    stall_s: float = Field(default=600.0, gt=0)
    """Time without anything new after which an incomplete column is worked on as it is, in seconds; `run` waits a
    minute at most. Also how long a mosaic waits for the template of slices of which nothing comes."""
    give_up_s: float = Field(default=900.0, gt=0)
    """Time after which `run` ends although something is left to do, when nothing goes on any longer, in seconds."""
    sweep_s: float = Field(default=60.0, gt=0)
    """Time between two sweeps for work that is ready and not started, in seconds."""
    collapse_s: float = Field(default=10.0, ge=1)
    """Window in which events that ask for the same look at the facts share one flow run, in seconds."""
    attempts: int = Field(default=3, ge=1)
    """Tries of a tile or stage before it is parked as failed."""
    crashes: int = Field(default=5, ge=1)
    """Deaths of the process in the middle of one piece of work after which that work is parked as failed."""
    retry_delay_s: float = Field(default=2.0, ge=0)
    """Wait before the second try, in seconds; doubled each time, with jitter."""
    notify_targets: Annotated[NotifyTargets, NoDecode] = (LogTargetSettings(),)
    """Who is told of milestones and failures: a list in JSON or TOML, such as
    `[{"kind": "log"}, {"kind": "file", "path": "milestones.jsonl"}]`. The same on every host that serves the pool
    `state`."""
    path_map: Annotated[PathMap, NoDecode] = ()
    r"""Where this host sees folders that other hosts name otherwise: a list in JSON or TOML, such as
    `[{ from = '\\rig\data', to = "/mnt/rig" }, { from = "D:/acq", to = "/mnt/acq" }]`."""


def variable_of(name: str, /) -> str:
    """Return the environment variable of a setting.

    Examples
    --------
    >>> variable_of("lease_s")
    'OPTICSTREAM_LEASE_S'
    """
    return f"OPTICSTREAM_{name.upper()}"


def _described(problem: Mapping[str, Any]) -> str:
    """Return one line on a variable that is not possible; a place in a list is told as in `NOTIFY_TARGETS[1].path`."""
    variable, *inner = problem["loc"] or ("",)
    if variable == "notify_targets":  # behind a place in a list stands the kind of target, which is no key
        inner = [part for before, part in zip([None, *inner], inner, strict=False) if not isinstance(before, int)]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner)
    given, context = problem["input"], problem.get("ctx", {})
    match problem["type"]:
        case "union_tag_invalid":
            message = f"unknown kind {context['tag']!r}; expected one of {context['expected_tags']}"
        case "union_tag_not_found":
            message = "has no `kind`"
        case "extra_forbidden":
            message = "there is no such setting"
        case _:
            message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, Mapping | list | tuple | BaseModel) else f" = {given}"
    return f"{variable_of(str(variable))}{place}{shown}: {message}"
