"""Project parameters in Prefect Variables, where flows take their defaults from."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.variables import Variable

from opticstream.config import DeploymentSettings, ProjectConfig, config_from_mapping, parameters_hash
from opticstream.model.errors import ConfigurationError
from opticstream.state.shards import shards_from_tree, tree_from_shards
from opticstream.state.slugs import artifact_key, project_slug

_SUFFIX = "-config"
_LIMIT = 4500
"""Characters in one Variable; Prefect refuses more than 5000."""
_PAGE = 200
_log = logging.getLogger(__name__)


def save_parameters(config: ProjectConfig, /) -> str:
    """Register a project's parameters and return the name of their Variable.

    A Variable holds a few thousand characters; what does not fit goes to further ones, written before the first.
    """
    name = parameters_variable(config.name)
    root, shards = shards_from_tree(config.as_configured.model_dump(mode="json"), limit=_LIMIT)
    for shard, value in shards.items():
        Variable.set(f"{name}--{shard}", value, overwrite=True)
    Variable.set(name, root, overwrite=True)
    return name


def load_parameters(project_name: str, /, *, overrides: Mapping[str, Any] | None = None) -> ProjectConfig:
    """Return the registered parameters of a project, with `overrides` on top, and with its paths as on this host.

    Raises
    ------
    ConfigurationError
        The project is not registered, or an override is impossible.
    """
    name = parameters_variable(project_name)
    config = registered_parameters(project_name, overrides=overrides)
    if config is None:
        raise ConfigurationError(
            f"project {project_name!r} is not registered (there is no Prefect Variable {name!r}); "
            f"`opticstream project register` does it"
        )
    return config


def registered_parameters(project_name: str, /, *, overrides: Mapping[str, Any] | None = None) -> ProjectConfig | None:
    """Return the registered parameters of a project, None where it is not registered; else as `load_parameters`.

    Raises
    ------
    ConfigurationError
        They cannot be read by this version, or an override is impossible.
    """
    name = parameters_variable(project_name)
    data = _stored(name)
    return None if data is None else _config(name, data, overrides)


def parameters_variable(project_name: str, /) -> str:
    """Return the name of the Prefect Variable of a project's parameters."""
    return f"{project_slug(project_name)}{_SUFFIX}"


def registered_projects() -> list[ProjectConfig]:
    """Return the parameters of every project that is registered at the server, by name.

    One whose parameters this version cannot read is passed over, with a word in the log.
    """
    found = []
    with get_client(sync_client=True) as client:
        offset = 0
        while True:
            body = {"variables": {"name": {"like_": _SUFFIX}}, "limit": _PAGE, "offset": offset}
            page = client.request("POST", "/variables/filter", json=body).json()
            found += [v["name"] for v in page if v["name"].endswith(_SUFFIX) and "--" not in v["name"]]
            if len(page) < _PAGE:
                break
            offset += _PAGE
    projects = []
    for name in sorted(found):
        try:
            data = _stored(name)
            if data is not None and f"{project_slug(data['project']['project_name'])}{_SUFFIX}" == name:
                projects.append(_config(name, data))
        except (ConfigurationError, KeyError, TypeError) as error:
            _log.warning("the Prefect Variable %s holds no parameters of a project: %s", name, error)
    return projects


def _config(name: str, data: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> ProjectConfig:
    source, path_map = f"Prefect Variable {name}", DeploymentSettings().path_map
    return config_from_mapping(data, source=source, overrides=overrides, path_map=path_map)


def _stored(name: str) -> dict[str, Any] | None:
    """Return the parameters in a Variable and those that it refers to, None where there are none."""
    stored = Variable.get(name)
    if not isinstance(stored, dict):
        return None
    data = tree_from_shards(stored, lambda shard: Variable.get(f"{name}--{shard}"))
    assert isinstance(data, dict)
    return data


def keep_parameters(config: ProjectConfig, /) -> None:
    """Keep the resolved parameters of the current run as an artifact."""
    text = json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False)
    create_markdown_artifact(
        key=artifact_key(config.name, "parameters"),
        markdown=f"Parameters `{parameters_hash(config)}` of {config.name}\n\n```json\n{text}\n```\n",
        description=f"Resolved parameters, hash {parameters_hash(config)}",
    )
