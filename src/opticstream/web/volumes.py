"""Volumes of a mosaic or the sample in Neuroglancer: what the viewer is told to show, and the files that it asks for.

The viewer is the client of Neuroglancer's Python package as it was built, without the package. It finds what to show
behind the ``#`` of its address, and reads the OME-Zarr stores themselves, part by part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from opticstream.io.pictures import display_range
from opticstream.io.zarr import read_attributes, read_volume, volume_reader, volume_voxel_um
from opticstream.model.ids import MosaicId, SampleId
from opticstream.model.modalities import MODALITIES, described_stack, volume_names
from opticstream.pipeline.project import Project
from opticstream.web.files import STORE

_PANEL_PX = (560, 280)
"""Width and height of the panel of the viewer into which the whole volume is to fit."""

_GREY = """#uicontrol invlerp normalized(range=[{low:.6g}, {high:.6g}])
void main() {{
  if (isnan(toRaw(getDataValue()))) {{ emitTransparent(); return; }}
  emitGrayscale(normalized());
}}"""
_HUE = """#uicontrol float brightness slider(min=0, max=1, default=1)
void main() {
  float angle = toRaw(getDataValue());
  if (isnan(angle)) { emitTransparent(); return; }
  vec3 hue = clamp(abs(fract(angle / 180.0 + vec3(0.0, 2.0 / 3.0, 1.0 / 3.0)) * 6.0 - 3.0) - 1.0, 0.0, 1.0);
  emitRGB(brightness * hue);
}"""
"""Colours of an axis as in the colour wheel of the pictures."""


@dataclass(frozen=True)
class Volume:
    """One volume of a mosaic or of the sample."""

    title: str
    """Name for people; it ends with that of the modality."""
    name: str
    """Name of its store, as in records."""
    stamp: int
    """A number that changes when the store is made again."""
    shape: tuple[int, int, int]
    """Voxels along x, y, z."""
    voxel_um: tuple[float, float, float]
    """Size of a voxel along x, y, z."""
    is_zarr_3: bool
    limits: tuple[float, float]
    """Values of black and of white."""

    @property
    def folder(self) -> str:
        """Address of its folder on the dashboard."""
        return f"/volumes/{self.stamp}/{quote(self.name, safe='/:')}/"


def volumes_of(project: Project, item: MosaicId | SampleId, /) -> list[Volume]:
    """Return the volumes of a mosaic, or the stacks of all slices of the sample; none before they are made.

    Those of a mosaic are in the order of the settings. Of the sample come first the stacks of volumes, then those of
    maps; vectors and labels have no picture in grey or in the colours of an axis, and are left out.

    Raises
    ------
    OpticStreamError
        A volume that is recorded cannot be read.
    """
    fact = "updated" if isinstance(item, SampleId) else "volume_stitched"
    record = project.facts.read_whole(item, fact)
    if record is None:
        return []
    stamp = project.facts.path(item, fact).stat().st_mtime_ns
    if isinstance(item, SampleId):
        stores = (file.path for file in record.outputs if file.path.endswith(STORE))
        products = _stacks(
            path for path in stores if not path.endswith(f"_scene{STORE}")
        )  # no viewer here shows scenes
    else:
        found: Mapping[str, Any] = record.detail.get("products") or {}
        products = {title: str(path) for title, path in found.items() if str(path).endswith(STORE)}
    return [_volume(project, title, name, stamp) for title, name in products.items()]


def _stacks(names: Iterable[str]) -> dict[str, str]:
    """Return the stores of the sample that can be shown, by their titles."""
    titled = {PurePosixPath(name).name.removesuffix(STORE): name for name in names}
    order = list(MODALITIES)

    def place(title: str) -> tuple[bool, int, str]:
        modality = described_stack(title).name
        return modality not in volume_names(), order.index(modality) if modality in order else len(order), title

    shown = [title for title in titled if described_stack(title).kind in ("scalar", "axial")]
    return {title: titled[title] for title in sorted(shown, key=place)}


def viewer_address(key: str, volumes: Sequence[Volume], /, *, origin: str) -> str:
    """Return the address of the viewer with all volumes of an item as layers, the first one visible.

    Parameters
    ----------
    key : str
        Key of the item.
    volumes : sequence of Volume
        At least one.
    origin : str
        Scheme, host and port under which the browser sees the dashboard.
    """
    return f"/v/{key}/#!{quote(json.dumps(viewer_state(volumes, origin=origin), separators=(',', ':')))}"


def viewer_state(volumes: Sequence[Volume], /, *, origin: str) -> dict[str, Any]:
    """Return what Neuroglancer is told to show."""
    first = volumes[0]
    smallest_um = min(first.voxel_um)
    width, height = (n * size / smallest_um for n, size in zip(first.shape[:2], first.voxel_um[:2], strict=True))
    return {
        "dimensions": {
            axis: [float(f"{size * 1e-6:.6g}"), "m"] for axis, size in zip("xyz", first.voxel_um, strict=True)
        },
        "crossSectionScale": max(width / _PANEL_PX[0], height / _PANEL_PX[1]),
        "projectionScale": 1.2 * max(width, height),
        "showAxisLines": False,
        "crossSectionBackgroundColor": "#000000",
        "layout": "4panel",
        "layers": [
            {
                "type": "image",
                "name": one.title,
                "source": f"{origin}{one.folder}|zarr{3 if one.is_zarr_3 else 2}:",
                "shader": _shader(one),
                "visible": one is first,
            }
            for one in volumes
        ],
    }


def _shader(volume: Volume) -> str:
    if described_stack(volume.title).is_axial:
        return _HUE
    low, high = volume.limits
    return _GREY.format(low=low, high=high)


def _volume(project: Project, title: str, name: str, stamp: int) -> Volume:
    path = project.paths.absolute(name)
    shape, _ = volume_reader(path)
    return Volume(
        title=title,
        name=name,
        stamp=stamp,
        shape=shape,
        voxel_um=volume_voxel_um(path),
        is_zarr_3=(path / "zarr.json").exists(),
        limits=_limits(path, described_stack(title).name),
    )


def _limits(path: Path, modality: str) -> tuple[float, float]:
    """Return the values of black and of white, from the coarsest level."""
    attributes = read_attributes(path)
    block = attributes.get("ome", attributes)["multiscales"][0]
    coarse = read_volume(path, level=len(block["datasets"]) - 1)
    low, high = display_range(modality, coarse[:, :, :: max(1, math.ceil(coarse.shape[2] / 32))])
    return low, high
