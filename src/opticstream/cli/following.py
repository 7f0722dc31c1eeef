"""Show the progress of a project while it is processed: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TimeElapsedColumn
from rich.text import Text

from opticstream.cli.console import err, escaped, out, styled, text_column
from opticstream.pipeline.progress import MosaicProgress, ProjectProgress

if TYPE_CHECKING:  # the driver imports Prefect, which reads its settings at once, before there is a server
    from opticstream.flows.driver import Driver


def mosaic_line(mosaic: MosaicProgress, /) -> str:
    """Return the progress of a mosaic as one line."""
    failed = f", {mosaic.tiles_failed} failed" if mosaic.tiles_failed else ""
    volumes = "" if mosaic.volume == "none" else f", volumes {mosaic.volume}"
    published = ", uploaded" if mosaic.uploaded else ", published" if mosaic.published else ""
    return (
        f"slice {mosaic.slice_id} {mosaic.illumination:<8} mosaic {mosaic.mosaic_id}: "
        f"{mosaic.tiles_processed}/{mosaic.total_tiles} tiles{failed}, {mosaic.state}{volumes}{published}"
    )


@dataclass
class Follower:
    """Show progress as it changes.

    Parameters
    ----------
    live : bool
        Draw bars on a terminal; otherwise print a line whenever something changes.
    quiet : bool
        Show nothing.
    """

    live: bool
    quiet: bool = False
    _shown: dict[str, str] = field(default_factory=dict)
    _bars: Progress | None = None
    _tasks: dict[int, object] = field(default_factory=dict)
    _begin: float = field(default_factory=time.monotonic)

    def __enter__(self) -> Follower:
        if self.live and not self.quiet:
            self._bars = Progress(text_column(), BarColumn(bar_width=24), TimeElapsedColumn(), console=err)
            self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, progress: ProjectProgress, /) -> None:
        """Show the current progress."""
        if self.quiet:
            return
        for mosaic in progress.mosaics:
            self._say(f"mosaic {mosaic.mosaic_id}", mosaic_line(mosaic), mosaic=mosaic)
        for slice_ in progress.slices:
            if slice_.state != "acquiring":
                reason = f": {slice_.reason}" if slice_.reason else ""
                stacked = ", in the sample" if slice_.stacked else ""
                published = ", uploaded" if slice_.uploaded else ", published" if slice_.published else ""
                self._say(
                    f"slice {slice_.slice_id}", f"slice {slice_.slice_id}: {slice_.state}{stacked}{published}{reason}"
                )
        for failure in progress.failures:
            key = f"{failure.item.key} {failure.fact} {failure.attempts}"
            self._say(key, styled("failed", "red"), f"{failure.item}: {failure.reason}")

    def say(self, *parts: str | Text) -> None:
        """Print one line with the time since the start."""
        if not self.quiet:
            console = self._bars.console if self._bars is not None else out
            console.print(styled(f"{time.monotonic() - self._begin:6.1f} s ", "dim"), *parts)

    def _say(self, key: str, *parts: str | Text, mosaic: MosaicProgress | None = None) -> None:
        line = " ".join(str(part) for part in parts)
        if self._bars is not None and mosaic is not None:
            if mosaic.mosaic_id not in self._tasks:
                self._tasks[mosaic.mosaic_id] = self._bars.add_task(escaped(line), total=mosaic.total_tiles)
            self._bars.update(
                self._tasks[mosaic.mosaic_id],  # type: ignore[arg-type]
                description=escaped(line),
                completed=mosaic.tiles_processed + mosaic.tiles_failed,
            )
        elif self._shown.get(key) != line:
            self.say(*parts)
        self._shown[key] = line


def follow(
    driver: Driver,
    follower: Follower,
    /,
    *,
    is_over: Callable[[], bool],
    poll_s: float = 1.0,
    check: Callable[[], object] = lambda: None,
) -> ProjectProgress:
    """Step the driver and show progress until `is_over` is true and everything that was found is finished.

    Also returns when the work has stopped making progress: `Driver.undone` lists what is left.
    """
    for event in driver.start():
        follower.say(f"resuming {event.item}: {event.event_name()}")
    trouble: str | None = None
    next_look = 0.0
    while True:
        begin = time.thread_time()
        for found in driver.step():
            if absent := [str(number) for number, problem in found.problems.items() if problem.kind == "missing"]:
                tiles = f"tile{'s' * (len(absent) > 1)} {', '.join(absent)}"
                follower.say(
                    styled("incomplete", "yellow"), f"{found.batch} is processed without {tiles}: no raw file was found"
                )
        pause_s = driver.pause_s(poll_s, time.thread_time() - begin)
        if time.monotonic() < next_look:  # tiles are looked for more often than progress is shown
            time.sleep(pause_s)
            continue
        next_look = time.monotonic() + 0.9 * poll_s
        progress = driver.progress()
        follower.show(progress)
        if driver.trouble != trouble:
            trouble = driver.trouble
            if trouble:
                follower.say(styled("waiting", "yellow"), trouble)
            else:
                follower.say("what was missing is available again")
        for stalled in driver.watcher.stalled():
            follower.say(styled("waiting", "yellow"), str(stalled))
        over = is_over()
        if over and driver.is_finished():
            driver.finish(say=follower.say)
            if is_over() and driver.is_finished():  # nothing has arrived in the meantime
                follower.show(progress := driver.progress())
                return progress
        elif (over or not driver.live) and driver.gives_up():
            return progress
        if check():
            driver.start()
        time.sleep(pause_s)
