"""Pictures of the phantom for people: the truth of a mosaic, and what one tile looks like through the instrument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.config.scan import NoLinearization
from opticstream.io.atomic import atomic_path
from opticstream.model.ids import MosaicId, TileId
from opticstream.sim.onboard import complex_from_counts
from opticstream.sim.tiles import NOMINAL_FIRST_BIN, BeamView, TileSimulator

Array = NDArray[np.float64]


def axis_rgb(angle_rad: Array, brightness: Array, /) -> Array:
    """Return an RGB image in which hue is the angle of an axis (red along x, cyan along y)."""
    from matplotlib.colors import hsv_to_rgb

    hue = np.mod(angle_rad, np.pi) / np.pi
    return np.asarray(hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.9), np.clip(brightness, 0, 1)], axis=-1)))


def write_phantom_pictures(simulator: TileSimulator, folder: Path, /, *, tile: TileId | None = None) -> list[Path]:
    """Write pictures of the first mosaic of every illumination and of one tile, and return the paths.

    Parameters
    ----------
    simulator : TileSimulator
        Project and phantom.
    folder : Path
        Where the pictures go.
    tile : TileId, optional
        Tile to look at; default: the one in the middle of the first mosaic.
    """
    made = [_write_truth_picture(simulator, folder / "phantom-truth.png")]
    chosen = tile or TileId(1, simulator.layout.illumination_of(MosaicId(1)).tiles // 2)
    made.append(_write_tile_picture(simulator, chosen, folder / "phantom-tile.png"))
    return made


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, metadata={"Software": None})
    return path


def _panel(figure: Any, where: tuple[int, int, int], image: Array, title: str, **options: Any) -> None:
    axes = figure.add_subplot(*where)
    shown = axes.imshow(np.swapaxes(image, 0, 1), origin=options.pop("origin", "lower"), **options)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    if image.ndim == 2:
        figure.colorbar(shown, ax=axes, shrink=0.8)


def _mosaic_view(simulator: TileSimulator, mosaic: MosaicId) -> BeamView:
    index = simulator.layout.illumination_index(mosaic)
    grid = simulator.layout.illumination_of(mosaic)
    (width, height), (over_x, over_y) = simulator.scan.tile_shape(index), simulator.scan.overlap_px(index)
    shape = (int(width + (grid.columns - 1) * (width - over_x)), int(height + (grid.rows - 1) * (height - over_y)))
    placement = simulator.stage.placement(mosaic)
    slice_id = simulator.layout.slice_of(mosaic).slice_id
    return simulator.look(placement, index, slice_id, placement.grid((0.0, 0.0), shape))


def _write_truth_picture(simulator: TileSimulator, path: Path) -> Path:
    figure = _figure(13, 6.5)
    view = _mosaic_view(simulator, MosaicId(1))
    top = view.layers[0]
    full = max(float(top.birefringence.max()), 1e-12)
    inside = (top.region > 0).astype(float)
    angle = np.arctan2(top.axis[..., 1], top.axis[..., 0])
    steep = np.abs(np.rad2deg(np.arcsin(top.axis[..., 2])))
    level = 10 * np.log10(np.maximum(top.scattering, 1e-3))
    _panel(figure, (2, 3, 1), top.region.astype(float), "region: outside, grey, white, isotropic", cmap="cividis")
    bright = inside * np.where(top.birefringence > 0, 0.35 + 0.65 * top.birefringence / full, 0.15)
    _panel(figure, (2, 3, 2), axis_rgb(angle, bright), "fibre direction (hue), birefringence (brightness)")
    _panel(figure, (2, 3, 3), np.where(inside > 0, steep, np.nan), "through-plane angle (deg)", cmap="magma")
    _panel(figure, (2, 3, 4), np.where(inside > 0, level, np.nan), "back-scattering (dB)", cmap="gray")
    titles = ["apparent birefringence, " + i.name for i in simulator.scan.illuminations]
    for n, title in enumerate(titles[:2]):
        seen = view if n == 0 else _mosaic_view(simulator, MosaicId(n + 1))
        _panel(figure, (2, 3, 5 + n), seen.apparent_birefringence[0], title, cmap="viridis", vmin=0, vmax=full)
    return _save(figure, path)


def _write_tile_picture(simulator: TileSimulator, tile: TileId, path: Path) -> Path:
    settings = simulator.config.processing.reconstruction.model_copy(update={"cut": None, "zero_padding": 1})
    linear = isinstance(simulator.scan.calibration.linearization, NoLinearization)
    counts = simulator.tile(tile)
    spectrometer = simulator.spectrometer
    volume = complex_from_counts(counts, spectrometer, settings, linear=linear)
    naive = np.fft.fft(counts[:, 0].astype(np.float32) - counts[:, 0].mean(axis=1, keepdims=True), axis=-1)
    naive_db = 20 * np.log10(np.abs(naive[..., NOMINAL_FIRST_BIN : counts.shape[-1] // 2]) + 1)

    power = np.sum(np.abs(volume) ** 2, axis=0)
    level = 10 * np.log10(power + 1)
    line = counts.shape[0] // 2
    figure = _figure(13, 6.5)
    axes = figure.add_subplot(2, 3, 1)
    for c in range(counts.shape[1]):
        axes.plot(counts[line, c, counts.shape[2] // 2], lw=0.7, label=f"channel {c + 1}")
    axes.set_title("one A-line as read out (counts)", fontsize=9)
    axes.legend(fontsize=8)
    floor = float(np.percentile(level, 20))
    shown = {"origin": "upper", "cmap": "gray", "vmin": floor - 5, "vmax": floor + 35, "aspect": "auto"}
    _panel(figure, (2, 3, 2), naive_db[line], "Fourier transform of the counts (dB)", **shown)
    _panel(figure, (2, 3, 3), level[:, line], "linear in wavenumber, dispersion removed (dB)", **shown)
    start = int(np.median(np.argmax(level, axis=-1)))
    window = slice(start, start + 60)
    _panel(figure, (2, 3, 4), level[..., window].mean(axis=-1), "mean intensity below the surface (dB)", cmap="gray")
    if len(volume) == 2:
        first, second = volume[..., window]
        ratio = np.rad2deg(np.arctan2(np.abs(first), np.abs(second)))
        _panel(figure, (2, 3, 5), ratio.mean(axis=-1), "mean retardance (deg)", cmap="viridis")
        turn = np.exp(2j * np.deg2rad(simulator.settings.instrument.phase_offset_deg))
        mean = np.sum(first * second.conj() * turn, axis=-1)
        _panel(figure, (2, 3, 6), axis_rgb(np.angle(mean) / 2, np.ones(mean.shape)), "orientation (hue)")
    return _save(figure, path)
