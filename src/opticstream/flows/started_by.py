"""Which events start which flow, by the names of the flows: for triggers, and for questions about the server's queue.

The flows that compute follow from the chain of steps; those that only look stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from opticstream.model import events
from opticstream.model.chain import STEPS
from opticstream.model.events import Event

_FAILED = tuple(kind for kind in events.ALL_EVENTS if kind.state == "failed")
_FLAGGED = tuple(kind for kind in events.ALL_EVENTS if kind.state == "flagged")
_MILESTONES = (events.BatchProcessed, events.MosaicStitched, events.SliceRegistered, events.SampleUpdated)


def _of_steps(flow: str) -> tuple[type[Event], ...]:
    """Return the announcements that start any of the steps that a flow does."""
    return tuple(dict.fromkeys(kind for step in STEPS if step.flow == flow for kind in step.started_by))


def _announced_of(*hierarchies: str) -> tuple[type[Event], ...]:
    """Return the announcements of the steps on some kinds of items, failures included."""
    steps = [step for step in STEPS if step.hierarchy in hierarchies]
    kinds = [kind for step in steps for kind in (*step.announces, step.announces_failure) if kind is not None]
    return tuple(dict.fromkeys(kinds))


STARTED_BY: Mapping[str, tuple[type[Event], ...]] = MappingProxyType(
    {flow: _of_steps(flow) for flow in dict.fromkeys(step.flow for step in STEPS)}
    | {
        "process-tiles": (events.TileBegun,),
        "batch-state": _announced_of("batch"),
        "slice-state": _announced_of("mosaic", "slice"),
        "notify": (*_MILESTONES, *_FAILED, *_FLAGGED),
    }
)
"""Events that start each flow; a flow that is not named is started by none."""


def flows_started_by(kind: type[Event], /) -> frozenset[str]:
    """Return the names of the flows that a kind of event starts."""
    return frozenset(name for name, kinds in STARTED_BY.items() if kind in kinds)
