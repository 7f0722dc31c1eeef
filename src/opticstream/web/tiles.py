"""What the live mosaic shows of each tile: its state, its figures, and when its maps were made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from opticstream.io.paths import LOOK_DESCRIPTION, look_folder, look_picture
from opticstream.model.ids import BatchId, TileId
from opticstream.pipeline.judging import judged
from opticstream.pipeline.progress import detail_of
from opticstream.pipeline.project import Project
from opticstream.state.flags import flag_folder, flag_stem
from opticstream.web.facts_watch import FactsWatch

TileState = Literal["done", "look", "failed", "working", "waiting", "missing"]

STATES: Mapping[TileState, str] = {
    "done": "done",
    "look": "done, worth a look",
    "failed": "failed",
    "working": "column is being processed",
    "waiting": "column waits for a worker",
    "missing": "not complete at the rig yet",
}
"""Each state in words, in the order of the legend."""

FIGURES: Mapping[str, tuple[str, str]] = {
    "signal_db": ("signal", "{:.1f} dB"),
    "noise_db": ("noise", "{:.1f} dB"),
    "tissue_fraction": ("tissue", "{:.0%}"),
    "nan_fraction": ("no value", "{:.1%}"),
    "saturated_fraction": ("saturated", "{:.2%}"),
    "surface_roughness_px": ("surface roughness", "{:.1f} px"),
    "surface_confidence": ("surface confidence", "{:.2f}"),
}
"""Quality figures of a tile: their names in words, and their form."""


@dataclass(frozen=True, slots=True)
class TileLook:
    """One tile as the page shows it."""

    tile: TileId
    column: int
    row: int
    """Place in the picture, 0-based, x to the right and y downwards."""
    state: TileState
    stamp: int = 0
    """Modification time of the record, in nanoseconds; 0 without one."""
    figures: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    """Why it failed, or is worth a look."""
    attempts: int = 0

    @property
    def words(self) -> str:
        """State, figures and reasons in one line."""
        shown = [f"tile {self.tile.tile_id}: {STATES[self.state]}", *self.reasons]
        shown += [f"{name} {text}" for name, text in self.figure_lines()[:3]]
        return "; ".join(shown)

    def figure_lines(self) -> list[tuple[str, str]]:
        """Return the figures as names and values in words."""
        found = []
        for key, (name, form) in FIGURES.items():
            value = self.figures.get(key)
            if isinstance(value, int | float):
                found.append((name, form.format(value)))
        return found


def at_first_look(project: Project, look: TileLook, /) -> tuple[TileLook, str | None]:
    """Return a tile with the figures of its first look, and the name of its picture; as it is where there is none."""
    paths = project.paths
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # just removed, or of another version
        about = json.loads((look_folder(paths.base, look.tile) / LOOK_DESCRIPTION).read_bytes())
        shown = replace(look, figures=dict(about["figures"]), reasons=(*look.reasons, *map(str, about["flags"])))
        return shown, paths.relative(look_picture(paths.base, look.tile))
    return look, None


def stamp_of(looks: Sequence[TileLook], /) -> str:
    """Return a text that changes whenever the strip of a column does."""
    made = ";".join(f"{look.tile.tile_id}.{look.stamp}" for look in looks if look.state in ("done", "look"))
    return hashlib.blake2b(made.encode(), digest_size=6).hexdigest() if made else ""


class TileLooks:
    """Looks of tiles; a record is read again only when it has changed."""

    def __init__(self, project: Project, watch: FactsWatch, /) -> None:
        self._project = project
        self._watch = watch
        self._read: dict[tuple[TileId, str], tuple[int, Mapping[str, Any]]] = {}
        self._folders: dict[tuple[int, str], str] = {}
        self._notes: dict[BatchId, tuple[int, Mapping[str, Mapping[str, Any]]]] = {}
        """Notes on the tiles of columns that are done, by number, with the times of the columns' records."""

    def of(self, tile: TileId, /) -> TileLook:
        """Return the look of a tile."""
        layout = self._project.layout
        grid = layout.illumination_of(tile.mosaic)
        column, row = layout.scan_order.grid_position(tile.tile_id, grid.columns, grid.rows)
        known = self._watch.facts_of(tile)
        if "processed" in known:
            stamp, detail = self._detail(tile, "processed")
            flags = judged(self._project, tile, detail).reasons
            figures = detail.get("figures") or {}
            return TileLook(tile, column, row, "look" if flags else "done", stamp, figures, flags)
        if "failed" in known:
            stamp, detail = self._detail(tile, "failed")
            reason = (str(detail.get("reason", "unknown")),)
            return TileLook(tile, column, row, "failed", stamp, {}, reason, int(detail.get("attempts") or 1))
        batch = self._watch.facts_of(layout.batch_of(tile))
        state: TileState = "working" if "started" in batch else "waiting" if "ready" in batch else "missing"
        if "failed" in batch:
            state = "failed"
        return TileLook(tile, column, row, state, 0, {}, ("the column failed",) if state == "failed" else ())

    def raw_bytes(self, tile: TileId, /) -> int:
        """Return the size of the raw file of a processed tile; 0 where it is not recorded."""
        return int(detail_of(self._project, tile, "processed").get("raw_bytes") or 0)

    def _detail(self, tile: TileId, fact: str) -> tuple[int, Mapping[str, Any]]:
        stamp = self._stamp(tile, fact)
        kept = self._read.get((tile, fact))
        if kept is None or kept[0] != stamp:
            if len(self._read) > 20_000:
                self._read.clear()
            note = self._note(tile, stamp) if fact == "processed" else None
            detail = detail_of(self._project, tile, fact) if note is None else note
            kept = self._read[tile, fact] = (stamp, detail)
        return kept

    def _note(self, tile: TileId, stamp: int) -> Mapping[str, Any] | None:
        """Return what the record of its column says of a tile, which saves opening its own; None if that is newer."""
        batch = self._project.layout.batch_of(tile)
        if "processed" not in self._watch.facts_of(batch):
            return None
        written = self._stamp(batch, "processed")
        if written < stamp:
            return None
        kept = self._notes.get(batch)
        if kept is None or kept[0] != written:
            if len(self._notes) > 1000:
                self._notes.clear()
            notes = detail_of(self._project, batch, "processed").get("tiles")
            kept = self._notes[batch] = (written, notes if isinstance(notes, dict) else {})
        note = kept[1].get(str(tile.tile_id))
        return note if isinstance(note, dict) and note.get("outcome") == "ok" and note.get("figures") else None

    def _stamp(self, item: TileId | BatchId, fact: str) -> int:
        """Return the modification time of a record; of 600 tiles at a time, so that no path is put together twice."""
        key = (item.mosaic_id, item.hierarchy)
        folder = self._folders.get(key)
        if folder is None:
            folder = self._folders[key] = str(self._project.paths.base / flag_folder(item))
        try:
            return os.stat(f"{folder}/{flag_stem(item)}.{fact}").st_mtime_ns
        except OSError:
            return 0
