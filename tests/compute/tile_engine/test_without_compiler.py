"""Kernels run without a compiler, and without a place to keep what is compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TILE = """
import json, sys
import numpy as np
from opticstream.compute.reconstruction import TileOptions, spectral_plan
from opticstream.compute.tile_engine import TileEngine
samples, a_lines, b_lines = 64, 11, 6
plan = spectral_plan(samples=samples, cut=0)
found = {}
engine = TileEngine(
    TileOptions(surface="robust", volumes=("dBI", "R3D", "O3D")), a_lines=a_lines, b_lines=b_lines, channels=2,
    depth=plan.depth, plan=plan, sink=lambda first, v: found.update({n: np.array(a).tolist() for n, a in v.items()}),
)
engine.add_spectra(np.random.default_rng(0).integers(0, 4096, (b_lines, 2, a_lines, samples), dtype=np.uint16))
engine.finish()
print(json.dumps(found))
"""


def _volumes(**environment: str) -> dict[str, np.ndarray]:
    done = subprocess.run(
        [sys.executable, "-c", TILE], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    assert "Warning" not in done.stderr
    return {name: np.array(values) for name, values in json.loads(done.stdout).items()}


def test_a_tile_is_the_same_without_a_compiler():
    plain, compiled = _volumes(NUMBA_DISABLE_JIT="1"), _volumes()
    assert plain.keys() == compiled.keys() == {"dBI", "R3D", "O3D"}
    for name, values in plain.items():
        np.testing.assert_allclose(values, compiled[name], atol=1e-3)


CACHED = """
import logging, sys, pathlib
from opticstream.system import compiled, places
if sys.argv[2] == "nowhere":
    compiled._ForgivingCache.__init__ = lambda self, function: (_ for _ in ()).throw(RuntimeError("no locator"))
if sys.argv[2] == "full":
    from numba.core.caching import FunctionCache
    def full(self, sig, data): raise OSError(28, "No space left on device")
    FunctionCache.save_overload = full
sys.path.insert(0, sys.argv[1])
import kernel
print(kernel.twice(3), kernel.thrice(3))
"""


@pytest.mark.parametrize("trouble", ["nowhere", "full", "damaged", "none"])
def test_a_cache_of_compiled_code_is_never_in_the_way_and_trouble_is_told_once(tmp_path, trouble):
    (tmp_path / "kernel.py").write_text(
        "from opticstream.system.compiled import njit\n"
        "@njit(cache=True)\ndef twice(x):\n    return 2 * x\n@njit(cache=True)\ndef thrice(x):\n    return 3 * x\n"
    )
    cache = tmp_path / "cache"
    for number in range(2):
        done = subprocess.run(
            [sys.executable, "-c", CACHED, str(tmp_path), trouble], capture_output=True, text=True, check=False,
            env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
        )  # fmt: skip
        assert done.stdout == "6 9\n", done.stderr
        if trouble in ("nowhere", "full"):
            assert done.stderr.count("NUMBA_CACHE_DIR") == 1
        if trouble == "damaged" and number == 0:
            for index in Path(cache).rglob("*.nb*"):
                index.write_bytes(index.read_bytes()[:40])
