"""One tile by our compiled code and by another engine, and where the results differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from opticstream.config import DeploymentSettings, ProcessingSettings, ScanSettings
from opticstream.config.engines import CudaEngine, MatlabEngine, NativeEngine
from opticstream.config.processing import EnfaceSettings
from opticstream.io.nifti import read_nifti
from opticstream.model.ids import TileId
from opticstream.model.modalities import MODALITIES, described
from opticstream.stages.tile._matlab_tile import MatlabTiles
from opticstream.stages.tile._process_tile import TileResult, process_tile

ABOVE_NOISE_DB = 10.0
"""Angles of volumes are compared where the intensity is this far above the noise."""
MEAN_ABOVE_NOISE_DB = 3.0
"""Maps of polarization are compared where the mean intensity of the window is this far above the noise."""


@dataclass(frozen=True)
class Difference:
    """How far the two results of a product differ.

    Attributes
    ----------
    product, unit : str
        Name, and the unit of the differences.
    largest, most, typical : float
        Largest difference, that which 99.9 % of the values do not exceed, and the median; angles above the noise only.
        Where a value lies on a threshold, rounding decides, and single values differ by far.
    limit : float
        What 99.9 % may not exceed.
    """

    product: str
    unit: str
    largest: float
    most: float
    typical: float
    limit: float

    @property
    def is_small(self) -> bool:
        """Whether 99.9 % of the differences are within the limit."""
        return bool(self.most <= self.limit)


@dataclass(frozen=True)
class Comparison:
    """Differences of all products that hold more than noise, and how long each engine took, in seconds."""

    differences: tuple[Difference, ...]
    native_s: float
    other_s: float
    other: Literal["matlab", "cuda"] = "matlab"

    @property
    def agrees(self) -> bool:
        return all(difference.is_small for difference in self.differences)


def compare_engines(
    source: Path,
    tile: TileId,
    /,
    *,
    scan: ScanSettings,
    processing: ProcessingSettings,
    deployment: DeploymentSettings,
    folder: Path,
) -> Comparison:
    """Process a raw tile by our compiled code and by the engine of the project, or MATLAB, and return the differences.

    Parameters
    ----------
    source : Path
        Raw file, which is not changed.
    tile : TileId
        Its place in the acquisition.
    scan, processing, deployment
        Settings; `processing.engine` says which functions MATLAB is to use, where it is the engine.
    folder : Path
        Folder for both results, in `native` and `matlab` or `cuda`.

    Raises
    ------
    OpticStreamError
        One of the engines failed.
    """
    import time

    other: MatlabEngine | CudaEngine = MatlabEngine()
    if isinstance(processing.engine, MatlabEngine):
        other = processing.engine.model_copy(update={"stages": ("tile",)})
    elif isinstance(processing.engine, CudaEngine):
        other = processing.engine.model_copy(update={"stages": ("tile",), "required": True})
    reconstruction = processing.reconstruction.model_copy(update={"save_volumes": True, "save_complex": True})
    both = processing.model_copy(update={"reconstruction": reconstruction})
    results: list[TileResult] = []
    seconds: list[float] = []
    for name, chosen in (("native", NativeEngine()), (other.kind, other)):
        settings = both.model_copy(update={"engine": chosen})
        began = time.perf_counter()
        if isinstance(chosen, MatlabEngine):
            with MatlabTiles(
                {tile: source}, scan=scan, processing=settings, deployment=deployment, folder=folder / name
            ) as call:
                made = process_tile(source, tile, scan=scan, processing=settings, out_dir=folder / name, matlab=call)
        else:
            made = process_tile(source, tile, scan=scan, processing=settings, out_dir=folder / name)
        results.append(made)
        seconds.append(time.perf_counter() - began)
    native, by_other = results
    maps = {name: output.path for name, output in native.outputs.items() if name in MODALITIES}
    seen = _above_noise(native, maps, processing.enface)
    differences = [
        _difference(name, read_nifti(path), read_nifti(by_other.outputs[name].path), seen)
        for name, path in maps.items()
        if not (name == "complex" and scan.raw_format == "complex")
    ]
    native_s, other_s = seconds
    return Comparison(tuple(found for found in differences if found is not None), native_s, other_s, other.kind)


def _above_noise(result: TileResult, maps: Mapping[str, Path], enface: EnfaceSettings) -> dict[int, NDArray[np.bool_]]:
    """Return by number of axes where there is signal: in volumes by intensity, in maps by its projection.

    In maps also only where the window ends above the samples that the noise is taken from.
    """
    noise_db = result.figures["noise_db"]
    found = {3: np.asarray(read_nifti(maps["dBI"]) >= noise_db + ABOVE_NOISE_DB)} if "dBI" in maps else {}
    if "aip" in maps:
        found[2] = np.asarray(read_nifti(maps["aip"]).squeeze() >= noise_db + MEAN_ABOVE_NOISE_DB)
    if 2 in found and 3 in found:
        depth = found[3].shape[2]
        end = read_nifti(maps["surf"]).squeeze() + enface.offset + enface.depth
        # The deepest twentieth is what the noise is taken from: less the noise, nothing is left of it but rounding.
        found[2] &= end < depth - max(1, depth // 20)
    return found


def _difference(
    name: str, one: NDArray[np.float32], other: NDArray[np.float32], seen: Mapping[int, NDArray[np.bool_]]
) -> Difference | None:
    """Return how a product differs; None for polarization of a tile without signal, where there is only noise."""
    values, others = one.squeeze().astype(np.float64), other.squeeze().astype(np.float64)
    apart = np.abs(values - others)
    known = described(name)
    unit = known.unit
    if name == "complex":
        apart, unit = apart / max(float(np.abs(values).max()), 1e-30), "of the largest"
    if known.kind == "axial":
        apart = np.minimum(apart, np.abs(180 - apart))
    apart = np.where(np.isnan(values) & np.isnan(others), 0, np.where(np.isnan(apart), np.inf, apart))
    if known.channels == 2 and values.ndim in seen:
        apart = apart[seen[values.ndim]]
    if not apart.size:
        return None
    most, typical = (float(one) for one in np.percentile(apart, (99.9, 50), method="lower"))
    return Difference(name, unit, float(apart.max()), most, typical, known.engines_differ)
