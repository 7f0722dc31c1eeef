"""Divide a JSON tree of any size into pieces of limited size, of which a change affects few.

A part that is too large becomes a *shard* and is replaced by a reference; many small children that are
too large together are distributed over shards by ranges of their numbers. A shard's name holds the checksum of its
content, so a shard never changes: a new state has new shards beside the old ones and becomes visible when one small
manifest is replaced. A reader of a manifest and then its shards therefore never sees a mixture of two states, and a
writer that dies half-way leaves only unused shards.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opticstream.model.errors import StateError

REFERENCE = "$shard"
BINS = "$bins"
INLINE_CHARS = 400
"""Children of a part that is too large stay inside it up to this size."""

JsonTree = Any


def json_size(value: JsonTree, /) -> int:
    """Return the bytes of a value's compact JSON text, as counted by servers."""
    return len(json_bytes(value))


def json_bytes(value: JsonTree, /) -> bytes:
    """Return the compact JSON text of a value, keys sorted: a database may return them in another order."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def shards_from_tree(
    tree: JsonTree, /, *, limit: int, root_limit: int | None = None
) -> tuple[JsonTree, dict[str, Any]]:
    """Return a root that refers to shards, and the shards by their names.

    The same tree always gives the same shards.

    Parameters
    ----------
    tree : JSON value
        Objects whose keys do not begin with ``$``; lists and texts are never divided.
    limit : int
        Most bytes of a shard's compact JSON text; at least 1000.
    root_limit : int, optional
        Most bytes of the root; `limit` by default.

    Raises
    ------
    StateError
        A list or text is too large for a shard, or a key begins with ``$``.

    Examples
    --------
    >>> tree = {"slices": {str(n): {"note": "x" * 500} for n in range(1, 5)}}
    >>> root, shards = shards_from_tree(tree, limit=1000)
    >>> len(shards), max(map(json_size, shards.values())) <= 1000, tree_from_shards(root, shards.__getitem__) == tree
    (4, True, True)
    """
    if limit < 1000:
        raise ValueError(f"shards of {limit} bytes have no room for references; at least 1000 are needed")
    if b'"$' in json_bytes(tree):
        _refuse_marks(tree, ())
    shards: dict[str, Any] = {}
    root = _pack(tree, (), limit, shards)
    if json_size(root) > (limit if root_limit is None else root_limit):
        root = _put(root, (), shards)
    return root, shards


def tree_from_shards(root: JsonTree, fetch: Callable[[str], JsonTree], /) -> JsonTree:
    """Return the tree that `shards_from_tree` divided.

    Parameters
    ----------
    root : JSON value
        The root.
    fetch : callable
        Returns the shard of a name.
    """
    if not isinstance(root, dict):
        return root
    if REFERENCE in root:
        return tree_from_shards(fetch(root[REFERENCE]), fetch)
    if BINS in root:
        merged: dict[str, Any] = {}
        for name in root[BINS]:
            merged |= tree_from_shards(fetch(name), fetch)
        return merged
    return {key: tree_from_shards(value, fetch) for key, value in root.items()}


def references_in(value: JsonTree, /) -> set[str]:
    """Return the names of the shards that a root or shard refers to directly."""
    if isinstance(value, list):
        return set().union(*map(references_in, value))
    if not isinstance(value, dict):
        return set()
    if REFERENCE in value:
        return {value[REFERENCE]}
    if BINS in value:
        return set(value[BINS])
    return set().union(*map(references_in, value.values()))


def shard_name(value: JsonTree, path: Iterable[str] = (), /) -> str:
    """Return a shard's name: its place in the tree, for people, and the checksum of its content."""
    where = re.sub(r"[^a-z0-9]+", "-", "-".join(path).lower()).strip("-")[-40:].strip("-") or "root"
    return f"{where}-{hashlib.sha256(json_bytes(value)).hexdigest()[:16]}"


def is_intact(name: str, value: JsonTree, /) -> bool:
    """Return whether a shard's content matches its name."""
    return hashlib.sha256(json_bytes(value)).hexdigest()[:16] == name.rpartition("-")[2]


def _refuse_marks(value: JsonTree, path: tuple[str, ...]) -> None:
    for key, child in value.items() if isinstance(value, dict) else ():
        if key.startswith("$"):
            raise StateError(
                f"the key {key!r} at {'/'.join(path) or 'the root'} begins with '$', which marks references"
            )
        _refuse_marks(child, (*path, key))


def _put(value: JsonTree, path: tuple[str, ...], shards: dict[str, Any]) -> dict[str, str]:
    name = shard_name(value, path)
    shards[name] = value
    return {REFERENCE: name}


def _pack(value: JsonTree, path: tuple[str, ...], limit: int, shards: dict[str, Any]) -> JsonTree:
    """Return `value`, with as many of its parts replaced by references as it takes to fit into one shard."""
    if json_size(value) <= limit:
        return value
    if not isinstance(value, dict):
        raise StateError(
            f"{'/'.join(path)} holds a {type(value).__name__} of {json_size(value)} bytes; a shard holds {limit}"
        )
    packed: dict[str, Any] = {}
    for key, child in value.items():
        part = _pack(child, (*path, key), limit, shards)
        packed[key] = part if json_size(part) <= INLINE_CHARS else _put(part, (*path, key), shards)
    if json_size(packed) <= limit:
        return packed
    names = _bins({_position(key): (key, part) for key, part in packed.items()}, path, limit, shards)
    while json_size({BINS: names}) > limit:
        groups = [names[start : start + 16] for start in range(0, len(names), 16)]
        names = [_put({BINS: group}, path, shards)[REFERENCE] for group in groups]
    return {BINS: names}


def _bins(
    entries: Mapping[int, tuple[str, Any]], path: tuple[str, ...], limit: int, shards: dict[str, Any]
) -> list[str]:
    """Distribute entries over shards by halving the range of their positions, so that a new one moves few others."""
    width = 1
    while width <= max(entries):
        width *= 2
    names = []
    pending = [(0, width, dict(entries))]
    while pending:
        start, width, part = pending.pop()
        if not part:
            continue
        content = dict(part[position] for position in sorted(part))
        if json_size(content) <= limit:
            names.append(_put(content, path, shards)[REFERENCE])
            continue
        middle = start + width // 2
        pending.append((middle, width // 2, {p: e for p, e in part.items() if p >= middle}))
        pending.append((start, width // 2, {p: e for p, e in part.items() if p < middle}))
    return names


def _position(key: str) -> int:
    return int(key) if key.isdecimal() and str(int(key)) == key else int(hashlib.sha256(key.encode()).hexdigest(), 16)
