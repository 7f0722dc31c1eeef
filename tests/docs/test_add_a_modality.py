"""The guide to a new modality, followed to the letter in a copy of the package: tile, mosaic, pictures."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opticstream.io.nifti import map_from_nifti, read_nifti
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "add-a-modality.md").read_text(encoding="utf-8")
COLUMNS, SAMPLES, A_LINES, B_LINES = 2, 192, 40, 24


def block(where: str) -> str:
    found = re.findall(rf"<!-- file: {re.escape(where)} -->\n```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(found) == 1, where
    return found[0]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Return the folder of a copy of the package with the two changes of the guide."""
    folder = tmp_path_factory.mktemp("copy") / "src"
    shutil.copytree(ROOT / "src", folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.nb?"))
    table = folder / "opticstream" / "model" / "modalities.py"
    text = table.read_text(encoding="utf-8")
    assert text.count("_ENTRIES = (\n") == 1
    entry = block("src/opticstream/model/modalities.py, in _ENTRIES")
    table.write_text(text.replace("_ENTRIES = (\n", "_ENTRIES = (\n" + entry), encoding="utf-8")
    makers = folder / "opticstream" / "stages" / "tile" / "_enface_maps.py"
    function = block("src/opticstream/stages/tile/_enface_maps.py, at the end")
    makers.write_text(makers.read_text(encoding="utf-8") + "\n\n" + function, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def project(package, tmp_path_factory):
    """Return a folder in which the commands of the guide were run with that copy."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "raw").mkdir()
    counts = fringe_counts(samples=SAMPLES, a_lines=2 * A_LINES, b_lines=B_LINES)
    for tile in range(1, COLUMNS + 1):
        first = (tile - 1) * A_LINES * 3 // 4  # neighbours share a quarter
        part = counts[:, :, first : first + A_LINES]
        write_spectral_nifti(folder / "raw" / f"mosaic_001_image_{tile:04d}_spectral_0000.nii", part)
    (folder / "project.toml").write_text(
        '[project]\nproject_name = "guide"\nproject_base_path = "project"\n\n'
        f"[scan]\nsamples = {SAMPLES}\nb_lines = {B_LINES}\ngrid_size_y = 1\ntile_overlap = 25\n"
        f'illuminations = [{{ name = "normal", columns = {COLUMNS}, a_lines = {A_LINES} }}]\n\n'
        '[processing.coordinates]\nmethod = "nominal"\n[processing.mask]\nmade_from = ""\n'
        "[processing.enface]\ndepth = 30\n"
    )
    (shell,) = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    commands = [line.split()[1:] for line in shell.splitlines() if line.startswith("opticstream ")]
    assert len(commands) == 2
    program = "import sys, opticstream; from opticstream.cli import main; print(opticstream.__file__); sys.exit(main())"
    for command in commands:
        at = [str(p.relative_to(folder)) for p in sorted(folder.glob("raw/*.nii"))]
        words = [part for word in command for part in (at if word == "raw/*.nii" else [word])]
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(package), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(package) in done.stdout.splitlines()[0]
    return folder / "project" / "mosaic-01"


def test_no_more_than_three_files_are_touched(package):
    changed = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if not filecmp.cmp(path, ROOT / "src" / path.relative_to(package), shallow=False)
    ]
    assert sorted(changed) == ["opticstream/model/modalities.py", "opticstream/stages/tile/_enface_maps.py"]


def test_the_map_of_a_tile_is_what_the_guide_says(project):
    volume, surface, spread = (
        np.asarray(read_nifti(project / "processed" / f"mosaic_001_image_0002_{name}.nii"))
        for name in ("dBI", "surf", "spread")
    )
    assert spread.shape == (A_LINES, B_LINES)
    for x, y in ((0, 0), (11, 5), (A_LINES - 1, B_LINES - 1)):
        first = int(np.rint(surface[x, y]))
        assert spread[x, y] == pytest.approx(volume[x, y, first : first + 31].std(), rel=1e-3)


def test_the_mosaic_blends_the_tiles(project):
    tiles = [np.asarray(read_nifti(project / "processed" / f"mosaic_001_image_{n:04d}_spread.nii")) for n in (1, 2)]
    mosaic = np.asarray(map_from_nifti(project / "stitched" / "mosaic_001_spread.nii.gz"))
    shared = A_LINES // 4
    assert mosaic.shape == (2 * A_LINES - shared, B_LINES)
    np.testing.assert_allclose(mosaic[: A_LINES - shared], tiles[0][:-shared], rtol=1e-5)
    np.testing.assert_allclose(mosaic[A_LINES:], tiles[1][shared:], rtol=1e-5)
    both = np.stack([tiles[0][-shared:], tiles[1][:shared]])
    overlap = mosaic[A_LINES - shared : A_LINES]
    assert (overlap >= both.min(axis=0) - 1e-4).all()
    assert (overlap <= both.max(axis=0) + 1e-4).all()


def test_the_mosaic_has_a_header_and_pictures(project):
    import nibabel as nib

    header = nib.load(project / "stitched" / "mosaic_001_spread.nii.gz").header
    assert header["descrip"].item() == b"spread, dB; NaN: no data"
    assert (project / "stitched" / "mosaic_001_spread.tif").exists()
    picture = np.asarray(Image.open(project / "stitched" / "mosaic_001_spread.jpg")).astype(int)
    assert picture.shape == (B_LINES, 2 * A_LINES - A_LINES // 4, 3)
    assert (picture.max(axis=(0, 1)) - picture.min(axis=(0, 1)) > 40).all()  # in colours, not in grey
    assert np.abs(picture[..., 0] - picture[..., 1]).max() > 40


def test_without_the_changes_the_name_is_refused():
    from pydantic import ValidationError

    from opticstream.config.processing import EnfaceSettings

    with pytest.raises(ValidationError, match="Input should be 'aip'"):
        EnfaceSettings(modalities=("aip", "spread"))
