"""Uploads of a project to a real S3 server: what is recorded and announced, what waits, and what is told."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.io.nifti import write_nifti
from opticstream.model.chain import chain
from opticstream.model.errors import TargetUnavailable
from opticstream.model.events import MosaicStitched, MosaicVolumeStitched, SliceRegistered
from opticstream.model.ids import BatchId, MosaicId, SliceId
from opticstream.pipeline import uploads
from opticstream.pipeline.failure_patterns import failure_patterns
from opticstream.pipeline.milestones import milestones
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.stale import stale_plan, stale_results
from opticstream.pipeline.under_way import shown_under_way, uploads_under_way
from opticstream.pipeline.upload_plan import planned_uploads
from opticstream.pipeline.uploads import rate_now, upload_pending, upload_queue
from opticstream.pipeline.verify_uploads import OpenTargets, verified_uploads, withdraw_lost_uploads
from opticstream.publish.ledger import Ledger
from opticstream.publish.s3 import S3Target
from opticstream.publish.transfer import Published, Transfer
from opticstream.state.manifest import records_of_store, write_manifest
from opticstream.state.record import sha256_of_path
from opticstream.state.reset import apply_reset, plan_reset
from opticstream.state.verify import verify
from opticstream.testing.s3_server import SECRET, SECRET_KEY, Proxy, RcloneServer, error_answer

BATCH, MOSAIC, SLICE = BatchId(1, 1), MosaicId(1), SliceId(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with RcloneServer(tmp_path_factory.mktemp("s3"), "raw", "derived") as server:
        yield server


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


def targets(endpoint: str, prefix: str) -> str:
    return "".join(
        f"""
[[publish.targets]]
kind = "s3"
name = "{name}"
endpoint = "{endpoint}"
bucket = "{bucket}"
prefix = "{prefix}"
what = {what}
credentials = "lab"
"""
        for name, bucket, what in (("raw_s3", "raw", '["raw"]'), ("derived_s3", "derived", '["derivatives"]'))
    )


@pytest.fixture
def open_at(project_file: Path, request):
    """Open the project with its targets at an address; the prefix is that of the test."""
    text = project_file.read_text()

    def opened(endpoint: str | None, **values) -> Project:
        added = "" if endpoint is None else targets(endpoint, request.node.name.replace("[", "-").replace("]", ""))
        project_file.write_text(text + added)
        # The real server answers 500 now and then while it is busy.
        values.setdefault("upload_patience_s", 30.0)
        return Project.open(load_project(project_file), deployment=DeploymentSettings(**values))

    return opened


def with_results(project: Project) -> Project:
    """Give the project a batch in the archive, maps and a volume of a mosaic, and a slice."""
    facts, paths = project.facts, project.paths
    raw = paths.archived_tile(project.layout.tiles(MOSAIC)[0])
    raw.parent.mkdir(parents=True)
    raw.write_bytes(b"raw" * 1000)
    facts.record(BATCH, "archived", {"outputs": [facts.file_record(raw)]})
    stitched = paths.stitched_folder(MOSAIC)
    stitched.mkdir(parents=True)
    maps = stitched / "mosaic_001_aip.nii.gz"
    maps.write_bytes(b"map" * 1000)
    facts.record(MOSAIC, "stitched", {"outputs": [facts.file_record(maps)]})
    store = stitched / "mosaic_001_dBI.ome.zarr"
    for number in range(7):
        chunk = store / "0" / "c" / f"{number}"
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(bytes([number]) * 100)
    write_manifest(store)
    facts.record(MOSAIC, "volume_stitched", {"outputs": records_of_store(facts.file_record, store)})
    paths.registered_folder.mkdir()
    axis = paths.registered_folder / "slice_001_axis.nii.gz"
    axis.write_bytes(b"axis")
    facts.record(SLICE, "registered", {"outputs": [facts.file_record(axis)]})
    return project


class Bound:
    """Grants each upload fewer transfers than it wants, or none."""

    def __init__(self, *granted: int) -> None:
        self.granted = list(granted)
        self.held = 0

    @contextmanager
    def __call__(self, wanted, meanwhile):
        meanwhile()
        number = self.granted.pop(0)
        if not number:
            raise TargetUnavailable("no slot came free")
        self.held += 1
        assert self.held == 1
        yield min(number, wanted)
        self.held -= 1


def test_uploads_take_slots_and_wait_for_the_next_sweep_if_none_comes_free(open_at, server, monkeypatch):
    project = with_results(open_at(server.endpoint))
    threads = []
    send = Transfer.send
    monkeypatch.setattr(Transfer, "send", lambda self, file: threads.append(self.threads) or send(self, file))
    bound = Bound(3, 2, 0, 0, 0)
    list(upload_pending(project, secrets=secrets, slots=bound))
    assert threads == [3, 2]
    assert len(bound.granted) < 3
    assert bound.held == 0
    assert [(item, step.done) for item, step in upload_queue(project, project.facts.snapshot())]
    assert not [fact for _item, fact in project.facts.snapshot() if fact.endswith("failed")]
    assert any("no slot came free" in str(line) for line in failure_patterns(project))
    list(upload_pending(project, secrets=secrets, slots=Bound(5, 5, 5, 5, 5)))
    assert upload_queue(project, project.facts.snapshot()) == []


def test_large_files_give_others_a_turn(monkeypatch):
    monkeypatch.setattr(uploads, "_SHARE_BYTES", 10)
    files = [Published(Path(str(n)), str(n), size) for n, size in enumerate((1, 2, 3, 5, 20, 30))]
    assert [[file.size for file in share] for share in uploads._shares(files)] == [[1, 2, 3], [5], [20], [30]]
    assert uploads._shares([]) == [[]]


def secrets(name: str) -> str | None:
    return SECRET if name == "lab" else None


UPLOADS = {
    (BATCH, "uploaded"): "linc.oct.batch.uploaded",
    (MOSAIC, "uploaded"): "linc.oct.mosaic.uploaded",
    (MOSAIC, "volume_uploaded"): "linc.oct.mosaic.volume_uploaded",
    (SLICE, "uploaded"): "linc.oct.slice.uploaded",
}


def test_without_a_remote_target_results_are_published_and_nothing_is_uploaded(open_at):
    project = with_results(open_at(None))
    assert list(upload_pending(project, secrets=secrets)) == [], "no event tells of a copy on the same disk"
    known = project.facts.snapshot()
    assert all(known.has(item, fact.replace("uploaded", "published")) for item, fact in UPLOADS)
    assert not any(known.has(item, fact) for item, fact in UPLOADS)
    assert [(s.published, s.uploaded) for s in project_progress(project).slices] == [(True, False)]
    assert not [one for one in milestones(project, project_progress(project)) if "remote" in one.text]
    assert upload_queue(project, known) == []


def test_everything_is_uploaded_where_its_kind_belongs_and_recorded_and_announced_then(open_at, server, request):
    project = with_results(open_at(server.endpoint))
    events = list(upload_pending(project, secrets=secrets))
    names = [event.event_name() for event in events]
    assert sorted(names) == sorted(UPLOADS.values())
    assert names[-1] == "linc.oct.batch.uploaded", "raw tiles come last"
    archive, prefix = project.paths.archive_root, request.node.name
    for bucket, part in (("raw", "rawdata"), ("derived", "derivative")):
        remote = server.folder / bucket / prefix / part
        files = {p.relative_to(archive / part): p for p in (archive / part).rglob("*") if p.is_file()}
        assert {p.relative_to(remote) for p in remote.rglob("*") if p.is_file()} == files.keys()
        assert all((remote / name).read_bytes() == path.read_bytes() for name, path in files.items())
    for item, fact in UPLOADS:
        record = project.facts.read(item, fact)
        name = "raw_s3" if item == BATCH else "derived_s3"
        assert list(record.detail["targets"]) == [name]
        about = record.detail["targets"][name]
        assert about["place"].startswith(f"s3://{'raw' if item == BATCH else 'derived'}/{prefix} at http")
        for asset in about["assets"]:
            assert asset["sha256"] == sha256_of_path(archive / asset["key"])
            assert asset["mark"]
            assert asset["verified"]
    assert upload_queue(project, project.facts.snapshot()) == []
    assert list(upload_pending(project, secrets=secrets)) == []
    assert [(m.published, m.uploaded) for m in project_progress(project).mosaics] == [(True, True)]
    told = {one.text for one in milestones(project, project_progress(project)) if one.fact == "uploaded"}
    assert any(text.startswith("mosaic 1 (slice 1, normal): maps are held") for text in told)
    assert any(text.startswith("slice 1: results are held") for text in told)


def test_a_reset_removes_the_link_to_a_published_result_and_never_what_it_leads_to(open_at):
    project = with_results(open_at(None))
    list(upload_pending(project, secrets=secrets))
    maps, store = project.paths.mosaic_product(MOSAIC, "aip"), project.paths.mosaic_volume(MOSAIC, "dBI")
    assert maps.is_symlink()
    assert store.is_symlink()
    goals = maps.resolve(), store.resolve()
    assert verify(project.facts, layout=None) == []
    plan = plan_reset(project.facts, MOSAIC, project.layout, downstream=True)
    apply_reset(project.facts, plan, project.layout, reason="test")
    assert not os.path.lexists(maps)
    assert not os.path.lexists(store)
    assert [path.exists() for path in goals] == [True, True]
    assert goals[0].read_bytes() == b"map" * 1000


def test_a_project_of_an_earlier_version_keeps_its_hard_links(open_at):
    project = with_results(open_at(None))
    maps = project.paths.mosaic_product(MOSAIC, "aip")
    copy = project.paths.published(MOSAIC, maps)
    copy.parent.mkdir(parents=True)
    os.link(maps, copy)
    project.facts.record(MOSAIC, "published", {"outputs": [project.facts.file_record(copy, checksum=False)]})
    list(upload_pending(project, secrets=secrets))
    assert not maps.is_symlink()
    assert maps.samefile(copy)
    assert stale_results(project) == []
    assert verify(project.facts, layout=None) == []


def test_tables_of_a_bids_data_set_are_uploaded_as_they_are_now(open_at, server, request, project_file):
    project = open_at(server.endpoint)
    project_file.write_text(project_file.read_text() + '[publish]\nlayout = "bids"\n')
    project = Project.open(load_project(project_file), deployment=project.deployment)
    samples = server.folder / "derived" / request.node.name / "derivatives/opticstream/samples.tsv"
    for number in (1, 2):
        axis = write_nifti(
            project.paths.registered_folder / f"slice_{number:03d}_axis.nii.gz",
            np.ones((2, 2, 1)),
            voxel_size_mm=(0.01, 0.01, 0.5),
        )
        project.facts.record(SliceId(number), "registered", {"outputs": [project.facts.file_record(axis)]})
        events = [event.event_name() for event in upload_pending(project, secrets=secrets)]
        assert events == ["linc.oct.slice.uploaded"]
        rows = samples.read_text().splitlines()[1:]
        assert [row.split("\t")[0] for row in rows] == [f"sample-slice{n:03d}" for n in range(1, number + 1)]
    found = list(verified_uploads(project, lambda _item: True, {"derived_s3"}, OpenTargets(project, secrets)))
    assert {one.problem for one in found} == {None}, "also of the first slice, whose table had fewer rows"
    samples.write_text("lost")
    (wrong,) = [one for one in withdrawn(project) if one.problem]
    assert wrong.key == "derivatives/opticstream/samples.tsv"
    assert wrong.is_withdrawn
    (planned,) = planned_uploads(project, lambda _item: True, {"derived_s3", "raw_s3"})
    assert (planned.key, planned.targets) == (wrong.key, ("derived_s3",))
    assert list(upload_pending(project, secrets=secrets)) == []
    assert samples.read_text() != "lost"
    assert [one for one in withdrawn(project) if one.problem] == []


def withdrawn(project: Project, secrets=secrets, **values):
    names = {target.target_name for target in project.config.publish.targets}
    return list(withdraw_lost_uploads(project, lambda _item: True, names, OpenTargets(project, secrets), **values))


def test_what_a_target_does_not_hold_any_more_is_no_longer_uploaded_and_goes_there_again(open_at, server, request):
    project = with_results(open_at(server.endpoint))
    list(upload_pending(project, secrets=secrets))
    before = project.facts.snapshot()
    assert {one.problem for one in withdrawn(project)} == {None}
    assert set(project.facts.snapshot()) == set(before), "what is there stays"
    place = f"{request.node.name}/derivative/sub-01"
    client = server.client()
    client.delete_object(Bucket="derived", Key=f"{place}/mosaic_001_aip.nii.gz")
    client.put_object(Bucket="derived", Key=f"{place}/mosaic_001_dBI.ome.zarr/0/c/3", Body=b"!" * 100)
    client.put_object(Bucket="derived", Key=f"{place}/slice_001_axis.nii.gz", Body=b"shorter"[:3])
    found = withdrawn(project)
    lost = {(one.item, one.step.done): one.problem for one in found if one.is_withdrawn}
    assert lost.keys() == {(MOSAIC, "uploaded"), (MOSAIC, "volume_uploaded"), (SLICE, "uploaded")}
    assert lost[MOSAIC, "uploaded"] == "is not there"
    assert lost[MOSAIC, "volume_uploaded"].startswith("holds other bytes")
    assert lost[SLICE, "uploaded"] == "holds 3 bytes, expected 4"
    assert [(item, fact) for item, fact in lost if project.facts.has(item, fact)] == []
    assert project.facts.has(BATCH, "uploaded")
    whys = [entry.why for entry in project.facts.journal.entries() if entry.event == "withdrawn"]
    assert any(
        "derived_s3 does not hold what was uploaded: derivative/sub-01/mosaic_001_aip.nii.gz" in why for why in whys
    )
    assert any("does not hold what was uploaded" in str(line) for line in failure_patterns(project))
    planned = {one.item for one in planned_uploads(project, lambda _item: True, {"derived_s3"}) if one.targets}
    assert planned == {MOSAIC, SLICE}
    assert pending_announcements(project), "the sweep has it done"
    events = {event.event_name() for event in upload_pending(project, secrets=secrets)}
    assert events == {"linc.oct.mosaic.uploaded", "linc.oct.mosaic.volume_uploaded", "linc.oct.slice.uploaded"}
    assert {one.problem for one in withdrawn(project)} == {None}


FAULTS = {
    "that is away": error_answer(503, "SlowDown"),
    "that refuses": error_answer(403, "AccessDenied"),
}


@pytest.mark.parametrize("answer", FAULTS.values(), ids=FAULTS)
def test_a_target_withdraws_nothing(open_at, server, proxy, answer):
    project = with_results(open_at(proxy.endpoint))
    list(upload_pending(project, secrets=secrets))
    project = Project.open(project.config, deployment=DeploymentSettings(upload_patience_s=0.2))
    before = set(project.facts.snapshot())
    proxy.fault = lambda request: answer if "/derived" in request.path else None
    found = withdrawn(project)
    assert {one.item for one in found if one.problem is None} == {BATCH}, "other targets are compared all the same"
    assert {one.item for one in found if one.problem and "could not be verified" in one.problem} == {MOSAIC, SLICE}
    assert not [one for one in found if one.is_lost or one.is_withdrawn]
    assert set(project.facts.snapshot()) == before


def test_a_file_that_its_target_has_copied_anew_is_read_back_before_it_counts_as_lost(open_at, server, monkeypatch):
    """As after a move to another bucket with other parts, or another encryption: the digest is another one."""
    project = with_results(open_at(server.endpoint))
    list(upload_pending(project, secrets=secrets))
    look = S3Target.look
    monkeypatch.setattr(S3Target, "look", lambda self, key: (h := look(self, key)) and replace(h, mark=f"{h.mark}-2"))
    files = [one for one in withdrawn(project) if not one.key.endswith(".zarr")]
    assert {one.item for one in files} >= {BATCH, MOSAIC, SLICE}
    assert {one.problem for one in files} == {None}


def test_an_upload_that_was_done_again_meanwhile_is_not_withdrawn(open_at, server, request):
    project = with_results(open_at(server.endpoint))
    list(upload_pending(project, secrets=secrets))
    key = f"{request.node.name}/derivative/sub-01/mosaic_001_aip.nii.gz"
    server.client().delete_object(Bucket="derived", Key=key)
    opened = OpenTargets(project, secrets)
    found = withdraw_lost_uploads(project, lambda item: item == MOSAIC, {"derived_s3"}, opened)
    difference = opened.difference

    def done_again_meanwhile(name, asset, *, contents):
        told = difference(name, asset, contents=contents)
        if told[1]:
            project.facts.withdraw(MOSAIC, "uploaded", reason="by another host")
            list(upload_pending(project, secrets=secrets))
        return told

    opened.difference = done_again_meanwhile
    assert not any(one.is_withdrawn for one in found)
    assert project.facts.has(MOSAIC, "uploaded")


def test_a_plan_names_everything_that_an_upload_would_send(open_at, server, request, project_file):
    """Also what is not yet published, tables, and raw tiles that are not yet archived."""
    project = with_results(open_at(server.endpoint))
    planned = list(planned_uploads(project, lambda _item: True, {"derived_s3", "raw_s3"}))
    assert {one.before for one in planned} == {"publish"}
    assert {name for one in planned for name in one.targets} == {"derived_s3", "raw_s3"}
    assert list(server.folder.glob(f"*/{request.node.name}")) == [], "nothing was sent"
    sent = {line.key for line in planned}
    list(upload_pending(project, secrets=secrets))
    names = {one.key for name in ("derived_s3", "raw_s3") for one in Ledger(project.paths.base, name).assets().values()}
    assert sent == names
    assert list(planned_uploads(project, lambda _item: True, {"derived_s3", "raw_s3"})) == []


def test_a_target_that_does_not_answer_holds_up_nothing_and_parks_nothing(open_at, server, proxy):
    proxy.fault = lambda request: error_answer(503, "SlowDown") if "/derived" in request.path else None
    project = with_results(open_at(proxy.endpoint, upload_patience_s=0.2))
    events = list(upload_pending(project, secrets=secrets))
    assert [event.event_name() for event in events] == ["linc.oct.batch.uploaded"], "the other target works"
    progress = project_progress(project)
    assert progress.failures == ()
    assert [(m.published, m.uploaded) for m in progress.mosaics] == [(True, False)]
    waits = {type(event) for event in pending_announcements(project)}
    assert waits & {MosaicStitched, MosaicVolumeStitched, SliceRegistered}, "the sweep has it tried again"
    (pattern,) = failure_patterns(project)
    assert pattern.kind == "target unavailable"
    assert "derived_s3" in pattern.message
    proxy.fault = lambda _request: None
    project = replace(project, deployment=DeploymentSettings(upload_patience_s=30.0))
    assert len(list(upload_pending(project, secrets=secrets))) == 3
    assert upload_queue(project, project.facts.snapshot()) == []


def test_a_refusal_parks_the_upload_and_is_announced_and_retried(open_at, proxy):
    proxy.fault = lambda request: error_answer(403, "AccessDenied") if request.method == "PUT" else None
    project = with_results(open_at(proxy.endpoint))
    names = {event.event_name() for event in upload_pending(project, secrets=secrets)}
    assert names == {"linc.oct.batch.failed", "linc.oct.mosaic.failed", "linc.oct.slice.failed"}
    failures = project_progress(project).failures
    assert {(f.item, f.fact) for f in failures} == {(i, f.replace("uploaded", "upload_failed")) for i, f in UPLOADS}
    assert all("403 AccessDenied" in f.reason for f in failures)
    assert all(project.facts.has(i, f.replace("uploaded", "published")) for i, f in UPLOADS)


def test_a_missing_secret_is_told_with_what_to_do(open_at, server):
    project = with_results(open_at(server.endpoint))
    list(upload_pending(project, secrets=lambda _name: None))
    (reason,) = {failure.reason.partition("target ")[2][:12] and failure.reason for failure in
                 project_progress(project).failures if failure.item == SLICE}  # fmt: skip
    assert "OPTICSTREAM_SECRET_LAB" in reason
    assert "opticstream secrets set lab" in reason


def test_no_file_of_the_project_has_the_secret(open_at, proxy, monkeypatch, caplog):
    caplog.set_level("DEBUG", logger="opticstream")
    project = with_results(open_at(proxy.endpoint))
    list(upload_pending(project, secrets=lambda _name: f"WRONG:{SECRET_KEY}"))  # every upload fails, and says why
    monkeypatch.setenv("OPTICSTREAM_SECRET_LAB", SECRET)
    for failure in project_progress(project).failures:
        project.facts.withdraw(failure.item, failure.fact, reason="test")
    assert len(list(upload_pending(project))) == 4
    for path in project.paths.base.parent.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert SECRET_KEY.encode() not in data, path
            assert b"TESTACCESSKEY" not in data, path
    assert SECRET_KEY not in caplog.text


def test_a_result_made_again_is_uploaded_again(open_at, server, request):
    project = with_results(open_at(server.endpoint))
    list(upload_pending(project, secrets=secrets))
    maps = project.paths.mosaic_product(MOSAIC, "aip")
    new = maps.with_name("new")
    new.write_bytes(b"better")
    os.replace(new, maps)
    for fact in ("uploaded", "published", "stitched"):
        project.facts.withdraw(MOSAIC, fact, reason="made again")
    project.facts.record(MOSAIC, "stitched", {"outputs": [project.facts.file_record(maps)]})
    assert [e.event_name() for e in upload_pending(project, secrets=secrets)] == ["linc.oct.mosaic.uploaded"]
    remote = server.folder / "derived" / request.node.name / "derivative/sub-01/mosaic_001_aip.nii.gz"
    assert remote.read_bytes() == b"better"


def test_a_target_that_is_added_or_moved_later_receives_what_was_uploaded_before(open_at, server, project_file):
    project = with_results(open_at(server.endpoint))
    list(upload_pending(project, secrets=secrets))
    assert stale_results(project) == []
    text = project_file.read_text().replace('bucket = "derived"', 'bucket = "raw"')
    project_file.write_text(text)
    moved = Project.open(load_project(project_file), deployment=project.deployment)
    stale = stale_results(moved)
    assert {(one.item, one.fact) for one in stale} == set(UPLOADS) - {(BATCH, "uploaded")}
    assert all("publish.targets.derived_s3.bucket: 'derived' -> 'raw'" in one.why for one in stale)
    plan = stale_plan(moved, stale)
    assert {fact for _, fact in plan.withdraw} == {"uploaded", "volume_uploaded"}, "nothing is computed again"


def test_an_upload_that_was_killed_goes_on_in_another_process(open_at, server, proxy, tmp_path):
    """The process is killed in the middle of a store; the next one takes over and sends only what is missing."""
    sent = []

    def fault(request):
        if request.method == "PUT" and "ome.zarr/" in request.path:
            sent.append(request.path)
            if len(sent) == 4:
                process.kill()
        return

    proxy.fault = fault
    project = with_results(open_at(proxy.endpoint, upload_transfers=1))
    script = f"""
from opticstream.config import DeploymentSettings, load_project
from opticstream.pipeline.project import Project
from opticstream.pipeline.uploads import upload_pending
list(upload_pending(Project.open(load_project({str(project.paths.base.parent / "p.toml")!r}),
    deployment=DeploymentSettings(upload_transfers=1))))
"""
    environment = os.environ | {"OPTICSTREAM_SECRET_LAB": SECRET}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    assert process.wait(timeout=300) != 0
    assert not project.facts.has(MOSAIC, "volume_uploaded")
    assert uploads_under_way(project) == [], "its process is dead"
    before = set(sent[:3])
    sent.clear()
    list(upload_pending(project, secrets=secrets))
    assert project.facts.has(MOSAIC, "volume_uploaded")
    assert not before & set(sent), "what had arrived is not sent again"


def test_an_upload_under_way_shows_how_far_it_is(open_at):
    project = with_results(open_at(None))
    step = chain().named("upload", "mosaic")
    with project.facts.claim(MOSAIC, step.claim), shown_under_way(project, MOSAIC, step, "s3", 2_000_000):
        (one,) = uploads_under_way(project)
        assert (one.item, one.target, one.total_bytes, one.percent) == ("mosaic-001", "s3", 2_000_000, 0.0)
        assert "0 of 2 MB (0 %) at s3" in str(one)
    assert uploads_under_way(project) == []


def test_results_are_published_during_a_long_upload(open_at, server, monkeypatch):
    from opticstream.pipeline import uploads

    monkeypatch.setattr(uploads, "_LOOK_AGAIN_S", 0.0)
    project = with_results(open_at(server.endpoint))
    late = MosaicId(2)
    original = uploads.Transfer.send
    seen = []

    def send(self, published):
        if not seen:
            maps = project.paths.mosaic_product(late, "aip")
            maps.parent.mkdir(parents=True)
            maps.write_bytes(b"late")
            project.facts.record(late, "stitched", {"outputs": [project.facts.file_record(maps)]})
        asset = original(self, published)
        seen.append(project.facts.has(late, "published"))
        return asset

    monkeypatch.setattr(uploads.Transfer, "send", send)
    names = [event.event_name() for event in upload_pending(project, secrets=secrets)]
    assert seen[0], "it was published while the first upload was under way"
    assert names.count("linc.oct.mosaic.uploaded") == 2


@pytest.mark.parametrize(("hour", "rate"), [(12, 5e6), (23, 25e6), (5, 25e6)])
def test_the_bandwidth_of_all_runs_together_is_limited_by_day_and_by_night(hour, rate):
    settings = DeploymentSettings(upload_limit=2, upload_rate="10MB", upload_rate_night="50MB")
    assert rate_now(settings, now=datetime(2026, 1, 1, hour)) == rate
    assert rate_now(DeploymentSettings()) is None
