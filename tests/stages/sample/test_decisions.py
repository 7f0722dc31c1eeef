"""What people decide about slices: excluded ones hand nothing on, placed ones lie where they were placed."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opticstream.compute.sample import Edge
from opticstream.config.processing import SampleSettings
from opticstream.io.nifti import read_nifti, write_nifti
from opticstream.io.zarr import SliceStore, volume_reader
from opticstream.model.errors import InputError
from opticstream.stages.sample import SampleInput, edge_of_moved_slice, report_sample, slice_states, update_sample
from opticstream.testing.checksums import tree_checksums

STILL = SampleSettings(align="none")
EDGE = Edge(1, 2, 0.0, (-3.0, 1.0), 0.1, (30.0, 25.0), 20.0)


def new_slice(folder: Path, slice_id: int, settings: SampleSettings = STILL, **options: object) -> SampleInput:
    rng = np.random.default_rng(slice_id)
    image = (60 + rng.normal(size=(60, 50)) + slice_id).astype(np.float32)
    volume = (60 + rng.normal(size=(60, 50, 9))).astype(np.float32)
    folder.mkdir(exist_ok=True)
    path = folder / f"aip{slice_id}.nii.gz"
    store = SliceStore(folder / f"v{slice_id}.ome.zarr", 9, (10.0, 10.0, 10.0))
    if not path.exists():
        write_nifti(path, image, voxel_size_mm=(0.01, 0.01, 0.04))
        store.put(0, (60, 50), lambda xs, ys: volume[xs, ys])
    maps, volumes = {"normal_aip": path}, {"normal_dBI": store.path, "normal_R3D": store.path}
    given = {"settings": settings, "slice_thickness_um": 40.0, "title": "tissue", **options}
    return SampleInput(folder / "sample", slice_id, maps, volumes, **given)  # type: ignore[arg-type]


def planes(path: Path) -> np.ndarray:
    shape, read = volume_reader(path)
    return read(slice(0, shape[0]), slice(0, shape[1]))


def test_an_excluded_slice_is_a_listed_gap_and_its_place_is_filled(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        update_sample(new_slice(tmp_path, n))
    before = tree_checksums(tmp_path / "sample")
    made = update_sample(new_slice(tmp_path, 2, excluded={2: "torn"}))
    assert (made.slices, made.missing, made.excluded, made.filled) == ((1, 3), (2,), {2: "torn"}, (2,))
    assert json.loads(made.outputs["slices"].read_text())["missing"] == {"2": "excluded: torn"}
    assert np.isnan(read_nifti(made.outputs["normal_aip_nifti"])[:, :, 1]).all()
    assert np.isnan(planes(made.outputs["normal_R3D_zarr"])[:, :, 4:8]).all()
    first = planes(tmp_path / "v1.ome.zarr")
    np.testing.assert_allclose(planes(made.outputs["normal_dBI_zarr"])[:, :, 4:8], first[:, :, 4:8], atol=0.2)
    assert slice_states(tmp_path / "sample")[2] == ("excluded", "torn")
    again = update_sample(new_slice(tmp_path, 2, excluded={2: "torn"}))
    assert not again.changed
    # Another slice may come meanwhile, and the exclusion may be taken back: then all is as if it had never been.
    update_sample(new_slice(tmp_path, 2))
    assert tree_checksums(tmp_path / "sample") == before


def test_the_last_slice_and_all_slices_can_be_excluded(tmp_path: Path) -> None:
    for n in (1, 2):
        update_sample(new_slice(tmp_path, n))
    made = update_sample(new_slice(tmp_path, 2, excluded={2: "dark"}))
    volume = planes(made.outputs["normal_dBI_zarr"])
    np.testing.assert_allclose(volume[:, :, 4:8], planes(tmp_path / "v1.ome.zarr")[:, :, 4:8], atol=0.2)
    made = update_sample(new_slice(tmp_path, 1, excluded={1: "dark", 2: "dark"}))
    assert made.slices == ()
    assert np.isnan(planes(tmp_path / "sample" / "normal_dBI.ome.zarr")).all()


def test_a_slice_that_is_excluded_before_it_comes_is_not_shown(tmp_path: Path) -> None:
    update_sample(new_slice(tmp_path, 1))
    made = update_sample(new_slice(tmp_path, 2, excluded={2: "torn"}))
    assert (made.slices, made.missing) == ((1,), (2,))


def test_a_placed_slice_lies_where_it_was_placed_until_that_is_taken_back(tmp_path: Path) -> None:
    settings = SampleSettings(formats=("zarr",), volumes=False, align="translation")
    for n in (1, 2, 3):
        made = update_sample(new_slice(tmp_path, n, settings))
    free = made.poses
    folder = tmp_path / "sample"
    edge = edge_of_moved_slice(folder, 2, None, shift_px=(5.0, -2.0), turn_deg=0.0, sigma_px=0.1)
    assert edge.first == 1
    made = update_sample(new_slice(tmp_path, 1, settings, placed=(edge,)))
    moved = np.subtract(made.poses[2].shift_px, free[2].shift_px)
    held = np.subtract(made.poses[1].shift_px, free[1].shift_px)
    # The tissue moves to the right where the picture is read further left.
    np.testing.assert_allclose(moved - held, [-5.0, 2.0], atol=0.05)
    assert made.placed == (edge,)
    assert "Slice 2 was placed by hand against slice 1" in made.outputs["report"].read_text()
    assert update_sample(new_slice(tmp_path, 3, settings, placed=(edge,))).poses == made.poses
    made = update_sample(new_slice(tmp_path, 1, settings))
    assert made.placed == ()
    back = np.subtract(made.poses[2].shift_px, made.poses[1].shift_px)
    np.testing.assert_allclose(back, np.subtract(free[2].shift_px, free[1].shift_px), atol=0.05)


@pytest.mark.parametrize(
    ("slice_id", "against", "message"),
    [(9, None, "slice 9 has no place in the sample"), (1, 1, "expected another slice"), (1, 7, "slice 7 has no place")],
)
def test_a_slice_without_a_place_cannot_be_moved(
    tmp_path: Path, slice_id: int, against: int | None, message: str
) -> None:
    settings = SampleSettings(formats=("zarr",), volumes=False, align="translation")
    update_sample(new_slice(tmp_path, 1, settings))
    with pytest.raises(InputError, match=message):
        edge_of_moved_slice(tmp_path / "sample", slice_id, against, shift_px=(1.0, 0.0), turn_deg=0.0, sigma_px=0.1)


def test_the_report_holds_its_pictures_and_tells_what_is_missing(tmp_path: Path) -> None:
    for n in (1, 2, 4):
        made = update_sample(new_slice(tmp_path, n, failed={3: "mosaic <5> is parked"}))
    made = update_sample(new_slice(tmp_path, 2, excluded={2: "torn & wet"}, failed={3: "mosaic <5> is parked"}))
    page = made.outputs["report"].read_text()
    assert "tissue: the sample" in page
    assert "torn &amp; wet" in page
    assert "mosaic &lt;5&gt; is parked" in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(links) >= 3
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert "@media print" in page
    assert "http" not in page.replace("http-equiv", "")
    with made.outputs["slice_table"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["slice [number]"], row["state"]) for row in rows] == [
        ("1", "present"),
        ("2", "excluded"),
        ("3", "missing"),
        ("4", "present"),
    ]
    assert {"shift_x [px]", "turn [deg]", "sigma_place [px]", "focus_against_neighbours [dB]"} <= set(rows[0])
    new = replace(new_slice(tmp_path, 1), excluded={2: "torn & wet"}, failed={3: "mosaic <5> is parked"})
    written = report_sample(new)
    assert written["report"].read_text() == page


def test_a_report_is_written_although_a_slice_has_lost_its_files(tmp_path: Path) -> None:
    for n in (1, 2):
        update_sample(new_slice(tmp_path, n))
    (tmp_path / "aip1.nii.gz").unlink()
    for path in (tmp_path / "sample" / "report").glob("*"):
        path.unlink()
    shutil.rmtree(tmp_path / "v1.ome.zarr")
    page = report_sample(new_slice_without_files(tmp_path)).get("report")
    assert page is not None
    assert "cannot be shown" in page.read_text()


def new_slice_without_files(folder: Path) -> SampleInput:
    return SampleInput(folder / "sample", 2, {}, {}, STILL, slice_thickness_um=40.0)
