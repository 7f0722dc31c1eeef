"""Writes the generated pages of `docs/reference/` anew: all keys from the settings, all events from their classes."""

from __future__ import annotations

from pathlib import Path

from opticstream.config.template import reference
from opticstream.flows.deployments import DEPLOYMENTS
from opticstream.model.events import ALL_EVENTS, Event

REFERENCE = Path(__file__).parent / "reference"


def project_file_page() -> str:
    """Return the page on all keys of a project file."""
    return (
        "# Project file\n\n"
        "Generated from the settings; `make docs` writes it anew. `opticstream project init` writes a commented file\n"
        "with every key at its default.\n\n"
        "The design's flat parameter names work wherever parameters are overridden (`--set`, event payloads, flow\n"
        "parameters): `grid_size_x_{illumination}`, `grid_size_y`, `tile_overlap`, `mask_threshold_{illumination}`,\n"
        "`scan_resolution_3d`, `surface` or `surface_finding_method`, `offset`, `depth`, `gamma`, `mask_file_type`,\n"
        "`force_refresh_coordinates`, `save_volumes`, `project_name`, `project_base_path`, `archive_path` and\n"
        "`subject_id`.\n\n" + reference()
    )


def events_page() -> str:
    """Return the page on all events: what they say and which flows they start."""
    lines = [
        "# Events",
        "",
        "Generated from the event classes; `make docs` writes it anew. Every event is named",
        "`linc.oct.{hierarchy}.{state}`; its resource carries `project`, `hierarchy` and ids as labels; its payload",
        "has the fields below, besides `project_name`, `project_base_path` and `parameters` (overrides).",
        "",
        "| event | means | starts | fields |",
        "|---|---|---|---|",
    ]
    common = set(Event.model_fields)
    for event in ALL_EVENTS:
        starts = ", ".join(f"`{d.name}`" for d in DEPLOYMENTS if event in d.events)
        fields = ", ".join(f"`{name}`" for name in event.model_fields if name not in common)
        meaning = " ".join((event.__doc__ or "").split())
        lines.append(f"| `{event.event_name()}` | {meaning} | {starts} | {fields} |")
    return "\n".join(lines) + "\n"


PAGES = {"project-file.md": project_file_page, "events.md": events_page}

if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")
