"""Registration and fibre axes of a slice by MATLAB; what it finds is judged, and applied, by our own code."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.axis import AxisSolver
from opticstream.compute.registration import MappingFinder, MappingTask, PlanarTransform
from opticstream.config import DeploymentSettings
from opticstream.config.engines import MatlabEngine
from opticstream.engines import MatlabCall, MatlabItem, MatlabStep, matlab_program
from opticstream.io.atomic import temporary_beside
from opticstream.io.disk_errors import disk_errors
from opticstream.io.matlab import arrays_from_matlab
from opticstream.model.errors import ProcessingError


def mapping_finder_by_matlab(
    engine: MatlabEngine, deployment: DeploymentSettings, folder: Path, /, *, name: str
) -> MappingFinder:
    """Return what finds the mapping of two illuminations by MATLAB's `register_illuminations`.

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

    def find(task: MappingTask) -> PlanarTransform:
        arrays = _called(
            engine,
            deployment,
            folder,
            name=name,
            function="register_illuminations",
            product="mapping",
            arrays={
                "fixed": np.stack(task.fixed, axis=-1),
                "moving": np.stack(task.moving, axis=-1),
                "fixed_valid": task.fixed_valid.astype(np.uint8),
                "moving_valid": task.moving_valid.astype(np.uint8),
                "scale_guess": np.asarray(task.scale_guess, float),
            },
            settings={
                "transform": task.freedom,
                "bend_sigma_px": task.bend_sigma_px,
                "smoothing_sigma_px": task.sigma_px,
                "max_rotation_deg": task.max_rotation_deg,
                "max_pixels": task.max_pixels,
            },
        )
        matrix = _variable(arrays, "matrix", (2, 2), name)
        offset = _variable(arrays, "offset", (2,), name)
        displacement = None
        if "displacement" in arrays:
            moved = _variable(arrays, "displacement", (*task.fixed_valid.shape, 2), name)
            displacement = np.moveaxis(moved, -1, 0).astype(np.float32)
        for variable, values in (("matrix", matrix), ("offset", offset), ("displacement", displacement)):
            if values is not None and not np.isfinite(values).all():
                raise ProcessingError(f"{name}: MATLAB wrote {variable} with values that are not finite")
        return PlanarTransform(matrix.astype(float), offset.astype(float), displacement)

    return find


def axis_solver_by_matlab(
    engine: MatlabEngine, deployment: DeploymentSettings, folder: Path, /, *, name: str
) -> AxisSolver:
    """Return a solver of fibre axes that calls MATLAB's `fibre_axes`.

    Parameters
    ----------
    engine, deployment, folder, name
        As for `mapping_finder_by_matlab`.

    Returns
    -------
    callable
        It raises EngineError or ProcessingError where MATLAB fails, ConfigurationError where it cannot be started.
    """

    def solve(
        orientation_deg: NDArray[Any], birefringence: NDArray[Any], frames: NDArray[np.float64]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        arrays = _called(
            engine,
            deployment,
            folder,
            name=name,
            function="fibre_axes",
            product="solution",
            arrays={
                "orientation_deg": np.moveaxis(orientation_deg, 0, -1),
                "birefringence": np.moveaxis(birefringence, 0, -1),
                "frames": np.transpose(frames, (2, 1, 0)),  # columns: x, y and direction of the beam
            },
            settings={},
        )
        shape = (*orientation_deg.shape[1:], 3)
        solution = _variable(arrays, "solution", shape, name)
        if not np.isfinite(solution).any():
            raise ProcessingError(f"{name}: MATLAB wrote a solution without any finite value")
        if "alternative" not in arrays:
            return solution, np.full(shape, np.nan)
        return solution, _variable(arrays, "alternative", shape, name)

    return solve


def _called(
    engine: MatlabEngine,
    deployment: DeploymentSettings,
    folder: Path,
    /,
    *,
    name: str,
    function: str,
    product: str,
    arrays: Mapping[str, ArrayLike],
    settings: Mapping[str, Any],
) -> dict[str, NDArray[Any]]:
    """Return the arrays that a function of MATLAB makes of others; both go through `.mat` files."""
    from scipy.io import savemat

    program = matlab_program(deployment, engine)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = temporary_beside(folder / "matlab")
    with disk_errors(scratch):
        scratch.mkdir()
    try:
        source, target = scratch / "given.mat", scratch / f"{product}.mat"
        with disk_errors(source), source.open("wb") as file:
            savemat(file, dict(arrays))
        step = MatlabStep(engine.function(function), source, {product: target})
        item = MatlabItem(name, (step,))
        with MatlabCall(program, [item], settings=settings, vectors={}, folder=scratch) as call:
            call.wait_for(name)
        return arrays_from_matlab(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _variable(arrays: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...], label: str) -> NDArray[Any]:
    """Return a variable that MATLAB has written, checked for shape; vectors may stand or lie."""
    if name not in arrays:
        raise ProcessingError(f"{label}: MATLAB wrote no variable `{name}`; it wrote {sorted(arrays) or 'none'}")
    values = arrays[name]
    if len(shape) == 1 and values.size == shape[0]:
        values = values.ravel()
    if values.shape != shape or values.dtype.kind not in "fiu":
        raise ProcessingError(
            f"{label}: MATLAB wrote {name} with the shape {values.shape} and the type {values.dtype}, expected real "
            f"numbers of the shape {shape}"
        )
    return values
