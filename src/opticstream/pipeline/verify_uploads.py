"""Compare what remote targets hold with the records of what was uploaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from opticstream.model.chain import chain
from opticstream.model.errors import StateError
from opticstream.model.ids import ItemId, SampleId
from opticstream.pipeline.project import Project
from opticstream.pipeline.uploads import dataset_files
from opticstream.publish.ledger import Asset, Ledger
from opticstream.publish.opening import ReadSecret, open_remote_target
from opticstream.publish.patience import Patience
from opticstream.publish.target import RemoteTarget
from opticstream.publish.transfer import differences


@dataclass(frozen=True, slots=True)
class Verified:
    """One file or store of a target, and how it differs from what was uploaded; None if it does not."""

    item: ItemId
    target: str
    key: str
    problem: str | None


def verified_uploads(
    project: Project,
    chosen: Callable[[ItemId], bool],
    targets: Collection[str],
    secrets: ReadSecret,
    /,
    *,
    contents: bool = False,
) -> Iterator[Verified]:
    """Yield every file and store that the records of uploads name, compared with what its target holds now.

    With `contents`, single files are read back, too.
    """
    settings = {one.target_name: one for one in project.config.publish.targets}
    opened: dict[str, RemoteTarget] = {}
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
                if name not in settings:
                    yield Verified(item, name, asset.key, "cannot be verified: the project has no such target now")
                elif name in targets:
                    if name not in opened:
                        patience = Patience(project.deployment.upload_patience_s)
                        opened[name] = open_remote_target(settings[name], secrets, patience)
                    target = opened[name]
                    if asset.place != target.place:
                        yield Verified(item, name, asset.key, f"was uploaded to {asset.place}, not to {target.place}")
                    else:
                        yield Verified(item, name, asset.key, differences(target, asset, contents=contents))
    for name in targets if chosen(SampleId()) else ():
        for file in dataset_files(project, name):
            if name in opened and (known := Ledger(project.paths.base, name).asset(file.key, place=opened[name].place)):
                yield Verified(SampleId(), name, file.key, differences(opened[name], known, contents=contents))
