"""The truth beside the data: everything an error can be computed from, in open formats, without this package.

::

    truth/
    ├─ truth.json                 geometry, positions, transforms, settings; says what each file holds
    ├─ gate-{illumination}.nii    path-length variation over a tile (depth samples)
    ├─ focus-{illumination}.nii   the same plus the depth of focus
    ├─ wavelength_um-{channel}.npy, dispersion_rad-{channel}.npy
    └─ mosaic_{mosaic:03d}/       maps in that mosaic's own frame, one pixel per A-line
       ├─ axis, birefringence, brightness, region, crossing, inside
       │                          the tissue at the block face; brightness in dB against white matter
       ├─ apparent_orientation, apparent_birefringence      what its beam sees of that
       ├─ visible_orientation, visible_retardance, visible_birefringence
       │                          what a noise-free single-input instrument measures over the en face window
       ├─ height                  surface depth without the gate; shadow: under a vessel or a bubble
       └─ *_at_depth               at `depths_um` along the beam below the surface, for samples that change along
                                   depth: local axis, birefringence, brightness, what the beam would see of that
                                   depth alone (apparent_*), and the cumulative state that a single-input rig sees
                                   (visible_*)

The folder belongs to the rig and to `validate`; no code that processes tiles knows its path.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.atomic import write_bytes, write_text
from opticstream.io.nifti import write_nifti
from opticstream.model.ids import MosaicId, SliceId
from opticstream.sim._kernels import visible_maps
from opticstream.sim.optics import rotate_in_plane
from opticstream.sim.scan_stage import Placement, nominal_position_px
from opticstream.sim.tiles import NOMINAL_FIRST_BIN, BeamView, TileSimulator

TRUTH_FILE = "truth.json"
FORMAT = "opticstream-truth-1"

_ROWS_PER_BLOCK = 256


def truth_key(simulator: TileSimulator, /) -> str:
    """Return a hash of everything that tiles and truth follow from."""
    scan = simulator.scan.model_dump(mode="json", exclude={"calibration": {"dispersion_files", "background_file"}})
    form = scan["calibration"]["linearization"]
    scan["calibration"]["linearization"] = {k: v for k, v in form.items() if not k.endswith("files")}
    plain = json.dumps([scan, simulator.settings.model_dump(mode="json")], sort_keys=True, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def truth_key_in(folder: Path, /) -> str | None:
    """Return the key of the truth that a folder holds, or None."""
    try:
        key = json.loads((folder / TRUTH_FILE).read_bytes()).get("key")
    except (FileNotFoundError, ValueError):
        return None
    return None if key is None else str(key)


def write_truth(simulator: TileSimulator, folder: Path, /) -> Path:
    """Write the truth of all slices and return its `truth.json`, which is written last.

    A folder that already holds the truth of the same settings is not changed.
    """
    target = folder / TRUTH_FILE
    key = truth_key(simulator)
    if truth_key_in(folder) == key:
        return target
    scan, settings = simulator.scan, simulator.settings
    layout = simulator.layout
    instrument: dict[str, Any] = {"wavelength_um": [], "dispersion_rad": []}
    for c in range(scan.channels):
        for name, vector in (
            ("wavelength_um", simulator.spectrometer.wavenumbers.wavelength_um[c]),
            ("dispersion_rad", simulator.spectrometer.dispersion_phase(c)),
        ):
            instrument[name].append(write_vector(folder / f"{name}-{c + 1}.npy", vector).name)
    illuminations = []
    focus_px = settings.instrument.focus_depth_px
    for k, illumination in enumerate(scan.illuminations):
        gate = simulator.gate_px(k)
        files = {"gate_px": write_nifti(folder / f"gate-{illumination.name}.nii", gate.astype(np.float32)).name}
        if focus_px is not None:
            focus = (gate + focus_px).astype(np.float32)
            files["focus_px"] = write_nifti(folder / f"focus-{illumination.name}.nii", focus).name
        illuminations.append(
            {
                "name": illumination.name,
                "tilt_deg": illumination.tilt_deg,
                "tilt_axis_deg": illumination.tilt_axis_deg,
                "beam_frame": simulator.frame(k).tolist(),
                "tile_shape": list(scan.tile_shape(k)),
                "files": files,
            }
        )
    mosaics = [_write_mosaic(simulator, mosaic, folder) for mosaic in simulator.mosaics()]
    slices = []
    for s in simulator.slices():
        fixed, *moving = layout.mosaics(SliceId(s))
        slices.append(
            {
                "slice_id": s,
                "fixed_mosaic_id": fixed.mosaic_id,
                "turn_deg": simulator.cutting.turn_deg(s),
                "shift_px": simulator.cutting.shift_px(s).tolist(),
                "log_px": simulator.cutting.log_px(s).tolist(),
                "gain_db": simulator.cutting.gain_db(s),
                "bad": s in settings.cutting.bad,
                "covered_share": simulator.cutting.covered_share(s),
                "wedge_um": simulator.cutting.wedge_um(s),
                "moving": [{"mosaic_id": m.mosaic_id, **_fixed_to_moving(simulator, fixed, m)} for m in moving],
            }
        )
    document = {
        "format": FORMAT,
        "key": key,
        "project_name": simulator.config.name,
        "conventions": (
            "Maps are indexed [x, y]; map pixel (0, 0) lies at origin_px of the mosaic's frame. A tile's pixel (i, j) "
            "lies at (x + i, y + j). sample_px = R(rotation_deg) stage_px + shift_px. Angles in degrees from +x "
            "towards +y; axes have no sign. A tile's surface, in depth bins from zero delay, is first_bin + "
            "height(x + i, y + j) + gate(i, j)."
        ),
        "first_bin": NOMINAL_FIRST_BIN,
        "samples": scan.samples,
        "pixel_um": [v * 1e3 for v in scan.scan_resolution_3d],
        "wavelength_um": scan.wavelength_um,
        "regions": {"0": "outside", "1": "grey", "2": "white", "3": "isotropic"},
        "depths_um": [simulator.layer_depths_um()[k] for k in _chosen_layers(simulator)],
        "instrument": instrument,
        "illuminations": illuminations,
        "slices": slices,
        "missing_slices": sorted(n for n in settings.cutting.missing if n <= settings.slices),
        "mosaics": mosaics,
        "phantom": settings.model_dump(mode="json"),
    }
    return write_text(target, json.dumps(document, indent=1, default=str) + "\n")


def write_vector(path: Path, vector: NDArray[Any], /) -> Path:
    """Write a float64 vector as `.npy` and return the path."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(vector, dtype=np.float64))
    return write_bytes(path, buffer.getvalue())


def _fixed_to_moving(simulator: TileSimulator, fixed: MosaicId, moving: MosaicId) -> dict[str, Any]:
    """Return the true affine map from the fixed to the moving mosaic's frame, ``moving = matrix @ fixed + offset``."""
    a, b = simulator.stage.placement(fixed), simulator.stage.placement(moving)
    matrix = b.matrix.T @ a.matrix
    offset = b.matrix.T @ (np.asarray(a.shift_px) - np.asarray(b.shift_px))
    return {"matrix": matrix.tolist(), "offset_px": offset.tolist()}


def _write_mosaic(simulator: TileSimulator, mosaic: MosaicId, folder: Path) -> dict[str, Any]:
    layout, scan = simulator.layout, simulator.scan
    index, slice_id = layout.illumination_index(mosaic), layout.slice_of(mosaic).slice_id
    placement = simulator.stage.placement(mosaic)
    tiles: list[dict[str, Any]] = []
    for tile in simulator.tiles_of(mosaic):
        (x, y), nominal = simulator.stage.position_px(tile), nominal_position_px(scan, tile)
        column, row = layout.grid_position(tile)
        tiles.append({"tile_id": tile.tile_id, "column": column, "row": row, "x": x, "y": y, "nominal": list(nominal)})
    width, height = scan.tile_shape(index)
    low = np.floor(np.min([[t["x"], t["y"]] for t in tiles], axis=0)).astype(int) - 2
    high = np.ceil(np.max([[t["x"] + width, t["y"] + height] for t in tiles], axis=0)).astype(int) + 2
    maps = _mosaic_maps(simulator, placement, index, slice_id, low, high)
    size = scan.scan_resolution_3d
    files = {}
    for name, values in maps.items():
        path = folder / f"mosaic_{mosaic.mosaic_id:03d}" / f"{name}.nii.gz"
        write_nifti(path, values, voxel_size_mm=size)
        files[name] = path.relative_to(folder).as_posix()
    return {
        "mosaic_id": mosaic.mosaic_id,
        "slice_id": slice_id,
        "illumination": index,
        "rotation_deg": placement.rotation_deg,
        "shift_px": list(placement.shift_px),
        "origin_px": low.tolist(),
        "files": files,
        "tiles": tiles,
    }


def _mosaic_maps(
    simulator: TileSimulator, placement: Placement, index: int, slice_id: int, low: NDArray[Any], high: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    parts: list[dict[str, NDArray[Any]]] = []
    for start in range(int(low[0]), int(high[0]), _ROWS_PER_BLOCK):
        columns = min(_ROWS_PER_BLOCK, int(high[0]) - start)
        grid = placement.grid((start, low[1]), (columns, int(high[1] - low[1])))
        view = simulator.look(placement, index, slice_id, grid)
        parts.append(maps_from_view(simulator, placement, view))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def maps_from_view(simulator: TileSimulator, placement: Placement, view: BeamView) -> dict[str, NDArray[Any]]:
    """Return the maps of the module's list for what a beam meets on a grid, each of the grid's shape."""
    scan, window = simulator.scan, simulator.config.processing.enface
    top = view.layers[0]
    axis = rotate_in_plane(top.axis, -placement.rotation_deg)
    inside = top.region > 0
    # An axis that is not there is NaN, never a number that looks like one.
    axis[(top.region == 0) | (top.birefringence == 0)] = np.nan

    shape = top.region.shape
    retardance, orientation, birefringence = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    chosen = _chosen_layers(simulator)
    at_bins = np.array([round(simulator.layer_depths_um()[k] / simulator.depth_step_um) for k in chosen], dtype=float)
    retardance_at, orientation_at = np.zeros((*shape, len(chosen))), np.zeros((*shape, len(chosen)))
    layer_step = simulator.layer_step_um if np.isfinite(simulator.layer_step_um) else 1e9
    visible_maps(
        0,
        scan.samples // 2,
        np.zeros(shape),
        simulator.depth_step_um,
        layer_step,
        np.ascontiguousarray(simulator.half_retardance(view)),
        np.ascontiguousarray(view.apparent_angle),
        max(window.offset, 0),
        window.depth + 1,
        scan.wavelength_um,
        retardance,
        orientation,
        birefringence,
        at_bins,
        retardance_at,
        orientation_at,
    )
    nothing = (view.apparent_birefringence == 0).all(axis=0)
    f4 = np.float32
    maps = {
        "axis": axis[:, :, None, :].astype(f4),
        "birefringence": top.birefringence.astype(f4),
        "brightness": _brightness_db(top.scattering),
        "region": top.region,
        "crossing": top.crossing.astype(np.uint8),
        "inside": inside.astype(np.uint8),
        "apparent_orientation": _axial_deg(view.apparent_angle[0], view.apparent_birefringence[0] == 0),
        "apparent_birefringence": view.apparent_birefringence[0].astype(f4),
        "visible_orientation": _axial_deg(orientation, nothing),
        "visible_retardance": retardance.astype(f4),
        "visible_birefringence": birefringence.astype(f4),
        "height": view.face.height_px.astype(f4),
        "shadow": ((view.face.vessel_half_um > 0) | (view.face.bubble_px > 0)).astype(np.uint8),
    }
    if chosen:
        apparent = np.moveaxis(view.apparent_birefringence[chosen], 0, 2)
        maps["axis_at_depth"] = np.stack(
            [rotate_in_plane(view.layers[k].axis, -placement.rotation_deg) for k in chosen], axis=2
        ).astype(f4)
        maps["birefringence_at_depth"] = np.stack([view.layers[k].birefringence for k in chosen], axis=2).astype(f4)
        maps["brightness_at_depth"] = np.stack([_brightness_db(view.layers[k].scattering) for k in chosen], axis=2)
        maps["apparent_birefringence_at_depth"] = apparent.astype(f4)
        maps["apparent_orientation_at_depth"] = _axial_deg(
            np.moveaxis(view.apparent_angle[chosen], 0, 2), apparent == 0
        )
        maps["visible_retardance_at_depth"] = retardance_at.astype(f4)
        maps["visible_orientation_at_depth"] = _axial_deg(orientation_at, retardance_at == 0)
    return maps


def _chosen_layers(simulator: TileSimulator) -> list[int]:
    """Return the layers of a depth-varying sample that the truth keeps, about every 60 um; none for others."""
    layers = len(simulator.layer_depths_um())
    return list(range(0, layers, max(1, round(60.0 / simulator.layer_step_um)))) if layers > 1 else []


def _brightness_db(scattering: NDArray[Any]) -> NDArray[np.float32]:
    """Return the brightness of tissue in dB; NaN where nothing scatters."""
    known = scattering > 0
    return np.where(known, 10 * np.log10(np.where(known, scattering, 1)), np.nan).astype(np.float32)


def _axial_deg(angle_rad: NDArray[Any], unknown: NDArray[Any]) -> NDArray[np.float32]:
    degrees = (np.rad2deg(angle_rad) + 90) % 180 - 90
    return np.where(unknown, np.nan, degrees).astype(np.float32)
