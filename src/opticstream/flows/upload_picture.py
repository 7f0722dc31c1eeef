"""How far the uploads of a project are, as an artifact of the server."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import Any

from prefect.artifacts import create_table_artifact

from opticstream.flows.picture_artifacts import as_markdown
from opticstream.model.chain import chain
from opticstream.model.errors import ServerError
from opticstream.pipeline.bindings import binding_of, due_items
from opticstream.pipeline.project import Project
from opticstream.pipeline.under_way import uploads_under_way
from opticstream.state.slugs import artifact_key

_EVERY_S = 15.0


class UploadPicture:
    """Shows uploads while a `with` block runs, now and then, and once more at its end."""

    def __init__(self, project: Project, /) -> None:
        self._project = project
        self._shown: object = None
        self._next_s = 0.0

    def __enter__(self) -> UploadPicture:
        self._next_s = time.monotonic() + _EVERY_S
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is None:
            self._publish()

    def show(self) -> None:
        """Show how far the uploads are, unless that was done a moment ago."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _EVERY_S
            self._publish()

    def _publish(self) -> None:
        table = upload_table(self._project)
        if not table or table == self._shown:
            return
        self._shown = table
        name = self._project.config.name
        with contextlib.suppress(ServerError):
            create_table_artifact(
                key=artifact_key(name, "uploads"), table=table, description=as_markdown(f"Uploads of {name}")
            )


def upload_table(project: Project, /) -> list[dict[str, Any]]:
    """Return a row for each kind of upload with its counts, and one for each upload that is under way."""
    if not project.config.publish.targets:
        return []
    snapshot = project.facts.snapshot()
    rows = []
    for step in chain().steps:
        if not step.uploads or not binding_of(step).wanted(project):
            continue
        items = snapshot.items(step.hierarchy)
        rows.append(
            {
                "upload": f"{step.name} ({step.hierarchy})",
                "uploaded": snapshot.count(items, step.done),
                "waiting": sum(1 for _ in due_items(project, step, snapshot, items)),
                "failed": sum(step.failed in snapshot.facts_of(item) for item in items),
                "under way": "",
            }
        )
    under_way = [
        {"upload": one.item, "uploaded": "", "waiting": "", "failed": "", "under way": str(one)}
        for one in uploads_under_way(project)
    ]
    return [*rows, *under_way]
