"""Flags of publication that an earlier version wrote, under the facts that they say now.

Earlier, the copy in the local archive tree was called `uploaded`. Now that is `published`, and `uploaded` says that
every remote target holds the result. A result is uploaded only after it has been published, so an `uploaded` flag
without a `published` flag beside it is of the earlier version. It counts as `published`, and is renamed before anything
else is recorded about the publication of its item; from then on the rule keeps applying. No flag has to be opened.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

EARLIER: Mapping[str, str] = MappingProxyType(
    {
        f"{prefix}{earlier}": f"{prefix}{now}"
        for prefix in ("", "volume_")
        for earlier, now in (
            ("upload_started", "publish_started"),
            ("upload_failed", "publish_failed"),
            ("uploaded", "published"),
        )
    }
)
"""The present name of each fact, by its name in the earlier version. The result comes last: when its flag has been
renamed, the others are no longer recognized as earlier ones."""
_LOCAL: Mapping[str, str] = MappingProxyType(
    {fact: ("volume_" if fact.startswith("volume_") else "") + "published" for fact in (*EARLIER, *EARLIER.values())}
)
PUBLICATION_WORDS = frozenset(_LOCAL)
"""Facts for which the flag file may have the name of the earlier version, or that may be meant by another name."""


def local_word(fact: str, /) -> str:
    """Return the fact that says that the same result is in the local archive tree.

    Examples
    --------
    >>> local_word("volume_uploaded"), local_word("upload_failed")
    ('volume_published', 'published')
    """
    return _LOCAL[fact]


def in_current_words(names: Collection[str], /) -> dict[str, str]:
    """Return the name of the flag file of each fact, from the names of an item's flag files of publication.

    Examples
    --------
    >>> in_current_words(["uploaded", "upload_started"])
    {'published': 'uploaded', 'publish_started': 'upload_started'}
    >>> in_current_words(["published", "uploaded"])
    {'published': 'published', 'uploaded': 'uploaded'}
    """
    found = {}
    for name in names:
        is_earlier = name in EARLIER and _LOCAL[name] not in names
        fact = EARLIER[name] if is_earlier else name
        if fact == name or fact not in names:
            found[fact] = name
    return found
