"""Project parameters in Prefect Variables, where flows take their defaults from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.variables import Variable

from opticstream.config import ProjectConfig, config_from_mapping, parameters_hash
from opticstream.model.errors import ConfigurationError
from opticstream.state.shards import shards_from_tree, tree_from_shards
from opticstream.state.slugs import project_slug

_LIMIT = 4500
"""Characters in one Variable; Prefect refuses more than 5000."""


def save_parameters(config: ProjectConfig, /) -> str:
    """Register a project's parameters and return the name of their Variable.

    A Variable holds a few thousand characters; what does not fit goes to further ones, written before the first.
    """
    name = f"{project_slug(config.name)}-config"
    root, shards = shards_from_tree(config.model_dump(mode="json"), limit=_LIMIT)
    for shard, value in shards.items():
        Variable.set(f"{name}--{shard}", value, overwrite=True)
    Variable.set(name, root, overwrite=True)
    return name


def load_parameters(project_name: str, /, *, overrides: Mapping[str, Any] | None = None) -> ProjectConfig:
    """Return the registered parameters of a project, with `overrides` on top.

    Raises
    ------
    ConfigurationError
        The project is not registered, or an override is impossible.
    """
    name = f"{project_slug(project_name)}-config"
    stored = Variable.get(name)
    if not isinstance(stored, dict):
        raise ConfigurationError(
            f"project {project_name!r} is not registered (there is no Prefect Variable {name!r}); "
            f"`opticstream project register` does it"
        )
    data = tree_from_shards(stored, lambda shard: Variable.get(f"{name}--{shard}"))
    assert isinstance(data, dict)
    return config_from_mapping(data, source=f"Prefect Variable {name}", overrides=overrides)


def keep_parameters(config: ProjectConfig, /) -> None:
    """Keep the resolved parameters of the current run as an artifact."""
    text = json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False)
    create_markdown_artifact(
        key=f"{project_slug(config.name)}-parameters",
        markdown=f"Parameters `{parameters_hash(config)}` of {config.name}\n\n```json\n{text}\n```\n",
        description=f"Resolved parameters, hash {parameters_hash(config)}",
    )
