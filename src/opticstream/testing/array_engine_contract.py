"""What the reconstruction by array formulas guarantees, wherever its arrays live: a test class to inherit.

A class derived from `ArrayEngineContract` returns its device; the tests hold it against the compiled engine, against
the formulas written once more in float64, and against a phantom.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from opticstream.compute import axial
from opticstream.compute.array_engine import ArrayDevice, ArrayEngine
from opticstream.compute.arrays import in_numpy
from opticstream.compute.reconstruction import (
    SpectralPlan,
    complex_tile_from_jones,
    jones_from_spectra,
    median_by_halving,
    positions_from_wavelengths,
    spectral_plan,
)
from opticstream.config import ProcessingSettings, ProjectConfig
from opticstream.stages.tile import options_from_settings
from opticstream.testing.raw_tiles import fringe_counts
from opticstream.testing.reconstruction_reference import (
    jones_reference,
    maps_reference,
    surface_reference,
    volumes_reference,
)
from opticstream.testing.tile_phantom import one_tile_config, uniform_white_matter

Volumes = dict[str, NDArray[np.float32]]

_CASES: dict[str, dict[str, Any]] = {
    "default methods, calibrated": {"spectral": {"positions": True, "dispersion": True}},
    "mean methods, padded": {
        "spectral": {"zero_padding": 2, "window": "gaussian"},
        "enface": {"retardance_method": "mean", "orientation_method": "mean", "birefringence_method": "slope"},
    },
    "histogram, unwrapped, threshold": {
        "enface": {
            "surface": "gradient_threshold",
            "surface_threshold_db": 62.0,
            "orientation_method": "histogram",
            "birefringence_method": "unwrap",
        },
        "a_lines": 9,
    },
    "smooth surface, depth as in the file": {
        "enface": {"surface": "robust", "offset": 3, "depth": 30},
        "reconstruction": {"flip_z": False, "flip_phase": True},
        "a_lines": 5,
        "b_lines": 62,
    },
    "one A-line, nothing subtracted": {
        "spectral": {"background": "none", "residual_background": False, "dispersion": True},
        "enface": {"surface": 40, "depth": 200},
        "a_lines": 1,
    },
    "one channel": {"enface": {"modalities": ["aip", "mip", "mus", "surf"]}, "channels": 1, "a_lines": 7},
}


def _plan(samples: int, channels: int, *, positions: bool = False, dispersion: bool = False, **options: Any) -> Any:
    p = np.linspace(-1, 1, samples)
    return spectral_plan(
        samples=samples,
        channels=channels,
        positions=(samples - 1) * (0.5 + p / 2 + 0.03 * (1 - p**2)) if positions else None,
        dispersion_rad=np.stack([8 * p**2, 7 * p**2 - 3 * p**3][:channels]) if dispersion else None,
        **options,
    )


class ArrayEngineContract:
    """Tests of `ArrayEngine` on one device, which `device` returns."""

    @pytest.fixture
    def device(self) -> ArrayDevice:
        """Return the device."""
        raise NotImplementedError

    @staticmethod
    def options_of(
        *, enface: dict[str, Any] | None = None, reconstruction: dict[str, Any] | None = None, channels: int = 2
    ) -> tuple[Any, Any]:
        """Return the options of the card and those of the compiled engine."""
        processing = ProcessingSettings.model_validate(
            {
                "enface": {"surface": "gradient", "modalities": ["aip", "mip", "ret", "ori", "biref", "mus", "surf"]}
                | (enface or {}),
                "reconstruction": reconstruction or {},
            }
        )
        scan = one_tile_config().scan
        volumes = ("dBI", "R3D", "O3D", "complex") if channels == 2 else ("dBI", "complex")
        on_card = options_from_settings(scan, processing, volumes=volumes, engine="card")
        return on_card, options_from_settings(scan, processing, volumes=volumes, engine="compiled")

    @staticmethod
    def streamed(
        counts: NDArray[Any] | None,
        plan: SpectralPlan,
        options: Any,
        device: ArrayDevice | None,
        *,
        blocks: Sequence[int] = (3,),
        jones: NDArray[np.complex64] | None = None,
    ) -> tuple[Volumes, Volumes, Any]:
        """Return volumes (x, y, z), maps, and the engine: that of the device, or the compiled one."""
        from opticstream.compute.tile_engine import TileEngine

        if jones is None:
            assert counts is not None
            b_lines, channels, a_lines, _ = counts.shape
        else:
            channels, a_lines, b_lines, _ = jones.shape
        parts: dict[str, dict[int, NDArray[np.float32]]] = {}

        def sink(first: int, blocks: Volumes) -> None:
            for name, values in blocks.items():
                parts.setdefault(name, {})[first] = values.transpose(2, 1, 0).copy()

        shape = {"a_lines": a_lines, "b_lines": b_lines, "channels": channels, "depth": plan.depth}
        engine: Any
        if device is None:
            cut = plan.cut if jones is None else 0
            whole = None if jones is not None else plan
            engine = TileEngine(options, **shape, cut=cut, plan=whole, block=max(blocks), sink=sink)
        else:
            engine = ArrayEngine(options, **shape, cut=plan.cut, plan=plan, device=device, sink=sink)
        first = number = 0
        while first < b_lines:
            n = min(blocks[number % len(blocks)], b_lines - first)
            if jones is None:
                assert counts is not None
                engine.add_spectra(counts[first : first + n])
            else:
                engine.add_complex(complex_tile_from_jones(jones[:, :, first : first + n]))
            first, number = first + n, number + 1
        maps = engine.finish()
        volumes = {name: np.concatenate([by[k] for k in sorted(by)], axis=1) for name, by in parts.items()}
        return volumes, maps, engine

    @pytest.mark.parametrize("case", _CASES.values(), ids=_CASES)
    def test_volumes_and_maps_are_those_of_the_compiled_engine(self, device: ArrayDevice, case: dict[str, Any]) -> None:
        channels, a_lines = case.get("channels", 2), case.get("a_lines", 19)
        counts = fringe_counts(samples=256, a_lines=a_lines, b_lines=case.get("b_lines", 8), channels=channels)
        plan = _plan(256, channels, **case.get("spectral", {}))
        on_card, compiled = self.options_of(
            enface=case.get("enface"), reconstruction=case.get("reconstruction"), channels=channels
        )
        volumes, maps, engine = self.streamed(counts, plan, on_card, device)
        expected_volumes, expected, by = self.streamed(counts, plan, compiled, None)
        assert volumes.keys() == expected_volumes.keys()
        assert maps.keys() == expected.keys()
        scale = np.sqrt((expected_volumes["complex"] ** 2).mean())
        np.testing.assert_allclose(volumes["complex"], expected_volumes["complex"], atol=1e-4 * scale)
        floor_db = by.noise_db + 10
        strong = expected_volumes["dBI"] > floor_db
        assert np.abs(volumes["dBI"] - expected_volumes["dBI"])[strong].max() < 0.01
        if channels == 2:
            strong &= np.abs(expected_volumes["R3D"] - 45) < 44  # the axis of a pole has no precision
            assert np.abs(volumes["R3D"] - expected_volumes["R3D"])[strong].max() < 0.01
            assert np.abs(axial.wrap(volumes["O3D"] - expected_volumes["O3D"]))[strong].max() < 0.01
        assert (maps["surfraw"] != expected["surfraw"]).mean() < 0.02  # a tie may fall the other way
        assert np.abs(maps["surf"] - expected["surf"]).max() < 1e-3 or (maps["surf"] == expected["surf"]).mean() > 0.98
        same = np.rint(maps["surf"]) == np.rint(expected["surf"])
        limits = {"aip": 0.01, "mip": 0.01, "ret": 0.01, "ori": 0.01, "biref": 1e-6, "mus": 1e-2}
        for name in set(on_card.maps) - {"surf"}:
            apart = np.abs(maps[name] - expected[name])
            if name == "ori":
                apart = np.minimum(apart, 180 - apart)
                apart[expected["ret"] < 2] = 0  # an axis that hardly shows has no precision
            if name == "mus":
                apart /= 1 + np.abs(expected[name])
            # a sample on the border of a bin, or a block on the border of being seen, may fall the other way
            assert (apart[same] < limits[name]).mean() >= (1 if name in ("aip", "mip") else 0.95), name
        assert engine.noise_db == pytest.approx(by.noise_db, abs=0.01)
        np.testing.assert_allclose(engine.confidence, by.confidence, atol=1e-3)
        np.testing.assert_allclose(engine.section_x, by.section_x, atol=0.05)
        np.testing.assert_allclose(engine.section_y, by.section_y, atol=0.05)

    def test_volumes_and_maps_are_those_of_the_formulas_in_float64(self, device: ArrayDevice) -> None:
        counts = fringe_counts(samples=256, a_lines=9, b_lines=6)
        counts[4:, :, 5:] = counts[4:, :, 5:].mean(axis=(2, 3), keepdims=True)  # a part without tissue
        plan = _plan(256, 2)
        means = {"retardance_method": "mean", "orientation_method": "mean", "birefringence_method": "slope"}
        on_card, _ = self.options_of(enface=means)
        volumes, maps, _ = self.streamed(counts, plan, on_card, device)
        expected = volumes_reference(jones_reference(counts))
        strong = expected["dBI"] > np.percentile(expected["dBI"], 50)
        assert np.abs(volumes["dBI"] - expected["dBI"])[strong].max() < 0.01
        strong &= np.abs(expected["R3D"] - 45) < 44
        assert np.abs(volumes["R3D"] - expected["R3D"])[strong].max() < 0.01
        assert np.abs(axial.wrap(volumes["O3D"] - expected["O3D"]))[strong].max() < 0.01
        raw, surface = surface_reference(expected["dBI"])
        assert (maps["surfraw"] != raw).mean() < 0.02
        from_formulas = maps_reference(expected, maps["surf"])
        seen = maps["surf"] == surface
        for name, limit in {"aip": 0.01, "mip": 0.01, "ret": 0.01, "ori": 0.01, "biref": 1e-6}.items():
            apart = np.abs(maps[name] - from_formulas[name])
            apart = np.minimum(apart, 180 - apart) if name == "ori" else apart
            assert apart[seen & (from_formulas["aip"] > from_formulas["aip"].mean() - 10)].max() < limit, name

    @pytest.mark.parametrize(("surface", "biref"), [("gradient", "unwrap"), ("robust", "stokes")])
    def test_the_size_of_blocks_changes_nothing(self, device: ArrayDevice, surface: str, biref: str) -> None:
        counts = fringe_counts(samples=128, a_lines=11, b_lines=62 if surface == "robust" else 13, surface_bin=35)
        plan = _plan(128, 2)
        options, _ = self.options_of(enface={"surface": surface, "birefringence_method": biref})
        volumes, maps, _ = self.streamed(counts, plan, options, device, blocks=(len(counts),))
        for blocks in ((1, 2, 5), (8,)):
            other_volumes, other_maps, _ = self.streamed(counts, plan, options, device, blocks=blocks)
            for name in maps:
                apart = np.abs(
                    axial.wrap(other_maps[name] - maps[name]) if name == "ori" else other_maps[name] - maps[name]
                )
                assert (apart <= 2e-5 * (1 + np.abs(maps[name]))).mean() > 0.99, name
            scale = np.abs(volumes["complex"]).max()
            np.testing.assert_allclose(other_volumes["complex"], volumes["complex"], atol=1e-5 * scale)

    def test_a_complex_tile_gives_what_its_spectra_give(self, device: ArrayDevice) -> None:
        counts = fringe_counts(samples=128, a_lines=11, b_lines=9, surface_bin=35)
        plan = _plan(128, 2)
        options, _ = self.options_of()
        volumes, maps, _ = self.streamed(counts, plan, options, device)
        jones = jones_from_spectra(counts, plan)
        by_complex, maps_by_complex, _ = self.streamed(None, plan, options, device, jones=jones)
        strong = volumes["dBI"] > np.percentile(volumes["dBI"], 50)
        assert np.abs(by_complex["dBI"] - volumes["dBI"])[strong].max() < 0.01
        assert np.abs(maps_by_complex["aip"] - maps["aip"]).max() < 0.01

    def test_a_phantom_shows_its_axis_birefringence_and_surface(self, device: ArrayDevice) -> None:
        config, counts, plan, truth, surface = _white_matter()
        options = options_from_settings(config.scan, config.processing, engine="card")
        _, maps, _ = self.streamed(counts, plan, options, device, blocks=(8,))
        tissue = truth["shadow"] == 0
        assert np.median(np.abs(maps["surf"] - surface)[tissue]) < 1.5
        error = np.abs(axial.wrap(maps["ori"] - truth["apparent_orientation"]))[tissue]
        assert np.median(error) < 4
        assert np.median(maps["biref"][tissue] / truth["apparent_birefringence"][tissue]) == pytest.approx(1, abs=0.1)

    def test_a_median_is_found_by_halving(self, device: ArrayDevice) -> None:
        rng = np.random.default_rng(3)
        for n in (1, 2, 3, 8, 25):
            values = rng.normal(scale=50, size=(2, n, 40)).astype(np.float32)
            values[0, :, :9] = np.rint(values[0, :, :9] / 60)  # equal values
            values[1, :1, 9:12] = 1e4  # one far from the others
            values[:, :, 12] = 7
            with device.at_work():
                found = in_numpy(median_by_halving(device.library.asarray(values)))
            expected = np.median(values, axis=1, keepdims=True)
            assert np.abs(found - expected).max() <= 1e-5 * values.std(), n

    def test_a_missing_b_line_is_noticed(self, device: ArrayDevice) -> None:
        counts = fringe_counts(samples=128, a_lines=5, b_lines=3)
        options, _ = self.options_of()
        plan = _plan(128, 2)
        engine = ArrayEngine(
            options, a_lines=5, b_lines=4, channels=2, depth=plan.depth, cut=plan.cut, plan=plan, device=device
        )
        engine.add_spectra(counts)
        with pytest.raises(ValueError, match="3 B-lines of 4"):
            engine.finish()

    def test_counts_are_as_they_were_afterwards(self, device: ArrayDevice) -> None:
        counts = fringe_counts(samples=128, a_lines=5, b_lines=3)
        options, _ = self.options_of()
        before = counts.copy()
        self.streamed(counts, _plan(128, 2), options, device)
        np.testing.assert_array_equal(counts, before)
        floats = counts.astype(np.float32)
        self.streamed(floats, _plan(128, 2), options, device)
        np.testing.assert_array_equal(floats, before)


@functools.lru_cache(maxsize=1)
def _white_matter() -> tuple[ProjectConfig, NDArray[Any], SpectralPlan, dict[str, NDArray[Any]], NDArray[Any]]:
    """Return settings, spectra, plan, truth and surface of a tile of uniform white matter."""
    from opticstream.model.ids import TileId
    from opticstream.sim.tiles import NOMINAL_FIRST_BIN, TileSimulator
    from opticstream.sim.truth import maps_from_view

    config = one_tile_config(a_lines=24, b_lines=24)
    simulator = TileSimulator(config, uniform_white_matter(0.002, scattering_db=-36.0, seed=5))
    spectrometer, tile = simulator.spectrometer, TileId(1, 1)
    plan = spectral_plan(
        samples=config.scan.samples,
        positions=positions_from_wavelengths(*spectrometer.wavenumbers.wavelength_um),
        dispersion_rad=np.stack([spectrometer.dispersion_phase(c) for c in range(2)]),
    )
    counts = np.concatenate(list(simulator.spectra(tile)))
    placement = simulator.stage.placement(tile.mosaic)
    grid = placement.grid(simulator.stage.position_px(tile), config.scan.tile_shape(0))
    view = simulator.look(placement, 0, 1, grid)
    truth = maps_from_view(simulator, placement, view)
    surface = NOMINAL_FIRST_BIN + truth["height"] + simulator.gate_px(0) - plan.cut
    return config, counts, plan, truth, surface
