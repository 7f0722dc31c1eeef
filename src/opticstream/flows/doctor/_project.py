"""Checks of a project: its file, its folders as this host sees them, its registration, and work that is stuck."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from opticstream.config import ProjectConfig
from opticstream.config.coordinates import FijiCoordinates
from opticstream.config.engines import CudaEngine, MatlabEngine
from opticstream.config.overrides import differences
from opticstream.config.path_map import is_of_another_kind_of_host, said_of_path
from opticstream.flows.doctor._checks import Finding
from opticstream.flows.doctor._host import in_words, write_refusal
from opticstream.flows.doctor._scene import Scene
from opticstream.model.errors import CardError, ConfigurationError
from opticstream.state.raw_folders import RawFolders
from opticstream.system.folders import ABSENT, folder_trouble
from opticstream.system.mounts import mount_of

FEW_MOSAICS = 4
"""Room for so many mosaics is little: a microscope acquires them overnight."""
_MOST_STUCK = 5
_MAP = "mount it, or say in OPTICSTREAM_PATH_MAP where this host sees it"


def project_file(scene: Scene) -> Iterator[Finding]:
    """See whether the project can be read."""
    if scene.project is None:
        return
    found = scene.config_or_error
    if not isinstance(found, ProjectConfig):
        yield Finding("problem", str(found), "`opticstream project check PROJECT.toml` tells about each setting")
    else:
        scan = found.scan
        each = ", ".join(f"{i.name} {i.columns} x {scan.rows(n)} tiles" for n, i in enumerate(scan.illuminations))
        yield Finding("ok", f"{found.name}: {each}")


def project_folder(scene: Scene) -> Iterator[Finding]:
    """See whether this host finds the project's folder, and can read and write it."""
    config = scene.config
    folder = config.base_path
    said = f"project_base_path {_said(config.as_configured.base_path, folder)}"
    trouble = folder_trouble(folder, writes=True)
    if trouble == ABSENT:
        advice = f"{_MAP}; if it is a new project: `opticstream project register` makes the folder"
        yield Finding("problem", f"{said}: cannot be found on this host", advice)
        return
    if trouble is not None:
        yield Finding(
            "problem", f"{said}: cannot be used on this host: {trouble}", f"{_MAP}, or give this account access"
        )
        return
    if (refusal := write_refusal(folder)) is not None:
        yield Finding(
            "problem", f"{said}: cannot be written: {refusal}", "free some space, or give this account access"
        )
        return
    mount = mount_of(folder)
    kind = "" if mount is None else f" ({mount.kind} at {mount.point})"
    if mount is not None and mount.is_stamped_by_hosts:
        advice = "keep the clocks of all hosts together by NTP; claims are watched before they are taken over"
        yield Finding("ok", f"{said}{kind}: each host stamps its files by its own clock", advice)
    else:
        yield Finding("ok", f"{said}{kind}: can be read and written")


def project_space(scene: Scene) -> Iterator[Finding]:
    """Compare the free space of the project's folder, and of its archive, with the size of its mosaics."""
    config = scene.config
    size = _largest_mosaic_bytes(config)
    folders = {"project_base_path": config.base_path, "archive_path": config.project.archive_root}
    seen: set[int] = set()
    for name, folder in folders.items():
        there = _there(folder)
        if there is None:
            continue
        device = there.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(there).free
        said = f"{name} {folder}: {in_words(free)} free; the raw tiles of a mosaic take {in_words(size)}"
        if free < size:
            yield Finding("problem", said, "free some space: the results of one mosaic may take as much")
        elif free < FEW_MOSAICS * size:
            yield Finding("warning", said, "free some space: the results of a mosaic may take as much")
        else:
            yield Finding("ok", said)


def _largest_mosaic_bytes(config: ProjectConfig) -> int:
    scan = config.scan
    sizes = []
    for number, illumination in enumerate(scan.illuminations):
        tile = scan.raw_values_of_tile(number) * (1.5 if scan.raw_format == "packed12" else 2)
        sizes.append(tile * illumination.columns * scan.rows(number))
    return int(max(sizes))


def project_engines(scene: Scene) -> Iterator[Finding]:
    """See whether this host has MATLAB, Fiji or a graphics card, if the project uses them in a pool that it serves."""
    from opticstream.engines import check_card, fiji_program, matlab_program

    processing = scene.config.processing
    advice = "`opticstream engines check PROJECT.toml` tries it"
    if isinstance(processing.engine, MatlabEngine) and {"tile", "register"} & set(scene.pools):
        try:
            program = matlab_program(scene.settings, processing.engine)
        except ConfigurationError as error:
            yield Finding("problem", str(error), "install it, or serve other pools on this host")
        else:
            yield Finding("ok", f"{program.name} is {program.path}", advice)
    if isinstance(processing.engine, CudaEngine) and processing.engine.stages and "tile" in scene.pools:
        try:
            yield Finding("ok", f"tiles are made on a graphics card: {check_card()}", advice)
        except CardError as error:
            if processing.engine.required:
                yield Finding("problem", str(error), "serve other pools on this host, or set engine.required = false")
            else:
                yield Finding("warning", f"{error}; our compiled code makes the tiles here", advice)
    if isinstance(processing.coordinates, FijiCoordinates) and "stitch" in scene.pools:
        try:
            yield Finding("ok", f"Fiji is {fiji_program(scene.settings).path}", advice)
        except ConfigurationError as error:
            yield Finding("problem", str(error), "install it, or serve other pools on this host")


def _there(folder: Path) -> Path | None:
    """Return a folder, or the nearest one above it that can be looked at."""
    while folder_trouble(folder) is not None:
        if folder == folder.parent:
            return None
        folder = folder.parent
    return folder


def raw_folder(scene: Scene) -> Iterator[Finding]:
    """See whether this host finds and may read the raw tiles; nothing is ever written there."""
    config = scene.config
    folders = {config.project.raw_path: str(config.as_configured.project.raw_path)} if config.project.raw_path else {}
    if not folders and folder_trouble(config.base_path) is None:
        known = RawFolders(config.base_path, scene.settings.path_map)
        folders = {known.find(name): name for name in known.remembered()}
    for folder, configured in folders.items():
        said = f"raw folder {_said(Path(configured), folder)}"
        if trouble := folder_trouble(folder):
            advice = f"{_MAP}, set project.raw_path, or let this account read it"
            yield Finding("warning", f"{said}: cannot be read on this host: {trouble}", advice)
        elif folder_trouble(folder, writes=True) is None:
            yield Finding("ok", f"{said}: can be read; this account could also write there, and never does")
        else:
            yield Finding("ok", f"{said}: can be read, and not written, which is good")
    if not folders:
        yield Finding("ok", "no raw folder is known yet; `run` and `watch` are given one")


def registered(scene: Scene) -> Iterator[Finding]:
    """Compare the project file with what is registered at the server, which is what the flows use."""
    config = scene.config
    found = scene.registered(config.name)
    register = f"`opticstream project register {scene.project if scene.is_file else 'PROJECT.toml'}`"
    if found is None:
        yield Finding(
            "warning", f"{config.name} is not registered at the server", f"{register}, or `run` and `watch` do it"
        )
        return
    if not scene.is_file:
        yield Finding("ok", f"{config.name} is registered")
        return
    changed = differences(found.model_dump(mode="json"), config.model_dump(mode="json"))
    if changed:
        names = ", ".join(sorted(changed)[:_MOST_STUCK])
        more = f" and {len(changed) - _MOST_STUCK} more" if len(changed) > _MOST_STUCK else ""
        advice = f"{register} registers the file; until then the registered parameters rule"
        yield Finding("warning", f"the file differs from what is registered: {names}{more}", advice)
    else:
        yield Finding("ok", f"{config.name} is registered, equal to the file")


def stuck(scene: Scene) -> Iterator[Finding]:
    """See whether work of the project is stuck, or parked as failed."""
    from opticstream.pipeline.project import Project
    from opticstream.pipeline.stuck import stuck_items

    config = scene.config
    if folder_trouble(config.base_path) is not None:
        return
    found = stuck_items(Project.open(config, deployment=scene.settings))
    for one in found[:_MOST_STUCK]:
        yield Finding("warning", f"{one.item}: {one.what}: {one.why}", "see `opticstream status`")
    if len(found) > _MOST_STUCK:
        yield Finding("warning", f"and {len(found) - _MOST_STUCK} more", "`opticstream status` lists them")
    if not found:
        yield Finding("ok", "nothing is stuck")


def _said(configured: Path, here: Path) -> str:
    is_named_otherwise = str(configured) != str(here) or is_of_another_kind_of_host(configured)
    return said_of_path(configured, here) if is_named_otherwise else str(here)
