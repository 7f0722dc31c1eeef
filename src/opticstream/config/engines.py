"""What computes a stage: our own compiled code, our own code on a graphics card, or MATLAB/Octave.

How MATLAB is started on a host stands in `opticstream.config.deployment`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from opticstream.config.base import Settings

MatlabStage = Literal["tile", "registration", "axis"]
"""A stage that MATLAB can compute."""

FUNCTIONS_OF_STAGE: Mapping[MatlabStage, Mapping[str, str]] = {
    "tile": {
        "spectral_to_complex": "opticstream.spectral_to_complex",
        "complex_to_processed": "opticstream.complex_to_processed",
        "spectral_to_processed": "opticstream.spectral_to_processed",
        "find_surface": "opticstream.find_surface",
    },
    "registration": {"register_illuminations": "opticstream.register_illuminations"},
    "axis": {"fibre_axes": "opticstream.solve_axis"},
}
"""The functions that MATLAB is asked for by stage, and our own ones."""

MATLAB_FUNCTIONS: Mapping[str, str] = {
    does: name for functions in FUNCTIONS_OF_STAGE.values() for does, name in functions.items()
}
"""The functions of all stages, and our own ones."""

_FUNCTION = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")


class NativeEngine(Settings):
    """Tiles, registration and fibre axes are computed by OpticStream's own code, which is the fastest."""

    kind: Literal["native"] = "native"
    """Name of this choice."""


class MatlabEngine(Settings):
    """Tiles, registration and fibre axes are computed by MATLAB or Octave (docs/how-to/matlab.md)."""

    kind: Literal["matlab"] = "matlab"
    """Name of this choice."""
    stages: tuple[MatlabStage, ...] = get_args(MatlabStage)
    """Stages that MATLAB computes: `tile`, spectra to volumes and maps; `registration`, how the illuminations of a
    slice lie on each other; `axis`, the fibre axes of a slice. Our own code computes the others."""
    by_complex: bool = False
    """Make the complex tile first, by `spectral_to_complex`, and the rest from it, by `complex_to_processed`; otherwise
    `spectral_to_processed` does both."""
    functions: dict[str, str] = Field(default_factory=dict)
    """Functions of the lab in place of OpticStream's own, by what they do: `spectral_to_complex`,
    `complex_to_processed`, `spectral_to_processed`, `find_surface`, `register_illuminations` or `fibre_axes`."""
    paths: tuple[Path, ...] = ()
    """Folders of the lab's functions, besides those in OPTICSTREAM_MATLAB_PATH of each host."""
    memory_budget_gb: float = Field(default=8.0, gt=0)
    """Memory that one MATLAB process takes, in GB; batches for which a host has no memory wait."""

    @model_validator(mode="after")
    def _known_functions(self) -> MatlabEngine:
        for does, name in self.functions.items():
            if does not in MATLAB_FUNCTIONS:
                raise ValueError(f"functions: {does!r} is unknown; expected one of {', '.join(MATLAB_FUNCTIONS)}")
            if not _FUNCTION.fullmatch(name):
                raise ValueError(f"functions.{does} = {name!r}: expected the name of a MATLAB function")
        return self

    def function(self, does: str, /) -> str:
        """Return the name of the function that does one of `MATLAB_FUNCTIONS`.

        Examples
        --------
        >>> MatlabEngine(functions={"find_surface": "lab.surface"}).function("find_surface")
        'lab.surface'
        """
        return self.functions.get(does, MATLAB_FUNCTIONS[does])

    def computes(self, stage: MatlabStage, /) -> bool:
        """Return whether MATLAB computes a stage."""
        return stage in self.stages


CudaStage = Literal["tile"]
"""A stage that a graphics card can compute."""


class CudaEngine(Settings):
    """Tiles are computed on a graphics card of NVIDIA (docs/how-to/cuda.md); our compiled code computes the others."""

    kind: Literal["cuda"] = "cuda"
    """Name of this choice."""
    stages: tuple[CudaStage, ...] = get_args(CudaStage)
    """Stages that the card computes: `tile`, spectra to volumes and maps."""
    required: bool = False
    """What happens where a host has no card that can be used: `false`: our compiled code computes the tile, with the
    same results, and the tile's record says why; `true`: the tile fails."""
    memory_budget_gb: float = Field(default=4.0, gt=0)
    """Memory of the card that one tile may take, in GB; less where less is free."""

    def computes(self, stage: str, /) -> bool:
        """Return whether the card computes a stage."""
        return stage in self.stages


def table_of_choice(key: str, /) -> Any:
    """Return a validator that takes the bare name of a choice for its table, and `native` where none is named."""

    def table(value: Any) -> Any:
        if isinstance(value, str):
            return {key: value}
        return {key: "native", **value} if isinstance(value, Mapping) else value

    return BeforeValidator(table)


Engine = Annotated[NativeEngine | CudaEngine | MatlabEngine, Field(discriminator="kind"), table_of_choice("kind")]
"""An engine; `engine = "matlab"` is short for a table with this kind."""


def matlab_for(engine: NativeEngine | CudaEngine | MatlabEngine, stage: MatlabStage, /) -> MatlabEngine | None:
    """Return the MATLAB settings if MATLAB computes a stage, else None."""
    return engine if isinstance(engine, MatlabEngine) and engine.computes(stage) else None


def cuda_for(engine: NativeEngine | CudaEngine | MatlabEngine, stage: CudaStage, /) -> CudaEngine | None:
    """Return the settings of the graphics card if it computes a stage, else None."""
    return engine if isinstance(engine, CudaEngine) and engine.computes(stage) else None
