"""Rooms and their faces: what others may use is named, private modules stay private, light rooms load no compiler."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import opticstream

ROOT = Path(__file__).parents[1]
SOURCE = Path(opticstream.__file__).parent
STAGES = tuple(f"opticstream.stages.{name}" for name in ("mosaic", "project", "sample", "slice", "tile", "volume"))
ROOMS = (
    *(
        f"opticstream.compute.{name}"
        for name in (
            "array_engine",
            "axis",
            "lanes",
            "reconstruction",
            "registration",
            "sample",
            "stitching",
            "stitching.volume",
            "tile_engine",
        )
    ),
    "opticstream.io.zarr",
    *STAGES,
)
LIGHT = (
    "opticstream.compute.array_engine",
    "opticstream.compute.arrays",
    "opticstream.compute.axial",
    "opticstream.compute.axis",
    "opticstream.compute.pyramid",
    "opticstream.compute.reconstruction",
    "opticstream.compute.registration",
    "opticstream.compute.sample",
    "opticstream.compute.stitching",
    "opticstream.io.zarr",
    *STAGES,
)
HEAVY = {"numba", "scipy", "SimpleITK", "tensorstore", "nibabel", "tifffile", "PIL", "prefect"}


def _imported(tree: ast.AST) -> Iterator[str]:
    """Yield every module that is imported, and every name that may be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _private_modules(name: str) -> Iterator[str]:
    """Yield the packages of ours whose private modules an imported name goes through."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        inside = SOURCE.joinpath(*parts[1:at])
        is_module = (inside / f"{part}.py").exists() or (inside / part).is_dir()
        if parts[0] == "opticstream" and part.startswith("_") and not part.startswith("__") and is_module:
            yield ".".join(parts[:at])


def _folders(package: str) -> tuple[Path, Path]:
    """Return the folder of a package and that of its tests."""
    parts = package.split(".")[1:]
    return SOURCE.joinpath(*parts), ROOT.joinpath("tests", *parts)


def test_nobody_outside_a_room_imports_its_private_modules():
    strangers = []
    seen = 0
    for folder in (SOURCE, ROOT / "tests", ROOT / "benchmarks"):
        for path in sorted(folder.rglob("*.py")):
            for name in _imported(ast.parse(path.read_text(encoding="utf-8"))):
                for package in _private_modules(name):
                    seen += 1
                    if not any(inside in path.parents for inside in _folders(package)):
                        strangers.append(f"{path.relative_to(ROOT)} imports {name}")
    assert strangers == []
    assert seen > 100  # the test sees them


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_names_all_that_it_offers_and_nothing_else(room):
    face = importlib.import_module(room)
    offered = {name for name in vars(face) if not name.startswith("_")} - {"annotations"}
    offered -= {name for name, value in vars(face).items() if isinstance(value, type(sys))}
    assert sorted(face.__all__) == sorted(offered)


def test_all_modules_of_a_room_are_private():
    for room in ROOMS:
        folder = _folders(room)[0]
        public = {p.stem for p in folder.glob("*.py") if not p.name.startswith("_")}
        assert public == set(), room


@pytest.mark.parametrize("room", LIGHT)
def test_a_light_room_is_imported_without_heavy_libraries(room):
    script = f"import sys, {room}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "opticstream" in done.stdout.split()
    assert HEAVY & set(done.stdout.split()) == set()
