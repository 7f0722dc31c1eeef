"""The recipe of the guide to archive copies reads them without OpticStream."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from opticstream.stages.tile import archive_tile, spectra_of_nifti
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "archive.md"


def test_the_recipe_reads_a_b_line(tmp_path, monkeypatch):
    counts = fringe_counts(samples=128, a_lines=9, b_lines=5)
    raw = write_spectral_nifti(tmp_path / "tile_OCT.nii", counts)
    archive_tile(raw, tmp_path / "tile_OCT.nii.zarr.zip", content=spectra_of_nifti(raw))
    raw.unlink()
    recipe = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert recipe is not None
    assert "opticstream" not in recipe[1]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(recipe[1], names)
    np.testing.assert_array_equal(names["counts"], counts[3, 0])
    for b_line, channel in np.ndindex(5, 2):
        found = names["counts_of_b_line"](names["group"], b_line, channel)
        np.testing.assert_array_equal(found, counts[b_line, channel])
    names["store"].close()
