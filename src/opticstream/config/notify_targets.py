"""Settings of the targets of notifications: one class for each kind of target.

The kind is also the name of the module that implements it: `opticstream.notify.file` is the target of kind ``file``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from opticstream.config.base import Settings
from opticstream.config.lists import list_from_text


class NotifyTargetSettings(Settings):
    """Settings that every kind of target has."""

    kind: str
    """Kind of the target."""
    name: str = Field(default="", pattern=r"^[a-z0-9_]*$")
    """Name under which the project records what was sent to the target; default: the kind. Lower-case letters, digits
    and `_`."""

    @property
    def target_name(self) -> str:
        """Name of the target, unique on this host."""
        return self.name or self.kind


class LogTargetSettings(NotifyTargetSettings):
    """A line in the log of the flow run, and on the terminal of `run` and `watch`."""

    kind: Literal["log"] = "log"
    """Kind of the target."""


class FileTargetSettings(NotifyTargetSettings):
    """A line of JSON appended to a file, for programs that follow it."""

    kind: Literal["file"] = "file"
    """Kind of the target."""
    path: Path = Path("milestones.jsonl")
    """The file; relative paths start at the folder of the project. Several projects may share one file."""


NotifyTarget = Annotated[LogTargetSettings | FileTargetSettings, Field(discriminator="kind")]
"""The settings of one target. Add a new kind of target to this union."""


def _from_text(value: Any) -> Any:
    """Return the list that an environment variable holds, as JSON or TOML."""
    expected = 'a list of targets in JSON or TOML, such as [{"kind": "log"}, {"kind": "file"}]'
    return list_from_text(value, expected=expected)


def _with_names_of_their_own(targets: tuple[NotifyTargetSettings, ...]) -> tuple[NotifyTargetSettings, ...]:
    names = [target.target_name for target in targets]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{names.count(repeated[0])} targets have the name {repeated[0]!r}; give each a `name` of its own"
        )
    for target in targets:
        if target.target_name == "log" and target.kind != "log":
            raise ValueError(f"a target of kind {target.kind!r} cannot have the name 'log'; give it another `name`")
    return targets


NotifyTargets = Annotated[
    tuple[NotifyTarget, ...], BeforeValidator(_from_text), AfterValidator(_with_names_of_their_own)
]
"""The targets of a host, each with a name of its own."""
