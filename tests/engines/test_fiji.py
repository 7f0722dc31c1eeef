"""Fiji places tiles: the macro that it gets, what is made of its answer, and what each failure says."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from opticstream.config import DeploymentSettings
from opticstream.config.coordinates import FijiCoordinates, FileCoordinates
from opticstream.engines import FijiGrid, stitching_macro
from opticstream.model.errors import ConfigurationError, EngineError, EngineOutOfMemory, EngineTimeout, InputError
from opticstream.model.layout import ScanOrder, ScanPattern, ScanStart
from opticstream.stages.mosaic import find_coordinates
from opticstream.testing.stitching_cases import MOSAIC, make_case
from opticstream.testing.synthetic_mosaic import position_errors

# Reads the macro as Fiji would, and answers with the positions of a plan, in the form of the plugin's own file.
_FIJI = r"""#!{python} -IS
import json, os, re, shutil, sys, time
assert sys.argv[1:-1] == ["--mem=500M", "--headless", "--console", "-macro"], sys.argv
macro = open(sys.argv[-1], encoding="utf-8").read()
found = re.match(r'run\("Grid/Collection stitching", "(.*)"\);\n', macro)
assert found, macro
text = found[1]
values = dict(re.findall(r"(\S+?)=(\[[^\]]*\]|\S+)", text))
folder = values["directory"].strip("[]")
last = 'File.saveString("finished", "%s/finished.txt");\neval("script", "System.exit(0);");\n'
assert macro[found.end():] == last % folder, macro
assert values["output_directory"] == values["directory"] and os.path.samefile(folder, os.getcwd())
shutil.copytree(folder, {copy!r}, dirs_exist_ok=True)
json.dump({{"values": values, "words": re.sub(r"\[[^\]]*\]", "", text).split()}}, open({seen!r}, "w"))
plan = json.load(open({plan!r}))
print(plan.get("says", "Stitching internal version: 1.2"), flush=True)
if "sleep" in plan: time.sleep(plan["sleep"])
if "positions" in plan:
    lines = ["# Define the number of dimensions we are working on", "dim = 2", "", "# Define the image coordinates"]
    lines += ["%s; ; (%s, %s)" % (name, x, y) for name, x, y in plan["positions"]]
    open(os.path.join(folder, "TileConfiguration.registered.txt"), "w").write("\n".join(lines) + "\n")
if "recorded" in plan:
    shutil.copyfile(plan["recorded"], os.path.join(folder, "TileConfiguration.registered.txt"))
if plan.get("stays"):
    open(os.path.join(folder, "finished.txt"), "w").write("finished")
if "stays" in plan: time.sleep(600)
sys.exit(plan.get("status", 0))
"""


class FijiStandIn:
    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path, self._plan, self._seen, self.pictures = (
            folder / name for name in ("fiji", "plan.json", "seen.json", "pictures")
        )
        self.path.write_text(
            _FIJI.format(python=sys.executable, plan=str(self._plan), seen=str(self._seen), copy=str(self.pictures))
        )
        self.path.chmod(0o755)

    def plan(self, **steps: object) -> None:
        import json

        self._plan.write_text(json.dumps(steps))

    @property
    def seen(self) -> dict[str, object]:
        import json

        return json.loads(self._seen.read_text())


@pytest.fixture
def fiji(tmp_path):
    return FijiStandIn(tmp_path / "stand-in")


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path / "project [1]", products=("aip",))


def placed(case, fiji, *, timeout_s=60.0, scan=None, **settings):
    return find_coordinates(
        MOSAIC,
        scan=scan or case.scan,
        settings=FijiCoordinates(**settings),
        tiles_folder=case.tiles,
        template_path=case.template,
        qc_folder=case.stitched,
        deployment=DeploymentSettings(fiji_command=str(fiji.path), fiji_memory="500MB", fiji_timeout_s=timeout_s),
    )


def errors_px(found, true_px):
    return position_errors(found, true_px, np.ones(len(found), bool))


RECORDED = Path(__file__).with_name("recorded")
"""What the plugin itself wrote for the tiles of `case`, by our macro: ImageJ 1.52i on a virtual screen, and the plugin
compiled from its sources (fiji/Stitching, abdce62); thresholds 0.1, 0.1 and 0.3. It lists the tiles row by row. Blank
tiles, which are given as noise, lie anywhere with the low threshold, and at the origin with the usual one."""


@pytest.mark.parametrize(
    ("name", "blank"),
    [("all-tiles", ()), ("two-blank-tiles", (2, 6)), ("two-lost-tiles", (2, 6))],
)
def test_what_the_real_plugin_wrote_makes_a_good_template(case, fiji, name, blank):
    for number in blank:
        case.file(number, "aip").unlink()
    fiji.plan(recorded=str(RECORDED / f"{name}.registered.txt"))
    made = placed(case, fiji)
    found = np.array([place.position_px for place in made.tilemap.places])
    seen = [n - 1 for n in range(1, 7) if n not in blank]
    assert position_errors(found, case.truth.true_px, np.isin(np.arange(6), seen))[seen].max() < 2
    assert errors_px(found, case.truth.true_px).max() < 8  # blank tiles have the stage's own error
    assert [place.tile for place in made.tilemap.places if place.by_stage_only] == list(blank)
    assert made.verdict.grade == "good"


def test_a_file_of_fiji_is_matched_by_the_numbers_in_its_names_not_by_its_order(case):
    made = find_coordinates(
        MOSAIC,
        scan=case.scan,
        settings=FileCoordinates(tile_configuration=RECORDED / "all-tiles.registered.txt"),
        tiles_folder=case.tiles,
        template_path=case.template,
    )
    found = np.array([place.position_px for place in made.tilemap.places])
    assert errors_px(found, case.truth.true_px).max() < 2


def test_a_file_of_fiji_whose_names_have_no_numbers_must_be_in_the_order_of_the_scan(case, tmp_path):
    lines = (RECORDED / "all-tiles.registered.txt").read_text().splitlines()
    names = iter("abcdef")
    nameless = [re.sub(r"tile_\d+", lambda _: next(names), line) for line in lines]

    def placed_by(lines):
        path = tmp_path / "TileConfiguration.registered.txt"
        path.write_text("\n".join(lines))
        return find_coordinates(
            MOSAIC,
            scan=case.scan,
            settings=FileCoordinates(tile_configuration=path),
            tiles_folder=case.tiles,
            template_path=case.template,
        )

    with pytest.raises(InputError, match="have no numbers from 1 to 6, and it does not list them in the order"):
        placed_by(nameless)
    in_order = nameless[:4] + [nameless[4 + k] for k in (0, 3, 1, 4, 2, 5)]
    found = np.array([place.position_px for place in placed_by(in_order).tilemap.places])
    assert errors_px(found, case.truth.true_px).max() < 2


@pytest.mark.slow
def test_fiji_that_stays_after_its_macro_is_ended_and_its_positions_are_used(case, fiji, monkeypatch):
    monkeypatch.setattr("opticstream.engines._fiji._LAST_S", 0.2)
    fiji.plan(positions=true_positions(case), stays=True)
    assert placed(case, fiji, timeout_s=300.0).verdict.grade == "good"


@pytest.mark.slow
def test_fiji_that_stays_after_an_error_is_ended_with_what_it_said(case, fiji, monkeypatch):
    monkeypatch.setattr("opticstream.engines._fiji._LAST_S", 0.2)
    fiji.plan(says='Unrecognized command: "Grid/Collection stitching" in line 1', stays=False)
    with pytest.raises(ConfigurationError, match="has no Grid/Collection stitching"):
        placed(case, fiji, timeout_s=300.0)


def true_positions(case):
    return [
        [f"tile_{n:05d}.tif", float(x), float(y)]
        for n, (x, y) in enumerate(case.truth.true_px - case.truth.true_px[0], start=1)
    ]


def test_the_template_is_that_of_fijis_positions(case, fiji):
    fiji.plan(positions=true_positions(case))
    made = placed(case, fiji)
    found = np.array([place.position_px for place in made.tilemap.places])
    assert errors_px(found, case.truth.true_px).max() < 0.01
    assert made.tilemap.source["method"] == "fiji"
    assert made.verdict is not None
    assert made.verdict.grade == "good"
    assert "nan" not in made.verdict.sentence
    assert not any(place.by_stage_only for place in made.tilemap.places)


def test_fiji_sees_the_tiles_with_x_to_the_right_and_y_downwards(case, fiji):
    from opticstream.io.nifti import map_from_nifti

    fiji.plan(positions=true_positions(case))
    placed(case, fiji)
    for number in (1, 4):
        picture = tifffile.imread(fiji.pictures / f"tile_{number:05d}.tif")
        assert np.array_equal(picture.T, map_from_nifti(case.file(number, "aip")))


def test_tiles_that_fiji_left_at_the_origin_or_placed_badly_go_where_the_stage_put_them(case, fiji):
    positions = true_positions(case)
    positions[2][1:] = [0.0, 0.0]  # as Fiji leaves tiles without links; the first tile lies there as well
    positions[4][1] += 40.0
    fiji.plan(positions=positions)
    made = placed(case, fiji)
    found = np.array([place.position_px for place in made.tilemap.places])
    by_stage = [place.tile for place in made.tilemap.places if place.by_stage_only]
    assert by_stage == [3, 5]
    errors = errors_px(found, case.truth.true_px)
    assert errors.max() < 8  # the stage's own error
    assert made.verdict.tiles_by_stage == 2


@pytest.mark.slow
def test_tiles_that_fiji_leaves_out_are_placed_by_the_stage(case, fiji):
    fiji.plan(positions=true_positions(case)[:-1])
    made = placed(case, fiji)
    assert [place.tile for place in made.tilemap.places if place.by_stage_only] == [len(made.tilemap.places)]


@pytest.mark.slow
def test_a_mosaic_in_which_nothing_fits_lies_on_the_nominal_grid_and_is_doubted(case, fiji):
    fiji.plan(positions=[[name, 0.0, 0.0] for name, *_ in true_positions(case)])
    made = placed(case, fiji)
    assert made.verdict.grade == "stage only"
    found = np.array([place.position_px for place in made.tilemap.places])
    assert errors_px(found, case.truth.nominal_px).max() < 0.01


def test_a_missing_tile_is_given_to_fiji_as_noise_and_placed_by_the_stage(case, fiji):
    case.file(2, "aip").unlink()
    fiji.plan(positions=true_positions(case))
    made = placed(case, fiji)
    assert made.missing == (2,)
    assert made.tilemap.place_of(2).by_stage_only
    picture = tifffile.imread(fiji.pictures / "tile_00002.tif")
    assert 0 < np.abs(picture).max() < 0.1


def test_the_macro_names_grid_order_overlap_and_thresholds(case, fiji):
    fiji.plan(positions=true_positions(case))
    placed(case, fiji, regression_threshold=0.12, absolute_displacement_threshold=7.5, subpixel=False)
    values = fiji.seen["values"]
    assert values["type"] == "[Grid: column-by-column]"
    assert values["order"] == f"[Down & Right{' ' * 16}]"
    assert (values["grid_size_x"], values["grid_size_y"]) == ("3", "2")
    assert values["regression_threshold"] == "0.12"
    assert values["absolute_displacement_threshold"] == "7.5"
    assert "subpixel_accuracy" not in fiji.seen["words"]
    assert "compute_overlap" in fiji.seen["words"]


@pytest.mark.slow
def test_an_overlap_that_differs_along_x_and_y_is_told_by_positions(case, fiji):
    fiji.plan(positions=true_positions(case))
    placed(case, fiji, scan=case.scan.model_copy(update={"tile_overlap": 20.0, "tile_overlap_unit": "pixels"}))
    assert fiji.seen["values"]["type"] == "[Positions from file]"
    assert (fiji.pictures / "TileConfiguration.txt").exists()


def fijis_walk(kind: str, order: str, columns: int, rows: int) -> list[tuple[int, int]]:
    """Return the cells in the order in which Fiji's plugin visits them; rows go downwards."""
    first, second = order.strip().split(" & ")
    by_columns = first in ("Up", "Down")
    outer, inner = (columns, rows) if by_columns else (rows, columns)
    inner_back, outer_back = first in ("Up", "Left"), second in ("Up", "Left")
    walk = []
    for o in range(outer):
        for i in range(inner):
            back = inner_back != ("snake" in kind and o % 2 == 1)
            fast = inner - 1 - i if back else i
            slow = outer - 1 - o if outer_back else o
            walk.append((slow, fast) if by_columns else (fast, slow))
    return walk


@pytest.mark.parametrize("pattern", list(ScanPattern))
@pytest.mark.parametrize("start", list(ScanStart))
def test_fiji_walks_every_grid_as_the_stage_did(pattern, start):
    grid = FijiGrid(3, 4, pattern, start, 20.0)
    ours = [ScanOrder(pattern, start).grid_position(n, 3, 4) for n in range(1, 13)]
    assert fijis_walk(grid.type, grid.order, 3, 4) == ours
    macro = stitching_macro(Path("/tmp/a b"), FijiCoordinates(), grid=grid)
    assert f"order=[{grid.order}]" in macro
    assert "directory=[/tmp/a b]" in macro


def test_a_folder_that_a_macro_cannot_name_is_refused():
    with pytest.raises(ConfigurationError, match="TMPDIR"):
        stitching_macro(Path("/tmp/a]b"), FijiCoordinates(), grid=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        ({"says": "java.lang.OutOfMemoryError: heap", "status": 1}, EngineOutOfMemory, "OPTICSTREAM_FIJI_MEMORY"),
        ({"says": 'Unrecognized command: "Grid/..."'}, ConfigurationError, "expected Fiji, not plain ImageJ"),
        ({"says": "Exception in thread", "status": 1}, EngineError, "status 1 without writing TileConf.*Exception"),
        ({"status": 0}, EngineError, "without writing TileConfiguration.registered.txt"),
        ({"positions": [["other.tif", 0, 0]]}, RuntimeError, "position for 'other.tif', which is none of the tiles"),
        ({"positions": [["tile_00001.tif", "nan", 0]]}, RuntimeError, "cannot be read: .*must be finite"),
    ],
)
def test_each_failure_has_its_own_message_and_leaves_no_template(case, fiji, plan, error, words):
    fiji.plan(**plan)
    with pytest.raises(error, match=words):
        placed(case, fiji)
    assert not case.template.exists()


@pytest.mark.slow
def test_fiji_that_hangs_is_ended(case, fiji):
    fiji.plan(sleep=600)
    with pytest.raises(EngineTimeout, match=r"did not finish within 3 s \(OPTICSTREAM_FIJI_TIMEOUT_S\)"):
        placed(case, fiji, timeout_s=3.0)


def test_without_fiji_the_error_says_what_to_configure(case, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"Fiji was not found on this host: .*set OPTICSTREAM_FIJI_COMMAND"):
        find_coordinates(
            MOSAIC,
            scan=case.scan,
            settings=FijiCoordinates(),
            tiles_folder=case.tiles,
            template_path=case.template,
            deployment=DeploymentSettings(),
        )


@pytest.mark.slow
def test_the_real_fiji_places_tiles_near_the_truth(case):
    names = ("fiji", "fiji-linux-x64", "ImageJ-linux64")
    program = os.environ.get("OPTICSTREAM_FIJI_COMMAND") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("Fiji is not installed (it is in no package registry; set OPTICSTREAM_FIJI_COMMAND to its program)")
    made = find_coordinates(
        MOSAIC,
        scan=case.scan,
        settings=FijiCoordinates(regression_threshold=0.1),
        tiles_folder=case.tiles,
        template_path=case.template,
        deployment=DeploymentSettings(fiji_command=program, fiji_timeout_s=300),
    )
    found = np.array([place.position_px for place in made.tilemap.places])
    assert np.median(errors_px(found, case.truth.true_px)) < 3
    assert re.search("links hold", made.verdict.sentence)
