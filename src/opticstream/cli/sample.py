"""`sample`: the stacks of all slices, what is known of each, and what people decide about them. Needs no server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from opticstream.cli.console import FAILED, JsonOption, ProjectArgument, err, errors_shown, out, print_json
from opticstream.cli.status import open_project
from opticstream.model.errors import InputError
from opticstream.model.ids import SliceId

if TYPE_CHECKING:
    from opticstream.pipeline.project import Project


class _Group(TyperGroup):
    """`opticstream sample PROJECT` is `opticstream sample add PROJECT`."""

    default_command = "add"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [self.default_command, *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(cls=_Group, no_args_is_help=True)

SliceArgument = Annotated[int, typer.Argument(min=1, metavar="SLICE", help="Slice number.", show_default=False)]


@app.callback()
def sample() -> None:
    """The whole sample: add slices to its stacks, show their places and quality, exclude or place some by hand.

    `opticstream sample PROJECT` adds the slices that are registered.
    """


@app.command()
def add(
    project: ProjectArgument,
    slices: Annotated[
        list[int] | None,
        typer.Option("--slice", min=1, help="Slice to add, may be repeated; default: all registered slices."),
    ] = None,
    rebuild: Annotated[bool, typer.Option(help="Remove the stacks and build them again, in order.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Add the registered slices of a project to the sample's stacks; slices that are already there are not changed.

    The pipeline does this after each registration. Use this command to do it by hand, for example for volumes that
    were stitched later. Needs no server.
    """
    from opticstream.pipeline.stacking import stack_slices

    with errors_shown():
        made = stack_slices(open_project(project), slices, rebuild=rebuild)
    if made is None:
        err.print("no slice is stitched and registered yet")
        raise typer.Exit(FAILED)
    if as_json:
        print_json(
            {
                "slices": made.slices,
                "missing": made.missing,
                "excluded": made.excluded,
                "without_axis": made.without_axis,
                "outputs": made.outputs,
                "preview": made.preview,
            }
        )
        return
    missing = json.loads(made.outputs["slices"].read_bytes())["missing"]
    out.print(f"slices in the stacks: {', '.join(map(str, made.slices)) or 'none'}")
    for number, reason in missing.items():
        out.print(f"  slice {number} is missing: {reason}")
    for number, reason in made.without_axis.items():
        out.print(f"  slice {number} has no axis: {reason}")
    for path in made.outputs.values():
        out.print(f"  {path}")


@app.command()
def report(project: ProjectArgument, as_json: JsonOption = False) -> None:
    """Write sample/report.html and sample/slices.csv again: sections, places, quality, boundaries.

    The pipeline does this whenever the sample changes.
    """
    from opticstream.pipeline.stacking import report_sample

    with errors_shown():
        outputs = report_sample(open_project(project))
    if as_json:
        print_json({name: str(path) for name, path in outputs.items()})
        return
    for path in outputs.values():
        out.print(str(path))


@app.command("register")
def register_command(project: ProjectArgument, as_json: JsonOption = False) -> None:
    """Find the transform from the sample to another space, such as an MRI, by the command of the configuration.

    The command (processing.sample.hook) gets the sample in cubes of 100 um and the poses. Its transform is kept in
    sample/transforms/ and takes part in the scenes.
    """
    from opticstream.pipeline.stacking import register_sample

    with errors_shown():
        made = register_sample(open_project(project))
    if as_json:
        print_json({"transform": str(made.transform), "record": str(made.record), **made.facts})
        return
    out.print(f"{made.facts['kind']} from the sample to {made.name}: {made.transform}")


@app.command()
def show(project: ProjectArgument, as_json: JsonOption = False) -> None:
    """Show the place, its uncertainty and the quality of each slice, comparisons, and what people decided."""
    with errors_shown():
        found = _shown(open_project(project))
    if as_json:
        print_json(found)
        return
    measures = ("x px", "y px", "turn deg", "sigma px", "bend px", "focus dB", "signal dB", "agreement")
    table = Table("slice", "state", *measures, "")
    for one in found["slices"]:
        place = [one.get(name) for name in ("x_px", "y_px", "turn_deg", "sigma_px")]
        figures = [one.get("bend", {}).get("rms_px"), *(one.get(name) for name in ("focus_db", "signal_db"))]
        cells = ["-" if value is None else f"{value:.2f}" for value in [*place, *figures, one.get("agreement")]]
        table.add_row(str(one["slice"]), one["state"], *cells, one["reason"])
    out.print(table)
    for edge in found["edges"]:
        told = edge["failure"] or f"shift {edge['shift_px'][0]:.2f}, {edge['shift_px'][1]:.2f} px"
        out.print(f"  {edge['first']} to {edge['second']}: weight {edge['weight']:.2f}, {told}")
    for one in found["placed"]:
        told = "applied" if one["applied"] else "not applied yet"
        out.print(
            f"  slice {one['second']} is placed by hand against slice {one['first']} (sigma {one['sigma_px']:g} px): "
            f"{told}"
        )
    for number, decision in found["excluded"].items():
        told = "" if decision["applied"] else " (not applied yet)"
        out.print(f"  slice {number} is excluded: {decision['reason']}{told}")
    for one in found["transforms"]:
        told = "" if one["is_current"] else " (older than the poses: `opticstream sample register` again)"
        out.print(f"  transform to {one['space']}: {one['file']}{told}")


def _shown(project: Project) -> dict[str, Any]:
    """Return what `show` shows, from the facts and the files of the stacks; changes nothing."""
    from opticstream.pipeline.sample_decisions import decisions_of
    from opticstream.pipeline.sample_quality import quality_of_sample, verdict_in_sample
    from opticstream.pipeline.stacking import excluded_in_stacks
    from opticstream.stages.sample import PoseBook, facts_of_edge, other_spaces, slice_states

    folder = project.paths.sample_folder
    book = PoseBook.read(folder / "poses.json")
    decisions = decisions_of(project, project.facts.snapshot(mosaics=()))
    quality = quality_of_sample(project)
    slices = []
    for number, (state, reason) in slice_states(folder).items():
        entry: dict[str, Any] = {"slice": number, "state": state, "reason": reason}
        pose = book.poses.get(number) if state == "present" else None
        if pose is not None:
            x, y = pose.shift_px
            entry |= {"x_px": x, "y_px": y, "turn_deg": pose.turn_deg}
            entry |= {"sigma_px": pose.sigma_px, "sigma_deg": pose.sigma_deg}
            if (bend := book.bends.get(number)) is not None:
                rms_px, largest_px = bend.size_px
                entry["bend"] = {"rms_px": rms_px, "largest_px": largest_px, "sigma_px": bend.sigma_px}
        if figures := quality.get(number):
            verdict = verdict_in_sample(figures, project.config.processing.quality)
            entry |= {**figures, "verdict": verdict.grade}
            entry["reason"] = "; ".join([*([reason] if reason else []), *verdict.reasons])
        slices.append(entry)
    applied, placed = excluded_in_stacks(project), [facts_of_edge(edge) for edge in book.placed]
    return {
        "slices": slices,
        "edges": [{k: v for k, v in e.items() if k != "bend"} for _, e in sorted(book.edges.items())],
        "placed": [{**one, "applied": dict(one) in placed} for one in decisions.placed],
        "excluded": {
            number: {"reason": reason, "applied": applied.get(number) == reason}
            for number, reason in decisions.excluded.items()
        },
        "poses_version": book.version,
        "transforms": [
            {"space": one.name, "file": str(one.transform), "is_current": one.facts["poses_version"] == book.version}
            for one in other_spaces(folder)
        ],
    }


@app.command()
def exclude(
    project: ProjectArgument,
    slice_id: SliceArgument,
    reason: Annotated[str, typer.Option(help="Why; it is listed with the slice.", show_default=False)] = "",
    include: Annotated[bool, typer.Option("--include", help="Take the exclusion back.")] = False,
) -> None:
    """Leave a slice out of the sample, or take that back: it hands nothing on, and its place is filled or a gap.

    A pipeline that runs notices it; otherwise `opticstream sample PROJECT` or `opticstream run` applies it.
    """
    from opticstream.pipeline.sample_decisions import exclude_slice, include_slice

    with errors_shown():
        if include and reason:
            raise InputError("--include takes an exclusion back; leave --reason out")
        opened = open_project(project)
        if include:
            include_slice(opened, SliceId(slice_id))
        else:
            exclude_slice(opened, SliceId(slice_id), reason)
    out.print(f"slice {slice_id} is {'included again' if include else f'excluded: {reason.strip()}'}")
    out.print(_NEXT)


@app.command()
def place(
    project: ProjectArgument,
    slice_id: SliceArgument,
    shift: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Pixels by which the slice's tissue is moved to the right and downwards, as pictures of the sample "
            "show it, from where it lies now.",
        ),
    ] = None,
    turn: Annotated[
        float, typer.Option(metavar="DEG", help="Angle by which it is turned clockwise about the middle, before.")
    ] = 0.0,
    against: Annotated[
        int | None,
        typer.Option(min=1, metavar="SLICE", help="Slice that it is placed against; default: the one before it."),
    ] = None,
    sigma: Annotated[
        float, typer.Option(metavar="PX", help="Standard deviation; comparisons that contradict are left out.")
    ] = 0.1,
    remove: Annotated[bool, typer.Option("--remove", help="Take back where the slice was placed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say where a slice lies against another one; all poses are found anew with it.

    Example: opticstream sample place project.toml 7 --shift 12.5,-3 --turn 0.4
    """
    from opticstream.pipeline.sample_decisions import place_slice, remove_place

    with errors_shown():
        if remove and (shift is not None or turn):
            raise InputError("--remove takes a place back; leave --shift and --turn out")
        if not remove and shift is None and not turn:
            raise InputError("expected --shift X,Y or --turn DEG, or --remove")
        opened, other = open_project(project), None if against is None else SliceId(against)
        if remove:
            remove_place(opened, SliceId(slice_id), against=other)
        else:
            edge = place_slice(
                opened,
                SliceId(slice_id),
                shift_px=_pair(shift or "0,0"),
                turn_deg=turn,
                against=other,
                sigma_px=sigma,
            )
    if as_json:
        print_json({"slice": slice_id, "removed": True} if remove else {"slice": slice_id, "against": edge.first})
        return
    if remove:
        out.print(f"slice {slice_id} is placed by comparisons alone again")
    else:
        out.print(f"slice {slice_id} is placed by hand against slice {edge.first}")
    out.print(_NEXT)


_NEXT = "a pipeline that runs applies it; otherwise run `opticstream sample PROJECT` or `opticstream run`"


def _pair(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--shift {text!r}: expected two numbers of pixels, X,Y, such as 12.5,-3") from None
    return x, y
