"""Kills processes of a lab in the middle of its work, and measures how long it takes to recover."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx

from opticstream.config import load_project
from opticstream.model.ids import BatchId, ItemId, SampleId, SliceId
from opticstream.pipeline.progress import is_finished
from opticstream.pipeline.project import Project
from opticstream.sim.demo import PROJECT_FILE
from opticstream.state.claims import Holder
from opticstream.state.vocabulary import is_claim
from opticstream.testing.chaos.lab import Lab, Service, kill
from opticstream.testing.chaos.outcome import Outcome, checksums
from opticstream.testing.chaos.schedule import Stage, Strike
from opticstream.testing.checksums import while_at_work

LIMIT_S = 1500.0
"""Longest time from the start to the end of a project, in seconds."""
_LOOK_S = 0.01
_DYING_S = 5.0
_SPAN_S: dict[Stage, tuple[float, float]] = {
    "tile": (0.0, 0.2), "batch": (0.0, 0.3), "mosaic": (0.0, 0.8), "volume": (0.0, 0.7),
    "register": (0.0, 0.5), "axis": (0.6, 1.0), "sample": (0.0, 0.4), "upload": (0.0, 0.02),
}  # fmt: skip
"""When a stage of the small demo begins and ends, in seconds after its claim is seen. Only the aim depends on it."""

Work = tuple[ItemId, str]
"""An item and a claim on it."""


@dataclass
class Kill:
    """One kill and its consequences."""

    strike: Strike
    time: datetime
    running: list[Work]
    """Claims that lived at the moment of the kill."""
    killed: list[Work]
    """Claims whose holder died by it."""
    takeover_s: float | None = None
    """Time until another process had taken over all killed work; None if there was none."""
    next_item_s: float | None = None
    """Time until the next piece of work was completed; None after the last one."""

    def __str__(self) -> str:
        hit = ", ".join(f"{work} of {item}" for item, work in self.killed) or "nothing in hand"
        return f"{self.strike}: {hit}; taken over after {self.takeover_s} s, next item after {self.next_item_s} s"


@dataclass
class Report:
    """What happened to one project."""

    kills: list[Kill] = field(default_factory=list)
    missed: list[Strike] = field(default_factory=list)
    """Strikes whose stage was over before they could be aimed."""
    broken: list[str] = field(default_factory=list)
    """Files that were found under their final name with a wrong content, right after a kill."""
    starts: dict[str, int] = field(default_factory=dict)
    flow_runs: dict[str, int] = field(default_factory=dict)
    """Flow runs by their last state; what was killed with its worker is `RUNNING` until a worker or a sweep sees it."""
    lost_claims: int = 0
    duration_s: float = 0.0


class ChaosRun:
    """One project in one lab, from the first tile to the last publication.

    Parameters
    ----------
    lab : Lab
        Its processes.
    calm : Outcome
        Of an undisturbed run: what is to be reached, and how long its steps take.
    """

    def __init__(self, lab: Lab, calm: Outcome, /, *, limit_s: float = LIMIT_S) -> None:
        self.lab = lab
        self.calm = calm
        self.project = Project.open(load_project(lab.folder / PROJECT_FILE))
        self.report = Report()
        self._end_s = time.monotonic() + limit_s
        self._works = sorted(((i, f) for i, f in calm.facts if is_claim(f)), key=str)

    def run(self, strikes: Iterable[Strike]) -> Report:
        """Strike as scheduled, wait for the end of the project, and return what happened.

        Raises
        ------
        AssertionError
            The project did not come to its end in time.
        """
        begin_s = time.monotonic()
        for strike in strikes:
            fraction = strike.fraction
            while (holder := self._aim(strike, fraction)) is not None and not self._strike(strike, holder):
                fraction /= 2  # too late: the work was over; the next time sooner
            if holder is None:
                self.report.missed.append(strike)
        while missing := self.calm.facts - frozenset(self.project.facts.snapshot()):
            self._wait(0.2, f"{len(missing)} facts are missing: {sorted(map(str, missing))[:8]}")
        while self._living() or not is_finished(self.project, self.project.facts.snapshot()):
            self._wait(0.2, "work goes on")
        self.report.duration_s = time.monotonic() - begin_s
        self.report.starts = {service.name: service.starts for service in self.lab.services}
        self.report.flow_runs = self._flow_runs()
        self._measure()
        return self.report

    # -- aiming ------------------------------------------------------------------------------------------------------

    def _aim(self, strike: Strike, fraction: float) -> Holder | None:
        """Wait until a fraction of a stage has passed and return its claim; None when the stage is over for good."""
        works = [work for work in self._works if strike.stage in _stages(work)]
        while True:
            holders = [h for work in works if (h := self.project.facts.holder(*work)) is not None]
            if len(holders) == len(works) and all(self._is_over(strike.stage, holder) for holder in holders):
                return None
            met = next((h for h in holders if self._is_met(strike.stage, h)), None)
            if met is not None and self._is_up(strike, met):
                begin_s, end_s = _SPAN_S[strike.stage]
                time.sleep(begin_s + fraction * (end_s - begin_s))
                return met
            self._wait(_LOOK_S, f"waiting for {strike}")

    def _is_over(self, stage: Stage, holder: Holder) -> bool:
        done = holder.state == "released" and holder.outcome == "done"
        return done and not (stage == "upload" and self._lives(holder))

    def _is_met(self, stage: Stage, holder: Holder) -> bool:
        if stage == "upload":  # takes milliseconds; its run goes on looking for more for some seconds
            return self._lives(holder)
        if holder.state != "alive":
            return False
        if isinstance(holder.item, BatchId):
            begun = any(self.project.facts.has(t, "processed") for t in self.project.layout.tiles(holder.item))
            return begun == (stage == "batch")
        return True

    def _lives(self, holder: Holder) -> bool:
        return self.project.facts.host.life_of(holder.host) == "alive"

    def _living(self) -> list[Holder]:
        holders = (self.project.facts.holder(*work) for work in self._works)
        return [holder for holder in holders if holder is not None and holder.state == "alive"]

    def _is_up(self, strike: Strike, holder: Holder) -> bool:
        if strike.victim in ("run", "host"):
            return True
        return (victim := self._service(strike, holder)) is not None and victim.pid is not None

    def _service(self, strike: Strike, holder: Holder) -> Service | None:
        match strike.victim:
            case "server":
                return self.lab.server
            case "watch":
                return self.lab.watch
            case "rig":
                return self.lab.rig
        try:
            group = os.getpgid(holder.host.pid)
        except ProcessLookupError:
            return None
        return next((worker for worker in self.lab.workers if worker.pid == group), None)

    # -- striking ----------------------------------------------------------------------------------------------------

    def _strike(self, strike: Strike, holder: Holder) -> bool:
        """Kill, unless the work is over or the victim does not exist."""
        running = self._living()
        service = self._service(strike, holder)
        now = datetime.now(UTC)
        if strike.stage != "upload" and (holder.item, holder.work) not in {(h.item, h.work) for h in running}:
            return False
        if strike.victim == "run":
            kill(holder.host.pid)
        elif strike.victim == "host":
            for each in self.lab.services:
                each.kill()
            for pid in self.lab.processes():
                kill(pid)
        elif service is None or not service.kill(group=strike.victim != "worker alone"):
            return False
        end_s = time.monotonic() + _DYING_S
        while strike.victim in ("run", "worker", "host") and self._lives(holder) and time.monotonic() < end_s:
            time.sleep(_LOOK_S)  # a process that waits for the disk dies when the disk has answered
        killed = [(h.item, h.work) for h in running if not self._lives(h)]
        self.report.kills.append(Kill(strike, now, [(h.item, h.work) for h in running], killed))
        for path, checksum in while_at_work(checksums(self.project.paths.base)).items():
            if self.calm.checksums.get(path) != checksum:
                self.report.broken.append(f"{path} after {strike}")
        return True

    # -- waiting and measuring ---------------------------------------------------------------------------------------

    def _wait(self, seconds: float, what: str) -> None:
        if time.monotonic() > self._end_s:
            logs = "\n".join(f"--- {s.name}\n{s.log_tail()}" for s in self.lab.services)
            raise AssertionError(f"the project did not come to its end: {what}\n{self.report.kills}\n{logs}")
        self.lab.supervise()
        time.sleep(seconds)

    def _flow_runs(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        while not self.lab.server.is_healthy():  # the last strike may have been at the server
            self._wait(0.2, "the server does not come back")
        with httpx.Client(base_url=self.lab.server.api_url, timeout=30) as client:
            while True:
                query = {"limit": 200, "offset": counts.total()}
                runs = client.post("/flow_runs/filter", json=query).raise_for_status().json()
                if not runs:
                    return dict(counts)
                counts.update(run["state"]["type"] for run in runs)

    def _measure(self) -> None:
        entries = list(self.project.facts.journal.entries())
        self.report.lost_claims = sum(entry.event == "lost" for entry in entries)
        for struck in self.report.kills:
            later = [entry for entry in entries if entry.time > struck.time]
            claims = {(e.item, e.fact): e.time for e in reversed(later) if e.event in ("claimed", "taken over")}
            waits = [_seconds(claims[work] - struck.time) for work in struck.killed if work in claims]
            struck.takeover_s = max(waits, default=None)
            struck.next_item_s = next((_seconds(e.time - struck.time) for e in later if e.event == "computed"), None)


def summary(reports: Sequence[Report], /) -> str:
    """Return what happened in some runs, as a table for people."""
    kills = [struck for report in reports for struck in report.kills]
    lines = [
        f"{len(kills)} kills in {len(reports)} projects, {sum(bool(k.killed) for k in kills)} of them of work in hand; "
        f"{sum(len(r.missed) for r in reports)} strikes found their stage over; "
        f"{sum(len(r.broken) for r in reports)} broken files",
        f"{'victim':<14}{'kills':>6}{'takeover s, median and most':>30}{'next item s, median and most':>32}",
    ]
    for victim in sorted({struck.strike.victim for struck in kills}):
        chosen = [struck for struck in kills if struck.strike.victim == victim]
        takeover = _median_and_most([k.takeover_s for k in chosen if k.takeover_s is not None])
        following = _median_and_most([k.next_item_s for k in chosen if k.next_item_s is not None])
        lines.append(f"{victim:<14}{len(chosen):>6}{takeover:>30}{following:>32}")
    stages = Counter(struck.strike.stage for struck in kills)
    lines.append("stages: " + ", ".join(f"{stage} {count}" for stage, count in stages.items()))
    runs: Counter[str] = Counter()
    starts: Counter[str] = Counter()
    for report in reports:
        runs.update(report.flow_runs)
        starts.update(report.starts)
    lines.append("flow runs: " + ", ".join(f"{state} {count}" for state, count in sorted(runs.items())))
    lines.append("starts: " + ", ".join(f"{name} {count}" for name, count in starts.items()))
    lines.append(f"claims lost: {sum(r.lost_claims for r in reports)}")
    lines.append("durations s: " + ", ".join(f"{r.duration_s:.0f}" for r in reports))
    return "\n".join(lines)


def _stages(work: Work) -> tuple[Stage, ...]:
    """Return the stages of which a claim is part."""
    item, claim = work
    if "upload" in claim or "publish" in claim:
        return ("upload",)
    if claim == "volume_started":
        return ("volume",)
    match item:
        case BatchId():
            return ("tile", "batch")
        case SliceId():
            return ("register", "axis")
        case SampleId():
            return ("sample",)
    return ("mosaic",)


def _seconds(span: timedelta) -> float:
    return round(span.total_seconds(), 2)


def _median_and_most(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} {max(values):.1f}" if values else "-"
