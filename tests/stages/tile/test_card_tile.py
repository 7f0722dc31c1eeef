"""Tiles on a graphics card: which engine made them is recorded, and a card that fails loses nothing.

A stand-in takes the place of the card: arrays of the strict array library in the memory of the host, which NumPy's
functions do not take by accident. What a real card does differently is in tests/compute/array_engine.
"""

import logging

import array_api_strict
import numpy as np
import pytest

from opticstream.compute import axial
from opticstream.compute.array_engine import HostDevice
from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.io.nifti import read_nifti
from opticstream.model.errors import CardError, ConfigurationError
from opticstream.model.ids import TileId
from opticstream.stages.tile import _card_tile as card_tile
from opticstream.stages.tile import _enface_maps as enface_maps
from opticstream.stages.tile import _process_tile as stage
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

A_LINES, B_LINES = 10, 9


class StandIn(HostDevice):
    """A card that is none; it may fail at its n-th block."""

    name = "CuPy 0, stand-in"
    free_bytes = 8_000_000_000
    fails_at = None
    made = ()

    def __init__(self, *, memory_bytes=None):
        super().__init__(array_api_strict)
        self.limit, self.blocks, self.released = memory_bytes, 0, False
        type(self).made = (*type(self).made, self)

    def copied(self, values):
        self.blocks += 1
        if self.blocks == self.fails_at:
            raise CardError("the graphics card failed: it fell off the bus")
        return super().copied(values)

    def release(self):
        self.released = True


@pytest.fixture
def card(monkeypatch):
    kind = type("Card", (StandIn,), {})
    monkeypatch.setattr(card_tile, "CupyCard", kind)
    monkeypatch.setattr(card_tile, "why_no_card", lambda: "")
    stage._tell.cache_clear()
    return kind


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(card_tile, "why_no_card", lambda: "CuPy is not installed")
    stage._tell.cache_clear()


def _scan(**further):
    grid = {"name": "normal", "columns": 1, "rows": 1, "a_lines": A_LINES}
    return ScanSettings.model_validate({"samples": 128, "b_lines": B_LINES, "illuminations": [grid], **further})


def _tile(folder, engine, *, source=None, scan=None, enface=None, **reconstruction):
    raw = source or folder / "raw.nii"
    if not raw.exists():
        write_spectral_nifti(raw, fringe_counts(samples=128, a_lines=A_LINES, b_lines=B_LINES, surface_bin=35))
    kind = engine if isinstance(engine, str) else "cuda-required"
    processing = ProcessingSettings.model_validate(
        {"engine": engine, "enface": {"surface": "gradient", **(enface or {})}, "reconstruction": reconstruction}
    )
    out = folder / kind
    return stage.process_tile(
        raw, TileId(1, 1), scan=scan or _scan(), processing=processing, out_dir=out, archive_to=out / "a.nii.gz"
    )


def _assert_same_bytes(one, other):
    assert one.outputs.keys() == other.outputs.keys()
    for name, output in one.outputs.items():
        if name != "checksum":  # it names the copy
            assert output.path.read_bytes() == other.outputs[name].path.read_bytes(), name


def _assert_agree(one, other):
    assert one.outputs.keys() == other.outputs.keys()
    for name in one.outputs.keys() - {"qc", "archive", "checksum"}:
        values, others = (read_nifti(made.outputs[name].path).astype(float) for made in (one, other))
        apart = np.abs(axial.wrap(values - others) if name in ("O3D", "ori") else values - others)
        assert np.median(apart) < 1e-3, name
        assert (apart < 0.01).mean() > 0.97, name
    assert one.outputs["archive"].path.read_bytes() == other.outputs["archive"].path.read_bytes()
    assert one.raw_sha256 == other.raw_sha256


def test_a_tile_of_a_card_agrees_with_our_compiled_code_and_says_what_made_it(tmp_path, card):
    made, native = _tile(tmp_path, "cuda", save_complex=True), _tile(tmp_path, "native", save_complex=True)
    assert made.engine == "cuda (CuPy 0, stand-in)"
    assert made.as_dict()["engine"] == made.engine
    assert made.engine_note == ""
    assert (native.engine, native.engine_note) == ("native", "")
    _assert_agree(made, native)
    assert card.made[-1].released


def test_a_complex_tile_is_made_on_the_card_too(tmp_path, card):
    source = _tile(tmp_path, "native", save_complex=True).outputs["complex"].path
    scan = _scan(raw_format="complex")
    results = [_tile(tmp_path / "again", engine, source=source, scan=scan) for engine in ("cuda", "native")]
    assert results[0].engine.startswith("cuda")
    _assert_agree(*results)


def test_without_a_card_a_tile_has_the_bytes_of_our_own_code_and_says_why(tmp_path, no_card, caplog):
    with caplog.at_level(logging.WARNING):
        made = _tile(tmp_path, "cuda")
        _tile(tmp_path, "cuda")
    _assert_same_bytes(made, _tile(tmp_path, "native"))
    assert made.engine == "native"
    assert made.engine_note == "no graphics card: CuPy is not installed"
    assert [record.message for record in caplog.records].count(
        "tiles are made by our compiled code, not on a graphics card: CuPy is not installed"
    ) == 1


def test_a_card_that_is_required_and_absent_fails_the_tile_and_writes_nothing(tmp_path, no_card):
    with pytest.raises(CardError, match=r"raw\.nii: CuPy is not installed; processing\.engine\.required = true"):
        _tile(tmp_path, {"kind": "cuda", "required": True})
    assert not [path for path in (tmp_path / "cuda-required").rglob("*") if path.is_file()]


def test_a_card_that_fails_within_a_tile_loses_nothing(tmp_path, card):
    card.fails_at = 2
    small = {"kind": "cuda", "memory_budget_gb": 0.000_9}  # several blocks
    made = _tile(tmp_path, small)
    assert card.made[-1].blocks == 2
    assert card.made[-1].released
    assert "fell off the bus" in made.engine_note
    _assert_same_bytes(made, _tile(tmp_path, "native"))
    assert not list(tmp_path.rglob("*partial*"))


def test_the_memory_of_the_card_bounds_the_blocks(tmp_path, card):
    card.free_bytes = 1_000_000
    made = _tile(tmp_path, "cuda")
    assert made.engine.startswith("cuda")
    assert card.made[-1].limit == 900_000
    assert card.made[-1].blocks > 1
    card.free_bytes = 100_000
    made = _tile(tmp_path, "cuda")
    assert made.engine == "native"
    assert "the card has 9e-05 GB for a tile" in made.engine_note
    _assert_same_bytes(made, _tile(tmp_path, "native"))


def test_a_budget_of_the_host_that_is_too_small_is_refused_with_what_is_needed(tmp_path, card):
    with pytest.raises(
        ConfigurationError, match=r"memory_budget_gb = 0\.1 is too small .* graphics card; it needs 0\.\d"
    ):
        _tile(tmp_path, "cuda", memory_budget_gb=0.1)


def test_a_map_by_a_function_of_numpy_gets_numpy_arrays(tmp_path, card, monkeypatch):
    kinds = []

    def brightest(source, _enface):
        samples = source.inside(source.profiles.intensity_db)
        kinds.append(type(samples))
        return np.where(source.window.valid, samples, -np.inf).max(axis=-1).astype(np.float32)

    monkeypatch.setitem(enface_maps._MAKERS, "mip", enface_maps.Maker(brightest, compiled=False))
    _assert_agree(_tile(tmp_path, "cuda"), _tile(tmp_path, "native"))
    assert set(kinds) == {np.ndarray}
