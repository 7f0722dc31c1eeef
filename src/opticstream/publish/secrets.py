"""Secrets of remote targets, from the environment: ``OPTICSTREAM_SECRET_{NAME}``."""

from __future__ import annotations

import os

from opticstream.publish.opening import secret_variable


def secret_from_environment(name: str, /) -> str | None:
    """Return the secret of a name, or None if its environment variable is not set."""
    return os.environ.get(secret_variable(name)) or None
