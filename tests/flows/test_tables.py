"""After any sequence of facts, in any order and with looks in between, what people see equals a rebuild."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from PIL import Image

from opticstream.config import DeploymentSettings, load_project
from opticstream.flows import picture
from opticstream.flows.picture_artifacts import contact_sheet
from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.pipeline.project import Project
from opticstream.state.memory_store import memory_store
from opticstream.state.mirror import oct_state_from_facts
from opticstream.state.oct_state import OCTProjectState, OCTStateService
from opticstream.state.vocabulary import FACTS, is_claim

TEXT = """
[project]
project_name = "My Brain"
project_base_path = "out"
[scan]
grid_size_y = 2
illuminations = [{ name = "normal", columns = 2, a_lines = 350 }, { name = "tilted", columns = 1, a_lines = 200 }]
"""
ITEMS = [
    *(SliceId(s) for s in (1, 2)),
    *(MosaicId(m) for m in (1, 2, 3)),
    *(BatchId(m, b) for m in (1, 3) for b in (1, 2)),
    *(TileId(m, t) for m in (1, 3) for t in (1, 2, 3, 4)),
]
CHANGES = st.sampled_from([(i, f) for i in ITEMS for f in FACTS[i.hierarchy] if not is_claim(f)])
DETAILS = st.sampled_from(
    [
        {},
        {"doubts": ["blurred"], "verdict": "bad"},
        {"doubts": ["dark"]},
        {"tiles": {"1": {"flags": ["saturated"], "verdict": "look"}}},
        {"targets": {"s3": {"place": "s3://bucket/a"}}},
    ]
)


class Server:
    """The artifacts of a Prefect server: the latest of each key."""

    def __init__(self) -> None:
        self.latest: dict[str, dict] = {}

    def create(self, *, key: str, table: list[dict], description: str) -> None:
        self.latest[key] = {"key": key, "data": json.dumps(table), "description": description}

    def call(self, _method: str, path: str, body: dict) -> SimpleNamespace:
        assert path == "/artifacts/latest/filter"
        found = [one for key, one in sorted(self.latest.items()) if key.startswith(body["artifacts"]["key"]["like_"])]
        page = found[body["offset"] : body["offset"] + body["limit"]]
        return SimpleNamespace(json=lambda: page)


class PeopleSeeTheFacts(RuleBasedStateMachine):
    """State flows publish tables and shared state of a project while facts come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "project.toml").write_text(TEXT)
        self.project = Project.open(load_project(self.folder / "project.toml"), deployment=DeploymentSettings())
        self.server = Server()
        self.service = OCTStateService(memory_store(OCTProjectState))
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(picture, "PrefectApi", lambda: self.server)
        self.patch.setattr(picture, "create_table_artifact", self.server.create)
        self.patch.setattr(picture, "OCT_STATE_SERVICE", self.service)

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.folder)

    @rule(change=CHANGES, detail=DETAILS, again=st.booleans())
    def a_fact_is_recorded(self, change, detail, again) -> None:
        record = self.project.facts.replace if again else self.project.facts.record
        record(*change, {"detail": detail}, **({"why": "test"} if again else {}))

    @rule(change=CHANGES)
    def a_fact_is_withdrawn(self, change) -> None:
        self.project.facts.withdraw(*change, reason="test")

    @rule()
    def time_passes(self) -> None:
        """Let every flag and folder be older than the resolution of times."""
        for path in self.folder.rglob("*"):
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 10_000_000_000))

    @rule()
    def a_state_flow_looks(self) -> None:
        picture.publish_picture(self.project)

    @rule(data=st.data())
    def the_server_loses_a_table(self, data) -> None:
        if self.server.latest:
            del self.server.latest[data.draw(st.sampled_from(sorted(self.server.latest)))]

    @rule()
    def what_was_kept_is_lost(self) -> None:
        for name in ("quality.json", "milestone-times.json"):
            (self.project.paths.base / "state" / name).unlink(missing_ok=True)

    @invariant()
    def the_next_look_shows_what_a_rebuild_shows(self) -> None:
        picture.publish_picture(self.project)
        assert picture.picture_is_current(self.project)
        shown = picture._shown_tables(self.project.config.name)
        copy = shutil.copytree(self.project.paths.base, self.folder / f"copy-{time.monotonic_ns()}")
        for name in ("quality.json", "milestone-times.json"):
            (copy / "state" / name).unlink(missing_ok=True)
        overrides = {"project_base_path": str(copy)}
        rebuilt = Project.open(load_project(self.folder / "project.toml", overrides=overrides))
        snapshot = rebuilt.facts.snapshot()
        progress = picture.project_progress(rebuilt, snapshot)
        tables = picture.progress_tables(rebuilt, progress, snapshot)
        shutil.rmtree(copy)
        assert {key: shown[key] for key in tables} == tables
        if self.project.facts.snapshot().items():
            expected = oct_state_from_facts(self.project.config.name, self.project.facts, self.project.layout)
            shown_state = self.service.peek_project(self.project.config.name)
            # Before a fact that the state knows of, there is no Variable: a tile alone is none.
            assert shown_state == expected.to_view() or (shown_state is None and not expected.slices)


PeopleSeeTheFacts.TestCase.settings = settings(
    max_examples=6,
    stateful_step_count=6,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
test_what_people_see_equals_a_rebuild = PeopleSeeTheFacts.TestCase


@pytest.fixture
def project(tmp_path) -> Project:
    (tmp_path / "project.toml").write_text(TEXT)
    return Project.open(load_project(tmp_path / "project.toml"), deployment=DeploymentSettings())


def tables_of(project: Project) -> dict:
    snapshot = project.facts.snapshot()
    return picture.progress_tables(project, picture.project_progress(project, snapshot), snapshot)


def test_a_table_has_milestones_with_their_times_quality_and_the_places_of_uploads(project):
    for tile in project.layout.tiles(MosaicId(1))[:3]:
        project.facts.record(tile, "processed")
    project.facts.record(MosaicId(1), "stitched", {"detail": {"doubts": ["blurred"], "verdict": "bad"}})
    project.facts.record(MosaicId(1), "published")
    project.facts.record(MosaicId(1), "uploaded", {"detail": {"targets": {"s3": {"place": "s3://bucket/a"}}}})
    tables = tables_of(project)
    (rows,) = (
        {row["state"]: row["batches"] for row in table} for key, (table, _) in tables.items() if "mosaic-1" in key
    )
    stamp = rows["25 % of tiles"]
    assert stamp.endswith(" UTC")
    assert stamp.startswith(f"{time.gmtime().tm_year}")
    assert {"50 % of tiles", "75 % of tiles"} <= rows.keys()
    assert "100 % of tiles" not in rows
    assert rows["maps: stitched"].endswith(" UTC")
    assert rows["maps at s3"] == "s3://bucket/a"
    assert "quality: bad (1)" in rows
    (row,) = next(table for key, (table, _) in tables.items() if "mosaic" not in key.partition("--")[2])
    assert (row["quality"], row["slice quality"]) == ("bad (1)", "ok")


def test_a_table_has_links_to_the_archives_that_hold_the_maps(tmp_path):
    targets = '[publish]\ntargets = [{ kind = "dandi", dandiset = "000123", name = "open_data" }]\n'
    (tmp_path / "project.toml").write_text(TEXT + targets)
    project = Project.open(load_project(tmp_path / "project.toml"), deployment=DeploymentSettings())
    project.facts.record(MosaicId(1), "stitched")
    (description,) = (told for key, (_, told) in tables_of(project).items() if "mosaic-1" in key)
    assert "Published" not in description
    held = {"targets": {"open_data": {"place": "dandiset 000123 at https://api.dandiarchive.org/api"}}}
    project.facts.record(MosaicId(1), "published")
    project.facts.record(MosaicId(1), "uploaded", {"detail": held})
    (description,) = (told for key, (_, told) in tables_of(project).items() if "mosaic-1" in key)
    assert "Mosaic 1 (slice 1, normal): 0 % of tiles, stitched" in description
    link = r"[open\_data](https://dandiarchive.org/dandiset/000123/draft/files)"
    assert description.endswith(f". Published: {link}")


def test_tiles_of_a_column_are_shown_side_by_side_with_what_is_to_be_checked(project, monkeypatch):
    shown: dict[str, tuple[bytes, str, str]] = {}
    monkeypatch.setattr(
        picture, "publish_picture_bytes", lambda key, data, *, title, text: shown.update({key: (data, title, text)})
    )
    assert picture.publish_tile_pictures(project, BatchId(1, 1)) is None, "there is no picture"
    for tile in project.layout.tiles(BatchId(1, 1)):
        path = project.paths.tile_product(tile, "qc").with_suffix(".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 300), (200, 10, 10)).save(path)
    flags = {"1": {"flags": ["saturated: 2 %"], "verdict": "look"}, "2": {}}
    project.facts.record(BatchId(1, 1), "processed", {"detail": {"tiles": flags}})
    key = picture.publish_tile_pictures(project, BatchId(1, 1))
    ((found, (data, title, text)),) = shown.items()
    assert found == key
    assert key.endswith("--mosaic-1-tiles")
    assert title == "Mosaic 1: tiles of column 1"
    assert text == "tile 1 of mosaic 1 (look): saturated: 2 %"
    assert Image.open(io.BytesIO(data)).size[0] == 1600


def test_pictures_of_a_slice_are_shown_under_keys_of_their_own(project, monkeypatch):
    shown: dict[str, str] = {}
    monkeypatch.setattr(picture, "publish_image", lambda key, path, *, title, text: shown.update({key: text}))
    names = ["registered/slice_001_axis.jpg", "registered/slice_001_overlay_tilted.jpg", "registered/gone.jpg"]
    for name in names[:2]:
        path = project.paths.absolute(name)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(path)
    project.facts.record(SliceId(1), "registered", {"detail": {"pictures": names, "doubts": ["weak overlap"]}})
    keys = picture.publish_slice_quality(project, SimpleNamespace(slice=SliceId(1), slice_id=1))
    ends = [key.partition("--")[2] for key in keys]
    assert ends == ["slice-1-slice-001-axis", "slice-1-slice-001-overlay-tilted"]
    assert set(shown.values()) == {"To check: weak overlap."}


def test_a_picture_that_cannot_be_read_is_left_out_of_a_sheet(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"cut")
    assert contact_sheet([("a", tmp_path / "a.jpg")]) is None
    Image.new("RGB", (9, 9)).save(tmp_path / "b.jpg")
    assert contact_sheet([("a", tmp_path / "a.jpg"), ("b", tmp_path / "b.jpg")]) is not None
