"""Pictures of a validation: one sheet of error maps per mosaic and slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from opticstream.io.atomic import atomic_path
from opticstream.sim.validate import UNITS, Report

_FULL_SCALE = {
    "retardance": 10.0,
    "orientation": 15.0,
    "birefringence": 50.0,
    "focus": 4.0,
    "registration": 4.0,
    "inplane": 15.0,
    "thruplane": 30.0,
    "axis": 30.0,
    "true birefringence": 50.0,
}


def write_error_pictures(report: Report, folder: Path, /) -> list[Path]:
    """Write one PNG per item of `report.maps` and return the paths.

    The scale of a quantity is the same in every picture, so that pictures can be compared; grey is not compared.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = []
    for item, maps in sorted(report.maps.items()):
        figure = Figure(figsize=(3.6 * len(maps), 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        for n, (quantity, error) in enumerate(maps.items(), start=1):
            axes = figure.add_subplot(1, len(maps), n)
            name = quantity if quantity in UNITS else quantity.split()[0]
            axes.set_facecolor("0.85")
            image = axes.imshow(error.T, origin="lower", cmap="inferno", vmin=0, vmax=_FULL_SCALE.get(name, 10.0))
            known = error[np.isfinite(error)]
            middle = f"{np.median(known):.2g}" if known.size else "none"
            axes.set_title(f"{quantity} error ({UNITS.get(name, '')}), median {middle}", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
            figure.colorbar(image, ax=axes, shrink=0.75)
        figure.suptitle(item, fontsize=10)
        path = folder / f"error-{item.replace(' ', '-').replace('/', '-')}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110, metadata={"Software": None})
        made.append(path)
    return made
