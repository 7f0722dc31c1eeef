"""What is killed, and in the middle of what: drawn from a seed, and spread over all processes and all stages."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

Stage = Literal["tile", "batch", "mosaic", "volume", "register", "axis", "sample", "upload"]
"""What is going on: the first tile of a column, its later tiles and its record, a mosaic's maps, its volumes, the
registration of a slice, its fibre axes, its place in the sample's stacks, a publication."""

Victim = Literal["run", "worker", "worker alone", "server", "watch", "rig", "host"]
"""Who is killed: the flow run that does it, its worker with all runs, its worker so that the runs are orphaned, the
server, the watcher, the rig, or every process of the lab at once as in a power failure."""

STAGES: tuple[Stage, ...] = get_args(Stage)
VICTIMS: tuple[Victim, ...] = get_args(Victim)

_INTERRUPTING = frozenset({"run", "worker", "host"})
"""Victims whose death ends the work, so that it begins anew and can be met again."""
_WHILE_ACQUIRING: tuple[Stage, ...] = ("tile", "batch", "mosaic")
_OCCASIONS = {"column": 4, "mosaic": 2, "volume": 2, "slice": 1, "sample": 1, "upload": 3}
"""How many kills that do not interrupt a stage find it at work in a project of one slice."""
_SHARED: dict[Stage, str] = {"tile": "column", "batch": "column", "register": "slice", "axis": "slice"}


@dataclass(frozen=True)
class Strike:
    """One kill: who, while what goes on, and after which fraction of it."""

    stage: Stage
    victim: Victim
    fraction: float

    def __str__(self) -> str:
        return f"{self.victim} during {self.stage}"


def strikes_for_projects(seed: int, count: int, /, *, projects: int = 1) -> list[list[Strike]]:
    """Return `count` strikes, dealt to some projects, those of each in the order of the stages.

    Each victim meets each stage before any pair comes twice, as far as `count` reaches.

    Examples
    --------
    >>> dealt = strikes_for_projects(1, 66, projects=6)
    >>> [len(strikes) for strikes in dealt]
    [11, 11, 11, 11, 11, 11]
    >>> len({(s.stage, s.victim) for strikes in dealt for s in strikes})
    51
    """
    rng = random.Random(seed)
    pairs: list[tuple[Stage, Victim]] = [
        (stage, victim) for stage, victim in product(STAGES, VICTIMS) if victim != "rig" or stage in _WHILE_ACQUIRING
    ]
    drawn: list[tuple[Stage, Victim]] = []
    while len(drawn) < count:
        rng.shuffle(pairs)
        drawn += pairs
    dealt: list[list[Strike]] = [[] for _ in range(projects)]
    # Those that find few occasions are dealt first.
    for stage, victim in sorted(drawn[:count], key=lambda pair: pair[1] in _INTERRUPTING):
        strike = Strike(stage, victim, round(rng.random(), 3))
        fitting = [strikes for strikes in dealt if _has_occasion(strikes, strike)] or dealt
        min(fitting, key=len).append(strike)
    for strikes in dealt:
        # Interrupting ones first: a stage that was left in peace is not met again.
        strikes.sort(key=lambda strike: (STAGES.index(strike.stage), strike.victim not in _INTERRUPTING))
    return dealt


def _has_occasion(strikes: list[Strike], strike: Strike) -> bool:
    if strike.victim in _INTERRUPTING:
        return True
    kind = _SHARED.get(strike.stage, strike.stage)
    met = Counter(_SHARED.get(s.stage, s.stage) for s in strikes if s.victim not in _INTERRUPTING)
    return met[kind] < _OCCASIONS[kind]
