"""A preview of a tile that has to wait: its quality picture from every few A-lines and B-lines, in a second at most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.reconstruction import jones_from_complex_tile, jones_from_spectra
from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.io.atomic import write_bytes
from opticstream.io.paths import tile_product_name
from opticstream.io.raw import ComplexTile, SpectralShape, SpectralTile
from opticstream.model.errors import InputError
from opticstream.model.ids import TileId
from opticstream.stages.tile._picture import tile_picture
from opticstream.stages.tile._reconstruction import (
    arrays_from_jones,
    check_polarization,
    options_from_settings,
    plan_from_settings,
    read_surface,
)
from opticstream.system.cores import one_blas_thread

LARGEST = 8 << 20
"""Largest number of raw values that a preview is made from."""


def preview_path(out_dir: Path, tile: TileId, /) -> Path:
    """Return where the preview of a tile is, in the project's folder; it is removed when the tile has its picture.

    Examples
    --------
    >>> preview_path(Path("out"), TileId(3, 12)).as_posix()
    'out/mosaic-03/processed/mosaic_003_image_0012_preview.jpg'
    """
    name = tile_product_name(tile, "preview")
    return (out_dir / tile.mosaic.folder / "processed" / name).with_suffix(".jpg")


def draw_preview(
    source: Path, tile: TileId, /, *, scan: ScanSettings, processing: ProcessingSettings, out_dir: Path
) -> Path:
    """Draw the quality picture of a tile from a part of its A-lines, and return its path.

    Parameters
    ----------
    source : Path
        Raw file, not compressed.
    tile : TileId
        Its place in the acquisition.
    scan, processing : settings
        As for `process_tile`.
    out_dir : Path
        The project's folder.

    Raises
    ------
    MissingInputError, TileSizeError, FileFormatError, InputError
        The raw file is absent, of another size, damaged, compressed, or cannot be read.
    CalibrationError, ConfigurationError
        Settings or calibration files cannot be used.
    """
    check_polarization(scan, processing)
    index = scan.layout.illumination_index(tile.mosaic)
    a_lines, b_lines = scan.tile_shape(index)
    step = 1
    while -(-a_lines // step) * -(-b_lines // step) * scan.samples * scan.channels > LARGEST:
        step += 1
    with one_blas_thread():
        jones = _profiles(source, scan, processing, (a_lines, b_lines), step, f"scan.illuminations[{index}]")
        given = None
        if isinstance(processing.enface.surface, str) and processing.enface.surface.endswith((".nii", ".nii.gz")):
            given = read_surface(Path(processing.enface.surface), (a_lines, b_lines))[::step, ::step]
        arrays = arrays_from_jones(jones, options_from_settings(scan, processing, given_surface=given))

    def enlarged(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return image.repeat(step, axis=0).repeat(step, axis=1)[:a_lines, :b_lines]

    content = tile_picture(
        {name: enlarged(image) for name, image in arrays.maps.items()},
        arrays.section_x.repeat(step, axis=0)[:a_lines],
        arrays.section_y.repeat(step, axis=0)[:b_lines],
        noise_db=arrays.noise_db,
    )
    return write_bytes(preview_path(out_dir, tile), content)


def _profiles(
    source: Path,
    scan: ScanSettings,
    processing: ProcessingSettings,
    size: tuple[int, int],
    step: int,
    setting: str,
) -> NDArray[np.complex64]:
    """Return the complex profiles of every few A-lines of every few B-lines, shape (channels, x, y, z)."""
    (a_lines, b_lines), wanted = size, range(0, size[1], step)
    if source.suffix == ".gz":
        raise InputError(f"{source}: is compressed, so that its preview would take as long as the tile")
    if scan.raw_format == "complex":
        with ComplexTile.open(
            source, a_lines=a_lines, b_lines=b_lines, channels=scan.channels, setting=setting
        ) as complex_tile:
            lines = np.concatenate([complex_tile.block(line, 1) for line in wanted], axis=1)
        return np.ascontiguousarray(jones_from_complex_tile(lines, channels=scan.channels)[:, ::step])
    shape = SpectralShape(scan.samples, a_lines, scan.channels, b_lines, setting)
    with SpectralTile.open(source, shape, raw_format=scan.raw_format) as tile:
        counts = np.concatenate([tile.b_line(line)[np.newaxis, :, ::step] for line in wanted])
    return jones_from_spectra(counts, plan_from_settings(scan, processing.reconstruction))
