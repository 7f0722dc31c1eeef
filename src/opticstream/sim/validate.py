"""`opticstream validate`: the errors of the results of a project against the truth.

What physics does not determine is left out by rules that look at the truth alone, never at the error:

* orientation and apparent birefringence where the beam's apparent birefringence is below `min_apparent` (for samples
  that change along depth, also where the birefringence visible over the window is);
* the 3-D axis and true birefringence where the true birefringence is below `min_true`, where any beam's apparent
  birefringence is below `min_apparent`, and where the axis lies in the wedge between two beams, in which a second axis
  explains the same measurements (the projections seen by the beams then point apart);
* the in-plane angle of fibres steeper than `max_inclination_deg`;
* the sign of an axis, and multiples of 180 degrees of an angle, always;
* pixels outside the tissue or outside the project's mask, and tiles with less than `min_tissue` of tissue.

The global shift of a mosaic is not determined either: it is the mean difference of the positions of tiles with tissue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.config.project import ProjectConfig
from opticstream.io.nifti import read_nifti
from opticstream.io.paths import ProjectPaths
from opticstream.io.zarr import SliceStore
from opticstream.model.errors import InputError, MissingInputError
from opticstream.model.ids import MosaicId, TileId
from opticstream.model.modalities import MODALITIES
from opticstream.sim.truth_reader import MosaicTruth, Truth
from opticstream.sim.validate_sample import (
    Section,
    StackedSlice,
    axes_of_stack,
    boundary_step_db,
    plane_of_stack,
    section_of_sample,
    stacked_slices,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """Limits of what physics determines, and of what counts as tissue."""

    min_apparent: float = 1e-4
    """Apparent birefringence from which orientation and birefringence are compared."""
    min_true: float = 2e-4
    """True birefringence from which axes are compared."""
    max_inclination_deg: float = 70.0
    """Through-plane angle up to which the in-plane angle is compared."""
    min_tissue: float = 0.1
    """Share of tissue from which a tile's position and surface are compared."""


DEMO_BOUNDS: Mapping[str, float] = {
    "position": 0.5,
    "surface": 2.0,
    "orientation": 5.0,
    "birefringence": 15.0,
    "axis": 10.0,
    "stacked orientation": 5.0,
}
"""Bounds of the medians of the demo, in the units of the table."""

INCLINATION_STEP_DEG = 15
"""Width of the classes of inclination, by which errors of the axis are split."""

UNITS = {
    "position": "px",
    "seam": "px",
    "surface": "px",
    "focus": "px",
    "retardance": "deg",
    "orientation": "deg",
    "birefringence": "%",
    "registration": "px",
    "inplane": "deg",
    "thruplane": "deg",
    "axis": "deg",
    "true birefringence": "%",
    "mask": "Dice",
    "stacked values": "%",
    "stacked orientation": "deg",
    "stacked axis": "deg",
    "boundary step": "dB",
    "likeness": "r",
    "slice offset": "px",
    "pose": "px",
    "pose turn": "deg",
}
"""Every quantity, in the order of the report, with the unit of its errors; the unit of a map may be another one."""

SCORES = {"mask", "likeness"}
"""Quantities of which the low end is the bad one."""


@dataclass(frozen=True)
class Figure:
    """Errors of one quantity in one region, over one item or all of them."""

    quantity: str
    region: str
    item: str
    unit: str
    count: int
    median: float
    p95: float
    worst: float
    bound: float | None = None
    passed: bool | None = None


@dataclass(frozen=True)
class Report:
    """Outcome of a validation."""

    figures: tuple[Figure, ...]
    """`item` is `all` or the key of a mosaic or slice; `region` is `all`, `white`, `grey`, `low birefringence`,
    `low signal`, or for the axis a class of the true inclination such as `inclined 15-30` (degrees)."""
    problems: tuple[str, ...]
    """Outputs that are missing or cannot be read."""
    maps: Mapping[str, Mapping[str, Array]] = field(repr=False)
    """Error maps by item and quantity, for pictures; NaN where nothing is compared."""

    @property
    def passed(self) -> bool:
        """Whether every bound is met, every bounded quantity could be measured, and nothing is missing."""
        bounded = [f for f in self.figures if f.bound is not None]
        return not self.problems and bool(bounded) and all(f.passed for f in bounded)

    @property
    def summary(self) -> tuple[Figure, ...]:
        """The figures over all items and regions, one per quantity."""
        return tuple(f for f in self.figures if f.item == "all" and f.region == "all")

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a machine to read."""
        plain = [{k: _plain(v) for k, v in asdict(f).items()} for f in self.figures]
        return {"passed": self.passed, "problems": list(self.problems), "figures": plain}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


class _Errors:
    """Collects errors by quantity, item and region."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, str], list[Array]] = {}
        self.maps: dict[str, dict[str, Array]] = {}
        self.problems: list[str] = []

    def add(self, quantity: str, item: str, errors: Array, regions: Mapping[str, Mask] | None = None) -> None:
        """Add errors (NaN is not compared) and split them by `regions` of the same shape."""
        known = np.isfinite(errors)
        self.values.setdefault((quantity, item, "all"), []).append(errors[known])
        for name, where in (regions or {}).items():
            self.values.setdefault((quantity, item, name), []).append(errors[known & where])

    def map(self, quantity: str, item: str, errors: Array) -> None:
        self.maps.setdefault(item, {})[quantity] = errors

    def figures(self, bounds: Mapping[str, float]) -> Iterator[Figure]:
        items = sorted({item for _, item, _ in self.values})
        names = ["all", *sorted({region for _, _, region in self.values} - {"all"})]
        for quantity, unit in UNITS.items():
            for region in names:
                parts = {i: self.values[quantity, i, region] for i in items if (quantity, i, region) in self.values}
                if not parts and not (region == "all" and quantity in bounds):
                    continue
                everything = [a for part in parts.values() for a in part]
                bound = bounds.get(quantity) if region == "all" else None
                yield _figure(quantity, region, "all", unit, everything, bound)
                for item, arrays in parts.items():
                    yield _figure(quantity, region, item, unit, arrays, None)


def _figure(quantity: str, region: str, item: str, unit: str, arrays: Iterable[Array], bound: float | None) -> Figure:
    errors = np.concatenate([*arrays, np.empty(0)])
    if errors.size == 0:
        nan = float("nan")
        return Figure(quantity, region, item, unit, 0, nan, nan, nan, bound, None if bound is None else False)
    median, p95 = (float(v) for v in np.percentile(errors, [50, 95]))
    worst = float(errors.max())
    if quantity in SCORES:
        p95, worst = float(np.percentile(errors, 5)), float(errors.min())
    good = None if bound is None else (median >= bound if quantity in SCORES else median <= bound)
    return Figure(quantity, region, item, unit, int(errors.size), median, p95, worst, bound, good)


def validate_project(
    config: ProjectConfig,
    truth_folder: Path,
    /,
    *,
    bounds: Mapping[str, float] = DEMO_BOUNDS,
    rules: Rules | None = None,
) -> Report:
    """Return the errors of everything that a project has made, against the truth in `truth_folder`.

    Parameters
    ----------
    config : ProjectConfig
        The processed project.
    truth_folder : Path
        Where the rig left the truth.
    bounds : mapping
        Bounds of the medians, by quantity; those of quantities that such a project cannot have are ignored.
    rules : Rules, optional
        What is compared.

    Raises
    ------
    MissingInputError, FileFormatError
        There is no truth.
    InputError
        The truth belongs to another acquisition.
    """
    truth = Truth.load(truth_folder)
    impossible: set[str] = set()
    if config.scan.channels == 1:
        impossible |= {"retardance", "orientation", "birefringence"}
    if config.scan.channels == 1 or not _stacks_orientation(config):
        impossible.add("stacked orientation")
    if config.scan.channels == 1 or len(config.scan.illuminations) == 1:
        impossible |= {"registration", "inplane", "thruplane", "axis", "true birefringence"}
    bounds = {name: value for name, value in bounds.items() if name not in impossible}
    return _Validation(config, truth, rules or Rules()).report(bounds)


class _Validation:
    def __init__(self, config: ProjectConfig, truth: Truth, rules: Rules) -> None:
        names = [i["name"] for i in truth.document["illuminations"]]
        expected = [i.name for i in config.scan.illuminations]
        if names != expected or truth.document["samples"] != config.scan.samples:
            raise InputError(
                f"{truth.folder}: the truth is of illuminations {names} with {truth.document['samples']} samples, the "
                f"project {config.name!r} has {expected} with {config.scan.samples}"
            )
        self.config, self.truth, self.rules = config, truth, rules
        self.paths = ProjectPaths.of(config)
        self.errors = _Errors()
        self._estimated: dict[int, dict[int, Array]] = {}

    def report(self, bounds: Mapping[str, float]) -> Report:
        # Bad output must not hide the rest: every comparison is tried, and every failure is listed.
        for mosaic in self.truth.mosaics.values():
            for check in (self._position, self._surface, self._maps, self._mask):
                self._try(check, mosaic)
        for index in range(len(self.truth.document["illuminations"])):
            self._try(self._focus, index)
        for entry in self.truth.slices:
            if entry["moving"] and self.config.scan.channels == 2:
                self._try(self._registration, entry)
                self._try(self._axis, entry)
        if self.config.scan.channels == 2 and _stacks_orientation(self.config):
            self._try(self._stacks, None)
        settings = self.config.processing.sample
        if settings.enabled and settings.volumes and self.config.processing.volume.enabled:
            self._try(self._sample_brightness, None)
        registered = any(entry["moving"] for entry in self.truth.slices) and self.config.scan.channels == 2
        if settings.enabled and registered and "axis" in settings.products and "zarr" in settings.formats:
            self._try(self._stacked_axes, None)
        figures = tuple(self.errors.figures(bounds))
        return Report(figures, tuple(dict.fromkeys(self.errors.problems)), self.errors.maps)

    def _try(self, check: Any, subject: Any) -> None:
        try:
            check(subject)
        except InputError as error:
            self.errors.problems.append(str(error))

    # -- positions ---------------------------------------------------------------------------------------------------

    def estimated(self, mosaic: MosaicTruth) -> dict[int, Array]:
        """Return the project's position of every tile of a mosaic's illumination."""
        if mosaic.illumination not in self._estimated:
            name = self.truth.illumination(mosaic.illumination)["name"]
            self._estimated[mosaic.illumination] = _positions_from_tilemap(self.paths.tilemap(name))
        return self._estimated[mosaic.illumination]

    def tissue_tiles(self, mosaic: MosaicTruth) -> list[int]:
        """Return the tiles that hold enough tissue to be compared."""
        return [t for t in mosaic.positions if self._tissue_share(mosaic, t) >= self.rules.min_tissue]

    def _tissue_share(self, mosaic: MosaicTruth, tile: int) -> float:
        width, height = self.truth.illumination(mosaic.illumination)["tile_shape"]
        x, y = mosaic.positions[tile]
        inside, known = mosaic.at("inside", *np.meshgrid(x + np.arange(width), y + np.arange(height), indexing="ij"))
        return float(np.mean((inside > 0) & known))

    def shift(self, mosaic: MosaicTruth) -> Array:
        """Return the global shift of a mosaic: the mean of estimated minus true position."""
        estimated = self.estimated(mosaic)
        tiles = [t for t in self.tissue_tiles(mosaic) if t in estimated]
        if not tiles:
            raise InputError(f"mosaic {mosaic.mosaic_id}: no tile with tissue has a position in the tile map")
        return np.asarray(np.mean([estimated[t] - mosaic.positions[t] for t in tiles], axis=0))

    def _position(self, mosaic: MosaicTruth) -> None:
        estimated, shift = self.estimated(mosaic), self.shift(mosaic)
        tiles = self.tissue_tiles(mosaic)
        item = MosaicId(mosaic.mosaic_id).key
        absent = [t for t in tiles if t not in estimated]
        if absent:
            raise InputError(f"{item}: the tile map lacks the tiles {absent}")
        residual = {t: estimated[t] - mosaic.positions[t] - shift for t in tiles}
        self.errors.add("position", item, np.array([np.hypot(*residual[t]) for t in tiles]))
        seams = [
            np.hypot(*(residual[a] - residual[b])) for a, b in mosaic.neighbours if a in residual and b in residual
        ]
        self.errors.add("seam", item, np.array(seams))

    # -- tiles -------------------------------------------------------------------------------------------------------

    def _surface(self, mosaic: MosaicTruth) -> None:
        item = MosaicId(mosaic.mosaic_id).key
        reconstruction = self.config.processing.reconstruction
        padding = reconstruction.zero_padding
        cut = 24 * padding if reconstruction.cut is None else reconstruction.cut
        gate = self.truth.gate_px(mosaic.illumination)
        parts: list[Array] = []
        regions: list[dict[str, Mask]] = []
        missing = []
        for tile in self.tissue_tiles(mosaic):
            path = self.paths.tile_product(TileId(mosaic.mosaic_id, tile), "surf")
            if not path.is_file():
                missing.append(path.name)
                continue
            found = _image(path)
            if found.shape != gate.shape:
                raise InputError(f"{path}: holds {found.shape} A-lines, the truth {gate.shape}")
            x, y = self._tile_grid(mosaic, tile)
            height, known = mosaic.at("height", x, y)
            inside, _ = mosaic.at("inside", x, y)
            true = (self.truth.document["first_bin"] + height + gate) * padding - cut
            parts.append(np.where(known & (inside > 0), np.abs(found - true) / padding, np.nan))
            regions.append(self._regions(mosaic, x, y, None))
        if missing:
            self.errors.problems.append(f"{item}: {len(missing)} surfaces are missing, the first is {missing[0]}")
        for error, where in zip(parts, regions, strict=True):
            self.errors.add("surface", item, error, where)

    def _tile_grid(self, mosaic: MosaicTruth, tile: int) -> tuple[Array, Array]:
        width, height = self.truth.illumination(mosaic.illumination)["tile_shape"]
        x, y = mosaic.positions[tile]
        gx, gy = np.meshgrid(x + np.arange(width), y + np.arange(height), indexing="ij")
        return gx, gy

    def _regions(self, mosaic: MosaicTruth, x: Array, y: Array, apparent: Array | None) -> dict[str, Mask]:
        region, _ = mosaic.at("region", x, y)
        shadow, _ = mosaic.at("shadow", x, y)
        low_signal = shadow > 0
        regions = {
            "white": (region == 2) & ~low_signal,
            "grey": (region == 1) & ~low_signal,
            "low signal": low_signal,
        }
        if apparent is not None:
            regions["low birefringence"] = (region > 0) & (apparent < 2 * self.rules.min_apparent) & ~low_signal
        return regions

    # -- stitched maps -----------------------------------------------------------------------------------------------

    def _frame(self, mosaic: MosaicTruth, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Return the true position of every pixel of a stitched map of a mosaic."""
        origin = np.rint(np.min(list(self.estimated(mosaic).values()), axis=0)) - self.shift(mosaic)
        x, y = np.meshgrid(origin[0] + np.arange(shape[0]), origin[1] + np.arange(shape[1]), indexing="ij")
        return x, y

    def _stitched(self, mosaic: MosaicTruth, modality: str) -> Array:
        path = self.paths.mosaic_product(MosaicId(mosaic.mosaic_id), modality)
        if not path.is_file():
            raise MissingInputError(f"{path}: no such stitched map")
        return _image(path)

    def _masked(self, mosaic: MosaicTruth, shape: tuple[int, ...]) -> Mask:
        """Return where the project's own mask says tissue; everywhere if it makes none."""
        if not self.config.processing.mask.made_from:
            return np.ones(shape, dtype=bool)
        return np.nan_to_num(self._stitched(mosaic, "mask")) > 0

    def _maps(self, mosaic: MosaicTruth) -> None:
        item = MosaicId(mosaic.mosaic_id).key
        wanted = set(self.config.processing.enface.modalities)
        for modality, quantity in (("ret", "retardance"), ("ori", "orientation"), ("biref", "birefringence")):
            described = MODALITIES[modality]
            if modality not in wanted or self.config.scan.channels < described.channels:
                continue
            found = self._stitched(mosaic, modality)
            x, y = self._frame(mosaic, found.shape)
            inside, known = mosaic.at("inside", x, y)
            apparent, _ = mosaic.at("apparent_birefringence", x, y)
            compared = known & (inside > 0) & self._masked(mosaic, found.shape)
            true, _ = mosaic.at(f"visible_{quantity}", x, y)
            if described.is_axial:
                error = axial_difference_deg(found, true)
                compared &= apparent >= self.rules.min_apparent
            elif UNITS[quantity] == "%":
                with np.errstate(divide="ignore", invalid="ignore"):
                    error = 100 * np.abs(found / true - 1)
                compared &= np.minimum(apparent, true) >= self.rules.min_apparent
            else:
                error = np.abs(found - true)
            error = np.where(compared, error, np.nan)
            self.errors.add(quantity, item, error, self._regions(mosaic, x, y, apparent))
            self.errors.map(quantity, item, error)

    def _mask(self, mosaic: MosaicTruth) -> None:
        if not self.config.processing.mask.made_from:
            return
        found = self._masked(mosaic, ())
        x, y = self._frame(mosaic, found.shape)
        inside, known = mosaic.at("inside", x, y)
        covered = known & self._covered(mosaic, x, y)
        true = inside > 0
        both = np.count_nonzero(found & true & covered)
        total = np.count_nonzero(found & covered) + np.count_nonzero(true & covered)
        self.errors.add("mask", MosaicId(mosaic.mosaic_id).key, np.array([2 * both / total if total else np.nan]))

    def _covered(self, mosaic: MosaicTruth, x: Array, y: Array) -> Mask:
        width, height = self.truth.illumination(mosaic.illumination)["tile_shape"]
        covered = np.zeros(x.shape, dtype=bool)
        for px, py in mosaic.positions.values():
            covered |= (x >= px) & (y >= py) & (x <= px + width - 1) & (y <= py + height - 1)
        return covered

    # -- focus -------------------------------------------------------------------------------------------------------

    def _focus(self, index: int) -> None:
        if self.config.processing.focus.method == "none":
            return
        name = self.truth.illumination(index)["name"]
        path = self.paths.focus(name)
        if not path.is_file():
            raise MissingInputError(f"{path}: no such focus map")
        found, true = _image(path), self.truth.gate_px(index)
        if found.shape != true.shape:
            raise InputError(f"{path}: holds {found.shape} A-lines, the truth {true.shape}")
        difference = found - true * self.config.processing.reconstruction.zero_padding
        error = np.abs(difference - np.median(difference))
        self.errors.add("focus", f"illumination {name}", error)
        self.errors.map("focus", f"illumination {name}", error)

    # -- slices ------------------------------------------------------------------------------------------------------

    def _registered(self, slice_id: int, product: str, suffix: str = ".nii.gz") -> Path:
        project = self.config.project
        name = self.config.processing.registration.file_name.format(
            slice=slice_id, product=product, subject=project.subject_id, project=project.project_name
        )
        path = self.paths.registered_folder / f"{name}{suffix}"
        if not path.is_file():
            raise MissingInputError(f"{path}: no such registered output")
        return path

    def _registration(self, entry: Mapping[str, Any]) -> None:
        import json

        path = self._registered(entry["slice_id"], "transform", ".json")
        document = json.loads(path.read_bytes())
        fixed = self.truth.mosaics[entry["fixed_mosaic_id"]]
        shape = self._stitched(fixed, "ori").shape
        x, y = self._frame(fixed, shape)
        inside, known = fixed.at("inside", x, y)
        for moving_entry in entry["moving"]:
            moving = self.truth.mosaics[moving_entry["mosaic_id"]]
            name = self.truth.illumination(moving.illumination)["name"]
            found = [r for r in document.get("registrations", []) if r.get("moving") == name]
            if not found:
                raise InputError(f"{path}: has no registration of {name!r}")
            matrix, offset = np.asarray(found[0]["matrix_px"]), np.asarray(found[0]["offset_px"])
            i, j = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
            got = np.einsum("ab,bij->aij", matrix, np.stack([i, j]).astype(float)) + offset[:, None, None]
            true = np.einsum("ab,bij->aij", np.asarray(moving_entry["matrix"]), np.stack([x, y]))
            true += np.asarray(moving_entry["offset_px"])[:, None, None]
            covered = self._covered(moving, true[0], true[1])
            origin = np.rint(np.min(list(self.estimated(moving).values()), axis=0)) - self.shift(moving)
            error = np.hypot(*(got - (true - origin[:, None, None])))
            error = np.where(known & (inside > 0) & covered, error, np.nan)
            item = f"slice-{entry['slice_id']:03d}"
            self.errors.add("registration", item, error)
            self.errors.map(f"registration {name}", item, error)

    def _axis(self, entry: Mapping[str, Any]) -> None:
        item = f"slice-{entry['slice_id']:03d}"
        found = read_nifti(self._registered(entry["slice_id"], "axis")).astype(float)
        found = found.reshape(*found.shape[:2], 3)
        fixed = self.truth.mosaics[entry["fixed_mosaic_id"]]
        x, y = self._frame(fixed, found.shape[:2])
        axis, known = fixed.at("axis", x, y)
        axis = axis.astype(float)
        true_b, _ = fixed.at("birefringence", x, y)
        apparent, _ = fixed.at("apparent_birefringence", x, y)
        determined = known & self._determined(axis, true_b, self._frames(entry))
        determined &= self._masked(fixed, found.shape[:2])
        with np.errstate(invalid="ignore"):
            length = np.linalg.norm(found, axis=-1, keepdims=True)
            unit = np.divide(found, length, out=np.full_like(found, np.nan), where=length > 0)
            cosine = np.abs(np.sum(unit * axis, axis=-1))
            error = np.rad2deg(np.arccos(np.clip(cosine, 0, 1)))
            # An axis has no sign: the through-plane angle is that of the copy that points along the truth in the plane.
            same = np.sign(np.sum(unit[..., :2] * axis[..., :2], axis=-1))
            steep = np.rad2deg(np.arcsin(np.clip(axis[..., 2], -1, 1)))
            found_steep = np.rad2deg(np.arcsin(np.clip(unit[..., 2] * np.where(same < 0, -1, 1), -1, 1)))
            in_plane = axial_difference_deg(
                np.rad2deg(np.arctan2(unit[..., 1], unit[..., 0])), np.rad2deg(np.arctan2(axis[..., 1], axis[..., 0]))
            )
        regions = self._regions(fixed, x, y, apparent)
        inclined = {
            f"inclined {low}-{low + INCLINATION_STEP_DEG}": (np.abs(steep) >= low)
            & (np.abs(steep) < low + INCLINATION_STEP_DEG)
            for low in range(0, 90, INCLINATION_STEP_DEG)
        }
        self._add_masked("axis", item, error, determined, regions | inclined)
        self._add_masked("thruplane", item, np.abs(found_steep - steep), determined, regions)
        flat = np.abs(steep) <= self.rules.max_inclination_deg
        self._add_masked("inplane", item, in_plane, determined & flat, regions)
        found_b = _image(self._registered(entry["slice_id"], "biref"))
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = 100 * np.abs(found_b / true_b - 1)
        self._add_masked("true birefringence", item, relative, determined, regions)

    def _stacks(self, _subject: None) -> None:
        """Compare the orientation stack: value for value with the slices' maps, and by its geometry with the truth.

        The offset of slices against each other is that of their pictures, since the stage never comes back to exactly
        the same place, less what the alignment has made good.
        """
        name = self.truth.illumination(0)["name"]
        first: Array | None = None
        poses: dict[str, tuple[Array, Mask, float]] = {}
        for stacked in stacked_slices(self.paths.sample_folder):
            item = f"slice-{stacked.slice_id:03d}"
            entry = next((e for e in self.truth.slices if e["slice_id"] == stacked.slice_id), None)
            if entry is None:
                raise InputError(f"{self.paths.sample_folder}: holds slice {stacked.slice_id}, the truth does not")
            fixed = self.truth.mosaics[entry["fixed_mosaic_id"]]
            plane, canvas = plane_of_stack(
                self.paths.sample_folder,
                f"{name}_ori",
                stacked.slice_id,
                thickness_um=self.config.scan.slice_thickness_um,
            )
            own = self._stitched(fixed, "ori")
            if not stacked.moved:
                left, top = (-low for low in canvas.low)
                part = plane[left : left + own.shape[0], top : top + own.shape[1]]
                differs = ~((part == own) | (np.isnan(part) & np.isnan(own)))
                self.errors.add("stacked values", item, np.array([100 * differs.mean()]))
            origin = np.array([axis[0, 0] for axis in self._frame(fixed, own.shape)])
            where = stacked.pixels(canvas)
            x, y = where + origin[:, None, None]
            inside, known = fixed.at("inside", x, y)
            true, _ = fixed.at("visible_orientation", x, y)
            apparent, _ = fixed.at("apparent_birefringence", x, y)
            error = axial_difference_deg(plane + stacked.rotation_deg, true)
            compared = known & (inside > 0) & np.isfinite(plane) & (apparent >= self.rules.min_apparent)
            self._add_masked("stacked orientation", item, error, compared, self._regions(fixed, x, y, apparent))
            poses[item] = self._place_in_sample(fixed, stacked, origin, x, y, known & (inside > 0))
            middle = np.array([x.mean(), y.mean()])
            if first is None:
                first = middle
            else:
                self.errors.add("slice offset", item, np.array([np.hypot(*(middle - first))]))

        self._add_poses(poses)

    def _stacked(self) -> Iterator[tuple[StackedSlice, MosaicTruth, Array]]:
        """Yield the slices of the stacks, the mosaic of each, and the corner of its map in the mosaic's frame."""
        for stacked in stacked_slices(self.paths.sample_folder):
            entry = next((e for e in self.truth.slices if e["slice_id"] == stacked.slice_id), None)
            if entry is None:
                raise InputError(f"{self.paths.sample_folder}: holds slice {stacked.slice_id}, the truth does not")
            fixed = self.truth.mosaics[entry["fixed_mosaic_id"]]
            yield stacked, fixed, np.array([axis[0, 0] for axis in self._frame(fixed, (1, 1))])

    def _sample_brightness(self, _subject: None) -> None:
        """Compare the sample's intensity volume with the truth: each section, and the steps between sections."""
        name = self.truth.illumination(0)["name"]
        path = self.paths.sample_folder / f"{name}_dBI.ome.zarr"
        before: tuple[int, Section] | None = None
        for stacked, fixed, origin in self._stacked():
            if not path.is_dir():
                raise MissingInputError(f"{path}: no such volume of the sample")
            x, y = stacked.pixels(SliceStore.opened(path).canvas()) + origin[:, None, None]
            section = section_of_sample(
                path, stacked.slice_id, fixed, x, y, depths_um=list(self.truth.document["depths_um"])
            )
            item = f"slice-{stacked.slice_id:03d}"
            self.errors.add("likeness", item, np.array([section.likeness]))
            if before is not None and before[0] == stacked.slice_id - 1:
                self.errors.add("boundary step", item, np.array([abs(boundary_step_db(before[1], section))]))
            before = stacked.slice_id, section

    def _stacked_axes(self, _subject: None) -> None:
        """Compare the stack of axes with the truth, each slice by its geometry."""
        for stacked, fixed, origin in self._stacked():
            found, canvas = axes_of_stack(self.paths.sample_folder, "registered_axis", stacked.slice_id)
            x, y = stacked.pixels(canvas) + origin[:, None, None]
            axis, known = fixed.at("axis", x, y)
            turn = np.deg2rad(stacked.rotation_deg)
            back = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            found[..., :2] = found[..., :2] @ back.T
            entry = next(e for e in self.truth.slices if e["slice_id"] == stacked.slice_id)
            true_b, _ = fixed.at("birefringence", x, y)
            determined = known & self._determined(axis.astype(float), true_b, self._frames(entry))
            with np.errstate(invalid="ignore", divide="ignore"):
                cosine = np.abs((found * axis).sum(-1)) / np.linalg.norm(found, axis=-1)
            error = np.rad2deg(np.arccos(np.clip(cosine, 0, 1)))
            self._add_masked("stacked axis", f"slice-{stacked.slice_id:03d}", error, determined, {})

    def _place_in_sample(
        self, fixed: MosaicTruth, stacked: StackedSlice, origin: Array, x: Array, y: Array, tissue: Mask
    ) -> tuple[Array, Mask, float]:
        """Return the points of the sample (px) that a stack's pixels show, where there is tissue, and the angle."""
        turn = np.deg2rad(fixed.entry["rotation_deg"])
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        every = (slice(None, None, 16), slice(None, None, 16))
        where = np.stack([x[every], y[every]])
        shift = np.asarray(fixed.entry["shift_px"], dtype=float)
        place = np.einsum("ab,bij->aij", matrix, where) + shift[:, None, None]
        return np.asarray(place), tissue[every], float(fixed.entry["rotation_deg"]) + stacked.rotation_deg

    def _add_poses(self, poses: Mapping[str, tuple[Array, Mask, float]]) -> None:
        """Add by how much each slice lies off the mean of all, since the sample has no place of its own."""
        if len(poses) < 2:
            return
        size = tuple(min(place.shape[axis] for place, _, _ in poses.values()) for axis in (1, 2))
        part = (slice(0, size[0]), slice(0, size[1]))
        places = {item: place[:, *part] for item, (place, _, _) in poses.items()}
        mean = np.mean(list(places.values()), axis=0)
        turn = np.mean([angle for _, _, angle in poses.values()])
        for item, (_, tissue, angle) in poses.items():
            off = np.hypot(*(places[item] - mean))[tissue[part]]
            if off.size:
                self.errors.add("pose", item, np.array([np.sqrt(np.mean(off**2))]))
                self.errors.add("pose turn", item, np.array([abs(angle - turn)]))

    def _add_masked(self, quantity: str, item: str, error: Array, compared: Mask, regions: Mapping[str, Mask]) -> None:
        error = np.where(compared, error, np.nan)
        self.errors.add(quantity, item, error, regions)
        self.errors.map(quantity, item, error)

    def _frames(self, entry: Mapping[str, Any]) -> list[Array]:
        """Return the beam frames (e1, e2, k) of a slice's illuminations in the fixed mosaic's axes."""
        frames = [
            np.asarray(self.truth.illumination(self.truth.mosaics[entry["fixed_mosaic_id"]].illumination)["beam_frame"])
        ]
        for moving in entry["moving"]:
            index = self.truth.mosaics[moving["mosaic_id"]].illumination
            turn = np.eye(3)
            turn[:2, :2] = np.asarray(moving["matrix"])
            frames.append(np.asarray(self.truth.illumination(index)["beam_frame"]) @ turn)
        return frames

    def _determined(self, axis: Array, birefringence: Array, frames: list[Array]) -> Mask:
        """Return where the beams together determine the axis, by the truth alone."""
        determined = birefringence >= self.rules.min_true
        projections = []
        axis = np.nan_to_num(axis)
        for frame in frames:
            along = axis @ frame[2]
            sine = np.sqrt(np.clip(1 - along**2, 0, 1))
            determined &= birefringence * sine**2 >= self.rules.min_apparent
            projections.append((axis - along[..., None] * frame[2]) * sine[..., None])
        for k, first in enumerate(projections):
            for second in projections[k + 1 :]:
                determined &= np.sum(first * second, axis=-1) > 0
        return np.asarray(determined)


def _stacks_orientation(config: ProjectConfig) -> bool:
    settings = config.processing.sample
    return settings.enabled and "ori" in settings.modalities and "ori" in config.processing.enface.modalities


def axial_difference_deg(first: Any, second: Any, /) -> Array:
    """Return the angle between two axes given in degrees, in [0, 90].

    Examples
    --------
    >>> float(axial_difference_deg(89.0, -89.0))
    2.0
    """
    return np.asarray(np.abs((np.asarray(first, dtype=float) - second + 90) % 180 - 90))


def _positions_from_tilemap(path: Path) -> dict[int, Array]:
    """Return the positions in a coordinate template; read as any user of the format would, by rendering it."""
    import jinja2
    import yaml
    from jinja2.sandbox import SandboxedEnvironment

    try:
        text = path.read_text(encoding="utf-8")
        rendered = (
            SandboxedEnvironment()
            .from_string(text)
            .render(base_dir="", mosaic_id=1, modality="aip", scan_resolution=[], mask="")
        )
        tiles = yaml.safe_load(rendered)["tiles"]
        return {int(t.get("tile", n)): np.array([float(t["x"]), float(t["y"])]) for n, t in enumerate(tiles, start=1)}
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such tile map") from error
    except (jinja2.TemplateError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a tile map: {error}") from error


def _image(path: Path) -> Array:
    values = np.asarray(read_nifti(path), dtype=float)
    return values.reshape(values.shape[:2]) if values.ndim > 2 else values
