"""The volumes of one mosaic: stitch them from its tiles, in a memory budget."""

from __future__ import annotations

from opticstream.stages.volume._stitch_volume import (
    BASE_BYTES,
    VolumeResult,
    dask_executor,
    stitch_modality,
    stitch_volume,
)

__all__ = [
    "BASE_BYTES",
    "VolumeResult",
    "dask_executor",
    "stitch_modality",
    "stitch_volume",
]
