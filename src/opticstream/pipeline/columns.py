"""Process the tiles of a column as they come, before the column is complete.

The batch stays the unit of bookkeeping: the claim is the batch's, and nothing is recorded of it here. When it is ready,
its own run goes over all its tiles, takes those that are done and whose files have not changed as they are, and judges
those that could not be processed ahead. A tile that fails here is therefore not parked.

A run that has nothing else to do takes the first look at a tile as soon as its files have their size. It is shown once
they have stood still, if they have not changed since.

A run never waits at the cost of others. It ends when every tile is done, when no tile has come for a while, and when
another run waits for its place in the pool; the next tile that comes starts another run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from opticstream.config.engines import matlab_for
from opticstream.model.errors import ClaimLost, InputError
from opticstream.model.events import Event
from opticstream.model.ids import BatchId, TileId
from opticstream.pipeline.arriving import Arriving, arriving
from opticstream.pipeline.batches import TileWork, is_done, process_batch
from opticstream.pipeline.failures import describe, is_of_surroundings, kind_of
from opticstream.pipeline.first_looks import first_look, look_at_newest_tile, show_if_settled
from opticstream.pipeline.jobs import PROCESS_BATCH, Attempt, Part, memory_for, once, perform_part
from opticstream.pipeline.pending import ready_event
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import BATCH_ENDED
from opticstream.stages.tile import FirstLook
from opticstream.state import Claim
from opticstream.state.raw_files import identity_of

LOOK_S = 0.1
"""Time between two looks for the next tile, in seconds."""
PATIENCE_S = 30.0
"""Longest time that a run waits for the next tile of its column, in seconds."""
_UNKNOWN_S = 3.0
"""Time after which a run ends that knows of no tile, in seconds: a share may show a note some seconds late."""
_AHEAD = replace(PROCESS_BATCH, failed=None)  # what fails is left to the batch's own run
_log = logging.getLogger(__name__)


def takes_tiles_as_they_come(project: Project, /) -> bool:
    """Return whether the tiles of a project are processed before their column is complete."""
    return project.deployment.tile_by_tile and matlab_for(project.config.processing.engine, "tile") is None


def process_tiles(
    project: Project,
    batch: BatchId,
    /,
    *,
    attempt: Attempt = once,
    place_is_wanted: Callable[[], bool] = lambda: False,
    patience_s: float = PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> list[Event]:
    """Process the tiles of a column that have come, and those that come meanwhile; return what is to be announced.

    That is nothing, unless the column becomes ready meanwhile: then this run finishes it.

    Parameters
    ----------
    project : Project
        The project.
    batch : BatchId
        The column.
    attempt : Attempt
        Runs a tile's work, with retries where the caller wants them.
    place_is_wanted : callable
        Returns whether another run waits for the place of this one in its pool; asked while there is nothing to do.
    patience_s : float
        Longest wait for the next tile, in seconds.
    clock, sleep : callable
        Time, for tests.
    """
    facts = project.facts
    if not takes_tiles_as_they_come(project) or any(facts.has(batch, fact) for fact in BATCH_ENDED):
        return []
    if facts.claims.crashes(batch, PROCESS_BATCH.claim) >= project.deployment.crashes:
        return []  # the batch's own run parks it
    claim = facts.claim(batch, PROCESS_BATCH.claim, lease_s=project.deployment.lease_s)
    if claim is None:
        facts.journal.skipped(batch, PROCESS_BATCH.done, f"claimed: {facts.holder(batch, PROCESS_BATCH.claim)}")
        return []
    column = _Column(project, batch, attempt, place_is_wanted, patience_s, clock, sleep)
    with claim:
        why = column.process(claim)
        claim.release(f"ahead of its column: {why}")
    _log.info("%s: %s", batch, why)
    # Looked at after the claim was released: whoever announced it meanwhile has found it claimed, and left it to us.
    ready = ready_event(project, batch)
    return [] if ready is None else process_batch(project, ready, attempt=attempt)


@dataclass
class _Column:
    """A column whose tiles are processed as they come, under its claim."""

    project: Project
    batch: BatchId
    attempt: Attempt
    place_is_wanted: Callable[[], bool]
    patience_s: float
    clock: Callable[[], float]
    sleep: Callable[[float], object]
    _done: set[TileId] = field(default_factory=set)
    _failed: dict[TileId, str] = field(default_factory=dict)
    """Identity of the raw files with which a tile could not be processed."""
    _looked_at: set[TileId] = field(default_factory=set)
    """Tiles at which a look was taken before their files had stood still: once, or a rig that fills files whose size it
    has reserved would have a look taken at every pause."""
    _unshown: dict[TileId, FirstLook] = field(default_factory=dict)
    """Those looks, until the files have stood still."""

    def process(self, claim: Claim) -> str:
        """Process tiles until there is a reason to end, and return that."""
        since = self.clock()
        while True:
            claim.ensure_mine()
            known = arriving(self.project, self.batch)
            if known is not None:
                self._show(known)
            if self.project.facts.has(self.batch, "ready"):
                return "the column is complete"
            if known is not None:
                if (tile := self._next(known)) is not None:
                    self._take(known, tile, claim)
                    since = self.clock()
                    continue
                if (tile := self._coming(known)) is not None:
                    self._look_at(known, tile)
                    since = self.clock()
                    continue
            if self._done.issuperset(self.project.layout.tiles(self.batch)):
                return "all its tiles are done"
            if known is None and self.clock() - since >= _UNKNOWN_S:
                return "no tile is known to have come"
            if self.clock() - since >= self.patience_s:
                return f"no tile has come for {self.patience_s:.0f} s; the next one starts another run"
            if self.place_is_wanted():
                return "another run waits for this place in the pool; the next tile starts another run"
            self.sleep(LOOK_S)

    def _next(self, known: Arriving) -> TileId | None:
        """Return the first tile that has come and is neither done nor known to fail with its present files."""
        for tile in known.tiles():
            if tile in self._done:
                continue
            if tile in self._failed and self._failed[tile] == self._identity(known, tile):
                continue
            try:
                if is_done(self.project, known.event, tile):
                    self._done.add(tile)
                    continue
            except (InputError, OSError):
                pass
            return tile
        return None

    def _coming(self, known: Arriving) -> TileId | None:
        """Return the first tile whose files have just got their size and that has not been looked at."""
        seen = self._done | self._looked_at
        return next((tile for tile in known.unsettled() if tile not in seen), None)

    def _look_at(self, known: Arriving, tile: TileId) -> None:
        """Take the first look at a tile whose files may still be written, and keep it."""
        self._looked_at.add(tile)
        with memory_for(self.project, self.batch, PROCESS_BATCH):
            look = first_look(self.project, known.event, tile)
        if look is not None:
            self._unshown[tile] = look

    def _show(self, known: Arriving) -> None:
        """Show the looks at tiles whose files have stood still."""
        for tile in self._unshown.keys() & set(known.tiles()):
            show_if_settled(self.project, known.event, tile, self._unshown.pop(tile))

    def _identity(self, known: Arriving, tile: TileId) -> str:
        names = [known.event.files.get(tile.tile_id), known.event.spectra.get(tile.tile_id)]
        try:
            return identity_of(*(Path(known.event.raw_folder, name) for name in names if name is not None))
        except OSError:
            return ""

    def _take(self, known: Arriving, tile: TileId, claim: Claim) -> None:
        """Process one tile; what is wrong with it is left to the run of the whole column."""
        identity = self._identity(known, tile)
        work = TileWork(self.project, known.event, tile, self.attempt)
        try:
            with memory_for(self.project, self.batch, PROCESS_BATCH):
                look_at_newest_tile(self.project, next_one=tile)
                perform_part(self.project, Part(tile, work.record), _AHEAD, claim, work.compute)
        except ClaimLost:
            raise
        except Exception as error:
            if is_of_surroundings(error):
                raise  # a full disk, a share that is away: the column is taken up again later
            self._failed[tile] = identity
            _log.warning("%s is left to the run of its column: %s (%s)", tile, describe(error), kind_of(error))
        else:
            self._done.add(tile)
