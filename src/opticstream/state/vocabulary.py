"""The facts that can be recorded about each kind of item, and which of them are claims on work.

A fact is an adjective or participle in a file name (``batch-001.processed``). A claim (any fact that ends in
``started``) also records who is working, and has a lease.
"""

from __future__ import annotations

from opticstream.model.chain import STEPS, Chain, chain
from opticstream.model.ids import ItemId

FACTS = Chain(STEPS).facts
"""Facts of each hierarchy, in the order in which they usually occur."""


def facts_of(hierarchy: str, /) -> tuple[str, ...]:
    """Return the facts of one kind of item, in the order in which they usually occur."""
    return chain().facts[hierarchy]


def is_claim(fact: str, /) -> bool:
    """Return whether a fact is a claim on work, made by `Facts.claim` and not by `Facts.record`.

    Examples
    --------
    >>> is_claim("volume_started"), is_claim("volume_stitched")
    (True, False)
    """
    return fact == "started" or fact.endswith("_started")


def is_failure(fact: str, /) -> bool:
    """Return whether a fact says that work is parked as failed.

    Examples
    --------
    >>> is_failure("volume_failed"), is_failure("skipped")
    (True, False)
    """
    return fact == "failed" or fact.endswith("_failed")


def check_fact(item: ItemId, fact: str, /) -> str:
    """Return `fact`; raise ValueError, with the list of known facts, if items of this kind have no such fact.

    Examples
    --------
    >>> from opticstream.model.ids import TileId
    >>> check_fact(TileId(1, 1), "stitched")
    Traceback (most recent call last):
        ...
    ValueError: unknown fact 'stitched' of tile 1 of mosaic 1; expected one of processed, failed
    """
    known = facts_of(item.hierarchy)
    if fact not in known:
        raise ValueError(f"unknown fact {fact!r} of {item}; expected one of {', '.join(known)}")
    return fact


def check_claim(item: ItemId, work: str, /) -> str:
    """Return `work`; raise ValueError if items of this kind have no such claim."""
    if not is_claim(check_fact(item, work)):
        claims = [fact for fact in facts_of(item.hierarchy) if is_claim(fact)]
        raise ValueError(f"{work!r} of {item} is a fact, not a claim; claims of a {item.hierarchy}: {claims}")
    return work
