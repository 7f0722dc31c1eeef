"""Mutation testing: small faults are put into the source, one at a time, and the tests of the room must notice.

python -m pip install -c constraints.txt -e '.[dev,mutation]'
python benchmarks/mutation.py stitching [axis pipeline] [--sample 120] [--seed 1] [--out results.json]
python benchmarks/mutation.py --again results.json

The faults are those of cosmic-ray (mutmut 3 calls its mutants through a wrapper that numba cannot compile). They are
put into a temporary copy of the tree. `--sample` places are drawn by `--seed`, and one fault at each; annotations and
decorators are left out. Every mutant is judged by the quick tests of its room, in a process that is forked after the
heavy libraries have been imported, which saves most of the time; a limit on processor time ends endless loops on a busy
machine, too. `--again` judges the survivors of an earlier run once more, with `--longer` by further tests. Not for
Windows.
"""

from __future__ import annotations

import argparse
import ast
import collections
import dataclasses
import difflib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "pydantic_settings",
    "numpy",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.spatial",
    "scipy.sparse.linalg",
    "numba",
    "pytest",
)
KINDS = {
    "ReplaceBinaryOperator": "arithmetic",
    "ReplaceUnaryOperator": "sign or not",
    "ReplaceComparisonOperator": "comparison",
    "NumberReplacer": "number",
    "AddNot": "condition",
    "ReplaceAndWithOr": "condition",
    "ReplaceOrWithAnd": "condition",
    "ReplaceTrueWithFalse": "True or False",
    "ReplaceFalseWithTrue": "True or False",
    "ExceptionReplacer": "except",
}  # everything else: loop


@dataclasses.dataclass(frozen=True)
class Room:
    source: str
    tests: tuple[str, ...]
    """The quick tests, those that find most at the front; files that are not there are passed over."""
    without: str
    """Tests among them that take too long, as an expression of `pytest -k`."""
    longer: tuple[str, ...] = ()
    """Tests that take too long for every mutant; they run for those of their own module, and with `--longer`."""
    compiled: bool = True
    """Whether kernels are compiled: that takes longer than to run the quick tests in plain Python, for each mutant."""

    def tests_of(self, module: str, /) -> tuple[str, ...]:
        """Return the tests that judge a mutant of a module, those that are named after it first."""
        own = [test for test in (*self.tests, *self.longer) if Path(module).stem in test]
        return (*own, *(test for test in self.tests if test not in own))


_COMPUTE = "tests/compute"
_PIPELINE = "tests/pipeline"
ROOMS = {
    "stitching": Room(
        "src/opticstream/compute/stitching",
        tuple(f"{_COMPUTE}/stitching/test_{name}.py" for name in ("formulas", "fusion", "positions", "tissues")),
        "every_tissue or islands_of_tissue or on_every_tissue or two_faint_maps or links_across or columns_of_the or "
        "shading_and_columns or faint_texture or turned_scan or one_faint_link or "
        "two_kinds or large_jump or corner or hole or backlash or kind_of_grid or inputs_stay or order_of_the_tiles",
        compiled=False,
    ),
    "axis": Room(
        "src/opticstream/compute/axis",
        tuple(f"{_COMPUTE}/axis/test_{name}.py" for name in ("kernels", "axis", "slice_axis")),
        "no_search_from_many or nelder_mead or three_and_four or survive_noise or outside_the_wedge or "
        "stated_uncertainty_is or third_beam or doubtful_pixels or vectors_say or turning_sample or multiples_of or "
        "scaling_the or threads_and or axes_come_back or three_beams_beat or real_fibre or white_matter or "
        "without_turning or cannot_be_registered or inside_the_mask",
        compiled=False,
    ),
    "pipeline": Room(
        "src/opticstream/pipeline",
        tuple(f"{_PIPELINE}/test_{name}.py" for name in ("rules", "jobs", "stuck", "quality_flags", "mosaic_doubts")),
        "bad_tiles_and_changed or status_and_verify or whole_chain",
        longer=(
            *(
                f"{_PIPELINE}/test_{name}.py"
                for name in ("incoming", "damaged_flags", "milestones", "slices", "reemission", "run_parameters")
            ),
            f"{_PIPELINE}/test_raw_changes.py",
            f"{_PIPELINE}/test_failures.py",
            f"{_PIPELINE}/test_stale.py::test_another_focus_map_redoes_the_volumes_and_the_mosaic_that_finds_it_but_no_slice",
            f"{_PIPELINE}/test_chain.py::test_raw_tiles_become_a_registered_and_published_slice",
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    room: str
    module: str
    """Path relative to the root of the project."""
    line: int
    operator: str
    occurrence: int

    @property
    def kind(self) -> str:
        return next((kind for name, kind in KINDS.items() if f"/{name}" in self.operator), "loop")


def every_mutant(name: str) -> Iterator[tuple[tuple[Any, ...], Mutant]]:
    """Yield each place of a room with each fault that is possible there."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    operators = {operator: get_operator(operator) for operator in sorted(operator_names())}
    without_arguments = {
        n: kind() for n, kind in operators.items() if not kind.arguments() and "RemoveDecorator" not in n
    }
    for path in sorted((ROOT / ROOMS[name].source).rglob("*.py")):
        source = path.read_text()
        skipped = _lines_and_columns_left_out(source)
        nodes = list(ast_nodes(get_ast(source)))
        for operator, fault in without_arguments.items():
            positions = (position for node in nodes for position in fault.mutation_positions(node))
            for occurrence, (start, end) in enumerate(positions):
                if not any(first <= start and end <= last for first, last in skipped):
                    module = str(path.relative_to(ROOT))
                    yield (module, start, end), Mutant(name, module, start[0], operator, occurrence)


def _lines_and_columns_left_out(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    left_out: list[ast.AST] = []
    for node in ast.walk(ast.parse(source)):
        left_out += [
            part for name in ("annotation", "returns") if isinstance(part := getattr(node, name, None), ast.AST)
        ]
        left_out += getattr(node, "decorator_list", [])
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in left_out]  # type: ignore[attr-defined]


def drawn(name: str, sample: int, seed: int) -> list[Mutant]:
    """Return one fault at each of `sample` places of a room."""
    places: dict[tuple[Any, ...], list[Mutant]] = collections.defaultdict(list)
    for place, mutant in every_mutant(name):
        places[place].append(mutant)
    chance = random.Random(f"{seed} {name}")
    chosen = chance.sample(
        sorted(places), min(sample, len(places))
    )  # in no order: what is done at any time is a sample
    print(f"{name}: {len(places)} places, {sum(map(len, places.values()))} mutants; {len(chosen)} drawn", flush=True)
    return [chance.choice(places[place]) for place in chosen]


@dataclasses.dataclass(frozen=True)
class Verdict:
    code: int
    cpu_s: float
    output: str

    @property
    def survived(self) -> bool:
        return self.code == 0


def judged(tree: Path, room: Room, chosen: Sequence[str], *, limit_s: float, mutated: bool = True) -> Verdict:
    """Run the tests of a room in a forked process, for at most `limit_s` of processor time, ten times that in all."""
    output = tree / "output.txt"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s) + 1, int(limit_s) + 5))
            target = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(target, 1)
            os.dup2(target, 2)
            os.chdir(tree)
            sys.path.insert(0, str(tree / "src"))
            os.environ["PYTHONPATH"] = str(tree / "src")
            os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HYPOTHESIS_NO_PLUGINS": "1"}  # they take seconds
            sys.dont_write_bytecode = mutated  # a mutant of the same second and size would be taken for another
            if not room.compiled:
                os.environ["NUMBA_DISABLE_JIT"] = "1"
                importlib.import_module("numba").config.DISABLE_JIT = 1
            pytest = importlib.import_module("pytest")
            tests = [test for test in chosen if Path(test.partition("::")[0]).exists()]
            options = ["-p", "pytest_timeout", "-p", "no:cacheprovider", "-x", "-q", "--tb=line"]
            code = int(pytest.main([*options, "-m", "not slow and not server", "-k", f"not ({room.without})", *tests]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + 10 * limit_s
    status: int | None = None
    while status is None:
        done, found, usage = os.wait4(pid, os.WNOHANG)
        if done:
            status = found
        elif time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
        else:
            time.sleep(0.05)
    try:
        os.killpg(pid, signal.SIGKILL)  # what the tests left behind
    except ProcessLookupError:
        pass
    return Verdict(
        os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, output.read_text(errors="replace")
    )


def run(room: Room, mutants: list[Mutant], tree: Path, *, until: float) -> Iterator[dict[str, Any]]:
    """Judge mutants of one room and yield a row for each."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    if room.compiled:
        judged(tree, room, room.tests, limit_s=3600, mutated=False)  # compiles what is not compiled yet
    sound = judged(tree, room, room.tests, limit_s=3600, mutated=False)
    if not sound.survived:
        raise SystemExit(f"the tests of {mutants[0].room} fail without any mutant:\n{sound.output[-2000:]}")
    print(f"{mutants[0].room}: {sound.cpu_s:.1f} s of processor time without a mutant", flush=True)
    for number, mutant in enumerate(mutants, 1):
        if time.monotonic() > until:
            return
        path = tree / mutant.module
        with use_mutation(path, get_operator(mutant.operator)(), mutant.occurrence) as (before, after):
            if after is None:
                continue  # the source has changed since
            verdict = judged(tree, room, room.tests_of(mutant.module), limit_s=60 + 4 * sound.cpu_s)
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
        change = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        by = next((line for line in verdict.output.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
        row = dataclasses.asdict(mutant) | {"kind": mutant.kind, "survived": verdict.survived, "change": change}
        row |= {"code": verdict.code, "killed_by": by[:200], "cpu_s": round(verdict.cpu_s, 1)}
        word = "SURVIVED" if verdict.survived else "killed"
        print(
            f"{number}/{len(mutants)} {word} {verdict.cpu_s:.0f} s {mutant.module}:{mutant.line} {mutant.kind}",
            flush=True,
        )
        yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the counts by room and kind as Markdown."""
    lines = ["| room, kind | tried | killed | survived |", "|---|---|---|---|"]
    for room in sorted({row["room"] for row in rows}):
        of_room = [row for row in rows if row["room"] == room]
        for kind in ("all", *sorted({row["kind"] for row in of_room})):
            some = [row for row in of_room if kind in ("all", row["kind"])]
            alive = sum(row["survived"] for row in some)
            lines.append(f"| {room}, {kind} | {len(some)} | {len(some) - alive} | {alive} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", help=f"any of {', '.join(ROOMS)}; default: all")
    parser.add_argument("--sample", type=int, default=120, metavar="N", help="places drawn in each room")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("mutants.json"), help="every mutant and its verdict, as JSON")
    parser.add_argument("--again", type=Path, metavar="FILE", help="judge the survivors of an earlier run once more")
    parser.add_argument("--longer", action="store_true", help="judge by longer tests as well")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end each room after that time")
    given = parser.parse_args()
    if unknown := set(given.rooms) - set(ROOMS):
        parser.error(f"unknown rooms {', '.join(sorted(unknown))}; expected any of {', '.join(ROOMS)}")
    names = given.rooms or list(ROOMS)
    if given.again:
        fields = [field.name for field in dataclasses.fields(Mutant)]
        earlier = [row for row in json.loads(given.again.read_text()) if row["survived"]]
        mutants = [Mutant(**{field: row[field] for field in fields}) for row in earlier]
    else:
        mutants = [mutant for name in names for mutant in drawn(name, given.sample, given.seed)]
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for library in HEAVY:
        importlib.import_module(library)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in ("src", "tests", "docs", "benchmarks"):
            shutil.copytree(ROOT / part, tree / part)
        shutil.copy(ROOT / "pyproject.toml", tree)
        for name in names:
            if chosen := [mutant for mutant in mutants if mutant.room == name]:
                room = ROOMS[name]
                if given.longer:
                    room = dataclasses.replace(room, tests=room.tests + room.longer)
                for row in run(room, chosen, tree, until=time.monotonic() + 60 * given.minutes):
                    rows.append(row)
                    given.out.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    for row in rows:
        if row["survived"]:
            print(f"\n{row['module']}:{row['line']} {row['operator']}", *row["change"], sep="\n")


if __name__ == "__main__":
    main()
