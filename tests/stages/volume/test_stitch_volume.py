"""Volumes: the values of a plain blend, within memory, taken up after a kill, readable by anyone."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from opticstream.compute.stitching import MosaicSum, canvas_from_positions, overlap_widths, tile_weight
from opticstream.config.coordinates import NativeCoordinates
from opticstream.config.processing import VolumeSettings
from opticstream.io.nifti import read_nifti, write_nifti
from opticstream.io.tilemap import read_tilemap
from opticstream.io.zarr import StoreWriter, read_attributes, read_volume, store_layout
from opticstream.model.errors import ConfigurationError, InputError, MissingInputError, TileSizeError
from opticstream.stages.mosaic import find_coordinates
from opticstream.stages.volume import dask_executor, stitch_volume
from opticstream.stages.volume._block import BlockWorker
from opticstream.testing.checksums import tree_checksums
from opticstream.testing.stitching_cases import MOSAIC, VOXEL_MM, make_case

VOLUMES = ("dBI", "R3D", "O3D")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    made = make_case(tmp_path_factory.mktemp("volume"), products=("aip",), volumes=VOLUMES)
    find_coordinates(
        MOSAIC, scan=made.scan, settings=NativeCoordinates(), tiles_folder=made.tiles, template_path=made.template
    )
    write_nifti(made.focus, (made.bend + 6).astype(np.float32))
    return made


def stitched(
    case, folder, *, focus=True, mask=None, shading=None, modality="dBI", executor=None, threads=2, **settings
):
    return stitch_volume(
        MOSAIC,
        scan=case.scan,
        settings=VolumeSettings(modalities=(modality,), **settings),
        tiles_folder=case.tiles,
        template_path=case.template,
        focus_path=case.focus if focus else None,
        mask_path=mask,
        shading_path=shading,
        stitched_folder=folder,
        threads=threads,
        executor=executor,
    ).outputs[modality]


def naive_blend(case, modality, *, focus=True, mask=None):
    """Return the blend in float64, voxel by voxel, as section 8 of the algorithms says it."""
    tilemap = read_tilemap(case.template)
    positions = np.array([p.position_px for p in tilemap.places])
    width, height = tilemap.tile_shape
    canvas = canvas_from_positions(positions, tile_shape=tilemap.tile_shape)
    overlaps = overlap_widths(positions, tile_shape=tilemap.tile_shape)
    focus_map = np.asarray(read_nifti(case.focus), float) if focus else np.zeros((width, height))
    shift = np.floor(focus_map + 0.5) - np.floor(focus_map.min() + 0.5)
    depth = read_nifti(case.file(1, modality)).shape[2]
    total = np.zeros((*canvas.shape, depth))
    sums = [np.zeros_like(total), np.zeros_like(total)]
    for place, offset, overlap in zip(tilemap.places, canvas.offset, overlaps, strict=True):
        path = case.file(place.tile, modality)
        if not path.exists():
            continue
        data = np.asarray(read_nifti(path), float)
        weight = tile_weight(tilemap.tile_shape, overlap).astype(float)
        for x in range(width):
            for y in range(height):
                line = data[x, y, int(shift[x, y]) :]
                good = np.isfinite(line)
                where = (offset[0] + x, offset[1] + y, slice(0, len(line)))
                parts = (
                    (np.cos(np.deg2rad(2 * line)), np.sin(np.deg2rad(2 * line))) if modality == "O3D" else (line, line)
                )
                for one, part in zip(sums, parts, strict=True):
                    one[where] += np.where(good, weight[x, y] * part, 0)
                total[where] += np.where(good, weight[x, y], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        if modality == "O3D":
            result = np.rad2deg(np.arctan2(sums[1], sums[0])) / 2
        else:
            result = sums[0] / total
    result[total == 0] = np.nan
    if mask is not None:
        result[~mask] = np.nan
    return result


def assert_same(got, expected, *, axial=False):
    assert got.shape == expected.shape
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    difference = got - expected
    if axial:
        difference = (difference + 90) % 180 - 90
    assert np.nanmax(np.abs(difference)) < 2e-3 if axial else np.nanmax(np.abs(difference)) < 1e-4


@pytest.mark.parametrize("modality", VOLUMES)
@pytest.mark.parametrize("focus", [False, True], ids=["flat", "focus"])
def test_values_are_those_of_a_plain_blend(case, tmp_path, modality, focus):
    path = stitched(case, tmp_path, modality=modality, focus=focus)
    assert_same(read_volume(path), naive_blend(case, modality, focus=focus), axial=modality == "O3D")


@pytest.mark.parametrize("modality", ["dBI", "O3D"])
def test_between_pixels_a_volume_is_interpolated_as_a_map_is(case, tmp_path, modality):
    path = stitched(case, tmp_path, modality=modality, focus=False, interpolation="linear")
    tilemap = read_tilemap(case.template)
    positions = np.array([p.position_px for p in tilemap.places])
    canvas = canvas_from_positions(positions, tile_shape=tilemap.tile_shape, subpixel=True)
    assert canvas.fraction.any()
    overlaps = overlap_widths(positions, tile_shape=tilemap.tile_shape)
    volume = read_volume(path)
    for z in (0, 17):
        plane = MosaicSum(canvas, "axial" if modality == "O3D" else "scalar")
        for k, place in enumerate(tilemap.places):
            tile = read_nifti(case.file(place.tile, modality))[:, :, z]
            plane.add(k, tile, tile_weight(tilemap.tile_shape, overlaps[k]))
        assert_same(volume[:, :, z], plane.image(), axial=modality == "O3D")


@pytest.mark.parametrize("modality", ["dBI", "O3D"])
def test_missing_voxels_and_missing_tiles_are_blended_around(tmp_path, modality):
    made = make_case(tmp_path / "p", products=("aip",), volumes=(modality,), seed=4)
    find_coordinates(
        MOSAIC, scan=made.scan, settings=NativeCoordinates(), tiles_folder=made.tiles, template_path=made.template
    )
    write_nifti(made.focus, made.bend.astype(np.float32))
    data = read_nifti(made.file(2, modality)).copy()
    data[10:60, 40:, 5:12] = np.nan
    write_nifti(made.file(2, modality), data, voxel_size_mm=VOXEL_MM)
    made.file(6, modality).unlink()
    result = stitch_volume(
        MOSAIC, scan=made.scan, settings=VolumeSettings(modalities=(modality,)), tiles_folder=made.tiles,
        template_path=made.template, focus_path=made.focus, mask_path=None, stitched_folder=tmp_path / "out",
    )  # fmt: skip
    assert result.missing == {modality: (6,)}
    got = read_volume(result.outputs[modality])
    assert np.isnan(got).any()
    assert_same(got, naive_blend(made, modality), axial=modality == "O3D")


def test_the_mask_blanks_every_depth(case, tmp_path):
    shape = read_volume(stitched(case, tmp_path)).shape[:2]
    mask = np.zeros(shape, np.uint8)
    mask[20:90, 15:70] = 1
    path = write_nifti(tmp_path / "mask.nii.gz", mask)
    got = read_volume(stitched(case, tmp_path, mask=path))
    assert np.isnan(got[mask == 0]).all()
    assert np.isfinite(got[mask == 1][:, :20]).all()
    with pytest.raises(InputError, match="made with other positions"):
        stitched(case, tmp_path, mask=write_nifti(tmp_path / "other.nii.gz", mask[1:]))


def test_the_shading_of_the_mosaic_is_taken_from_intensities_at_every_depth(case, tmp_path):
    plain = stitched(case, tmp_path / "plain")
    shape = read_volume(plain).shape[:2]
    shading = np.linspace(-3, 3, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    path = write_nifti(tmp_path / "shading.nii.gz", shading)
    got = stitched(case, tmp_path / "flat", shading=path)
    np.testing.assert_allclose(read_volume(got), read_volume(plain) - shading[:, :, None], atol=1e-4)
    same = stitched(case, tmp_path / "same", shading=path, modality="R3D")  # no intensity
    other = stitched(case, tmp_path / "other", modality="R3D")
    assert np.array_equal(read_volume(same), read_volume(other), equal_nan=True)
    with pytest.raises(InputError, match="shading_correction = false"):
        stitched(case, tmp_path / "wrong", shading=write_nifti(tmp_path / "wrong.nii.gz", shading[1:]))


def test_cropping_keeps_the_depths_around_the_focus(case, tmp_path):
    whole = read_volume(stitched(case, tmp_path / "a"))
    z0 = int(np.floor(read_nifti(case.focus).min() + 0.5))
    part = read_volume(stitched(case, tmp_path / "b", crop_offset=2, crop_depth=20))
    assert part.shape[2] == 20
    assert np.array_equal(part, whole[:, :, z0 - 2 : z0 + 18], equal_nan=True)


def test_cropping_counts_from_the_top_where_the_depth_of_focus_is_unknown(tmp_path):
    """The map's mean is 0 then, so that its least value is negative: no reason to keep fewer samples."""
    made = make_case(tmp_path / "p", columns=2, rows=1, products=("aip",), volumes=("dBI",))
    find_coordinates(
        MOSAIC, scan=made.scan, settings=NativeCoordinates(), tiles_folder=made.tiles, template_path=made.template
    )
    write_nifti(made.focus, (made.bend - made.bend.mean()).astype(np.float32))
    whole = read_volume(stitched(made, tmp_path / "a"))
    part = read_volume(stitched(made, tmp_path / "b", crop_depth=20))
    assert np.array_equal(part, whole[:, :, :20], equal_nan=True)


@pytest.mark.parametrize("modality", ["dBI", "O3D"])
def test_neither_threads_nor_processes_change_a_byte(case, tmp_path, modality):
    one = tree_checksums(stitched(case, tmp_path / "1", modality=modality, threads=1))
    assert one == tree_checksums(stitched(case, tmp_path / "3", modality=modality, threads=3))
    with ProcessPoolExecutor(
        2, mp_context=multiprocessing.get_context("spawn")
    ) as executor:  # what a Dask cluster does, without one
        assert one == tree_checksums(stitched(case, tmp_path / "p", modality=modality, executor=executor))


def test_a_dask_cluster_writes_the_same_bytes(case, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        executor = dask_executor(cluster.scheduler_address)
        assert tree_checksums(stitched(case, tmp_path / "d", executor=executor)) == tree_checksums(
            stitched(case, tmp_path / "1")
        )


def test_a_dask_address_without_dask_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigurationError, match=r"opticstream\[dask\]"):
        dask_executor("tcp://127.0.0.1:1")


def test_the_models_of_the_specification_validate_the_store(case, tmp_path):
    import ome_zarr_models
    import zarr

    for version in ("0.5", "0.4"):
        path = stitched(case, tmp_path / version, format=version)
        image = ome_zarr_models.open_ome_zarr(zarr.open_group(path, mode="r"))
        block = image.ome_attributes if version == "0.5" else image.attributes
        assert [axis.name for axis in block.multiscales[0].axes] == ["z", "y", "x"]
        array = zarr.open_array(path / "0", mode="r")[...]
        assert np.array_equal(array.transpose(2, 1, 0), read_volume(path), equal_nan=True)
        scale = block.multiscales[0].datasets[0].coordinateTransformations[0].scale
        assert scale == pytest.approx([2.5, 10, 10])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_ome_zarr_package_reads_the_store(case, tmp_path):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    path = stitched(case, tmp_path)
    (node,) = [n for n in Reader(parse_url(path))() if n.data]
    assert node.data[0].shape == read_volume(path).shape[::-1]
    assert np.array_equal(np.asarray(node.data[0]).T, read_volume(path), equal_nan=True)


def test_provenance_names_parameters_code_and_inputs(case, tmp_path):
    told = read_attributes(stitched(case, tmp_path))["opticstream"]
    assert told["software"].startswith("opticstream ")
    assert told["settings"]["format"] == "0.5"
    assert [i["tile"] for i in told["inputs"]] == [1, 2, 3, 4, 5, 6]
    assert told["inputs"][0]["crc32"] == f"{zlib.crc32(case.file(1, 'dBI').read_bytes()):08x}"


def test_levels_are_means_and_axes_are_axial_means(tmp_path):
    made = make_case(
        tmp_path / "p", columns=2, rows=2, tile_shape=(300, 60), products=("aip",), volumes=("dBI", "O3D"), bend_px=0
    )
    find_coordinates(
        MOSAIC, scan=made.scan, settings=NativeCoordinates(), tiles_folder=made.tiles, template_path=made.template
    )
    for modality in ("dBI", "O3D"):
        path = stitched(made, tmp_path / modality, modality=modality, focus=False)
        whole, half = read_volume(path), read_volume(path, level=1)
        assert half.shape == tuple(-(-n // 2) for n in whole.shape)
        cut = whole[: whole.shape[0] // 2 * 2, : whole.shape[1] // 2 * 2, : whole.shape[2] // 2 * 2]
        blocks = cut.reshape(cut.shape[0] // 2, 2, cut.shape[1] // 2, 2, cut.shape[2] // 2, 2)
        got = half[: blocks.shape[0], : blocks.shape[2], : blocks.shape[4]]
        if modality == "dBI":
            with np.errstate(invalid="ignore"):
                expected = np.nansum(blocks, axis=(1, 3, 5)) / np.isfinite(blocks).sum(axis=(1, 3, 5))
            assert np.nanmax(np.abs(got - expected)) < 1e-3
        else:
            turn = np.exp(2j * np.deg2rad(blocks.astype(float)))
            expected = np.rad2deg(np.angle(np.nansum(turn, axis=(1, 3, 5)))) / 2
            difference = (got - expected + 90) % 180 - 90
            # Blended voxels count by the agreement of their tiles, so they may differ a little from equal votes.
            assert np.nanpercentile(np.abs(difference), 99) < 0.5


SMALL_BLOCKS = """
import json, sys, time
from pathlib import Path
from opticstream.config.processing import VolumeSettings
from opticstream.config.scan import IlluminationSettings, ScanSettings
from opticstream.io import zarr
from opticstream.io.tilemap import read_tilemap
from opticstream.model.errors import StateError
from opticstream.model.ids import MosaicId
from opticstream.stages.mosaic import tiles_of_mosaic
from opticstream.stages.volume import stitch_modality
from opticstream.stages.volume._plan import BASE_BYTES
folder, out, wait_s = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
note = zarr.StoreWriter.note_finished
def slow(self, block):
    note(self, block)
    print("finished", block, flush=True)
    time.sleep(wait_s)
zarr.StoreWriter.note_finished = slow
scan = ScanSettings(samples=64, b_lines=64, grid_size_y=2, tile_overlap=30, scan_order="column by column",
                    illuminations=(IlluminationSettings(name="normal", columns=3, a_lines=72),))
tiles = tiles_of_mosaic(MosaicId(1), scan=scan, folder=folder / "mosaic-01" / "processed", modalities=("dBI",))
try:
    made = stitch_modality(tiles, read_tilemap(folder / "tilemap-normal.j2"), "dBI", out / "v.ome.zarr",
                           voxel_size_mm=(0.01, 0.01, 0.0025),
                           settings=VolumeSettings(memory_budget_gb=(BASE_BYTES + int(sys.argv[4])) / 1e9))
    print("resumed", made.resumed_blocks, "superseded", made.superseded, flush=True)
except StateError as error:
    print("refused", error, flush=True)
"""


def small_blocks(case, out: Path, *, wait_s: float = 0.0, extra_bytes: int = 9_000_000) -> subprocess.Popen[str]:
    arguments = [str(case.folder), str(out), str(wait_s), str(extra_bytes)]
    return subprocess.Popen([sys.executable, "-c", SMALL_BLOCKS, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_killed_run_leaves_no_store_and_is_taken_up_where_it_stopped(case, tmp_path):
    undisturbed = small_blocks(case, tmp_path / "undisturbed")
    blocks = [line for line in undisturbed.communicate()[0].splitlines() if line.startswith("finished")]
    assert len(blocks) > 2
    out = tmp_path / "out"
    process = small_blocks(case, out, wait_s=60)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("finished")
    assert "refused" in small_blocks(case, out).communicate()[0]  # the store is locked while someone writes it
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "v.ome.zarr").exists()
    again = small_blocks(case, out).communicate()[0].splitlines()
    assert again[-1] == "resumed 1 superseded 0"
    assert len(again) == len(blocks)  # one block less was done, one line more says so
    assert tree_checksums(out / "v.ome.zarr") == tree_checksums(tmp_path / "undisturbed" / "v.ome.zarr")
    assert sorted(p.name for p in out.iterdir()) == ["v.ome.zarr", "v.ome.zarr.sha256"]


def killed_after_one_block(case, out: Path) -> None:
    process = small_blocks(case, out, wait_s=60)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("finished")
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_run_with_another_tile_starts_anew(tmp_path):
    """The change lies where no sample of the file is looked at, and its size is the same."""
    made = make_case(tmp_path / "p", products=("aip",), volumes=("dBI",))
    find_coordinates(
        MOSAIC, scan=made.scan, settings=NativeCoordinates(), tiles_folder=made.tiles, template_path=made.template
    )
    out = tmp_path / "out"
    killed_after_one_block(made, out)
    with made.file(1, "dBI").open("r+b") as file:
        file.seek(made.file(1, "dBI").stat().st_size // 3)
        file.write(np.full(500, 1e4, np.float32).tobytes())
    again = small_blocks(made, out).communicate()[0].splitlines()
    assert again[-1] == "resumed 0 superseded 1"
    assert sorted(p.name for p in out.iterdir()) == ["v.ome.zarr", "v.ome.zarr.sha256"]
    undisturbed = small_blocks(made, tmp_path / "undisturbed")
    undisturbed.communicate()
    assert tree_checksums(out / "v.ome.zarr") == tree_checksums(tmp_path / "undisturbed" / "v.ome.zarr")


def test_volumes_that_were_finished_before_a_kill_are_not_stitched_again(case, tmp_path, monkeypatch):
    made: list[str] = []
    make = BlockWorker.make

    def noted(self, corner, pool):
        modality = "R3D" if "R3D" in next(iter(self.inputs.volumes.values())).path.name else "dBI"
        made.append(modality)
        if modality == killed_in[0]:
            raise KeyboardInterrupt
        return make(self, corner, pool)

    def both(folder, **settings):
        made.clear()
        return stitch_volume(
            MOSAIC, scan=case.scan, settings=VolumeSettings(modalities=("dBI", "R3D"), **settings),
            tiles_folder=case.tiles, template_path=case.template, focus_path=case.focus, mask_path=None,
            stitched_folder=folder, threads=2,
        )  # fmt: skip

    killed_in = [""]
    monkeypatch.setattr(BlockWorker, "make", noted)
    both(tmp_path / "undisturbed")
    assert set(made) == {"dBI", "R3D"}

    out = tmp_path / "out"
    for crop_depth in (None, 20, None):  # a store of other settings in between is not taken for a finished one
        killed_in[0] = "R3D"
        with pytest.raises(KeyboardInterrupt):
            both(out, crop_depth=crop_depth)
        assert "dBI" in made
    killed_in[0] = ""
    assert both(out).resumed_blocks == 1  # there is one shard
    assert set(made) == {"R3D"}
    assert tree_checksums(out) == tree_checksums(tmp_path / "undisturbed")
    both(out)
    assert set(made) == {"dBI", "R3D"}  # who asks again for what is complete gets it again


def test_what_another_process_is_writing_is_not_removed(tmp_path):
    layout = store_layout((64, 64, 64), voxel_size_um=(1, 1, 1))
    path = tmp_path / "v.ome.zarr"
    with (
        StoreWriter(path, layout, name="v", provenance={"settings": 1}) as first,
        StoreWriter(path, layout, name="v", provenance={"settings": 2}) as second,
    ):
        assert second.superseded == 0
        assert first.levels.folder.exists()
    with StoreWriter(path, layout, name="v", provenance={"settings": 3}) as third:
        assert third.superseded == 2
    assert [p.name for p in tmp_path.iterdir()] == [third.levels.folder.name]


def test_bad_input_names_the_tile_and_leaves_nothing_behind(tmp_path):
    made = make_case(tmp_path / "p", products=("aip",), volumes=("dBI",))
    find_coordinates(
        MOSAIC, scan=made.scan, settings=NativeCoordinates(), tiles_folder=made.tiles, template_path=made.template
    )
    out = tmp_path / "out"
    write_nifti(made.file(3, "dBI"), np.zeros((72, 64, 39), np.float32))
    with pytest.raises(TileSizeError, match=r"tile 3 of mosaic 1 .*\(72, 64, 39\), expected \(72, 64, 40\)"):
        stitched(made, out, focus=False)
    with made.file(3, "dBI").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match="5000 bytes"):
        stitched(made, out, focus=False)
    for tile in range(1, 7):
        made.file(tile, "dBI").unlink()
    with pytest.raises(MissingInputError, match="none of its 6 tiles"):
        stitched(made, out, focus=False)
    assert not out.exists() or not any(out.iterdir())


def test_a_budget_that_holds_no_block_is_refused_with_the_least_that_would_do(case, tmp_path):
    with pytest.raises(ConfigurationError, match=r"memory_budget_gb = 0.1 is too small.*at least 0\.[23]"):
        stitched(case, tmp_path, memory_budget_gb=0.1)


def peak_script(folder: Path, tiles: int, side: int, depth: int, budget_gb: float) -> dict:
    """Stitch sparse tiles (holes on the disk, zeros when read) in a process of their own; return what it took."""
    script = """
import json, sys, time
from pathlib import Path
import numpy as np
from opticstream.config.processing import VolumeSettings
from opticstream.config.scan import IlluminationSettings, ScanSettings
from opticstream.io.nifti_stream import nifti_header
from opticstream.io.tilemap import TileMap, TilePlace
from opticstream.model.ids import MosaicId
from opticstream.stages.mosaic import tiles_of_mosaic
from opticstream.stages.volume import stitch_modality
from opticstream.stages.volume._plan import BASE_BYTES
folder, tiles, side, depth, budget = Path(sys.argv[1]), *map(int, sys.argv[2:5]), float(sys.argv[5])
folder.mkdir(parents=True)
header = nifti_header((side, side, depth), voxel_size_mm=(0.01, 0.01, 0.0025))
for k in range(tiles * tiles):
    with (folder / f"mosaic_001_image_{k + 1:04d}_dBI.nii").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 4 * side * side * depth)
scan = ScanSettings(b_lines=side, grid_size_y=tiles, scan_order="column by column",
                    illuminations=(IlluminationSettings(name="normal", columns=tiles, a_lines=side),))
found = tiles_of_mosaic(MosaicId(1), scan=scan, folder=folder, modalities=("dBI",))
places = tuple(TilePlace(n, (float(p[0]), float(p[1]))) for n, p in zip(found.numbers, found.nominal_px))
tilemap = TileMap("normal", (side, side), (tiles, tiles), places)
start = time.perf_counter()
made = stitch_modality(found, tilemap, "dBI", folder / "v.ome.zarr", voxel_size_mm=(0.01, 0.01, 0.0025),
                       settings=VolumeSettings(memory_budget_gb=budget))
# Not getrusage: its peak begins with that of the process that was forked to start this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"peak": int(status["VmHWM"].split()[0]) * 1024, "shape": made.shape,
                  "bytes": 4 * side * side * depth * tiles * tiles, "seconds": time.perf_counter() - start}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tiles), str(side), str(depth), str(budget_gb)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_stays_within_the_budget(tmp_path):
    took = peak_script(tmp_path / "t", tiles=4, side=200, depth=320, budget_gb=0.5)
    assert took["bytes"] > 1.6 * 0.5e9
    assert took["peak"] < 0.5e9


@pytest.mark.slow
def test_memory_stays_within_the_budget_for_a_mosaic_twenty_times_larger(tmp_path):
    took = peak_script(tmp_path / "t", tiles=10, side=350, depth=210, budget_gb=0.5)
    assert took["bytes"] > 20 * 0.5e9
    assert took["peak"] < 0.5e9


def test_a_full_disk_leaves_nothing_under_the_final_name(case, tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    from opticstream.io import zarr

    write = zarr.LevelArrays.write

    def full(self, level, corner, data):
        with open("/dev/full", "wb") as disk:
            disk.write(b"x")
            disk.flush()
        return write(self, level, corner, data)

    monkeypatch.setattr(zarr.LevelArrays, "write", full)
    with pytest.raises(OSError, match="No space left"):
        stitched(case, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")] == []


def test_a_volume_gets_a_manifest_of_its_chunks_which_is_made_again_where_a_killed_run_left_none(case, tmp_path):
    from opticstream.state.manifest import differences_from_manifest, manifest_path, read_manifest

    def stitched():
        return stitch_volume(
            MOSAIC, scan=case.scan, settings=VolumeSettings(modalities=("dBI",)), tiles_folder=case.tiles,
            template_path=case.template, focus_path=None, mask_path=None, stitched_folder=tmp_path,
        ).outputs["dBI"]  # fmt: skip

    store = stitched()
    manifest = manifest_path(store)
    assert not differences_from_manifest(store, read_manifest(manifest))
    text = manifest.read_bytes()
    manifest.write_text("of an older store")
    assert manifest_path(stitched()).read_bytes() == text
