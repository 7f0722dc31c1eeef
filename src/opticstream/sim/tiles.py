"""One raw tile: the sample under the beam of one illumination, seen through the spectrometer, block of lines by block.

Blocks of B-lines keep memory bounded; every line draws its own random numbers, so that a tile's bytes depend on the
settings and the seed only, not on the order or the company in which tiles are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from opticstream.config.project import ProjectConfig
from opticstream.model.ids import MosaicId, SliceId, TileId
from opticstream.model.layout import AcquisitionLayout
from opticstream.sim._kernels import round_trip_fields, spread_laterally
from opticstream.sim.cutting import Cutting, bent_axes
from opticstream.sim.fields import Grid
from opticstream.sim.instrument import Spectrometer
from opticstream.sim.optics import apparent_from_axis, beam_frame, rotate_in_plane
from opticstream.sim.phantom import FaceMaps, Sample, TissueMaps
from opticstream.sim.scan_stage import Placement, Stage
from opticstream.sim.settings import Corner, PhantomSettings

Array = NDArray[np.float64]
Fields = NDArray[np.complex64]

NOMINAL_FIRST_BIN = 24
"""First depth bin that a reconstruction with the default cut keeps; depths in the settings count from it."""

_VOXELS_PER_BLOCK = 3 << 20


@dataclass(frozen=True)
class BeamView:
    """What one beam meets on a grid: maps per layer (layers, x, y), and the face."""

    layers: tuple[TissueMaps, ...]
    apparent_birefringence: Array
    apparent_angle: Array
    face: FaceMaps


class TileSimulator:
    """Makes the raw tiles of a project, each from nothing but the settings and its id.

    Parameters
    ----------
    config : ProjectConfig
        How the sample is scanned.
    settings : PhantomSettings
        The sample and the instrument.
    """

    def __init__(self, config: ProjectConfig, settings: PhantomSettings, /) -> None:
        self.config, self.settings = config, settings
        self.scan = scan = config.scan
        self.layout: AcquisitionLayout = scan.layout
        self.stage = Stage(scan, settings.stage, seed=settings.seed, cutting=settings.cutting)
        self.cutting = Cutting(settings.cutting, seed=settings.seed)
        self.spectrometer = Spectrometer(scan, settings.instrument, seed=settings.seed)
        self.depth_step_um = scan.scan_resolution_3d[2] * 1e3
        x_mm, y_mm, _ = scan.scan_resolution_3d
        extent_um = self.stage.field_um()
        self.sample = Sample(
            settings,
            extent_um=extent_um,
            corners_um={
                corner: self._corner_um(corner, extent_um, (x_mm * 1e3, y_mm * 1e3))
                for corner in settings.sample.blank_corners
            },
            slice_thickness_um=scan.slice_thickness_um,
            depth_step_um=self.depth_step_um,
        )

    def _corner_um(
        self, corner: Corner, extent_um: tuple[float, float], pixel_um: tuple[float, float]
    ) -> tuple[float, float]:
        """Return how far the tiles at a corner of the grid reach into the field, in any mosaic, along x and y."""
        reach = np.zeros(2)
        for mosaic in self.mosaics():
            index = self.layout.illumination_index(mosaic)
            grid = self.layout.illumination_of(mosaic)
            wanted = (
                0 if corner.startswith("left") else grid.columns - 1,
                0 if corner.endswith("down") else grid.rows - 1,
            )
            tile = next(t for t in self.layout.tiles(mosaic) if self.layout.grid_position(t) == wanted)
            placement = self.stage.placement(mosaic)
            low = np.asarray(self.stage.position_px(tile))
            high = low + self.scan.tile_shape(index)
            for point in ((low[0], low[1]), (low[0], high[1]), (high[0], low[1]), (high[0], high[1])):
                x, y = pixel_um * (placement.matrix @ np.asarray(point) + placement.shift_px)
                from_corner = (
                    x if corner.startswith("left") else extent_um[0] - x,
                    y if corner.endswith("down") else extent_um[1] - y,
                )
                reach = np.maximum(reach, from_corner)
        return float(reach[0] + 2 * pixel_um[0]), float(reach[1] + 2 * pixel_um[1])

    # -- geometry ----------------------------------------------------------------------------------------------------

    def frame(self, illumination: int) -> Array:
        """Return the image axes and the direction of the beam of an illumination (rows e1, e2, k)."""
        settings = self.scan.illuminations[illumination]
        return beam_frame(settings.tilt_deg, settings.tilt_axis_deg)

    def gate_px(self, illumination: int, /, *, margin: int = 0) -> Array:
        """Return the path-length variation over a tile's field of view, shape (A-lines, B-lines), in depth samples.

        It is the same in every tile of the illumination; its mean over the field of view is not zero. `margin` adds
        pixels on every side.
        """
        instrument = self.settings.instrument
        width, height = self.scan.tile_shape(illumination)
        u = (2 * np.arange(-margin, width + margin) / max(width - 1, 1) - 1)[:, None]
        v = (2 * np.arange(-margin, height + margin) / max(height - 1, 1) - 1)[None, :]
        xx, yy, xy = instrument.curvature_px
        tilt = self.scan.illuminations[illumination]
        across = np.deg2rad(tilt.tilt_axis_deg - 90)
        slope = instrument.gate_tilt_px_per_deg * tilt.tilt_deg
        gate_x = instrument.gate_tilt_px[0] + slope * np.cos(across)
        gate_y = instrument.gate_tilt_px[1] + slope * np.sin(across)
        return np.asarray(xx * u**2 + yy * v**2 + xy * u * v + gate_x * u + gate_y * v)

    def look(self, placement: Placement, illumination: int, slice_id: int, grid: Grid, /) -> BeamView:
        """Return what the beam of an illumination meets on a grid of sample points."""
        frame = self.frame(illumination)
        layers, birefringence, angle = [], [], []
        bent, slopes = self._bent(grid, slice_id)
        face_um = self.sample.face_depth_um(slice_id) + self._deeper_um(grid, slice_id)
        for depth_um in self.layer_depths_um():
            along = (placement.matrix @ frame[2, :2]) * depth_um if self.settings.instrument.walk_off else (0.0, 0.0)
            below = depth_um * frame[2, 2] if self.settings.sample.depth_scale_um is not None else 0.0
            tissue = self.sample.tissue(bent.moved(float(along[0]), float(along[1])), face_um + below)
            if slopes is not None:
                tissue = replace(tissue, axis=bent_axes(tissue.axis, np.eye(2)[:, :, None, None] + slopes))
            seen = apparent_from_axis(
                rotate_in_plane(tissue.axis, -placement.rotation_deg), tissue.birefringence, frame
            )
            layers.append(tissue)
            birefringence.append(seen[0])
            angle.append(seen[1])
        face = self._face(grid, slice_id)
        return BeamView(tuple(layers), np.stack(birefringence), np.stack(angle), face)

    def _bent(self, grid: Grid, slice_id: int) -> tuple[Grid, Array | None]:
        """Return where the tissue of the points of a grid comes from, and how its displacement changes along them."""
        bend = self.cutting.bend_um(slice_id, grid)
        return (grid, None) if bend is None else (grid.bent(bend), self.cutting.bend_slopes(slice_id, grid))

    def _deeper_um(self, grid: Grid, slice_id: int) -> float | Array:
        """Return how much deeper than a level face the slice's face lies; a wedge is deepest at the right edge."""
        wedge = self.cutting.wedge_um(slice_id)
        return wedge * grid.coordinates()[0] / self.sample.extent_um[0] if wedge else 0.0

    def _face(self, grid: Grid, slice_id: int) -> FaceMaps:
        bent, _ = self._bent(grid, slice_id)
        return self.sample.face(grid, slice_id, tissue=bent, deeper_um=self._deeper_um(grid, slice_id))

    @property
    def layer_step_um(self) -> float:
        """Thickness of a sub-layer along the beam; infinite where nothing changes along the A-line."""
        changes = self.settings.sample.depth_scale_um is not None or self.settings.instrument.walk_off
        return self.settings.sample.layer_step_um if changes else np.inf

    def layer_depths_um(self) -> list[float]:
        """Return the depths along the beam, below the surface, at which the sample is evaluated."""
        if not np.isfinite(self.layer_step_um):
            return [0.0]
        total = self.scan.samples / 2 * self.depth_step_um
        return [(k + 0.5) * self.layer_step_um for k in range(int(np.ceil(total / self.layer_step_um)))]

    def half_retardance(self, view: BeamView, /) -> Array:
        """Return half of the single-pass retardance of one depth sample, in radians, shape (layers, x, y)."""
        return np.pi * view.apparent_birefringence * self.depth_step_um / self.scan.wavelength_um

    # -- fields and counts -------------------------------------------------------------------------------------------

    def _rng(self, tile: TileId, line: int, *what: int) -> np.random.Generator:
        entropy = [self.settings.seed, tile.mosaic_id, tile.tile_id, line + (1 << 20), *what]
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))

    def _spread(self, slice_id: int) -> NDArray[np.float32]:
        sigma = float(np.hypot(self.settings.instrument.lateral_fwhm_px / 2.3548, self.cutting.blur_px(slice_id)))
        radius = int(np.ceil(3 * sigma))
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2) if sigma > 0 else np.ones(1)
        return np.asarray(weights / np.sqrt(np.sum(weights**2)), dtype=np.float32)

    def block_lines(self, illumination: int, /) -> int:
        """Return the number of B-lines that are made at a time: at least three blocks per tile, bounded memory."""
        width, height = self.scan.tile_shape(illumination)
        return max(1, min(-(-height // 3), _VOXELS_PER_BLOCK // (width * self.scan.samples // 2)))

    def fields(self, tile: TileId, /) -> Iterator[tuple[int, int, Fields, Fields]]:
        """Yield (first line, first bin, field of channel 1, field of channel 2) block by block.

        Fields have shape (lines, A-lines, depth) and are relative to the reference arm. With one channel the first of
        them is all zero and the second carries the light.
        """
        layout, settings = self.layout, self.settings
        illumination, slice_id = layout.illumination_index(tile.mosaic), layout.slice_of(tile.mosaic).slice_id
        placement = self.stage.placement(tile.mosaic)
        position = np.asarray(self.stage.position_px(tile))
        width, height = self.scan.tile_shape(illumination)
        weights = self._spread(slice_id)
        radius = len(weights) // 2
        gate = self.gate_px(illumination, margin=radius)
        # One depth range for the whole tile, so that blocks draw the same random numbers as a whole tile would.
        whole = self._face(placement.grid(position, (width, height)), slice_id)
        highest = float((whole.height_px - whole.bubble_px).min() + gate.min())
        last_bin = self.scan.samples // 2
        # A surface below the depth range leaves an empty tile, not an error.
        first_bin = min(max(1, int(np.floor(NOMINAL_FIRST_BIN + highest)) - 2), last_bin - 1)
        step = self.block_lines(illumination)
        for start in range(0, height, step):
            lines = min(step, height - start)
            grid = placement.grid(
                position + np.array([-radius, start - radius]), (width + 2 * radius, lines + 2 * radius)
            )
            view = self.look(placement, illumination, slice_id, grid)
            gate_here = gate[:, start : start + lines + 2 * radius]
            depth = last_bin - first_bin
            scatterers = np.empty((lines + 2 * radius, width + 2 * radius, depth), dtype=np.complex64)
            for k in range(lines + 2 * radius):
                numbers = self._rng(tile, start + k - radius, 0).standard_normal(
                    (width + 2 * radius, 2 * depth), dtype=np.float32
                )
                scatterers[k] = numbers.view(np.complex64)
            scatterers *= np.float32(np.sqrt(0.5))
            first, second = self._fields_from_view(view, gate_here, scatterers, first_bin, settings)
            if radius:
                first, second = _spread(first, weights), _spread(second, weights)
            gain_db = self.cutting.gain_db(slice_id)
            if gain_db:
                gain = np.float32(10 ** (gain_db / 20))
                first, second = first * gain, second * gain
            yield start, first_bin, first, second

    def _fields_from_view(
        self, view: BeamView, gate: Array, scatterers: Fields, first_bin: int, settings: PhantomSettings
    ) -> tuple[Fields, Fields]:
        tissue, instrument = settings.sample, settings.instrument
        white = 10 ** (instrument.scattering_db / 20)
        face = view.face
        table_step = 2.0
        layer_step = self.layer_step_um if np.isfinite(self.layer_step_um) else 1e9
        table = self.sample.layer_amplitudes(np.arange(4096.0) * table_step)
        half = self.half_retardance(view) if self.scan.channels == 2 else np.zeros_like(view.apparent_angle)
        first = np.empty_like(scatterers)
        second = np.empty_like(scatterers)
        if instrument.focus_depth_px is None:
            focus, rayleigh = np.zeros(gate.shape), 1e12
        else:
            focus, rayleigh = NOMINAL_FIRST_BIN + instrument.focus_depth_px + gate, instrument.rayleigh_um
        round_trip_fields(
            scatterers,
            first_bin,
            _lines_first(NOMINAL_FIRST_BIN + face.height_px + gate),
            self.depth_step_um,
            layer_step,
            _lines_first(half),
            _lines_first(view.apparent_angle),
            _lines_first(white * np.sqrt(np.stack([layer.scattering for layer in view.layers]))),
            _lines_first(np.stack([layer.attenuation_per_um for layer in view.layers])),
            10 ** (tissue.vessels.lumen_db / 20),
            10 ** (tissue.vessels.shadow_db / 20),
            _lines_first(face.vessel_depth_um),
            _lines_first(face.vessel_half_um),
            max(tissue.vessels.radius_um, 1e-9),
            _lines_first(face.bubble_px),
            white * 10 ** (tissue.bubbles.reflection_db / 20),
            10 ** (tissue.bubbles.shadow_db / 20),
            table,
            table_step,
            _lines_first(face.layer_shift_um + 4000.0),
            10 ** (tissue.surface_reflection_db / 20),
            _lines_first(focus),
            rayleigh,
            np.deg2rad(instrument.phase_offset_deg),
            first,
            second,
        )
        return first, second

    def spectra(self, tile: TileId, /) -> Iterator[NDArray[np.uint16]]:
        """Yield raw counts, shape (lines, channels, A-lines, samples), as they lie on the disk, block by block."""
        scan, spectrometer = self.scan, self.spectrometer
        source = self.settings.instrument.source
        autocorrelation = self.settings.instrument.autocorrelation
        matrices: list[NDArray[np.float32]] = []
        for start, first_bin, first, second in self.fields(tile):
            lines, a_lines, depth = first.shape
            if not matrices:
                bins = first_bin + np.arange(depth)
                matrices = [
                    spectrometer.fringe_matrix(bins, c, quadrature=autocorrelation) for c in range(scan.channels)
                ]
            out = np.empty((lines, scan.channels, a_lines, scan.samples), dtype=np.uint16)
            generators = [self._rng(tile, start + k, 1) for k in range(lines)]
            gain = np.empty((lines, a_lines), dtype=np.float32)
            for k, rng in enumerate(generators):
                gain[k] = 1 + source.rin_line * rng.standard_normal(a_lines)
            for c, field in enumerate([first, second] if scan.channels == 2 else [second]):
                noise = np.empty((lines, a_lines, scan.samples), dtype=np.float32)
                for k, rng in enumerate(generators):
                    rng.standard_normal(dtype=np.float32, out=noise[k])
                out[:, c] = spectrometer.counts(
                    field,
                    matrices[c],
                    c,
                    line_gain=gain,
                    noise=noise,
                    reverse=c == 1 and self.config.processing.reconstruction.flip_channel2,
                )
            yield out

    def tile(self, tile: TileId, /) -> NDArray[np.uint16]:
        """Return a whole raw tile, shape (B-lines, channels, A-lines, samples)."""
        return np.concatenate(list(self.spectra(tile)))

    def mosaics(self) -> tuple[MosaicId, ...]:
        """Return all mosaics of all slices that are imaged, in the order of acquisition."""
        return tuple(m for s in self.slices() for m in self.layout.mosaics(SliceId(s)))

    def slices(self) -> tuple[int, ...]:
        """Return the numbers of the slices that are imaged."""
        missing = self.settings.cutting.missing
        return tuple(s for s in range(1, self.settings.slices + 1) if s not in missing)

    def bare_mosaics(self) -> tuple[MosaicId, ...]:
        """Return the mosaics that meet no tissue at all: its outline leaves out all that their tiles see."""
        return tuple(m for m in self.mosaics() if not any(self._meets_tissue(tile) for tile in self.tiles_of(m)))

    def _meets_tissue(self, tile: TileId) -> bool:
        grid = self.stage.placement(tile.mosaic).grid(
            self.stage.position_px(tile), self.scan.tile_shape(self.layout.illumination_index(tile.mosaic))
        )
        face_um = self.sample.face_depth_um(self.layout.slice_of(tile.mosaic).slice_id)
        return bool(self.sample.inside(grid, face_um).any())

    def tiles(self) -> tuple[TileId, ...]:
        """Return all tiles that are imaged, in the order of acquisition."""
        return tuple(t for m in self.mosaics() for t in self.tiles_of(m))

    def tiles_of(self, mosaic: MosaicId, /) -> tuple[TileId, ...]:
        """Return the tiles of a mosaic that are imaged: of an incomplete slice, the first columns only."""
        share = self.cutting.covered_share(self.layout.slice_of(mosaic).slice_id)
        columns = max(1, round(share * self.layout.illumination_of(mosaic).columns))
        return tuple(t for t in self.layout.tiles(mosaic) if self.layout.grid_position(t)[0] < columns)


def _lines_first(array: Array) -> Array:
    return np.ascontiguousarray(np.swapaxes(array, -1, -2))


def _spread(field: Fields, weights: NDArray[np.float32]) -> Fields:
    rim = len(weights) - 1
    lines, a_lines, depth = field.shape
    out = np.empty((lines - rim, a_lines - rim, depth), dtype=np.complex64)
    spread_laterally(field, weights, np.empty((a_lines, depth), dtype=np.complex64), out)
    return out
