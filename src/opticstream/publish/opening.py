"""Open remote targets from their settings; the module of a kind is imported only if that kind is used."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module

from opticstream.config.publish_targets import PublishTargetSettings
from opticstream.model.errors import ConfigurationError
from opticstream.publish.patience import Patience
from opticstream.publish.target import RemoteTarget

ReadSecret = Callable[[str], str | None]
"""Returns the secret of a name, or None if there is none."""


def open_remote_target(settings: PublishTargetSettings, secrets: ReadSecret, patience: Patience, /) -> RemoteTarget:
    """Return the target of the settings; it does not connect yet.

    Raises
    ------
    ConfigurationError
        Its secret is missing or has the wrong form.
    """
    secret = secrets(settings.credentials) if settings.credentials else None
    if secret is None:
        secret = key_from_environment(settings)
    if settings.credentials and secret is None:
        variables = " or ".join(filter(None, (secret_variable(settings.credentials), settings.key_variable)))
        raise ConfigurationError(
            f"target {settings.target_name!r}: there is no secret {settings.credentials!r}; set the environment "
            f"variable {variables}, or run `opticstream secrets set {settings.credentials}`"
        )
    target: RemoteTarget = import_module(f"opticstream.publish.{settings.kind}").open_target(settings, secret, patience)
    return target


def key_from_environment(settings: PublishTargetSettings, /) -> str | None:
    """Return the credentials in the variable that the tools of a target's kind know; None if there are none."""
    return os.environ.get(settings.key_variable) or None if settings.key_variable else None


def secret_variable(name: str, /) -> str:
    """Return the environment variable of a secret.

    Examples
    --------
    >>> secret_variable("lab-s3")
    'OPTICSTREAM_SECRET_LAB_S3'
    """
    return f"OPTICSTREAM_SECRET_{name.upper().replace('-', '_')}"
