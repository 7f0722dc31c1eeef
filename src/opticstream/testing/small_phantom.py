"""A small project, a plain sample and quiet instruments, so that every effect can be looked at on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opticstream.config import ProjectConfig, config_from_mapping
from opticstream.sim.settings import (
    InstrumentSettings,
    PhantomSettings,
    SampleSettings,
    SourceSettings,
    StageSettings,
    VesselSettings,
)


def small_project_config(base: Path | str = "/data/project", **scan: Any) -> ProjectConfig:
    """Return a project of 2 x 2 tiles of 24 x 20 and 16 x 20 A-lines; keywords replace settings of `scan`."""
    settings = {
        "samples": 256,
        "b_lines": 20,
        "grid_size_y": 2,
        "tile_overlap": 25,
        "scan_resolution_3d": [0.01, 0.01, 0.004],
        "illuminations": [
            {"name": "normal", "columns": 2, "a_lines": 24},
            {"name": "tilted", "columns": 2, "a_lines": 16},
        ],
        **scan,
    }
    return config_from_mapping(
        {
            "project": {"project_name": "small", "project_base_path": str(base)},
            "scan": settings,
            "processing": {"enface": {"depth": 30}},
        }
    )


QUIET_SOURCE = SourceSettings(
    read_noise_counts=0, electrons_per_count=None, rin_line=0, rin_sample=0, fixed_pattern=0, etalon=0,
    hot_pixels=False, bits=16, peak_counts=(20000.0, 20000.0),
)  # fmt: skip
"""A camera without noise and nearly without quantisation."""

QUIET = InstrumentSettings(
    source=QUIET_SOURCE, autocorrelation=False, lateral_fwhm_px=0, focus_depth_px=None, curvature_px=(0, 0, 0),
    gate_tilt_px=(0, 0), gate_tilt_px_per_deg=0, dispersion_rad=((0, 0), (0, 0)),
)  # fmt: skip

PLAIN_SAMPLE = SampleSettings(
    white_fraction=1, isotropic_fraction=0, birefringence_variation=0, texture_db=0, layer_contrast_db=0,
    vessels=VesselSettings(radius_um=0), outline="full", surface_slope_px_per_mm=(0, 0), surface_wave_px=0,
    surface_depth_px=10.0, surface_reflection_db=0, attenuation_white_per_mm=0,
)  # fmt: skip
"""Uniform white matter with a flat surface."""

STILL_STAGE = StageSettings(
    affine_percent=0, backlash_px=0, jitter_px=0, repeat_jitter_px=0, slice_drift_px=0, illumination_offset_px=0,
    illumination_rotation_deg=0,
)  # fmt: skip


def plain_phantom(**changes: Any) -> PhantomSettings:
    """Return a plain sample under a quiet instrument on a stage without errors; keywords replace its parts."""
    settings = {"sample": PLAIN_SAMPLE, "instrument": QUIET, "stage": STILL_STAGE, "slices": 1, **changes}
    return PhantomSettings(**settings)
