"""The simulator shares nothing with what it judges."""

from __future__ import annotations

import ast
from pathlib import Path

import opticstream

ROOT = Path(opticstream.__file__).parent


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.startswith("opticstream.")}


def test_sim_imports_only_model_config_and_io() -> None:
    modules = sorted((ROOT / "sim").glob("*.py"))
    assert len(modules) > 10
    for path in modules:
        floors = {name.split(".")[1] for name in imports_of(path)}
        assert floors <= {"sim", "model", "config", "io", "system"}, path


def test_the_reference_reconstruction_imports_nothing_of_ours() -> None:
    assert imports_of(ROOT / "testing" / "reference.py") == set()


def test_no_stage_names_the_truth() -> None:
    for floor in ("compute", "stages", "pipeline", "watch", "flows"):
        for path in (ROOT / floor).rglob("*.py"):
            assert not any(name.startswith("opticstream.sim") for name in imports_of(path)), path
