"""Environments of the `dandi` client: its pins are not those of this package, and archives need different versions."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError

CLIENT_OF_SCHEMA = {"0.6.9": ("dandi==0.73.2", "dandischema==0.11.1")}
"""The client for archives with an older schema of metadata, by that schema."""
CLIENT = ("dandi==0.81.0", "dandischema==0.14.0")
"""The client for all others: it was tested with the schemas 0.6.10, 0.7.0 and 0.8.0."""
NEWEST_SCHEMA = "0.8.0"
_INSTALL_S = 1800.0


def client_python(kind: str, deployment: DeploymentSettings, /) -> Path:
    """Return the interpreter of the client for targets of a kind (`dandi`, `linc`); it may not exist."""
    set_by_user: Path | None = getattr(deployment, f"{kind}_python")
    return set_by_user.expanduser() if set_by_user is not None else _python_in(_folder(kind, deployment))


def install_client(kind: str, deployment: DeploymentSettings, /, *, schema: str | None = None) -> Path:
    """Install the client in the environment for targets of a kind and return its interpreter.

    Parameters
    ----------
    kind : str
        `dandi` or `linc`.
    deployment : DeploymentSettings
        The settings of this host.
    schema : str, optional
        Schema of the archive's metadata; default: the newest that was tested.

    Raises
    ------
    ConfigurationError
        pip could not install it.
    """
    folder = _folder(kind, deployment)
    if not _python_in(folder).exists():
        venv.create(folder, with_pip=True, symlinks=sys.platform != "win32")
    command = [str(_python_in(folder)), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, *requirements_of(schema)], capture_output=True, text=True, errors="replace", timeout=_INSTALL_S,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise ConfigurationError(
            f"{folder}: pip cannot install {' '.join(requirements_of(schema))}: {(last or ['no reason given'])[-1]}"
        )
    return _python_in(folder)


def requirements_of(schema: str | None, /) -> tuple[str, ...]:
    """Return what pip is to install for an archive with a schema.

    Examples
    --------
    >>> requirements_of("0.6.9"), requirements_of("0.7.0") == requirements_of(None) == CLIENT
    (('dandi==0.73.2', 'dandischema==0.11.1'), True)
    """
    return CLIENT_OF_SCHEMA.get(schema or "", CLIENT)


def _folder(kind: str, deployment: DeploymentSettings) -> Path:
    return deployment.home.expanduser().absolute() / "clients" / kind


def _python_in(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
