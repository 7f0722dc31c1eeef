"""How and where the pipeline runs on this host; the only settings that read the environment (``OPTICSTREAM_...``)."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from opticstream.config.hours import HOURS
from opticstream.config.lists import list_from_text
from opticstream.config.notify_targets import LogTargetSettings, NotifyTargets, kinds_with_secrets
from opticstream.config.path_map import PathMap
from opticstream.config.secrets import secret_in_file
from opticstream.model.errors import ConfigurationError

SECRETS = ("api_auth", "database_url", "redis_url")
"""Settings that may stand in a file instead, which the setting of the same name with ``_file`` names."""


class DeploymentSettings(BaseSettings):
    """Paths, limits and waiting times of this host.

    Every field can be set by an environment variable, e.g. ``OPTICSTREAM_LEASE_S=120``.
    """

    model_config = SettingsConfigDict(env_prefix="OPTICSTREAM_", frozen=True, extra="ignore")

    def __init__(self, **values: Any) -> None:
        """Read the environment, overridden by `values`; raise ConfigurationError if a value is invalid."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError("; ".join(map(_described, error.errors()))) from error

    home: Path = Path("~/.opticstream")
    """Folder of the embedded server's database and logs."""
    api_url: str | None = None
    """Address of the Prefect server's API; default: an embedded server."""
    api_auth: SecretStr | None = None
    """User and password, as `user:password`: `opticstream server` asks for them, and every other command gives them."""
    api_auth_file: Path | None = None
    """File that holds them instead, on one line."""
    database_url: SecretStr | None = None
    """Database of `opticstream server`, such as `postgresql://user:password@host/prefect`; default: SQLite in the home
    folder."""
    database_url_file: Path | None = None
    """File that holds this address instead, on one line."""
    redis_url: SecretStr | None = None
    """Redis of `opticstream server`, such as `redis://host:6379`, for events, leases and several API replicas; default:
    none, and one process keeps them. Three databases are used, from the one that is named (0)."""
    redis_url_file: Path | None = None
    """File that holds this address instead, on one line."""
    retention_days: float = Field(default=30.0, ge=1.0, le=36_500.0)
    """How long the server keeps flow runs that have ended, with their logs and artifacts, in days. State of projects
    and runs that have not ended are kept for ever."""
    event_retention_days: float = Field(default=7.0, ge=1.0, le=36_500.0)
    """How long the server keeps events, in days; they are most of what it stores."""
    artifact_versions: int = Field(default=3, ge=1)
    """Versions of an artifact that the server keeps: the latest ones."""
    tile_limit: int = Field(default=2, ge=1)
    """Batches processed at the same time, on all hosts together."""
    stitch_limit: int = Field(default=1, ge=1)
    """Mosaics stitched at the same time, on all hosts together."""
    register_limit: int = Field(default=1, ge=1)
    """Slices registered at the same time, on all hosts together."""
    upload_limit: int = Field(default=1, ge=1)
    """Upload runs at the same time, on all hosts together."""
    upload_transfers: int = Field(default=5, ge=1, le=64)
    """Files, or parts of large files, that one upload run sends at the same time."""
    upload_transfer_limit: int | None = Field(default=None, ge=1)
    """Files, or parts of large files, that are sent at the same time, on all hosts together: the concurrency limit
    `opticstream-transfers` of the Prefect server. Default: OPTICSTREAM_UPLOAD_LIMIT times
    OPTICSTREAM_UPLOAD_TRANSFERS."""
    upload_rate: Annotated[ByteSize, Field(ge=1000)] | None = None
    """Bytes per second for uploads, on all hosts together, such as `20MB`: each of the OPTICSTREAM_UPLOAD_LIMIT runs
    has an equal share. Default: no limit."""
    upload_rate_night: Annotated[ByteSize, Field(ge=1000)] | None = None
    """The same at night; default: as by day."""
    upload_night: str = Field(default="22:00-06:00", pattern=HOURS)
    """When OPTICSTREAM_UPLOAD_RATE_NIGHT holds, in the local time of the host."""
    upload_patience_s: float = Field(default=600.0, ge=0)
    """Time for which one request to a remote target is repeated while the target does not answer, in seconds. The
    upload then waits for the next sweep; it is not parked."""
    upload_checksum_s: float = Field(default=7200.0, gt=0)
    """Time that DANDI or LINC may take for the checksum of a store that has been sent, in seconds. The upload then
    waits for the next sweep, which sends nothing again."""
    dandi_python: Path | None = None
    """Python of an environment with the `dandi` client, for targets of kind `dandi`; default: the one in the home
    folder that `opticstream dandi-client install dandi` makes."""
    linc_python: Path | None = None
    """The same for targets of kind `linc`, whose archive may need another version of the client."""
    state_limit: int = Field(default=4, ge=1)
    """State and notification runs at the same time, on all hosts together."""
    warm_starts: bool = True
    """Flow runs are forked from a process that has everything imported; otherwise each starts an interpreter."""
    worker_poll_s: float = Field(default=1.0, gt=0)
    """Time between two queries of a worker for flow runs while the server announces none to it, in seconds."""
    memory_budget: Annotated[ByteSize, Field(ge=100_000_000)] | None = None
    """Memory that the flow runs of this host may use together, such as `24GiB`; heavy ones wait for each other, and
    blocks are made smaller. Default: three quarters of the memory of this host, or of its control group."""
    lease_s: float = Field(default=300.0, gt=0)
    """Lease of a claim, in seconds; a process that has not renewed it for this long is considered dead."""
    poll_s: float = Field(default=2.0, gt=0)
    """Time between two checks of the raw folder, in seconds."""
    stable_s: float = Field(default=5.0, ge=0)
    """Time for which the size and modification time of a raw file must not have changed, in seconds."""
    tile_by_tile: bool = True
    """Whether tiles are processed as they come, before their column is complete; MATLAB processes whole columns."""
    tile_stable_s: float = Field(default=0.5, ge=0)
    """Time for which a raw file must not have changed before its tile is processed ahead of its column, in seconds.
    When the column is ready, what was made is compared with the files again."""
    compile_ahead: bool = True
    """Whether workers compile, in the background, what large tiles need; else the first large tile waits for that.
    Small tiles, as the demo's, need none of it."""
    stall_s: float = Field(default=600.0, gt=0)
    """Time without any new file after which an incomplete column is processed as it is, in seconds; `run` waits at most
    a minute. Also how long a mosaic waits for the template of an earlier slice of which no tile has arrived."""
    give_up_s: float = Field(default=900.0, gt=0)
    """Time without any progress after which `run` ends although work is left, in seconds."""
    sweep_s: float = Field(default=60.0, gt=0)
    """Time between two searches for work that is ready but not started (sweeps), in seconds."""
    collapse_s: float = Field(default=10.0, ge=1)
    """Window in which events that need the same check of the facts share one flow run, in seconds."""
    attempts: int = Field(default=3, ge=1)
    """Attempts at a tile or stage before it is parked as failed."""
    crashes: int = Field(default=5, ge=1)
    """Number of times that the process may die during the same piece of work before that work is parked as failed."""
    retry_delay_s: float = Field(default=2.0, ge=0)
    """Wait before the second attempt, in seconds; doubled each time, with jitter."""
    matlab_command: str | None = None
    """Program of the MATLAB engine: a name on the PATH or a path, of MATLAB or Octave. Default: the first of `matlab`,
    `octave-cli` and `octave` that the PATH has."""
    matlab_dialect: Literal["auto", "matlab", "octave"] = "auto"
    """How that program is called: `matlab` with `-batch`, `octave` with `--eval`; `auto`: as its name says."""
    matlab_flags: Annotated[tuple[str, ...], NoDecode] = ()
    """Further flags of that program, separated by blanks, such as `-nojvm -singleCompThread`."""
    matlab_path: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders of MATLAB functions on this host, separated as in PATH; `processing.engine.paths` come first."""
    matlab_environment: Annotated[dict[str, SecretStr], NoDecode] = Field(default_factory=dict)
    """Further environment variables of that program, as a table in JSON or TOML, such as
    `{ MLM_LICENSE_FILE = "27000@licences" }`."""
    matlab_license_wait_s: float = Field(default=600.0, ge=0)
    """How long to try again where MATLAB gets no licence, in seconds."""
    matlab_timeout_s: float = Field(default=3600.0, gt=0)
    """Longest time for MATLAB to start and finish one tile, or one slice, in seconds; then it is ended, with all
    processes that it has started."""
    fiji_command: str | None = None
    """Program of the Fiji engine: a name on the PATH or a path. Default: the first of `fiji`, `fiji-linux-x64`,
    `ImageJ-linux64` and `ImageJ` that the PATH has."""
    fiji_flags: Annotated[tuple[str, ...], NoDecode] = ()
    """Further flags of Fiji, separated by blanks, before those that we give."""
    fiji_memory: Annotated[ByteSize, Field(ge=100_000_000)] | None = None
    """Memory of Fiji's Java machine, such as `8GiB`; default: what Fiji takes."""
    fiji_timeout_s: float = Field(default=3600.0, gt=0)
    """Longest time for Fiji to place the tiles of a mosaic, in seconds; then it is ended."""
    notify_targets: Annotated[NotifyTargets, NoDecode] = (LogTargetSettings(),)
    """Where milestones and failures are reported: a list in JSON or TOML, such as
    `[{"kind": "log"}, {"kind": "file", "path": "milestones.jsonl"}]`. It must be the same on every host that serves the
    pool `state`."""
    metrics_port: int | None = Field(default=None, ge=1, le=65_535)
    """Port at which `opticstream worker`, `up` and `watch` show figures for Prometheus at `/metrics`; default: none."""
    server_metrics_port: int | None = Field(default=None, ge=1, le=65_535)
    """Port at which `opticstream server` shows figures for Prometheus at `/metrics`, another than that of the workers
    of its host; default: none."""
    metrics_host: str = "127.0.0.1"
    """Address at which they are shown, `0.0.0.0` for other hosts. They hold names of projects and folders."""
    page_url: str | None = Field(default=None, pattern=r"^https?://[^@\s]+$")
    """Address of Prefect's page as people open it, for links in notifications; default: that of OPTICSTREAM_API_URL."""
    acquisition_alarm_s: float = Field(default=300.0, gt=0)
    """Time without new data in the raw folder, while columns are missing, after which the acquisition is reported as
    stalled, in seconds."""
    column_alarm_s: float = Field(default=30.0, gt=0)
    """The same in the middle of a column, in seconds; longer for a rig that needs longer for a tile, or that has paused
    longer before: three times as long."""
    finished_after_s: float = Field(default=3600.0, ge=0)
    """Time without anything new after which a project of which nothing is left to do is reported as finished, in
    seconds; longer than the cutting of a slice takes. `opticstream run` reports it at its end in any case."""
    disk_alarm_share: float = Field(default=0.05, ge=0, le=1)
    """Share of a disk that is free when it is reported as nearly full; 0: never."""
    disk_alarm_h: float = Field(default=12.0, ge=0)
    """Time until a disk is full, at the present rate, below which it is reported as nearly full, in hours; 0: never."""
    path_map: Annotated[PathMap, NoDecode] = ()
    r"""Where this host sees folders that other hosts know by another name: a list in JSON or TOML, such as
    `[{ from = '\\rig\data', to = "/mnt/rig" }, { from = "D:/acq", to = "/mnt/acq" }]`."""

    @field_validator("matlab_flags", "fiji_flags", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return tuple(shlex.split(value)) if isinstance(value, str) else value

    @field_validator("matlab_path", mode="before")
    @classmethod
    def _folders(cls, value: object) -> object:
        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("matlab_environment", mode="before")
    @classmethod
    def _variables(cls, value: object) -> object:
        return list_from_text(value or "{}", expected='a table, such as { MLM_LICENSE_FILE = "27000@licences" }')

    @field_validator("matlab_command", "fiji_command", mode="before")
    @classmethod
    def _empty_program_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("api_url")
    @classmethod
    def _api_url_is_public(cls, value: str | None) -> str | None:
        if value is not None and "@" in value.partition("?")[0]:
            raise ValueError("it names a user, as messages would show; set OPTICSTREAM_API_AUTH instead")
        return value

    @field_validator(*SECRETS, *(f"{name}_file" for name in SECRETS), mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @model_validator(mode="after")
    def _one_place_of_secrets(self) -> DeploymentSettings:
        for name in SECRETS:
            if getattr(self, name) is not None and getattr(self, f"{name}_file") is not None:
                raise ValueError(f"{variable_of(name)} and {variable_of(f'{name}_file')} are both set; expected one")
        return self

    @property
    def page(self) -> str | None:
        """Address of Prefect's page, without a slash at its end; None where it has none that people can open."""
        url = self.page_url or (self.api_url or "").removesuffix("/").removesuffix("/api")
        return url.rstrip("/") or None

    def secret(self, name: str, /) -> tuple[str, str] | None:
        """Return one of `SECRETS`, from its variable or its file, and the variable that it comes from; None if not set.

        Raises
        ------
        ConfigurationError
            The file cannot be read, or `api_auth` is not of the form ``user:password``.
        """
        value, path, variable = getattr(self, name), getattr(self, f"{name}_file"), variable_of(name)
        if value is None and path is not None:
            variable = variable_of(f"{name}_file")
            value = secret_in_file(path, variable)
        if value is None or not value.get_secret_value().strip():
            return None
        text = value.get_secret_value()
        if name == "api_auth" and not all(text.partition(":")):
            raise ConfigurationError(f"{variable}: not of the form user:password (the value is not shown here)")
        return text, variable


def variable_of(name: str, /) -> str:
    """Return the environment variable of a setting.

    Examples
    --------
    >>> variable_of("lease_s")
    'OPTICSTREAM_LEASE_S'
    """
    return f"OPTICSTREAM_{name.upper()}"


_SHOWN = ("kind", "name", "level", "every_s", "quiet_hours", "quiet_level", "channel", "pictures")
"""Settings of any target of notifications whose values a message may repeat."""


def _may_be_secret(place: tuple[str | int, ...], given: str) -> bool:
    """Return whether what is wrong in the targets of notifications may be a secret, if only under a wrong name."""
    if len(place) > 2:
        return place[2] in kinds_with_secrets() and place[-1] not in _SHOWN
    return re.search(r"token|webhook|url|://|xox", given, re.IGNORECASE) is not None


def _described(problem: Mapping[str, Any]) -> str:
    """Return one line about an invalid variable; the place in a list is given as in `NOTIFY_TARGETS[1].path`."""
    variable, *inner = problem["loc"] or ("",)
    if variable == "notify_targets":  # after an index, pydantic inserts the kind of target, which is not a key
        inner = [part for before, part in zip([None, *inner], inner, strict=False) if not isinstance(before, int)]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner)
    given, context = problem["input"], problem.get("ctx", {})
    match problem["type"]:
        case "union_tag_invalid":
            message = f"unknown kind {context['tag']!r}; expected one of {context['expected_tags']}"
        case "union_tag_not_found":
            message = "`kind` is missing"
        case "extra_forbidden":
            message = "unknown setting"
        case _:
            message = problem["msg"].removeprefix("Value error, ")
    if not variable:
        return message
    # A target may hold a secret, also under a name that is written wrongly.
    hidden = variable in (*SECRETS, "matlab_environment") or isinstance(given, Mapping | list | tuple | BaseModel)
    if variable == "notify_targets":
        hidden = hidden or _may_be_secret(problem["loc"], str(given))
    shown = "" if hidden or (isinstance(given, str) and "@" in given) else f" = {given}"
    return f"{variable_of(str(variable))}{place}{shown}: {message}"
