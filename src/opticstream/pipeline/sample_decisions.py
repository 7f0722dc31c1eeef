"""What people decide about slices of the sample: which are excluded, and where some are placed.

Decisions are facts of the slices, `excluded` and `placed`: no reset, no redo and no rebuild takes them back. The
record of the sample names those that its stacks follow, so that a slice is added again where they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opticstream.config import parameters_hash
from opticstream.model.errors import InputError, StateError
from opticstream.model.ids import SampleId, SliceId
from opticstream.pipeline.project import Project
from opticstream.state import FactsSnapshot

if TYPE_CHECKING:
    from opticstream.compute.sample import Edge


@dataclass(frozen=True)
class Decisions:
    """The decisions of people about the slices of a sample."""

    excluded: Mapping[int, str] = field(default_factory=dict)
    """Excluded slices, and why."""
    placed: tuple[Mapping[str, Any], ...] = ()
    """Where slices are placed, in the order of slices: edges as in `poses.json`, `second` is the slice."""

    @property
    def digest(self) -> str:
        """Digest of the places that were given; empty without any."""
        return digest_of_places(self.placed)


def digest_of_places(placed: tuple[Mapping[str, Any], ...], /) -> str:
    """Return a digest of places that were given; empty without any."""
    return parameters_hash({"placed": [dict(one) for one in placed]}) if placed else ""


def decisions_of(project: Project, facts: FactsSnapshot, /) -> Decisions:
    """Return the decisions that hold now, by a snapshot of the facts.

    A flag that was made by hand, with `touch`, excludes its slice, too; one that places a slice then says nothing.
    """
    excluded: dict[int, str] = {}
    placed: list[Mapping[str, Any]] = []
    slices = sorted(item for item in facts.items("slice") if isinstance(item, SliceId))
    for item in slices:
        if facts.has(item, "excluded"):
            excluded[item.slice_id] = str(_detail(project, item, "excluded").get("reason", "no reason was given"))
        if facts.has(item, "placed"):
            edges = _detail(project, item, "placed").get("edges", {})
            placed += [edges[against] for against in sorted(edges, key=int)]
    return Decisions(excluded, tuple(placed))


def _detail(project: Project, item: SliceId, fact: str) -> Mapping[str, Any]:
    record = project.facts.read_whole(item, fact)
    return record.detail if record else {}


def undecided_slices(project: Project, stacked: list[SliceId], facts: FactsSnapshot, /) -> list[SliceId]:
    """Return the stacked slices that are to be added again, because people decided something since.

    Where places differ, one slice is enough: all poses follow from one solve.
    """
    if not stacked or not facts.has(SampleId(), "updated"):
        return []
    record = project.facts.read_whole(SampleId(), "updated")
    if record is None:
        return []
    detail = record.detail
    now = decisions_of(project, facts)
    before = {int(n): reason for n, reason in (detail.get("excluded") or {}).items()}
    numbers = {item.slice_id: item for item in stacked}
    changed = {n for n in {*before, *now.excluded} if before.get(n) != now.excluded.get(n) and n in numbers}
    if now.digest != (detail.get("placed") or "") and project.config.processing.sample.align != "none":
        changed.add(next((n for n in sorted(numbers) if n not in now.excluded), min(numbers)))
    return [numbers[n] for n in sorted(changed)]


def exclude_slice(project: Project, slice_id: SliceId, reason: str, /) -> None:
    """Record that a slice is excluded from the sample.

    Raises
    ------
    InputError
        There is no reason, or no such slice yet.
    """
    if not reason.strip():
        raise InputError(f"{slice_id}: expected a reason why it is excluded (--reason), got none")
    _check_known(project, slice_id)
    project.facts.replace(slice_id, "excluded", {"detail": {"reason": reason.strip()}}, why="excluded by hand")


def include_slice(project: Project, slice_id: SliceId, /) -> None:
    """Take back that a slice is excluded.

    Raises
    ------
    InputError
        It is not excluded.
    """
    if not project.facts.withdraw(slice_id, "excluded", reason="included by hand"):
        raise InputError(f"{slice_id} is not excluded; `opticstream sample show` lists those that are")


def place_slice(
    project: Project,
    slice_id: SliceId,
    /,
    *,
    shift_px: tuple[float, float],
    turn_deg: float = 0.0,
    against: SliceId | None = None,
    sigma_px: float = 0.1,
) -> Edge:
    """Record where a slice lies, as a motion from where it lies now, and return the edge to the other slice.

    Parameters
    ----------
    project : Project
        The project, whose sample has a place for the slice.
    slice_id : SliceId
        The slice that is moved.
    shift_px : (float, float)
        By how much its tissue is moved along x and y in pictures of the sample.
    turn_deg : float
        By how much it is turned about the middle of the picture, from x towards y.
    against : SliceId, optional
        Slice that it is placed against; default: the nearest one before it, or else behind it.
    sigma_px : float
        Standard deviation. Comparisons that contradict it are left out.

    Raises
    ------
    InputError
        A slice has no place yet, or slices are not aligned.
    StateError
        Earlier places that were given are not applied yet.
    """
    from opticstream.stages import sample as sample_stages

    _check_known(project, slice_id)
    align = project.config.processing.sample.align
    if align == "none":
        raise InputError("slices are not aligned (processing.sample.align = none), so none can be placed")
    if align == "translation" and turn_deg:
        raise InputError("slices are only shifted (processing.sample.align = translation); leave --turn out")
    edge = sample_stages.edge_of_moved_slice(
        project.paths.sample_folder,
        slice_id.slice_id,
        None if against is None else against.slice_id,
        shift_px=shift_px,
        turn_deg=turn_deg,
        sigma_px=sigma_px,
    )
    now = decisions_of(project, project.facts.snapshot(mosaics=()))
    record = project.facts.read(SampleId(), "updated")
    if record is not None and now.digest != (record.detail.get("placed") or ""):
        raise StateError(
            "places that were given before are not applied yet, so it is not known from where the slice is moved; "
            "run `opticstream sample PROJECT`, or take them back with `opticstream sample place PROJECT SLICE --remove`"
        )
    edges = dict(_detail(project, slice_id, "placed").get("edges", {}))
    edges[str(edge.first)] = sample_stages.facts_of_edge(edge)
    given = {"shift_px": list(shift_px), "turn_deg": turn_deg, "against": edge.first, "sigma_px": sigma_px}
    project.facts.replace(slice_id, "placed", {"detail": {"edges": edges, "given": given}}, why="placed by hand")
    return edge


def remove_place(project: Project, slice_id: SliceId, /, *, against: SliceId | None = None) -> None:
    """Take back where a slice was placed: against one other slice, or against all.

    Raises
    ------
    InputError
        It was not placed, or not against that slice.
    """
    edges = dict(_detail(project, slice_id, "placed").get("edges", {}))
    if not project.facts.has(slice_id, "placed") or (against is not None and str(against.slice_id) not in edges):
        other = "" if against is None else f" against {against}"
        raise InputError(f"{slice_id} was not placed{other}; `opticstream sample show` lists what was")
    if against is not None:
        del edges[str(against.slice_id)]
    if against is None or not edges:
        project.facts.withdraw(slice_id, "placed", reason="the place was removed by hand")
    else:
        project.facts.replace(slice_id, "placed", {"detail": {"edges": edges}}, why="a place was removed by hand")


def _check_known(project: Project, slice_id: SliceId) -> None:
    facts = project.facts
    if not facts.facts_of(slice_id) and not any(facts.facts_of(m) for m in project.layout.mosaics(slice_id)):
        known = [str(i.slice_id) for i in sorted(facts.snapshot(mosaics=()).items("slice")) if isinstance(i, SliceId)]
        raise InputError(f"{slice_id}: the project has no such slice yet; known: {', '.join(known) or 'none'}")
