"""Work that was parked because a disk was full or a share away is tried again by itself, now and then.

Steps that compute are not parked for that at all (`opticstream.pipeline.jobs`). Publishing and stacking are, so that
they hold up nothing; what they were parked for passes all the same.
"""

from __future__ import annotations

from datetime import datetime

from opticstream.model.events import Event
from opticstream.pipeline.failures import PASSES
from opticstream.pipeline.progress import failures
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import apply_plan
from opticstream.pipeline.retry import retry_plan
from opticstream.state.facts import utc_now

TRIED_AGAIN_S = 1800.0
"""Time after which work is tried again that was parked for something that passes, in seconds."""


def take_up_healed(project: Project, /, *, now: datetime | None = None) -> list[Event]:
    """Release what was parked long enough ago for something that passes, and return what is to be announced for it."""
    now = now or utc_now()
    items = []
    for failure in failures(project, project.facts.snapshot()):
        record = project.facts.read_whole(failure.item, failure.fact)
        # In the future by this host's clock: the clocks differ, and nothing tells how long it has been.
        if (
            record is not None
            and record.detail.get(PASSES)
            and abs((now - record.time).total_seconds()) > TRIED_AGAIN_S
        ):
            items.append(failure.item)
    if not items:
        return []
    plan = retry_plan(project, only=items)
    apply_plan(project, plan, reason="what it was parked for may have passed")
    return list(plan.announce)
