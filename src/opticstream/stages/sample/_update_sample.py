"""Add one slice to the sample's stacks: maps to NIfTI and OME-Zarr stacks, volumes to one OME-Zarr, gaps listed.

Every slice has its own place in every stack; adding, replacing or repeating a slice writes that place, and those of
slices that it moved. The ledger `slices.json` says which slices the stacks hold, from which input and in which pose,
and which are missing, and why; `poses.json` holds the poses of all slices and what they follow from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opticstream.compute.sample import pulled_back
from opticstream.io.nifti_header import read_nifti_header
from opticstream.io.zarr import volume_reader
from opticstream.model.errors import InputError, MissingInputError
from opticstream.stages.sample._brightness import FILE_NAME as INTENSITY_FILE
from opticstream.stages.sample._brightness import CorrectedStack
from opticstream.stages.sample._isotropic import isotropic_path, write_changed
from opticstream.stages.sample._ledger import Ledger, known_sources, locked_stacks, sources_of_slice
from opticstream.stages.sample._other_space import OtherSpace, register_to_other_space
from opticstream.stages.sample._placed_slice import Place, PlacedSlice, is_moved, pose_facts, pose_from_facts
from opticstream.stages.sample._pose_book import FILE_NAME, PoseBook, facts_of_edge
from opticstream.stages.sample._report import write_report
from opticstream.stages.sample._sample_input import (
    SampleInput,
    UpdatedSample,
    corrected_volumes,
    have_cubes_follow,
    pixel_um,
    stack_files,
)
from opticstream.stages.sample._scenes import scene_path, write_scenes
from opticstream.stages.sample._slice_facts import (
    draw_preview,
    facts_for_report,
    figures_of_slices,
    own_figures,
    pictures_of_slice,
)
from opticstream.stages.sample._stacks import (
    blank,
    blank_map,
    correct_volumes,
    fit_stacks,
    is_stack_of_maps,
    put_maps,
    put_volumes,
)
from opticstream.system.memory import return_freed_memory


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
    with locked_stacks(new.folder):
        ledger = Ledger.read(new.folder / "slices.json")
        entry = ledger.slices.get(new.slice_id, {})
        entry.pop("finishing", None)
        done: dict[str, str] = entry.get("stacks", {})
        why_out = new.excluded.get(new.slice_id)
        prints = _fingerprints(new) if why_out is None else {}
        written = {name for name, value in prints.items() if done.get(name) != value}
        # Volumes may come later than maps; a map that the slice brought before and does not bring now leaves a gap.
        later = corrected_volumes(new)
        blanked = {
            name
            for name in done
            if name not in prints and (is_stack_of_maps(new, name) or (why_out is not None and name not in later))
        }
        changed = bool(written or blanked) or entry.get("without_axis", "") != new.without_axis
        changed = changed or any(other.get("moving") for other in ledger.slices.values())
        changed = changed or entry.get("excluded") != why_out or bool(done and why_out is not None)
        moved: dict[int, PlacedSlice] = {}
        book = _book(new)
        changed = changed or (book is not None and list(map(facts_of_edge, book.placed)) != _placed_facts(new))
        if changed:
            placed = _place(new, ledger, prints, book)
            return_freed_memory()
            mine = placed.pop(new.slice_id, None)
            if mine is not None and (why_out is not None or is_moved(entry, mine)):
                written = set(prints)
            elif mine is not None:
                mine = pose_from_facts(entry["pose"], mine)
            there = ledger.present()
            moved = {n: pose for n, pose in placed.items() if n in there and is_moved(ledger.slices[n], pose)}
            # Marked before it is written: after a crash in the middle this slice, and no other, counts as not there.
            kept = {name: value for name, value in done.items() if name not in written}
            ledger.slices[new.slice_id] = {**entry, "state": "writing", "stacks": kept}
            for n in moved:
                ledger.slices[n]["moving"] = True
            ledger.write(new)
            put_maps(new, None if mine is None else mine.place, written)
            put_volumes(new, None if mine is None else mine.place, written)
            for name in blanked:
                have_cubes_follow(new, name, [new.slice_id])
                blank_map(new, name)
            stacks = {name: value for name, value in {**done, **prints}.items() if name not in blanked}
            if why_out is not None:
                stacks = {}
            sources = {**entry.get("sources", {}), **sources_of_slice(new, prints)}
            figures = own_figures(new) if written & set(prints) else entry.get("figures")
            ledger.slices[new.slice_id] = {
                "state": "present" if why_out is None else "excluded",
                "stacks": dict(sorted(stacks.items())),
                **({} if why_out is None else {"excluded": why_out}),
                **({"without_axis": new.without_axis} if new.without_axis else {}),
                **({"figures": figures} if figures and why_out is None else {}),
                **({"pose": pose_facts(mine)} if mine is not None else {}),
                "sources": {n: sources[n] for n in sorted(stacks) if n in sources},
                "finishing": True,
            }
            ledger.write(new)
            for n, pose in sorted(moved.items()):
                _move_slice(new, ledger, n, pose)
        corrected = correct_volumes(new, ledger)
        return_freed_memory()
        fit_stacks(new, ledger)
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
    with locked_stacks(new.folder):
        ledger = Ledger.read(new.folder / "slices.json")
        entry = ledger.slices.get(new.slice_id, {})
        if entry.get("state") != "writing":
            return None
        kept = entry.get("stacks", {})
        for path in (*new.folder.glob("*.nii"), *new.folder.glob("*.ome.zarr")):
            name = path.name.removesuffix(".nii").removesuffix(".ome.zarr")
            if name not in kept:
                have_cubes_follow(new, name, [new.slice_id])
                blank(path, new.slice_id)
        if kept:
            ledger.slices[new.slice_id] = {**entry, "state": "present"}
            ledger.slices[new.slice_id].pop("excluded", None)
        else:
            del ledger.slices[new.slice_id]
        write_changed(new.folder)
        ledger.write(new)
        return _updated(new, ledger, _book(new), changed=True)


def _book(new: SampleInput) -> PoseBook | None:
    """Return the poses of the slices; None where they are not aligned."""
    return PoseBook.read(new.folder / FILE_NAME) if new.settings.align != "none" else None


def _updated(
    new: SampleInput,
    ledger: Ledger,
    book: PoseBook | None,
    *,
    changed: bool,
    moved: tuple[int, ...] = (),
    corrected: Sequence[CorrectedStack] = (),
) -> UpdatedSample:
    """Return the state of the stacks, and draw their preview."""
    preview = draw_preview(new, ledger)
    outputs = {f"{name}_{kind}": path for name in ledger.stacks() for kind, path in stack_files(new, name)}
    outputs["slices"] = new.folder / "slices.json"
    outputs |= {
        f"{name}_isotropic": path for name in ledger.stacks() if (path := isotropic_path(new.folder, name)).exists()
    }
    write_scenes(new, ledger)
    outputs |= {f"{name}_scene": path for name in ledger.stacks() if (path := scene_path(new, name)).exists()}
    figures = figures_of_slices(ledger, book)
    outputs |= write_report(new.folder, facts_for_report(new, ledger, book, figures))
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
    with locked_stacks(new.folder):
        ledger, book = Ledger.read(new.folder / "slices.json"), _book(new)
        return write_report(new.folder, facts_for_report(new, ledger, book, figures_of_slices(ledger, book)))


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
    ledger, book = Ledger.read(new.folder / "slices.json"), _book(new)
    stacks = [name for name in ledger.stacks() if name.endswith(f"_{new.settings.align_on_volume}")]
    name = stacks[0] if stacks else new.settings.align_on_volume
    cubes = isotropic_path(new.folder, name)
    version = book.version if book is not None else 0
    made = register_to_other_space(new.folder, cubes, new.settings.hook, poses_version=version)
    with locked_stacks(new.folder):
        write_scenes(new, Ledger.read(new.folder / "slices.json"))
    return made


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
            *([] if settings.bends == "auto" else [f"bends {settings.bends}"]),
        ]
    )
    corrected = corrected_volumes(new)
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


def _place(
    new: SampleInput, ledger: Ledger, prints: Mapping[str, str], book: PoseBook | None
) -> dict[int, PlacedSlice]:
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
        n: pictures_of_slice(new, ledger.slices[n].get("stacks", {}), known_sources(new, ledger, n))
        for n in slices
        if n != new.slice_id
    }
    entry = ledger.slices.get(new.slice_id, {})
    pictures[new.slice_id] = pictures_of_slice(
        new,
        {**entry.get("stacks", {}), **prints},
        {**known_sources(new, ledger, new.slice_id), **new.maps, **new.volumes},
    )
    book.read_stage_log(new.settings, pixel_um(new))
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
        n: PlacedSlice(
            Place(poses[n].mapping(book.centre_px), book.bends.get(n)),
            shapes[n],
            poses[n].sigma_px,
            poses[n].sigma_deg,
            book.reasons(n),
        )
        for n in slices
    }


def _placed_facts(new: SampleInput) -> list[dict[str, Any]]:
    return [facts_of_edge(e) for e in new.placed]


def _move_slice(new: SampleInput, ledger: Ledger, slice_id: int, placed: PlacedSlice) -> None:
    """Write a slice that the stacks hold in another pose; one whose files are gone keeps its pose, with a note."""
    entry = ledger.slices[slice_id]
    sources = known_sources(new, ledger, slice_id)
    gone = sorted(name for name in entry["stacks"] if name not in sources or not sources[name].exists())
    if gone:
        note = f"is to be moved, but {', '.join(gone)} of this slice are gone; add it again"
        ledger.slices[slice_id] = {**entry, "pose": {**entry["pose"], "failure": note}}
        ledger.slices[slice_id].pop("moving", None)
        ledger.write(new)
        return
    maps = {name: path for name, path in sources.items() if is_stack_of_maps(new, name)}
    volumes = {name: path for name, path in sources.items() if name not in maps}
    again = replace(new, slice_id=slice_id, maps=maps, volumes=volumes)
    put_maps(again, placed.place, maps)
    put_volumes(again, placed.place, volumes)
    ledger.slices[slice_id] = {**entry, "pose": pose_facts(placed)}
    ledger.slices[slice_id].pop("moving", None)
    ledger.write(new)
