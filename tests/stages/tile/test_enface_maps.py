"""The functions that make en face maps: small and large tiles take the same ones, and a new one needs nothing else."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest

from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.model import modalities
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import TileId
from opticstream.model.modalities import Made, Modality, enface_names
from opticstream.stages.tile import _enface_maps as enface_maps
from opticstream.stages.tile._enface_maps import MAKERS, Maker
from opticstream.stages.tile._process_tile import process_tile
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

TILE = TileId(1, 1)
SAMPLES, A_LINES, B_LINES = 192, 19, 7


def scan_of(channels=2):
    return ScanSettings.model_validate(
        {
            "samples": SAMPLES,
            "b_lines": B_LINES,
            "channels": channels,
            "illuminations": [{"name": "normal", "columns": 4, "rows": 3, "a_lines": A_LINES}],
        }
    )


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return maps of one tile, done whole or in blocks."""

    def make(route, maps, *, channels=2, flip_z=True, **enface):
        raw = tmp_path / f"raw-{channels}.nii"
        if not raw.exists():
            write_spectral_nifti(
                raw, fringe_counts(samples=SAMPLES, a_lines=A_LINES, b_lines=B_LINES, channels=channels)
            )
        with monkeypatch.context() as patched:
            if route == "in blocks":
                patched.setattr("opticstream.stages.tile._process_tile.SMALL_TILE", 0)
                patched.setattr("opticstream.stages.tile._large_tile._LARGEST_BLOCK", 3)
            volumes = ("dBI", "R3D", "O3D") if channels == 2 else ("dBI",)
            result = process_tile(
                raw,
                TILE,
                scan=scan_of(channels),
                processing=ProcessingSettings.model_validate(
                    {
                        "reconstruction": {"flip_z": flip_z, "volume_modalities": volumes},
                        "enface": {"modalities": maps, "depth": 30, **enface},
                    }
                ),
                out_dir=tmp_path / route,
            )
        return {name: np.asarray(nib.load(out.path).dataobj) for name, out in result.outputs.items() if name != "qc"}

    return make


@pytest.fixture
def without_kernels(monkeypatch):
    """Large tiles have to call the functions for all maps."""
    for name, maker in MAKERS.items():
        monkeypatch.setitem(enface_maps._MAKERS, name, Maker(maker.function, compiled=False))


METHODS = [
    {"orientation_method": "stokes", "birefringence_method": "stokes", "retardance_method": "stokes"},
    {"orientation_method": "mean", "birefringence_method": "slope", "retardance_method": "mean"},
]


@pytest.mark.parametrize("methods", METHODS, ids=["stokes", "mean"])
@pytest.mark.parametrize("flip_z", [True, False])
def test_large_tiles_make_by_function_what_small_tiles_make(made, without_kernels, methods, flip_z):
    maps = enface_names()
    small, large = (made(route, maps, flip_z=flip_z, **methods) for route in ("whole", "in blocks"))
    assert set(large) == set(small) >= set(maps)
    for name in maps:
        difference = np.abs(large[name] - small[name])
        if modalities.described(name).is_axial:
            difference = np.minimum(difference, 180 - difference)
        assert np.quantile(difference, 0.98) <= 2e-3 * np.abs(small[name]).max(), name


def test_with_one_channel_as_well(made, without_kernels):
    maps = tuple(n for n in enface_names() if modalities.described(n).channels == 1)
    small, large = (made(route, maps, channels=1) for route in ("whole", "in blocks"))
    for name in maps:
        np.testing.assert_allclose(large[name], small[name], rtol=2e-3, atol=2e-3, err_msg=name)


@pytest.fixture
def made_up(monkeypatch):
    """A map of its own: one entry, one function."""
    monkeypatch.setitem(
        modalities._TABLE,
        "depol",
        Modality(name="depol", meaning="spread of orientation", made=(Made.ENFACE,), channels=2, tile_range=(0.0, 1.0)),
    )
    monkeypatch.delitem(enface_maps._MAKERS, "depol", raising=False)

    @enface_maps.makes("depol")
    def spread_of_orientation(source, enface):
        turned = np.exp(2j * np.radians(source.inside(source.profiles.orientation_deg)))
        valid = source.window.valid
        return (1 - np.abs(np.where(valid, turned, 0).sum(axis=-1) / valid.sum(axis=-1))).astype(np.float32)

    yield
    monkeypatch.delitem(enface_maps._MAKERS, "depol")


@pytest.mark.parametrize("route", ["whole", "in blocks"])
def test_a_made_up_map_is_made_of_small_and_large_tiles_and_drawn(made, made_up, tmp_path, route):
    found = made(route, ("surf", "depol"))
    volume, surface = found["O3D"], np.rint(found["surf"]).astype(int)
    for x, y in ((0, 0), (7, 3), (A_LINES - 1, B_LINES - 1)):
        inside = volume[x, y, surface[x, y] : surface[x, y] + 31]
        assert found["depol"][x, y] == pytest.approx(1 - abs(np.exp(2j * np.radians(inside)).mean()), abs=2e-3)
    header = nib.load(tmp_path / route / "mosaic-01" / "processed" / "mosaic_001_image_0001_depol.nii").header
    assert header["descrip"].item() == b"spread of orientation"


def test_the_quality_picture_of_a_tile_has_a_panel_for_a_map_with_a_range(made_up):
    import io

    from PIL import Image

    from opticstream.stages.tile._picture import tile_picture

    surface = np.full((40, 30), 25, np.float32)
    sections = np.zeros((40, 60), np.float32), np.zeros((30, 60), np.float32)
    lower = []
    for maps in ({"surf": surface}, {"surf": surface, "depol": surface * 0 + 0.2}):
        picture = np.asarray(Image.open(io.BytesIO(tile_picture(maps, *sections, noise_db=10.0)))).astype(int)
        lower.append(picture[75, 55])
    assert lower[0].max() < 60  # nothing but the ground
    assert lower[1][0] > 100 > lower[1][2]  # a fifth of the range is red


@pytest.mark.parametrize("values", [np.nan, 25.0], ids=["nowhere", "flat"])
def test_the_quality_picture_takes_maps_without_values_and_flat_ones(made_up, values):
    from opticstream.stages.tile._picture import tile_picture

    image = np.full((40, 30), values, np.float32)
    maps = dict.fromkeys(enface_names(), image) | {"surf": np.full((40, 30), 9, np.float32), "depol": image}
    sections = np.zeros((40, 60), np.float32), np.zeros((30, 60), np.float32)
    assert tile_picture(maps, *sections, noise_db=10.0).startswith(b"\xff\xd8")


def test_polarization_is_asked_for_by_name_where_there_is_one_channel(made, made_up):
    with pytest.raises(ConfigurationError, match=re.escape("['depol'] need two channels")):
        made("whole", ("depol",), channels=1)


@pytest.mark.parametrize("route", ["whole", "in blocks"])
def test_an_entry_without_a_function_is_named_with_what_to_do(made, monkeypatch, route):
    entry = Modality(name="orphan", meaning="nothing", made=(Made.ENFACE,))
    monkeypatch.setitem(modalities._TABLE, "orphan", entry)
    with pytest.raises(ConfigurationError, match=r"asks for 'orphan', which no function makes.*@makes\('orphan'\)"):
        made(route, ("orphan",))
