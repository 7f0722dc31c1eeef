"""The last look at a project before its feeder leaves: what people see is what the flag files say."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from opticstream.flows.picture import publish_picture
from opticstream.model.errors import ServerError
from opticstream.model.events import Event
from opticstream.notify.log import LogTarget
from opticstream.pipeline.milestones import tell_all, untold_milestones
from opticstream.pipeline.project import Project
from opticstream.pipeline.stacking import last_update


def show_final_state(
    project: Project, /, *, announce: Callable[[list[Event]], object], say: Callable[[str], object]
) -> None:
    """Bring progress tables, shared state and notifications up to the facts, and announce what was never told.

    Idempotent: what is up to date already is left alone.
    """
    target = LogTarget(project.paths.base, say=say)
    untold = untold_milestones(project, target)
    if any(m.sample for m in untold) and (event := last_update(project)) is not None:
        announce([event])
    tell_all(untold, target)
    try:
        publish_picture(project)
    except (ServerError, httpx.HTTPError, OSError) as error:  # the next run, or look, shows it
        say(f"progress tables and shared state could not be brought up to date: {error}")
