"""The volumes of one mosaic: stitch them from its tiles, in a memory budget."""

from __future__ import annotations

from opticstream.stages.volume._all_blocks import dask_executor
from opticstream.stages.volume._stitch_volume import VolumeResult, stitch_modality, stitch_volume

__all__ = ["VolumeResult", "dask_executor", "stitch_modality", "stitch_volume"]
