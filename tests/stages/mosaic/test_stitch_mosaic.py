"""From tiles on disk to template, mosaics, mask, focus and pictures, and what is said when something is wrong."""

from __future__ import annotations

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydantic import TypeAdapter

from opticstream.config.coordinates import CoordinateSettings, NativeCoordinates
from opticstream.config.processing import (
    EnfaceSettings,
    FocusSettings,
    MaskSettings,
    StitchSettings,
)
from opticstream.io.nifti import read_nifti, write_nifti
from opticstream.io.tileconfig import ConfiguredTile, read_tile_configuration, write_tile_configuration
from opticstream.io.tilemap import read_tilemap
from opticstream.io.zoom import size_of_zoom
from opticstream.model.errors import InputError, MissingInputError, ProcessingError, TileSizeError
from opticstream.model.ids import MosaicId
from opticstream.model.modalities import MODALITIES as MODALITY_TABLE
from opticstream.stages.mosaic import _stitch_mosaic
from opticstream.stages.mosaic._find_coordinates import find_coordinates
from opticstream.stages.mosaic._find_focus import find_focus, read_focus
from opticstream.stages.mosaic._stitch_mosaic import stitch_mosaic
from opticstream.testing.stitching_cases import MOSAIC, VOXEL_MM, make_case
from opticstream.testing.synthetic_mosaic import position_errors

MODALITIES = ("aip", "mip", "ret", "ori", "biref", "surf")


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path / "project")


def coordinates(case, **settings):
    return find_coordinates(
        MOSAIC,
        scan=case.scan,
        settings=TypeAdapter(CoordinateSettings).validate_python(settings),
        tiles_folder=case.tiles,
        template_path=case.template,
        qc_folder=case.stitched,
    )


def mosaic(case, *, mask=None, stitch=None, modalities=MODALITIES, folder=None):
    return stitch_mosaic(
        MOSAIC,
        scan=case.scan,
        enface=EnfaceSettings(modalities=modalities),
        mask=mask or MaskSettings(threshold_db={"normal": 50}),
        stitch=stitch or StitchSettings(),
        tiles_folder=case.tiles,
        template_path=case.template,
        stitched_folder=folder or case.stitched,
    )


def focus(case, **settings):
    return find_focus(
        MOSAIC,
        scan=case.scan,
        settings=FocusSettings(**settings),
        tiles_folder=case.tiles,
        template_path=case.template,
        focus_path=case.focus,
        qc_folder=case.stitched,
    )


# --- coordinates --------------------------------------------------------------------------------------------------


def test_the_template_holds_positions_close_to_the_truth(case):
    made = coordinates(case)
    assert made.verdict.grade == "good"
    assert not made.reused
    found = np.array([p.position_px for p in read_tilemap(case.template).places])
    everywhere = np.ones(len(found), bool)
    assert position_errors(found, case.truth.true_px, everywhere).max() < 0.8
    assert found.min() == 0


def test_a_template_that_is_there_is_reused_and_made_again_on_request(case):
    coordinates(case)
    before = case.template.read_bytes()
    assert coordinates(case).reused
    again = coordinates(case, force_refresh_coordinates=True)
    assert not again.reused
    assert case.template.read_bytes() == before


def test_a_mosaic_finds_what_an_attempt_of_its_own_had_found_before_it_was_cut_short(case):
    """The template is there, the mosaic's record is not: nothing that was found and written may get lost."""
    found, focused = coordinates(case), focus(case)
    again, focused_again = coordinates(case), focus(case)
    assert again.outputs == found.outputs
    assert {"tile_configuration", "qc_coordinates"} <= again.outputs.keys()
    assert again.verdict.sentence == found.verdict.sentence
    assert focused_again.outputs == focused.outputs
    assert "qc_focus" in focused_again.outputs


def test_another_mosaic_that_reuses_a_template_does_not_claim_what_was_written_with_it(case):
    coordinates(case)
    others = find_coordinates(
        MosaicId(MOSAIC.mosaic_id + 2),
        scan=case.scan,
        settings=NativeCoordinates(),
        tiles_folder=case.tiles,
        template_path=case.template,
        qc_folder=case.stitched,
    )
    assert others.reused
    assert others.verdict is None
    assert set(others.outputs) == {"template"}


def test_positions_come_from_the_grid_or_from_a_file_of_fiji_on_request(case):
    made = coordinates(case, method="nominal")
    found = np.array([p.position_px for p in made.tilemap.places])
    assert np.allclose(found, case.truth.nominal_px, atol=1e-3)
    names = [case.file(tile, "aip").name for tile in (6, 5, 4, 3, 2, 1)]
    listed = [ConfiguredTile(n, (float(10 * k), float(-k))) for k, n in enumerate(names)]
    path = write_tile_configuration(case.folder / "TileConfiguration.registered.txt", listed)
    made = coordinates(case, method="file", tile_configuration=path, force_refresh_coordinates=True)
    assert made.tilemap.place_of(6).position_px == (0.0, 5.0)
    assert made.tilemap.place_of(1).position_px == (50.0, 0.0)


def test_a_fiji_file_of_another_grid_is_refused(case):
    path = write_tile_configuration(case.folder / "T.txt", [ConfiguredTile("a", (0.0, 0.0))])
    with pytest.raises(InputError, match=r"lists 1 tiles, but the grid has 3 x 2 = 6"):
        coordinates(case, method="file", tile_configuration=path)


def test_fiji_can_go_on_from_the_registered_positions(case):
    made = coordinates(case)
    path = made.outputs["tile_configuration"]
    tiles = read_tile_configuration(path)
    assert [(path.parent / t.name).resolve() for t in tiles] == [case.file(k, "aip").resolve() for k in range(1, 7)]
    assert [t.position_px for t in tiles] == [p.position_px for p in made.tilemap.places]


def test_tiles_and_mosaics_name_the_same_unit(case):
    coordinates(case)
    made = mosaic(case)
    for modality in MODALITIES:
        unit = MODALITY_TABLE[modality].unit
        header = nib.load(made.outputs[modality]).header["descrip"].item().decode()
        assert header == f"{modality}, {unit}; NaN: no data"
        assert MODALITY_TABLE[modality].tile_header.endswith(f", {unit}")


def test_missing_tiles_are_listed_and_placed_by_the_stage(case):
    case.file(4, "aip").unlink()
    made = coordinates(case)
    assert made.missing == (4,)
    assert [p.tile for p in made.tilemap.places if p.by_stage_only] == [4]


def test_a_nan_tile_is_placed_by_the_stage(case):
    write_nifti(case.file(2, "aip"), np.full((72, 64), np.nan, np.float32))
    made = coordinates(case)
    assert [p.tile for p in made.tilemap.places if p.by_stage_only] == [2]


def test_retardance_helps_where_the_intensity_leaves_links_faint(tmp_path):
    made = make_case(tmp_path, columns=4, rows=3, tile_shape=(120, 110), products=("aip", "ret"), seed=6)
    rng = np.random.default_rng(0)
    for tile in range(1, 13):
        clean = 10 ** ((read_nifti(made.file(tile, "aip")) - 60) / 20)
        faint = np.maximum(clean, 1e-3) ** 0.15 * rng.exponential(size=clean.shape)
        seen = 45 + 4 * np.log(np.maximum(clean, 1e-3)) + rng.normal(0, 4, clean.shape)
        write_nifti(made.file(tile, "aip"), (60 + 20 * np.log10(np.maximum(faint, 1e-3))).astype(np.float32))
        write_nifti(made.file(tile, "ret"), seen.astype(np.float32))
    everywhere = np.ones(12, bool)
    worst = {}
    for further in ((), ("ret",)):
        found = coordinates(made, further_modalities=further, force_refresh_coordinates=True).tilemap
        places = np.array([p.position_px for p in found.places])
        worst[further] = position_errors(places, made.truth.true_px, everywhere).max()
        assert found.source["modalities"] == ["aip", *further]
    assert worst["ret",] < 2.5  # 0.8 to 1.9 px by seed
    assert worst[()] > 2.5  # the stage alone leaves 3.6 to 15 px by seed


def test_the_surface_helps_where_the_intensity_leaves_links_faint(tmp_path):
    """Its texture is that of the block face; slope and bend of the field, the same in every tile, must not mislead."""
    made = make_case(tmp_path, columns=4, rows=3, tile_shape=(120, 110), products=("aip", "surf"), seed=6)
    rng = np.random.default_rng(0)
    for tile in range(1, 13):
        clean = 10 ** ((read_nifti(made.file(tile, "aip")) - 60) / 20)
        faint = np.maximum(clean, 1e-3) ** 0.15 * rng.exponential(size=clean.shape)
        height = read_nifti(made.file(tile, "surf")) + 2 * np.log(np.maximum(clean, 1e-3))
        seen = np.rint(height + rng.normal(0, 1.5, clean.shape))  # whole samples, as surfaces are
        write_nifti(made.file(tile, "aip"), (60 + 20 * np.log10(np.maximum(faint, 1e-3))).astype(np.float32))
        write_nifti(made.file(tile, "surf"), seen.astype(np.float32))
    everywhere = np.ones(12, bool)
    worst = {}
    for further in ((), ("surf",)):
        found = coordinates(made, further_modalities=further, force_refresh_coordinates=True)
        places = np.array([p.position_px for p in found.tilemap.places])
        worst[further] = position_errors(places, made.truth.true_px, everywhere).max()
        assert found.tilemap.source["modalities"] == ["aip", *further]
    assert found.verdict.grade == "good"
    assert worst["surf",] < 2.5
    assert worst[()] > 2.5


@pytest.mark.parametrize(
    ("modality", "as_logarithm"),
    [("aip", True), ("image", True), ("a name of my own", True), ("ret", False), ("surf", False), ("R3D", False)],
)
def test_only_intensities_are_compared_as_logarithms(tmp_path, monkeypatch, modality, as_logarithm):
    """Also where tiles are given by hand: retardance of volumes is no more an intensity than that of maps."""
    from opticstream.stages.mosaic import _find_coordinates as stage
    from opticstream.stages.mosaic._tiles import tiles_from_configuration

    made = make_case(tmp_path, products=("aip",))
    listed = [ConfiguredTile(made.file(tile, "aip").name, (50.0 * (tile - 1), 0.0)) for tile in (1, 2)]
    tiles = tiles_from_configuration(write_tile_configuration(made.tiles / "T.txt", listed), modality=modality)
    seen = []
    original = stage.filtered_tiles
    monkeypatch.setattr(stage, "filtered_tiles", lambda *a, **k: seen.append(k["logarithm"]) or original(*a, **k))
    stage.measured_positions(tiles, modalities=(modality,), margin_px=4)
    assert seen == [as_logarithm]


def test_a_map_that_is_not_needed_is_not_looked_at(case):
    assert coordinates(case).tilemap.source["modalities"] == ["aip"]


def test_a_mosaic_of_blank_tiles_is_an_error_and_writes_nothing(case):
    for tile in range(1, 7):
        write_nifti(case.file(tile, "aip"), np.zeros((72, 64), np.float32))
    with pytest.raises(ProcessingError, match="every tile is blank"):
        coordinates(case)
    assert not case.template.exists()
    coordinates(case, method="nominal")
    with pytest.raises(ProcessingError, match="every tile is blank"):
        mosaic(case)
    assert not (case.stitched / "mosaic_001_aip.nii.gz").exists()


def test_a_tile_of_another_size_is_named_with_both_sizes_and_the_setting(case):
    write_nifti(case.file(5, "aip"), np.zeros((72, 63), np.float32))
    with pytest.raises(
        TileSizeError, match=r"tile 5 of mosaic 1 .*image_0005_aip.nii.*\(72, 63\).*\(72, 64\).*b_lines"
    ):
        coordinates(case)
    assert not case.template.exists()


def test_a_template_for_another_grid_is_refused(case, tmp_path):
    other = make_case(tmp_path / "other", columns=2)
    coordinates(other)
    case.template.write_bytes(other.template.read_bytes())
    for work in (coordinates, mosaic, focus):
        with pytest.raises(InputError, match=r"is for 2 x 2 tiles of 72 x 64 px, but this mosaic has 3 x 2"):
            work(case)


def test_no_tiles_at_all_is_missing_input(case):
    for path in case.tiles.iterdir():
        path.unlink()
    with pytest.raises(MissingInputError, match="none of its 6 tiles has a"):
        coordinates(case)


def test_a_damaged_tile_is_named(case):
    case.file(3, "aip").write_bytes(b"not a nifti file")
    with pytest.raises(InputError, match="image_0003_aip"):
        coordinates(case)


# --- mosaics ------------------------------------------------------------------------------------------------------


def test_every_map_is_written_with_its_geometry(case):
    coordinates(case)
    made = mosaic(case)
    for modality in MODALITIES:
        image = nib.load(made.outputs[modality])
        assert image.shape == made.shape
        assert_geometry(image)
        with tifffile.TiffFile(made.outputs[f"{modality}_tif"]) as file:
            page = file.pages[0]
            assert page.shape == made.shape[::-1]
            numerator, denominator = page.tags["XResolution"].value
            assert numerator / denominator == pytest.approx(1000)  # 10 um pixels: 1000 per cm
            values = page.asarray()
        assert np.array_equal(values.T, np.asarray(image.dataobj), equal_nan=True)
        with Image.open(made.outputs[f"{modality}_jpg"]) as picture:
            assert picture.size == made.shape
    assert made.seam_ncc > 0.8
    assert made.missing == {}


def assert_geometry(image):
    """Voxel (i, j) lies at (i, j) voxel sizes in millimetres, by the affine as by qform, sform and zooms."""
    assert image.header.get_zooms()[:2] == pytest.approx(VOXEL_MM[:2])
    assert image.affine == pytest.approx(np.diag([*VOXEL_MM, 1]))
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_xyzt_units()[0] == "mm"
    for form, code in (image.header.get_qform(coded=True), image.header.get_sform(coded=True)):
        assert code == 1
        assert form == pytest.approx(image.affine, abs=1e-7)


@pytest.mark.parametrize(("interpolation", "most_px"), [("nearest", 0.501), ("linear", 0.001)])
def test_pixels_of_a_mosaic_lie_where_their_indices_say(case, interpolation, most_px):
    """Two maps that hold their own x and y: neither turned, nor mirrored, nor shifted, in NIfTI, TIFF and picture."""
    coordinates(case)
    for place in read_tilemap(case.template).places:
        x, y = (start + np.arange(size) for start, size in zip(place.position_px, (72, 64), strict=True))
        write_nifti(case.file(place.tile, "ret"), np.repeat(x[:, None], 64, axis=1).astype(np.float32))
        write_nifti(case.file(place.tile, "surf"), np.repeat(y[None, :], 72, axis=0).astype(np.float32))
    made = mosaic(
        case, stitch=StitchSettings(interpolation=interpolation), mask=MaskSettings(made_from=""),
        modalities=("ret", "surf"),
    )  # fmt: skip
    for modality, expected in zip(("ret", "surf"), np.indices(made.shape), strict=True):
        got = np.asarray(nib.load(made.outputs[modality]).dataobj)
        assert np.isfinite(got).mean() > 0.9
        assert np.nanmax(np.abs(got - expected)) <= most_px
        rows = tifffile.imread(made.outputs[f"{modality}_tif"])
        assert np.array_equal(rows.T, got, equal_nan=True)
        with Image.open(made.outputs[f"{modality}_jpg"]) as picture:
            light = np.asarray(picture.convert("L")).astype(float).T[8:-8, 8:-8]
        assert np.corrcoef(light.ravel(), expected[8:-8, 8:-8].ravel())[0, 1] > 0.8  # x to the right, y downwards


def test_orientation_is_right_across_seams(case):
    coordinates(case)
    got = read_nifti(mosaic(case, mask=MaskSettings(made_from="")).outputs["ori"])
    places = np.array([p.position_px for p in read_tilemap(case.template).places])
    shift = (case.truth.true_px - places).mean(axis=0)
    x, y = np.indices(got.shape)
    truth = ((x + shift[0]) / 2.2 + (y + shift[1]) / 3.1) % 180 - 90
    error = np.abs((got - truth + 90) % 180 - 90)
    assert np.nanmedian(error) < 0.5
    assert np.nanpercentile(error, 99) < 1.5


def test_the_mask_applies_to_all_maps_and_can_be_left_out(case):
    data = read_nifti(case.file(1, "aip")).copy()
    data[:30] = 5
    write_nifti(case.file(1, "aip"), data)
    coordinates(case)
    made = mosaic(case)
    mask = read_nifti(made.outputs["mask"]).astype(bool)
    assert 0.5 < mask.mean() < 0.98
    assert 0.5 < made.tissue_fraction < 0.98
    for modality in MODALITIES:
        assert np.isnan(read_nifti(made.outputs[modality])[~mask]).all()
    bare = mosaic(case, mask=MaskSettings(made_from=""))
    assert "mask" not in bare.outputs
    assert not made.outputs["mask"].exists()  # the volumes would take it for this mosaic's
    assert np.isfinite(read_nifti(bare.outputs["aip"])).mean() > mask.mean()
    by_mip = mosaic(case, mask=MaskSettings(made_from="mip"), folder=case.folder / "mip")
    assert not np.array_equal(read_nifti(by_mip.outputs["mask"]), mask)


def test_missing_tiles_of_one_map_are_listed_and_stitched_around(case):
    coordinates(case)
    case.file(3, "ret").unlink()
    made = mosaic(case)
    assert made.missing == {"ret": (3,)}
    assert np.isnan(read_nifti(made.outputs["ret"])).sum() > np.isnan(read_nifti(made.outputs["mip"])).sum()


def test_a_mosaic_that_is_larger_than_its_picture_gets_one_at_full_size(case, monkeypatch):
    coordinates(case, method="nominal")
    zoom = case.stitched / "zoom" / "mosaic_001_ori.szi"
    monkeypatch.setattr(_stitch_mosaic, "PREVIEW_PX", 100)
    result = mosaic(case)
    assert size_of_zoom(zoom) == result.shape
    assert zoom not in result.outputs.values()  # it is not published
    monkeypatch.undo()
    mosaic(case)
    assert not zoom.exists()


def test_every_map_has_a_small_picture_as_long_as_it_has_a_picture(case):
    coordinates(case, method="nominal")
    small = case.stitched / "thumbnails" / "mosaic_001_aip.jpg"
    result = mosaic(case)
    with Image.open(small) as picture:
        assert max(picture.size) == 160
    assert small not in result.outputs.values()  # it is not published
    mosaic(case, stitch=StitchSettings(formats=("nifti",)))
    assert not small.exists()


def test_results_are_the_same_bytes_every_time(case):
    coordinates(case)
    sums = []
    for name in ("one", "two"):
        made = mosaic(case, folder=case.folder / name)
        sums.append({k: hashlib.sha256(p.read_bytes()).hexdigest() for k, p in made.outputs.items()})
    assert sums[0] == sums[1]


def test_linear_interpolation_makes_a_gradient_smoother(case):
    """At fractional positions nearest is off by up to half a pixel of slope; linear only by the positions' errors."""
    coordinates(case)
    for k in range(6):
        x = case.truth.true_px[k, 0] + np.arange(72)[:, None] + np.zeros((1, 64))
        write_nifti(case.file(k + 1, "ret"), x.astype(np.float32))
    errors = {}
    for interpolation in ("nearest", "linear"):
        made = mosaic(
            case, stitch=StitchSettings(interpolation=interpolation), mask=MaskSettings(made_from=""),
            folder=case.folder / interpolation,
        )  # fmt: skip
        got = read_nifti(made.outputs["ret"])
        slope = np.diff(got, axis=0)
        errors[interpolation] = np.nanstd(slope)
    assert errors["linear"] < 0.85 * errors["nearest"]


def test_shading_that_all_tiles_share_is_taken_out_on_request(case):
    u = np.linspace(-1, 1, 72)[:, None]
    for tile in range(1, 7):
        data = read_nifti(case.file(tile, "aip"))
        write_nifti(case.file(tile, "aip"), data - 6 * u.astype(np.float32) ** 2)
    coordinates(case)
    spread = {}
    for shading in (False, True):
        made = mosaic(case, stitch=StitchSettings(shading_correction=shading), folder=case.folder / str(shading))
        seams = json.loads(made.outputs["seams"].read_text())["seams"]
        spread[shading] = np.std([s["offset"] for s in seams])
        profile = np.nanmean(read_nifti(made.outputs["aip"]), axis=1)
        spread[f"profile {shading}"] = np.std(profile)
        kept = made.outputs["aip"].with_name(made.outputs["aip"].name.replace("_aip", "_shading"))
        assert kept.exists() == shading
    assert spread["profile True"] < spread["profile False"]


# --- focus --------------------------------------------------------------------------------------------------------


def test_the_focus_map_is_found_from_unfiltered_surfaces(case):
    coordinates(case)
    made = focus(case)
    found = read_focus(case.focus, (72, 64))
    error = np.abs((found - found.mean()) - (case.bend - case.bend.mean()))
    assert np.median(error) < 0.5
    assert error.max() < 2
    assert made.residual_after_px < made.residual_before_px
    assert made.constant_px == 0  # no volume, no confocal peak: said so, and 0
    assert "unknown" in made.note
    assert made.outputs["qc_focus"].exists()
    image = nib.load(case.focus)
    assert image.shape == (72, 64)
    assert image.get_data_dtype() == np.float32
    assert_geometry(image)


def test_the_depth_of_focus_is_found_from_the_confocal_gate_of_the_volumes(tmp_path):
    depth, focal, rayleigh = 120, 58.0, 12.0
    made = make_case(tmp_path, products=("aip", "surf", "surfraw"), depth=depth)
    rng = np.random.default_rng(0)
    z = np.arange(depth)
    coordinates(made)
    for place in read_tilemap(made.template).places:
        # The field bends both; the tissue's surface also slopes, so that depth below it and depth of focus part ways.
        surface = 12 + made.bend + 0.2 * (place.position_px[0] + np.arange(72))[:, None]
        below = z - surface[..., None]
        gate = -10 * np.log10(1 + ((z - focal - made.bend[..., None]) / rayleigh) ** 2)
        speckle = 10 * np.log10(rng.exponential(size=(72, 64, depth)) + 1e-6)
        level = np.where(below >= 0, 80 - 0.15 * below + gate, 40) + speckle
        write_nifti(made.file(place.tile, "dBI"), level.astype(np.float32), voxel_size_mm=VOXEL_MM)
        write_nifti(made.file(place.tile, "surfraw"), surface.astype(np.float32))
    found = focus(made)
    assert found.confidence > 0.9
    assert np.abs(read_focus(made.focus, (72, 64)) - (focal + made.bend)).max() < 2
    assert found.note == ""


def test_the_focus_picture_draws_surface_and_plane_over_sections_of_a_volume(tmp_path):
    made = make_case(tmp_path, products=("aip", "surf", "surfraw"), volumes=("dBI",))
    coordinates(made)
    with Image.open(focus(made).outputs["qc_focus"]) as picture:
        with_sections = np.asarray(picture).astype(int)
    below = with_sections[-200:-30]  # the volumes are 40 samples deep, four times enlarged, with a line of text below
    red, blue = (below @ (1, -0.5, -0.5)) > 60, (below @ (-1, 0.5, 0.5)) > 60
    assert red.any(axis=0).sum() > 4 * 60
    assert blue.any(axis=0).sum() > 4 * 40


def test_a_focus_map_that_is_there_is_reused_forced_or_left_flat(case):
    coordinates(case)
    focus(case)
    before = case.focus.read_bytes()
    assert focus(case).reused
    assert not focus(case, force_refresh=True).reused
    assert case.focus.read_bytes() == before
    assert "none" in focus(case, method="none", force_refresh=True).note
    assert not read_focus(case.focus, (72, 64)).any()


def test_a_focus_map_of_other_tiles_is_refused(case):
    write_nifti(case.focus, np.zeros((10, 10), np.float32))
    with pytest.raises(InputError, match=r"focus-normal.nii is for tiles of \(10, 10\) px, expected \(72, 64\)"):
        focus(case)
    write_nifti(case.focus, np.full((72, 64), np.nan, np.float32))
    with pytest.raises(InputError, match="not finite"):
        focus(case)


def test_one_tile_has_a_flat_focus_and_says_why(tmp_path):
    single = make_case(tmp_path / "p", columns=1, rows=1)
    coordinates(single)
    assert "found 0" in focus(single).note
    assert mosaic(single).shape == (72, 64)
