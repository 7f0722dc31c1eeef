"""The rig: every format, every grammar, every bad day, and the same bytes however it is run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from opticstream.config import ProjectConfig, load_project
from opticstream.io.calibration_files import load_calibration
from opticstream.io.names import FileNameGrammar
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import TileId
from opticstream.sim.demo import demo_phantom, write_demo
from opticstream.sim.rig import Misbehaviour, TileWritten, VirtualRig
from opticstream.sim.settings import PhantomSettings
from opticstream.sim.tiles import TileSimulator
from opticstream.testing import reference
from opticstream.testing.small_phantom import small_project_config

SETTINGS = PhantomSettings(slices=1)
BENT = {
    "linearization": {"method": "wavelengths", "files": ["cal/w1.npy", "cal/w2.npy"]},
    "dispersion_files": ["cal/d1.npy", "cal/d2.npy"],
}


def run(config: ProjectConfig, folder: Path, **options: Any) -> list[TileWritten]:
    events: list[TileWritten] = []
    settings = options.pop("settings", SETTINGS)
    VirtualRig(config, settings, folder, **options).run(progress=events.append)
    return events


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_tiles_appear_in_the_order_of_acquisition_under_their_names(config: ProjectConfig, tmp_path: Path) -> None:
    events = run(config, tmp_path / "raw")
    grammar = FileNameGrammar(config.scan.file_name, config.scan.layout)
    wanted = [TileId(m, t) for m in (1, 2) for t in (1, 2, 3, 4)]
    assert [e.tile for e in events] == wanted
    assert [grammar.tile_from_name(e.path.name) for e in events] == wanted
    assert {p.name for p in (tmp_path / "raw").iterdir()} == {e.path.name for e in events}


def test_a_nifti_tile_holds_the_counts_and_says_their_shape(config: ProjectConfig, tmp_path: Path) -> None:
    run(config, tmp_path)
    image = nib.load(tmp_path / "mosaic_002_image_0003_spectral_0000.nii")
    assert image.shape == (256, 16, 2, 20)
    assert image.get_data_dtype() == np.uint16
    tile = TileSimulator(config, SETTINGS).tile(TileId(2, 3))
    assert np.array_equal(np.asarray(image.dataobj).T, tile)


def test_a_packed_tile_unpacks_to_the_same_counts(tmp_path: Path) -> None:
    config = small_project_config(tmp_path / "p", raw_format="packed12", file_name="tile_{running:05d}.raw")
    run(config, tmp_path / "raw")
    tile = TileSimulator(config, SETTINGS).tile(TileId(1, 2))
    data = (tmp_path / "raw" / "tile_00002.raw").read_bytes()
    assert len(data) == tile.size * 3 // 2
    assert tile.max() <= 4095
    assert np.array_equal(reference.unpack_12bit(data[:30000]), tile.ravel()[:20000])


@pytest.mark.parametrize("calibration", [BENT, {}], ids=["bent", "linear"])
def test_a_complex_tile_is_what_a_reference_reconstruction_of_its_spectra_gives(
    tmp_path: Path, calibration: dict[str, Any]
) -> None:
    config = small_project_config(
        tmp_path / "p", raw_format="complex", file_name="mosaic_{mosaic:03d}_image_{tile:04d}_processed_cropped.nii",
        spectral_file_name="m{mosaic}_{tile:04d}_spectral_{n:04d}.nii", calibration=calibration,
    )  # fmt: skip
    rig = VirtualRig(config, SETTINGS, tmp_path / "raw")
    rig.run()
    assert len(list((tmp_path / "raw").iterdir())) == 16
    stored = np.asarray(nib.load(tmp_path / "raw" / "mosaic_001_image_0004_processed_cropped.nii").dataobj)
    assert stored.shape == (4 * 24, 20, 104)
    assert stored.dtype == np.float32
    lines = slice(0, 4)
    spectrometer = rig.simulator.spectrometer
    counts = np.asarray(nib.load(tmp_path / "raw" / "m1_0004_spectral_0000.nii").dataobj).T
    wavelengths = list(spectrometer.wavenumbers.wavelength_um) if calibration else None
    dispersion = [spectrometer.dispersion_phase(c) for c in (0, 1)]
    expected = reference.complex_from_spectra(counts[lines], wavelengths=wavelengths, dispersion=dispersion)
    parts = np.split(stored[:, lines, ::-1], 4)  # depth is stored reversed
    scale = np.abs(expected[0]).max()
    for c in (0, 1):
        assert np.abs(parts[2 * c] + 1j * parts[2 * c + 1] - expected[c]).max() < 1e-5 * scale


@pytest.mark.parametrize(
    "template",
    ["sub-{subject}_sample-slice{slice}_chunk-{tile}_acq-{acq}_spectral.nii", "scan{running:06d}.nii"],
)
def test_any_file_name_grammar_works(tmp_path: Path, template: str) -> None:
    config = small_project_config(tmp_path / "p", file_name=template)
    events = run(config, tmp_path / "raw")
    grammar = FileNameGrammar(template, config.scan.layout)
    assert [grammar.tile_from_name(e.path.name) for e in events] == [e.tile for e in events]


def test_the_bytes_follow_from_the_seed_not_from_order_or_company(config: ProjectConfig, tmp_path: Path) -> None:
    run(config, tmp_path / "raw")
    simulator = TileSimulator(config, SETTINGS)
    late_first = {t: simulator.tile(t) for t in reversed(simulator.tiles())}
    for tile, counts in late_first.items():
        stored = (
            tmp_path / "raw" / f"mosaic_{tile.mosaic_id:03d}_image_{tile.tile_id:04d}_spectral_0000.nii"
        ).read_bytes()
        assert stored[352:] == counts.tobytes()
    other = TileSimulator(config, SETTINGS.model_copy(update={"seed": 2}))
    assert not np.array_equal(other.tile(TileId(1, 1)), late_first[TileId(1, 1)])


def test_the_bytes_do_not_depend_on_how_many_cores_there_are(tmp_path: Path) -> None:
    project_file, _ = write_demo(tmp_path, slices=1, small=True)  # large enough for BLAS to split its products
    others = tuple(Misbehaviour("skip", number) for number in range(1, 13) if number != 3)
    for cores in (1, 2):
        with threadpool_limits(cores, user_api="blas"):
            folder = tmp_path / f"{cores}"
            VirtualRig(load_project(project_file), demo_phantom(slices=1), folder, misbehaviours=others).run()
    assert len(digests(tmp_path / "1")) == 1
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    with threadpool_limits(2, user_api="blas"):
        rig = VirtualRig(
            load_project(project_file), demo_phantom(slices=1), tmp_path / "ahead", misbehaviours=others, workers=2
        )
        rig.run()
    assert digests(tmp_path / "1") == digests(tmp_path / "ahead"), "made ahead by processes of their own"


@pytest.mark.slow
def test_several_processes_write_the_same_files_in_the_same_order(config: ProjectConfig, tmp_path: Path) -> None:
    one = run(config, tmp_path / "one")
    two = run(config, tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert [e.tile for e in one] == [e.tile for e in two]


def test_a_killed_rig_goes_on_and_ends_with_the_same_files(config: ProjectConfig, tmp_path: Path) -> None:
    run(config, tmp_path / "raw")
    undisturbed = digests(tmp_path / "raw")
    files = sorted((tmp_path / "raw").iterdir())
    kept = files[0].stat().st_mtime_ns
    with files[3].open("rb+") as handle:
        handle.truncate(5000)
    for path in files[4:]:
        path.unlink()
    events = run(config, tmp_path / "raw")
    assert [e.kept for e in events] == [True] * 3 + [False] * 5
    assert digests(tmp_path / "raw") == undisturbed
    assert files[0].stat().st_mtime_ns == kept


def test_readers_meet_half_written_files_at_the_pace_of_the_camera(config: ProjectConfig, tmp_path: Path) -> None:
    sizes: list[int] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        sizes.append((tmp_path / "mosaic_001_image_0001_spectral_0000.nii").stat().st_size)

    run(config, tmp_path, rate=0.5, clock=lambda: now, sleep=sleep)
    whole = 352 + 256 * 24 * 2 * 20 * 2
    assert len({s for s in sizes if s < whole}) >= 2
    a_lines = 4 * 20 * (24 + 16)
    assert now == pytest.approx(a_lines / (76_000 * 0.5), rel=1e-6)


def test_a_slow_rig_does_not_catch_up_in_a_burst(config: ProjectConfig, tmp_path: Path) -> None:
    now, slept = 0.0, 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0  # making a block takes far longer than the camera would
        return now

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds

    run(config, tmp_path, rate=1.0, clock=clock, sleep=sleep)
    assert slept < 1.0


class TestMisbehaviour:
    def names(self, config: ProjectConfig, folder: Path, *wrong: str) -> list[str]:
        events = run(config, folder, misbehaviours=tuple(Misbehaviour.parse(w) for w in wrong))
        return [e.path.name[8:21] + e.path.name[30:] for e in events]

    def test_truncate_breaks_off_one_file(self, config: ProjectConfig, tmp_path: Path) -> None:
        self.names(config, tmp_path, "truncate:2")
        sizes = {p.stat().st_size for p in tmp_path.glob("mosaic_001_*")}
        whole = 352 + 256 * 24 * 2 * 20 * 2
        assert sizes == {whole, whole // 2}
        assert (tmp_path / "mosaic_001_image_0002_spectral_0000.nii").stat().st_size == whole // 2

    def test_duplicate_writes_a_tile_under_another_counter(self, config: ProjectConfig, tmp_path: Path) -> None:
        run(config, tmp_path, misbehaviours=(Misbehaviour.parse("duplicate:3"),))
        first, second = (tmp_path / f"mosaic_001_image_0003_spectral_000{n}.nii" for n in (0, 1))
        assert first.read_bytes() == second.read_bytes()

    def test_skip_leaves_a_tile_out(self, config: ProjectConfig, tmp_path: Path) -> None:
        run(config, tmp_path, misbehaviours=(Misbehaviour.parse("skip:4"),))
        assert not list(tmp_path.glob("mosaic_001_image_0004*"))
        assert len(list(tmp_path.iterdir())) == 7

    def test_reorder_swaps_a_tile_with_its_successor(self, config: ProjectConfig, tmp_path: Path) -> None:
        events = run(config, tmp_path, misbehaviours=(Misbehaviour.parse("reorder:1"),))
        assert [e.tile.tile_id for e in events[:4]] == [2, 1, 3, 4]

    def test_rewrite_writes_a_tile_again_after_the_next(self, config: ProjectConfig, tmp_path: Path) -> None:
        events = run(config, tmp_path, misbehaviours=(Misbehaviour.parse("rewrite:2"),))
        assert [e.tile.tile_id for e in events[:5]] == [1, 2, 3, 2, 4]
        assert len(list(tmp_path.iterdir())) == 8

    def test_stall_pauses_in_the_middle_of_a_file(self, config: ProjectConfig, tmp_path: Path) -> None:
        seen: list[tuple[float, int]] = []

        def sleep(seconds: float) -> None:
            path = tmp_path / "mosaic_001_image_0002_spectral_0000.nii"
            seen.append((seconds, path.stat().st_size))

        run(config, tmp_path, misbehaviours=(Misbehaviour.parse("stall:2:7.5"),), sleep=sleep)
        whole = 352 + 256 * 24 * 2 * 20 * 2
        assert [s for s, _ in seen] == [7.5]
        assert 0.4 * whole < seen[0][1] < whole

    @pytest.mark.parametrize("text", ["explode:1", "truncate", "truncate:0", "stall:1:x"])
    def test_nonsense_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="unknown misbehaviour"):
            Misbehaviour.parse(text)

    def test_a_tile_that_does_not_exist_is_refused(self, config: ProjectConfig, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="truncate:99: the acquisition has only 8 tiles"):
            run(config, tmp_path, misbehaviours=(Misbehaviour.parse("truncate:99"),))


@pytest.mark.parametrize(
    "linearization",
    [
        {"method": "wavelengths", "files": ["cal/w.npz#first", "cal/w.npz#second"]},
        {"method": "wavelengths", "files": ["cal/shared.dat"]},
        {"method": "klinear", "files": ["cal/k1.npy", "cal/k2.npy"]},
        {"method": "chirp", "files": ["cal/chirp.mat#first", "cal/chirp.mat#second"]},
        {"method": "phase", "measured_files": ["cal/m1.dat", "cal/m2.dat"], "linear_files": ["cal/l.npy"]},
    ],
    ids=lambda form: f"{form['method']}-{len(form.get('files', '12'))}",
)
def test_calibration_files_of_every_form_can_be_loaded_and_repeat_byte_for_byte(
    tmp_path: Path, linearization: dict[str, Any]
) -> None:
    calibration = {
        "linearization": linearization, "dispersion_files": ["cal/d.mat#phase1", "cal/d.mat#phase2"],
        "background_file": "cal/background.npy",
    }  # fmt: skip
    from opticstream.config import config_from_mapping

    plain = small_project_config(tmp_path / "p", calibration=calibration)
    config = config_from_mapping(plain.model_dump(mode="json"), folder=tmp_path)
    rig = VirtualRig(config, SETTINGS, tmp_path / "raw", calibration_folder=tmp_path)
    rig.prepare()
    first = digests(tmp_path / "cal")
    loaded = load_calibration(config.scan, needs_background=True)
    assert np.allclose(loaded.dispersion_rad[1], rig.simulator.spectrometer.dispersion_phase(1))
    assert loaded.background.shape == (2, 256)
    assert np.allclose(loaded.background[1, ::-1], rig.simulator.spectrometer.reference[1] + 60.0, atol=300)
    rig.prepare()
    assert digests(tmp_path / "cal") == first


def test_a_shared_dispersion_file_needs_channels_that_agree(tmp_path: Path) -> None:
    config = small_project_config(tmp_path / "p", calibration={**BENT, "dispersion_files": ["cal/d.npy"]})
    with pytest.raises(ConfigurationError, match="names one file for both channels"):
        VirtualRig(config, SETTINGS, tmp_path / "raw", calibration_folder=tmp_path).prepare()


@pytest.mark.parametrize("inside", ["raw/truth", "project/truth", "project"])
def test_the_truth_stays_out_of_reach_of_the_stages(config: ProjectConfig, tmp_path: Path, inside: str) -> None:
    with pytest.raises(ConfigurationError, match="where stages could read it"):
        VirtualRig(config, SETTINGS, tmp_path / "raw", tmp_path / inside)


def test_one_channel_has_light_in_it(tmp_path: Path) -> None:
    plain = small_project_config(tmp_path / "p").model_dump(mode="json")
    plain["scan"]["channels"] = 1
    plain["processing"]["enface"]["modalities"] = ["aip"]
    for stage in ("reconstruction", "volume"):
        key = "volume_modalities" if stage == "reconstruction" else "modalities"
        plain["processing"][stage][key] = ["dBI"]
    config = ProjectConfig.model_validate(plain)
    tile = TileSimulator(
        config, SETTINGS.model_copy(update={"sample": SETTINGS.sample.model_copy(update={"outline": "full"})})
    ).tile(TileId(1, 1))
    assert tile.shape == (20, 1, 24, 256)
    (profile,) = reference.complex_from_spectra(tile, wavelengths=None)
    level = 20 * np.log10(np.abs(profile)).mean(axis=(0, 1))
    assert level[40:60].mean() > level[:8].mean() + 10


@pytest.mark.slow
def test_a_full_size_tile_is_made_within_bounded_memory(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = """
import resource
from opticstream.model.ids import TileId
from opticstream.sim.presets import full_size_phantom
from opticstream.sim.tiles import TileSimulator
from opticstream.testing.small_phantom import small_project_config
big = [{"name": "normal", "columns": 1, "a_lines": 350}]
config = small_project_config(samples=2048, b_lines=350, grid_size_y=1, illuminations=big)
simulator = TileSimulator(config, full_size_phantom())
size = 0
for block in simulator.spectra(TileId(1, 1)):
    size += block.nbytes
print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, peak_kib = map(int, done.stdout.split())
    assert size == 2048 * 350 * 2 * 350 * 2
    assert peak_kib < 1.5e6


def test_tiles_of_another_phantom_are_never_taken_for_ones_of_this(config: ProjectConfig, tmp_path: Path) -> None:
    run(config, tmp_path / "raw", truth_folder=tmp_path / "truth")
    run(config, tmp_path / "raw", truth_folder=tmp_path / "truth")
    other = SETTINGS.model_copy(update={"seed": 7})
    with pytest.raises(ConfigurationError, match="of another phantom or scan than these settings"):
        run(config, tmp_path / "raw", truth_folder=tmp_path / "truth", settings=other)


def test_any_number_of_illuminations_with_their_own_tilts_and_grids(tmp_path: Path) -> None:
    three = [
        {"name": "normal", "columns": 2, "a_lines": 16},
        {"name": "tilted", "columns": 3, "rows": 1, "a_lines": 12, "tilt_deg": -15},
        {"name": "sideways", "columns": 1, "a_lines": 20, "tilt_deg": 20, "tilt_axis_deg": 0},
    ]
    config = small_project_config(tmp_path / "p", illuminations=three, b_lines=10, samples=128)
    events = run(config, tmp_path / "raw", truth_folder=tmp_path / "truth", settings=PhantomSettings(slices=2))
    assert len(events) == 2 * (4 + 3 + 2)
    truth = json.loads((tmp_path / "truth" / "truth.json").read_text())
    assert [len(m["tiles"]) for m in truth["mosaics"]] == [4, 3, 2] * 2
    assert [[m["mosaic_id"] for m in s["moving"]] for s in truth["slices"]] == [[2, 3], [5, 6]]
    beams = [np.array(i["beam_frame"])[2] for i in truth["illuminations"]]
    assert np.rad2deg(np.arccos(beams[0] @ beams[2])) == pytest.approx(20)
    assert beams[2][0] == pytest.approx(0, abs=1e-12)  # tilted about x, it leans along y
    assert beams[2][1] == pytest.approx(-np.sin(np.deg2rad(20)))


def test_the_path_length_over_the_field_is_the_same_in_every_tile_of_an_illumination(config: ProjectConfig) -> None:
    simulator = TileSimulator(config, SETTINGS)
    normal, tilted = simulator.gate_px(0), simulator.gate_px(1)
    assert normal.shape == (24, 20)
    assert tilted.shape == (16, 20)
    # A polynomial of degree 2: third differences vanish.
    assert np.abs(np.diff(normal, 3, axis=0)).max() < 1e-9
    assert np.abs(np.diff(normal, 3, axis=1)).max() < 1e-9
    across = [np.ptp(g.mean(axis=1)[[0, -1]]) for g in (normal, tilted)]
    assert across[1] > across[0] + 5  # the gate of a tilted beam is tilted


@pytest.mark.slow
def test_a_mosaic_of_400_tiles_is_made_in_parallel_within_bounded_memory(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = """
import resource, sys
from pathlib import Path
from opticstream.sim.rig import VirtualRig
from opticstream.sim.settings import PhantomSettings
from opticstream.testing.small_phantom import small_project_config

if __name__ == "__main__":
    grid = [{"name": "normal", "columns": 20, "a_lines": 32}]
    config = small_project_config(sys.argv[1] + "/p", samples=128, b_lines=32, grid_size_y=20, illuminations=grid)
    VirtualRig(config, PhantomSettings(slices=1), Path(sys.argv[1], "raw"), Path(sys.argv[1], "truth"), workers=2).run()
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    print(max(resource.getrusage(kind).ru_maxrss for kind in kinds))
"""
    script = tmp_path / "many.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=True)
    assert len(list((tmp_path / "raw").iterdir())) == 400
    assert int(done.stdout) < 400e3
