"""Open remote targets from their settings; the module of a kind is imported only if that kind is used."""

from __future__ import annotations

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
    if settings.credentials and secret is None:
        raise ConfigurationError(
            f"target {settings.target_name!r}: there is no secret {settings.credentials!r}; set the environment "
            f"variable {secret_variable(settings.credentials)}, or run `opticstream secrets set {settings.credentials}`"
        )
    target: RemoteTarget = import_module(f"opticstream.publish.{settings.kind}").open_target(settings, secret, patience)
    return target


def secret_variable(name: str, /) -> str:
    """Return the environment variable of a secret.

    Examples
    --------
    >>> secret_variable("lab-s3")
    'OPTICSTREAM_SECRET_LAB_S3'
    """
    return f"OPTICSTREAM_SECRET_{name.upper().replace('-', '_')}"
