"""A project whose mosaics are stitched already, as the facts say: for tests of what comes after stitching."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.config import DeploymentSettings, load_project
from opticstream.io.atomic import write_text
from opticstream.io.nifti import write_nifti
from opticstream.io.zarr import SliceStore
from opticstream.model.events import SliceReady
from opticstream.model.ids import MosaicId, SliceId
from opticstream.pipeline.project import Project
from opticstream.testing.slice_phantom import BeamMaps, SlicePhantom

VOXEL_MM = (0.01, 0.01, 0.0025)

_PROJECT = """\
[project]
project_name = "stitched"
project_base_path = "project"

[scan]
scan_resolution_3d = [0.01, 0.01, 0.0025]
slice_thickness_um = 20.0
illuminations = [
{illuminations}
]
"""


def stitched_project(folder: Path, phantoms: Sequence[SlicePhantom], /, *, more: str = "") -> Project:
    """Return a project in `folder` whose slices show the phantoms, each stitched and ready to be registered.

    Parameters
    ----------
    folder : Path
        Gets `project.toml` and the project's folder `project`.
    phantoms : sequence of SlicePhantom
        One for each slice; all with the same beams, of which the first is the illumination `normal`.
    more : str
        Further lines of the project file.
    """
    beams = phantoms[0].beams
    rows = [
        f'    {{ name = "{illumination_name(k)}", tilt_deg = {beam.tilt_deg}, tilt_axis_deg = {beam.tilt_axis_deg}, '
        "columns = 1, a_lines = 8 },"
        for k, beam in enumerate(beams)
    ]
    text = _PROJECT.format(illuminations="\n".join(rows)) + more
    config = load_project(write_text(folder / "project.toml", text))
    project = Project.open(config, deployment=DeploymentSettings(lease_s=5, attempts=1))
    for number, phantom in enumerate(phantoms, 1):
        for mosaic, beam in zip(project.layout.mosaics(SliceId(number)), phantom.beams, strict=True):
            record_stitched(project, mosaic, beam)
        project.facts.record(SliceId(number), "ready")
    return project


def illumination_name(index: int, /) -> str:
    """Return the name of an illumination: normal, tilted, beam3, ..."""
    known = ("normal", "tilted")
    return known[index] if index < len(known) else f"beam{index + 1}"


def record_stitched(project: Project, mosaic: MosaicId, beam: BeamMaps, /) -> None:
    """Write what a beam sees as the stitched maps of a mosaic and record them, in place of earlier ones."""
    maps: dict[str, NDArray[Any]] = {
        "ori": beam.orientation_deg,
        "biref": beam.birefringence,
        "aip": beam.intensity,
        "mask": np.ones(beam.birefringence.shape, np.uint8),
    }
    outputs = {
        name: write_nifti(project.paths.mosaic_product(mosaic, name), image[..., None], voxel_size_mm=VOXEL_MM)
        for name, image in maps.items()
    }
    project.facts.replace(
        mosaic,
        "stitched",
        {
            "outputs": [project.facts.file_record(path) for path in outputs.values()],
            "detail": {"products": {name: project.paths.relative(path) for name, path in outputs.items()}},
        },
        why="a test",
    )


def record_volume(project: Project, mosaic: MosaicId, value: float, /, *, shape: tuple[int, int, int]) -> Path:
    """Write a volume of one value as the stitched `dBI` of a mosaic, record it, and return its path."""
    path = project.paths.mosaic_volume(mosaic, "dBI")
    store = SliceStore(path, shape[2], (10.0, 10.0, 2.5))
    store.put(0, shape[:2], lambda xs, ys: np.full((xs.stop - xs.start, ys.stop - ys.start, shape[2]), value))
    detail = {"products": {"dBI": project.paths.relative(path)}}
    project.facts.replace(mosaic, "volume_stitched", {"detail": detail}, why="a test")
    return path


def slice_ready(project: Project, slice_id: int, /) -> SliceReady:
    """Return the announcement that a slice is ready."""
    return project.event(SliceReady, SliceId(slice_id))
