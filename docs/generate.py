"""Write the generated pages of `docs/reference/`: the settings, the events, the steps of the chain, the modalities."""

from __future__ import annotations

from pathlib import Path

from opticstream.config import DeploymentSettings
from opticstream.config.deployment import variable_of
from opticstream.config.descriptions import descriptions_of
from opticstream.config.overrides import models_in
from opticstream.config.path_map import PathMapping
from opticstream.config.template import reference, shown_default, type_name
from opticstream.flows.deployments import DEPLOYMENTS
from opticstream.flows.events import MOST_BYTES
from opticstream.model.chain import GATES, STEPS
from opticstream.model.events import ALL_EVENTS, Event
from opticstream.model.modalities import MODALITIES, Modality

REFERENCE = Path(__file__).parent / "reference"


def project_file_page() -> str:
    """Return the page about all keys of a project file."""
    return (
        "# Project file\n\n"
        "Generated from the settings by `make docs`. `opticstream project init` writes a commented file\n"
        "with every key at its default.\n\n"
        "These flat names can be used wherever parameters are overridden (`--set`, event payloads, flow\n"
        "parameters): `grid_size_x_{illumination}`, `grid_size_y`, `tile_overlap`, `mask_threshold_{illumination}`,\n"
        "`scan_resolution_3d`, `surface` or `surface_finding_method`, `offset`, `depth`, `gamma`, `mask_file_type`,\n"
        "`force_refresh_coordinates`, `save_volumes`, `project_name`, `project_base_path`, `archive_path`,\n"
        "`raw_path` and `subject_id`.\n\n" + reference()
    )


_LISTS = {
    "notify_targets": ("list of targets", '[{"kind": "log"}]'),
    "path_map": ("list of folders", "[]"),
    "matlab_environment": ("table of texts, never shown", "{}"),
    "matlab_path": ("list of paths", "[]"),
}
"""Type and default of the settings that hold lists and tables."""


def deployment_page() -> str:
    """Return the page about the environment variables of a host, and the targets of notifications."""
    lines = [
        "# Deployment settings",
        "",
        "Generated from the settings by `make docs`. They define how and where the pipeline runs on a host. Every",
        "command and every flow run on that host reads them from environment variables.",
        "",
        "| variable | type | default | meaning |",
        "|---|---|---|---|",
    ]
    fields, meanings = DeploymentSettings.model_fields, descriptions_of(DeploymentSettings)
    for name, field in fields.items():
        meaning = " ".join(meanings.get(name, "").split()).replace("|", "\\|")
        listed, default = _LISTS.get(name) or (type_name(field.annotation), shown_default(field.default))
        lines.append(f"| `{variable_of(name)}` | {listed} | `{default}` | {meaning} |")
    lines += [
        "",
        "## Targets of notifications",
        "",
        "`OPTICSTREAM_NOTIFY_TARGETS` is a list of targets, as JSON or TOML. Each target receives each milestone and",
        "failure once. If a target fails, neither the others nor the work are affected; what it missed is sent later.",
        "A target that is new to a project receives everything that was reached before.",
        "[Add a target](../how-to/add-a-target.md) explains how to write another kind.",
        "",
    ]
    for kind in models_in(fields["notify_targets"].annotation):
        title = f'kind = "{kind.model_fields["kind"].default}"'
        lines += [reference(kind, path="notify_targets").replace("`[notify_targets]`", f"`{title}`")]
    lines += [
        "## Folders of other hosts",
        "",
        "`OPTICSTREAM_PATH_MAP` holds a list of folders, as JSON or TOML. The longest `from` that holds a path counts;",
        "folders of Windows compare without case and with either slash. What lies in none is left as it is.",
        "[Several hosts](../how-to/several-hosts.md#paths-that-differ-between-hosts) has an example.",
        "",
        "| key | type | meaning |",
        "|---|---|---|",
    ]
    for name, field in PathMapping.model_fields.items():
        meaning = " ".join(descriptions_of(PathMapping).get(name, "").split())
        lines.append(f"| `{field.alias or 'to'}` | {'text' if field.alias else 'path'} | {meaning} |")
    return "\n".join(lines).rstrip("\n") + "\n"


def events_page() -> str:
    """Return the page about all events: what they mean and which flows they start."""
    lines = [
        "# Events",
        "",
        "Generated from the event classes by `make docs`. The name of an event is `linc.oct.{hierarchy}.{state}`. Its",
        "resource has `project`, `hierarchy` and ids as labels. Its payload has the fields below, and `project_name`,",
        "`project_base_path`, `parameters` (overrides) and `artifacts` (keys of the artifacts that show the item).",
        "Paths are relative to the project, or to the archive if they start with `archive:`. `project_base_path`",
        "and `raw_folder` are absolute, as the sender has configured them; each host finds them by its",
        "[path map](../how-to/several-hosts.md#paths-that-differ-between-hosts).",
        "",
        "Other programs may send the same events. `project_name` and the ids of the item are enough, in the payload or",
        "as labels of the resource. Numbers may be text, and fields in *italics* are filled in if they are missing:",
        "from the registered layout, from the flag files, or, for `files`, from the names in the raw folder. Unknown",
        "fields are ignored, with a line in the log. An event that cannot be understood is reported: the flow run ends",
        "as Failed with one line, which also appears in `state/notified`, `opticstream status`, `opticstream failures`",
        "and an artifact at the server.",
        "",
        "Send an event again to retry its work: what is parked as failed, or was made from a raw file that has",
        "changed, is tried again, and finished work is skipped. Events that the pipeline itself repeats, events",
        "that are delivered twice, and events that occurred before the work was parked cause no retry. A payload of",
        f"more than {MOST_BYTES // 1000} kB is sent without `files`, `outputs` and similar fields; the receiver looks",
        "them up.",
        "",
        "| event | means | starts | fields |",
        "|---|---|---|---|",
    ]
    common = set(Event.model_fields)
    for event in ALL_EVENTS:
        starts = ", ".join(f"`{d.name}`" for d in DEPLOYMENTS if event in d.events)
        fields = ", ".join(_field(event, name) for name in event.model_fields if name not in common)
        meaning = " ".join((event.__doc__ or "").split())
        lines.append(f"| `{event.event_name()}` | {meaning} | {starts} | {fields} |")
    return "\n".join(lines) + "\n"


def _field(event: type[Event], name: str) -> str:
    """Return a field's name, in italics if the sender of the event may omit it."""
    ids = {"sample": set(), "slice": {"slice_id"}, "mosaic": {"mosaic_id"}}
    needed = ids.get(event.hierarchy, {"mosaic_id", f"{event.hierarchy}_id"})
    return f"`{name}`" if name in needed else f"*`{name}`*"


def chain_page() -> str:
    """Return the page about the steps of the chain, with a drawing."""
    lines = [
        "# The chain",
        "",
        "Generated from the steps in `model/chain.py` by `make docs`. To add a step, see",
        "[add a stage](../how-to/add-a-stage.md).",
        "",
        "| step | on a | due after | made from | leads to | parked as | claim | started by | announces |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for step in STEPS:
        sources = ", ".join(f"{_WHOSE[source.whose]} `{source.fact}`" for source in step.made_from) or "raw files"
        started = ", ".join(f"`{kind.hierarchy}.{kind.state}`" for kind in step.started_by)
        told = [*step.announces, *([step.announces_failure] if step.announces_failure else [])]
        announced = ", ".join(f"`{kind.hierarchy}.{kind.state}`" for kind in told)
        claim = f"`{step.claim}`" + (" of the sample" if step.claimed_on_sample else "")
        parked = ", ".join(f"`{fact}`" for fact in step.ends if fact != step.done)
        lines.append(
            f"| {step.name} | {step.hierarchy} | `{step.after}` | {sources} | `{step.done}` | {parked} | {claim} "
            f"| {started} | {announced} |"
        )
    lines += ["", "```mermaid", "flowchart LR"]
    for number, step in enumerate(STEPS):
        lines.append(f'  s{number}["{step.name} ({step.hierarchy})"]')
    for gate in GATES:
        lines.append(f'  g{gate.hierarchy}{{{{"{gate.hierarchy} {gate.fact}"}}}}')
    for number, step in enumerate(STEPS):
        for gate in GATES:
            if step.hierarchy != gate.hierarchy and gate.made_from[0].fact in step.ends:
                lines.append(f"  s{number} --> g{gate.hierarchy}")
            if step.starts_work and step.hierarchy == gate.hierarchy:
                lines.append(f"  g{gate.hierarchy} --> s{number}")
        for other, before in enumerate(STEPS):
            facts = {source.fact for source in step.made_from if source.whose == "own"}
            if before.hierarchy == step.hierarchy and facts & {before.done, *before.side_results}:
                lines.append(f"  s{other} --> s{number}")
    return "\n".join([*lines, "```"]) + "\n"


_WHOSE = {"own": "its own", "parts": "its parts'", "first part": "its first part's"}


def modalities_page() -> str:
    """Return the page about all modalities: their values, where they are made, how they are processed and shown."""
    lines = [
        "# Modalities",
        "",
        "Generated from `model/modalities.py` by `make docs`. To add one, see",
        "[add a modality](../how-to/add-a-modality.md). A name is the last part of a file name.",
        "",
        "A value has the same colour in every mosaic of every project; ranges are those of mosaics. Axes are",
        "blended as (cos 2t, sin 2t), in overlaps and in pyramids. When a picture is resampled, axes and vectors",
        "rotate with it, except for the through-plane angle, which is not a direction in the image. To find the",
        "positions of tiles, intensities are compared as logarithms, and other maps as they are.",
        "",
        "| name | meaning | unit | made as | kind | blends by | resampled | channels | intensity | colours | range |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(_modality_row(known)) + " |" for known in MODALITIES.values()]
    return "\n".join(lines) + "\n"


def _modality_row(known: Modality) -> list[str]:
    meaning = f"{known.meaning}; of the registration: {known.in_slice}" if known.in_slice else known.meaning
    if not known.has_pictures:
        colours, limits = "", ""
    elif known.colours == "directions":
        colours, limits = "\\|x\\|, \\|y\\|, \\|z\\| as red, green, blue", ""
    elif known.colours == "wheel":
        after = f", brightness by {' or else '.join(known.brightness_from)}" if known.brightness_from else ""
        colours, limits = f"hue: 0 red, 60 green, 120 blue{after}", known.display.text
    else:
        colours, limits = known.colours, known.display.text
    return [
        f"`{known.name}`",
        meaning,
        known.unit,
        ", ".join(known.made),
        known.kind,
        known.blend,
        known.resampling,
        str(known.channels),
        "levels in dB" if known.in_db else "yes" if known.intensity else "",
        colours,
        limits,
    ]


PAGES = {
    "project-file.md": project_file_page,
    "deployment.md": deployment_page,
    "events.md": events_page,
    "chain.md": chain_page,
    "modalities.md": modalities_page,
}

if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")
