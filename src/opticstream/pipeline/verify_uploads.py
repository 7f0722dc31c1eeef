"""Compare what remote targets hold with the records of what was uploaded, and withdraw uploads that are lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from opticstream.model.chain import Step, chain
from opticstream.model.errors import StateError, TargetUnavailable, UploadError
from opticstream.model.ids import ItemId, SampleId
from opticstream.pipeline.project import Project
from opticstream.pipeline.uploads import dataset_files
from opticstream.publish.ledger import Asset, Ledger
from opticstream.publish.opening import ReadSecret, open_remote_target
from opticstream.publish.patience import Patience
from opticstream.publish.target import RemoteTarget
from opticstream.publish.transfer import differences
from opticstream.state import FactRecord


@dataclass(frozen=True, slots=True)
class Verified:
    """One file or store of a target, and how it differs from what was uploaded; None if it does not."""

    item: ItemId
    target: str
    key: str
    problem: str | None
    step: Step | None = None
    """The upload; None for a file that belongs to all items."""
    record: FactRecord | None = None
    """Its record."""
    is_lost: bool = False
    """Whether the target has answered, and does not hold the bytes."""
    is_withdrawn: bool = False
    """Whether its upload counts as not done since."""


class OpenTargets:
    """The remote targets of a project, each opened once; one that does not answer is not asked again.

    Parameters
    ----------
    project : Project
        The project.
    secrets : callable
        Finds the credentials of the targets.
    """

    def __init__(self, project: Project, secrets: ReadSecret, /) -> None:
        self._project = project
        self._secrets = secrets
        self._settings = {one.target_name: one for one in project.config.publish.targets}
        self._open: dict[str, RemoteTarget] = {}
        self._silent: dict[str, TargetUnavailable] = {}

    def __contains__(self, name: str) -> bool:
        """Return whether the project has a target of that name."""
        return name in self._settings

    def named(self, name: str, /) -> RemoteTarget:
        """Return a target of the project; it does not connect yet."""
        if name not in self._open:
            patience = Patience(self._project.deployment.upload_patience_s)
            self._open[name] = open_remote_target(self._settings[name], self._secrets, patience)
        return self._open[name]

    def difference(self, name: str, asset: Asset, /, *, contents: bool) -> tuple[str | None, bool]:
        """Return how what a target holds differs from an asset, None if it does not; and whether the bytes are lost."""
        try:
            if silent := self._silent.get(name):
                raise silent
            told = differences(self.named(name), asset, contents=contents)
        except TargetUnavailable as error:
            self._silent[name] = error
            return f"could not be verified: {error}", False
        except UploadError as error:
            return f"could not be verified: {error}", False
        return told, told is not None


def verified_uploads(
    project: Project,
    chosen: Callable[[ItemId], bool],
    targets: Collection[str],
    opened: OpenTargets,
    /,
    *,
    contents: bool = False,
) -> Iterator[Verified]:
    """Yield every file and store that the records of uploads name, compared with what its target holds now.

    What cannot be compared, because a target does not answer or for another reason, has that as its problem, and is not
    lost. With `contents`, single files are read back, too.
    """
    snapshot = project.facts.snapshot()
    for step in chain().steps:
        for item in snapshot.items(step.hierarchy) if step.uploads else ():
            if not (snapshot.has(item, step.done) and chosen(item)):
                continue
            try:
                record = project.facts.read(item, step.done)
                held = {} if record is None else record.detail.get("targets", {})
                assets = [(name, Asset.from_json(one)) for name, at in held.items() for one in at["assets"]]
            except (StateError, KeyError, TypeError, ValueError) as error:
                yield Verified(item, "", step.done, f"cannot be verified: {error}")
                continue
            if not assets:
                yield Verified(item, "", step.done, "names no target; withdraw it with `opticstream state reset`")
            for name, asset in assets:
                one = Verified(item, name, asset.key, None, step, record)
                if name not in opened:
                    yield replace(one, problem="cannot be verified: the project has no such target now")
                elif name not in targets:
                    continue
                elif asset.place != (place := opened.named(name).place):
                    yield replace(one, problem=f"was uploaded to {asset.place}, not to {place}")
                else:
                    told, is_lost = opened.difference(name, asset, contents=contents)
                    yield replace(one, problem=told, is_lost=is_lost)
    for name in sorted(targets) if chosen(SampleId()) else ():
        for file in dataset_files(project, name):
            if known := Ledger(project.paths.base, name).asset(file.key, place=opened.named(name).place):
                told, is_lost = opened.difference(name, known, contents=contents)
                yield Verified(SampleId(), name, file.key, told, is_lost=is_lost)


def withdraw_lost_uploads(
    project: Project,
    chosen: Callable[[ItemId], bool],
    targets: Collection[str],
    opened: OpenTargets,
    /,
    *,
    contents: bool = False,
) -> Iterator[Verified]:
    """Yield what `verified_uploads` yields, and withdraw every upload whose bytes a target does not hold any more.

    It then waits for upload again. A target that cannot be asked withdraws nothing.
    """
    found = verified_uploads(project, chosen, targets, opened, contents=contents)
    for (item, step), group in groupby(found, key=lambda one: (one.item, one.step)):
        compared = list(group)
        lost = [one for one in compared if one.is_lost]
        for one in lost:
            Ledger(project.paths.base, one.target).forget(one.key, place=opened.named(one.target).place)
        is_withdrawn = bool(lost) and step is not None and _withdrawn(project, item, step, lost)
        for one in compared:
            yield replace(one, is_withdrawn=one.is_lost and (is_withdrawn or step is None))


def _withdrawn(project: Project, item: ItemId, step: Step, lost: list[Verified]) -> bool:
    """Withdraw an upload unless it was done again since it was compared; return whether it is withdrawn."""
    first = lost[0]
    more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    why = f"{first.target} does not hold what was uploaded: {first.key} {first.problem}{more}"
    claim = project.facts.claim(item, step.claim, lease_s=project.deployment.lease_s)
    if claim is None:
        return False
    with claim:
        if project.facts.read(item, step.done) != first.record:
            return False
        project.facts.journal.failed(item, None, why=why, kind="UploadLost", stage=step.name)
        return project.facts.withdraw(item, step.done, reason=why)
