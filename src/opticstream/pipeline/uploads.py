"""Publish results in the local archive tree, and upload what is there to the remote targets.

The queue follows from the facts: everything that is archived, stitched or registered and not yet published, and
everything that is published and not yet uploaded. A run handles the whole queue, so that a burst of events costs one
run and a lost event only costs time. Publication never waits for uploads: it goes on between the files of an upload.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from opticstream.config import DeploymentSettings
from opticstream.config.hours import is_within
from opticstream.config.publish_targets import PublishTarget, What
from opticstream.model.chain import Step, chain
from opticstream.model.errors import (
    ChangingStacksError,
    ConfigurationError,
    InputError,
    StateError,
    TargetUnavailable,
    UploadError,
)
from opticstream.model.events import Event
from opticstream.model.ids import BatchId, ItemId, SampleId
from opticstream.pipeline.bindings import due_items
from opticstream.pipeline.failures import describe, kind_of
from opticstream.pipeline.jobs import Attempt, Result, Skipped, announcements, once, perform
from opticstream.pipeline.project import Project
from opticstream.pipeline.publishing import bids_dataset, publish_files
from opticstream.pipeline.stacking import leave_out_parked_slices
from opticstream.pipeline.stale import stale_results
from opticstream.pipeline.under_way import shown_under_way
from opticstream.publish.ledger import Asset, Ledger
from opticstream.publish.opening import ReadSecret, open_remote_target
from opticstream.publish.pace import Pace
from opticstream.publish.patience import Patience
from opticstream.publish.secrets import secret_from_environment
from opticstream.publish.target import RemoteTarget
from opticstream.publish.transfer import Published, Transfer
from opticstream.state import Claim, FactsSnapshot, FileRecord
from opticstream.state.record import sha256_of_path

TakeSlots = Callable[[int, Callable[[], object]], AbstractContextManager[int]]
"""Returns a context with the number of transfers that may be under way at the same time, of those that are wanted.
While none may, the callable is called now and then. Raises TargetUnavailable if that takes too long."""
_SHARE_BYTES = 2**30
"""Files that are sent with the same slots, in bytes: then other hosts may be next."""
_LOOK_AGAIN_S = 5.0
"""Time between two looks for results to publish during an upload, in seconds."""
_DATASET_ATTEMPTS = 5
"""How often a file of all items is sent that other processes change meanwhile."""


def upload_queue(project: Project, snapshot: FactsSnapshot, /) -> list[tuple[ItemId, Step]]:
    """Return what waits for publication or upload, with the step that does it: small files before large ones."""
    return [
        (item, step)
        for step in chain().steps
        if step.publishes
        for item in due_items(project, step, snapshot, snapshot.items(step.hierarchy))
    ]


def upload_pending(
    project: Project,
    /,
    *,
    attempt: Attempt = once,
    secrets: ReadSecret = secret_from_environment,
    only: Callable[[ItemId], bool] = lambda _item: True,
    targets: Collection[str] | None = None,
    show: Callable[[], object] = lambda: None,
    slots: TakeSlots = lambda wanted, _meanwhile: nullcontext(wanted),
) -> Iterator[Event]:
    """Publish and upload everything that waits, and yield the events to announce as it happens.

    Parameters
    ----------
    project : Project
        The project.
    attempt : Attempt
        Runs the work on the local archive tree, with retries where the caller wants them.
    secrets : callable
        Finds the credentials of the targets.
    only : callable
        Whether an item is to be uploaded.
    targets : collection of str, optional
        Upload to these targets only. An item is `uploaded` once all of its targets hold it.
    show : callable
        Called now and then during uploads, to show how far they are.
    slots : TakeSlots
        Keeps the transfers of all hosts within a limit; default: none but the host's own.
    """
    yield from _publish_due(project, attempt)
    uploads = _Uploads(project, secrets, targets, partial(_publish_due, project, attempt), show, slots)
    tried: set[tuple[ItemId, str]] = set()
    while True:
        queue = [
            (item, step)
            for item, step in upload_queue(project, project.facts.snapshot())
            if step.uploads and (item, step.name) not in tried and only(item)
        ]
        end = time.monotonic() + _LOOK_AGAIN_S  # then smaller files may wait that were not there before
        for item, step in queue:
            tried.add((item, step.name))
            if not (project.facts.has(item, step.after) and uploads.may_go(item)):
                continue
            outcome = perform(project, item, step, partial(uploads.upload, item, step))
            yield from announcements(project, item, step, outcome)
            yield from uploads.published_meanwhile()
            if time.monotonic() > end:
                break
        else:
            uploads.send_lost_dataset_files()
            return


def _publish_due(project: Project, attempt: Attempt) -> Iterator[Event]:
    """Publish everything that waits in the local archive tree."""
    for item, step in upload_queue(project, project.facts.snapshot()):
        if step.uploads or not project.facts.has(item, step.after):  # withdrawn in the meantime
            continue
        if isinstance(item, SampleId):
            leave_out_parked_slices(project)
        work = partial(_publish, project, item, step.after, attempt)
        yield from announcements(project, item, step, perform(project, item, step, work))


def _publish(project: Project, item: ItemId, fact: str, attempt: Attempt, _claim: Claim) -> Result | Skipped:
    record = project.facts.read(item, fact)
    if record is None:
        raise StateError(f"{item} is no longer {fact}")
    try:
        published = attempt(f"publish {item}", lambda: publish_files(project, item, record.outputs))
    except ChangingStacksError as error:
        return Skipped(str(error))
    return Result(outputs=published)


class _Uploads:
    """The uploads of one run: its open targets, those that do not answer, and what it has published meanwhile."""

    def __init__(
        self,
        project: Project,
        secrets: ReadSecret,
        targets: Collection[str] | None,
        publish: Callable[[], Iterator[Event]],
        show: Callable[[], object],
        slots: TakeSlots,
    ) -> None:
        self._project = project
        self._slots = slots
        self._show = show
        self._secrets = secrets
        self._publish = publish
        self._events: deque[Event] = deque()
        self._looked = time.monotonic()
        self._open: dict[str, tuple[RemoteTarget, Ledger]] = {}
        self._sent: dict[tuple[str, str], str] = {}
        names = [settings.target_name for settings in project.config.publish.targets]
        left_out = [] if targets is None else [name for name in names if name not in targets]
        self._unavailable = {name: TargetUnavailable(f"{name}: was not chosen") for name in left_out}
        self._pace = Pace(partial(rate_now, project.deployment))

    def upload(self, item: ItemId, step: Step, claim: Claim) -> Result | Skipped:
        """Have every target that receives an item hold it, and return what to record.

        It stays due if a target does not answer, and does not count as failed.
        """
        files = files_to_upload(self._project, item, step)
        held: dict[str, list[Asset]] = {}
        receiving = self._project.config.publish.receiving(what_of(item))
        for settings in receiving:
            name = settings.target_name
            try:
                if error := self._unavailable.get(name):
                    raise error
                held[name] = self._send(settings, item, step, files, claim)
            except TargetUnavailable as error:
                if name not in self._unavailable:
                    self._unavailable[name] = error
                    self._project.facts.journal.failed(
                        item, None, why=describe(error), kind=kind_of(error), stage=step.name
                    )
        if missing := [str(self._unavailable[s.target_name]) for s in receiving if s.target_name not in held]:
            return Skipped("; ".join(missing))
        targets = {
            name: {"place": self._open[name][0].place, "assets": [asset.to_json() for asset in assets]}
            for name, assets in held.items()
        }
        outputs = [FileRecord(self._project.paths.relative(file.path), file.size, file.sha256) for file in files]
        return Result(outputs=outputs, detail={"targets": targets})

    def may_go(self, item: ItemId) -> bool:
        """Return whether a target that receives an item has not been found silent by this run."""
        receiving = self._project.config.publish.receiving(what_of(item))
        return any(settings.target_name not in self._unavailable for settings in receiving)

    def published_meanwhile(self) -> Iterator[Event]:
        """Yield what is to be announced of the results that were published during uploads."""
        while self._events:
            yield self._events.popleft()

    def _send(
        self, settings: PublishTarget, item: ItemId, step: Step, files: list[Published], claim: Claim
    ) -> list[Asset]:
        target, ledger = self._target(settings)
        total = sum(file.size for file in files)
        with shown_under_way(self._project, item, step, target.name, total) as shown:

            def passed(size: int) -> None:
                claim.ensure_mine()
                shown(size)
                if time.monotonic() - self._looked > _LOOK_AGAIN_S:
                    self._events.extend(self._publish())
                    self._show()
                    self._looked = time.monotonic()

            wanted = self._project.deployment.upload_transfers
            assets: list[Asset] = []
            for share in _shares(files):
                with self._slots(wanted, lambda: passed(0)) as threads:
                    transfer = Transfer(target, ledger, self._pace, threads, passed)
                    self._send_dataset_files(transfer)
                    assets += [transfer.send(file) for file in share]
            return assets

    def _send_dataset_files(self, transfer: Transfer) -> None:
        """Send the files that belong to all items, such as tables of samples, unless this run has just sent them.

        They are in no item's record, because every item may change them; the ledger knows them.
        """
        for file in dataset_files(self._project, transfer.target.name):
            for attempt in reversed(range(_DATASET_ATTEMPTS)):
                sha256 = sha256_of_path(file.path)
                if self._sent.get((transfer.target.name, file.key)) == sha256:
                    break
                try:
                    sent = replace(transfer, passed=lambda _size: None).send(replace(file, sha256=sha256))
                except InputError:  # another process has added a row meanwhile
                    if not attempt:
                        raise
                    continue
                self._sent[transfer.target.name, file.key] = sent.sha256
                break

    def send_lost_dataset_files(self) -> None:
        """Send the files that belong to all items to the targets that were found to have lost them."""
        for settings in self._project.config.publish.targets:
            name = settings.target_name
            held = Ledger(self._project.paths.base, name).assets()
            lost = [file for file in dataset_files(self._project, name) if file.key not in held]
            if not (held and lost) or name in self._unavailable:
                continue
            try:
                target, ledger = self._target(settings)
                with self._slots(1, lambda: None) as threads:
                    self._send_dataset_files(Transfer(target, ledger, self._pace, threads))
            except (ConfigurationError, UploadError) as error:
                self._project.facts.journal.failed(
                    SampleId(), None, why=describe(error), kind=kind_of(error), stage="upload"
                )

    def _target(self, settings: PublishTarget) -> tuple[RemoteTarget, Ledger]:
        name = settings.target_name
        if name not in self._open:
            patience = Patience(self._project.deployment.upload_patience_s)
            target = open_remote_target(settings, self._secrets, patience)
            self._open[name] = (target, Ledger(self._project.paths.base, name))
        return self._open[name]


def _shares(files: Sequence[Published]) -> list[list[Published]]:
    """Return files, in their order, in shares that are not large; a large file is one of its own."""
    shares: list[list[Published]] = [[]]
    for file in files:
        if shares[-1] and sum(one.size for one in shares[-1]) + file.size > _SHARE_BYTES:
            shares.append([])
        shares[-1].append(file)
    return shares


def what_of(item: ItemId, /) -> What:
    """Return what the files of an item are: those of a batch are copies of raw tiles, all others are derivatives."""
    return "raw" if isinstance(item, BatchId) else "derivatives"


def files_to_upload(project: Project, item: ItemId, step: Step, /) -> list[Published]:
    """Return the files of an upload in the archive tree, with the checksums of the results that they are copies of.

    Raises
    ------
    StateError
        The item is no longer published.
    """
    published = project.facts.read(item, step.after)
    if published is None:
        raise StateError(f"{item} is no longer {step.after}")
    publishing = chain().step_of(item, step.after)
    source = None if publishing is None else project.facts.read(item, publishing.after)
    sums = {Path(file.path).name: file.sha256 for file in source.outputs} if source else {}
    files = []
    for file in published.outputs:
        path = project.paths.absolute(file.path)
        key = path.relative_to(project.paths.archive_root).as_posix()
        files.append(Published(path, key, file.size, file.sha256 or sums.get(path.name)))
    return sorted(files, key=lambda one: (one.size, one.key))


def dataset_files(project: Project, target: str, /) -> list[Published]:
    """Return the files of the archive that belong to all items, as a target receives them."""
    dataset = bids_dataset(project)
    settings = next((one for one in project.config.publish.targets if one.target_name == target), None)
    if dataset is None or settings is None:
        return []
    root = project.paths.archive_root
    return [
        Published(path, path.relative_to(root).as_posix(), path.stat().st_size)
        for path in dataset.files(results="derivatives" in settings.what)
    ]


def rate_now(deployment: DeploymentSettings, /, *, now: datetime | None = None) -> float | None:
    """Return the bytes per second that one upload run may send now; None for no limit."""
    rate = deployment.upload_rate
    if deployment.upload_rate_night is not None and is_within(deployment.upload_night, now or datetime.now()):
        rate = deployment.upload_rate_night
    return None if rate is None else rate / deployment.upload_limit


def release_uploads(project: Project, chosen: Callable[[ItemId], bool], /) -> int:
    """Withdraw uploads that are parked as failed, or went elsewhere than they would now; return how many facts."""
    snapshot = project.facts.snapshot()
    withdrawn = 0
    for step in (step for step in chain().steps if step.uploads):
        for item in filter(chosen, snapshot.items(step.hierarchy)):
            if step.failed is not None and snapshot.has(item, step.failed):
                withdrawn += project.facts.withdraw(item, step.failed, reason="opticstream upload")
    for stale in stale_results(project, snapshot):
        step_of_stale = chain().step_of(stale.item, stale.fact)
        if step_of_stale is not None and step_of_stale.uploads and chosen(stale.item):
            withdrawn += project.facts.withdraw(stale.item, stale.fact, reason="; ".join(stale.why))
    return withdrawn
