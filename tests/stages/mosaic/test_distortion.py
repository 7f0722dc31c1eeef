"""A distorted field of view: told of by default, corrected on request, the same in maps and volumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from opticstream.compute import axial
from opticstream.compute.stitching import Distortion
from opticstream.compute.stitching.volume import undistortion
from opticstream.config import IlluminationSettings, ScanSettings
from opticstream.config.coordinates import NativeCoordinates
from opticstream.config.processing import EnfaceSettings, MaskSettings, StitchSettings, VolumeSettings
from opticstream.io.images import read_image
from opticstream.io.nifti import write_nifti
from opticstream.io.paths import tile_product_name
from opticstream.io.tilemap import TileMap, TilePlace, read_tilemap, write_template
from opticstream.io.zarr import read_volume
from opticstream.model.errors import FileFormatError
from opticstream.model.ids import MosaicId, TileId
from opticstream.stages.mosaic import find_coordinates, stitch_mosaic
from opticstream.stages.volume import stitch_volume
from opticstream.testing.stitching_cases import VOXEL_MM
from opticstream.testing.tissue_mosaic import tissue_mosaic

MOSAIC = MosaicId(1)
SIDE = 160


@dataclass(frozen=True)
class Case:
    folder: Path
    scan: ScanSettings

    @property
    def template(self) -> Path:
        return self.folder / "tilemap.j2"

    def write(self, tile: int, modality: str, values: np.ndarray) -> None:
        write_nifti(self.folder / tile_product_name(TileId(1, tile), modality), np.asarray(values, np.float32))

    def coordinates(self, **settings: bool):
        self.template.unlink(missing_ok=True)
        return find_coordinates(
            MOSAIC,
            scan=self.scan,
            settings=NativeCoordinates(further_modalities=(), **settings),
            tiles_folder=self.folder,
            template_path=self.template,
        )

    def map_of(self, modality: str) -> np.ndarray:
        made = stitch_mosaic(
            MOSAIC,
            scan=self.scan,
            enface=EnfaceSettings(modalities=(modality,)),
            mask=MaskSettings(made_from=""),
            stitch=StitchSettings(formats=()),
            tiles_folder=self.folder,
            template_path=self.template,
            stitched_folder=self.folder / "stitched",
        )
        return read_image(made.outputs[modality])

    def volume_of(self, modality: str) -> np.ndarray:
        made = stitch_volume(
            MOSAIC,
            scan=self.scan,
            settings=VolumeSettings(modalities=(modality,)),
            tiles_folder=self.folder,
            template_path=self.template,
            focus_path=None,
            mask_path=None,
            stitched_folder=self.folder / "stitched",
            threads=2,
        )
        return read_volume(made.outputs[modality])


def case_of(folder: Path, columns: int, rows: int, tile_shape: tuple[int, int]) -> Case:
    scan = ScanSettings(
        samples=64,
        b_lines=tile_shape[1],
        grid_size_y=rows,
        tile_overlap=20,
        illuminations=(IlluminationSettings(name="normal", columns=columns, a_lines=tile_shape[0]),),
        scan_resolution_3d=VOXEL_MM,
        scan_order="column by column",
    )
    return Case(folder, scan)


def barrelled(folder: Path, barrel_px: float) -> Case:
    case = case_of(folder, 5, 5, (SIDE, SIDE))
    made = tissue_mosaic(
        "fibres",
        columns=5,
        rows=5,
        tile_shape=(SIDE, SIDE),
        coverage=1.0,
        speckle=0.05,
        jitter_px=1.0,
        barrel_px=barrel_px,
        seed=7,
    )
    for number, tile in enumerate(made.tiles, start=1):
        case.write(number, "aip", 10 * np.log10(np.maximum(tile, 1e-3)))
    return case


def test_a_distortion_is_told_of_and_left_alone_by_default_and_corrected_on_request(tmp_path: Path) -> None:
    case = barrelled(tmp_path, barrel_px=2.0)
    told = case.coordinates()
    assert "overlaps disagree in a pattern" in told.verdict.pattern
    assert told.tilemap.distortion_px == ()
    corrected = case.coordinates(correct_distortion=True)
    assert corrected.verdict.pattern == ""
    assert "tiles are freed of a distortion of" in corrected.verdict.sentence
    assert corrected.verdict.corrected_px == pytest.approx(told.verdict.bend_px)
    assert corrected.verdict.bend_px < 0.3 * told.verdict.bend_px
    assert corrected.verdict.rms_px <= told.verdict.rms_px + 0.02
    assert read_tilemap(case.template).distortion_px == corrected.tilemap.distortion_px != ()


def test_tiles_without_a_clear_distortion_are_taken_as_they_are(tmp_path: Path) -> None:
    case = barrelled(tmp_path, barrel_px=0.0)
    plain = case.coordinates()
    asked = case.coordinates(correct_distortion=True)
    assert asked.tilemap.places == plain.tilemap.places
    assert asked.tilemap.distortion_px == ()


@pytest.fixture
def placed(tmp_path: Path) -> Case:
    """Two tiles of smooth maps and volumes, of unequal sides, and a template that counts on a distortion."""
    case = case_of(tmp_path, 2, 1, (48, 40))
    places = (TilePlace(1, (0.0, 0.0)), TilePlace(2, (38.0, 1.0)))
    write_template(case.template, TileMap("normal", (48, 40), (2, 1), places, {}, (1.5, -1.0, 2.0)))
    x, y = np.meshgrid(np.arange(48.0), np.arange(40.0), indexing="ij")
    for tile in (1, 2):
        level = np.sin(x / 5 + tile) * np.cos(y / 7)
        for modality, values in {"aip": level, "ori": 60 * level + 60}.items():
            case.write(tile, modality, values)
        for modality, values in {"dBI": level, "O3D": 60 * level + 60}.items():
            case.write(tile, modality, np.repeat(values[:, :, None], 20, axis=2))
    return case


@pytest.mark.parametrize(("of_map", "of_volume"), [("aip", "dBI"), ("ori", "O3D")])
def test_maps_and_volumes_are_resampled_in_the_same_way(placed: Case, of_map: str, of_volume: str) -> None:
    image, plane = placed.map_of(of_map), placed.volume_of(of_volume)[:, :, 10]
    off = plane - image
    if of_map == "ori":
        off = axial.wrap(off)
    assert np.nanmax(np.abs(off)) < 1e-3
    assert np.array_equal(np.isnan(image), np.isnan(plane))
    placed.template.write_text(placed.template.read_text().replace("distortion:", "was:"))
    assert np.nanmax(np.abs(placed.map_of(of_map) - image)) > 0.1  # the distortion was taken out


def test_an_undistorted_tile_is_what_an_undistorted_field_of_view_would_have_seen() -> None:
    distortion = Distortion((1.2, -0.8, 1.5))
    shape = (64, 56)
    pixel = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"), axis=-1)
    seen_at = pixel + distortion.displacement_at(pixel, shape)

    def scene(place: np.ndarray) -> np.ndarray:
        return np.asarray(np.sin(place[..., 0] / 6) * np.cos(place[..., 1] / 5), np.float32)

    undistorted = undistortion(distortion, shape).image(scene(seen_at), axial=False)
    before, after = scene(seen_at) - scene(pixel), undistorted - scene(pixel)
    inner = (slice(3, -3), slice(3, -3))
    assert np.abs(after[inner]).max() < 0.02 < 0.1 < np.abs(before[inner]).max()


def test_an_axis_is_resampled_as_an_axis_across_the_wrap() -> None:
    angle = np.where(np.arange(40)[:, None] % 2, 89.0, -89.0).astype(np.float32) * np.ones((1, 40), np.float32)
    seen = undistortion(Distortion((1.0, 1.0, 0.0)), (40, 40)).image(angle, axial=True)
    assert np.abs(seen).min() > 88.9


def test_rows_of_a_tile_are_resampled_as_the_whole_is() -> None:
    recorded = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal((6, 50, 40)), 1).astype(np.float32)
    how = undistortion(Distortion((2.0, 1.0, -1.5)), (40, 50))
    whole, some = np.empty_like(recorded), np.empty((6, 9, 40), np.float32)
    how.resample(recorded, 0, whole, 0, axial=False)
    low, high = how.rows_needed(20, 29)
    assert high - low < 15
    how.resample(np.ascontiguousarray(recorded[:, low:high]), low, some, 20, axial=False)
    assert np.array_equal(some, whole[:, 20:29])


def test_a_template_with_a_damaged_distortion_is_refused(placed: Case) -> None:
    text = placed.template.read_text()
    placed.template.write_text(text.replace("distortion: [1.5,", "distortion: [.nan,"))
    with pytest.raises(FileFormatError, match=r"distortion is .* expected three finite numbers"):
        read_tilemap(placed.template)
