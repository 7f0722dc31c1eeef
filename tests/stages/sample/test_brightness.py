"""The intensity volume of a sample: even over slices, gaps filled with measured tissue, everything on record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opticstream.compute.sample import Intensity, block_power
from opticstream.config.processing import SampleIntensitySettings, SampleSettings
from opticstream.io.zarr import SliceStore, volume_reader
from opticstream.sim.cut_sample import CutSample, benchmark_settings
from opticstream.sim.settings import CuttingSettings
from opticstream.stages.sample import SampleInput, UpdatedSample, _brightness, update_sample

SECTION = 20
CUTTING = CuttingSettings(missing=(4,), bad=(2,), bad_blur_px=2.0, gain_db=1.5)
SAMPLE = CutSample(benchmark_settings("m", 3, shape=(168, 156), slots=5, vignette=0.0, cutting=CUTTING))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("volumes")
    paths = {}
    for n in SAMPLE.slices:
        paths[n] = folder / f"slice{n}.ome.zarr"
        volume = SAMPLE.volume_db(n)
        SliceStore(paths[n], volume.shape[2], (10.0, 10.0, 10.0)).put(
            0, volume.shape[:2], lambda xs, ys, volume=volume: volume[xs, ys]
        )
    return paths


def added(
    folder: Path, volumes: dict[int, Path], *, slices: tuple[int, ...] = SAMPLE.slices, **choices: object
) -> UpdatedSample:
    settings = SampleSettings(
        align="none", intensity=SampleIntensitySettings(**choices) if choices else SampleIntensitySettings()
    )
    for n in slices:
        result = update_sample(
            SampleInput(
                folder / "sample",
                n,
                {},
                volumes={"normal_dBI": volumes[n]},
                settings=settings,
                slice_thickness_um=SAMPLE.settings.cut_um,
            )
        )
    return result


def stack(result: UpdatedSample) -> np.ndarray:
    shape, read = volume_reader(result.outputs["normal_dBI_zarr"])
    return read(slice(0, shape[0]), slice(0, shape[1]))


def blocks(volume: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10 * np.log10(block_power(volume))


def truth() -> np.ndarray:
    made = SAMPLE.tissue_db(slice(0, 5 * SECTION))
    return blocks(np.where((made > -50).all(2, keepdims=True), made, np.nan))


def test_slices_become_one_even_volume_in_which_missing_and_bad_ones_show_measured_tissue(
    tmp_path: Path, volumes: dict[int, Path]
) -> None:
    result = added(tmp_path, volumes)
    made, true = blocks(stack(result)), truth()
    assert set(result.left_out) == {2}
    assert "darker than the others" in result.left_out[2]
    assert result.filled == (2, 4)
    error = made - true
    profile = np.nanmedian(error, axis=(0, 1))
    assert np.isfinite(profile).all()
    steps = [profile[z : z + 4].mean() - profile[z - 4 : z].mean() for z in range(SECTION, 5 * SECTION, SECTION)]
    assert np.sqrt(np.mean(np.square(steps))) < 0.2
    for slot in range(1, 6):
        part = slice((slot - 1) * SECTION, slot * SECTION)
        good = np.isfinite(error[:, :, part])
        likeness = np.corrcoef(made[:, :, part][good], true[:, :, part][good])[0, 1]
        assert likeness > 0.9, f"slot {slot}: {likeness}"
    record = json.loads(result.outputs["intensity"].read_text())["stacks"]["normal_dBI"]
    assert set(record["gains_db"]) == {"1", "2", "3", "5"}
    assert record["filled"] == [2, 4]
    assert record["gaps"] == []
    assert [s["slice"] for s in record["slabs"]["2"]["sources"]] == [1]
    assert [s["slice"] for s in record["slabs"]["3"]["sources"]] == [1, 3]


@pytest.mark.slow
def test_each_correction_can_be_switched_off_and_the_plain_volume_holds_the_slices_as_they_are(
    tmp_path: Path, volumes: dict[int, Path]
) -> None:
    result = added(tmp_path, volumes, enabled=False)
    plain = stack(result)
    _, read = volume_reader(volumes[3])
    expected = read(slice(0, 168), slice(0, 156))[:, :, :SECTION]
    np.testing.assert_array_equal(plain[:, :, 2 * SECTION : 3 * SECTION], expected)
    assert np.isnan(plain[:, :, 3 * SECTION : 4 * SECTION]).all()
    assert "intensity" not in result.outputs
    kept = added(tmp_path / "kept", volumes, gains=False, attenuation=False, exclude=False, fill=False, fade_planes=0)
    np.testing.assert_allclose(stack(kept)[:, :, 2 * SECTION : 3 * SECTION], expected, atol=1e-3)
    assert np.isnan(stack(kept)[:, :, 3 * SECTION : 4 * SECTION]).all()
    assert kept.left_out == {}


@pytest.mark.slow
def test_a_correction_that_is_switched_off_later_leaves_nothing_filled(
    tmp_path: Path, volumes: dict[int, Path]
) -> None:
    slices = (1, 3, 5)
    assert added(tmp_path, volumes, slices=slices).filled == (2, 4)
    plain = stack(added(tmp_path, volumes, slices=slices, enabled=False))
    assert np.isnan(plain[:, :, SECTION : 2 * SECTION]).all()
    assert np.isfinite(plain[:, :, :SECTION]).all()


def test_slabs_are_written_only_where_something_changed(tmp_path: Path, volumes: dict[int, Path]) -> None:
    result = added(tmp_path, volumes)
    record = result.outputs["intensity"]
    before = record.read_bytes()
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "sample/normal_dBI.ome.zarr").rglob("*") if p.is_file()}
    added(tmp_path, volumes, slices=(5,))
    assert record.read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in files} == files
    # a slab that the record does not hold, as after a crash, is made again
    content = json.loads(before)
    del content["stacks"]["normal_dBI"]["slabs"]["3"]
    record.write_text(json.dumps(content))
    added(tmp_path, volumes, slices=(5,))
    assert record.read_bytes() == before
    changed = {p for p in files if p.stat().st_mtime_ns != files[p]}
    assert changed
    assert all(p.parts[-3] == "2" for p in changed if p.parent.parent.parent.name == "c")


def test_gains_that_all_change_alike_have_no_slab_written_again(
    tmp_path: Path, volumes: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = added(tmp_path, volumes, slices=(1, 3))
    store = result.outputs["normal_dBI_zarr"]
    before = {p: p.stat().st_mtime_ns for p in store.rglob("c/**/*") if p.is_file()}
    solved = _brightness._solved

    def shifted(*arguments: object) -> Intensity:
        found = solved(*arguments)  # type: ignore[arg-type]
        return replace(found, gains_db={n: gain + 0.7 for n, gain in found.gains_db.items()})

    monkeypatch.setattr(_brightness, "_solved", shifted)
    added(tmp_path, volumes, slices=(3,))
    assert {p: p.stat().st_mtime_ns for p in store.rglob("c/**/*") if p.is_file()} == before
