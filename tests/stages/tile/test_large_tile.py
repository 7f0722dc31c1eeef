"""Budget, threads, libraries and pictures of tiles that stream."""

import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from opticstream.compute.tile_engine import TileEngine
from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import TileId
from opticstream.stages.tile import _large_tile as large_tile
from opticstream.stages.tile import _process_tile as stage
from opticstream.stages.tile._picture import hue, tile_picture
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti


def _scan(samples=192, a_lines=20, b_lines=60):
    illumination = {"name": "normal", "columns": 1, "rows": 1, "a_lines": a_lines}
    return ScanSettings.model_validate({"samples": samples, "b_lines": b_lines, "illuminations": [illumination]})


def _run(tmp_path, monkeypatch, name, scan, *, archive=False, **reconstruction):
    monkeypatch.setattr(stage, "SMALL_TILE", 0)
    raw = tmp_path / "raw.nii"
    if not raw.exists():
        counts = fringe_counts(samples=scan.samples, a_lines=scan.illuminations[0].a_lines, b_lines=scan.b_lines)
        write_spectral_nifti(raw, counts)
    processing = ProcessingSettings.model_validate({"reconstruction": reconstruction})
    archive_to = tmp_path / name / "a.nii.gz" if archive else None
    return stage.process_tile(
        raw, TileId(1, 1), scan=scan, processing=processing, out_dir=tmp_path / name, archive_to=archive_to
    )


def test_a_smaller_budget_makes_smaller_blocks_but_changes_no_byte(tmp_path, monkeypatch):
    made = []
    whole = large_tile.block_size
    monkeypatch.setattr(large_tile, "block_size", lambda *a: made.append(whole(*a)) or made[-1])
    results = [
        _run(tmp_path, monkeypatch, str(budget), _scan(), archive=True, memory_budget_gb=budget, threads=threads)
        for budget, threads in ((1.0, 2), (0.4, 2), (1.1, 3))
    ]
    assert made[1] < made[0] == made[2]
    for other in results[1:]:
        for name, output in results[0].outputs.items():
            assert output.path.read_bytes() == other.outputs[name].path.read_bytes(), name


def test_a_budget_that_cannot_hold_a_block_is_refused_with_what_is_needed(tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match=r"memory_budget_gb = 1e-06 is too small .* needs 0\.\d+"):
        _run(tmp_path, monkeypatch, "out", _scan(), memory_budget_gb=1e-6)


def test_affinity_and_the_threads_setting_are_honoured(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3}, raising=False)
    assert stage.available_threads() == 1
    assert stage.available_threads(2) == 2
    before = threading.active_count()
    seen = []
    analyse = TileEngine._analyse
    monkeypatch.setattr(TileEngine, "_analyse", lambda *a: seen.append(threading.active_count()) or analyse(*a))
    _run(tmp_path, monkeypatch, "one", _scan(b_lines=2))
    assert set(seen) == {before}


def _peak_bytes(folder, *, raw_format, a_lines, b_lines, budget_gb, volumes=False):
    """Reconstruct and archive a sparse tile (zeros when read) in a process of its own; return its size and the peak."""
    script = """
import json, sys
from pathlib import Path
from opticstream.compute.tile_engine import warm_kernels
from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.model.ids import TileId
from opticstream.stages.tile._process_tile import process_tile
from opticstream.testing.raw_tiles import nifti_header
folder, raw_format, a_lines, b_lines, budget, volumes = Path(sys.argv[1]), sys.argv[2], *map(eval, sys.argv[3:])
spectra, profiles = ((1024, a_lines, 2, b_lines), 512, 2), ((4 * a_lines, b_lines, 488), 16, 4)
shape, kind, size = spectra if raw_format == "nifti" else profiles
raw = folder / "raw.nii"
with raw.open("wb") as file:
    file.write(nifti_header(shape, datatype=kind))
    for n in shape:
        size *= n
    file.truncate(352 + size)
scan = ScanSettings.model_validate({"samples": 1024, "b_lines": b_lines, "raw_format": raw_format,
    "illuminations": [{"name": "normal", "columns": 1, "rows": 1, "a_lines": a_lines}]})
processing = ProcessingSettings.model_validate(
    {"reconstruction": {"memory_budget_gb": budget, "threads": 2, "save_volumes": volumes}})
process_tile(raw, TileId(1, 1), scan=scan, processing=processing, out_dir=folder, archive_to=folder / "a.nii.gz")
# Not getrusage: its peak begins with that of the process that was forked to start this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"peak": int(status["VmHWM"].split()[0]) * 1024, "bytes": size}))
"""
    from opticstream.compute.tile_engine import warm_kernels

    warm_kernels()  # so that the process finds everything compiled: the compiler's memory is not the tile's
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), raw_format, *map(str, (a_lines, b_lines, budget_gb, volumes))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stdout.splitlines()[-1])
    return took["bytes"], took["peak"]


@pytest.mark.parametrize("raw_format", [pytest.param("nifti", marks=pytest.mark.slow), "complex"])
def test_memory_stays_within_the_budget(tmp_path, raw_format):
    size, peak = _peak_bytes(tmp_path / "t", raw_format=raw_format, a_lines=96, b_lines=1600, budget_gb=0.55)
    assert size > 0.55e9
    assert peak < 0.55e9


@pytest.mark.slow
@pytest.mark.parametrize("raw_format", ["nifti", "complex"])
@pytest.mark.parametrize("b_lines", [350, 1400])
def test_memory_stays_within_the_default_budget_for_large_tiles(tmp_path, raw_format, b_lines):
    size, peak = _peak_bytes(
        tmp_path / "t", raw_format=raw_format, a_lines=350, b_lines=b_lines, budget_gb=1.0, volumes=b_lines < 1000
    )
    assert size > 1.4e6 * b_lines
    assert peak < 1e9


def test_lengths_with_large_prime_factors_are_reconstructed(tmp_path, monkeypatch):
    result = _run(tmp_path, monkeypatch, "out", _scan(samples=2 * 97, b_lines=3))
    assert result.outputs["dBI"].bytes == 352 + 4 * 20 * 3 * (97 - 24)


def test_the_picture_shows_the_surface_and_turns_colour_with_the_axis():
    from PIL import Image

    surface = np.full((40, 30), 25, np.float32)
    maps = {"surf": surface, "aip": surface + 40, "ori": surface, "ret": surface, "biref": surface * 1e-4}
    sections = np.zeros((40, 60), np.float32), np.zeros((30, 60), np.float32)
    picture = np.asarray(Image.open(io.BytesIO(tile_picture(maps, *sections, noise_db=10.0)))).astype(int)
    line = picture[25, 5:35]
    assert (line[:, 0] > 180).all()  # the surface, in orange, at its depth
    assert (picture[10, 5:35].max(axis=-1) < 60).all()
    turned = hue(np.array([0.0, 60.0, 120.0], np.float32), np.ones(3, np.float32))
    assert turned.argmax(axis=1).tolist() == [0, 1, 2]
