"""What a process needs around it to talk to our server, whatever a person's own environment says.

Does not import Prefect: Prefect reads its settings when it is imported, from the environment, from ``.env``,
``prefect.toml`` and ``pyproject.toml`` of the current folder, and from a profile in the home folder.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import ipaddress
import os
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import certifi

from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError
from opticstream.system.disk import replace
from opticstream.system.places import has_home
from opticstream.system.temporary_names import temporary_beside

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_NOT_FOR_CHILDREN = ("PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONINSPECT", "PYTHONSTARTUP")
"""What a person sets for programs under development; a server of somebody else's code does not run with it."""


def client_environment(home: Path, api_url: str, /) -> dict[str, str]:
    """Return the settings of a process that talks to the server, apart from a person's own Prefect profile."""
    plain = urllib.parse.urlsplit(api_url).scheme == "http"
    return ({"PREFECT_API_SSL_CERT_FILE": str(_few_certificates(home))} if plain else {}) | {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_API_URL": api_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_CLI_COLORS": "false",
    }


def _few_certificates(home: Path) -> Path:
    """Return a file with one certificate.

    Prefect loads a file of certificates for every client that it makes, four in each flow run, also for addresses that
    need none. The usual file holds 150, and loading it took a quarter of the processor time of a short run.
    """
    path = home / "one-certificate.pem"
    if not path.exists():
        end = "-----END CERTIFICATE-----\n"
        first = Path(certifi.where()).read_text(encoding="utf-8").partition(end)[0] + end
        temporary = temporary_beside(path)
        temporary.write_text(first, encoding="utf-8")
        replace(temporary, path)
    return path


def keep_off_proxies(environment: MutableMapping[str, str], /, *urls: str | None) -> None:
    """Let addresses of this machine be reached directly where proxies are set; the proxies stay for all others.

    Parameters
    ----------
    environment : mutable mapping
        Changed in place; ``os.environ``, or that of a child.
    *urls : str
        Addresses that are reached directly, too, if they are this machine's.
    """
    if not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return
    hosts = [*THIS_MACHINE, socket.gethostname(), *(host for url in urls if url and (host := _local_host(url)))]
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    known = [host.strip() for host in given.split(",") if host.strip()]
    if "*" not in known:
        known += [host for host in dict.fromkeys(hosts) if host not in known]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(known)


def is_this_machine(url: str, /) -> bool:
    """Return whether an address is one of this machine.

    Examples
    --------
    >>> is_this_machine("http://127.0.0.1:4200/api"), is_this_machine("http://[::1]:4200/api")
    (True, True)
    """
    return _local_host(url) is not None


def open_directly(request: str | urllib.request.Request, /, *, timeout_s: float) -> Any:
    """Open an address, one of this machine never through a proxy."""
    url = request if isinstance(request, str) else request.full_url
    handlers = [urllib.request.ProxyHandler({})] if is_this_machine(url) else []
    return urllib.request.build_opener(*handlers).open(request, timeout=timeout_s)


def talk_to_server(settings: DeploymentSettings, /) -> Path:
    """Point this process at the configured server for the rest of its life, and return the folder of our settings.

    Raises
    ------
    ConfigurationError
        The home folder cannot be written, or the file with user and password cannot be read.
    """
    assert settings.api_url is not None
    folder = prepared_home(settings.home)
    keep_off_proxies(os.environ, settings.api_url)
    os.environ.update(client_environment(folder, settings.api_url))
    use_credentials(settings)
    return folder


AUTH = "PREFECT_API_AUTH_STRING"
KEY = "PREFECT_API_KEY"


def use_credentials(settings: DeploymentSettings, /) -> None:
    """Let Prefect's clients in this process give user and password, where they are set. Prefect's own variables win."""
    if os.environ.get(AUTH) or os.environ.get(KEY):
        return
    if (found := settings.secret("api_auth")) is not None:
        os.environ[AUTH], _variable = found


def credentials_header() -> dict[str, str]:
    """Return the header by which a server knows this process, as its environment says."""
    return header_of(os.environ.get(AUTH), os.environ.get(KEY))


def header_of(password: str | None, key: str | None, /) -> dict[str, str]:
    """Return the header for a user and password, or else for a key, as Prefect's own clients send it."""
    if password:
        return {"Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"}
    if key:
        return {"Authorization": f"Bearer {key}"}
    return {}


def refused(status: int, /) -> tuple[str, str] | None:
    """Return what a status of HTTP says where a server refuses our credentials, and what to do; None for any other.

    Examples
    --------
    >>> refused(401)[0]
    'the server refuses this host (HTTP 401): it asks for a user and a password'
    >>> refused(503) is None
    True
    """
    if status not in (401, 403):
        return None
    said = f"the server refuses this host (HTTP {status})"
    if os.environ.get(AUTH):
        source = "OPTICSTREAM_API_AUTH or OPTICSTREAM_API_AUTH_FILE"
    elif os.environ.get(KEY):
        source = KEY
    else:
        advice = "set OPTICSTREAM_API_AUTH=user:password, or OPTICSTREAM_API_AUTH_FILE, as on the server"
        return f"{said}: it asks for a user and a password", advice
    return f"{said}: user or password in {source} are wrong", "expected what the server was started with"


def refusal(status: int, api_url: str, /) -> str | None:
    """Return one line where a server refuses our credentials, None for any other status of HTTP."""
    found = refused(status)
    return None if found is None else f"{api_url}: {found[0]}; {found[1]}"


def child_environment(given: Mapping[str, str], home: Path, /) -> dict[str, str]:
    """Return the environment of a process that belongs to an embedded server: `given` without a person's own settings.

    No ``PREFECT_...`` of the person's comes through, addresses of this machine need no proxy, and an account without a
    home folder gets `home` as one.
    """
    child = {name: value for name, value in given.items() if not _is_personal(name)}
    if not has_home():
        child["HOME"] = str(home)
    keep_off_proxies(child)
    return child


@contextmanager
def only_our_settings(home: Path, api_url: str, /) -> Iterator[None]:
    """Let this process talk to an embedded server inside the block, by our settings and nothing else."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ.update(client_environment(home, api_url))
    if not has_home():
        os.environ["HOME"] = str(home)
    keep_off_proxies(os.environ)
    try:
        _import_prefect_from(home)
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _import_prefect_from(home: Path) -> None:
    """Import Prefect from within a folder that holds no settings; it keeps what it has read when it is imported."""
    if "prefect" in sys.modules:
        return
    folder = home / "empty"
    folder.mkdir(exist_ok=True)
    try:
        here = os.getcwd()
    except OSError:  # the current folder was removed
        here = str(home)
    os.chdir(folder)
    try:
        importlib.import_module("prefect.settings")
        importlib.import_module("prefect.context")
    finally:
        with contextlib.suppress(OSError):
            os.chdir(here)


def prepared_home(home: Path, /) -> Path:
    """Return the absolute folder of an embedded server, made if need be.

    Raises
    ------
    ConfigurationError
        There is no home folder to begin with, or this account may not write there.
    """
    setting = "set OPTICSTREAM_HOME (or --home) to a folder of this account on a local disk"
    try:
        folder = home.expanduser().absolute()
    except RuntimeError as error:
        raise ConfigurationError(f"OPTICSTREAM_HOME = {home}: this account has no home folder; {setting}") from error
    try:
        os.fsencode(folder).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"OPTICSTREAM_HOME = {folder}: its name is not valid UTF-8; {setting}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        try:
            probe.write_bytes(b"\n" * 4096)  # an empty file has room on a full disk
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"OPTICSTREAM_HOME = {folder}: cannot be written ({reason}); {setting}") from error
    return folder


def _is_personal(name: str) -> bool:
    return name.startswith("PREFECT_") or name in _NOT_FOR_CHILDREN


def _local_host(url: str) -> str | None:
    """Return the host of an address if it is this machine."""
    try:
        host = urllib.parse.urlsplit(url).hostname
    except ValueError:
        return None
    if not host:
        return None
    if host in THIS_MACHINE or host.lower() in ("localhost", socket.gethostname().lower()):
        return host
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None  # a name of another machine; asking a name server could take long
    if found.is_loopback:
        return host
    family = socket.AF_INET6 if found.version == 6 else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))  # only an address of this machine can be bound
        return host
    return None
