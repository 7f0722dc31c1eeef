"""`slices.json`: which slices the stacks hold, from which input and in which pose, and which are missing, and why."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opticstream.io.atomic import write_text
from opticstream.model.errors import ChangingStacksError, StateError
from opticstream.stages.sample._sample_input import SampleInput
from opticstream.system.locks import locked


@dataclass
class Ledger:
    """Content of `slices.json`."""

    path: Path
    slices: dict[int, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Ledger:
        if not path.exists():
            return cls(path, {})
        try:
            content = json.loads(path.read_bytes())
            return cls(path, {int(number): entry for number, entry in content["slices"].items()})
        except (ValueError, KeyError, AttributeError) as error:
            raise StateError(f"{path}: cannot be read ({error!r}); remove it and add the slices again") from error

    def present(self) -> tuple[int, ...]:
        return tuple(sorted(n for n, entry in self.slices.items() if entry.get("state") == "present"))

    def missing(self, expected: int) -> tuple[int, ...]:
        present = self.present()
        last = max([expected, *self.slices], default=0)
        return tuple(n for n in range(1, last + 1) if n not in present)

    def excluded(self) -> dict[int, str]:
        return {n: entry["excluded"] for n, entry in sorted(self.slices.items()) if entry.get("state") == "excluded"}

    def without_axis(self) -> dict[int, str]:
        return {n: self.slices[n]["without_axis"] for n in self.present() if "without_axis" in self.slices[n]}

    def stacks(self) -> list[str]:
        return sorted({name for entry in self.slices.values() for name in entry.get("stacks", [])})

    def why_missing(self, slice_id: int, new: SampleInput) -> str:
        by_hand = self.excluded().get(slice_id)
        return new.failed.get(slice_id, "not registered yet") if by_hand is None else f"excluded: {by_hand}"

    def write(self, new: SampleInput) -> None:
        missing = self.missing(new.expected)
        content = {
            "slice_thickness_um": new.slice_thickness_um,
            "slices": {str(n): self.slices[n] for n in sorted(self.slices)},
            "missing": {str(n): self.why_missing(n, new) for n in missing},
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def locked_stacks(folder: Path) -> Iterator[None]:
    """Hold the stacks alone on this host; between hosts the claim on the sample does it."""
    with locked(folder / ".lock"):
        yield


def unfinished_slices(folder: Path, /) -> tuple[int, ...]:
    """Return the slices that are being added to the stacks, or were begun and never finished.

    Raises
    ------
    StateError
        The ledger cannot be read.
    """
    slices = Ledger.read(folder / "slices.json").slices
    return tuple(sorted(number for number, entry in slices.items() if entry.get("state") == "writing"))


def slice_states(folder: Path, /) -> dict[int, tuple[str, str]]:
    """Return the state of each slice of the stacks (`present`, `missing`, `excluded`, `writing`), and the reason.

    Raises
    ------
    StateError
        The ledger cannot be read.
    """
    path = folder / "slices.json"
    ledger = Ledger.read(path)
    reasons = json.loads(path.read_bytes()).get("missing", {}) if path.exists() else {}
    found = {}
    for n in range(1, max([*ledger.slices, *map(int, reasons)], default=0) + 1):
        entry = ledger.slices.get(n, {})
        reason = entry.get("excluded") or entry.get("pose", {}).get("failure") or reasons.get(str(n), "")
        found[n] = entry.get("state", "missing"), reason
    return found


def stacks_by_slice(folder: Path, /) -> dict[int, frozenset[str]]:
    """Return the names of the stacks that hold each slice; empty where there are none yet.

    Raises
    ------
    StateError
        The ledger cannot be read.
    """
    ledger = Ledger.read(folder / "slices.json")
    return {n: frozenset(ledger.slices[n].get("stacks", {})) for n in ledger.present()}


def stacks_at_rest(folder: Path, /) -> Callable[[], None]:
    """Return a check that no slice has been added to the stacks since now.

    The ledger says that a slice is being written before anything of it is written.

    Raises
    ------
    ChangingStacksError
        A slice is being added now. The returned function raises it, too.
    """
    path = folder / "slices.json"
    before = path.read_bytes()
    slices = Ledger.read(path).slices.values()
    if any(entry.get("state") == "writing" or entry.get("moving") or entry.get("finishing") for entry in slices):
        raise ChangingStacksError(f"{folder}: a slice is being added; the stacks are published afterwards")

    def still() -> None:
        if path.read_bytes() != before:
            raise ChangingStacksError(f"{folder}: a slice was added meanwhile; the stacks are published again")

    return still


def sources_of_slice(new: SampleInput, prints: Mapping[str, str]) -> dict[str, str]:
    """Return the files of the slice relative to the stacks, so that the slice can be written again in another pose."""
    paths = {**new.maps, **new.volumes}
    return {name: Path(os.path.relpath(paths[name].absolute(), new.folder.absolute())).as_posix() for name in prints}


def known_sources(new: SampleInput, ledger: Ledger, slice_id: int) -> dict[str, Path]:
    return {name: new.folder / path for name, path in ledger.slices.get(slice_id, {}).get("sources", {}).items()}
