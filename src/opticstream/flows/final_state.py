"""The last look at a project before its feeder leaves: what people see is what the flag files say."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from opticstream.flows.picture import publish_picture
from opticstream.model.errors import ServerError
from opticstream.model.events import Event
from opticstream.pipeline.milestones import finished, milestones, notifier
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.stacking import last_update


def show_final_state(
    project: Project, /, *, announce: Callable[[list[Event]], object], say: Callable[[str], object]
) -> None:
    """Bring progress tables, shared state and notifications up to the facts, and announce what was never told.

    Idempotent: what is up to date already is left alone.
    """
    look = notifier(project, say=say, warn=say, at_once=True)
    progress = project_progress(project)
    reached = milestones(project, progress)
    if any(one.fact == "stacked" for one in look.never_told(reached)) and (event := last_update(project)) is not None:
        announce([event])
    summary = finished(project, progress)
    look.tell([*reached, *([] if summary is None else [summary])])
    try:
        publish_picture(project)
    except (ServerError, httpx.HTTPError, OSError) as error:  # the next run, or look, shows it
        say(f"progress tables and shared state could not be brought up to date: {error}")
