"""Look whether other programs and a graphics card can do what is asked of them: `opticstream engines check`."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opticstream.config import DeploymentSettings
from opticstream.config.engines import MATLAB_FUNCTIONS, CudaEngine, MatlabEngine
from opticstream.engines._card import check_card
from opticstream.engines._fiji import USUAL as FIJI_USUAL
from opticstream.engines._fiji import fiji_program
from opticstream.engines._matlab import USUAL, MatlabProgram, error_of_end, matlab_program
from opticstream.engines._running import Running, environment_of_program
from opticstream.model.errors import CardError, ConfigurationError, OpticStreamError

_log = logging.getLogger(__name__)

_CHECK = "opticstream.check_functions(getenv('OPTICSTREAM_CALL'))"
_START_S = 180.0
_ARGUMENTS = {"find_surface": (2, 3)}
"""Arguments and results of the functions; three and none unless it is said here."""
_FIJI_MACRO = """\
List.setCommands;
if (List.get("Grid/Collection stitching") != "") print("opticstream: has stitching");
else print("opticstream: lacks it");
eval("script", "System.exit(0);");
"""


@dataclass(frozen=True)
class EngineCheck:
    """One line of the check.

    Attributes
    ----------
    engine : str
        What it is about: MATLAB, Fiji, or CUDA.
    result : {"ok", "problem", "absent"}
        Absent: it is not on this host, and nothing needs it.
    message : str
        What was found, and what to do about it.
    """

    engine: str
    result: Literal["ok", "problem", "absent"]
    message: str


def check_engines(
    deployment: DeploymentSettings,
    /,
    *,
    matlab: MatlabEngine | None,
    fiji: bool,
    is_project: bool,
    cuda: CudaEngine | None = None,
) -> Iterator[EngineCheck]:
    """Yield what was found about MATLAB, Fiji and the graphics card.

    Parameters
    ----------
    deployment : DeploymentSettings
        How they are started on this host.
    matlab : MatlabEngine, optional
        The project's settings; None: the project does not use MATLAB.
    fiji : bool
        The project uses Fiji.
    is_project : bool
        Look only at what a project uses; otherwise at everything that this host has.
    cuda : CudaEngine, optional
        The project's settings; None: the project does not use a graphics card.
    """
    if matlab is not None or not is_project:
        wanted = matlab is not None or deployment.matlab_command is not None
        if wanted or any(map(shutil.which, USUAL)):
            yield from _matlab_checks(deployment, matlab or MatlabEngine())
        else:
            yield EngineCheck("MATLAB", "absent", f"the PATH has none of {', '.join(USUAL)}")
    if fiji or not is_project:
        if fiji or deployment.fiji_command is not None or any(map(shutil.which, FIJI_USUAL)):
            yield from _fiji_checks(deployment)
        else:
            yield EngineCheck("Fiji", "absent", f"the PATH has none of {', '.join(FIJI_USUAL)}")
    if cuda is not None or not is_project:
        try:
            yield EngineCheck("CUDA", "ok", check_card())
        except CardError as error:
            if cuda is None:
                yield EngineCheck("CUDA", "absent", str(error))
            elif cuda.required:
                yield EngineCheck("CUDA", "problem", f"{error}; processing.engine.required = true")
            else:
                yield EngineCheck("CUDA", "absent", f"{error}; our compiled code makes the tiles")


def _matlab_checks(deployment: DeploymentSettings, engine: MatlabEngine) -> Iterator[EngineCheck]:
    try:
        program = matlab_program(deployment, engine)
        answer = _answer(program, engine, min(deployment.matlab_timeout_s, _START_S))
    except OpticStreamError as error:
        yield EngineCheck("MATLAB", "problem", str(error))
        return
    yield EngineCheck("MATLAB", "ok", f"{answer['program']} ({program.path})")
    for does, found in zip(MATLAB_FUNCTIONS, answer["functions"], strict=True):
        yield _function_check(does, found)


def _answer(program: MatlabProgram, engine: MatlabEngine, patience_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="opticstream-matlab-") as name:
        folder = Path(name)
        call, answer = folder / "call.json", folder / "answer.json"
        content = {
            "paths": [str(path) for path in reversed(program.folders)],
            "functions": [engine.function(does) for does in MATLAB_FUNCTIONS],
            "answer": str(answer),
        }
        call.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        with program.running(folder, _CHECK, call=call) as running:
            status = running.wait(patience_s)
            lines = running.lines
        if status is None:
            raise ConfigurationError(f"{program.path} (OPTICSTREAM_MATLAB_COMMAND) did not answer in {patience_s:g} s")
        if not answer.exists():
            raise error_of_end(program, "the check", status, lines)
        read: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return read


def _function_check(does: str, found: dict[str, Any]) -> EngineCheck:
    inputs, outputs = _ARGUMENTS.get(does, (3, 0))
    name = found["name"]
    said = f"{does}: {name}"
    if not found["found"]:
        return EngineCheck(
            "MATLAB",
            "problem",
            f"{said} was not found ({found['problem']}); check processing.engine.functions.{does}, "
            "processing.engine.paths and OPTICSTREAM_MATLAB_PATH",
        )
    takes, returns = int(found["inputs"]), int(found["outputs"])
    if (takes >= 0 and takes != inputs) or (takes < 0 and -takes - 1 > inputs):
        return EngineCheck("MATLAB", "problem", f"{said} takes {_count(takes)} arguments, expected {inputs}")
    if returns >= 0 and returns < outputs:
        return EngineCheck("MATLAB", "problem", f"{said} returns {returns} results, expected {outputs}")
    return EngineCheck("MATLAB", "ok", said)


def _count(number: int) -> str:
    return str(number) if number >= 0 else f"at least {-number - 1}"


def _fiji_checks(deployment: DeploymentSettings) -> Iterator[EngineCheck]:
    try:
        program = fiji_program(deployment)
    except ConfigurationError as error:
        yield EngineCheck("Fiji", "problem", str(error))
        return
    with tempfile.TemporaryDirectory(prefix="opticstream-fiji-") as name:
        macro = Path(name, "check.ijm")
        macro.write_text(_FIJI_MACRO, encoding="utf-8")
        with Running(
            program.command(macro),
            folder=Path(name),
            environment=environment_of_program({}),
            log=_log,
            name="Fiji",
        ) as running:
            status = running.wait(min(program.timeout_s, _START_S))
            text = "\n".join(running.lines)
    if "opticstream: has stitching" in text:
        yield EngineCheck("Fiji", "ok", f"Grid/Collection stitching ({program.path})")
    elif "opticstream: lacks it" in text:
        yield EngineCheck("Fiji", "problem", f"{program.path} has no Grid/Collection stitching; expected Fiji")
    else:
        how = "did not answer" if status is None else f"ended with status {status}"
        yield EngineCheck("Fiji", "problem", f"{program.path} (OPTICSTREAM_FIJI_COMMAND) {how}: {text[-300:]}")
