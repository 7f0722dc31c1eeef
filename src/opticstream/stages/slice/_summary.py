"""The figures of a registration, as they stand in the transform file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opticstream.compute.axis import AxisFlag, SliceAxis
from opticstream.stages.slice._illuminations import SliceMosaic


def summary_of_registration(mosaics: Sequence[SliceMosaic], result: SliceAxis) -> dict[str, Any]:
    """Return the content of the transform file."""
    fixed = mosaics[0].name
    registrations = []
    for mosaic, image in zip(mosaics[1:], result.aligned[1:], strict=True):
        r = image.registration
        assert r is not None
        registrations.append(
            {
                "moving": mosaic.name,
                "matrix_px": r.mapping.matrix.tolist(),
                "offset_px": r.mapping.offset.tolist(),
                "rotation_deg": _json(r.mapping.rotation_deg if r.good else float("nan")),
                "residual_px": _json(r.residual_px),
                "confidence": _json(r.confidence),
                "overlap": _json(r.overlap),
                "correlation": _json(r.correlation),
                "mutual_information_before": _json(r.information_before),
                "mutual_information": _json(r.information),
                "good": r.good,
                "failures": list(r.failures),
            }
        )
    summary: dict[str, Any] = {
        "fixed": fixed,
        "meaning": "p_moving = matrix_px @ (p_fixed + displacement, where there is one) + offset_px; indices from 0",
        "beams": [{"name": m.name, "tilt_deg": m.tilt_deg, "tilt_axis_deg": m.tilt_axis_deg} for m in mosaics],
        "registrations": registrations,
        "has_axis": result.axes is not None,
    }
    if result.axes is not None:
        f = result.axes
        known = np.isfinite(f.thruplane_deg)
        seen = (f.flags & AxisFlag.NO_DATA) == 0
        summary["axis"] = {
            "share_of_pixels_with_axis": _json(float(known.sum() / max(1, seen.sum()))),
            "median_uncertainty_deg": _json(float(np.median(f.uncertainty_deg[known])) if known.any() else np.nan),
            "median_noise": _json(float(np.nanmedian(f.noise)) if seen.any() else float("nan")),
            "flagged": {
                flag.name.lower(): _json(float(((f.flags & flag) > 0).sum() / f.flags.size))
                for flag in AxisFlag
                if flag.name
            },
            "flag_bits": {flag.name.lower(): int(flag) for flag in AxisFlag if flag.name},
        }
    return summary


def _json(value: float) -> float | None:
    """Return a number rounded so that it reads well; None for NaN, which JSON lacks."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
