"""The whole demo on Octave, event chain and all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(3600)
def test_the_demo_passes_with_octave_as_the_engine_of_tiles_and_axes(octave, tmp_path):
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "opticstream", "demo", "--engine", "matlab", "--small", "--slices", "1"]
    ran = subprocess.run(
        [*command, "--out", str(out), "--json"],
        env={**os.environ, "OPTICSTREAM_MATLAB_COMMAND": octave},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    settings = [json.loads(path.read_text()) for path in Path(out, "project/state/settings").glob("*.json")]
    engines = [one for one in settings if one.get("processing.engine.kind") == "matlab"]
    assert len(engines) >= 2  # of tiles, and of axes
    assert (out / "project" / "registered" / "slice_001_axis.nii.gz").exists()
    assert not [path for path in out.rglob("*.partial-*") if "matlab" in path.name]
