"""Which parameters a command uses when the project file, `--set` and the registered ones differ, and the note on it.

Only `opticstream project register` changes the registered parameters. A command uses those of its command line; the
flow runs that it starts receive the differences with their events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opticstream.cli.console import err, is_project_file, styled
from opticstream.config import ProjectConfig, config_from_mapping
from opticstream.config.overrides import differences, value_at


@dataclass(frozen=True)
class RunParameters:
    """The parameters that a command uses."""

    config: ProjectConfig
    overrides: Mapping[str, Any]
    """What differs from the registered parameters, by dotted path."""
    notes: tuple[str, ...] = ()
    """What is printed about them."""

    def tell(self) -> None:
        """Print the notes."""
        for note in self.notes:
            err.print(styled("parameters", "yellow"), note)


def parameters_for_run(project: str, config: ProjectConfig, bare: ProjectConfig, /, *, register: bool) -> RunParameters:
    """Return the parameters of a run; the server must be reachable.

    Parameters
    ----------
    project : str
        The PROJECT argument.
    config : ProjectConfig
        Its configuration, with the options of the command applied.
    bare : ProjectConfig
        Its configuration without them.
    register : bool
        Register a project that is not yet registered, without the options of the command.
    """
    from opticstream.flows.parameters import registered_parameters, save_parameters

    notes: list[str] = []
    registered = registered_parameters(config.name)
    if registered is None:
        if not register:
            return RunParameters(config, {})
        data = bare.as_configured.model_dump(mode="json")
        name = save_parameters(config_from_mapping(data, overrides={"project_name": config.name}))
        registered = registered_parameters(config.name)
        assert registered is not None
        notes.append(f"registered {config.name} with the parameters in {project} (Prefect Variable {name})")
    if is_project_file(project):
        notes += _notes_on_file(project, registered, bare)
    if config.base_path == registered.base_path:  # the name that every host knows, whatever this one calls the folder
        config = config.configured_as(registered) if registered.as_configured is not registered else config
    overrides = differences(registered.model_dump(mode="json"), config.model_dump(mode="json"))
    notes += [
        f"{line}, for this run (--set)"
        for line in _changes(bare.model_dump(mode="json"), config.model_dump(mode="json"))
    ]
    return RunParameters(config, overrides, tuple(notes))


def _notes_on_file(project: str, registered: ProjectConfig, bare: ProjectConfig) -> Iterator[str]:
    before, after = registered.model_dump(mode="json"), bare.model_dump(mode="json")
    before["project"]["project_name"] = after["project"]["project_name"]
    changes = list(_changes(before, after))
    for line in changes:
        yield f"{line} in {project} (registered -> file)"
    if changes:
        yield (
            f"this run uses the parameters in {project}, and the registered ones stay; "
            f"`opticstream project register {project}` replaces them"
        )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for path, value in differences(before, after).items():
        yield f"{path}: {value_at(before, path)!r} -> {value!r}"
