"""What `run`, `watch` and the demo do next to the server: announce batches as they appear, sweep, and see the end.

Every wait ends: columns that stay incomplete are worked on as they are, mosaics do not wait for slices that never come,
and `run` ends when nothing goes on any longer, saying what was left undone.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from opticstream.flows.events import announce_automatically
from opticstream.flows.final_state import show_final_state
from opticstream.flows.queues import is_queued, unfinished_runs
from opticstream.io.atomic import remove_stale_temporaries
from opticstream.model.errors import InputError, OpticStreamError, ServerError
from opticstream.model.events import BatchReady, Event, TileBegun
from opticstream.model.ids import BatchId, TileId
from opticstream.pipeline.acquisition import RENEWED_EVERY_S, forget_acquisition, note_acquisition
from opticstream.pipeline.arrivals import end_waiting, repaired_tiles, take_again
from opticstream.pipeline.arriving import all_arriving, arriving, note_arriving, waiting_in
from opticstream.pipeline.columns import takes_tiles_as_they_come
from opticstream.pipeline.conditions import conditions
from opticstream.pipeline.jobs import PROCESS_BATCH
from opticstream.pipeline.milestones import notifier, tell_milestones
from opticstream.pipeline.pending import pending_announcements, ready_event
from opticstream.pipeline.progress import ProjectProgress, is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.raw_folders import ready_content, remember_folder
from opticstream.pipeline.rules import BATCH_ENDED
from opticstream.pipeline.run_parameters import take_over, waiting_in_folder
from opticstream.pipeline.stuck import stuck_items
from opticstream.pipeline.sweep import LONGEST_WAIT_S, Sweeper
from opticstream.state import FactsSnapshot
from opticstream.state.vocabulary import is_claim
from opticstream.watch import FoundBatch, IncompleteBatch, Watcher

Announce = Callable[[Iterable[Event]], object]
_log = logging.getLogger(__name__)

RUN_STALL_S = 60.0
"""Longest time that `run` waits for the missing tiles of a column, in seconds: nobody writes to its folder any more."""
_FINISH_S = 60.0
_FULL_BYTES = 16 << 20
"""Free space below which a disk counts as full; no result is so small."""
_TILE_POLL_S = 0.2
"""Shortest time between two looks at the raw folder, in seconds."""
_STEPS_APART = 9.0
"""How many times longer the wait for the next look is than the look itself."""
_CALLED_AGAIN_S = 10.0
"""Time after which the tiles of a column are announced again where no run has come for them, in seconds."""
_LATE_QUIET_S = 60.0
"""How long a batch must be quiet before late files are taken while others are still missing, in seconds."""


@dataclass(frozen=True)
class _Called:
    """The tiles for which a run was called last, by which attempt at the column, and when it may be called again."""

    tiles: frozenset[TileId]
    attempt: int
    wait_s: float
    again_s: float


class Driver:
    """Feeds a project from a raw folder until told to stop.

    Parameters
    ----------
    project : Project
        What to feed.
    watcher : Watcher
        Where batches come from.
    """

    def __init__(
        self,
        project: Project,
        watcher: Watcher,
        /,
        *,
        live: bool = True,
        announce: Announce = announce_automatically,
        is_queued: Callable[[Event], bool] = lambda _event: False,
    ) -> None:
        self.project = project
        self.watcher = watcher
        self.live = live
        self._announce = announce
        self._takes_tiles = live and takes_tiles_as_they_come(project)
        self.is_queued = is_queued
        self.sweeper = Sweeper(project, project.deployment.sweep_s, announce, is_queued)
        self.trouble: str | None = None
        """Why the raw folder or the facts cannot be reached for the moment."""
        self.undone: list[str] = []
        """What is left to do although nothing goes on any longer, a line each."""
        self._unrecorded: list[FoundBatch] = []
        self._progress: ProjectProgress | None = None
        self._next_sweep = 0.0
        self._next_telling = 0.0
        self._next_note = 0.0
        self._telling: threading.Thread | None = None
        self._has_seen_folder = False
        self._parked: tuple[TileId, ...] = ()
        self._has_told_of_stall = False
        self._called: dict[BatchId, _Called] = {}
        """Columns for whose tiles a run was called before they were complete."""
        self._taken: dict[TileId, str] = {}
        """Late tiles that were taken, with what identified their files."""
        self._last_snapshot: FactsSnapshot | None = None
        self._changed_s = time.monotonic()

    @classmethod
    def on_folder(
        cls, project: Project, folder: Path, /, *, live: bool = True, announce: Announce = announce_automatically
    ) -> Driver:
        """Return a driver for a folder, with the waiting times of this host's deployment settings.

        Without `live` nobody writes to the folder any more: a file that stands still and has the wrong size is a
        problem of its tile at once, and columns that stay incomplete are worked on after a minute at most.

        The project remembers a folder that holds its raw files, so that work that is done again looks there, too.
        """
        remember_folder(project, folder.absolute())
        stable_s, stall_s = project.deployment.stable_s, project.deployment.stall_s
        watcher = Watcher(
            folder,
            project.config.scan,
            stable_s=stable_s,
            stall_s=stall_s if live else min(stall_s, RUN_STALL_S),
            tile_stable_s=project.deployment.tile_stable_s,
            unfinished_s=stall_s if live else stable_s,
            live=live,
            settled=lambda batch: _is_announced(project, batch),
        )
        return cls(project, watcher, live=live, announce=announce, is_queued=is_queued)

    def start(self) -> list[Event]:
        """Announce what an earlier life has left undone, and let what killed writers have left be removed.

        What waits of this folder is done with the parameters of this run, whoever has found it.
        """
        raw_folder = str(self.watcher.folder.absolute())
        take_over(self.project, waiting_in_folder(self.project, pending_announcements(self.project), raw_folder))
        for folder in (self.project.paths.base, self.project.paths.archive_root):
            threading.Thread(target=remove_stale_temporaries, args=(folder,), daemon=True).start()
        return self.sweeper.sweep(at_once=True)

    def step(self) -> list[FoundBatch]:
        """Look once at the raw folder and, now and then, at what is overdue; return the batches that were announced.

        A share that is away or a disk that is full for a while must not end a watch of months: what could not be done
        is done by a later step, and `trouble` says why.
        """
        self.trouble = None
        with self._bearing_trouble():
            self._unrecorded += self.watcher.poll()
        self._has_seen_folder = True
        announced: list[FoundBatch] = []
        with self._bearing_trouble():
            while self._unrecorded:
                self.ready(self._unrecorded[0])
                announced.append(self._unrecorded.pop(0))
        if self._takes_tiles:
            with self._bearing_trouble():
                self._tell_of_arriving_tiles()
                self._tell_of_beginning_columns()
        with self._bearing_trouble():
            self._take_late_tiles()
        with self._bearing_trouble():
            self._look_for_room()
        with self._bearing_trouble():
            self._note_acquisition()
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + min(5.0, self.project.deployment.sweep_s)
            with self._bearing_trouble():
                self._end_waiting()
                self.sweeper.sweep()
        if now >= self._next_telling and not (self._telling and self._telling.is_alive()):
            self._next_telling = now + self.project.deployment.sweep_s
            self._telling = threading.Thread(target=self._tell, daemon=True)  # a target may be slow to answer
            self._telling.start()
        return announced

    def _note_acquisition(self) -> None:
        """Write what this host sees of the acquisition, for hosts that do not see the raw folder."""
        now = time.monotonic()
        if self.live and now >= self._next_note:
            self._next_note = now + RENEWED_EVERY_S
            columns = [batch.key for batch in self.watcher.open_batches()]
            quiet_s = self.watcher.folder_quiet_s()
            patience_s = self._patience_in_column()
            note_acquisition(
                self.project, self.watcher.folder, quiet_s=quiet_s, open_columns=columns, patience_s=patience_s
            )
            stands = patience_s is not None and quiet_s > patience_s
            if stands and not self._has_told_of_stall:
                self._next_telling = 0.0  # within a minute, however rarely targets are told of the rest
            self._has_told_of_stall = stands

    def _patience_in_column(self) -> float | None:
        """Return the time without data after which the rig stands still, in seconds; None where no column has begun.

        That is the setting, or three times as long as the rig needs for a tile or has ever paused in a column.
        """
        begun = self.watcher.incomplete()
        if not begun:
            return None
        scan = self.project.config.scan
        a_lines, b_lines = scan.tile_shape(self.project.layout.illumination_index(begun[-1].batch.mosaic))
        tile_s = a_lines * b_lines / scan.line_rate_hz
        return max(self.project.deployment.column_alarm_s, 3 * tile_s, 3 * self.watcher.longest_pause_s())

    def leave(self) -> None:
        """End watching because somebody wants it: nobody is to be told that the watcher is silent."""
        if self.live:
            forget_acquisition(self.project)

    def _look_for_room(self) -> None:
        """Raise OSError where the project's disk is full, which the flow runs alone would find out."""
        free, folder = shutil.disk_usage(self.project.paths.base).free, self.project.paths.base
        if free < _FULL_BYTES:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({free >> 20} MiB left)", str(folder))

    def _tell(self) -> None:
        """Tell targets what they have not been told, and what lasts: a rig that stands still, a disk that fills up."""
        try:
            look = notifier(self.project, say=_log.info, warn=_log.warning)
            lasting = conditions(self.project, raw_folder=self.watcher.folder)
            tell_milestones(self.project, look, also=lasting, progress=self._progress)
        except (OpticStreamError, OSError) as error:  # the next look tries again
            _log.warning("targets could not be told what is left to tell: %s", error)

    @contextmanager
    def _bearing_trouble(self) -> Iterator[None]:
        try:
            yield
        except (InputError, OSError) as error:
            if not self._has_seen_folder:
                raise
            self.trouble = self.trouble or str(error)

    def ready(self, found: FoundBatch, /) -> None:
        """Record that a batch is ready and announce it; the sweep does so again if the server cannot be reached."""
        facts, event = self.project.facts, self._event(found)
        content = ready_content(self.project, event)
        recorded = facts.record(found.batch, "ready", content)
        if not recorded and not _is_announced(self.project, found.batch):
            facts.replace(found.batch, "ready", content, why="its flag could not be read")
            recorded = True
        if recorded:
            if self._takes_tiles:
                note_arriving(self.project, event)
            self._called.pop(found.batch, None)
            self._send([event])

    def _event(self, found: FoundBatch) -> BatchReady:
        return self.project.event(
            BatchReady,
            found.batch,
            raw_folder=str(self.watcher.folder.absolute()),
            files=found.files,
            spectra=found.spectra,
            problems=found.problems,
        )

    def _send(self, events: list[Event]) -> None:
        try:
            self._announce(events)
        except ServerError:  # the facts are recorded, and the sweep announces what rests on them
            self._next_sweep = 0.0

    def _tell_of_arriving_tiles(self) -> None:
        """Note the tiles of columns that are not complete, and announce those that no run looks after."""
        for found in self.watcher.arriving():
            known = note_arriving(self.project, self._event(found), unsettled=found.unsettled)
            waiting = waiting_in(self.project, known)
            if waiting and not self._is_worked_on(found.batch) and not self._is_behind(found.batch):
                self._announce_tiles(found.batch, waiting)

    def _tell_of_beginning_columns(self) -> None:
        """Call a run for a column whose first tile is half written, so that it is there when the tile is whole."""
        for tile in self.watcher.beginning():
            batch = self.project.layout.batch_of(tile)
            if batch in self._called or self._is_worked_on(batch) or self._is_behind(batch):
                continue
            if arriving(self.project, batch) is None:
                note_arriving(self.project, self._event(FoundBatch(batch, {}, {}, {})))
            self._called[batch] = _Called(frozenset(), 0, _CALLED_AGAIN_S, time.monotonic() + _CALLED_AGAIN_S)
            self._send([self.project.event(TileBegun, tile)])

    def _is_behind(self, batch: BatchId) -> bool:
        """Return whether a column before this one waits for its run, so that a run for this one would only wait, too.

        When its turn comes it is complete, or it is announced then: one run for it instead of two.
        """
        before = takewhile(lambda known: known.batch < batch, all_arriving(self.project))
        return any(not self._is_worked_on(known.batch) and waiting_in(self.project, known) for known in before)

    def _is_worked_on(self, batch: BatchId) -> bool:
        return self.project.facts.is_worked_on(batch, PROCESS_BATCH.claim)

    def _announce_tiles(self, batch: BatchId, waiting: list[TileId]) -> None:
        """Announce the first of the tiles that wait, unless a run that knows of them is on its way, or has been there.

        A run that has died, or never came, is called again, with growing delays.
        """
        now, event = time.monotonic(), self.project.event(TileBegun, waiting[0])
        holder = self.project.facts.holder(batch, PROCESS_BATCH.claim)
        attempt = 0 if holder is None else holder.generation
        called = self._called.get(batch)
        wait_s = _CALLED_AGAIN_S
        if called is not None and called.tiles.issuperset(waiting):
            has_come = attempt > called.attempt and holder is not None and holder.state == "released"
            if has_come or now < called.again_s or self.is_queued(event):
                return
            wait_s = min(2 * called.wait_s, LONGEST_WAIT_S)
        elif called is not None and attempt == called.attempt and now < called.again_s:
            return  # the run that is on its way takes this tile, too
        self._called[batch] = _Called(frozenset(waiting), attempt, wait_s, now + wait_s)
        self._send([event])

    def pause_s(self, poll_s: float, step_s: float) -> float:
        """Return the time until the next step, in seconds: short while tiles are taken as they come.

        Parameters
        ----------
        poll_s : float
            Longest time, in seconds.
        step_s : float
            What the last step took, in seconds: looking takes a small share of the time, however large a folder is.
        """
        if not self._takes_tiles:
            return poll_s
        return min(poll_s, max(_TILE_POLL_S, _STEPS_APART * step_s))

    def _take_late_tiles(self) -> None:
        """Take files that have come, or were replaced, since their tiles failed for want of them."""
        if not self._parked:
            return
        self.watcher.look_again_at(self._parked)
        for batch, tiles in self._late_tiles().items():
            others = {tile for tile in self._parked if self.project.layout.batch_of(tile) == batch} - set(tiles)
            if others and self.watcher.quiet_s(batch) < min(_LATE_QUIET_S, self.project.deployment.stall_s):
                continue  # more may be on their way: the batch is done again once, not for each
            found = self._event(self.watcher.found_again(batch))
            events = take_again(self.project, batch, tiles, found)
            if events is not None:  # else somebody works on the batch
                self._taken |= tiles
                self._send(events)

    def _late_tiles(self) -> dict[BatchId, dict[TileId, str]]:
        late: dict[BatchId, dict[TileId, str]] = {}
        found = repaired_tiles(self.project, self._parked, self.watcher.folder, self.watcher.whole_files)
        for tile, identity in found.items():
            if self._taken.get(tile) != identity:  # else its batch is announced, and will be done again
                late.setdefault(self.project.layout.batch_of(tile), {})[tile] = identity
        return late

    def _end_waiting(self) -> None:
        patience_s = self.project.deployment.stall_s
        if not self.live:
            if self.waits_for_files():
                return
            patience_s = 0.0
        self._send(end_waiting(self.project, self.project.facts.snapshot(), patience_s=patience_s))

    def waits_for_files(self) -> bool:
        """Return whether files that have come are still to be taken, or more may come."""
        return bool(self._unrecorded) or self.watcher.waits() or bool(self._late_tiles())

    def progress(self) -> ProjectProgress:
        """Return how far the project is, or was when its facts could last be read."""
        with self._bearing_trouble():
            snapshot = self.project.facts.snapshot()
            if snapshot != self._last_snapshot:
                self._last_snapshot, self._changed_s = snapshot, time.monotonic()
            self._progress = project_progress(self.project, snapshot)
            self._parked = tuple(f.item for f in self._progress.failures if isinstance(f.item, TileId))
        return self._progress or ProjectProgress(self.project.config.name, (), (), ())

    def is_finished(self) -> bool:
        """Return whether everything that was found has come to its end."""
        finished = False
        with self._bearing_trouble():
            finished = not self._unrecorded and is_finished(self.project, self.project.facts.snapshot())
        return finished  # noqa: RET504  (trouble inside the block leaves it False)

    def gives_up(self) -> bool:
        """Return whether nothing goes on any longer although something is left to do; `undone` then tells what.

        That is so when no fact has changed for `OPTICSTREAM_GIVE_UP_S`, nobody works on anything, and no flow run of
        the project waits or runs.
        """
        if time.monotonic() - self._changed_s < self.project.deployment.give_up_s:
            return False
        with self._bearing_trouble():
            facts, snapshot = self.project.facts, self.project.facts.snapshot()
            claims = ((item, fact) for item, fact in snapshot if is_claim(fact))
            if self._runs_left() or any(facts.is_worked_on(item, claim) for item, claim in claims):
                self._changed_s = time.monotonic()
                return False
            pending = pending_announcements(self.project, snapshot)
            self.undone = [f"{e.item}: {e.event_name()} was announced, and nothing came of it" for e in pending]
            self.undone += [f"{s.item}: {s.what}: {s.why}" for s in stuck_items(self.project, snapshot)]
        self.undone = self.undone or [self.trouble or "results are missing; `opticstream state verify` tells more"]
        return True

    def finish(self, *, say: Callable[[str], object] = lambda _line: None) -> None:
        """Wait until the flow runs of the project have ended, then bring what people see up to date.

        The last announcements are worked off by then. What an earlier life of the project has not told, or not shown,
        because it ended too soon, is told and shown now. The wait ends after the window of the looking flows and a
        minute; what still runs then is named.
        """
        end = time.monotonic() + self.project.deployment.collapse_s + _FINISH_S
        left = self._runs_left()
        while left and time.monotonic() < end:
            time.sleep(0.5)
            left = self._runs_left()
        if left:
            say(f"not waiting any longer for flow runs {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}")
        show_final_state(self.project, announce=self._send, say=say)

    def _runs_left(self) -> list[str]:
        return unfinished_runs(self.project.config.name)

    def incomplete(self) -> list[IncompleteBatch]:
        """Return the batches that have not come whole."""
        return self.watcher.incomplete()


def _is_announced(project: Project, batch: BatchId) -> bool:
    """Return whether a batch was handed on before, in a way that others can read."""
    return any(project.facts.has(batch, fact) for fact in BATCH_ENDED) or ready_event(project, batch) is not None
