"""Environments with the real `dandi` client, made once by `opticstream dandi-client install` and used again."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError
from opticstream.publish.dandi_environment import client_python, install_client


def client_home(kind: str, schema: str | None = None) -> Path:
    """Return the interpreter of the client for an archive; skip the test where the package index is out of reach."""
    settings = DeploymentSettings(home=Path(sys.prefix))
    if getattr(settings, f"{kind}_python"):
        return client_python(kind, settings)
    folder = Path(sys.prefix, "clients")
    folder.mkdir(exist_ok=True)
    with (folder / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of pytest share the environment
        done = folder / f"{kind}.done"
        if not done.exists():
            try:
                install_client(kind, settings, schema=schema)
            except ConfigurationError as error:
                if os.environ.get("CI"):
                    raise
                pytest.skip(f"the dandi client cannot be installed: {error}")
            done.touch()
    return client_python(kind, settings)
