"""Figures for Prometheus: how far projects are, how long stages take, what fails, and the disks of this host.

Counters and times of stages come from the journal of this host, so that they survive restarts and are counted on one
host only; everything else is read from the flag files of the projects, on each host that shows figures. Queries take
the `max` over hosts there.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from opticstream.model.chain import chain
from opticstream.model.errors import OpticStreamError
from opticstream.model.ids import TileId
from opticstream.pipeline.acquisition import acquisitions
from opticstream.pipeline.arriving import waiting_tiles
from opticstream.pipeline.bindings import due_items
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import BATCH_ENDED
from opticstream.pipeline.under_way import uploads_under_way
from opticstream.state import FactsSnapshot
from opticstream.state.journal import JournalEntry
from opticstream.system.host import HostIdentity

PREFIX = "opticstream"
BUCKETS_S = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)
"""Upper limits of the classes of stage times, in seconds."""
_LOOK_EVERY_S = 15.0
_LARGEST_SHARE = 0.04
"""Largest share of a processor that looking at the projects may take."""
_log = logging.getLogger(__name__)


@dataclass
class _Journal:
    """What was read of the journal of this host in one project."""

    positions: dict[Path, int] = field(default_factory=dict)
    tiles: int = 0
    a_lines: int = 0
    raw_bytes: int = 0
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number by kind and stage."""
    times: dict[str, list[int]] = field(default_factory=dict)
    """Number in each class of times, by stage; the last one is above all limits."""
    sums: dict[str, float] = field(default_factory=dict)

    def read(self, project: Project, host: str) -> None:
        """Take in what was written since the last call."""
        for path in sorted(project.facts.journal.folder.glob("*.jsonl")):
            position = self.positions.get(path, 0)
            with path.open("rb") as file:
                file.seek(position)
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]  # the last line may be half written
            self.positions[path] = position + len(whole)
            for line in whole.splitlines():
                try:
                    entry = JournalEntry.from_line(line)
                except ValueError:
                    continue
                if entry.host == host:
                    self._take(project, entry)

    def _take(self, project: Project, entry: JournalEntry) -> None:
        if entry.event == "failed":
            self.failures[str(entry.detail.get("kind", "unknown")), str(entry.detail.get("stage", "unknown"))] += 1
        if entry.event != "computed" or entry.fact is None:
            return
        step = chain().step_of(entry.item, entry.fact)
        is_tile = isinstance(entry.item, TileId)
        stage = "tile" if is_tile else entry.fact if step is None else f"{step.name} ({step.hierarchy})"
        if entry.duration_s is not None:
            counts = self.times.setdefault(stage, [0] * (len(BUCKETS_S) + 1))
            counts[sum(entry.duration_s > limit for limit in BUCKETS_S)] += 1
            self.sums[stage] = self.sums.get(stage, 0.0) + entry.duration_s
        if isinstance(entry.item, TileId) and entry.fact == "processed":
            scan = project.config.scan
            a_lines, b_lines = scan.tile_shape(project.layout.illumination_index(entry.item.mosaic))
            self.tiles += 1
            self.a_lines += a_lines * b_lines
            self.raw_bytes += 2 * scan.samples * scan.channels * a_lines * b_lines


class ProjectCollector:
    """Shows the figures of projects; see `prometheus_client.registry.Collector`.

    Parameters
    ----------
    projects : callable
        Returns the projects; asked again at every look, because projects are registered while a worker runs.
    folders : sequence of Path
        Folders whose disks are shown besides those of the projects.
    more : callable
        Returns further figures.
    clock : callable
        Returns the time, in seconds since 1970.
    """

    def __init__(
        self,
        projects: Callable[[], Iterable[Project]],
        /,
        *,
        folders: Sequence[Path] = (),
        more: Callable[[], Iterable[Metric]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._projects = projects
        self._more = more
        self._folders = tuple(folders)
        self._clock = clock
        self._journals: dict[str, _Journal] = {}
        self._shown: list[Metric] = []
        self._next_look = 0.0
        self._lock = threading.Lock()

    def collect(self) -> list[Metric]:
        """Return the figures, from a look at the facts that is a few seconds old at most, longer for large projects."""
        with self._lock:
            if time.monotonic() >= self._next_look:
                begin = time.thread_time()
                self._shown = self._look()
                used_s = time.thread_time() - begin
                self._next_look = time.monotonic() + max(_LOOK_EVERY_S, used_s / _LARGEST_SHARE)
            return [*self._shown, *_host_figures()]

    def _look(self) -> list[Metric]:
        families = _families()
        folders = list(self._folders)
        try:
            projects = list(self._projects())
        except Exception as error:  # a server that does not answer; figures of the host are shown all the same
            _log.warning("projects could not be listed for figures: %s", error)
            projects = []
        families["projects"].add_metric([], len(projects))
        for project in projects:
            try:
                self._add_project(families, project)
                folders += [project.paths.base, project.paths.archive_root]
            except (OpticStreamError, OSError) as error:  # one project must not hide the others
                _log.warning("%s has no figures: %s", project.config.name, error)
        for folder in dict.fromkeys(folders):
            try:
                usage = shutil.disk_usage(folder)
            except OSError:
                continue
            families["disk_free_bytes"].add_metric([str(folder)], usage.free)
            families["disk_bytes"].add_metric([str(folder)], usage.total)
        return [*families.values(), *self._more()]

    def _add_project(self, families: dict[str, Any], project: Project) -> None:
        name, snapshot = project.config.name, project.facts.snapshot()
        progress = project_progress(project, snapshot)
        tiles = families["tiles"]
        tiles.add_metric([name, "processed"], sum(mosaic.tiles_processed for mosaic in progress.mosaics))
        tiles.add_metric([name, "failed"], sum(mosaic.tiles_failed for mosaic in progress.mosaics))
        for family, states in (
            ("mosaics", [mosaic.state for mosaic in progress.mosaics]),
            ("slices", [slice_.state for slice_ in progress.slices]),
        ):
            for state, count in sorted(Counter(states).items()):
                families[family].add_metric([name, state], count)
        families["parked"].add_metric([name], len(progress.failures))
        for step in chain().steps:
            if not step.claimed_on_sample:
                items = snapshot.items(step.hierarchy)
                waiting = sum(1 for _ in due_items(project, step, snapshot, items))
                families["queue"].add_metric([name, f"{step.name} ({step.hierarchy})"], waiting)
        families["tiles_waiting"].add_metric([name], len(waiting_tiles(project)))
        families["lag_seconds"].add_metric([name], self._lag_s(project, snapshot))
        for seen in acquisitions(project):
            quiet_s = self._clock() - seen.last_data if seen.open_columns else 0.0
            families["acquisition_quiet_seconds"].add_metric([name, seen.host], quiet_s)
        for upload in uploads_under_way(project):
            rate = upload.done_bytes / max(upload.updated - upload.since, 1.0)
            families["upload_bytes_per_second"].add_metric([name, upload.target], rate)
        self._add_journal(families, project)

    def _lag_s(self, project: Project, snapshot: FactsSnapshot) -> float:
        """Return the age of the oldest tile, or column, that has arrived and is not processed; 0 without any."""
        times = [since for since, _, _ in waiting_tiles(project)]
        for batch in snapshot.items("batch"):
            if snapshot.has(batch, "ready") and not snapshot.reached([batch], *BATCH_ENDED):
                try:
                    times.append(project.facts.path(batch, "ready").stat().st_mtime)
                except OSError:
                    continue
        return max(0.0, self._clock() - min(times)) if times else 0.0

    def _add_journal(self, families: dict[str, Any], project: Project) -> None:
        name = project.config.name
        journal = self._journals.setdefault(str(project.paths.base), _Journal())
        journal.read(project, HostIdentity.current().host)
        families["tiles_done"].add_metric([name], journal.tiles)
        families["a_lines"].add_metric([name], journal.a_lines)
        families["raw_bytes"].add_metric([name], journal.raw_bytes)
        for (kind, stage), count in sorted(journal.failures.items()):
            families["failures"].add_metric([name, kind, stage], count)
        for stage, counts in sorted(journal.times.items()):
            total, buckets = 0, []
            for limit, count in zip([*map(str, map(float, BUCKETS_S)), "+Inf"], counts, strict=True):
                total += count
                buckets.append((limit, total))
            families["stage_seconds"].add_metric([name, stage], buckets, journal.sums[stage])


def _families() -> dict[str, Any]:
    def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)

    def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)

    return {
        "projects": gauge("projects", "Projects that this host sees."),
        "tiles": gauge("tiles", "Tiles that are processed, or parked as failed.", "project", "outcome"),
        "mosaics": gauge("mosaics", "Mosaics in each state.", "project", "state"),
        "slices": gauge("slices", "Slices in each state.", "project", "state"),
        "parked": gauge("parked", "Items that are parked as failed.", "project"),
        "queue": gauge("queue", "Items for which a step is due.", "project", "step"),
        "tiles_waiting": gauge("tiles_waiting", "Tiles that have come and are not processed.", "project"),
        "lag_seconds": gauge("lag_seconds", "Age of the oldest tile, or column, that is not processed.", "project"),
        "acquisition_quiet_seconds": gauge(
            "acquisition_quiet_seconds", "Time without new data while columns are missing.", "project", "watcher"
        ),
        "upload_bytes_per_second": gauge(
            "upload_bytes_per_second", "Rate of an upload that is under way.", "project", "target"
        ),
        "disk_free_bytes": gauge("disk_free_bytes", "Free space of the disk of a folder.", "folder"),
        "disk_bytes": gauge("disk_bytes", "Size of the disk of a folder.", "folder"),
        "tiles_done": counter("tiles_done", "Tiles that this host has processed.", "project"),
        "a_lines": counter("a_lines", "A-lines that this host has processed.", "project"),
        "raw_bytes": counter("raw_bytes", "Raw data that this host has processed, as 16-bit samples.", "project"),
        "failures": counter("failures", "Attempts that have failed on this host.", "project", "kind", "stage"),
        "stage_seconds": HistogramMetricFamily(
            f"{PREFIX}_stage_seconds", "Time that a stage takes on this host.", labels=("project", "stage")
        ),
    }


def _host_figures() -> Iterator[Metric]:
    """Yield load and memory of this host, as the operating system tells them now."""
    import psutil

    memory = psutil.virtual_memory()
    figures = (
        ("host_cpu_seconds_total", "Time that the processors of this host have worked.", _busy_s(psutil.cpu_times())),
        ("host_cpus", "Processors of this host.", float(psutil.cpu_count() or 1)),
        ("host_memory_bytes", "Memory of this host.", float(memory.total)),
        ("host_memory_available_bytes", "Memory of this host that programs can have.", float(memory.available)),
    )
    for name, text, value in figures:
        if name.endswith("_total"):
            yield CounterMetricFamily(f"{PREFIX}_{name.removesuffix('_total')}", text, value=value)
        else:
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _busy_s(times: object) -> float:
    known = times._asdict()  # type: ignore[attr-defined]
    return float(sum(value for name, value in known.items() if name not in ("idle", "iowait", "guest", "guest_nice")))


def serve_metrics(
    port: int,
    projects: Callable[[], Iterable[Project]],
    /,
    *,
    host: str = "127.0.0.1",
    folders: Sequence[Path] = (),
    more: Callable[[], Iterable[Metric]] = tuple,
) -> Callable[[], None]:
    """Serve the figures at ``http://{host}:{port}/metrics`` from a thread, and return a function that ends that.

    `projects`, `folders` and `more` are those of `ProjectCollector`.

    Raises
    ------
    OSError
        The port is taken, or may not be used.
    """
    registry = CollectorRegistry(auto_describe=False)
    collector = ProjectCollector(projects, folders=folders, more=more)
    registry.register(collector)
    server, thread = start_http_server(port, addr=host, registry=registry)

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
