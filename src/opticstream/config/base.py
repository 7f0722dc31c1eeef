"""Shared behaviour of all settings: frozen, unknown keys refused, every field described."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _data_reference(value: str) -> str:
    path, _, variable = value.partition("#")
    if not path:
        raise ValueError(f"expected a file, optionally with '#variable', got {value!r}")
    if Path(path).suffix.lower() not in {".npy", ".npz", ".mat", ".dat", ".txt", ".csv"}:
        raise ValueError(f"expected a .npy, .npz, .mat, .txt, .csv or .dat file, got {value!r}")
    if variable and Path(path).suffix.lower() not in {".npz", ".mat"}:
        raise ValueError(f"{Path(path).suffix} files hold one array; remove '#{variable}' from {value!r}")
    return value


DataReference = Annotated[str, AfterValidator(_data_reference)]
"""A vector in a file: ``file.npy``, ``file.dat`` (raw float64), ``file.txt`` or ``file.csv`` (numbers in text), or
``file.mat#variable`` / ``file.npz#variable``. Relative paths start at the folder of the project file."""
