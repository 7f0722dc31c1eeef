"""Secrets of remote targets: from the environment, or from Secret blocks of the Prefect server, which encrypts them."""

from __future__ import annotations

import contextlib
from typing import Any

from prefect.blocks.system import Secret
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from opticstream.flows.prefect_state import PrefectApi
from opticstream.publish.secrets import secret_from_environment


def secret_of(name: str, /) -> str | None:
    """Return the secret of a name, from the environment or else from the server; None if neither has it."""
    value = secret_from_environment(name)
    return secret_from_server(name) if value is None else value


def secret_from_server(name: str, /) -> str | None:
    """Return the value of the Secret block of a name, or None if there is none."""
    load: Any = Secret.load  # `_sync` is not among its types
    try:
        block = load(name, _sync=True)
    except ValueError:  # as Prefect says that there is no such block
        return None
    value = block.get()
    return value if isinstance(value, str) else None


def keep_secret(name: str, value: str, /) -> None:
    """Keep a secret in a Secret block, in place of an earlier one of that name."""
    save: Any = Secret(value=SecretStr(value)).save
    save(name, overwrite=True, _sync=True)


def secret_names() -> list[str]:
    """Return the names of the Secret blocks of the server."""
    with contextlib.suppress(ObjectNotFound):
        body = {"block_types": {"slug": {"any_": ["secret"]}}, "include_secrets": False}
        found = PrefectApi().call("POST", "/block_documents/filter", body).json()
        return sorted(str(one["name"]) for one in found if one.get("name"))
    return []
