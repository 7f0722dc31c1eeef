"""Figures for Prometheus are right after a restart, and what reads them asks for figures that exist."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.services import program

from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.server_figures import figures_of_runs
from opticstream.model.ids import BatchId, MosaicId, TileId
from opticstream.pipeline.acquisition import note_acquisition
from opticstream.pipeline.metrics import ProjectCollector, serve_metrics
from opticstream.pipeline.project import Project

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "opticstream.json"
ALERTS = DEPLOY / "container" / "alerts.yml"


@pytest.fixture
def project(project_file) -> Project:
    project = Project.open(load_project(project_file), deployment=DeploymentSettings())
    project.facts.record(BatchId(1, 1), "ready")
    for number in (1, 2):
        project.facts.record(TileId(1, number), "processed")
        project.facts.journal.computed(TileId(1, number), "processed", 3.0)
    project.facts.record(TileId(1, 3), "failed", {"detail": {"reason": "cut", "kind": "damaged input"}})
    project.facts.journal.failed(TileId(1, 3), "failed", why="cut", kind="damaged input", stage="process batch")
    project.facts.record(MosaicId(2), "stitched")
    project.facts.journal.computed(MosaicId(2), "stitched", 700.0)
    note_acquisition(project, Path("/rig"), quiet_s=100, open_columns=["mosaic-001/batch-002"])
    return project


def figures(project: Project) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the figures of a new process, by name and values of their labels."""
    found = {}
    for family in ProjectCollector(lambda: [project]).collect():
        for sample in family.samples:
            found[sample.name.removeprefix("opticstream_"), tuple(sample.labels.values())] = sample.value
    return found


def test_figures_tell_what_facts_and_journal_tell(project):
    now = figures(project)
    assert now["tiles", ("p", "processed")] == 2
    assert now["tiles", ("p", "failed")] == 1
    assert now["parked", ("p",)] == 1
    assert now["mosaics", ("p", "stitched")] == 1
    assert now["queue", ("p", "process batch (batch)")] == 1
    assert now["lag_seconds", ("p",)] >= 0
    assert 100 <= next(value for (name, _), value in now.items() if name == "acquisition_quiet_seconds") < 1000
    assert now["failures_total", ("p", "damaged input", "process batch")] == 1
    assert now["tiles_done_total", ("p",)] == 2
    scan = project.config.scan
    assert now["a_lines_total", ("p",)] == 2 * 350 * scan.b_lines
    assert now["stage_seconds_count", ("p", "tile")] == 2
    assert now["stage_seconds_sum", ("p", "tile")] == 6
    assert now["stage_seconds_bucket", ("p", "tile", "2.0")] == 0
    assert now["stage_seconds_bucket", ("p", "tile", "5.0")] == 2
    assert now["stage_seconds_bucket", ("p", "stitch mosaic (mosaic)", "+Inf")] == 1
    assert any(name == "disk_free_bytes" and value > 0 for (name, _), value in now.items())
    assert 0 < now["host_memory_available_bytes", ()] < now["host_memory_bytes", ()]
    assert figures(project)["tiles_done_total", ("p",)] == 2, "another process counts the same"


def test_a_collector_reads_only_what_is_new_and_waits_for_whole_lines(project, monkeypatch):
    collector = ProjectCollector(lambda: [project])

    def done() -> float:
        collector._next_look = 0.0
        samples = (sample for family in collector.collect() for sample in family.samples)
        return next(sample.value for sample in samples if sample.name == "opticstream_tiles_done_total")

    assert done() == 2
    (path,) = project.facts.journal.folder.glob("*.jsonl")
    project.facts.journal.computed(TileId(1, 4), "processed", 1.0)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    assert done() == 2
    path.write_bytes(content)
    assert done() == 3
    assert done() == 3


def test_a_project_that_cannot_be_read_and_a_server_that_is_away_hide_nothing_else():
    def away():
        raise ConnectionError("no server")

    names = {family.name for family in ProjectCollector(away).collect()}
    assert "opticstream_host_cpus" in names


def test_figures_are_served_in_the_format_of_prometheus(project):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    end = serve_metrics(port, lambda: [project])
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            shown = answer.read().decode()
    finally:
        end()
    families = {family.name for family in text_string_to_metric_families(shown)}
    assert {"opticstream_tiles", "opticstream_a_lines", "opticstream_stage_seconds"} <= families


def known_names() -> set[str]:
    """Return the names of all series that we show, with those that Prometheus makes of a histogram."""
    names = set()
    for family in ProjectCollector(
        list, more=lambda: [figures_of_runs("http://127.0.0.1:9/api", headers={})]
    ).collect():
        names |= {family.name, f"{family.name}_total"}
        if family.type == "histogram":
            names |= {f"{family.name}_{end}" for end in ("bucket", "sum", "count")}
    return names


def asked_for() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert len(queries) >= 10
    assert len(rules) >= 5
    return [*queries, *rules]


@pytest.mark.parametrize("query", asked_for())
def test_every_panel_and_every_alert_asks_for_figures_that_exist(query):
    names = re.findall(r"opticstream_\w+", query)
    assert names
    assert set(names) <= known_names()


def test_prometheus_understands_the_alerts_and_every_query(tmp_path):
    promtool = program("promtool")
    rules = tmp_path / "rules.yml"
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    panels = [{"record": f"panel:{n}", "expr": one.replace("$project", "p")} for n, one in enumerate(asked_for())]
    rules.write_text(yaml.safe_dump({"groups": [*groups, {"name": "panels", "rules": panels}]}))
    checked = subprocess.run([promtool, "check", "rules", str(rules)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
