"""Verifying, resetting and rebuilding: what people do after something went wrong."""

import shutil

import pytest

from opticstream.model.errors import StateError
from opticstream.model.ids import BatchId, MosaicId, SampleId, SliceId, TileId
from opticstream.model.layout import AcquisitionLayout, IlluminationLayout
from opticstream.state.facts import Facts, FactsSnapshot
from opticstream.state.memory_store import memory_store
from opticstream.state.mirror import oct_state_from_facts, rebuild_oct_state, update_oct_state
from opticstream.state.oct_state import OCTProjectState, OCTStateService
from opticstream.state.reset import apply_reset, plan_reset
from opticstream.state.verify import verify
from opticstream.system.host import HostIdentity

LAYOUT = AcquisitionLayout((IlluminationLayout("normal", 2, 2), IlluminationLayout("tilted", 2, 2)))


def output(facts, name, content=None):
    path = facts.project_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((content or name).encode())
    return facts.file_record(path)


def run_through(facts, *, slices=2):
    """Leave what an undisturbed run leaves: two slices, their files, and a template that the second slice reuses."""
    for s in range(1, slices + 1):
        slice_id = SliceId(s)
        for mosaic in LAYOUT.mosaics(slice_id):
            for batch in LAYOUT.batches(mosaic):
                facts.record(batch, "ready")
                with facts.claim(batch):
                    maps, copies = [], []
                    for tile in LAYOUT.tiles(batch):
                        maps.append(output(facts, f"{mosaic.folder}/processed/tile-{tile.tile_id}.nii"))
                        copy = facts.roots["archive"] / f"raw-{mosaic.mosaic_id}-{tile.tile_id}.nii.gz"
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        copy.write_bytes(b"raw")
                        copies.append(facts.file_record(copy))
                        facts.record(tile, "processed", {"outputs": [maps[-1], copies[-1]]})
                    facts.record(batch, "archived", {"outputs": copies})
                    facts.record(batch, "processed", {"outputs": [*maps, *copies]})
            facts.record(mosaic, "ready")
            with facts.claim(mosaic):
                template = f"tilemap-{LAYOUT.illumination_of(mosaic).name}.j2"
                outputs = [output(facts, f"{mosaic.folder}/stitched/aip.nii.gz")]
                if s == 1:
                    outputs.append(output(facts, template))
                facts.record(mosaic, "stitched", {"outputs": outputs, "detail": {"template": template}})
            folder = facts.project_dir / f"{mosaic.folder}/stitched/dBI.ome.zarr"
            (folder / "0").mkdir(parents=True)
            (folder / "0" / "chunk").write_bytes(b"volume")
            with facts.claim(mosaic, "volume_started"):
                facts.record(mosaic, "volume_stitched", {"outputs": [facts.file_record(folder)]})
        facts.record(slice_id, "ready")
        with facts.claim(slice_id):
            facts.record(slice_id, "registered", {"outputs": [output(facts, f"registered/slice-{s}.nii.gz")]})
    with facts.claim(SampleId()):
        facts.record(SampleId(), "updated", {"outputs": [output(facts, "sample/stack.nii.gz")]})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run_through(Facts(folder / "project", roots={"archive": folder / "archive"}))
    return folder


@pytest.fixture
def facts(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    return Facts(tmp_path / "project", roots={"archive": tmp_path / "archive"})


def without(snapshot, dropped):
    return {(item, fact) for item, fact in snapshot if (item, fact) not in dropped}


def test_nothing_is_wrong_with_an_undisturbed_run(facts):
    seen = []
    assert verify(facts, layout=LAYOUT, progress=lambda done, total: seen.append((done, total))) == []
    assert seen[-1][0] == seen[-1][1] == len(seen)


@pytest.mark.parametrize(
    ("damage", "problem", "message"),
    [
        (lambda path: path.unlink(), "missing", "does not exist"),
        (lambda path: path.write_bytes(b"short"), "size", "holds 5 bytes, expected 30"),
        (lambda path: path.write_bytes(path.read_bytes()[::-1]), "checksum", "has the SHA-256"),
    ],
)
def test_a_damaged_output_is_found_in_every_record_that_vouches_for_it(facts, damage, problem, message):
    damage(facts.project_dir / "mosaic-03/processed/tile-2.nii")
    findings = verify(facts)
    assert [(f.item, f.fact, f.problem) for f in findings] == [
        (BatchId(3, 1), "processed", problem),
        (TileId(3, 2), "processed", problem),
    ]
    assert message in str(findings[0])


def test_a_damaged_chunk_inside_a_volume_is_found(facts):
    (facts.project_dir / "mosaic-02/stitched/dBI.ome.zarr/0/chunk").write_bytes(b"vOlume")
    (finding,) = verify(facts)
    assert (finding.item, finding.problem) == (MosaicId(2), "checksum")
    assert verify(facts, checksums=False) == []


def test_facts_that_deny_each_other_are_found(facts):
    facts.record(MosaicId(1), "failed")
    facts.withdraw(BatchId(3, 2), "processed", reason="test")
    facts.path(SliceId(1), "ready").write_text("{")
    facts.record(BatchId(1, 9), "processed")
    findings = {(f.item, f.fact): f.problem for f in verify(facts, layout=LAYOUT)}
    assert findings == {
        (MosaicId(1), "stitched"): "contradiction",
        (MosaicId(3), "ready"): "contradiction",
        (MosaicId(3), "stitched"): "contradiction",
        (SliceId(1), "ready"): "unreadable",
        (BatchId(1, 9), "processed"): "outside the layout",
    }


def test_resetting_a_slice_undoes_the_slice_alone(facts):
    before = set(facts.snapshot())
    plan = plan_reset(facts, SliceId(2), LAYOUT)
    assert set(plan.withdraw) == {(SliceId(2), "registered"), (SliceId(2), "started")}
    assert plan.remove == ("registered/slice-2.nii.gz",)
    assert set(plan.left_behind) == {(SampleId(), "updated"), (SampleId(), "started")}
    assert set(facts.snapshot()) == before, "planning changes nothing"
    assert apply_reset(facts, plan, LAYOUT, reason="better mask") == 2
    assert set(facts.snapshot()) == before - set(plan.withdraw)
    assert not (facts.project_dir / "registered/slice-2.nii.gz").exists()
    assert facts.journal.history(SliceId(2))[-1].event == "released"
    assert facts.claim(SliceId(2)) is not None


def test_resetting_a_batch_downstream_undoes_all_that_rests_on_it_and_nothing_else(facts):
    before = set(facts.snapshot())
    plan = plan_reset(facts, BatchId(4, 1), LAYOUT, downstream=True)
    touched = {item for item, _ in plan.withdraw}
    assert touched == {TileId(4, 1), TileId(4, 2), BatchId(4, 1), MosaicId(4), SliceId(2), SampleId()}
    assert (BatchId(4, 1), "ready") not in plan.withdraw  # it tells where the raw tiles are
    assert (MosaicId(4), "ready") in plan.withdraw  # it is announced again when the batch is done
    assert plan.left_behind == ()
    assert set(plan.remove) == {
        "mosaic-04/processed/tile-1.nii",
        "mosaic-04/processed/tile-2.nii",
        "mosaic-04/stitched/aip.nii.gz",
        "mosaic-04/stitched/dBI.ome.zarr",
        "registered/slice-2.nii.gz",
    }
    assert set(plan.keep) == {"archive:raw-4-1.nii.gz", "archive:raw-4-2.nii.gz", "sample/stack.nii.gz"}
    order = [item.hierarchy for item in plan.items]
    assert order == sorted(order, key=["sample", "slice", "mosaic", "batch", "tile"].index)
    apply_reset(facts, plan, LAYOUT, reason="test")
    assert set(facts.snapshot()) == before - set(plan.withdraw)
    assert verify(facts) == []
    assert (facts.roots["archive"] / "raw-4-1.nii.gz").exists()
    assert not list(facts.project_dir.rglob("*.partial-*"))


def test_resetting_the_mosaic_that_made_the_template_takes_those_along_that_reuse_it(facts):
    plan = plan_reset(facts, MosaicId(1), LAYOUT, downstream=True)
    assert "tilemap-normal.j2" in plan.remove
    assert (MosaicId(3), "stitched") in plan.withdraw
    assert (MosaicId(3), "ready") not in plan.withdraw  # its batches are still done; it is announced again as it is
    assert (SliceId(2), "registered") in plan.withdraw
    assert not {item for item, _ in plan.withdraw} & {MosaicId(2), MosaicId(4), BatchId(1, 1)}


def test_resetting_the_sample_takes_the_parts_of_all_slices_back_and_their_results_not(facts):
    for number in (1, 2):
        facts.record(SliceId(number), "stacked")
    plan = plan_reset(facts, SampleId(), LAYOUT)
    assert set(plan.withdraw) == {
        (SampleId(), "updated"),
        (SampleId(), "started"),
        (SliceId(1), "stacked"),
        (SliceId(2), "stacked"),
    }
    assert plan.remove == ("sample/stack.nii.gz",)
    assert "sample/stack.nii.gz" not in plan_reset(facts, SliceId(1), LAYOUT, downstream=True).remove


def test_a_tile_takes_its_batchs_result_along(facts):
    plan = plan_reset(facts, TileId(1, 3), LAYOUT)
    assert {(TileId(1, 3), "processed"), (BatchId(1, 2), "processed")} <= set(plan.withdraw)
    assert "mosaic-01/processed/tile-3.nii" in plan.remove
    assert "mosaic-01/processed/tile-4.nii" in plan.keep  # its own record vouches for it


def test_a_reset_is_refused_while_somebody_is_at_work(facts):
    before = set(facts.snapshot())
    plan = plan_reset(facts, BatchId(4, 1), LAYOUT, downstream=True)
    elsewhere = Facts(facts.project_dir, host=HostIdentity("opal", 7))
    elsewhere.claim(MosaicId(4), "volume_started")
    with pytest.raises(StateError, match=r"mosaic 4 cannot be reset now: volume_started of mosaic 4, held by opal"):
        apply_reset(facts, plan, LAYOUT, reason="test")
    assert set(facts.snapshot()) == before
    assert facts.claim(SliceId(2)) is not None, "what was claimed for the reset is free again"


def test_a_reset_that_was_planned_too_long_ago_is_refused(facts):
    facts.withdraw(MosaicId(4), "volume_stitched", reason="test")
    plan = plan_reset(facts, MosaicId(4), LAYOUT)
    facts.record(MosaicId(4), "volume_stitched")
    with pytest.raises(StateError, match="since this reset was planned"):
        apply_reset(facts, plan, LAYOUT, reason="test")
    assert facts.has(MosaicId(4), "stitched")


def test_a_reset_that_crashes_half_way_leaves_no_fact_without_its_ground(facts, monkeypatch):
    plan = plan_reset(facts, BatchId(4, 1), LAYOUT, downstream=True)
    withdraw, calls = Facts.withdraw, []

    def dying(self, item, fact, *, reason):
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append((item, fact))
        return withdraw(self, item, fact, reason=reason)

    monkeypatch.setattr(Facts, "withdraw", dying)
    with pytest.raises(KeyboardInterrupt):
        apply_reset(facts, plan, LAYOUT, reason="test")
    monkeypatch.undo()
    assert verify(facts) == []
    apply_reset(facts, plan_reset(facts, BatchId(4, 1), LAYOUT, downstream=True), LAYOUT, reason="again")
    assert verify(facts) == []
    assert not facts.facts_of(MosaicId(4))


def test_a_plan_says_what_it_will_do(facts):
    lines = list(plan_reset(facts, SliceId(2), LAYOUT).lines())
    assert lines == [
        "slice 2: withdraw registered, started",
        "remove registered/slice-2.nii.gz",
        "sample stays started, although it depends on what is undone; --downstream undoes it too",
        "sample stays updated, although it depends on what is undone; --downstream undoes it too",
    ]


def test_what_was_reset_and_done_again_is_as_before(facts):
    before = set(facts.snapshot())
    apply_reset(facts, plan_reset(facts, MosaicId(2), LAYOUT, downstream=True), LAYOUT, reason="test")
    run_again = without(before, set(facts.snapshot()))
    for item, fact in run_again:
        if fact.endswith("started"):
            facts.claim(item, fact).release()
        else:
            facts.record(item, fact)
    assert set(facts.snapshot()) == before


def test_the_shared_state_can_be_rebuilt_from_the_flags(facts):
    facts.record(TileId(1, 2), "failed", {"detail": {"reason": "truncated"}})
    facts.withdraw(TileId(1, 2), "processed", reason="test")
    facts.withdraw(SliceId(2), "registered", reason="test")
    facts.record(SliceId(2), "skipped", {"detail": {"reason": "one good illumination"}})
    facts.claim(MosaicId(4)).release("failed: once more")
    service = OCTStateService(memory_store(OCTProjectState))
    with service.open_slice("p", slice_id=99):
        pass  # something that no flag knows
    rebuild_oct_state(service, "p", facts, LAYOUT)
    view = service.read_project("p")
    assert list(view.slices) == [1, 2]
    seen = {(SampleId(), fact) for fact in view.facts() if view.has(fact)}
    for s in view.slices.values():
        seen |= {(SliceId(s.slice_id), fact) for fact in s.facts() if s.has(fact)}
        for m in s.mosaics.values():
            seen |= {(MosaicId(m.mosaic_id), fact) for fact in m.facts() if m.has(fact)}
            for b in m.batches.values():
                seen |= {(BatchId(m.mosaic_id, b.batch_id), fact) for fact in b.facts() if b.has(fact)}
    assert seen == {(item, fact) for item, fact in facts.snapshot() if not isinstance(item, TileId)}
    assert view.slices[1].mosaics[1].batches[1].failed_tiles == (2,)
    assert view.slices[2].failure == "one good illumination"
    assert view.slices[2].mosaics[4].attempts == 2
    processed = facts.read(BatchId(1, 1), "processed")
    assert view.slices[1].mosaics[1].batches[1].processed_at == processed.time.replace(microsecond=0)


def test_updating_some_items_keeps_the_others_and_follows_withdrawals(facts):
    service = OCTStateService(memory_store(OCTProjectState))
    rebuild_oct_state(service, "p", facts, LAYOUT)
    facts.withdraw(MosaicId(1), "stitched", reason="test")
    facts.record(MosaicId(1), "failed", {"detail": {"reason": "no overlap"}})
    facts.withdraw(SliceId(1), "registered", reason="test")
    update_oct_state(service, "p", facts, LAYOUT, [MosaicId(1)])
    view = service.read_project("p")
    mosaic = view.slices[1].mosaics[1]
    assert (mosaic.finished, mosaic.has("failed"), mosaic.failure) == (False, True, "no overlap")
    assert view.slices[1].finished, "only what was asked for was looked at"
    assert oct_state_from_facts("p", facts, LAYOUT) != view
    update_oct_state(service, "p", facts, LAYOUT, [SliceId(1)])
    assert service.read_project("p") == oct_state_from_facts("p", facts, LAYOUT).to_view()


def test_flags_made_by_hand_or_outside_the_layout_do_not_stop_a_rebuild(facts, caplog):
    facts.path(SliceId(1), "published").touch()
    facts.path(SliceId(2), "registered").write_text("not JSON")
    facts.record(BatchId(1, 9), "processed")
    facts.record(TileId(1, 99), "failed")
    state = oct_state_from_facts("p", facts, LAYOUT)
    assert state.slices[1].has("published")
    assert state.slices[2].has("registered")
    assert 9 not in state.slices[1].mosaics[1].batches
    assert "batch 9 of mosaic 1 is left out" in caplog.text
    assert "tile 99 of mosaic 1 is left out" in caplog.text


def test_snapshots_compare_by_content(facts):
    assert facts.snapshot() == facts.snapshot() != FactsSnapshot({})
