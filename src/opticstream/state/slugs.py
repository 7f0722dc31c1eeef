"""Names of projects as servers and file systems accept them: lower-case letters, digits and dashes.

A name that is already acceptable is not changed. Any other is converted and gets a checksum of the original, so that
no two projects ever share a slug.
"""

from __future__ import annotations

import hashlib
import re

MAX_SLUG = 80
_PLAIN = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_MARKED = re.compile(r".*-x[0-9a-f]{12}")


def project_slug(project_name: str, /) -> str:
    """Return the project's name in the characters that Prefect allows in names of Variables, limits and artifacts.

    No two names have the same slug, and no slug holds two dashes in a row, which separates it from what follows.

    Raises
    ------
    ValueError
        The name is empty.

    Examples
    --------
    >>> project_slug("i80-ps-oct")
    'i80-ps-oct'
    >>> project_slug("I80 PS-OCT"), project_slug("I80/PS.OCT")
    ('i80-ps-oct-x9694dfe3fd2b', 'i80-ps-oct-xc09dcbf672ec')
    """
    if not project_name.strip():
        raise ValueError(f"a project needs a name, got {project_name!r}")
    if len(project_name) <= MAX_SLUG and _PLAIN.fullmatch(project_name) and not _MARKED.fullmatch(project_name):
        return project_name
    readable = re.sub(r"[^a-z0-9]+", "-", project_name.lower()).strip("-")[: MAX_SLUG - 14].strip("-") or "project"
    return f"{readable}-x{hashlib.sha256(project_name.encode()).hexdigest()[:12]}"


def artifact_key(project_name: str, what: str, /) -> str:
    """Return the key of a project's artifact; no slug holds two dashes in a row, so no two projects share one.

    Examples
    --------
    >>> artifact_key("i55", "mosaic-1-progress"), artifact_key("i55-mosaic-1", "progress")
    ('i55--mosaic-1-progress', 'i55-mosaic-1--progress')
    """
    return f"{project_slug(project_name)}--{what}"


def state_name(project_name: str, pipeline: str, /) -> str:
    """Return the name under which the state of a project in a pipeline (``oct``, ``lsm``) is kept and locked.

    Examples
    --------
    >>> state_name("i80", "oct")
    'i80-oct-state'
    """
    return f"{project_slug(project_name)}-{pipeline}-state"
