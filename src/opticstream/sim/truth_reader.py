"""Reading the truth back: maps looked up at any position of a mosaic's frame."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.io.nifti import read_nifti
from opticstream.model.errors import FileFormatError, MissingInputError
from opticstream.sim.truth import FORMAT, TRUTH_FILE

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MosaicTruth:
    """Truth of one mosaic."""

    folder: Path
    entry: Mapping[str, Any]

    @property
    def mosaic_id(self) -> int:
        return int(self.entry["mosaic_id"])

    @property
    def slice_id(self) -> int:
        return int(self.entry["slice_id"])

    @property
    def illumination(self) -> int:
        return int(self.entry["illumination"])

    @cached_property
    def positions(self) -> dict[int, Array]:
        """True position (x, y) of every tile."""
        return {int(t["tile_id"]): np.array([t["x"], t["y"]]) for t in self.entry["tiles"]}

    @cached_property
    def neighbours(self) -> list[tuple[int, int]]:
        """Pairs of tiles that share an edge."""
        at = {(t["column"], t["row"]): int(t["tile_id"]) for t in self.entry["tiles"]}
        pairs = []
        for (column, row), tile in sorted(at.items()):
            pairs += [(tile, at[n]) for n in ((column + 1, row), (column, row + 1)) if n in at]
        return pairs

    def map(self, name: str) -> NDArray[Any]:
        """Return a whole map, indexed [x, y]; its pixel (0, 0) lies at `origin_px`."""
        values = read_nifti(self.folder / self.entry["files"][name])
        return values[:, :, 0] if name == "axis" else values

    def at(self, name: str, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the values of a map at positions of the mosaic's frame (nearest pixel), and where there are any."""
        values = self._cached(name)
        i = np.rint(np.asarray(x, dtype=float) - self.entry["origin_px"][0]).astype(int)
        j = np.rint(np.asarray(y, dtype=float) - self.entry["origin_px"][1]).astype(int)
        known = (i >= 0) & (j >= 0) & (i < values.shape[0]) & (j < values.shape[1])
        return values[np.clip(i, 0, values.shape[0] - 1), np.clip(j, 0, values.shape[1] - 1)], known

    @cached_property
    def _maps(self) -> dict[str, NDArray[Any]]:
        return {}

    def _cached(self, name: str) -> NDArray[Any]:
        if name not in self._maps:
            self._maps[name] = self.map(name)
        return self._maps[name]


@dataclass(frozen=True)
class Truth:
    """Truth of a whole acquisition."""

    folder: Path
    document: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path, /) -> Truth:
        """Read the truth in a folder.

        Raises
        ------
        MissingInputError, FileFormatError
            There is no truth there, or none of this format.
        """
        path = folder / TRUTH_FILE
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise MissingInputError(f"{path}: no such file; the rig writes it into its truth folder") from error
        except ValueError as error:
            raise FileFormatError(f"{path}: cannot be read as JSON: {error}") from error
        if document.get("format") != FORMAT:
            raise FileFormatError(f"{path}: format is {document.get('format')!r}, expected {FORMAT!r}")
        return cls(folder, document)

    @cached_property
    def mosaics(self) -> dict[int, MosaicTruth]:
        return {int(m["mosaic_id"]): MosaicTruth(self.folder, m) for m in self.document["mosaics"]}

    @property
    def slices(self) -> list[Mapping[str, Any]]:
        return list(self.document["slices"])

    def illumination(self, index: int) -> Mapping[str, Any]:
        entry: Mapping[str, Any] = self.document["illuminations"][index]
        return entry

    def gate_px(self, index: int) -> Array:
        """Return the path-length variation over a tile, shape (A-lines, B-lines)."""
        return np.asarray(read_nifti(self.folder / self.illumination(index)["files"]["gate_px"]), dtype=float)
