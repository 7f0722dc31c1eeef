"""The first look at a tile: its maps, pictures and figures, before its volumes and its archive copy are made.

Whoever stands at the microscope waits for these, and they take a quarter of the time of all. A look is no result: it is
shown in a folder of its own, and `process_tile` writes its files under their names instead of making them again.
Without it everything is made in one reading of the raw file, and the bytes are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opticstream.config.tile_figures import TileFigures
from opticstream.io.atomic import atomic_folder
from opticstream.io.paths import LOOK_DESCRIPTION, look_folder, tile_product_name
from opticstream.model.ids import TileId
from opticstream.model.verdict import Verdict
from opticstream.system.disk import remove

_PICTURES = ("qc", "thumbnail")


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLook:
    """What is shown of a tile."""

    key: str
    """What it was made from: raw files and settings, in any words that differ where these do."""
    files: Mapping[str, bytes]
    """Contents of the maps, the quality picture (`qc`) and the thumbnail, by product."""
    figures: TileFigures
    engine_note: str = ""
    """As in `TileResult`."""


def write_look(look: FirstLook, out_dir: Path, tile: TileId, /, *, verdict: Verdict) -> Path:
    """Write a first look into its folder, which appears when it is complete, and return that.

    Parameters
    ----------
    look : FirstLook
        What is shown.
    out_dir : Path
        The project's folder.
    tile : TileId
        Which tile.
    verdict : Verdict
        Of quality control, for whoever shows it.
    """
    folder = look_folder(out_dir, tile)
    with atomic_folder(folder) as temporary:
        for name, content in look.files.items():
            (temporary / _file_name(tile, name)).write_bytes(content)
        about = {
            "key": look.key,
            "figures": look.figures.as_dict(),
            "flags": verdict.reasons,
            "verdict": verdict.grade,
            "engine_note": look.engine_note,
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in look.files.items()},
        }
        (temporary / LOOK_DESCRIPTION).write_text(json.dumps(about), encoding="utf-8")
    return folder


def read_look(out_dir: Path, tile: TileId, /, *, key: str) -> FirstLook | None:
    """Return the first look at a tile; None where there is none that was made from what `key` says, whole."""
    folder = look_folder(out_dir, tile)
    try:
        about = json.loads((folder / LOOK_DESCRIPTION).read_bytes())
        if about["key"] != key:
            return None
        files = {name: (folder / _file_name(tile, name)).read_bytes() for name in about["sha256"]}
        if any(hashlib.sha256(files[name]).hexdigest() != digest for name, digest in about["sha256"].items()):
            return None
        return FirstLook(
            key=key, files=files, figures=TileFigures(**about["figures"]), engine_note=str(about["engine_note"])
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # just removed, damaged, of another version
        return None


def drop_look(out_dir: Path, tile: TileId, /) -> None:
    """Remove the first look at a tile, which is done or parked."""
    remove(look_folder(out_dir, tile))


def _file_name(tile: TileId, name: str) -> str:
    suffix = ".jpg" if name in _PICTURES else ".nii"
    return Path(tile_product_name(tile, name)).with_suffix(suffix).name
