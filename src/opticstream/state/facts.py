"""What has happened to the items of a project, recorded in flag files that survive every crash.

`Facts` records and reads single facts and makes claims; `FactsSnapshot` is a frozen copy of all of them from
one pass over the folders, for rules that compare many. Both satisfy `FactsView`.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import opticstream
from opticstream.model.errors import StateError
from opticstream.model.ids import BatchId, ItemId, MosaicId, TileId
from opticstream.state.claims import DEFAULT_LEASE_S, Claim, Claims, Holder
from opticstream.state.durable import create_exclusively, replace_whole
from opticstream.state.earlier_words import EARLIER, PUBLICATION_WORDS, in_current_words, local_word
from opticstream.state.flags import (
    WITHDRAWN_FOLDER,
    Numbered,
    flag_folder,
    flag_path,
    flag_stem,
    flags_above,
    flags_of_batches,
    flags_of_tiles,
    mosaics_of_project,
)
from opticstream.state.journal import Journal
from opticstream.state.raw_folders import RawFolders
from opticstream.state.record import (
    HEAD_BYTES,
    PROJECT_ROOT,
    FactRecord,
    FileRecord,
    RecordedHashes,
    checked_content,
    hashes_from_head,
)
from opticstream.state.vocabulary import check_claim, check_fact, facts_of, is_claim
from opticstream.system.disk import sync_path
from opticstream.system.host import HostIdentity


def utc_now() -> datetime:
    """Return the time, with its zone."""
    return datetime.now(UTC)


class FactsView(Protocol):
    """Queries of rules, answered by the folders or by a snapshot."""

    def has(self, item: ItemId, fact: str, /) -> bool:
        """Return whether `fact` has been recorded about `item`."""
        ...

    def facts_of(self, item: ItemId, /) -> frozenset[str]:
        """Return all facts that have been recorded about `item`."""
        ...

    def reached(self, items: Iterable[ItemId], /, *facts: str) -> bool:
        """Return whether each of `items` has at least one of `facts`; true of no items at all."""
        ...

    def count(self, items: Iterable[ItemId], /, *facts: str) -> int:
        """Return how many of `items` have at least one of `facts`."""
        ...


class FactsSnapshot:
    """All facts of a project at one moment; does not change.

    Examples
    --------
    >>> from opticstream.model.ids import BatchId
    >>> snapshot = FactsSnapshot({BatchId(1, 1): {"started", "processed"}, BatchId(1, 2): {"started"}})
    >>> snapshot.reached([BatchId(1, 1), BatchId(1, 2)], "processed", "failed")
    False
    >>> snapshot.count([BatchId(1, 1), BatchId(1, 2)], "started")
    2
    """

    def __init__(self, facts: Mapping[ItemId, Iterable[str]], /) -> None:
        above: dict[ItemId, frozenset[str]] = {}
        batches: dict[int, dict[int, frozenset[str]]] = {}
        tiles: dict[int, dict[int, frozenset[str]]] = {}
        for item, names in facts.items():
            if isinstance(item, TileId):
                tiles.setdefault(item.mosaic_id, {})[item.tile_id] = frozenset(names)
            elif isinstance(item, BatchId):
                batches.setdefault(item.mosaic_id, {})[item.batch_id] = frozenset(names)
            else:
                above[item] = frozenset(names)
        self._above: Mapping[ItemId, frozenset[str]] = above
        self._batches: Mapping[int, Numbered] = batches
        self._tiles: Mapping[int, Numbered] = tiles

    @classmethod
    def of_listings(
        cls, above: Mapping[ItemId, frozenset[str]], batches: Mapping[int, Numbered], tiles: Mapping[int, Numbered], /
    ) -> FactsSnapshot:
        """Return the facts in listings of folders, without copying them.

        Parameters
        ----------
        above : mapping
            Facts of mosaics, slices and the sample.
        batches, tiles : mapping of int to mapping of int to frozenset of str
            Facts of batches and of tiles, by the number of the mosaic and their own.
        """
        snapshot = cls({})
        snapshot._above = above
        snapshot._batches = {number: found for number, found in batches.items() if found}
        snapshot._tiles = {number: found for number, found in tiles.items() if found}
        return snapshot

    def has(self, item: ItemId, fact: str, /) -> bool:
        """Return whether `fact` has been recorded about `item`."""
        return check_fact(item, fact) in self.facts_of(item)

    def facts_of(self, item: ItemId, /) -> frozenset[str]:
        """Return all facts that have been recorded about `item`."""
        if isinstance(item, TileId):
            return self._tiles.get(item.mosaic_id, _NOTHING).get(item.tile_id, _NO_FACTS)
        if isinstance(item, BatchId):
            return self._batches.get(item.mosaic_id, _NOTHING).get(item.batch_id, _NO_FACTS)
        return self._above.get(item, _NO_FACTS)

    def reached(self, items: Iterable[ItemId], /, *facts: str) -> bool:
        """Return whether each of `items` has at least one of `facts`; true of no items at all."""
        return all(self._any(item, facts) for item in items)

    def count(self, items: Iterable[ItemId], /, *facts: str) -> int:
        """Return how many of `items` have at least one of `facts`."""
        return sum(self._any(item, facts) for item in items)

    def batches_by_facts(self, mosaic: MosaicId, /, *, most: int) -> Counter[frozenset[str]]:
        """Return how many batches of a mosaic, of the numbers up to `most`, have the same facts, by these facts."""
        return _by_facts(self._batches.get(mosaic.mosaic_id, _NOTHING), most)

    def tiles_by_facts(self, mosaic: MosaicId, /, *, most: int) -> Counter[frozenset[str]]:
        """Return how many tiles of a mosaic, of the numbers up to `most`, have the same facts, by these facts.

        Examples
        --------
        >>> from opticstream.model.ids import MosaicId, TileId
        >>> snapshot = FactsSnapshot({TileId(1, n): {"processed"} for n in (1, 2, 99)})
        >>> snapshot.tiles_by_facts(MosaicId(1), most=12)
        Counter({frozenset({'processed'}): 2})
        """
        return _by_facts(self._tiles.get(mosaic.mosaic_id, _NOTHING), most)

    def mosaics(self) -> list[MosaicId]:
        """Return the mosaics of which anything is recorded, or of one of their batches or tiles, in order."""
        own = {item.mosaic_id for item in self._above if isinstance(item, MosaicId)}
        return [MosaicId(number) for number in sorted(own | self._batches.keys() | self._tiles.keys())]

    def with_facts(self, wanted: Callable[[str], bool], /) -> list[ItemId]:
        """Return the items that have a fact for which `wanted` holds, sorted by key."""
        known = set(self._above.values())
        for listing in (*self._batches.values(), *self._tiles.values()):
            known.update(listing.values())
        kinds = {facts for facts in known if any(map(wanted, facts))}
        return sorted(self._items(None, kinds), key=lambda item: item.key) if kinds else []

    def items(self, hierarchy: str | None = None, /) -> list[ItemId]:
        """Return the items that have any fact, of one hierarchy or of all, sorted by key."""
        return sorted(self._items(hierarchy), key=lambda item: item.key)

    def __len__(self) -> int:
        inside = (
            facts for folders in (self._batches, self._tiles) for found in folders.values() for facts in found.values()
        )
        return sum(map(len, self._above.values())) + sum(map(len, inside))

    def __iter__(self) -> Iterator[tuple[ItemId, str]]:
        return ((item, fact) for item in self._items(None) for fact in self.facts_of(item))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FactsSnapshot) and (self._above, self._batches, self._tiles) == (
            other._above, other._batches, other._tiles,
        )  # fmt: skip

    __hash__ = None  # type: ignore[assignment]

    def _items(self, hierarchy: str | None, kinds: Collection[frozenset[str]] | None = None) -> Iterator[ItemId]:
        """Yield the items of one hierarchy, or of all, whose facts are among `kinds`."""
        if hierarchy not in ("batch", "tile"):
            for item, facts in self._above.items():
                if hierarchy in (None, item.hierarchy) and (kinds is None or facts in kinds):
                    yield item
        if hierarchy in (None, "batch"):
            for mosaic_id, found in self._batches.items():
                yield from (BatchId(mosaic_id, n) for n, facts in found.items() if kinds is None or facts in kinds)
        if hierarchy in (None, "tile"):
            for mosaic_id, found in self._tiles.items():
                yield from (TileId(mosaic_id, n) for n, facts in found.items() if kinds is None or facts in kinds)

    def _any(self, item: ItemId, facts: tuple[str, ...]) -> bool:
        return any(self.has(item, fact) for fact in facts)


_NO_FACTS: frozenset[str] = frozenset()
_NOTHING: Numbered = MappingProxyType({})


def _by_facts(found: Numbered, most: int) -> Counter[frozenset[str]]:
    if not found or max(found) <= most:
        return Counter(found.values())
    return Counter(facts for number, facts in found.items() if number <= most)


class Facts:
    """The facts of the project in `project_dir`.

    Parameters
    ----------
    project_dir : Path
        Folder of the project; created when the first fact is recorded.
    host : HostIdentity, optional
        Who records; this process by default.
    clock : callable, optional
        Returns the time for records. Leases do not depend on it.
    flow_run_id : str, optional
        Id of the flow run that records, kept with every fact, claim and journal line.
    roots : mapping of str to Path, optional
        Further folders that outputs may lie in, such as ``{"archive": Path(...)}``. Records name files relative to
        the project, or to a further root as ``archive:rawdata/...``, because hosts mount them in different places.
    raw_folders : RawFolders, optional
        Finds the raw folders that records name.

    Examples
    --------
    >>> import tempfile
    >>> from opticstream.model.ids import BatchId
    >>> facts = Facts(Path(tempfile.mkdtemp()))
    >>> facts.record(BatchId(1, 1), "processed"), facts.record(BatchId(1, 1), "processed")
    (True, False)
    """

    def __init__(
        self,
        project_dir: Path,
        /,
        *,
        host: HostIdentity | None = None,
        clock: Callable[[], datetime] = utc_now,
        flow_run_id: str | None = None,
        roots: Mapping[str, Path] | None = None,
        raw_folders: RawFolders | None = None,
    ) -> None:
        self.project_dir = Path(project_dir)
        self.raw_folders = raw_folders or RawFolders(self.project_dir)
        self.host = host or HostIdentity.current()
        self.roots: Mapping[str, Path] = MappingProxyType({PROJECT_ROOT: self.project_dir, **(roots or {})})
        self.journal = Journal(self.project_dir, host=self.host, clock=clock, flow_run_id=flow_run_id)
        self.claims = Claims(
            self.project_dir, host=self.host, clock=clock, journal=self.journal, flow_run_id=flow_run_id
        )
        self._clock = clock
        self._flow_run_id = flow_run_id

    def record(self, item: ItemId, fact: str, content: Mapping[str, Any] | None = None) -> bool:
        """Record that `fact` has happened to `item`; True for exactly one of all callers on all hosts.

        The flag is created atomically and synced to the disk. The caller that got True announces the fact; if it dies
        before that, the sweep announces it.

        Parameters
        ----------
        item : ItemId
            The item of the fact.
        fact : str
            One of the facts of the item's hierarchy that is not a claim.
        content : mapping, optional
            Any of `flow_run_id`, `code_version`, `parameters_hash`, `inputs_hash`, `inputs` and `outputs` (sequences of
            `FileRecord` or of ``{"path", "size", "sha256"}``) and `detail` (free JSON values).

        Raises
        ------
        ValueError
            Items of this hierarchy have no such fact, it is a claim, or `content` has an unknown key.
        OSError
            The flag could not be written; the fact is then not recorded.
        """
        record = self._new_record(item, fact, content)
        self._rename_earlier_flags(item, fact)
        created = create_exclusively(self.path(item, fact), record.to_bytes())
        if created:
            self.journal.write("recorded", item, fact=fact, flow_run_id=record.flow_run_id)
        return created

    def replace(self, item: ItemId, fact: str, content: Mapping[str, Any] | None = None, *, why: str) -> None:
        """Record a fact whether or not it is recorded already; the earlier record is kept among the withdrawn ones.

        The flag exists at every moment. Of two replacements at the same time both are kept, but only one is in effect:
        hold the claim on the item's work.
        """
        record = self._new_record(item, fact, content)
        self._rename_earlier_flags(item, fact)
        path = self.path(item, fact)
        if create_exclusively(path, record.to_bytes()):
            self.journal.write("recorded", item, fact=fact, why=why, flow_run_id=record.flow_run_id)
            return
        kept = self._withdrawn_path(item, fact)
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            kept.write_bytes(path.read_bytes())
        except FileNotFoundError:
            pass
        replace_whole(path, record.to_bytes())
        self.journal.write("replaced", item, fact=fact, why=why, flow_run_id=record.flow_run_id)

    def has(self, item: ItemId, fact: str, /) -> bool:
        """Return whether `fact` has been recorded about `item`."""
        return self._flag(item, check_fact(item, fact)) is not None

    def read(self, item: ItemId, fact: str, /) -> FactRecord | None:
        """Return the record of a fact, or None if it is not recorded.

        Raises
        ------
        StateError
            The flag is not a record.
        """
        path = self._flag(item, check_fact(item, fact))
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                modified = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
                text = file.read()
        except FileNotFoundError:
            return None
        return FactRecord.from_bytes(text, item, fact, path=path, modified=modified)

    def read_whole(self, item: ItemId, fact: str, /) -> FactRecord | None:
        """Return the record of a fact; None if it is not recorded, or if its flag is damaged, as `verify` reports."""
        try:
            return self.read(item, fact)
        except StateError:
            return None

    def hashes(self, item: ItemId, fact: str, /) -> RecordedHashes | None:
        """Return the hashes in a fact's record, or None if it is not recorded; reads only the head of the flag."""
        path = self._flag(item, check_fact(item, fact))
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                return hashes_from_head(file.read(HEAD_BYTES))
        except FileNotFoundError:
            return None

    def withdraw(self, item: ItemId, fact: str, *, reason: str) -> bool:
        """Withdraw a fact; its flag is moved to ``state/withdrawn/``. True for exactly one of all callers."""
        self._rename_earlier_flags(item, check_fact(item, fact))
        path = self.path(item, fact)
        kept = self._withdrawn_path(item, fact)
        if not path.exists():
            return False
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(kept)
        except FileNotFoundError:
            return False
        sync_path(path.parent)
        self.journal.write("withdrawn", item, fact=fact, why=reason, detail={"kept": kept.name})
        return True

    def times_withdrawn(self, item: ItemId, fact: str, /) -> int:
        """Return how often a fact has been withdrawn; looks only at the names in ``state/withdrawn/``."""
        prefix = f"{flag_stem(item)}.{check_fact(item, fact)}."
        try:
            return sum(name.startswith(prefix) for name in os.listdir(self._withdrawn_path(item, fact).parent))
        except FileNotFoundError:
            return 0

    def facts_of(self, item: ItemId, /) -> frozenset[str]:
        """Return all facts that have been recorded about `item`."""
        names = frozenset(fact for fact in facts_of(item.hierarchy) if self.path(item, fact).exists())
        if names.isdisjoint(EARLIER):
            return names
        return (names - PUBLICATION_WORDS) | in_current_words(names & PUBLICATION_WORDS).keys()

    def reached(self, items: Iterable[ItemId], /, *facts: str) -> bool:
        """Return whether each of `items` has at least one of `facts`; true of no items at all."""
        return all(any(self.has(item, fact) for fact in facts) for item in items)

    def count(self, items: Iterable[ItemId], /, *facts: str) -> int:
        """Return how many of `items` have at least one of `facts`."""
        return sum(any(self.has(item, fact) for fact in facts) for item in items)

    def snapshot(self, *, mosaics: Iterable[MosaicId] | None = None) -> FactsSnapshot:
        """Return all facts of the project, from one listing of each folder and without opening a file.

        Facts that are recorded during the listing may or may not be in it.

        Parameters
        ----------
        mosaics : iterable of MosaicId, optional
            Include the batches and tiles of these mosaics only.
        """
        above = flags_above(self.project_dir)
        chosen = mosaics_of_project(self.project_dir) if mosaics is None else list(mosaics)
        return FactsSnapshot.of_listings(
            above,
            {mosaic.mosaic_id: flags_of_batches(self.project_dir, mosaic) for mosaic in chosen},
            {mosaic.mosaic_id: flags_of_tiles(self.project_dir, mosaic) for mosaic in chosen},
        )

    def claim(self, item: ItemId, work: str = "started", *, lease_s: float = DEFAULT_LEASE_S) -> Claim | None:
        """Return a claim on a piece of work, or None while another process holds it and is alive.

        A dead holder is replaced: at once if its process was on this host, otherwise when its lease has run out.
        Released work can be claimed again, so check after claiming whether the work is already done::

            claim = facts.claim(batch)
            if claim is None:
                return
            with claim:
                if facts.has(batch, "processed"):
                    return
                ...
                claim.ensure_mine()
                facts.record(batch, "processed", ...)

        The first claim also makes the flag (``batch-003.started``), which stays.

        Parameters
        ----------
        item : ItemId
            The item to work on.
        work : str, default "started"
            The work: a fact that ends in ``started``.
        lease_s : float, default 60
            Time without renewal after which other hosts consider the claim dead.
        """
        claim = self.claims.claim(item, check_claim(item, work), lease_s=lease_s)
        if claim is None:
            return None
        self._rename_earlier_flags(item, work)
        record = self._new_record(item, work, None, detail={"attempt": claim.generation, "lease_s": lease_s})
        try:
            replace_whole(self.path(item, work), record.to_bytes())
        except BaseException as error:
            claim.release(f"failed: {error}", failed=True)
            raise
        return claim

    def holder(self, item: ItemId, work: str = "started") -> Holder | None:
        """Return the last holder of a piece of work and whether it is alive; None if there was none."""
        return self.claims.holder(item, work)

    def is_worked_on(self, item: ItemId, work: str = "started") -> bool:
        """Return whether a living process holds the claim of a piece of work."""
        holder = self.holder(item, work)
        return holder is not None and holder.state == "alive"

    def path(self, item: ItemId, fact: str, /) -> Path:
        """Return the path of the flag of a fact, as this version names it."""
        return self.project_dir / flag_path(item, fact)

    def file_record(self, path: Path, /, *, checksum: bool = True) -> FileRecord:
        """Return size and checksum of an output, for `record`; reads the whole file."""
        return FileRecord.from_path(path, self.roots, checksum=checksum)

    def _flag(self, item: ItemId, fact: str) -> Path | None:
        """Return the flag that says a fact, perhaps in the words of an earlier version; None if there is none."""
        path = self.path(item, fact)
        if fact not in PUBLICATION_WORDS:
            return path if path.exists() else None
        local = local_word(fact)
        names = [n for n in PUBLICATION_WORDS if local_word(n) == local and self.path(item, n).exists()]
        name = in_current_words(names).get(fact)
        return None if name is None else self.path(item, name)

    def _rename_earlier_flags(self, item: ItemId, fact: str) -> None:
        """Give flags of an earlier version their present names, before one about the same publication is changed."""
        if fact not in PUBLICATION_WORDS or self.path(item, local_word(fact)).exists():
            return
        for earlier, now in EARLIER.items():
            path, target = self.path(item, earlier), self.path(item, now)
            if local_word(earlier) != local_word(fact) or not path.exists() or target.exists():
                continue
            try:
                path.rename(target)
            except FileNotFoundError:  # another process has just done it
                continue
            sync_path(path.parent)
            self.journal.write("renamed", item, fact=now, why=f"an earlier version called it {earlier}")

    def _new_record(
        self, item: ItemId, fact: str, content: Mapping[str, Any] | None, detail: Mapping[str, Any] | None = None
    ) -> FactRecord:
        if detail is None and is_claim(check_fact(item, fact)):
            raise ValueError(f"{fact!r} of {item} is a claim; use claim(), which also keeps others out")
        given = {
            "flow_run_id": self._flow_run_id,
            "code_version": opticstream.__version__,
            "detail": detail or {},
            **checked_content(content),
        }
        return FactRecord(item, fact, self._clock(), self.host.host, self.host.pid, **given)

    def _withdrawn_path(self, item: ItemId, fact: str) -> Path:
        folder = self.project_dir / flag_folder(item) / WITHDRAWN_FOLDER
        name = f"{flag_stem(item)}.{fact}.{self._clock():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        return folder / name
