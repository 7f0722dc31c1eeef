"""What `opticstream server` sets before it starts: database, messages, leases, retention, password, and its role.

Several processes of a server are API replicas (role ``api``) and the background services (``services``), over one
PostgreSQL and one Redis; ``all`` is both in one process. Does not import Prefect, which reads settings when imported.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import socket
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opticstream.config import DeploymentSettings
from opticstream.config.deployment import SECRETS, variable_of
from opticstream.config.secrets import without_password
from opticstream.flows.server import DURABLE, LEASES, settings_of_retention
from opticstream.flows.surroundings import THIS_MACHINE
from opticstream.model.errors import ConfigurationError

ROLES = ("all", "api", "services", "upgrade")
"""What a process of a server may be; ``upgrade`` brings the database up to date and ends."""
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
SERVER_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
_DATABASE_NAMES = (
    DATABASE,
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_DRIVER",
    "PREFECT_API_DATABASE_DRIVER",
)
"""What of Prefect's own names tells which database a server uses."""
_BROKER = "PREFECT_SERVER_EVENTS_MESSAGING_BROKER"


@dataclass(frozen=True)
class Setting:
    """A setting that is made for a server.

    Attributes
    ----------
    value : str
        What Prefect gets.
    why : str
        What it is for.
    shown : str
        What people and logs see of the value.
    """

    value: str
    why: str
    shown: str


def settings_of_shared_server(
    home: Path, given: Mapping[str, str], settings: DeploymentSettings | None = None, /
) -> dict[str, Setting]:
    """Return the settings that a server for several hosts needs and that `given` lacks, by name.

    Raises
    ------
    ConfigurationError
        The address of the database or of Redis cannot be used.

    Examples
    --------
    >>> chosen = settings_of_shared_server(Path("/srv/optic"), {"PREFECT_HOME": "/srv/prefect"})
    >>> "PREFECT_HOME" in chosen, chosen["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].value.rpartition(".")[2]
    (False, 'filesystem')
    """
    settings = settings or DeploymentSettings()
    wanted = {
        "PREFECT_HOME": (str(home), "database, leases and log"),
        "PREFECT_PROFILES_PATH": (str(home / "profiles.toml"), "no profile of a person applies"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": ("false", "nothing is sent to Prefect"),
        **DURABLE,
        **settings_of_retention(settings),
    }
    if database := settings.secret("database_url"):
        wanted[DATABASE] = (_database_url(*database), "the database")
    if is_postgresql({**{name: value for name, (value, _) in wanted.items()}, **given}):
        alone = "only role `all` and `opticstream server upgrade` do it, one at a time"
        wanted["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] = ("false", alone)
        wanted["PREFECT_SERVER_REGISTER_BLOCKS_ON_START"] = ("false", alone)
    if redis := settings.secret("redis_url"):
        wanted |= _redis_settings(*redis)
    elif given.get(_BROKER) == "prefect_redis.messaging":
        wanted[LEASES] = ("prefect_redis.lease_storage", "leases where all replicas of the API see them")
    chosen = {
        name: Setting(value, why, without_password(value)) for name, (value, why) in wanted.items() if name not in given
    }
    if (auth := settings.secret("api_auth")) and SERVER_AUTH not in given:
        chosen[SERVER_AUTH] = Setting(auth[0], f"{auth[1]}: clients give user and password", "***")
    return chosen


def is_postgresql(environment: Mapping[str, str], /) -> bool:
    """Return whether a server with these settings keeps its database in PostgreSQL."""
    return any(environment.get(name, "").startswith("postgres") for name in _DATABASE_NAMES)


def check_role(role: str, environment: Mapping[str, str], /) -> None:
    """Raise ConfigurationError where a role needs what the settings do not give: several processes share one server."""
    if role not in ("api", "services"):
        return
    missing = [] if is_postgresql(environment) else ["PostgreSQL (OPTICSTREAM_DATABASE_URL)"]
    if environment.get(_BROKER) != "prefect_redis.messaging":
        missing.append("Redis (OPTICSTREAM_REDIS_URL)")
    if missing:
        raise ConfigurationError(
            f"--role {role}: a server of several processes needs {' and '.join(missing)}; without, use --role all"
        )


def warning_of_open_address(host: str, environment: Mapping[str, str], /) -> str | None:
    """Return what to tell a person whose server others reach without a password, None where all is well.

    Examples
    --------
    >>> warning_of_open_address("127.0.0.1", {}) is None
    True
    """
    if environment.get(SERVER_AUTH) or _is_loopback(host):
        return None
    return (
        f"--host {host} without a password: everyone who reaches this address can run code on all workers; "
        "set OPTICSTREAM_API_AUTH=user:password on server and clients"
    )


def address_of_api(host: str, port: int, /) -> str:
    """Return the address of an API for clients.

    Examples
    --------
    >>> address_of_api("fd00::1", 4200)
    'http://[fd00::1]:4200/api'
    """
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/api" if ":" in host else f"http://{host}:{port}/api"


def _is_loopback(host: str) -> bool:
    if host in THIS_MACHINE:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _database_url(url: str, variable: str) -> str:
    """Return an address as Prefect takes it."""
    shown = f"{variable} = {without_password(url)}"
    scheme, mark, rest = url.partition("://")
    kinds = {"postgres": "postgresql+asyncpg", "postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}
    driver = kinds.get(scheme.partition("+")[0])
    if not mark or driver is None or scheme not in (*kinds, driver):
        raise ConfigurationError(
            f"{shown}: unknown kind of database; expected postgresql://user:password@host:5432/prefect, or sqlite:///"
            "and the path of a file"
        )
    if driver == "postgresql+asyncpg":
        try:
            parts = urllib.parse.urlsplit(f"//{rest}")
            host, _port, database = parts.hostname, parts.port, parts.path.strip("/")
        except ValueError as error:
            raise ConfigurationError(
                f"{shown}: not an address ({'port' if 'ort' in str(error) else 'host'}); characters such as / @ : # "
                "of a password are written as %2F %40 %3A %23"
            ) from None
        in_query = "host=" in parts.query
        if not database or not (host or in_query):
            raise ConfigurationError(f"{shown}: expected a host and the name of a database, as in //host/prefect")
    return f"{driver}://{rest}"


def _redis_settings(url: str, variable: str) -> dict[str, tuple[str, str]]:
    """Return what lets the processes of a server share events, leases and queues."""
    shown = f"{variable} = {without_password(url)}"
    found = re.fullmatch(r"(rediss?://[^/?]+(?<!/))(?:/(\d*))?(\?.*)?", url)
    if found is None:
        raise ConfigurationError(f"{shown}: expected redis://host:6379, or rediss://; /N names the first database")
    if importlib.util.find_spec("prefect_redis") is None:
        raise ConfigurationError(f"{shown}: prefect-redis is not installed; run `pip install 'opticstream[redis]'`")
    first = int(found[2] or 0)

    def of(number: int) -> str:
        return f"{found[1]}/{first + number}{found[3] or ''}"

    return {
        _BROKER: ("prefect_redis.messaging", "events survive a restart, and every replica takes them"),
        "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": ("prefect_redis.messaging", "as above"),
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": ("prefect_redis.ordering", "as above"),
        LEASES: ("prefect_redis.lease_storage", "leases where all replicas of the API see them"),
        "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": ("prefect_redis.cleanup_queue", "as above"),
        "PREFECT_SERVER_DOCKET_URL": (of(1), "work of the background services"),
        "PREFECT_REDIS_MESSAGING_URL": (of(0), "events and leases"),
        "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": (of(2), "what workers have to clear up"),
    }


def environment_of(chosen: Mapping[str, Setting], /) -> dict[str, str]:
    """Return this process's environment with chosen settings, for a server process.

    Our own secrets are left out: Prefect has them under its own names, and only there.
    """
    own = {variable_of(name) for name in SECRETS}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    return environment | {name: setting.value for name, setting in chosen.items()}
