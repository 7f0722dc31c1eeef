"""Zarr and OME-Zarr: layout of stores, writing, reading.

Stores of volumes (`store_layout`, `StoreWriter`), stores of a sample that grow by one slice at a time (`SliceStore`),
and images of any program (`open_zarr_image`, `volume_reader`).
"""

from __future__ import annotations

from opticstream.io.canvas import BlockReader
from opticstream.io.zarr._displacements import DisplacementField, write_displacements
from opticstream.io.zarr._images import ZarrImage, open_zarr_image, readable_zarr
from opticstream.io.zarr._isotropic import ISOTROPIC_UM, write_isotropic
from opticstream.io.zarr._layout import IN_PASS_LEVELS, SHARD, StoreLayout, Version, multiscales_metadata, store_layout
from opticstream.io.zarr._reading import (
    read_attributes,
    read_volume,
    shrunk_planes,
    volume_reader,
    volume_voxel_um,
)
from opticstream.io.zarr._scene import FIELDS, SAMPLE_SPACE, PlacedVolume, write_scene
from opticstream.io.zarr._slices import SliceStore, planes_of_slice
from opticstream.io.zarr._views import (
    SampleViews,
    Section,
    mean_of_planes,
    sample_views,
    section_through,
    thumbnail_planes,
)
from opticstream.io.zarr._writing import LevelArrays, StoreWriter, remove_notes, was_finished

__all__ = [
    "FIELDS",
    "IN_PASS_LEVELS",
    "ISOTROPIC_UM",
    "SAMPLE_SPACE",
    "SHARD",
    "BlockReader",
    "DisplacementField",
    "LevelArrays",
    "PlacedVolume",
    "SampleViews",
    "Section",
    "SliceStore",
    "StoreLayout",
    "StoreWriter",
    "Version",
    "ZarrImage",
    "mean_of_planes",
    "multiscales_metadata",
    "open_zarr_image",
    "planes_of_slice",
    "read_attributes",
    "read_volume",
    "readable_zarr",
    "remove_notes",
    "sample_views",
    "section_through",
    "shrunk_planes",
    "store_layout",
    "thumbnail_planes",
    "volume_reader",
    "volume_voxel_um",
    "was_finished",
    "write_displacements",
    "write_isotropic",
    "write_scene",
]
