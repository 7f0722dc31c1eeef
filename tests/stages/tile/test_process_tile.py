"""One tile through the whole stage, on disk: products, archive copy, real data, and every kind of bad input."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.model.errors import (
    CalibrationError,
    ConfigurationError,
    FileFormatError,
    InputError,
    MissingInputError,
    TileSizeError,
)
from opticstream.model.ids import TileId
from opticstream.stages.tile._archive_tile import verify_archive
from opticstream.stages.tile._process_tile import process_tile
from opticstream.testing.raw_tiles import fringe_counts, nifti_header, write_spectral_nifti
from opticstream.testing.reconstruction_reference import (
    jones_reference,
    k_linear_interpolators,
    maps_reference,
    surface_reference,
    volumes_reference,
)

TILE = TileId(1, 2)
SAMPLES, A_LINES, B_LINES = 192, 9, 7


def _scan(**changes):
    base = {
        "samples": SAMPLES,
        "b_lines": B_LINES,
        "illuminations": [{"name": "normal", "columns": 4, "rows": 3, "a_lines": A_LINES}],
    }
    return ScanSettings.model_validate({**base, **changes})


def _processing(reconstruction=None, enface=None):
    return ProcessingSettings.model_validate({"reconstruction": reconstruction or {}, "enface": enface or {}})


def _counts(**options):
    return fringe_counts(samples=SAMPLES, a_lines=A_LINES, b_lines=B_LINES, **options)


def _load(result, name):
    return np.asanyarray(nib.load(result.outputs[name].path).dataobj)


def test_matrix_products_of_a_tile_use_one_thread_wherever_it_is_called(tmp_path, monkeypatch):
    from threadpoolctl import threadpool_info, threadpool_limits

    import opticstream.stages.tile._small_tile as small

    seen = []
    reconstruct = small.reconstruct_in_memory

    def looked_at(job):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return reconstruct(job)

    monkeypatch.setattr(small, "reconstruct_in_memory", looked_at)
    monkeypatch.setattr("opticstream.stages.tile._process_tile.SMALL_TILE", 1 << 30)
    raw = tmp_path / "raw.nii"
    write_spectral_nifti(raw, _counts())
    with threadpool_limits(2, user_api="blas"):
        process_tile(raw, TILE, scan=_scan(), processing=_processing(), out_dir=tmp_path / "out")
    assert set(seen) == {1}


@pytest.fixture(params=["whole", "in blocks"], autouse=True)
def route(request, monkeypatch):
    """Every promise holds for small tiles, done whole in NumPy, and for large ones, streamed through compiled code."""
    if request.param == "in blocks":
        monkeypatch.setattr("opticstream.stages.tile._process_tile.SMALL_TILE", 0)
        monkeypatch.setattr("opticstream.stages.tile._large_tile._LARGEST_BLOCK", 3)
    return request.param


@pytest.fixture
def raw(tmp_path):
    return write_spectral_nifti(tmp_path / "raw.nii", _counts())


def test_a_tile_gives_volumes_maps_and_archive_that_agree_with_the_formulas(tmp_path, raw):
    pixel = np.arange(SAMPLES)
    wavelengths = np.stack([1250 + 0.55 * pixel, 1251 + 0.54 * pixel])
    dispersion = 5 * np.linspace(-1, 1, SAMPLES) ** 2
    np.save(tmp_path / "dispersion.npy", dispersion)
    scan = _scan(
        calibration={
            "linearization": {"method": "wavelength-fit", "coefficients_nm": [[1250, 0.55], [1251, 0.54]]},
            "dispersion_files": [str(tmp_path / "dispersion.npy")],
        }
    )
    result = process_tile(
        raw,
        TILE,
        scan=scan,
        processing=_processing(
            {"save_complex": True},
            {
                "surface": "find",
                "orientation_method": "mean",
                "birefringence_method": "slope",
                "retardance_method": "mean",
            },
        ),
        out_dir=tmp_path / "project",
        archive_to=tmp_path / "archive" / "chunk_OCT.nii.gz",
    )
    jones = jones_reference(
        _counts(), resample=k_linear_interpolators(wavelengths), dispersion=np.stack([dispersion] * 2)
    )
    volumes = volumes_reference(jones)
    raw_surface, surface = surface_reference(_load(result, "dBI"))
    np.testing.assert_array_equal(_load(result, "surfraw"), raw_surface)
    np.testing.assert_array_equal(_load(result, "surf"), surface)
    signal = (volumes["dBI"] > np.percentile(volumes["dBI"], 20)) & (np.abs(volumes["R3D"] - 45) < 44)
    for name, tolerance in (("dBI", 0.01), ("R3D", 0.01)):
        assert np.abs(_load(result, name) - volumes[name])[signal].max() < tolerance
    maps = maps_reference(volumes, surface)
    for name, tolerance in (("aip", 0.01), ("mip", 0.01), ("ret", 0.05), ("biref", 1e-6)):
        np.testing.assert_allclose(_load(result, name), maps[name], atol=tolerance)
    turned = np.abs(_load(result, "ori") - maps["ori"])
    assert np.minimum(turned, 180 - turned).max() < 0.05
    packed = _load(result, "complex")
    assert packed.shape == (4 * A_LINES, B_LINES, SAMPLES // 2 - 24)
    np.testing.assert_allclose(packed[:A_LINES, :, ::-1], jones[0].real, atol=1e-3 * np.abs(jones).max())

    folder = tmp_path / "project" / "mosaic-01" / "processed"
    names = ["dBI", "R3D", "O3D", "aip", "mip", "ret", "ori", "biref", "surf", "surfraw"]
    expected = {*(f"mosaic_001_image_0002_{name}.nii" for name in names), "mosaic_001_image_0002_qc.jpg"}
    assert {p.name for p in folder.iterdir()} == expected
    assert [p.name for p in (folder.parent / "thumbnails").iterdir()] == ["mosaic_001_image_0002_maps.jpg"]
    image = nib.load(folder / "mosaic_001_image_0002_dBI.nii")
    assert image.header.get_zooms() == pytest.approx((0.01, 0.01, 0.0025))
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.affine, np.diag([0.01, 0.01, 0.0025, 1]))
    assert b"dB" in image.header["descrip"].item()

    content = raw.read_bytes()
    assert result.raw_bytes == len(content)
    assert result.raw_sha256 == hashlib.sha256(content).hexdigest()
    archive = tmp_path / "archive" / "chunk_OCT.nii.gz"
    assert result.outputs["archive"].sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert gzip.decompress(archive.read_bytes()) == content
    assert (tmp_path / "archive" / "chunk_OCT.nii.sha256").read_text() == f"{result.raw_sha256}  chunk_OCT.nii\n"
    for output in result.outputs.values():
        assert output.path.stat().st_size == output.bytes
    assert not list(tmp_path.rglob("*.partial-*"))
    assert result.flags == ()


def test_sha256sum_accepts_the_checksum_file(tmp_path, raw):
    archive = tmp_path / "archive" / "a.nii.gz"
    process_tile(raw, TILE, scan=_scan(), processing=_processing(), out_dir=tmp_path, archive_to=archive)
    (tmp_path / "archive" / "a.nii").write_bytes(gzip.decompress(archive.read_bytes()))
    done = subprocess.run(
        ["sha256sum", "-c", "a.nii.sha256"], cwd=archive.parent, capture_output=True, text=True, check=False
    )
    assert done.stdout == "a.nii: OK\n"


def test_doing_it_twice_gives_the_same_bytes(tmp_path, raw):
    results = [
        process_tile(
            raw,
            TILE,
            scan=_scan(),
            processing=_processing(),
            out_dir=tmp_path / n,
            archive_to=tmp_path / n / "a.nii.gz",
        )
        for n in ("one", "two")
    ]
    for name, output in results[0].outputs.items():
        assert output.path.read_bytes() == results[1].outputs[name].path.read_bytes(), name


class _CountingFile(io.FileIO):
    bytes_read = 0

    def readinto(self, buffer):
        n = super().readinto(buffer)
        type(self).bytes_read += n
        return n

    def read(self, *_):
        raise AssertionError("read past the counter")


def test_the_raw_file_is_read_once_for_checksum_archive_and_reconstruction(tmp_path, raw, monkeypatch):
    opened = []
    plain_open = Path.open

    def counting_open(self, mode="r", *args, **kwargs):
        if self == raw:
            opened.append(mode)
            return _CountingFile(str(self), mode)
        return plain_open(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counting_open)
    _CountingFile.bytes_read = 0
    result = process_tile(
        raw, TILE, scan=_scan(), processing=_processing(), out_dir=tmp_path, archive_to=tmp_path / "a.nii.gz"
    )
    monkeypatch.undo()
    assert opened == ["rb"]
    assert _CountingFile.bytes_read == raw.stat().st_size
    assert result.raw_sha256 == hashlib.sha256(raw.read_bytes()).hexdigest()


def test_a_complex_file_is_read_once_for_checksum_archive_and_reconstruction(tmp_path, raw, monkeypatch):
    processing = _processing({"save_complex": True})
    made = process_tile(raw, TILE, scan=_scan(), processing=processing, out_dir=tmp_path / "direct")
    source = made.outputs["complex"].path
    plain_open, plain_preadv = Path.open, os.preadv
    opened, again = [], []

    def counting_open(self, mode="r", *args, **kwargs):
        if self == source:
            opened.append(_CountingFile(str(self), mode))
            return opened[-1]
        return plain_open(self, mode, *args, **kwargs)

    def counting_preadv(handle, *args):
        if any(not file.closed and file.fileno() == handle for file in opened):
            again.append(handle)
        return plain_preadv(handle, *args)

    monkeypatch.setattr(Path, "open", counting_open)
    monkeypatch.setattr(os, "preadv", counting_preadv)
    _CountingFile.bytes_read = 0
    result = process_tile(
        source,
        TILE,
        scan=_scan(raw_format="complex"),
        processing=_processing(),
        out_dir=tmp_path / "via",
        archive_to=tmp_path / "a.nii.gz",
    )
    monkeypatch.undo()
    assert len(opened) == 1
    assert not again
    assert _CountingFile.bytes_read == source.stat().st_size
    assert result.raw_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert verify_archive(tmp_path / "a.nii.gz").problem is None


@given(
    flip2=st.booleans(),
    residual=st.booleans(),
    padding=st.sampled_from([1, 2]),
    window=st.sampled_from(["none", "hann", "gaussian"]),
    flip_z=st.booleans(),
    flip_phase=st.booleans(),
    offset=st.floats(-180, 180),
    surface=st.sampled_from(["find", "gradient_threshold", "robust", 30]),
    biref=st.sampled_from(["stokes", "slope", "unwrap"]),
    ori=st.sampled_from(["stokes", "mean", "histogram"]),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_going_through_the_complex_file_changes_nothing(
    tmp_path_factory, flip2, residual, padding, window, flip_z, flip_phase, offset, surface, biref, ori
):
    folder = tmp_path_factory.mktemp("invariant")
    raw = write_spectral_nifti(folder / "raw.nii", _counts())
    processing = _processing(
        {
            "flip_channel2": flip2,
            "residual_background": residual,
            "zero_padding": padding,
            "window": window,
            "flip_z": flip_z,
            "flip_phase": flip_phase,
            "phase_offset_deg": offset,
            "save_complex": True,
        },
        {"surface": surface, "birefringence_method": biref, "orientation_method": ori, "depth": 30},
    )
    direct = process_tile(raw, TILE, scan=_scan(), processing=processing, out_dir=folder / "direct")
    via = process_tile(
        direct.outputs["complex"].path,
        TILE,
        scan=_scan(raw_format="complex"),
        processing=processing,
        out_dir=folder / "via",
    )
    assert via.outputs["complex"].path.is_symlink()
    for name in set(direct.outputs) - {"qc"}:
        np.testing.assert_array_equal(_load(direct, name), _load(via, name), err_msg=name)


def test_flip_z_turns_the_volumes_over(tmp_path, raw):
    up = process_tile(raw, TILE, scan=_scan(), processing=_processing(), out_dir=tmp_path / "up")
    down = process_tile(raw, TILE, scan=_scan(), processing=_processing({"flip_z": False}), out_dir=tmp_path / "down")
    for name in ("dBI", "R3D", "O3D"):
        np.testing.assert_array_equal(_load(up, name), _load(down, name)[:, :, ::-1])


def test_a_recorded_background_is_subtracted_in_the_cameras_order(tmp_path, raw):
    """Its own mean spectrum, given as a file, does what `mean` does for a tile with a constant background."""
    mean = _counts().mean(axis=(0, 2))
    np.save(tmp_path / "background.npy", mean)
    scan = _scan(calibration={"background_file": str(tmp_path / "background.npy")})
    by_file = process_tile(raw, TILE, scan=scan, processing=_processing({"background": "file"}), out_dir=tmp_path / "f")
    by_mean = process_tile(raw, TILE, scan=_scan(), processing=_processing(), out_dir=tmp_path / "m")
    difference = _load(by_file, "aip") - _load(by_mean, "aip")
    assert np.abs(difference).mean() < 0.1


def test_the_surface_comes_from_a_file_or_a_number(tmp_path, raw):
    given_surface = np.arange(A_LINES * B_LINES, dtype=np.float32).reshape(A_LINES, B_LINES) % 40
    nib.save(nib.Nifti1Image(given_surface, np.eye(4)), tmp_path / "surface.nii")
    by_file = process_tile(
        raw,
        TILE,
        scan=_scan(),
        processing=_processing(enface={"surface": str(tmp_path / "surface.nii")}),
        out_dir=tmp_path,
    )
    np.testing.assert_array_equal(_load(by_file, "surf"), given_surface)
    flat = process_tile(raw, TILE, scan=_scan(), processing=_processing(enface={"surface": 11}), out_dir=tmp_path)
    assert (_load(flat, "surf") == 11).all()
    nib.save(nib.Nifti1Image(given_surface[:-1], np.eye(4)), tmp_path / "surface.nii")
    from_file = _processing(enface={"surface": str(tmp_path / "surface.nii")})
    with pytest.raises(InputError, match=r"surface\.nii \(processing\.enface\.surface\): has shape \(8, 7\)"):
        process_tile(raw, TILE, scan=_scan(), processing=from_file, out_dir=tmp_path)


def test_one_channel_gives_intensity_and_refuses_polarization(tmp_path):
    raw = write_spectral_nifti(tmp_path / "raw.nii", _counts(channels=1))
    scan = _scan(channels=1)
    with pytest.raises(ConfigurationError, match=r"O3D.*scan\.channels = 1"):
        process_tile(raw, TILE, scan=scan, processing=_processing(), out_dir=tmp_path)
    processing = _processing(
        {"volume_modalities": ["dBI"], "save_complex": True}, {"modalities": ["aip", "mip", "surf", "mus"]}
    )
    result = process_tile(raw, TILE, scan=scan, processing=processing, out_dir=tmp_path)
    assert set(result.outputs) == {"complex", "dBI", "aip", "mip", "mus", "surf", "surfraw", "qc"}
    assert _load(result, "complex").shape[0] == 2 * A_LINES
    assert np.isfinite(_load(result, "mus")).all()


def test_volumes_are_left_out_on_request(tmp_path, raw):
    result = process_tile(raw, TILE, scan=_scan(), processing=_processing({"save_volumes": False}), out_dir=tmp_path)
    assert {"dBI", "R3D", "O3D"}.isdisjoint(result.outputs)
    assert "aip" in result.outputs


def test_a_blank_tile_is_good_input(tmp_path):
    noise = np.random.default_rng(0).normal(100, 3, (B_LINES, 2, A_LINES, SAMPLES)).round()
    for name, counts in (("noise", noise), ("constant", np.full_like(noise, 100))):
        raw = write_spectral_nifti(tmp_path / f"{name}.nii", counts)
        result = process_tile(raw, TILE, scan=_scan(), processing=_processing(), out_dir=tmp_path / name)
        for modality in ("dBI", "R3D", "O3D", "aip", "mip", "ret", "ori", "biref", "surf"):
            assert np.isfinite(_load(result, modality)).all(), (name, modality)
        assert result.figures["tissue_fraction"] < 0.05
        assert result.flags == ()


def test_saturation_flags_a_tile(tmp_path):
    counts = _counts()
    counts[counts > np.percentile(counts, 98)] = 4095
    raw = write_spectral_nifti(tmp_path / "raw.nii", counts)
    result = process_tile(raw, TILE, scan=_scan(), processing=_processing(), out_dir=tmp_path)
    assert result.figures["saturated_fraction"] == pytest.approx(0.02, abs=0.01)
    assert any(flag.startswith("saturated") for flag in result.flags)


def _fails(tmp_path, raw, error, match, scan=None, processing=None):
    archive = tmp_path / "archive" / "a.nii.gz"
    with pytest.raises(error, match=match):
        process_tile(
            raw,
            TILE,
            scan=scan or _scan(),
            processing=processing or _processing(),
            out_dir=tmp_path / "out",
            archive_to=archive,
        )
    left = [p for folder in ("archive", "out") for p in (tmp_path / folder).rglob("*") if p.is_file()]
    assert left == []


def test_a_truncated_tile_is_refused_and_leaves_nothing(tmp_path, raw):
    raw.write_bytes(raw.read_bytes()[:-1000])
    _fails(tmp_path, raw, TileSizeError, r"raw\.nii: holds \d+ bytes, expected \d+ for samples=192, a_lines=9")


def test_a_vanished_tile_is_refused(tmp_path):
    _fails(tmp_path, tmp_path / "gone.nii", MissingInputError, "gone.nii: no such file")


def test_nan_in_a_complex_tile_is_refused(tmp_path):
    data = np.ones((4 * A_LINES, B_LINES, 60), np.float32)
    data[5, 6, 7] = np.nan
    path = tmp_path / "c.nii"
    path.write_bytes(nifti_header(data.shape, datatype=16) + data.tobytes(order="F"))
    _fails(tmp_path, path, FileFormatError, r"c\.nii: holds nan at \[5, 6, 7\]", scan=_scan(raw_format="complex"))


@pytest.mark.parametrize(
    ("calibration", "make", "match"),
    [
        ({"dispersion_files": ["d.npy"]}, None, r"d\.npy .*dispersion_files.*: no such calibration file"),
        ({"dispersion_files": ["d.npy"]}, np.zeros(100), r"d\.npy .*expected 192 values .*got shape \(100,\)"),
        ({"dispersion_files": ["d.npy"]}, np.full(192, np.inf), r"d\.npy .*holds inf at index 0"),
        (
            {"linearization": {"method": "wavelengths", "files": ["d.npy"]}},
            np.r_[np.arange(191.0) + 1, 5.0],
            r"d\.npy: .*goes from 191 at index 190 to 5",
        ),
        (
            {"linearization": {"method": "klinear", "files": ["d.npy"]}},
            np.linspace(0, 999, 192),
            r"d\.npy: positions run from 0 to 999",
        ),
    ],
)
def test_a_bad_calibration_is_refused_with_file_value_and_setting(tmp_path, raw, calibration, make, match, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if make is not None:
        np.save(tmp_path / "d.npy", make)
    _fails(tmp_path, raw, CalibrationError, match, scan=_scan(calibration=calibration))


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs user ids")
def test_an_unreadable_tile_is_refused(tmp_path, raw):
    """Run as another user where the tests run as root, for whom every file is readable."""
    raw.chmod(0)
    code = (
        "import os, sys, pathlib\n"
        "from opticstream.io.raw import SpectralShape, SpectralTile\n"
        "from opticstream.model.errors import InputError\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: SpectralTile.open(pathlib.Path(sys.argv[1]), SpectralShape(192, 9, 2, 7))\n"
        "except InputError as error: print(error)\n"
    )
    for parent in [raw.parent, *raw.parent.parents]:
        if parent.stat().st_uid == os.geteuid() and str(parent) not in ("/", "/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", code, str(raw)], capture_output=True, text=True, check=False)
    assert "raw.nii: cannot be read: Permission denied" in done.stdout, done.stderr
