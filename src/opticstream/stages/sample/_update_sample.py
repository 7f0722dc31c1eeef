"""Add one slice to the sample's stacks: maps to NIfTI and OME-Zarr stacks, volumes to one OME-Zarr, gaps listed.

Every slice has its own place in every stack; adding, replacing or repeating a slice writes that place and nothing else.
The ledger `slices.json` says which slices the stacks hold, from which input, and which are missing, and why.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import PlanarTransform, SlicePose, next_pose, resampled, resampled_blocks
from opticstream.config.processing import SampleSettings
from opticstream.io.atomic import write_text
from opticstream.io.nifti import nifti_geometry, read_nifti
from opticstream.io.nifti_stack import blank_slice, put_slice
from opticstream.io.zarr import SliceStore, planes_of_slice, volume_reader, volume_voxel_um
from opticstream.model.errors import ChangingStacksError, InputError, MissingInputError, StateError
from opticstream.model.modalities import described_stack
from opticstream.system.locks import locked


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
        done: dict[str, str] = entry.get("stacks", {})
        prints = _fingerprints(new)
        written = {name for name, value in prints.items() if done.get(name) != value}
        # Volumes may come later than maps; a map that the slice brought before and does not bring now leaves a gap.
        blanked = {name for name in done if name not in prints and _is_stack_of_maps(new, name)}
        changed = bool(written or blanked) or entry.get("without_axis", "") != new.without_axis
        if changed:
            known = entry.get("pose") if not written.intersection(new.maps) else None
            pose = _pose_from_facts(known) if known else _pose(new, ledger)
            # Marked before it is written: after a crash in the middle this slice, and no other, counts as not there.
            kept = {name: value for name, value in done.items() if name not in written}
            ledger.slices[new.slice_id] = {**entry, "state": "writing", "stacks": kept}
            ledger.write(new)
            _put_maps(new, pose, written)
            _put_volumes(new, pose, written)
            for name in blanked:
                _blank_map(new, name)
            stacks = {name: value for name, value in {**done, **prints}.items() if name not in blanked}
            ledger.slices[new.slice_id] = {
                "state": "present",
                "stacks": dict(sorted(stacks.items())),
                **({"without_axis": new.without_axis} if new.without_axis else {}),
                **({"pose": _pose_facts(pose)} if new.settings.align != "none" else {}),
            }
        ledger.write(new)
        return _updated(new, ledger, changed=changed)


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
                _blank(path, new.slice_id)
        if kept:
            ledger.slices[new.slice_id] = {**entry, "state": "present"}
        else:
            del ledger.slices[new.slice_id]
        ledger.write(new)
        return _updated(new, ledger, changed=True)


def unfinished_slices(folder: Path, /) -> tuple[int, ...]:
    """Return the slices that are being added to the stacks, or were begun and never finished.

    Raises
    ------
    StateError
        The ledger cannot be read.
    """
    slices = _Ledger.read(folder / "slices.json").slices
    return tuple(sorted(number for number, entry in slices.items() if entry.get("state") == "writing"))


def _updated(new: SampleInput, ledger: _Ledger, *, changed: bool) -> UpdatedSample:
    """Return the state of the stacks, and draw their preview."""
    preview = _preview(new, ledger)
    outputs = {f"{name}_{kind}": path for name in ledger.stacks() for kind, path in _stack_files(new, name)}
    outputs["slices"] = new.folder / "slices.json"
    if preview is not None:
        outputs["preview"] = preview
    return UpdatedSample(
        outputs=outputs,
        slices=ledger.present(),
        missing=ledger.missing(new.expected),
        without_axis=ledger.without_axis(),
        changed=changed,
        preview=preview,
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
    if unfinished_slices(folder):
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

    def without_axis(self) -> dict[int, str]:
        return {n: self.slices[n]["without_axis"] for n in self.present() if "without_axis" in self.slices[n]}

    def stacks(self) -> list[str]:
        return sorted({name for entry in self.slices.values() for name in entry.get("stacks", [])})

    def write(self, new: SampleInput) -> None:
        missing = self.missing(new.expected)
        content = {
            "slice_thickness_um": new.slice_thickness_um,
            "slices": {str(n): self.slices[n] for n in sorted(self.slices)},
            "missing": {str(n): new.failed.get(n, "not registered yet") for n in missing},
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
        [settings.align, settings.align_on, settings.align_pullback, list(settings.formats), new.slice_thickness_um]
    )
    prints = {}
    for name, path in {**new.maps, **(new.volumes if settings.volumes else {})}.items():
        digest = hashlib.sha256(common.encode())
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


def _put_maps(new: SampleInput, pose: SlicePose | None, names: Collection[str]) -> None:
    for name, path in sorted(new.maps.items()):
        if name not in names:
            continue
        image = _map(path)
        if pose is not None:
            image = _moved(name, image, pose)
        geometry = nifti_geometry(path)
        x_mm, y_mm, _ = geometry.voxel_size_mm
        planes = geometry.with_voxel_size((x_mm, y_mm, new.slice_thickness_um / 1000))
        for form, target in _stack_files(new, name, only_existing=False):
            if form == "nifti":
                if image.ndim == 2:  # vectors lie in the Zarr only: NIfTI cannot grow along an inner axis
                    put_slice(
                        target,
                        image,
                        new.slice_id - 1,
                        affine_mm=planes.affine_mm,
                        description=f"{name}, one plane per slice",
                    )
            else:
                voxel = (_clean(x_mm * 1000), _clean(y_mm * 1000), new.slice_thickness_um)
                store = SliceStore(target, 1, voxel, described_stack(name).kind, str(image.dtype))
                store.put(new.slice_id - 1, (image.shape[0], image.shape[1]), _image_reader(image))


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


def _clean(value_um: float) -> float:
    """Return a size in um without the rounding of NIfTI's 32-bit millimetres."""
    return float(f"{value_um:.6g}")


def _stack_files(new: SampleInput, name: str, *, only_existing: bool = True) -> list[tuple[str, Path]]:
    files = {"nifti": new.folder / f"{name}.nii", "zarr": new.folder / f"{name}.ome.zarr"}
    formats = files if only_existing else {f: files[f] for f in new.settings.formats}
    return [(form, path) for form, path in formats.items() if path.exists() or not only_existing]


def _put_volumes(new: SampleInput, pose: SlicePose | None, names: Collection[str]) -> None:
    for name, path in sorted(new.volumes.items()):
        if name not in names:
            continue
        voxel = volume_voxel_um(path)
        planes = max(1, round(new.slice_thickness_um / voxel[2]))
        shape, read = volume_reader(path)
        if pose is not None:
            resample = functools.partial(resampled, how=described_stack(name).resampling)
            read = resampled_blocks(read, pose.mapping, size=shape, resample=resample)
        store = SliceStore(new.folder / f"{name}.ome.zarr", planes, voxel, described_stack(name).kind)
        store.put(new.slice_id - 1, shape[:2], read)


def _moved(name: str, image: NDArray[Any], pose: SlicePose) -> NDArray[Any]:
    """Return a map in its pose in the sample."""
    moved = resampled(image, pose.mapping, how=described_stack(name).resampling, shape=(image.shape[0], image.shape[1]))
    return np.nan_to_num(moved).astype(image.dtype) if described_stack(name).kind == "label" else moved


def _pose(new: SampleInput, ledger: _Ledger) -> SlicePose | None:
    """Return the pose of the slice from its nearest neighbour in the stacks; None without alignment."""
    if new.settings.align == "none":
        return None
    still = SlicePose(PlanarTransform.identity())
    name = next((n for n in new.maps if n.endswith(f"_{new.settings.align_on}")), None)
    if name is None:
        raise InputError(
            f"slice {new.slice_id}: processing.sample.align_on = {new.settings.align_on!r} is none of the maps "
            f"{sorted(new.maps)}"
        )
    others = [n for n in ledger.present() if n != new.slice_id and "pose" in ledger.slices[n]]
    if not others:
        return still
    nearest = min(others, key=lambda n: (abs(n - new.slice_id), n))
    reference = _stacked_map(new, name, nearest)
    if reference is None:
        return still
    # The neighbour lies in the stack in its pose already, so the step from it starts at "not moved".
    pose = next_pose(
        reference,
        _map(new.maps[name]),
        still,
        freedom=new.settings.align,
        pullback=new.settings.align_pullback,
        steps=abs(nearest - new.slice_id),
    )
    if not pose.failure:
        return pose
    neighbour = _pose_from_facts(ledger.slices[nearest]["pose"])
    return SlicePose(neighbour.mapping, pose.residual_px, pose.confidence, pose.failure)


def _stacked_map(new: SampleInput, name: str, slice_id: int) -> NDArray[np.float32] | None:
    """Return the map of a slice as it lies in the stack."""
    for form, path in _stack_files(new, name):
        if form == "nifti":
            stack = read_nifti(path, mmap=True)
            if slice_id <= stack.shape[2]:
                return np.array(stack[:, :, slice_id - 1], np.float32)
        elif (plane := SliceStore.opened(path).plane(slice_id - 1)) is not None:
            return np.asarray(plane, np.float32)
    return None


def _pose_from_facts(facts: Mapping[str, Any]) -> SlicePose:
    mapping = PlanarTransform(np.array(facts["matrix"], float), np.array(facts["offset"], float))
    residual = facts["residual_px"]
    return SlicePose(mapping, float("nan") if residual is None else residual, facts["confidence"], facts["failure"])


def _pose_facts(pose: SlicePose | None) -> dict[str, Any]:
    pose = pose or SlicePose(PlanarTransform.identity())
    return {
        "matrix": pose.mapping.matrix.tolist(),
        "offset": pose.mapping.offset.tolist(),
        "rotation_deg": round(pose.mapping.rotation_deg, 6),
        "residual_px": None if np.isnan(pose.residual_px) else round(pose.residual_px, 4),
        "confidence": round(pose.confidence, 4),
        "failure": pose.failure,
    }


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
