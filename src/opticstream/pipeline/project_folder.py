"""Which project an announcement is about, and where its folder lies on this host.

Hosts mount a share in different places, so the folder that an announcement names is found through this host's path map.
The registered parameters rule; of a project that the server does not know, the project's own file does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opticstream.config import ProjectConfig, load_project
from opticstream.config.loading import moved_config
from opticstream.config.path_map import PathMapping, is_absolute_path, path_here, said_of_path
from opticstream.model.errors import ConfigurationError, EventError
from opticstream.pipeline.incoming import Received
from opticstream.system.folders import ABSENT, folder_trouble

PROJECT_FILE = "project.toml"
"""Name of the project file in the project's folder."""


def config_of_received(
    received: Received,
    registered: ProjectConfig | None,
    /,
    *,
    path_map: Sequence[PathMapping] = (),
    overrides: Mapping[str, Any] | None = None,
) -> ProjectConfig:
    """Return the configuration of the project that an announcement is about, with its folder as this host sees it.

    Parameters
    ----------
    received : Received
        The announcement. The folder that it names as `project_base_path` counts, whatever is registered.
    registered : ProjectConfig or None
        The registered parameters, with `overrides` on top and with paths as on this host; None where there are none.
    path_map : sequence of PathMapping
        Where this host sees folders that others name.
    overrides : mapping, optional
        Parameters on top of those of a project file.

    Raises
    ------
    EventError
        It names no project, no folder, or one that this host cannot find, read or write.
    ConfigurationError
        The project is not registered and has no file in or beside its folder.
    """
    name = received.project_name
    said = _said(received)
    if said is None:
        if registered is None:
            raise ConfigurationError(
                f"project {name!r} is not registered, and the event names no project_base_path; "
                f"`opticstream project register` registers it"
            )
        _check_is_there(
            received, str(registered.as_configured.base_path), registered.base_path, "registered project_base_path"
        )
        return registered
    here = path_here(said, path_map)
    _check_is_there(received, said, here, "project_base_path")
    if registered is None:
        registered = _config_of_file(name, here, path_map, overrides)
    elif registered.base_path == here and str(registered.as_configured.base_path) == said:
        return registered
    return moved_config(registered, here, configured=said)


def _said(received: Received) -> str | None:
    payload = received.payload if isinstance(received.payload, Mapping) else {}
    said = payload.get("project_base_path")
    if said is None:
        return None
    if not isinstance(said, str) or not is_absolute_path(said):
        raise EventError(
            f"{received}: project_base_path: expected the absolute path of the project's folder, got {said!r}"
        )
    return said


def _check_is_there(received: Received, said: str, here: Path, what: str) -> None:
    trouble = folder_trouble(here, writes=True)
    if trouble is not None:
        fails = "found on this host" if trouble == ABSENT else f"used on this host: {trouble}"
        raise EventError(
            f"{received}: {what} {said_of_path(said, here)}, cannot be {fails}; expected the folder of project "
            f"{received.project_name!r}: mount it, let this account read and write it, or say in OPTICSTREAM_PATH_MAP "
            f"where this host sees it. Nothing was changed: another host, or the sweep, can still do it"
        )


def _config_of_file(
    name: str, base: Path, path_map: Sequence[PathMapping], overrides: Mapping[str, Any] | None
) -> ProjectConfig:
    """Return the configuration in the project file in the project's folder, else in the one beside it that leads there.

    Whatever the file in the folder says, the project's folder is the one that it lies in: it may have been written on
    another host, or moved.
    """
    own = base / PROJECT_FILE
    if own.is_file():
        config = load_project(own, overrides=overrides, path_map=path_map)
        if config.name != name:
            raise ConfigurationError(f"{own}: project.project_name = {config.name!r}, expected {name!r}")
        return config
    found = {}
    for file in sorted(base.parent.glob("*.toml")):
        try:
            config = load_project(file, overrides=overrides, path_map=path_map)
        except ConfigurationError:
            continue  # no project file, or one that nobody can use
        if config.name == name and _is_same_folder(config.base_path, base):
            found[file.name] = config
    if not found:
        raise ConfigurationError(
            f"project {name!r} is not registered, and there is neither {own} nor a project file in {base.parent} with "
            f"project_name = {name!r} and this folder; `opticstream project register` registers it"
        )
    if len(found) > 1:
        raise ConfigurationError(
            f"project {name!r} is not registered, and {base.parent} holds several project files of it: "
            f"{', '.join(found)}; keep one, or register it with `opticstream project register`"
        )
    return next(iter(found.values()))


def _is_same_folder(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
