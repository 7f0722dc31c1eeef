"""Quality of slices in the sample: focus, signal and agreement with neighbours, judged by the limits of today."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from opticstream.config.processing import QualitySettings
from opticstream.model.events import Event, SliceFlagged
from opticstream.model.ids import SampleId, SliceId
from opticstream.model.verdict import Grade, Verdict
from opticstream.pipeline.project import Project

Quality = Mapping[int, Mapping[str, Any]]
"""Figures of each slice in the sample, as the sample's record holds them."""


def quality_of_sample(project: Project, /) -> Quality:
    """Return the figures of the slices in the sample, as last recorded; empty without any."""
    record = project.facts.read_whole(SampleId(), "updated")
    recorded = record.detail.get("quality") if record else None
    return {int(n): figures for n, figures in recorded.items()} if isinstance(recorded, Mapping) else {}


def verdict_in_sample(figures: Mapping[str, Any], limits: QualitySettings, /) -> Verdict:
    """Return the verdict on a slice by its figures against its neighbours.

    Figures in dB are told in whole dB, because they change a little with each further neighbour.

    Examples
    --------
    >>> verdict_in_sample({"focus_db": -1.0, "signal_db": -14.2, "agreement": None}, QualitySettings())
    ... # doctest: +NORMALIZE_WHITESPACE
    Verdict(grade='bad', reasons=('signal: 14 dB below that of its neighbours, limit 6.0 dB
    (processing.quality.slice_signal_db)',))
    """
    factor_db = 10 * math.log10(limits.bad_factor)
    found: list[tuple[Grade, str]] = []
    for name, what, limit in (
        ("focus", "fine structure", limits.slice_focus_db),
        ("signal", "signal", limits.slice_signal_db),
    ):
        value = figures.get(f"{name}_db")
        if value is not None and -value > limit:
            reason = (
                f"{what}: {-value:.0f} dB below that of its neighbours, limit {limit:.1f} dB "
                f"(processing.quality.slice_{name}_db)"
            )
            found.append(("bad" if -value > limit + factor_db else "look", reason))
    share = figures.get("agreement")
    if share is not None and share < limits.slice_agreement:
        reason = (
            f"place: no comparison with a neighbour agrees with it by more than {share:.1f}, limit "
            f"{limits.slice_agreement:.2f} (processing.quality.slice_agreement)"
        )
        found.append(("bad" if share * limits.bad_factor < limits.slice_agreement else "look", reason))
    return Verdict.of(found)


def flagged_since(project: Project, before: Quality, /) -> Iterator[Event]:
    """Yield the announcements of slices whose verdict in the sample has changed, and is not `ok`, since `before`."""
    limits = project.config.processing.quality
    for n, figures in quality_of_sample(project).items():
        verdict = verdict_in_sample(figures, limits)
        if verdict.reasons and verdict != verdict_in_sample(before.get(n, {}), limits):
            grade: Any = verdict.grade
            yield project.event(SliceFlagged, SliceId(n), reasons=verdict.reasons, verdict=grade)
