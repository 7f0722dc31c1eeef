"""`poses.json`: the poses of all slices, apart from their pixels, and the edges that they follow from.

Edges are kept, so that a new slice is compared with its neighbours only, and one solve over all edges places them all.
The file has a version, which grows whenever a pose changes.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.pyramid import halved
from opticstream.compute.sample import (
    REACH,
    Edge,
    EdgeBend,
    MeasuredEdge,
    Pose,
    SliceBend,
    depths_to_compare,
    depths_to_read,
    edge_between,
    pose_after,
    pose_before,
    solve_bends,
    solve_placed_poses,
)
from opticstream.config.processing import SampleSettings
from opticstream.io.atomic import write_text
from opticstream.io.nifti import read_nifti
from opticstream.io.nifti_header import read_nifti_header
from opticstream.io.zarr import shrunk_planes, volume_reader, volume_voxel_um
from opticstream.model.errors import InputError, StateError
from opticstream.system.memory import return_freed_memory

FILE_NAME = "poses.json"

_MOST_PIXELS = 2_000_000
_LEFT_OUT = 0.25
_CLEAR = 0.4
"""Confidence from which a comparison says whether slices are bent."""
LIKE = 0.2
"""Confidence from which a comparison says that two slices show the same."""


@dataclass(frozen=True)
class Picture:
    """One thing that a slice is compared by."""

    path: Path
    """A map (NIfTI), or a volume (OME-Zarr)."""
    fingerprint: str
    """Of its content."""


Pictures = Mapping[str, Picture]
"""What one slice is compared by: its `volume`, its `map`, or both."""


@dataclass
class PoseBook:
    """Content of `poses.json`."""

    path: Path
    version: int = 0
    centre_px: tuple[float, float] | None = None
    poses: dict[int, Pose] = field(default_factory=dict)
    edges: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    stage: dict[int, dict[str, Any]] = field(default_factory=dict)
    scale: float = 1.0
    placed: list[Edge] = field(default_factory=list)
    """What people gave; `second` is the slice that was placed."""
    bends: dict[int, SliceBend] = field(default_factory=dict)
    """Of the slices that are bent."""

    @classmethod
    def read(cls, path: Path) -> PoseBook:
        """Return the stored book; an empty one where there is none.

        Raises
        ------
        StateError
            It cannot be read.
        """
        if not path.exists():
            return cls(path)
        try:
            content = json.loads(path.read_bytes())
            poses = {
                int(n): Pose(p["turn_deg"], tuple(p["shift_px"]), p["sigma_px"], p["sigma_deg"])
                for n, p in content["slices"].items()
            }
            edges = {(e["first"], e["second"]): e for e in content["edges"]}
            centre = content["centre_px"]
            stage = {int(n): entry for n, entry in content["stage"].items()}
            placed = [edge_from_facts(e) for e in content.get("placed", ())]
            scale = content["residual_scale"]
            bends = {int(n): bend_from_facts(p["bend"]) for n, p in content["slices"].items() if "bend" in p}
            return cls(path, content["version"], (centre[0], centre[1]), poses, edges, stage, scale, placed, bends)
        except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise StateError(f"{path}: cannot be read ({error!r}); remove it and add the slices again") from error

    def write(self) -> None:
        assert self.centre_px is not None
        content = {
            "version": self.version,
            "about": (
                "slice pixel = matrix @ sample pixel + offset, (x, y), pixels counted from 0; the same as turning by "
                "turn_deg about centre_px and then shifting by shift_px. sigma: up to one motion of the whole sample"
            ),
            "centre_px": list(self.centre_px),
            "residual_scale": self.scale,
            "slices": {str(n): self._facts(n) for n in sorted(self.poses)},
            "edges": [self.edges[pair] for pair in sorted(self.edges)],
            "stage": {str(n): self.stage[n] for n in sorted(self.stage)},
            **({"placed": [facts_of_edge(e) for e in self.placed]} if self.placed else {}),
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")

    def _facts(self, slice_id: int) -> dict[str, Any]:
        pose = self.poses[slice_id]
        mapping = pose.mapping(self.centre_px or (0.0, 0.0))
        return {
            "turn_deg": pose.turn_deg,
            "shift_px": list(pose.shift_px),
            "matrix": mapping.matrix.tolist(),
            "offset": mapping.offset.tolist(),
            "sigma_px": pose.sigma_px,
            "sigma_deg": pose.sigma_deg,
            **({"bend": facts_of_bend(self.bends[slice_id])} if slice_id in self.bends else {}),
        }

    def reasons(self, slice_id: int) -> str:
        """Return why a slice is placed by no picture and no person; empty where some picture agrees with its pose."""
        if any(slice_id in (e.first, e.second) for e in self.placed):
            return ""
        mine = [e for pair, e in self.edges.items() if slice_id in pair]
        if any(e["weight"] > _LEFT_OUT and e["confidence"] >= LIKE for e in mine):
            return ""
        if not mine:
            return "no slice within three sections to compare with" if len(self.poses) > 1 else ""
        told = [
            f"slice {next(n for n in (e['first'], e['second']) if n != slice_id)}: "
            f"{e['failure'] or ('contradicts the others' if e['confidence'] >= LIKE else 'no likeness was found')}"
            for e in mine
        ]
        return "placed between its neighbours, because it compares with none of them; " + "; ".join(told)

    def update(
        self,
        pictures: Mapping[int, Pictures],
        slice_id: int,
        /,
        *,
        slices: Sequence[int],
        settings: SampleSettings,
        slice_thickness_um: float,
        shape: tuple[int, int],
        excluded: Collection[int] = (),
        placed: Sequence[Edge] = (),
    ) -> None:
        """Measure the edges of a slice to its neighbours, where they are not known, and place all slices anew.

        Excluded slices hand nothing on; what people gave (`placed`) holds against comparisons.

        Raises
        ------
        MissingInputError, FileFormatError, InputError
            A picture, or the stage's log, cannot be read.
        """
        if self.centre_px is None:
            self.centre_px = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
        gone = [pair for pair in self.edges if not set(pair) <= set(slices)]
        for pair in gone:
            del self.edges[pair]
        guess: tuple[float, Pose] | None = None
        if slice_id in self.poses:
            guess = (0.0, self.poses[slice_id])
        for other in sorted(slices, key=lambda n: (abs(n - slice_id), n)):
            if other == slice_id or abs(other - slice_id) > REACH or {slice_id, other} & set(excluded):
                continue
            edge = self._edge(pictures, slice_id, other, guess, settings, slice_thickness_um)
            if edge is None:
                continue
            confidence = edge["confidence"]
            if other in self.poses and not edge["failure"] and (guess is None or confidence > guess[0]):
                follow = pose_after if edge["first"] == other else pose_before
                guess = confidence, follow(edge_from_facts(edge), self.poses[other], centre_px=self.centre_px)
        self.placed = list(placed)
        self._solve(slices, settings, frozenset(excluded))

    def _edge(
        self,
        pictures: Mapping[int, Pictures],
        slice_id: int,
        other: int,
        guess: tuple[float, Pose] | None,
        settings: SampleSettings,
        slice_thickness_um: float,
    ) -> dict[str, Any] | None:
        """Return the edge of two slices, measured where it is not known; None where it cannot be measured any more."""
        pair = min(slice_id, other), max(slice_id, other)
        known = self.edges.get(pair)
        for kind in ("volume", "map"):
            both = [pictures[n][kind] for n in pair if n in pictures and kind in pictures[n]]
            if len(both) < 2:
                continue
            prints = [picture.fingerprint for picture in both]
            made_from = {"compared": kind, "pictures": prints, "freedom": settings.align}
            if known is not None and made_from.items() <= known.items():
                return known
            if not all(picture.path.exists() for picture in both):
                continue
            assert self.centre_px is not None
            starts: tuple[tuple[Pose, Pose], ...] = ()
            if guess is not None and other in self.poses:
                mine, theirs = guess[1], self.poses[other]
                starts = ((theirs, mine),) if pair[0] == other else ((mine, theirs),)
            paths = both[0].path, both[1].path
            how = _measured_by_volumes if kind == "volume" else _measured_by_maps
            measured = how(pair, paths, starts, self.centre_px, settings.align, slice_thickness_um)
            return_freed_memory()
            self.edges[pair] = _edge_facts(measured) | made_from | {"weight": 1.0}
            return self.edges[pair]
        self.edges.pop(pair, None)  # what it was measured by is no more
        return None

    def _solve(self, slices: Sequence[int], settings: SampleSettings, excluded: frozenset[int]) -> None:
        assert self.centre_px is not None
        pairs = sorted(self.edges)
        edges = [edge_from_facts(self.edges[pair]) for pair in pairs]
        stage = {n: s["shift_px"] for n, s in self.stage.items() if n in slices}
        previous = {n: pose for n, pose in self.poses.items() if n in slices}
        solution = solve_placed_poses(
            slices,
            edges,
            self.placed,
            centre_px=self.centre_px,
            stage_px=stage,
            previous=previous,
            excluded=excluded,
        ).solution
        for pair, weight, residual in zip(pairs, solution.weights, solution.residuals_px, strict=True):
            self.edges[pair]["weight"] = round(weight, 4)
            self.edges[pair]["off_px"] = None if np.isnan(residual) else round(residual, 4)
        for n, weight in solution.stage_weights.items():
            self.stage[n]["weight"] = round(weight, 4)
        poses = {n: _rounded(pose) for n, pose in solution.poses.items()}
        if settings.align == "translation":
            poses = {n: Pose(0.0, p.shift_px, p.sigma_px, 0.0) for n, p in poses.items()}
        bends = self._solved_bends(poses, excluded) if settings.bends == "auto" and settings.align == "rigid" else {}
        facts = [{n: facts_of_bend(bend) for n, bend in some.items()} for some in (bends, self.bends)]
        if poses != self.poses or facts[0] != facts[1]:
            self.version += 1
        self.poses, self.bends, self.scale = poses, bends, round(solution.scale, 4)

    def _solved_bends(self, poses: Mapping[int, Pose], excluded: frozenset[int]) -> dict[int, SliceBend]:
        """Return the bends of slices, from comparisons of tissue that both saw and that agree with the poses."""
        assert self.centre_px is not None
        told = [
            facts
            for pair, facts in sorted(self.edges.items())
            if "bend" in facts
            and facts["weight"] > _LEFT_OUT
            and facts["confidence"] >= _CLEAR
            and not excluded & set(pair)
        ]
        bent = {(e["first"], e["second"]): _edge_bend_from_facts(e["bend"]) for e in told if e["bend"] is not None}
        found = solve_bends([edge_from_facts(e) for e in told], bent, poses, centre_px=self.centre_px)
        return {n: bend_from_facts(facts_of_bend(bend)) for n, bend in found.items()}  # rounded, as they are stored

    def read_stage_log(self, settings: SampleSettings, pixel_um: tuple[float, float]) -> None:
        """Take over the positions in the stage's log; without one there are none.

        Raises
        ------
        InputError
            The log cannot be read.
        """
        if settings.stage_log is None or not settings.stage_log.exists():
            self.stage = {}
            return
        told = stage_positions_um(settings.stage_log)
        # Where the stage stands further right, the same tissue lies further left in the picture.
        shifts = {n: [-x / pixel_um[0], -y / pixel_um[1]] for n, (x, y) in told.items()}
        self.stage = {n: {"shift_px": shift, "weight": 1.0} for n, shift in shifts.items()}


def stage_positions_um(path: Path, /) -> dict[int, tuple[float, float]]:
    """Return where the stage stood for each slice, from a CSV file with the columns `slice`, `x_um` and `y_um`.

    A later line of a slice replaces an earlier one.

    Raises
    ------
    InputError
        A column is missing, or a value is no number; the message names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            missing = sorted({"slice", "x_um", "y_um"} - set(rows.fieldnames or ()))
            if missing:
                raise InputError(
                    f"{path}: has no column {', '.join(missing)}; expected slice, x_um, y_um "
                    "(processing.sample.stage_log)"
                )
            found = {}
            for row in rows:
                try:
                    slice_id, x, y = int(row["slice"]), float(row["x_um"]), float(row["y_um"])
                    if not np.isfinite([x, y]).all():
                        raise ValueError("not finite")
                except (TypeError, ValueError):
                    raise InputError(
                        f"{path}: line {rows.line_num}: expected a slice number and two positions in micrometres, got "
                        f"{[row['slice'], row['x_um'], row['y_um']]} (processing.sample.stage_log)"
                    ) from None
                found[slice_id] = (x, y)
            return found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a stage log: {error} (processing.sample.stage_log)") from error


def _measured_by_volumes(
    pair: tuple[int, int],
    paths: tuple[Path, Path],
    starts: tuple[tuple[Pose, Pose], ...],
    centre_px: tuple[float, float],
    freedom: str,
    slice_thickness_um: float,
) -> MeasuredEdge:
    shapes = [volume_reader(path)[0] for path in paths]
    plane_um = volume_voxel_um(paths[0])[2]
    depths = depths_to_compare((pair[1] - pair[0]) * slice_thickness_um / plane_um, (shapes[0][2], shapes[1][2]))
    factor = _factor(max(s[0] * s[1] for s in shapes))
    first = shrunk_planes(paths[0], depths_to_read(depths, shapes[0][2]), factor=factor)
    second = shrunk_planes(paths[1], depths.second, factor=factor)
    return edge_between(
        *pair, first, second, depths, starts=starts, centre_px=centre_px, freedom=freedom, pixel_px=factor
    )


def _measured_by_maps(
    pair: tuple[int, int],
    paths: tuple[Path, Path],
    starts: tuple[tuple[Pose, Pose], ...],
    centre_px: tuple[float, float],
    freedom: str,
    _slice_thickness_um: float,
) -> MeasuredEdge:
    factor = _factor(max(math.prod(read_nifti_header(path).shape) for path in paths))
    first, second = (_shrunk(_map(path), factor)[:, :, None] for path in paths)
    depths = depths_to_compare(1, (1, 1))  # maps have no depth in common
    return edge_between(
        *pair, first, second, depths, starts=starts, centre_px=centre_px, freedom=freedom, pixel_px=factor
    )


def _factor(pixels: int) -> int:
    factor = 1
    while pixels / factor**2 > _MOST_PIXELS:
        factor *= 2
    return factor


def _map(path: Path) -> NDArray[np.float32]:
    array = np.asarray(read_nifti(path), np.float32)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 1):
        raise InputError(f"{path}: expected a map (x, y) to align slices by, got the shape {array.shape}")
    return array.reshape(array.shape[:2])


def shrunk_map(path: Path, /, *, longest_px: int) -> tuple[NDArray[np.float32], int]:
    """Return a map of means of squares of pixels, at most `longest_px` px large, and the side of the squares.

    Raises
    ------
    InputError, MissingInputError, FileFormatError
        It is not a map, or cannot be read.
    """
    image, factor = _map(path), 1
    while max(image.shape) / factor > longest_px:
        factor *= 2
    return _shrunk(image, factor), factor


def map_to_compare(path: Path, /) -> NDArray[np.float32]:
    """Return a map at the size at which slices are compared.

    Raises
    ------
    InputError, MissingInputError, FileFormatError
        It is not a map, or cannot be read.
    """
    image = _map(path)
    return _shrunk(image, _factor(image.size))


def _shrunk(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    if factor == 1:
        return image
    whole = image[: image.shape[0] // factor * factor, : image.shape[1] // factor * factor]
    return np.asarray(halved(whole[:, :, None], (factor, factor, 1))[:, :, 0], np.float32)


def _rounded(pose: Pose) -> Pose:
    """Return a pose to a thousandth of a pixel, so that the last bits of a sum are no change."""
    x, y = pose.shift_px
    return Pose(
        round(pose.turn_deg, 6) + 0.0,
        (round(x, 4) + 0.0, round(y, 4) + 0.0),
        round(pose.sigma_px, 4),
        round(pose.sigma_deg, 5),
    )


def facts_of_edge(edge: Edge, /) -> dict[str, Any]:
    """Return an edge as JSON values."""
    return {
        "first": edge.first,
        "second": edge.second,
        "turn_deg": round(edge.turn_deg, 6),
        "shift_px": [round(v, 4) for v in edge.shift_px],
        "about_px": [round(v, 2) for v in edge.about_px],
        "lever_px": round(edge.lever_px, 2),
        "sigma_px": round(edge.sigma_px, 4),
    }


def _edge_facts(measured: MeasuredEdge) -> dict[str, Any]:
    return facts_of_edge(measured.edge) | {
        "confidence": round(measured.confidence, 4),
        "residual_px": None if np.isnan(measured.residual_px) else round(measured.residual_px, 4),
        "deeper_planes": round(measured.deeper_planes, 2),
        "wedge_planes": [round(v, 2) for v in measured.wedge_planes],
        "failure": measured.failure,
        **({"bend": _facts_of_edge_bend(measured.bend)} if measured.common else {}),
    }


def _facts_of_edge_bend(bend: EdgeBend | None) -> dict[str, Any] | None:
    """Return how slices are bent against each other as JSON values; None: they are not."""
    if bend is None:
        return None
    return {
        "about": "x, y, displacement along x and y, its sigma, likeness; in px of the first slice",
        "places": np.column_stack([bend.at_px, bend.moved_px, bend.sigma_px, bend.likeness]).round(3).ravel().tolist(),
        "length_px": round(bend.length_px, 3),
        "size_px": round(bend.size_px, 3),
    }


def _edge_bend_from_facts(facts: Mapping[str, Any]) -> EdgeBend:
    places = np.array(facts["places"], float).reshape(-1, 6)
    return EdgeBend(
        places[:, :2], places[:, 2:4], places[:, 4], facts["length_px"], facts["size_px"], likeness=places[:, 5]
    )


def facts_of_bend(bend: SliceBend, /) -> dict[str, Any]:
    """Return the bend of a slice as JSON values."""
    return {
        "about": "tissue at the sample's pixel q lies at the pose of q + u(q); u: cubic B-splines, nodes (2, x, y)",
        "first_px": [round(v, 4) for v in bend.first_px],
        "spacing_px": round(bend.spacing_px, 4),
        "shape": list(bend.nodes_px.shape),
        "nodes_px": bend.nodes_px.round(4).ravel().tolist(),
        "sigma_px": round(bend.sigma_px, 4),
        "rms_px": round(bend.size_px[0], 4),
        "largest_px": round(bend.size_px[1], 4),
    }


def bend_from_facts(facts: Mapping[str, Any], /) -> SliceBend:
    """Return the bend of `facts_of_bend`.

    Raises
    ------
    KeyError, TypeError, ValueError
        The values are not those of a bend.
    """
    x, y = facts["first_px"]
    nodes = np.array(facts["nodes_px"], float).reshape(facts["shape"])
    return SliceBend((x, y), facts["spacing_px"], nodes, facts["sigma_px"], (facts["rms_px"], facts["largest_px"]))


def edge_from_facts(facts: Mapping[str, Any], /) -> Edge:
    """Return the edge of `facts_of_edge`.

    Raises
    ------
    KeyError, TypeError, IndexError
        The values are not those of an edge.
    """
    return Edge(
        facts["first"],
        facts["second"],
        facts["turn_deg"],
        (facts["shift_px"][0], facts["shift_px"][1]),
        facts["sigma_px"],
        (facts["about_px"][0], facts["about_px"][1]),
        facts["lever_px"],
    )
