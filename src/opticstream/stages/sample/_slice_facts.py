"""What the report, the preview and the quality check say of each slice of the stacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from opticstream.compute.sample import Edge, SliceFigures, sharpness_db, slice_figures, tissue_mask
from opticstream.io.zarr import mean_of_planes, planes_of_slice
from opticstream.model.modalities import described_stack
from opticstream.stages.sample._brightness import brightness_facts
from opticstream.stages.sample._ledger import Ledger, known_sources
from opticstream.stages.sample._placed_slice import place_from_facts
from opticstream.stages.sample._pose_book import LIKE, Picture, Pictures, PoseBook, map_to_compare
from opticstream.stages.sample._report import Reported, ReportedSlice
from opticstream.stages.sample._sample_input import SampleInput, stack_files

_FACE_PLANES = 12


_FACE_PX = 1000


_AGREES = 0.25


def pictures_of_slice(new: SampleInput, stacks: Mapping[str, str], sources: Mapping[str, Path]) -> Pictures:
    """Return what a slice is compared by: the volume and the map that the settings name, as far as it has them."""
    found = {}
    for kind, modality in (("volume", new.settings.align_on_volume), ("map", new.settings.align_on)):
        name = next((n for n in sorted(stacks) if modality and n.endswith(f"_{modality}") and n in sources), None)
        if name is not None:
            found[kind] = Picture(sources[name], stacks[name])
    return found


def own_figures(new: SampleInput) -> dict[str, float]:
    """Return what the quality of a slice is judged by: sharpness and level of the map or volume it is compared by."""
    every = {**new.maps, **new.volumes}
    pictures = pictures_of_slice(new, dict.fromkeys(every, ""), every)
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


def figures_of_slices(ledger: Ledger, book: PoseBook | None) -> dict[int, SliceFigures]:
    """Return the quality figures of the slices that are there."""
    there = ledger.present()
    own = {n: ledger.slices[n].get("figures", {}) for n in there}
    edges = [] if book is None else [e for pair, e in sorted(book.edges.items()) if set(pair) <= set(there)]
    return slice_figures(
        {n: f["sharpness_db"] for n, f in own.items() if "sharpness_db" in f},
        {n: f["level_db"] for n, f in own.items() if "level_db" in f},
        [(e["first"], e["second"], e["weight"], e["confidence"]) for e in edges],
    )


def facts_for_report(
    new: SampleInput,
    ledger: Ledger,
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
                place_from_facts(entry["pose"]) if "pose" in entry else None,
                figures.get(n),
                brightness.gains_db.get(n) if n in there else None,
                (len(mine), sum(e["weight"] > _AGREES and e["confidence"] >= LIKE for e in mine)),
                n in by_hand,
                n in filled,
                pictures_of_slice(new, entry.get("stacks", {}), known_sources(new, ledger, n)),
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


def _sections(new: SampleInput, ledger: Ledger) -> dict[str, Path]:
    """Return the stack through which sections are shown: the volume, or else the map, that slices are compared by."""
    stores = {name: path for name in ledger.stacks() for form, path in stack_files(new, name) if form == "zarr"}
    for modality in (new.settings.align_on_volume, new.settings.align_on):
        chosen = next((n for n in sorted(stores) if modality and n.endswith(f"_{modality}")), None)
        if chosen is not None:
            return {chosen: stores[chosen]}
    return {}


def draw_preview(new: SampleInput, ledger: Ledger) -> Path | None:
    from opticstream.io.sample_picture import write_sample_picture
    from opticstream.io.zarr import sample_views

    stores = {
        name: path
        for name in ledger.stacks()
        for form, path in stack_files(new, name)
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
