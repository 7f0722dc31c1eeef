"""The page in parts: each part is rendered again when what it shows has changed, and sent to pages that lack it."""

from __future__ import annotations

import contextlib
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from threading import RLock
from typing import Any

from jinja2 import Environment, FileSystemBytecodeCache, PackageLoader, StrictUndefined
from jinja2.bccache import Bucket

import opticstream
from opticstream.io.paths import THUMBNAIL_PX
from opticstream.model.ids import MosaicId, SliceId, item_from_key
from opticstream.model.modalities import described
from opticstream.system.places import private_folder
from opticstream.web import words
from opticstream.web.board import Board
from opticstream.web.tiles import STATES, TileLook, stamp_of

MOST_LINES = 60
"""Largest number of failures, or of flagged results, that the page lists."""
_MOST_VIEWS = 16
_FRAME = "mosaics"
_INSIDE_FRAME = ("column-", "caption-")
"""Beginnings of the ids of parts that lie in the frame, and are sent with it."""


@dataclass
class Part:
    """A part of the page."""

    html: str
    version: int
    """Version of the board at which it became like this."""


@dataclass(frozen=True)
class ColumnPlace:
    """Where a column lies in the picture of its mosaic, in units of the SVG."""

    x: float
    width: float
    height: float
    strip: str
    """Address of its picture; empty where no tile is processed."""
    looks: tuple[TileLook, ...]


class Views:
    """All views that pages look at now: a slice, or whatever slice is the current one, in one modality."""

    def __init__(self, board: Board, /, *, may_retry: bool) -> None:
        self.board = board
        self.epoch = uuid.uuid4().hex[:8]
        self.environment = _environment()
        self.environment.globals.update(may_retry=may_retry)
        self._views: OrderedDict[tuple[SliceId | None, str], View] = OrderedDict()
        self._lock = RLock()

    def get(self, slice_id: SliceId | None, modality: str, /) -> View:
        """Return a view; None is the current slice."""
        with self._lock:
            key = (slice_id, modality)
            view = self._views.get(key)
            if view is None:
                view = self._views[key] = View(self.board, self.environment, slice_id, modality)
            self._views.move_to_end(key)
            while len(self._views) > _MOST_VIEWS:
                self._views.popitem(last=False)
            return view

    def version_seen(self, event_id: str, /) -> int:
        """Return the version that a page has, from the id of its last event; -1 if it is of another server."""
        epoch, _, version = event_id.partition(".")
        return int(version) if epoch == self.epoch and version.isdecimal() else -1

    def event_id(self, version: int, /) -> str:
        """Return the id of the event that brings pages to a version."""
        return f"{self.epoch}.{version}"


class View:
    """One slice in one modality, with the panels beside it."""

    def __init__(self, board: Board, environment: Environment, slice_id: SliceId | None, modality: str) -> None:
        self.slice_id = slice_id
        self.modality = modality
        self._board = board
        self._environment = environment
        self._parts: dict[str, Part] = {}
        self._columns: dict[tuple[int, int], tuple[Any, str]] = {}
        self._drawn: dict[MosaicId, int] = {}
        """The version at which the columns of a mosaic were drawn last."""
        self._shown: object = None
        self._version = -1
        self._lock = RLock()

    @property
    def shown_slice(self) -> SliceId | None:
        """The slice that is shown now."""
        return self.slice_id or self._board.current_slice

    def parts(self) -> dict[str, str]:
        """Return all parts, by their ids; the mosaics hold their columns."""
        with self._lock:
            self._update()
            found = {name: part.html for name, part in self._parts.items() if not name.startswith(_INSIDE_FRAME)}
            return {**found, _FRAME: self._frame()}

    def since(self, version: int, /) -> tuple[str, int]:
        """Return the parts that have changed since a version, and the version that they bring a page to."""
        with self._lock:
            self._update()
            changed = {name: part for name, part in self._parts.items() if part.version > version}
            if _FRAME in changed:
                changed = {name: part for name, part in changed.items() if not name.startswith(_INSIDE_FRAME)}
            html = [self._frame() if name == _FRAME else part.html for name, part in changed.items()]
            return "\n".join(html), self._version

    def _update(self) -> None:
        version = self._board.version
        if version == self._version:
            return
        with self._board.lock:
            rendered = dict(self._panels())
            shown = self.shown_slice
            frame = (shown, self.modality, shown is None and self._board.reading is not None)
            if frame != self._shown:
                self._parts = {name: part for name, part in self._parts.items() if not name.startswith(_INSIDE_FRAME)}
                self._columns.clear()
                self._drawn.clear()
                self._shown = frame
            rendered[_FRAME] = repr(frame)
            for mosaic in self._mosaics():
                rendered[f"caption-{mosaic.mosaic_id}"] = self._caption(mosaic)
                if self._drawn.get(mosaic, -1) >= self._board.touched.get(mosaic, 0):
                    continue
                self._drawn[mosaic] = version
                for column in range(self._board.project.layout.illumination_of(mosaic).columns):
                    rendered[f"column-{mosaic.mosaic_id}-{column + 1}"] = self._column(mosaic, column)
        for name, html in rendered.items():
            before = self._parts.get(name)
            if before is None or before.html != html:
                self._parts[name] = Part(html, version)
        self._version = version

    def _mosaics(self) -> tuple[MosaicId, ...]:
        shown = self.shown_slice
        return self._board.project.layout.mosaics(shown) if shown else ()

    def _panels(self) -> Iterator[tuple[str, str]]:
        board = self._board
        slices = [board.slices[one] for one in sorted(board.slices)]
        totals = {
            "slices": len(slices),
            "registered": sum(p.state in ("registered", "axis failed") for one in slices for p in one.slices),
            "processed": sum(m.tiles_processed for one in slices for m in one.mosaics),
            "failed": sum(m.tiles_failed for one in slices for m in one.mosaics),
            "mosaics": sum(m.state == "stitched" for one in slices for m in one.mosaics),
            "published": sum(m.published for one in slices for m in one.mosaics),
            "uploaded": sum(m.uploaded for one in slices for m in one.mosaics),
            "raw_uploaded": sum(m.batches["uploaded"] for one in slices for m in one.mosaics),
            "raw_archived": sum(m.batches["archived"] for one in slices for m in one.mosaics),
        }
        values = {
            "board": board,
            "shown": self.shown_slice,
            "modality": self.modality,
            "slices": slices,
            "totals": totals,
        }
        for name in ("summary", "slices", "failures", "flagged", "uploads", "disk"):
            yield name, self._environment.get_template(f"{name}.html.j2").render(values)

    def _caption(self, mosaic: MosaicId) -> str:
        board, shown = self._board, self.shown_slice
        known = board.slices[shown].mosaics if shown in board.slices else ()
        progress = next((one for one in known if one.mosaic_id == mosaic.mosaic_id), None)
        grid = board.project.layout.illumination_of(mosaic)
        return self._environment.get_template("caption.html.j2").render(mosaic=mosaic, grid=grid, progress=progress)

    def _column(self, mosaic: MosaicId, column: int) -> str:
        looks = tuple(self._board.looks(mosaic, column))
        key = (mosaic.mosaic_id, column)
        kept = self._columns.get(key)
        if kept is not None and kept[0] == looks:
            return kept[1]
        html = self._environment.get_template("column.html.j2").render(
            mosaic=mosaic, column=column, place=self._place(mosaic, column, looks), modality=self.modality
        )
        self._columns[key] = (looks, html)
        return html

    def _place(self, mosaic: MosaicId, column: int, looks: tuple[TileLook, ...]) -> ColumnPlace:
        width, height = cell_size(self._board, mosaic)
        stamp = stamp_of(looks)
        strip = f"strip/{mosaic.mosaic_id}/{column + 1}/{self.modality}.jpg?v={stamp}" if stamp else ""
        return ColumnPlace(column * width, width, height, strip, looks)

    def _frame(self) -> str:
        """Return the mosaics of the slice with all their columns."""
        board, layout = self._board, self._board.project.layout
        shown = self.shown_slice
        mosaics = []
        for mosaic in self._mosaics():
            grid = layout.illumination_of(mosaic)
            width, height = cell_size(board, mosaic)
            columns = [self._parts[f"column-{mosaic.mosaic_id}-{k + 1}"].html for k in range(grid.columns)]
            mosaics.append(
                {
                    "id": mosaic, "grid": grid, "width": width * grid.columns, "height": height * grid.rows,
                    "columns": columns, "caption": self._parts[f"caption-{mosaic.mosaic_id}"].html,
                }
            )  # fmt: skip
        return self._environment.get_template("mosaics.html.j2").render(
            mosaics=mosaics, shown=shown, modality=self.modality, modalities=modalities_of(board),
            described=described, follows=self.slice_id is None, states=STATES, reading=board.reading is not None,
        )  # fmt: skip


def modalities_of(board: Board, /) -> tuple[str, ...]:
    """Return the maps that the live mosaic can show, in the order of the settings."""
    return tuple(board.project.config.processing.enface.modalities)


def cell_size(board: Board, mosaic: MosaicId, /) -> tuple[float, float]:
    """Return width and height of a tile in the live mosaic, in units of its SVG; the longer one is that of a strip."""
    a_lines, b_lines = board.project.config.scan.tile_shape(board.project.layout.illumination_index(mosaic))
    scale = THUMBNAIL_PX / max(a_lines, b_lines)
    return round(a_lines * scale, 2), round(b_lines * scale, 2)


class _KeptTemplates(FileSystemBytecodeCache):
    """Templates as they were compiled by an earlier start, which took most of the time of the first page."""

    def dump_bytecode(self, bucket: Bucket) -> None:
        with contextlib.suppress(OSError):  # they are compiled by the next start again
            super().dump_bytecode(bucket)


def _environment() -> Environment:
    folder = private_folder()
    environment = Environment(
        loader=PackageLoader("opticstream.web"),
        bytecode_cache=None if folder is None else _KeptTemplates(str(folder), "template-%s.cache"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(
        words=words, version=opticstream.__version__, states=STATES, most_lines=MOST_LINES, item_from_key=item_from_key
    )  # fmt: skip
    return environment
