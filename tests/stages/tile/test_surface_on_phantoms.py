"""The default surface against the reference's on phantoms with what makes surfaces hard, over seeds of their own."""

import numpy as np
import pytest

from opticstream.config.processing import EnfaceSettings
from opticstream.stages.tile._reconstruction import arrays_from_jones, options_from_settings
from opticstream.testing.tile_phantom import one_tile_config, tile_from_phantom, vessels_and_bubbles

CONFIG = one_tile_config(a_lines=72, b_lines=64)
SEEDS = range(101, 105)


def surface_errors(method: str, *, scattering_db: float, bubbles_per_mm2: float) -> np.ndarray:
    processing = CONFIG.processing.model_copy(
        update={"enface": CONFIG.processing.enface.model_copy(update={"surface": method, "modalities": ("aip",)})}
    )
    errors = []
    for seed in SEEDS:
        phantom = vessels_and_bubbles(bubbles_per_mm2=bubbles_per_mm2, scattering_db=scattering_db, seed=seed)
        tile = tile_from_phantom(CONFIG, phantom)
        made = arrays_from_jones(tile.jones, options_from_settings(CONFIG.scan, processing))
        errors.append(np.abs(made.maps["surf"] - tile.surface)[tile.tissue])
    return np.concatenate(errors)


@pytest.mark.parametrize("scattering_db", [pytest.param(-36.0, marks=pytest.mark.slow), -54.0])
def test_robust_beats_gradient_by_a_clear_factor_where_bubbles_and_vessels_lie(scattering_db):
    case = {"scattering_db": scattering_db, "bubbles_per_mm2": 5.0}
    robust, gradient = surface_errors("robust", **case), surface_errors("gradient", **case)
    assert np.percentile(robust, 95) < np.percentile(gradient, 95) / 2
    assert np.median(robust) <= np.median(gradient) * 1.05
    assert np.median(robust) < 2.0


def test_robust_is_the_default_and_loses_nothing_on_an_easy_sample():
    assert EnfaceSettings().surface == "robust"
    easy = {"scattering_db": -36.0, "bubbles_per_mm2": 0.0}
    robust, gradient = surface_errors("robust", **easy), surface_errors("gradient", **easy)
    assert np.percentile(robust, 95) <= np.percentile(gradient, 95) * 1.05
