"""A project of two small tiles, one column, for tests of files that change, move or lie elsewhere."""

from __future__ import annotations

from opticstream.model.ids import BatchId

PROJECT = """
[project]
project_name = "small"
project_base_path = "out"
[scan]
samples = 256
channels = 1
b_lines = 10
grid_size_y = 2
file_name = "mosaic_{mosaic:03d}_image_{tile:04d}.nii"
illuminations = [{ name = "normal", columns = 1, a_lines = 12 }]
[processing.enface]
modalities = ["aip", "mip", "surf"]
depth = 30
[processing.reconstruction]
volume_modalities = ["dBI"]
[processing.volume]
modalities = ["dBI"]
"""
BATCH = BatchId(1, 1)
