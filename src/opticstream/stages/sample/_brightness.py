"""`intensity.json`: the corrections of brightness, and from what each slab of the intensity volume was made.

What slices say of each other is kept in `intensity/`, so that a new slice is compared with its neighbours only. A slab
is written again where what it is made from, or its correction by more than a tenth of a dB, has changed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import PlanarTransform, resample_image, resampled_blocks
from opticstream.compute.sample import (
    BLOCK_PX,
    REACH,
    Intensity,
    PairLevels,
    SliceBend,
    SliceLevels,
    Source,
    blended_power,
    block_power,
    corrected_power,
    correction_map,
    facing_levels,
    layer_levels,
    levels_in_sample,
    pair_levels,
    plane_sources,
    share_of_correction,
    solve_intensity,
)
from opticstream.config.processing import SampleIntensitySettings
from opticstream.io.atomic import atomic_path, write_text
from opticstream.io.canvas import Canvas
from opticstream.io.zarr import BlockReader, SliceStore, volume_reader
from opticstream.model.errors import StateError
from opticstream.stages.sample._placed_slice import Place
from opticstream.stages.sample._pose_book import facts_of_bend

Single = NDArray[np.float32]

FILE_NAME = "intensity.json"
FOLDER = "intensity"

_FEWEST_ALONE = 5
"""Slices from which the response follows from their mean profile, where no two of them saw the same tissue."""
_ABOUT = (
    "a slice shows tissue at depth plane d with the level true + response_db[d] + gains_db - loss; the loss is "
    "section_db, from section to section, and the maps in intensity/. The volumes of the slices are as they were"
)
_MOST_BLOCKS = 62_500
"""Blocks of A-lines over the sample. All pairs of slices are in memory at once when the brightness is solved."""
_SMOOTH_PX = 1.5 * BLOCK_PX
_CHANGED_DB = 0.1
_CHANGED_LOCAL_DB = 0.3


@dataclass(frozen=True)
class SliceVolume:
    """The intensity volume of one slice, and where it lies."""

    path: Path
    """OME-Zarr volume in dB."""
    fingerprint: str
    """Of its content."""
    place: Place
    """Where it lies."""
    extent: Canvas
    """Pixels of the sample that show it."""


@dataclass(frozen=True)
class _Frame:
    """The blocks of A-lines of the sample; they lie at multiples of their side from the sample's first pixel."""

    side: int
    """Side of a block in pixels."""
    first: tuple[int, int]
    """The first block along x and y."""
    shape: tuple[int, int]
    """Number of blocks along x and y."""

    @staticmethod
    def of(canvas: Canvas) -> _Frame:
        """Return the blocks that begin and end on a canvas; of a large one they are larger, to bound the memory."""
        times = math.sqrt(canvas.size[0] * canvas.size[1] / (_MOST_BLOCKS * BLOCK_PX**2))
        side = BLOCK_PX * max(1, math.ceil(times))
        first = -(-canvas.low[0] // side), -(-canvas.low[1] // side)
        return _Frame(side, first, (canvas.high[0] // side - first[0], canvas.high[1] // side - first[1]))

    def placed(self, place: Place) -> PlanarTransform:
        """Return a mapping from pixels that are counted from the first block, rather than from the sample's first."""
        return PlanarTransform(place.mapping.matrix, place.mapping.points([self.side * k for k in self.first]))

    def bend_px(self, place: Place) -> NDArray[np.float64] | None:
        """Return the displacement at the middle of each block, shape (2, x, y); None where there is none."""
        return None if place.bend is None else place.bend.of_blocks(self.shape, self.side, first=self.first)

    def pixels(self, xs: slice, ys: slice) -> tuple[slice, slice]:
        """Return ranges of the sample's pixels, counted from the first block."""
        x, y = (self.side * k for k in self.first)
        return slice(xs.start - x, xs.stop - x), slice(ys.start - y, ys.stop - y)

    def common(self, other: _Frame, values: Single) -> Single:
        """Return a map on the blocks of a frame that this one holds on these blocks, NaN where it has none."""
        out = np.full((*self.shape, *values.shape[2:]), np.nan, np.float32)
        i, j = other.first[0] - self.first[0], other.first[1] - self.first[1]
        width, height = min(values.shape[0], self.shape[0] - i), min(values.shape[1], self.shape[1] - j)
        out[i : i + width, j : j + height] = values[:width, :height]
        return out

    def facts(self) -> dict[str, Any]:
        return {"side_px": self.side, "first": list(self.first)}


@dataclass(frozen=True)
class CorrectedStack:
    """What was made of the slices."""

    record: Path
    """`intensity.json`."""
    excluded: Mapping[int, str]
    """Slices that are left out, and why."""
    filled: tuple[int, ...]
    """Slots that are filled from deeper planes of earlier slices."""
    gaps: tuple[int, ...]
    """Slots between slices that nothing saw."""
    written: tuple[int, ...]
    """Slots whose slab was written."""


def correct_stack(
    folder: Path,
    name: str,
    volumes: Mapping[int, SliceVolume],
    store: SliceStore,
    /,
    *,
    settings: SampleIntensitySettings,
    slots: int = 0,
    before_writing: Callable[[list[int]], None] = lambda _slots: None,
) -> CorrectedStack:
    """Write the slabs of an intensity volume that are not as its slices and their corrections make them.

    Parameters
    ----------
    folder : Path
        Folder of the stacks.
    name : str
        Name of the stack.
    volumes : mapping of int to SliceVolume
        All slices by number. One whose file is gone is not compared anew, and its slab stays.
    store : SliceStore
        The stack; its planes for each slice are the section.
    settings : SampleIntensitySettings
        What is corrected.
    slots : int
        Slots of the stack, where there are more than slices: those beyond the last slice are filled as others are.
    before_writing : callable
        Is told which slots are about to be written.

    Raises
    ------
    StateError
        The record cannot be read.
    MissingInputError, FileFormatError
        A volume cannot be read.
    """
    record = _read(folder / FILE_NAME)
    before = record.get(name, {})
    shapes = {n: volume_reader(v.path)[0] for n, v in volumes.items() if v.path.exists()}
    there = {n: v for n, v in volumes.items() if n in shapes}
    extent = functools.reduce(Canvas.united, (volume.extent for volume in there.values()))
    frame = _Frame.of(store.canvas_with(extent))
    kept = _Kept(folder / FOLDER, name, there, frame)
    solved = _solved(kept, sorted(there), store.planes, settings)
    kept.remove_others()
    zero = _zero(solved, before) if settings.gains else {"db": 0.0}
    gains = {n: gain - zero["db"] for n, gain in solved.gains_db.items()}
    intensity = replace(solved, gains_db=gains)
    used = {n: shapes[n][2] for n in there if n not in intensity.excluded}
    last = max(slots, *there)
    slabs: dict[str, Any] = before.get("slabs", {})
    old_local = _local_maps(folder / FOLDER / f"{name}_attenuation.npz", before, frame)
    filled: list[int] = []
    gaps: list[int] = []
    made: dict[str, Any] = {}
    changed: list[int] = []
    for slot in range(1, last + 1):
        if slot in volumes and slot not in there:
            if str(slot) in slabs:
                made[str(slot)] = slabs[str(slot)]
            continue
        recipe = _recipe(slot, used, there, intensity, store.planes, settings)
        own = slot in used
        if not own:
            (filled if recipe["sources"] else gaps).append(slot)
        local_moved = any(_moved(old_local, intensity, int(s["slice"])) for s in recipe["sources"])
        if _differs(slabs.get(str(slot)), recipe) or local_moved:
            changed.append(slot)
            made[str(slot)] = recipe
        else:
            made[str(slot)] = slabs[str(slot)]
    # What is about to be written is unknown to the record until it is: after a crash it is written again.
    about = {"blocks": frame.facts(), "zero": zero}
    safe = {key: value for key, value in made.items() if int(key) not in changed}
    if changed:
        before_writing(changed)
        _write(folder / FILE_NAME, record, name, intensity, about, safe, filled, gaps)
    for slot in changed:
        read = _slab_reader(slot, used, there, shapes, intensity, kept, store.planes, settings)
        if made[str(slot)]["sources"] or _holds(store, slot):
            store.put(slot - 1, extent.size, read, low_px=extent.low)
        safe[str(slot)] = made[str(slot)]
    if changed or before.get("gains_db") is None:
        _write_local_maps(folder / FOLDER / f"{name}_attenuation.npz", intensity)
        _write(folder / FILE_NAME, record, name, intensity, about, safe, filled, gaps)
    return CorrectedStack(folder / FILE_NAME, intensity.excluded, tuple(filled), tuple(gaps), tuple(changed))


class BrightnessFacts(NamedTuple):
    """What the record of the brightness says, of the first stack that is corrected."""

    gains_db: Mapping[int, float]
    excluded: Mapping[int, str]
    filled: frozenset[int]


def brightness_facts(folder: Path, /) -> BrightnessFacts:
    """Return gains, slices that were left out and slots that were filled; nothing where nothing is corrected.

    Raises
    ------
    StateError
        The record cannot be read.
    """
    first: dict[str, Any] = next(iter(_read(folder / FILE_NAME).values()), {})
    return BrightnessFacts(
        {int(n): float(gain) for n, gain in first.get("gains_db", {}).items()},
        {int(n): str(reason) for n, reason in first.get("excluded", {}).items()},
        frozenset(map(int, first.get("filled", ()))),
    )


def forget_stack(folder: Path, name: str, /) -> bool:
    """Remove a stack from the record, and what was kept for it; false where the record does not have it."""
    record = _read(folder / FILE_NAME)
    if record.pop(name, None) is None:
        return False
    for path in (folder / FOLDER).glob(f"{name}_*.npz"):
        path.unlink(missing_ok=True)
    write_text(folder / FILE_NAME, json.dumps({"about": _ABOUT, "stacks": record}, indent=1) + "\n")
    return True


def _holds(store: SliceStore, slot: int) -> bool:
    return (store.path / "zarr.json").exists() and store.plane(slot - 1) is not None


# -- what slices say of each other ---------------------------------------------------------------------------------


class _Kept:
    """Blocks of slices and differences of pairs, in files that are made once."""

    def __init__(self, folder: Path, name: str, volumes: Mapping[int, SliceVolume], frame: _Frame, /) -> None:
        self.folder, self.name, self.volumes, self.frame = folder, name, volumes, frame
        self.used: set[Path] = set()
        self.levels = functools.lru_cache(maxsize=REACH + 1)(self._levels)

    def _path(self, kind: str, *what: object) -> Path:
        digest = hashlib.sha256(json.dumps([*map(str, what)]).encode()).hexdigest()[:16]
        path = self.folder / f"{self.name}_{kind}_{digest}.npz"
        self.used.add(path)
        return path

    def _place(self, n: int) -> list[object]:
        (mapping, bend), frame = self.volumes[n].place, self.frame
        where = [frame.side, *frame.first, *frame.shape]
        bent = [] if bend is None else [_bend_print(bend)]
        pose = [mapping.matrix.round(6).tolist(), mapping.offset.round(3).tolist()]
        return [where, self.volumes[n].fingerprint, *pose, *bent]

    def _power(self, n: int) -> Path:
        """Return the file of the blocks of a slice, which do not depend on its place."""
        return self._path(f"slice{n}", self.frame.side, self.volumes[n].fingerprint)

    def _levels(self, n: int) -> SliceLevels:
        volume, frame = self.volumes[n], self.frame
        power = _stored(self._power(n), lambda: {"power": power_of_volume(volume.path, side=frame.side)})["power"]
        place = volume.place
        return levels_in_sample(
            power, frame.placed(place), shape=frame.shape, side=frame.side, bend_px=frame.bend_px(place)
        )

    def profile(self, n: int) -> NDArray[np.float64]:
        """Return the median level by depth."""
        path = self._path(f"profile{n}", *self._place(n))
        self._power(n)  # stays, too
        return np.asarray(_stored(path, lambda: {"profile": self.levels(n).profile_db})["profile"], float)

    def layers(self, n: int, section_planes: float) -> Single:
        """Return the smoothed levels of the layers of a slice, shape (x, y, layers)."""
        path = self._path(f"profile{n}", "layers", section_planes, *self._place(n))
        return _stored(path, lambda: {"layers": layer_levels(self.levels(n), section_planes)})["layers"]

    def pair(self, first: int, second: int, apart: int) -> PairLevels | None:
        """Return what two slices say of each other."""

        def make() -> dict[str, Any]:
            found = pair_levels(first, second, self.levels(first), self.levels(second), apart)
            if found is None:
                return {"nothing": np.zeros(1)}
            return {
                "difference_db": found.difference_db,
                "error_db": found.error_db,
                "local_db": found.local_db,
                "weight": found.weight,
                "likeness": np.array(found.likeness),
            }

        path = self._path(f"pair{first}-{second}", apart, *self._place(first), *self._place(second))
        arrays = _stored(path, make)
        if "nothing" in arrays:
            return None
        return PairLevels(
            first,
            second,
            apart,
            arrays["difference_db"],
            arrays["error_db"],
            arrays["local_db"],
            arrays["weight"],
            float(arrays["likeness"]),
        )

    def remove_others(self) -> None:
        """Remove what earlier poses and inputs left."""
        for path in self.folder.glob(f"{self.name}_[sp]*_*.npz"):  # of slices, profiles and pairs
            if path not in self.used:
                path.unlink(missing_ok=True)


def _stored(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays in a file, made first where it is not there or cannot be read."""
    try:
        with np.load(path) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, KeyError):
        pass
    arrays = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)
    return arrays


def power_of_volume(path: Path, /, *, side: int = BLOCK_PX) -> Single:
    """Return the mean power of blocks of A-lines of a volume in dB, read piece by piece, shape (x, y, planes)."""
    shape, read = volume_reader(path)
    step = 192 // side * side  # some 150 MB of a deep volume
    rows = []
    for x in range(0, shape[0], step):
        parts = [
            block_power(read(slice(x, min(x + step, shape[0])), slice(y, min(y + step, shape[1]))), side=side)
            for y in range(0, shape[1], step)
        ]
        rows.append(np.concatenate(parts, axis=1))
    return np.concatenate(rows, axis=0)


def _solved(kept: _Kept, slices: list[int], planes: int, settings: SampleIntensitySettings) -> Intensity:
    pairs, facing = [], {}
    for i in slices:
        for j in (n for n in slices if i < n <= i + REACH):
            pair = kept.pair(i, j, (j - i) * planes)
            if pair is not None:
                pairs.append(pair)
            elif j == min(n for n in slices if n > i) and len(slices) >= _FEWEST_ALONE:
                found = facing_levels(i, j, kept.levels(i), kept.levels(j))
                if found is not None:
                    facing[i, j] = found
    nothing = Intensity(np.zeros(1), dict.fromkeys(slices, 0.0), {}, section_planes=planes)
    if not pairs and len(slices) < _FEWEST_ALONE:
        return nothing
    solved = solve_intensity(
        {n: kept.profile(n) for n in slices},
        pairs,
        section_planes=planes,
        facing=facing,
        smooth_blocks=_SMOOTH_PX / kept.frame.side,
        layers=lambda n: kept.layers(n, planes),
        dark_db=settings.dark_db,
        gains=settings.gains,
        exclude=settings.exclude,
    )
    if not settings.attenuation:
        return Intensity(
            np.zeros(1), solved.gains_db if settings.gains else {}, {}, {}, solved.excluded, section_planes=planes
        )
    return solved


# -- slabs ---------------------------------------------------------------------------------------------------------


def _sources(
    slot: int, used: Mapping[int, int], planes: int, settings: SampleIntensitySettings
) -> Iterator[tuple[int, list[Source]]]:
    for z in range(planes):
        plane = (slot - 1) * planes + z
        yield (
            z,
            plane_sources(plane, used, section_planes=planes, fade_planes=settings.fade_planes, fill=settings.fill),
        )


def _recipe(
    slot: int,
    used: Mapping[int, int],
    volumes: Mapping[int, SliceVolume],
    intensity: Intensity,
    planes: int,
    settings: SampleIntensitySettings,
) -> dict[str, Any]:
    """Return what a slab is made from, as the record holds it."""
    depths: dict[int, list[int]] = {}
    for _, sources in _sources(slot, used, planes, settings):
        for source in sources:
            depths.setdefault(source.slice_id, []).append(source.depth)
    return {
        "fade_planes": settings.fade_planes,
        "sources": [
            {
                "slice": n,
                "planes": [min(d), max(d)],
                "correction_db": [round(intensity.level_db(n, k), 3) for k in (min(d), max(d))],
                "input": volumes[n].fingerprint,
                "matrix": volumes[n].place.mapping.matrix.round(9).tolist(),
                "offset": volumes[n].place.mapping.offset.round(6).tolist(),
                **({} if (bend := volumes[n].place.bend) is None else {"bend": _bend_print(bend)}),
            }
            for n, d in sorted(depths.items())
        ],
    }


def _bend_print(bend: SliceBend) -> str:
    """Return a hash of a bend."""
    return hashlib.sha256(json.dumps(facts_of_bend(bend)).encode()).hexdigest()[:16]


def _zero(solved: Intensity, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return by how many dB all gains are lowered, so that the sample stays as bright as a whole as it was written.

    Brightness has no zero of its own: a new slice moves all gains a little, and all slabs would have to follow. After
    a kill the record no longer says how all slabs were written, but what was found for the same gains.
    """
    gains = [round(gain, 4) for _, gain in sorted(solved.gains_db.items())]
    if before.get("zero", {}).get("of") == gains:
        return dict(before["zero"])
    off = [
        solved.level_db(source["slice"], plane) - was
        for slab in before.get("slabs", {}).values()
        for source in slab["sources"]
        if source["slice"] in solved.gains_db
        for plane, was in zip(source["planes"], source["correction_db"], strict=True)
    ]
    return {"db": round(float(np.median(off)), 3) if off else 0.0, "of": gains}


def _differs(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> bool:
    if old is None or old["fade_planes"] != new["fade_planes"] or len(old["sources"]) != len(new["sources"]):
        return True
    for was, now in zip(old["sources"], new["sources"], strict=True):
        if any(was.get(key) != now.get(key) for key in ("slice", "planes", "input", "matrix", "offset", "bend")):
            return True
        if np.abs(np.subtract(was["correction_db"], now["correction_db"])).max() > _CHANGED_DB:
            return True
    return False


def _moved(old: Mapping[int, Single], intensity: Intensity, section: int) -> bool:
    """Whether the local attenuation of a section has changed more than it matters."""
    now = intensity.local_db.get(section)
    if now is None:
        return section in old
    if section not in old:
        return True
    off = np.abs(now - old[section])
    return float(np.percentile(off[np.isfinite(off)], 95)) > _CHANGED_LOCAL_DB


def _slab_reader(
    slot: int,
    used: Mapping[int, int],
    volumes: Mapping[int, SliceVolume],
    shapes: Mapping[int, tuple[int, int, int]],
    intensity: Intensity,
    kept: _Kept,
    planes: int,
    settings: SampleIntensitySettings,
) -> BlockReader:
    """Return a reader of the corrected slab, for `SliceStore.put`."""
    plan = dict(_sources(slot, used, planes, settings))
    depths: dict[int, tuple[int, int]] = {}
    for sources in plan.values():
        for n, depth, _ in sources:
            low, high = depths.get(n, (depth, depth))
            depths[n] = min(low, depth), max(high, depth)
    readers = {}
    tissue, noise = {}, {}
    for n, (low, high) in depths.items():
        readers[n] = resampled_blocks(
            volume_reader(volumes[n].path, slice(low, high + 1))[1],
            volumes[n].place.mapping,
            size=(shapes[n][0], shapes[n][1], high + 1 - low),
            resample=resample_image,
            bend=volumes[n].place.bend_reader,
        )
        levels = kept.levels(n)
        tissue[n], noise[n] = share_of_correction(levels.tissue), levels.noise

    def read(xs: slice, ys: slice) -> Single:
        shape = (xs.stop - xs.start, ys.stop - ys.start)
        blocks: dict[int, Single] = {}

        def plane(source: Source) -> Single:
            n = source.slice_id
            if n not in blocks:
                blocks[n] = np.asarray(readers[n](xs, ys), np.float32)
            depth = source.depth - depths[n][0]
            if depth >= blocks[n].shape[2]:
                return np.full(shape, np.nan, np.float32)
            of_x, of_y = kept.frame.pixels(xs, ys)
            off = correction_map(intensity, n, source.depth, xs=of_x, ys=of_y, tissue=tissue[n], side=kept.frame.side)
            return corrected_power(blocks[n][:, :, depth], off, noise=noise[n])

        out = np.full((*shape, planes), np.nan, np.float32)
        for z, sources in plan.items():
            parts = [(plane(source), source.weight) for source in sources if source.weight > 0]
            if not parts:
                continue
            power = blended_power(parts)
            for source in sources:
                if source.weight > 0:
                    continue
                if np.isfinite(power).all():
                    break
                power = blended_power([(power, 1.0), (plane(source), 0.0)])
            with np.errstate(divide="ignore", invalid="ignore"):
                out[:, :, z] = 10 * np.log10(power)
        return out

    return read


# -- the record ----------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())["stacks"]
        return {str(name): dict(entry) for name, entry in content.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StateError(f"{path}: cannot be read ({error!r}); remove it and add the slices again") from error


def _write(
    path: Path,
    record: Mapping[str, Any],
    name: str,
    intensity: Intensity,
    about: Mapping[str, Any],
    slabs: Mapping[str, Any],
    filled: list[int],
    gaps: list[int],
) -> None:
    entry = {
        "response_db": [round(float(v), 4) for v in intensity.response_db],
        "gains_db": {str(n): round(g, 4) for n, g in sorted(intensity.gains_db.items())},
        "section_db": {str(n): round(g, 4) for n, g in sorted(intensity.section_db.items())},
        "excluded": {str(n): reason for n, reason in sorted(intensity.excluded.items())},
        "filled": filled,
        "gaps": gaps,
        **about,
        "slabs": {str(n): slabs[str(n)] for n in sorted(map(int, slabs))},
    }
    content = {
        "about": _ABOUT,
        "stacks": {**record, name: entry},
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def _local_maps(path: Path, entry: Mapping[str, Any], frame: _Frame) -> dict[int, Single]:
    """Return the stored maps of attenuation on the blocks of a frame; none where blocks had another size."""
    blocks = entry.get("blocks", {"side_px": BLOCK_PX, "first": (0, 0)})
    side, (x, y) = blocks["side_px"], blocks["first"]
    if side != frame.side:
        return {}
    try:
        with np.load(path) as stored:
            maps = {int(key): stored[key] for key in stored}
    except (OSError, ValueError, EOFError):
        return {}
    # those of an earlier version have no layers
    return {s: frame.common(_Frame(side, (x, y), m.shape[:2]), m) for s, m in maps.items() if m.ndim == 3}


def _write_local_maps(path: Path, intensity: Intensity) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {str(s): values for s, values in sorted(intensity.local_db.items())}
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)
