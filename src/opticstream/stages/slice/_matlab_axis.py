"""The fibre axes of a slice by MATLAB: the illuminations are registered and judged by our own code, MATLAB solves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.axis import AxisSolver
from opticstream.config import DeploymentSettings
from opticstream.config.engines import MatlabEngine
from opticstream.engines import MatlabCall, MatlabItem, MatlabStep, matlab_program
from opticstream.io.atomic import temporary_beside
from opticstream.io.disk_errors import disk_errors
from opticstream.io.matlab import arrays_from_matlab
from opticstream.model.errors import ProcessingError


def axis_solver_by_matlab(
    engine: MatlabEngine, deployment: DeploymentSettings, folder: Path, /, *, name: str
) -> AxisSolver:
    """Return a solver of fibre axes that calls MATLAB's `thruplane_registration`.

    Parameters
    ----------
    engine, deployment
        Function and folders of the project; how MATLAB is started on this host.
    folder : Path
        Folder in which a temporary one is made for the files of the call.
    name : str
        Name of the slice in messages.

    Returns
    -------
    callable
        It raises EngineError or ProcessingError where MATLAB fails, ConfigurationError where it cannot be started.
    """

    def solve(
        orientation_deg: NDArray[Any], birefringence: NDArray[Any], frames: NDArray[np.float64]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        from scipy.io import savemat

        program = matlab_program(deployment, engine)
        folder.mkdir(parents=True, exist_ok=True)
        scratch = temporary_beside(folder / "matlab")
        with disk_errors(scratch):
            scratch.mkdir()
        try:
            source, target = scratch / "beams.mat", scratch / "solution.mat"
            with source.open("wb") as file:
                savemat(
                    file,
                    {
                        "orientation_deg": np.moveaxis(orientation_deg, 0, -1),
                        "birefringence": np.moveaxis(birefringence, 0, -1),
                        "frames": np.transpose(frames, (2, 1, 0)),  # columns: x, y and direction of the beam
                    },
                )
            step = MatlabStep(engine.function("thruplane_registration"), source, {"solution": target})
            with MatlabCall(program, [MatlabItem(name, (step,))], settings={}, vectors={}, folder=scratch) as call:
                call.wait_for(name)
            return _solutions(target, orientation_deg.shape[1:], name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    return solve


def _solutions(path: Path, shape: tuple[int, ...], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the solution and the alternative that MATLAB has written, each of shape (x, y, 3)."""
    arrays = arrays_from_matlab(path)
    found = []
    for variable in ("solution", "alternative"):
        if variable not in arrays and variable == "alternative":
            found.append(np.full((*shape, 3), np.nan))
            continue
        if variable not in arrays:
            raise ProcessingError(f"{name}: {path.name} has no variable `solution`; it has {sorted(arrays) or 'none'}")
        if arrays[variable].shape != (*shape, 3):
            raise ProcessingError(
                f"{name}: MATLAB wrote {variable} with the shape {arrays[variable].shape}, expected {(*shape, 3)}"
            )
        found.append(arrays[variable])
    if not np.isfinite(found[0]).any():
        raise ProcessingError(f"{name}: MATLAB wrote a solution without any finite value")
    return found[0], found[1]
