"""Checks of this host: packages, folders, limits."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from opticstream.config import DeploymentSettings
from opticstream.flows.contact import installed_version, needed_packages
from opticstream.flows.doctor._checks import Finding
from opticstream.flows.doctor._scene import Scene
from opticstream.system.cgroup import processor_limit
from opticstream.system.cores import available_cores
from opticstream.system.folders import folder_trouble
from opticstream.system.locks import has_record_locks
from opticstream.system.memory import memory_of_host
from opticstream.system.mounts import mount_of
from opticstream.system.places import can_run_programs
from opticstream.system.temporary_names import temporary_beside

LITTLE_HOME_BYTES = 1 << 30
"""Free space of the home folder below which the database of a server may soon have no room."""
LITTLE_TEMPORARY_BYTES = 256 << 20
FEW_FILES = 1024
LITTLE_MEMORY_BYTES = 4 << 30
"""Memory below which a mosaic of an ordinary microscope does not fit."""


def packages(_scene: Scene) -> Iterator[Finding]:
    """Compare Python and the installed packages with what the package says it needs."""
    trouble = []
    running = ".".join(map(str, sys.version_info[:3]))
    try:
        wanted = SpecifierSet(importlib.metadata.metadata("opticstream")["Requires-Python"] or "")
    except (importlib.metadata.PackageNotFoundError, KeyError):
        wanted = SpecifierSet()
    if running not in wanted:
        trouble.append(f"Python {running}, needed {wanted}")
    needed = needed_packages()
    for requirement in needed:
        found = installed_version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            trouble.append(f"{requirement.name} {found or 'is missing'}, needed {requirement.specifier or 'any'}")
    if trouble:
        advice = "install OpticStream anew into an environment of its own: `pip install -c constraints.txt .`"
        yield Finding("problem", "; ".join(trouble), advice)
        return
    yield Finding(
        "ok", f"Python {running}, Prefect {installed_version('prefect')}, and {len(needed)} packages, all as needed"
    )


def home(scene: Scene) -> Iterator[Finding]:
    """See whether the home folder can be written and locked, and where it lies."""
    folder = scene.home
    setting = "set OPTICSTREAM_HOME to a folder of this account on a local disk"
    if folder is None:
        yield Finding("problem", f"OPTICSTREAM_HOME = {scene.settings.home}: this account has no home folder", setting)
        return
    said = f"OPTICSTREAM_HOME = {folder}"
    existing = _existing(folder)
    if not folder.exists():
        if folder_trouble(existing, writes=True) is None:
            yield Finding("ok", f"{said}: not there yet; the first command makes it")
        else:
            reason = folder_trouble(existing, writes=True)
            yield Finding("problem", f"{said}: cannot be made in {existing}: {reason}", setting)
        return
    if (refusal := write_refusal(folder)) is not None:
        yield Finding("problem", f"{said}: cannot be written: {refusal}", setting)
        return
    mount = mount_of(folder)
    kind = "" if mount is None else f" ({mount.kind} at {mount.point})"
    if not has_record_locks(folder):
        yield Finding("problem", f"{said}{kind}: its file system has no file locks", setting)
    elif mount is not None and mount.is_of_network:
        yield Finding("warning", f"{said}{kind}: it lies on a network share, where a database is slow", setting)
    else:
        yield Finding("ok", f"{said}{kind}: can be written and locked")


def home_space(scene: Scene) -> Iterator[Finding]:
    """Measure the free space of the home folder and of the folder for temporary files."""
    folder = scene.home
    if folder is not None:
        yield _space(_existing(folder), "OPTICSTREAM_HOME", LITTLE_HOME_BYTES, "database and logs of a server")
    temporary = Path(tempfile.gettempdir())
    yield _space(temporary, "the folder for temporary files", LITTLE_TEMPORARY_BYTES, "what programs keep for a moment")


def _space(folder: Path, what: str, little: int, use: str) -> Finding:
    free = shutil.disk_usage(folder).free
    said = f"{what}, {folder}: {in_words(free)} free"
    if free < little // 8:
        return Finding("problem", f"{said}, for {use}", "free some space")
    if free < little:
        return Finding("warning", f"{said}, for {use}", "free some space soon")
    return Finding("ok", said)


def programs(scene: Scene) -> Iterator[Finding]:
    """See whether programs may run in the folder of temporary files, which warm starts need."""
    if not scene.settings.warm_starts:
        yield Finding("ok", "warm starts are off (OPTICSTREAM_WARM_STARTS)")
        return
    for parent in (tempfile.gettempdir(), os.getcwd()):
        if can_run_programs(Path(parent)):
            yield Finding("ok", f"programs may run in {parent}, so that flow runs start warm")
            return
    yield Finding(
        "warning",
        f"programs may not run in {tempfile.gettempdir()} (mounted noexec?): flow runs start slowly",
        "set TMPDIR to a folder on a file system without noexec, or OPTICSTREAM_WARM_STARTS=false",
    )


def open_files(_scene: Scene) -> Iterator[Finding]:
    """Read how many files a process may have open."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FEW_FILES:
        yield Finding("ok", f"{'any number of' if soft == resource.RLIM_INFINITY else soft} open files in a process")
        return
    most = "any number" if hard == resource.RLIM_INFINITY else hard
    yield Finding(
        "warning",
        f"a process may have {soft} files open; a volume of many tiles needs {FEW_FILES}",
        f"raise it before the worker starts: `ulimit -n 4096` (this account may have {most}), LimitNOFILE in systemd",
    )


def machine(scene: Scene) -> Iterator[Finding]:
    """Read how many processors and how much memory this process may use, inside a container as well."""
    cores, limit = available_cores(), processor_limit()
    shown = f"{cores} processors" if limit is None or limit >= cores else f"{cores} processors, limited to {limit:g}"
    memory, budget = memory_of_host(), scene.settings.memory_budget
    if memory is None:
        yield Finding("ok", f"{shown}, memory unknown")
    elif budget is not None and budget > memory:
        said = f"OPTICSTREAM_MEMORY_BUDGET = {in_words(budget)}, and this host has {in_words(memory)}"
        yield Finding("problem", said, "set it to three quarters of the memory, which is also the default")
    elif memory < LITTLE_MEMORY_BYTES:
        advice = "give this host or container more, or serve the pools `state` and `upload` only"
        yield Finding("warning", f"{shown}, {in_words(memory)} of memory, which is little for a mosaic", advice)
    elif limit is not None and limit < 1:
        yield Finding("warning", f"{shown}, {in_words(memory)} of memory", "give the container at least one processor")
    else:
        yield Finding("ok", f"{shown}, {in_words(memory)} of memory")


def settings_in_use(scene: Scene) -> Iterator[Finding]:
    """Name the settings of this host that the environment sets."""
    given = sorted(f"OPTICSTREAM_{name.upper()}" for name in scene.settings.model_fields_set)
    known = {f"OPTICSTREAM_{name.upper()}" for name in DeploymentSettings.model_fields} | _OF_OTHERS
    strange = sorted(name for name in os.environ if name.startswith("OPTICSTREAM_") and name not in known)
    if strange:
        advice = "correct the name; docs/reference/deployment.md lists all of them"
        yield Finding("warning", f"no such setting: {', '.join(strange)}", advice)
    else:
        yield Finding("ok", f"set in the environment: {', '.join(given) or 'nothing'}")


_OF_OTHERS = {"OPTICSTREAM_SHARED_DATA", "OPTICSTREAM_SESSION_HOME", "OPTICSTREAM_WARM_LAUNCHER"}
"""Variables of our own processes and tests, which are no settings."""


def write_refusal(folder: Path, /) -> str | None:
    """Return why a file cannot be written in a folder, None where it can; the file is removed at once."""
    probe = temporary_beside(folder / "doctor")
    try:
        probe.write_bytes(b"\n" * 4096)  # an empty file has room on a full disk
    except OSError as error:
        return error.strerror or str(error)
    finally:
        try:
            probe.unlink(missing_ok=True)
        except OSError:
            pass
    return None


def in_words(size: float, /) -> str:
    """Return a number of bytes with a unit.

    Examples
    --------
    >>> in_words(3 << 30), in_words(5 << 20)
    ('3.0 GiB', '5 MiB')
    """
    for unit, power in (("TiB", 40), ("GiB", 30)):
        if size >= 1 << power:
            return f"{size / (1 << power):.1f} {unit}"
    return f"{size / (1 << 20):.0f} MiB"


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
