"""Add one slice to the sample's stacks: maps to NIfTI and OME-Zarr stacks, volumes to one OME-Zarr, gaps listed.

Every slice has its own place in every stack; adding, replacing or repeating a slice writes that place, and those of
slices that it moved. The ledger `slices.json` says which slices the stacks hold, from which input and in which pose,
and which are missing, and why; `poses.json` holds the poses of all slices and what they follow from.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import PlanarTransform, resampled, resampled_blocks
from opticstream.compute.sample import (
    Edge,
    Pose,
    SliceFigures,
    moved_edge,
    pulled_back,
    sharpness_db,
    slice_figures,
    tissue_mask,
)
from opticstream.config.processing import SampleSettings
from opticstream.io.atomic import write_text
from opticstream.io.canvas import MARGIN_PX, Canvas
from opticstream.io.nifti import nifti_geometry, read_nifti
from opticstream.io.nifti_header import read_nifti_header
from opticstream.io.nifti_stack import blank_slice, fit_stack, put_slice
from opticstream.io.zarr import (
    PlacedVolume,
    SliceStore,
    mean_of_planes,
    planes_of_slice,
    volume_reader,
    volume_voxel_um,
    write_scene,
)
from opticstream.model.errors import ChangingStacksError, InputError, MissingInputError, StateError
from opticstream.model.modalities import described_stack
from opticstream.stages.sample._brightness import FILE_NAME as INTENSITY_FILE
from opticstream.stages.sample._brightness import (
    CorrectedStack,
    SliceVolume,
    brightness_facts,
    correct_stack,
    forget_stack,
)
from opticstream.stages.sample._isotropic import isotropic_path, note_changed, write_changed
from opticstream.stages.sample._other_space import OtherSpace, register_to_other_space, scene_transforms
from opticstream.stages.sample._pose_book import (
    FILE_NAME,
    LIKE,
    Picture,
    Pictures,
    PoseBook,
    facts_of_edge,
    map_to_compare,
)
from opticstream.stages.sample._report import Reported, ReportedSlice, write_report
from opticstream.system.locks import locked
from opticstream.system.memory import return_freed_memory

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleInput:
    """What one slice brings to the sample."""

    folder: Path
    """Folder of the stacks (`sample/` of the project)."""
    slice_id: int
    """Slice, 1-based; it takes place `slice_id - 1` in every stack."""
    maps: Mapping[str, Path]
    """NIfTI map, (x, y), (x, y, 1) or (x, y, 1, 3), by name of the stack, e.g. `normal_aip`, `registered_axis`."""
    volumes: Mapping[str, Path] = field(default_factory=dict)
    """OME-Zarr volume by name of the stack, e.g. `normal_dBI`."""
    settings: SampleSettings = field(default_factory=SampleSettings)
    """`processing.sample`."""
    slice_thickness_um: float = 500.0
    """`scan.slice_thickness_um`."""
    without_axis: str = ""
    """Why the slice has no fibre axes; empty where it has some."""
    failed: Mapping[int, str] = field(default_factory=dict)
    """Why slices that are missing are missing, as far as it is known."""
    expected: int = 0
    """Number of slices that the sample is to have, if known; later ones that are not there count as missing."""
    excluded: Mapping[int, str] = field(default_factory=dict)
    """Slices that a person has excluded, and why: they hand nothing on, and their places are filled or gaps."""
    placed: Sequence[Edge] = ()
    """Where a person has placed slices (`second`) against others (`first`)."""
    title: str = ""
    """Name of the project, for people."""


@dataclass(frozen=True)
class UpdatedSample:
    """State of the stacks after an update."""

    outputs: dict[str, Path]
    """File or store of each stack, the ledger (`slices`) and the preview."""
    slices: tuple[int, ...]
    """Slices that the stacks hold."""
    missing: tuple[int, ...]
    """Slices that are gaps."""
    without_axis: Mapping[int, str] = field(default_factory=dict)
    """Slices that are there without fibre axes, and why."""
    changed: bool = True
    """False where the slice was there already, from the same input."""
    preview: Path | None = None
    """Picture of the sample in three orthogonal views."""
    moved: tuple[int, ...] = ()
    """Other slices that were written again, because the new one showed that they lie elsewhere."""
    poses: Mapping[int, Pose] = field(default_factory=dict)
    """Poses of the slices; none without alignment."""
    poses_version: int = 0
    """Version of `poses.json`."""
    unplaced: Mapping[int, str] = field(default_factory=dict)
    """Slices that were placed between their neighbours only, and why."""
    left_out: Mapping[int, str] = field(default_factory=dict)
    """Slices that the intensity volume leaves out, and why."""
    filled: tuple[int, ...] = ()
    """Slots of the intensity volume that deeper planes of earlier slices fill."""
    excluded: Mapping[int, str] = field(default_factory=dict)
    """Slices that a person has excluded, and why, as the stacks show them."""
    placed: Sequence[Edge] = ()
    """Where a person has placed slices, as the poses follow it."""
    figures: Mapping[int, SliceFigures] = field(default_factory=dict)
    """Quality figures of the slices that are there."""


def update_sample(new: SampleInput, /) -> UpdatedSample:
    """Add a slice to the stacks, or replace it; slices that are there already are not rewritten.

    Raises
    ------
    MissingInputError, InputError
        A map or volume is missing, or has another shape or voxel size than the stack.
    StateError
        The ledger cannot be read.
    """
    for name, path in {**new.maps, **new.volumes}.items():
        if not path.exists():
            raise MissingInputError(f"slice {new.slice_id}: {name} is missing: {path}")
    if not new.maps and not new.volumes:
        raise InputError(f"slice {new.slice_id}: there is nothing to add to the sample")
    new.folder.mkdir(parents=True, exist_ok=True)
    with _lock(new.folder):
        ledger = _Ledger.read(new.folder / "slices.json")
        entry = ledger.slices.get(new.slice_id, {})
        entry.pop("finishing", None)
        done: dict[str, str] = entry.get("stacks", {})
        why_out = new.excluded.get(new.slice_id)
        prints = _fingerprints(new) if why_out is None else {}
        written = {name for name, value in prints.items() if done.get(name) != value}
        # Volumes may come later than maps; a map that the slice brought before and does not bring now leaves a gap.
        later = _corrected_volumes(new)
        blanked = {
            name
            for name in done
            if name not in prints and (_is_stack_of_maps(new, name) or (why_out is not None and name not in later))
        }
        changed = bool(written or blanked) or entry.get("without_axis", "") != new.without_axis
        changed = changed or any(other.get("moving") for other in ledger.slices.values())
        changed = changed or entry.get("excluded") != why_out or bool(done and why_out is not None)
        moved: dict[int, _Placed] = {}
        book = _book(new)
        changed = changed or (book is not None and list(map(facts_of_edge, book.placed)) != _placed_facts(new))
        if changed:
            placed = _place(new, ledger, prints, book)
            return_freed_memory()
            mine = placed.pop(new.slice_id, None)
            if mine is not None and (why_out is not None or _is_moved(entry, mine)):
                written = set(prints)
            elif mine is not None:
                mine = _pose_from_facts(entry["pose"], mine)
            there = ledger.present()
            moved = {n: pose for n, pose in placed.items() if n in there and _is_moved(ledger.slices[n], pose)}
            # Marked before it is written: after a crash in the middle this slice, and no other, counts as not there.
            kept = {name: value for name, value in done.items() if name not in written}
            ledger.slices[new.slice_id] = {**entry, "state": "writing", "stacks": kept}
            for n in moved:
                ledger.slices[n]["moving"] = True
            ledger.write(new)
            _put_maps(new, None if mine is None else mine.mapping, written)
            _put_volumes(new, None if mine is None else mine.mapping, written)
            for name in blanked:
                _note_changed(new, name, [new.slice_id])
                _blank_map(new, name)
            stacks = {name: value for name, value in {**done, **prints}.items() if name not in blanked}
            if why_out is not None:
                stacks = {}
            sources = {**entry.get("sources", {}), **_sources(new, prints)}
            figures = _own_figures(new) if written & set(prints) else entry.get("figures")
            ledger.slices[new.slice_id] = {
                "state": "present" if why_out is None else "excluded",
                "stacks": dict(sorted(stacks.items())),
                **({} if why_out is None else {"excluded": why_out}),
                **({"without_axis": new.without_axis} if new.without_axis else {}),
                **({"figures": figures} if figures and why_out is None else {}),
                **({"pose": _pose_facts(mine)} if mine is not None else {}),
                "sources": {n: sources[n] for n in sorted(stacks) if n in sources},
                "finishing": True,
            }
            ledger.write(new)
            for n, pose in sorted(moved.items()):
                _move_slice(new, ledger, n, pose)
        corrected = _correct_volumes(new, ledger)
        return_freed_memory()
        _fit_stacks(new, ledger)
        write_changed(new.folder)
        for entry in ledger.slices.values():
            entry.pop("finishing", None)
        ledger.write(new)
        return _updated(new, ledger, book, changed=changed, moved=tuple(sorted(moved)), corrected=corrected)


def leave_out_unfinished(new: SampleInput, /) -> UpdatedSample | None:
    """Make the place of a slice that was begun and not finished a gap in the stacks whose part of it is not whole.

    Parts that were whole before stay. Returns the state of the stacks; None if the slice is not unfinished.

    Raises
    ------
    StateError
        The ledger cannot be read.
    """
    with _lock(new.folder):
        ledger = _Ledger.read(new.folder / "slices.json")
        entry = ledger.slices.get(new.slice_id, {})
        if entry.get("state") != "writing":
            return None
        kept = entry.get("stacks", {})
        for path in (*new.folder.glob("*.nii"), *new.folder.glob("*.ome.zarr")):
            name = path.name.removesuffix(".nii").removesuffix(".ome.zarr")
            if name not in kept:
                _note_changed(new, name, [new.slice_id])
                _blank(path, new.slice_id)
        if kept:
            ledger.slices[new.slice_id] = {**entry, "state": "present"}
            ledger.slices[new.slice_id].pop("excluded", None)
        else:
            del ledger.slices[new.slice_id]
        write_changed(new.folder)
        ledger.write(new)
        return _updated(new, ledger, _book(new), changed=True)


def unfinished_slices(folder: Path, /) -> tuple[int, ...]:
    """Return the slices that are being added to the stacks, or were begun and never finished.

    Raises
    ------
    StateError
        The ledger cannot be read.
    """
    slices = _Ledger.read(folder / "slices.json").slices
    return tuple(sorted(number for number, entry in slices.items() if entry.get("state") == "writing"))


def _book(new: SampleInput) -> PoseBook | None:
    """Return the poses of the slices; None where they are not aligned."""
    return PoseBook.read(new.folder / FILE_NAME) if new.settings.align != "none" else None


def _updated(
    new: SampleInput,
    ledger: _Ledger,
    book: PoseBook | None,
    *,
    changed: bool,
    moved: tuple[int, ...] = (),
    corrected: Sequence[CorrectedStack] = (),
) -> UpdatedSample:
    """Return the state of the stacks, and draw their preview."""
    preview = _preview(new, ledger)
    outputs = {f"{name}_{kind}": path for name in ledger.stacks() for kind, path in _stack_files(new, name)}
    outputs["slices"] = new.folder / "slices.json"
    outputs |= {
        f"{name}_isotropic": path for name in ledger.stacks() if (path := isotropic_path(new.folder, name)).exists()
    }
    _write_scenes(new, ledger)
    outputs |= {f"{name}_scene": path for name in ledger.stacks() if (path := _scene_path(new, name)).exists()}
    figures = _figures(ledger, book)
    outputs |= write_report(new.folder, _reported(new, ledger, book, figures))
    if book is not None and book.path.exists():
        outputs["poses"] = book.path
    if (new.folder / INTENSITY_FILE).exists():
        outputs["intensity"] = new.folder / INTENSITY_FILE
    if preview is not None:
        outputs["preview"] = preview
    return UpdatedSample(
        outputs=outputs,
        slices=ledger.present(),
        missing=ledger.missing(new.expected),
        without_axis=ledger.without_axis(),
        changed=changed,
        preview=preview,
        moved=moved,
        poses=dict(book.poses) if book is not None else {},
        poses_version=book.version if book is not None else 0,
        unplaced={n: reason for n in ledger.present() if (reason := ledger.slices[n].get("pose", {}).get("failure"))},
        left_out={n: reason for stack in corrected for n, reason in stack.excluded.items()},
        filled=tuple(sorted({slot for stack in corrected for slot in stack.filled})),
        excluded=ledger.excluded(),
        placed=tuple(book.placed) if book is not None else (),
        figures=figures,
    )


def report_sample(new: SampleInput, /) -> dict[str, Path]:
    """Write the report of the stacks as they are, and return its files.

    Raises
    ------
    InputError
        There are no stacks yet.
    StateError
        The ledger, the poses or the record of the brightness cannot be read.
    """
    if not (new.folder / "slices.json").exists():
        raise InputError(f"{new.folder}: there are no stacks of the sample yet; run `opticstream sample PROJECT`")
    with _lock(new.folder):
        ledger, book = _Ledger.read(new.folder / "slices.json"), _book(new)
        return write_report(new.folder, _reported(new, ledger, book, _figures(ledger, book)))


def register_sample(new: SampleInput, /) -> OtherSpace:
    """Find the transform from the sample to another space by the command of the configuration, and keep it.

    Raises
    ------
    ConfigurationError
        There is no command, or no such program.
    InputError
        There are no volumes in cubes yet.
    ProcessingError
        The command failed, took too long, or left no valid transform; an earlier one stays.
    """
    ledger, book = _Ledger.read(new.folder / "slices.json"), _book(new)
    stacks = [name for name in ledger.stacks() if name.endswith(f"_{new.settings.align_on_volume}")]
    name = stacks[0] if stacks else new.settings.align_on_volume
    cubes = isotropic_path(new.folder, name)
    version = book.version if book is not None else 0
    made = register_to_other_space(new.folder, cubes, new.settings.hook, poses_version=version)
    with _lock(new.folder):
        _write_scenes(new, _Ledger.read(new.folder / "slices.json"))
    return made


def slice_states(folder: Path, /) -> dict[int, tuple[str, str]]:
    """Return the state of each slice of the stacks (`present`, `missing`, `excluded`, `writing`), and the reason.

    Raises
    ------
    StateError
        The ledger cannot be read.
    """
    path = folder / "slices.json"
    ledger = _Ledger.read(path)
    reasons = json.loads(path.read_bytes()).get("missing", {}) if path.exists() else {}
    found = {}
    for n in range(1, max([*ledger.slices, *map(int, reasons)], default=0) + 1):
        entry = ledger.slices.get(n, {})
        reason = entry.get("excluded") or entry.get("pose", {}).get("failure") or reasons.get(str(n), "")
        found[n] = entry.get("state", "missing"), reason
    return found


def edge_of_moved_slice(
    folder: Path,
    slice_id: int,
    against: int | None,
    /,
    *,
    shift_px: tuple[float, float],
    turn_deg: float,
    sigma_px: float,
) -> Edge:
    """Return the edge that has a slice lie elsewhere: from another slice to it, after a motion from where it lies now.

    Parameters
    ----------
    folder : Path
        Folder of the stacks.
    slice_id : int
        The slice that is moved.
    against : int, optional
        The slice that it is placed against; default: the nearest one before it, or else behind it.
    shift_px : (float, float)
        By how much its tissue is moved along x and y in pictures of the sample.
    turn_deg : float
        By how much it is turned about the middle of the picture, from x towards y.
    sigma_px : float
        Standard deviation of the edge.

    Raises
    ------
    InputError
        One of the slices is not there, is excluded or has no pose, or a number is not finite.
    StateError
        The poses cannot be read.
    """
    if not np.isfinite([*shift_px, turn_deg, sigma_px]).all() or sigma_px <= 0:
        raise InputError(
            f"slice {slice_id}: expected a shift, a turn and a positive standard deviation, got --shift "
            f"{shift_px[0]:g},{shift_px[1]:g} --turn {turn_deg:g} --sigma {sigma_px:g}"
        )
    ledger, book = _Ledger.read(folder / "slices.json"), PoseBook.read(folder / FILE_NAME)
    there = [n for n in ledger.present() if n in book.poses]
    if against is None:
        near = [n for n in there if n < slice_id][-1:] or [n for n in there if n > slice_id][:1]
        against = near[0] if near else slice_id
    for n in (slice_id, against):
        if n in ledger.excluded():
            raise InputError(f"slice {n} is excluded ({ledger.excluded()[n]}); include it first")
        if n not in there:
            told = ", ".join(map(str, there)) or "none"
            raise InputError(f"slice {n} has no place in the sample ({folder / FILE_NAME}); those that have: {told}")
    if slice_id == against:
        raise InputError(f"slice {slice_id}: expected another slice to place it against (--against), there is none")
    levers = [edge["lever_px"] for edge in book.edges.values()]
    assert book.centre_px is not None
    return moved_edge(
        against,
        slice_id,
        book.poses,
        shift_px=shift_px,
        turn_deg=turn_deg,
        sigma_px=sigma_px,
        centre_px=book.centre_px,
        lever_px=float(np.median(levers)) if levers else 100.0,
    )


def stacks_by_slice(folder: Path, /) -> dict[int, frozenset[str]]:
    """Return the names of the stacks that hold each slice; empty where there are none yet.

    Raises
    ------
    StateError
        The ledger cannot be read.
    """
    ledger = _Ledger.read(folder / "slices.json")
    return {n: frozenset(ledger.slices[n].get("stacks", {})) for n in ledger.present()}


def stacks_at_rest(folder: Path, /) -> Callable[[], None]:
    """Return a check that no slice has been added to the stacks since now.

    The ledger says that a slice is being written before anything of it is written.

    Raises
    ------
    ChangingStacksError
        A slice is being added now. The returned function raises it, too.
    """
    path = folder / "slices.json"
    before = path.read_bytes()
    slices = _Ledger.read(path).slices.values()
    if any(entry.get("state") == "writing" or entry.get("moving") or entry.get("finishing") for entry in slices):
        raise ChangingStacksError(f"{folder}: a slice is being added; the stacks are published afterwards")

    def still() -> None:
        if path.read_bytes() != before:
            raise ChangingStacksError(f"{folder}: a slice was added meanwhile; the stacks are published again")

    return still


@dataclass
class _Ledger:
    """Content of `slices.json`."""

    path: Path
    slices: dict[int, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> _Ledger:
        if not path.exists():
            return cls(path, {})
        try:
            content = json.loads(path.read_bytes())
            return cls(path, {int(number): entry for number, entry in content["slices"].items()})
        except (ValueError, KeyError, AttributeError) as error:
            raise StateError(f"{path}: cannot be read ({error!r}); remove it and add the slices again") from error

    def present(self) -> tuple[int, ...]:
        return tuple(sorted(n for n, entry in self.slices.items() if entry.get("state") == "present"))

    def missing(self, expected: int) -> tuple[int, ...]:
        present = self.present()
        last = max([expected, *self.slices], default=0)
        return tuple(n for n in range(1, last + 1) if n not in present)

    def excluded(self) -> dict[int, str]:
        return {n: entry["excluded"] for n, entry in sorted(self.slices.items()) if entry.get("state") == "excluded"}

    def without_axis(self) -> dict[int, str]:
        return {n: self.slices[n]["without_axis"] for n in self.present() if "without_axis" in self.slices[n]}

    def stacks(self) -> list[str]:
        return sorted({name for entry in self.slices.values() for name in entry.get("stacks", [])})

    def why_missing(self, slice_id: int, new: SampleInput) -> str:
        by_hand = self.excluded().get(slice_id)
        return new.failed.get(slice_id, "not registered yet") if by_hand is None else f"excluded: {by_hand}"

    def write(self, new: SampleInput) -> None:
        missing = self.missing(new.expected)
        content = {
            "slice_thickness_um": new.slice_thickness_um,
            "slices": {str(n): self.slices[n] for n in sorted(self.slices)},
            "missing": {str(n): self.why_missing(n, new) for n in missing},
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the stacks alone on this host; between hosts the claim on the sample does it."""
    with locked(folder / ".lock"):
        yield


def _fingerprints(new: SampleInput) -> dict[str, str]:
    """Return, for each stack, a hash of everything that the slice's part of it rests on.

    Volumes count by the names and sizes of their chunks: compressed data that changes at all changes some size.
    """
    settings = new.settings
    common = json.dumps(
        [
            settings.align,
            settings.align_on,
            settings.align_on_volume,
            settings.align_pullback,
            list(settings.formats),
            new.slice_thickness_um,
        ]
    )
    corrected = _corrected_volumes(new)
    prints = {}
    for name, path in {**new.maps, **(new.volumes if settings.volumes else {})}.items():
        digest = hashlib.sha256(common.encode())
        if name in corrected:
            digest.update(b"corrected")
        if path.is_dir():
            for part in sorted(path.rglob("*")):
                if part.is_file() and not part.name.endswith("__lock"):
                    digest.update(f"{part.relative_to(path)} {part.stat().st_size}".encode())
        else:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        prints[name] = digest.hexdigest()[:16]
    return prints


def _map(path: Path) -> NDArray[Any]:
    """Return a map as (x, y) or (x, y, 3)."""
    array = read_nifti(path)
    if array.ndim in (3, 4) and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise InputError(f"{path}: expected a map (x, y) or axis vectors (x, y, 1, 3), got the shape {array.shape}")
    return np.asarray(array, np.uint8 if array.dtype == np.uint8 else np.float32)


def _put_maps(new: SampleInput, mapping: PlanarTransform | None, names: Collection[str]) -> None:
    for name, path in sorted(new.maps.items()):
        if name not in names:
            continue
        image = _map(path)
        shape = (image.shape[0], image.shape[1])
        extent = _extent(mapping, shape)
        read = _image_reader(image)
        if mapping is not None:
            read = _moved_image_reader(name, image, mapping)
        geometry = nifti_geometry(path)
        x_mm, y_mm, _ = geometry.voxel_size_mm
        planes = geometry.with_voxel_size((x_mm, y_mm, new.slice_thickness_um / 1000))
        for form, target in _stack_files(new, name, only_existing=False):
            if form == "nifti":
                if image.ndim == 2:  # vectors lie in the Zarr only: NIfTI cannot grow along an inner axis
                    put_slice(
                        target,
                        new.slice_id - 1,
                        extent.size,
                        read,
                        affine_mm=planes.affine_mm,
                        dtype=str(image.dtype),
                        description=f"{name}, one plane per slice",
                        low_px=extent.low,
                        margin_px=_margin_px(new),
                    )
            else:
                voxel = (_clean(x_mm * 1000), _clean(y_mm * 1000), new.slice_thickness_um)
                kind, dtype = described_stack(name).kind, str(image.dtype)
                store = SliceStore(target, 1, voxel, kind, dtype, margin_px=_margin_px(new))
                store.put(new.slice_id - 1, extent.size, read, low_px=extent.low)
        return_freed_memory()


def _margin_px(new: SampleInput) -> int:
    return MARGIN_PX if new.settings.align != "none" else 0


def _extent(mapping: PlanarTransform | None, shape: tuple[int, int]) -> Canvas:
    """Return the pixels of the sample that show a picture in its pose: those that lie on one of its pixels."""
    if mapping is None:
        return Canvas.of(shape)
    corners = np.array([[x, y] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1)], float)
    there = mapping.inverse().points(corners).round(6)
    low, high = np.ceil(there.min(0) - 0.5).astype(int), np.floor(there.max(0) + 0.5).astype(int) + 1
    return Canvas((int(low[0]), int(low[1])), (int(high[0]), int(high[1])))


def _fit_stacks(new: SampleInput, ledger: _Ledger) -> None:
    """Have all stacks hold all slices, also those that a slice has nothing for, so that they have the same pixels."""
    poses = [entry["pose"] for entry in ledger.slices.values() if "pose" in entry]
    extents = [_extent(_mapping_from_facts(pose), tuple(pose["shape"])) for pose in poses]
    if not extents:
        return
    extent = functools.reduce(Canvas.united, extents)
    for name in ledger.stacks():
        for form, path in _stack_files(new, name):
            if form == "nifti":
                fit_stack(path, extent, margin_px=_margin_px(new))
            else:
                SliceStore.opened(path).fit(extent)


def _is_stack_of_maps(new: SampleInput, name: str) -> bool:
    return any(form == "nifti" or planes_of_slice(path) == 1 for form, path in _stack_files(new, name))


def _blank_map(new: SampleInput, name: str) -> None:
    """Make the place of the slice in a stack of maps a gap."""
    for _form, path in _stack_files(new, name):
        _blank(path, new.slice_id)


def _blank(path: Path, slice_id: int) -> None:
    """Make the place of a slice in a stack a gap."""
    if path.suffix == ".nii":
        blank_slice(path, slice_id - 1)
    else:
        SliceStore.opened(path).remove(slice_id - 1)


def _image_reader(image: NDArray[Any]) -> Callable[[slice, slice], NDArray[Any]]:
    def read(xs: slice, ys: slice) -> NDArray[Any]:
        return image[xs, ys][:, :, None]

    return read


def _moved_image_reader(name: str, image: NDArray[Any], mapping: PlanarTransform) -> Callable[..., NDArray[Any]]:
    """Return a reader of a map in its pose in the sample; it works by strips, since vectors take much memory."""
    modality = described_stack(name)
    resample = functools.partial(resampled, how=modality.resampling)
    size = (image.shape[0], image.shape[1], 1)
    blocks = resampled_blocks(_image_reader(image), mapping, size=size, resample=resample)

    def read(xs: slice, ys: slice) -> NDArray[Any]:
        out = np.zeros((xs.stop - xs.start, ys.stop - ys.start, 1, *image.shape[2:]), image.dtype)
        for x in range(xs.start, xs.stop, _STRIP_PX):
            strip = blocks(slice(x, min(x + _STRIP_PX, xs.stop)), ys)
            strip = strip.reshape(*strip.shape, *(1,) * (out.ndim - strip.ndim))  # nothing there has no components
            out[x - xs.start : x - xs.start + strip.shape[0]] = (
                np.nan_to_num(strip) if modality.kind == "label" else strip
            )
        return out

    return read


def _clean(value_um: float) -> float:
    """Return a size in um without the rounding of NIfTI's 32-bit millimetres."""
    return float(f"{value_um:.6g}")


def _stack_files(new: SampleInput, name: str, *, only_existing: bool = True) -> list[tuple[str, Path]]:
    files = {"nifti": new.folder / f"{name}.nii", "zarr": new.folder / f"{name}.ome.zarr"}
    formats = files if only_existing else {f: files[f] for f in new.settings.formats}
    return [(form, path) for form, path in formats.items() if path.exists() or not only_existing]


def _corrected_volumes(new: SampleInput) -> list[str]:
    """Return the volumes of which one evenly bright volume is made."""
    if not (new.settings.intensity.enabled and new.settings.volumes):
        return []
    known = {name: described_stack(name) for name in new.volumes}
    return sorted(name for name, modality in known.items() if modality.intensity and modality.in_db)


def _correct_volumes(new: SampleInput, ledger: _Ledger) -> list[CorrectedStack]:
    """Write what the intensity volumes have to show of all slices; without the correction, forget what was filled."""
    done = []
    wanted = _corrected_volumes(new)
    for name, path in sorted(new.volumes.items()):
        target = new.folder / f"{name}.ome.zarr"
        if name not in wanted:
            if forget_stack(new.folder, name) and (target / "zarr.json").exists():
                _note_changed(new, name, ledger.missing(0))
                store = SliceStore.opened(target)
                for slot in ledger.missing(0):
                    store.remove(slot - 1)
            continue
        voxel = volume_voxel_um(path)
        planes, kind = max(1, round(new.slice_thickness_um / voxel[2])), described_stack(name).kind
        store = SliceStore(target, planes, voxel, kind, margin_px=_margin_px(new))
        volumes = {}
        for n in ledger.present():
            entry = ledger.slices[n]
            if name in entry.get("stacks", {}) and name in entry.get("sources", {}):
                pose = entry.get("pose")
                mapping = None if pose is None else _mapping_from_facts(pose)
                source = new.folder / entry["sources"][name]
                held = volume_reader(source)[0][:2] if source.exists() else (0, 0)
                extent = _extent(mapping, held)
                volumes[n] = SliceVolume(source, entry["stacks"][name], mapping or PlanarTransform.identity(), extent)
        slots = max(ledger.slices, default=0)
        if any(volume.path.exists() for volume in volumes.values()):
            settings = new.settings.intensity
            note = functools.partial(_note_changed, new, name)
            done.append(
                correct_stack(new.folder, name, volumes, store, settings=settings, slots=slots, before_writing=note)
            )
        elif not volumes and (target / "zarr.json").exists():  # all are excluded
            forget_stack(new.folder, name)
            _note_changed(new, name, range(1, slots + 1))
            for slot in range(1, slots + 1):
                store.remove(slot - 1)
    return done


def _put_volumes(new: SampleInput, mapping: PlanarTransform | None, names: Collection[str]) -> None:
    later = _corrected_volumes(new)
    for name, path in sorted(new.volumes.items()):
        if name not in names or name in later:
            continue
        voxel = volume_voxel_um(path)
        planes = max(1, round(new.slice_thickness_um / voxel[2]))
        shape, read = volume_reader(path, slice(planes))
        if mapping is not None:
            resample = functools.partial(resampled, how=described_stack(name).resampling)
            read = resampled_blocks(read, mapping, size=shape, resample=resample)
        extent, kind = _extent(mapping, shape[:2]), described_stack(name).kind
        store = SliceStore(new.folder / f"{name}.ome.zarr", planes, voxel, kind, margin_px=_margin_px(new))
        _note_changed(new, name, [new.slice_id])
        store.put(new.slice_id - 1, extent.size, read, low_px=extent.low)


def _note_changed(new: SampleInput, name: str, slots: Collection[int]) -> None:
    """Have the cubes of a stack of scalars or angles follow it, where they are asked for."""
    if new.settings.isotropic and described_stack(name).kind in ("scalar", "axial"):
        note_changed(new.folder, name, slots)


_STRIP_PX = 256
_FACE_PLANES = 12
_FACE_PX = 1000
_AGREES = 0.25

_MOVED_PX = 0.25
"""Displacement of a corner from which a slice is written again."""


@dataclass(frozen=True)
class _Placed:
    """The pose in which a slice is written."""

    mapping: PlanarTransform
    """From pixels of the sample to pixels of the slice."""
    shape: tuple[int, int]
    """Size of the slice along x and y."""
    sigma_px: float
    """Uncertainty of the place."""
    sigma_deg: float
    """Uncertainty of the angle."""
    failure: str = ""
    """Why it lies between its neighbours only; empty where pictures place it."""


def _place(new: SampleInput, ledger: _Ledger, prints: Mapping[str, str], book: PoseBook | None) -> dict[int, _Placed]:
    """Return the poses of all slices with the new one among them, and store them; nothing without alignment."""
    if book is None:
        return {}
    known = (n for n in {*ledger.present(), *ledger.excluded()} if "pose" in ledger.slices[n])
    slices = sorted({*known, new.slice_id})
    shapes = {n: tuple(ledger.slices[n]["pose"]["shape"]) for n in slices if n != new.slice_id}
    first = min(new.maps.items())[1] if new.maps else None
    shapes[new.slice_id] = (
        read_nifti_header(first).shape[:2] if first is not None else volume_reader(min(new.volumes.items())[1])[0][:2]
    )
    pictures = {
        n: _pictures(new, ledger.slices[n].get("stacks", {}), _known_sources(new, ledger, n))
        for n in slices
        if n != new.slice_id
    }
    entry = ledger.slices.get(new.slice_id, {})
    pictures[new.slice_id] = _pictures(
        new,
        {**entry.get("stacks", {}), **prints},
        {**_known_sources(new, ledger, new.slice_id), **new.maps, **new.volumes},
    )
    book.read_stage_log(new.settings, _pixel_um(new))
    book.update(
        pictures,
        new.slice_id,
        slices=slices,
        settings=new.settings,
        slice_thickness_um=new.slice_thickness_um,
        shape=shapes[new.slice_id],
        excluded={*new.excluded} | {*ledger.excluded()} - {new.slice_id},
        placed=new.placed,
    )
    book.write()
    assert book.centre_px is not None
    poses = pulled_back(book.poses, new.settings.align_pullback)
    return {
        n: _Placed(poses[n].mapping(book.centre_px), shapes[n], poses[n].sigma_px, poses[n].sigma_deg, book.reasons(n))
        for n in slices
    }


def _pictures(new: SampleInput, stacks: Mapping[str, str], sources: Mapping[str, Path]) -> Pictures:
    """Return what a slice is compared by: the volume and the map that the settings name, as far as it has them."""
    found = {}
    for kind, modality in (("volume", new.settings.align_on_volume), ("map", new.settings.align_on)):
        name = next((n for n in sorted(stacks) if modality and n.endswith(f"_{modality}") and n in sources), None)
        if name is not None:
            found[kind] = Picture(sources[name], stacks[name])
    return found


def _placed_facts(new: SampleInput) -> list[dict[str, Any]]:
    return [facts_of_edge(e) for e in new.placed]


def _own_figures(new: SampleInput) -> dict[str, float]:
    """Return what the quality of a slice is judged by: sharpness and level of the map or volume it is compared by."""
    every = {**new.maps, **new.volumes}
    pictures = _pictures(new, dict.fromkeys(every, ""), every)
    if "map" in pictures:
        image = map_to_compare(pictures["map"].path)
    elif "volume" in pictures:
        image = mean_of_planes(pictures["volume"].path, slice(0, _FACE_PLANES), longest_px=_FACE_PX)[0]
    else:
        return {}
    tissue = tissue_mask(image[:, :, None])
    values = image[tissue & np.isfinite(image)]
    found = {"sharpness_db": sharpness_db(image, tissue), "level_db": float(np.median(values)) if values.size else None}
    return {name: round(value, 3) for name, value in found.items() if value is not None and np.isfinite(value)}


def _figures(ledger: _Ledger, book: PoseBook | None) -> dict[int, SliceFigures]:
    """Return the quality figures of the slices that are there."""
    there = ledger.present()
    own = {n: ledger.slices[n].get("figures", {}) for n in there}
    edges = [] if book is None else [e for pair, e in sorted(book.edges.items()) if set(pair) <= set(there)]
    return slice_figures(
        {n: f["sharpness_db"] for n, f in own.items() if "sharpness_db" in f},
        {n: f["level_db"] for n, f in own.items() if "level_db" in f},
        [(e["first"], e["second"], e["weight"], e["confidence"]) for e in edges],
    )


def _reported(
    new: SampleInput,
    ledger: _Ledger,
    book: PoseBook | None,
    figures: Mapping[int, SliceFigures],
) -> Reported:
    """Return what the report is made from."""
    brightness = brightness_facts(new.folder)
    left_out, filled = brightness.excluded, brightness.filled
    excluded, there = ledger.excluded(), ledger.present()
    edges = list(book.edges.values()) if book is not None else []
    by_hand = {e.second for e in book.placed} if book is not None else set()
    slices = []
    for n in range(1, max([new.expected, *ledger.slices, 0]) + 1):
        entry = ledger.slices.get(n, {})
        pose = book.poses.get(n) if book is not None and n in there else None
        mine = [e for e in edges if n in (e["first"], e["second"])]
        state, reason = "present", entry.get("pose", {}).get("failure", "")
        if n in excluded:
            state, reason = "excluded", excluded[n]
        elif n not in there:
            state, reason = "missing", ledger.why_missing(n, new)
        elif n in left_out:
            state, reason = "left out", left_out[n]
        slices.append(
            ReportedSlice(
                n,
                state,
                reason,
                pose,
                _mapping_from_facts(entry["pose"]) if "pose" in entry else None,
                figures.get(n),
                brightness.gains_db.get(n) if n in there else None,
                (len(mine), sum(e["weight"] > _AGREES and e["confidence"] >= LIKE for e in mine)),
                n in by_hand,
                n in filled,
                _pictures(new, entry.get("stacks", {}), _known_sources(new, ledger, n)),
            )
        )
    placements = [placement_in_words(e) for e in book.placed] if book is not None else []
    return Reported(
        new.title,
        slices,
        _sections(new, ledger),
        new.slice_thickness_um,
        book.version if book is not None else 0,
        placements,
    )


def placement_in_words(edge: Edge, /) -> str:
    """Return what a person gave, as a line for people."""
    return (
        f"Slice {edge.second} was placed by hand against slice {edge.first}, with a standard deviation of "
        f"{edge.sigma_px:g} px"
    )


def _sections(new: SampleInput, ledger: _Ledger) -> dict[str, Path]:
    """Return the stack through which sections are shown: the volume, or else the map, that slices are compared by."""
    stores = {name: path for name in ledger.stacks() for form, path in _stack_files(new, name) if form == "zarr"}
    for modality in (new.settings.align_on_volume, new.settings.align_on):
        chosen = next((n for n in sorted(stores) if modality and n.endswith(f"_{modality}")), None)
        if chosen is not None:
            return {chosen: stores[chosen]}
    return {}


def _pixel_um(new: SampleInput) -> tuple[float, float]:
    if new.maps:
        x_mm, y_mm, _ = nifti_geometry(min(new.maps.items())[1]).voxel_size_mm
        return x_mm * 1000, y_mm * 1000
    x_um, y_um, _ = volume_voxel_um(min(new.volumes.items())[1])
    return x_um, y_um


def _sources(new: SampleInput, prints: Mapping[str, str]) -> dict[str, str]:
    """Return the files of the slice relative to the stacks, so that the slice can be written again in another pose."""
    paths = {**new.maps, **new.volumes}
    return {name: Path(os.path.relpath(paths[name].absolute(), new.folder.absolute())).as_posix() for name in prints}


def _known_sources(new: SampleInput, ledger: _Ledger, slice_id: int) -> dict[str, Path]:
    return {name: new.folder / path for name, path in ledger.slices.get(slice_id, {}).get("sources", {}).items()}


def _is_moved(entry: Mapping[str, Any], placed: _Placed) -> bool:
    """Whether a slice that the stacks hold lies elsewhere than it was written, or was not written to its end."""
    if "pose" not in entry or entry.get("moving"):
        return True
    before = _mapping_from_facts(entry["pose"])
    width, height = placed.shape
    corners = np.array([[x, y] for x in (0, width - 1) for y in (0, height - 1)], float)
    return bool(np.abs(before.points(corners) - placed.mapping.points(corners)).max() > _MOVED_PX)


def _move_slice(new: SampleInput, ledger: _Ledger, slice_id: int, placed: _Placed) -> None:
    """Write a slice that the stacks hold in another pose; one whose files are gone keeps its pose, with a note."""
    entry = ledger.slices[slice_id]
    sources = _known_sources(new, ledger, slice_id)
    gone = sorted(name for name in entry["stacks"] if name not in sources or not sources[name].exists())
    if gone:
        note = f"is to be moved, but {', '.join(gone)} of this slice are gone; add it again"
        ledger.slices[slice_id] = {**entry, "pose": {**entry["pose"], "failure": note}}
        ledger.slices[slice_id].pop("moving", None)
        ledger.write(new)
        return
    maps = {name: path for name, path in sources.items() if _is_stack_of_maps(new, name)}
    volumes = {name: path for name, path in sources.items() if name not in maps}
    again = replace(new, slice_id=slice_id, maps=maps, volumes=volumes)
    _put_maps(again, placed.mapping, maps)
    _put_volumes(again, placed.mapping, volumes)
    ledger.slices[slice_id] = {**entry, "pose": _pose_facts(placed)}
    ledger.slices[slice_id].pop("moving", None)
    ledger.write(new)


def _mapping_from_facts(facts: Mapping[str, Any]) -> PlanarTransform:
    return PlanarTransform(np.array(facts["matrix"], float), np.array(facts["offset"], float))


def _pose_from_facts(facts: Mapping[str, Any], placed: _Placed) -> _Placed:
    """Return the pose in which a slice was written, with what is known of it now."""
    return replace(placed, mapping=_mapping_from_facts(facts))


def _pose_facts(placed: _Placed) -> dict[str, Any]:
    return {
        "matrix": placed.mapping.matrix.tolist(),
        "offset": placed.mapping.offset.tolist(),
        "rotation_deg": round(placed.mapping.rotation_deg, 6),
        "shape": list(placed.shape),
        "sigma_px": round(placed.sigma_px, 4),
        "sigma_deg": round(placed.sigma_deg, 5),
        "failure": placed.failure,
    }


def _write_scenes(new: SampleInput, ledger: _Ledger) -> None:
    """Write a scene for each stack of volumes: the volumes of the slices as they were imaged, where they lie.

    A file system that makes no links gets none, and a volume of NGFF 0.4 stays out: scenes are Zarr v3.
    """
    for name in ledger.stacks():
        stack = new.folder / f"{name}.ome.zarr"
        if not (stack / "zarr.json").exists() or planes_of_slice(stack) == 1:
            continue
        store, placed = SliceStore.opened(stack), {}
        voxel, slab_um = store.voxel_um, store.planes * store.voxel_um[2]
        for n in ledger.present():
            entry = ledger.slices[n]
            source = entry.get("sources", {}).get(name)
            if name in entry.get("stacks", {}) and source is not None and (new.folder / source / "zarr.json").exists():
                mapping = _mapping_from_facts(entry["pose"]) if "pose" in entry else PlanarTransform.identity()
                to_sample = _to_sample_um(mapping, voxel, (n - 1) * slab_um)
                placed[f"slice_{n:03d}"] = PlacedVolume(new.folder / source, to_sample)
        if not placed:
            continue
        try:
            more, fields = scene_transforms(new.folder)
            write_scene(_scene_path(new, name), placed, more=more, fields=fields, name=name)
        except OSError as error:
            _log.warning("the scene of %s was not written: %s", name, error)


def _scene_path(new: SampleInput, name: str) -> Path:
    return new.folder / "scenes" / f"{name}_scene.ome.zarr"


def _to_sample_um(mapping: PlanarTransform, voxel: tuple[float, float, float], top_um: float) -> NDArray[np.float64]:
    """Return the affine mapping, um along z, y, x, from the space of a slice's volume to that of the sample."""
    back = mapping.inverse()
    size = np.array(voxel[:2])
    out = np.zeros((3, 4))
    out[0, 0], out[0, 3] = 1.0, top_um
    matrix = size[:, None] * back.matrix / size[None]
    offset = size * back.offset
    out[1:, 1:3], out[1:, 3] = matrix[::-1, ::-1], offset[::-1]
    return out


def _preview(new: SampleInput, ledger: _Ledger) -> Path | None:
    from opticstream.io.sample_picture import write_sample_picture
    from opticstream.io.zarr import sample_views

    stores = {
        name: path
        for name in ledger.stacks()
        for form, path in _stack_files(new, name)
        if form == "zarr" and planes_of_slice(path) == 1
    }
    wanted = [n for n in stores if n.endswith(f"_{new.settings.align_on}")] or [
        n for n in stores if described_stack(n).kind == "scalar"
    ]
    chosen = {name: stores[name] for name in wanted[:1]}
    chosen |= {name: path for name, path in stores.items() if described_stack(name).kind == "vector"}
    present = ledger.present()
    if not chosen or not present:
        return None
    views = {name: sample_views(path, present) for name, path in chosen.items()}
    return write_sample_picture(new.folder / "preview.jpg", views)
