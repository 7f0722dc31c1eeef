"""The stores in memory and in files keep the contract; state trees behave."""

import pickle
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from opticstream.model.errors import LockTimeout, StateError
from opticstream.state.file_store import FileProjectLock, file_store
from opticstream.state.lsm_state import LSMProjectState, LSMStateService
from opticstream.state.memory_store import MemoryProjectLock, MemoryStateRepository, memory_store
from opticstream.state.oct_state import OCTBatchState, OCTMosaicState, OCTProjectState, OCTSliceState, OCTStateService
from opticstream.state.store import BaseProjectStateStore
from opticstream.state.vocabulary import FACTS
from opticstream.testing.project_state import ProjectStateStoreContract


class TestMemoryStore(ProjectStateStoreContract):
    @pytest.fixture
    def make_service(self):
        repository, lock = MemoryStateRepository(LSMProjectState), MemoryProjectLock()
        return lambda: LSMStateService(BaseProjectStateStore(repository, lock))


class TestFileStore(ProjectStateStoreContract):
    @pytest.fixture
    def make_service(self, tmp_path):
        return lambda: LSMStateService(file_store(tmp_path, LSMProjectState, pipeline="lsm"))


def test_saving_what_has_not_changed_writes_nothing(tmp_path):
    repository = MemoryStateRepository(LSMProjectState)
    service = LSMStateService(BaseProjectStateStore(repository, MemoryProjectLock()))
    for _ in range(3):
        with service.open_slice("p", slice_id=1):
            pass
    assert repository.saves == 1
    files = LSMStateService(file_store(tmp_path, LSMProjectState, pipeline="lsm"))
    with files.open_slice("p", slice_id=1):
        pass
    before = files.store.repository.path("p").stat().st_ino
    with files.open_slice("p", slice_id=1):
        pass
    assert files.store.repository.path("p").stat().st_ino == before


def test_the_two_pipelines_of_a_project_do_not_meet(tmp_path):
    lsm = LSMStateService(file_store(tmp_path, LSMProjectState, pipeline="lsm"))
    oct_ = OCTStateService(file_store(tmp_path, OCTProjectState, pipeline="oct"))
    with lsm.open_slice("p", slice_id=1), oct_.open_slice("p", slice_id=2):
        pass
    assert list(lsm.peek_project("p").slices) == [1]
    assert list(oct_.peek_project("p").slices) == [2]


def test_a_state_of_an_unknown_kind_is_refused_with_its_file(tmp_path):
    service = LSMStateService(file_store(tmp_path, LSMProjectState, pipeline="lsm"))
    (tmp_path / "p-lsm-state.json").write_text('{"project_name": "p", "stripes": {}}')
    with pytest.raises(StateError, match=r"p-lsm-state\.json is not a state"):
        service.peek_project("p")


HOLD = """
import sys, time
from pathlib import Path
from opticstream.state.file_store import FileProjectLock
with FileProjectLock(Path(sys.argv[1]), pipeline="lsm").hold("p", timeout_s=10):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_file_lock_names_its_holder_and_is_freed_by_its_death(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    lock = FileProjectLock(tmp_path, pipeline="lsm")
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(LockTimeout, match=rf"process {child.pid}\), since 20"), lock.hold("p", timeout_s=0.1):
            pytest.fail("the block must not be entered")
        child.send_signal(signal.SIGKILL)
        child.wait()
        with lock.hold("p", timeout_s=120):
            pass
    finally:
        child.kill()
        child.communicate()


def test_a_lost_lock_saves_nothing():
    class LostLock(MemoryProjectLock):
        lost = False

        def ensure_held(self):
            if self.lost:
                raise StateError("the lock was lost")

    lock = LostLock()
    service = LSMStateService(BaseProjectStateStore(MemoryStateRepository(LSMProjectState), lock))
    with pytest.raises(StateError, match="lost"), service.open_slice("p", slice_id=1):
        lock.lost = True
    assert service.peek_project("p") is None


@pytest.mark.parametrize(
    ("state", "hierarchy"),
    [
        (OCTBatchState(batch_id=1), "batch"),
        (OCTMosaicState(mosaic_id=1), "mosaic"),
        (OCTSliceState(slice_id=1), "slice"),
        (OCTProjectState(project_name="p"), "sample"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_oct_state_keeps_the_time_of_every_fact(state, hierarchy):
    assert set(state.facts()) == set(FACTS[hierarchy])
    for fact in FACTS[hierarchy]:
        assert not state.has(fact)
        state.mark(fact, at=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC))
        assert state.when(fact) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    with pytest.raises(ValueError, match="has no fact 'eaten'"):
        state.mark("eaten")


def test_every_level_of_oct_opens_reads_and_peeks():
    service = OCTStateService(memory_store(OCTProjectState))
    with service.open_project("p") as project:
        project.mark("updated")
    with service.open_slice("p", slice_id=1) as slice_state:
        slice_state.mark_started().mark_registered()
    with service.open_mosaic("p", slice_id=1, mosaic_id=2) as mosaic:
        mosaic.mark_started().mark_failed("x" * 1000)
    with service.open_batch("p", slice_id=1, mosaic_id=2, batch_id=3) as batch:
        batch.mark_started().mark_archived().mark_processed().set_uploaded()
        batch.set_failed_tiles((9, 7, 9))
    for look in ("read", "peek"):
        project = getattr(service, f"{look}_project")("p")
        assert project.has("updated")
        assert getattr(service, f"{look}_slice")("p", slice_id=1) == project.slice(1)
        assert project.slice(1).finished
        mosaic = getattr(service, f"{look}_mosaic")("p", slice_id=1, mosaic_id=2)
        assert mosaic == project.slices[1].mosaic(2) == next(project.mosaics())
        assert not mosaic.finished
        assert len(mosaic.failure) == 300
        assert mosaic.count("processed") == 1
        batch = getattr(service, f"{look}_batch")("p", slice_id=1, mosaic_id=2, batch_id=3)
        assert batch == mosaic.batch(3)
        assert (batch.finished, batch.uploaded, batch.failed_tiles) == (True, True, (7, 9))
        assert getattr(service, f"{look}_batch")("p", slice_id=1, mosaic_id=3, batch_id=3) is None
        assert getattr(service, f"{look}_mosaic")("q", slice_id=1, mosaic_id=2) is None


def test_a_new_attempt_forgets_the_failure_of_the_last():
    batch = OCTBatchState(batch_id=1)
    batch.mark_started().mark_failed("disk")
    batch.mark_started()
    assert (batch.has("failed"), batch.failure, batch.attempts) == (False, None, 2)


def test_views_can_be_pickled_and_written_as_json():
    service = OCTStateService(memory_store(OCTProjectState))
    with service.open_batch("p", slice_id=1, mosaic_id=2, batch_id=3):
        pass
    view = service.peek_project("p")
    assert pickle.loads(pickle.dumps(view)) == view
    assert type(view).model_validate_json(view.model_dump_json()) == view


@pytest.mark.parametrize("change", ["pop", "clear", "update", "setdefault", "popitem"])
def test_children_of_a_view_cannot_be_changed(change):
    view = OCTSliceState(slice_id=1).to_view()
    with pytest.raises(TypeError, match="cannot be changed"):
        getattr(view.mosaics, change)()
