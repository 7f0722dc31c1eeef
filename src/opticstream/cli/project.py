"""`project init|check|show|register`: the project file and its registration."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from opticstream.cli.console import JsonOption, ProjectArgument, errors_shown, out, print_json
from opticstream.cli.run import HomeOption, SetOption, config_of, server_session
from opticstream.config import DeploymentSettings, ProjectConfig, parameters_hash
from opticstream.config.path_map import is_of_another_kind_of_host
from opticstream.model.errors import ConfigurationError

app = typer.Typer(help="Write, check, show or register a project file.", no_args_is_help=True)


@app.command("init")
def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("project.toml"),
    name: Annotated[str, typer.Option(help="Name of the project; default: the folder's name.")] = "",
) -> None:
    """Write a project file with every setting at its default, each explained. An existing file is never overwritten."""
    from opticstream.config.template import project_template

    with errors_shown():
        text = project_template(project_name=name or file.absolute().parent.name)
        try:
            with file.open("x", encoding="utf-8") as target:
                target.write(text)
        except FileExistsError:
            raise ConfigurationError(f"{file}: already exists and was not changed; name another file") from None
        except OSError as error:
            raise ConfigurationError(f"{file}: cannot be written: {error.strerror}") from error
    out.print(f"wrote {file}; edit it, then: opticstream project check {file}")


def _problems(config: ProjectConfig) -> list[str]:
    """Return problems that would only show later: unusable calibration files, a template that identifies no tile."""
    from opticstream.io.names import FileNameGrammar
    from opticstream.model.errors import OpticStreamError
    from opticstream.stages.tile import plan_from_settings

    problems = []
    checks: list[Callable[[], object]] = [
        functools.partial(FileNameGrammar, template, config.scan.layout)
        for template in (config.scan.file_name, config.scan.spectral_file_name)
        if template is not None
    ]
    if config.scan.raw_format != "complex":
        checks.append(functools.partial(plan_from_settings, config.scan, config.processing.reconstruction))
    for check in checks:
        try:
            check()
        except OpticStreamError as error:
            problems.append(str(error))
    return problems


@app.command("check")
def check(project: ProjectArgument, options: SetOption = [], as_json: JsonOption = False) -> None:  # noqa: B006
    """Check a project file: settings, their types and combinations, calibration files. Exit status 2 on problems."""
    with errors_shown():
        config = config_of(project, options)
        problems = _problems(config)
        if as_json:
            print_json({"project": config.name, "hash": parameters_hash(config), "problems": problems})
        if problems:
            raise ConfigurationError("; ".join(problems))
    if as_json:
        return
    scan = config.scan
    out.print(f"{config.name}: settings are valid (hash {parameters_hash(config)})")
    for index, illumination in enumerate(scan.illuminations):
        a_lines, b_lines = scan.tile_shape(index)
        size = scan.samples * a_lines * b_lines * scan.channels * (1.5 if scan.raw_format == "packed12" else 2)
        out.print(
            f"  {illumination.name}: {illumination.columns} columns x {scan.rows(index)} rows, tiles of {a_lines} x "
            f"{b_lines} A-lines, {scan.samples} samples, {scan.channels} channel{'s' * (scan.channels > 1)}"
            f" ({size / 1e6:.1f} MB), tilt {illumination.tilt_deg:g} degrees"
        )


@app.command("show")
def show(project: ProjectArgument, options: SetOption = [], as_json: JsonOption = False) -> None:  # noqa: B006
    """Show the effective parameters: defaults, then the project file (or registered values), then overrides."""
    with errors_shown():
        if project.endswith(".toml") or Path(project).exists():
            config = config_of(project, options)
        else:
            with server_session(DeploymentSettings(), None, say=lambda _line: None):
                config = config_of(project, options)
    data = config.model_dump(mode="json")
    if as_json:
        print_json(data)
        return
    for line in _flat(data):
        out.print(line)


def _flat(data: object, path: str = "") -> list[str]:
    if isinstance(data, dict):
        return [line for key, value in data.items() for line in _flat(value, f"{path}.{key}".lstrip("."))]
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return [line for index, value in enumerate(data) for line in _flat(value, f"{path}[{index}]")]
    return [f"{path} = {data!r}"]


@app.command("register")
def register(project: ProjectArgument, options: SetOption = [], home: HomeOption = None) -> None:  # noqa: B006
    """Store a project's parameters in Prefect Variables, where the flows read their defaults."""
    with errors_shown():
        config = config_of(project, options)
        with server_session(DeploymentSettings(), home, say=lambda _line: None):
            from opticstream.flows.parameters import save_parameters

            name = save_parameters(config)
        _make_folder(config)
    out.print(f"registered {config.name} as Prefect Variable {name} (hash {parameters_hash(config)})")


def _make_folder(config: ProjectConfig) -> None:
    """Make the project's folder where this host can; where it cannot, whoever sees the folder makes it.

    Flow runs make none: a folder that is not there may be one that their host does not see.
    """
    if not is_of_another_kind_of_host(config.base_path):
        with contextlib.suppress(OSError):
            config.base_path.mkdir(parents=True, exist_ok=True)
