"""`report.html` and `slices.csv`: what is known of each slice of the sample, for people.

The page holds its pictures itself and needs nothing else, so that it can be sent and printed. Small pictures of faces
are kept in `report/`, so that a new slice costs its own boundaries only.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import PlanarTransform, resample_image
from opticstream.compute.sample import Pose, SliceBend, SliceFigures, depths_to_compare, tissue_mask
from opticstream.io.atomic import atomic_path, write_text
from opticstream.io.encoded_pictures import encoded_picture
from opticstream.io.zarr import (
    Section,
    mean_of_planes,
    section_through,
    thumbnail_planes,
    volume_reader,
    volume_voxel_um,
)
from opticstream.model.errors import OpticStreamError
from opticstream.stages.sample._placed_slice import Place
from opticstream.stages.sample._pose_book import Pictures, shrunk_map

REPORT = "report.html"
TABLE = "slices.csv"
FOLDER = "report"

_LONGEST_PX = 384
_BLUE = np.array([0.0, 0.45, 1.0])
_ORANGE = np.array([1.0, 0.55, 0.0])
"""Together they are white: where two faces show the same, the overlay is grey. Those who see no red or no green can
tell them apart."""
_STATES = {"present": "there", "missing": "missing", "excluded": "excluded", "left out": "left out"}


@dataclass(frozen=True)
class ReportedSlice:
    """What the report says of one slice."""

    slice_id: int
    state: str
    """`present`, `missing`, `excluded` (by a person) or `left out` (of the intensity volume, by its brightness)."""
    reason: str = ""
    """Why it is not there, or placed by no picture."""
    pose: Pose | None = None
    place: Place | None = None
    """Where it lies, as it was written."""
    figures: SliceFigures | None = None
    gain_db: float | None = None
    """Gain that the brightness correction found."""
    comparisons: tuple[int, int] = (0, 0)
    """Number of comparisons with other slices, and of those that agree with its place."""
    placed_by_hand: bool = False
    filled: bool = False
    """Whether its slot in the intensity volume shows deeper planes of earlier slices."""
    pictures: Pictures = field(default_factory=dict)

    @property
    def bend(self) -> SliceBend | None:
        """How it is bent beside its pose; None where it is not."""
        return None if self.place is None else self.place.bend


@dataclass(frozen=True)
class Reported:
    """What the report is made from."""

    title: str
    slices: Sequence[ReportedSlice]
    sections: Mapping[str, Path]
    """Stacks through which sections are shown, by name."""
    slice_thickness_um: float
    poses_version: int
    placements: Sequence[str] = ()
    """What people gave, a line each."""


_COLUMNS: Sequence[tuple[str, str]] = (
    ("slice", "number"),
    ("state", ""),
    ("reason", ""),
    ("shift_x", "px"),
    ("shift_y", "px"),
    ("turn", "deg"),
    ("sigma_place", "px"),
    ("sigma_turn", "deg"),
    ("bend_rms", "px"),
    ("bend_largest", "px"),
    ("sigma_bend", "px"),
    ("focus_against_neighbours", "dB"),
    ("signal_against_neighbours", "dB"),
    ("agreement_with_neighbours", "0 to 1"),
    ("comparisons", "number"),
    ("comparisons_that_agree", "number"),
    ("gain", "dB"),
    ("placed_by_hand", "0 or 1"),
    ("filled_from_deeper_planes", "0 or 1"),
)


def write_slice_table(path: Path, slices: Sequence[ReportedSlice], /) -> Path:
    """Write the figures of all slices as CSV, with the unit of each column in its header; return the path."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([f"{name} [{unit}]" if unit else name for name, unit in _COLUMNS])
    rows.writerows([["" if value is None else value for value in _row(one)] for one in slices])
    return write_text(path, text.getvalue())


def _row(one: ReportedSlice) -> list[Any]:
    pose, figures = one.pose, one.figures or SliceFigures(None, None, None)
    place = [None] * 5 if pose is None else [*pose.shift_px, pose.turn_deg, pose.sigma_px, pose.sigma_deg]
    bend = [None] * 3 if one.bend is None else [*one.bend.size_px, one.bend.sigma_px]
    return [
        one.slice_id,
        one.state,
        one.reason,
        *place,
        *bend,
        figures.focus_db,
        figures.signal_db,
        figures.agreement,
        *one.comparisons,
        one.gain_db,
        int(one.placed_by_hand),
        int(one.filled),
    ]


def write_report(folder: Path, what: Reported, /) -> dict[str, Path]:
    """Write the page and the table into the folder of the stacks, and return them by name."""
    table = write_slice_table(folder / TABLE, what.slices)
    page = _template().render(
        title=what.title or "Sample",
        what=what,
        states=_STATES,
        counts={state: sum(one.state == state for one in what.slices) for state in _STATES},
        sections=_sections(what),
        charts=_charts(what),
        boundaries=_boundaries(folder / FOLDER, what),
        table=TABLE,
    )
    return {"report": write_text(folder / REPORT, page), "slice_table": table}


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("opticstream.stages.sample", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    return environment.get_template("report.html.j2")


def _figure(value: float | None, digits: int = 2) -> str:
    """Return a number for people; a dash where there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def _embedded(picture: NDArray[np.uint8]) -> str:
    data = encoded_picture(np.ascontiguousarray(picture), "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _unit(image: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.float64]:
    low, high = limits
    return np.nan_to_num(np.clip((np.asarray(image, float) - low) / max(high - low, 1e-9), 0, 1))


def _limits(image: NDArray[Any]) -> tuple[float, float]:
    """Return the values of black and white: tissue fills the greys, what lies beside it is darker."""
    inside = image[tissue_mask(image[:, :, None]) & np.isfinite(image)]
    low, high = np.percentile(inside, [2, 99]) if inside.size else (0.0, 1.0)
    return float(low - 0.3 * (high - low)), float(high)


# -- sections ------------------------------------------------------------------------------------------------------


def _sections(what: Reported) -> list[dict[str, Any]]:
    """Return the sections with their marks, in micrometres; a stack that cannot be read is told instead."""
    found: list[dict[str, Any]] = []
    for name, path in what.sections.items():
        for axis in ("x", "y"):
            title = f"{name}, {axis}-z"
            try:
                section = _without_empty_ends(section_through(path, axis, _middle_of_tissue(path)))
            except (OpticStreamError, OSError, ValueError) as error:
                found.append({"title": title, "problem": f"cannot be shown: {error}"})
                continue
            grey = _unit(section.plane, _limits(section.plane))
            rows = np.repeat(np.rint(grey.T * 255).astype(np.uint8)[:, :, None], 3, axis=2)
            rows = np.repeat(rows, max(1, 400 // max(rows.shape[0], 1)), axis=0) if rows.shape[0] < 200 else rows
            width, height = section.size_um
            height = max(height, what.slice_thickness_um * len(what.slices))
            found.append(
                {
                    "title": title,
                    "picture": _embedded(rows),
                    "width": width,
                    "height": height,
                    "shown": section.size_um[1],
                    "marks": _marks(what, height),
                }
            )
    return found


def _middle_of_tissue(path: Path) -> tuple[float, float]:
    """Return where the middle of the tissue lies in a stack, as shares of its width along x and y."""
    planes = thumbnail_planes(path, 24)
    known = np.isfinite(planes)
    mean = np.where(known, planes, 0).sum(2) / np.maximum(known.sum(2), 1)
    image = np.where(known.any(2), mean, np.nan)
    inside = tissue_mask(image[:, :, None]) & np.isfinite(image)
    if not inside.any():
        return 0.5, 0.5
    x, y = ((np.median(where) + 0.5) / n for where, n in zip(np.nonzero(inside), image.shape, strict=True))
    return float(x), float(y)


def _without_empty_ends(section: Section) -> Section:
    """Return a section from the first to the last place where it shows something."""
    known = np.flatnonzero(np.isfinite(section.plane).any(1))
    if not known.size:
        return section
    part = section.plane[known[0] : known[-1] + 1]
    return Section(part, (section.size_um[0] * len(part) / len(section.plane), section.size_um[1]))


def _marks(what: Reported, height_um: float) -> list[dict[str, Any]]:
    """Return where each slice begins, with a label where there is room for one."""
    room = height_um / 40
    marks, free = [], -np.inf
    for one in what.slices:
        top = (one.slice_id - 1) * what.slice_thickness_um
        special = one.state != "present"
        label = ""
        if top >= free or (special and top >= free - room / 2):
            label, free = str(one.slice_id), top + room
        marks.append({"slice": one, "top": top, "label": label, "special": special})
    return marks


# -- charts --------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT = 520.0, 170.0


def _charts(what: Reported) -> list[dict[str, Any]]:
    poses = {one.slice_id: one.pose for one in what.slices if one.pose is not None}
    known = {one.slice_id: one.figures for one in what.slices if one.figures is not None}
    charts = []
    if poses:
        shifts = [
            (name, {n: (p.shift_px[k], p.sigma_px) for n, p in poses.items()}) for k, name in enumerate(("x", "y"))
        ]
        charts.append(_chart("Place", "px", shifts))
        charts.append(_chart("Turn", "deg", [("turn", {n: (p.turn_deg, p.sigma_deg) for n, p in poses.items()})]))
    for title, unit, values in (
        ("Focus against neighbours", "dB", {n: f.focus_db for n, f in known.items()}),
        ("Signal against neighbours", "dB", {n: f.signal_db for n, f in known.items()}),
        ("Agreement with neighbours", "0 to 1", {n: f.agreement for n, f in known.items()}),
    ):
        points = {n: (v, 0.0) for n, v in values.items() if v is not None}
        if points:
            charts.append(_chart(title, unit, [("", points)]))
    return charts


def _chart(title: str, unit: str, series: Sequence[tuple[str, Mapping[int, tuple[float, float]]]]) -> dict[str, Any]:
    """Return a chart over the slices: points with bars of one standard deviation, in the units of its picture.

    A bar that would squeeze all others is cut at the edge.
    """
    numbers = sorted({n for _, points in series for n in points})
    values = np.array([v for _, points in series for v, _ in points.values()])
    low, high = float(values.min()), float(values.max())
    room = max(0.1 * (high - low), 1e-3 * max(abs(low), abs(high)), 0.05)
    low, high = low - room, high + room
    span = max(numbers[-1] - numbers[0], 1)

    def x(n: int) -> float:
        return round(66 + (n - numbers[0]) / span * (_WIDTH - 86), 1)

    def y(value: float) -> float:
        return round(10 + (high - min(max(value, low), high)) / (high - low) * (_HEIGHT - 35), 1)

    step = max(1, -(-len(numbers) // 20))
    return {
        "title": title,
        "unit": unit,
        "width": _WIDTH,
        "height": _HEIGHT,
        "bottom": _HEIGHT - 25,
        "ticks": [(x(n), n) for n in numbers[::step]],
        "levels": [(y(v), f"{v:.3g}") for v in np.linspace(low, high, 3)],
        "series": [
            {
                "name": name,
                "points": [
                    {"x": x(n), "y": y(v), "top": y(v + sigma), "bottom": y(v - sigma), "slice": n}
                    for n, (v, sigma) in sorted(points.items())
                ],
            }
            for name, points in series
        ],
    }


# -- boundaries ----------------------------------------------------------------------------------------------------


def _boundaries(folder: Path, what: Reported) -> list[dict[str, Any]]:
    """Return both faces of each boundary, laid over each other; where they cannot be shown, the reason."""
    there = [one for one in what.slices if one.state in ("present", "left out")]
    used: set[Path] = set()
    found: list[dict[str, Any]] = []
    for one, two in pairwise(there):
        entry: dict[str, Any] = {"first": one, "second": two}
        try:
            entry |= _overlay(folder, one, two, what.slice_thickness_um, used)
        except (OpticStreamError, OSError, ValueError) as error:
            entry["problem"] = f"cannot be shown: {error}"
        found.append(entry)
    if folder.is_dir():
        for path in folder.glob("face_*.npz"):
            if path not in used:
                path.unlink(missing_ok=True)
    return found


def _overlay(
    folder: Path, one: ReportedSlice, two: ReportedSlice, thickness_um: float, used: set[Path]
) -> dict[str, Any]:
    kind = next((k for k in ("volume", "map") if k in one.pictures and k in two.pictures), None)
    if kind is None:
        return {"problem": "there is no volume and no map of both to compare"}
    if kind == "volume":
        plane_um = volume_voxel_um(one.pictures[kind].path)[2]
        planes = [volume_reader(s.pictures[kind].path)[0][2] for s in (one, two)]
        apart = (two.slice_id - one.slice_id) * thickness_um / plane_um
        depths = depths_to_compare(apart, (planes[0], planes[1]))
        bands: tuple[slice | None, slice | None] = (depths.first, depths.second)
        caption = "the same tissue, seen from both" if depths.common else "last planes and first planes"
    else:
        bands, caption = (None, None), "maps"
    faces: list[NDArray[np.float64]] = []
    pixel, shape = 1, (1, 1)
    for s, band in zip((one, two), bands, strict=True):
        image, factor = _face(folder, s, kind, band, used)
        if not faces:
            pixel = factor
            shape = (image.shape[0], image.shape[1])
        mapping = s.place.mapping if s.place is not None else PlanarTransform.identity()
        # from pixels of the first picture in the sample to pixels of this one
        scaled = PlanarTransform(
            mapping.matrix * pixel / factor,
            (mapping.points([(pixel - 1) / 2] * 2) - (factor - 1) / 2) / factor,
            None if s.bend is None else np.asarray(s.bend.of_blocks(shape, pixel) / pixel, np.float32),
        )
        moved = resample_image(image, scaled, shape=shape)
        faces.append(_unit(moved, _limits(moved)))
    colours = faces[0][:, :, None] * _BLUE + faces[1][:, :, None] * _ORANGE
    picture = np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8).transpose(1, 0, 2)
    return {"picture": _embedded(picture), "width": picture.shape[1], "height": picture.shape[0], "caption": caption}


def _face(
    folder: Path, s: ReportedSlice, kind: str, band: slice | None, used: set[Path]
) -> tuple[NDArray[np.float32], int]:
    """Return a small picture of a face in pixels of its slice, and its pixel in px; it is made once and kept."""
    source = s.pictures[kind]
    what = [source.fingerprint, kind, None if band is None else [band.start, band.stop]]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    path = folder / f"face_{s.slice_id:03d}_{digest}.npz"
    used.add(path)
    try:
        with np.load(path) as stored:
            return np.asarray(stored["image"], np.float32), int(stored["pixel"])
    except (OSError, ValueError, EOFError, KeyError):
        pass
    if band is None:
        image, pixel = shrunk_map(source.path, longest_px=_LONGEST_PX)
    else:
        image, pixel = mean_of_planes(source.path, band, longest_px=_LONGEST_PX)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, image=image.astype(np.float16), pixel=np.array(pixel))
    return image.astype(np.float16).astype(np.float32), pixel
