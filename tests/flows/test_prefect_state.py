"""Project state in Prefect Variables, against a real server: the contract, shards, the lock, crashes."""

import itertools
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from opticstream.flows.prefect_state import (
    PrefectApi,
    PrefectProjectLock,
    PrefectStateRepository,
    lsm_state_service,
    oct_state_service,
)
from opticstream.model.errors import LockTimeout, ServerError, StateError
from opticstream.state.lsm_state import LSMProjectState, LSMStateService
from opticstream.state.store import BaseProjectStateStore
from opticstream.testing.project_state import PROJECT, ProjectStateStoreContract

pytestmark = pytest.mark.server
_numbers = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def _queues_of_our_own(tmp_path_factory):
    """Keep the files at which processes queue out of the machine's own temporary folder."""
    folder = str(tmp_path_factory.mktemp("queues"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture
def api(prefect_server):
    return PrefectApi(prefect_server)


@pytest.fixture
def project():
    return f"project-{next(_numbers)}"


class RecordingApi(PrefectApi):
    """Counts the writes, and can die before one of them."""

    def __init__(self, url):
        super().__init__(url)
        self.writes = []
        self.die_before = None

    def call(self, method, path, body=None, /, *, also=()):
        if method != "GET" and path.startswith("/variables/") and not path.endswith("filter"):
            name = (body or {}).get("name") or path.rpartition("/")[2]
            if self.die_before is not None and self.die_before(method, name):
                raise KeyboardInterrupt("killed")
            self.writes.append((method, name))
        return super().call(method, path, body, also=also)


def recording_service(url):
    api = RecordingApi(url)
    repository = PrefectStateRepository(LSMProjectState, pipeline="lsm", api=api)
    return api, LSMStateService(BaseProjectStateStore(repository, PrefectProjectLock(pipeline="lsm", api=api)))


def fill(service, project, *, slices=3, strips=60):
    with service.open_project(project) as state:
        for s in range(slices):
            for n in range(strips):
                strip = state.get_or_create_slice(s).get_or_create_channel(0).get_or_create_strip(n)
                strip.mark_started().mark_completed().set_uploaded()


class TestPrefectStore(ProjectStateStoreContract):
    @pytest.fixture
    def make_service(self, prefect_server):
        for name in (PROJECT, "another project"):
            lsm_state_service(api_url=prefect_server).store.repository.delete(name)
        return lambda: lsm_state_service(api_url=prefect_server)


@pytest.mark.slow
class TestPrefectStoreBetweenHosts(ProjectStateStoreContract):
    """Without the queue at a file, as between hosts that only share the server."""

    @pytest.fixture
    def make_service(self, api):
        def make():
            repository = PrefectStateRepository(LSMProjectState, pipeline="lsm", api=api)
            lock = PrefectProjectLock(pipeline="lsm", api=api, queue_on_host=False)
            return LSMStateService(BaseProjectStateStore(repository, lock))

        make().store.repository.delete(PROJECT)
        return make


def test_a_save_writes_only_the_shards_that_changed_and_the_manifest_last(prefect_server, project):
    api, service = recording_service(prefect_server)
    fill(service, project)
    shards = {name for _, name in api.writes if "--" in name}
    assert len(shards) > 6
    api.writes.clear()
    with service.open_strip(project, slice_id=1, channel_id=0, strip_id=30) as strip:
        strip.set_archived()
    created = [name for method, name in api.writes if method == "POST" and not name.endswith("--holder")]
    deleted = [name for method, name in api.writes if method == "DELETE" and not name.endswith("--holder")]
    assert 1 <= len(created) <= 4
    assert len(deleted) == len(created)
    order = [(method, name) for method, name in api.writes if not name.endswith("--holder")]
    assert order.index(("PATCH", f"{project}-lsm-state")) == len(created)
    api.writes.clear()
    with service.open_strip(project, slice_id=1, channel_id=0, strip_id=30):
        pass
    service.read_project(project)
    service.peek_project(project)
    assert [write for write in api.writes if not write[1].endswith("--holder")] == []


def test_a_reader_never_meets_a_mixture(prefect_server, project):
    writer, reader = lsm_state_service(api_url=prefect_server), lsm_state_service(api_url=prefect_server)
    fill(writer, project, slices=2)
    seen, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            seen.append({(s.attempts, s.finished) for s in reader.peek_project(project).strips()})

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(6):
            with writer.open_project(project) as state:
                for strip in state.strips():
                    strip.mark_started()
                    strip.mark_completed()
    finally:
        stop.set()
        thread.join()
    assert len(seen) > 3
    assert all(len(kinds) == 1 for kinds in seen), "strips of two generations were seen together"


@pytest.mark.parametrize("moment", ["first shard", "manifest", "cleaning up"])
def test_a_writer_that_dies_leaves_the_old_state_or_the_new_one(prefect_server, project, moment):
    api, service = recording_service(prefect_server)
    fill(service, project)
    before = service.peek_project(project)
    api.die_before = {
        "first shard": lambda method, name: method == "POST" and "--" in name,
        "manifest": lambda method, name: name == f"{project}-lsm-state",
        "cleaning up": lambda method, name: method == "DELETE" and "--slices" in name,
    }[moment]
    with pytest.raises(KeyboardInterrupt), service.open_strip(project, slice_id=1, channel_id=0, strip_id=30) as strip:
        strip.set_archived()
    api.die_before = None
    after = lsm_state_service(api_url=prefect_server).peek_project(project)
    if moment == "cleaning up":
        assert after.slices[1].channels[0].strips[30].archived
    else:
        assert after == before
    repository = service.store.repository
    strays = repository.tidy(project)
    assert bool(strays) == (moment != "first shard")
    assert repository.tidy(project) == []
    assert lsm_state_service(api_url=prefect_server).peek_project(project) == after


def test_deleting_a_project_leaves_no_variable(prefect_server, project):
    service = lsm_state_service(api_url=prefect_server)
    fill(service, project)
    repository = service.store.repository
    assert len(repository._variables(project)) > 6
    repository.delete(project)
    assert repository._variables(project) == []
    assert service.peek_project(project) is None


def test_damaged_and_missing_shards_are_found_and_replaced(prefect_server, project):
    api, service = recording_service(prefect_server)
    fill(service, project)
    good = service.peek_project(project)
    shard = next(name for method, name in api.writes if method == "POST" and "--" in name)
    api.call("PATCH", f"/variables/name/{shard}", {"value": {"edited": "by hand"}})
    fresh = lsm_state_service(api_url=prefect_server)
    with pytest.raises(StateError, match=rf"{shard}.* missing or damaged; `opticstream state rebuild`"):
        fresh.peek_project(project)
    fresh.store.replace(project, lambda: LSMProjectState.model_validate(good.model_dump()))
    assert lsm_state_service(api_url=prefect_server).peek_project(project) == good
    api.call("DELETE", f"/variables/name/{shard}")
    with pytest.raises(StateError, match="missing or damaged"):
        lsm_state_service(api_url=prefect_server).peek_project(project)


def test_a_variable_that_is_no_manifest_is_refused(api, prefect_server, project):
    api.call("POST", "/variables/", {"name": f"{project}-lsm-state", "value": "something else"})
    with pytest.raises(StateError, match="is no manifest"):
        lsm_state_service(api_url=prefect_server).peek_project(project)


@pytest.mark.slow
def test_a_project_of_100_slices_2_mosaics_and_40_batches(prefect_server, project):
    service = oct_state_service(api_url=prefect_server)
    with service.open_project(project) as state:
        for s in range(1, 101):
            for m in (2 * s - 1, 2 * s):
                mosaic = state.get_or_create_slice(s).get_or_create_mosaic(m).mark_started()
                for b in range(1, 41):
                    mosaic.get_or_create_batch(b).mark_started().mark_archived().mark_processed().set_uploaded()
    begin_s = time.monotonic()
    with service.open_batch(project, slice_id=50, mosaic_id=100, batch_id=7) as batch:
        batch.mark_failed("disk")
    update_s = time.monotonic() - begin_s
    fresh = oct_state_service(api_url=prefect_server)
    begin_s = time.monotonic()
    view = fresh.peek_project(project)
    cold_s = time.monotonic() - begin_s
    print(f"one update {update_s:.2f} s, cold load {cold_s:.2f} s")
    assert sum(mosaic.count("processed") for mosaic in view.mosaics()) == 8000
    assert sum(mosaic.count("failed") for mosaic in view.mosaics()) == 1
    assert view.slices[50].mosaics[100].batches[7].failure == "disk"


UPDATES = """
import sys
from opticstream.flows.prefect_state import lsm_state_service
url, project, number, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
service = lsm_state_service(api_url=url, timeout_s=240)
print("up", flush=True)
sys.stdin.readline()
for n in range(rounds):
    with service.open_project(project) as state:
        state.get_or_create_slice(0).attempts += 1
        state.get_or_create_slice(1).get_or_create_channel(number).get_or_create_strip(n).mark_completed()
"""


def run_updates(url, project, *, processes, rounds):
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", UPDATES, url, project, str(n), str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(processes)
    ]
    try:
        for child in children:
            assert child.stdout.readline() == "up\n"
        begin_s = time.monotonic()
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            child.communicate(timeout=280)
            assert child.returncode == 0
        print(f"{processes} x {rounds} updates in {time.monotonic() - begin_s:.1f} s")
    finally:
        for child in children:
            child.kill()
            child.communicate()
    view = lsm_state_service(api_url=url).read_project(project)
    assert view.slices[0].attempts == processes * rounds
    assert {c: len(view.slices[1].channels[c].strips) for c in view.slices[1].channels} == dict.fromkeys(
        range(processes), rounds
    )


def test_processes_that_update_at_the_same_time_lose_nothing(prefect_server, project):
    run_updates(prefect_server, project, processes=3, rounds=10)


@pytest.mark.slow
def test_eight_processes_making_fifty_updates_each_lose_none(prefect_server, project):
    run_updates(prefect_server, project, processes=8, rounds=50)


def test_hosts_that_share_only_the_server_lose_nothing(api, project):
    def work():
        repository = PrefectStateRepository(LSMProjectState, pipeline="lsm", api=api)
        lock = PrefectProjectLock(pipeline="lsm", api=api, queue_on_host=False)
        service = LSMStateService(BaseProjectStateStore(repository, lock))
        for _ in range(4):
            with service.open_slice(project, slice_id=0) as opened:
                opened.attempts += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert lsm_state_service(api_url=api.url).read_slice(project, slice_id=0).attempts == 12


HOLD = """
import sys, time
from opticstream.flows.prefect_state import PrefectApi, PrefectProjectLock
lock = PrefectProjectLock(pipeline="lsm", api=PrefectApi(sys.argv[1]), queue_on_host=sys.argv[3] == "queue")
with lock.hold(sys.argv[2], timeout_s=240):
    time.sleep(1)
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hold(prefect_server, project):
    children = []

    def start(queue):
        child = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", HOLD, prefect_server, project, queue],
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        assert child.stdout.readline() == "held\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("queue", ["queue", "no queue"])
def test_a_lock_that_stays_taken_names_its_holder(prefect_server, project, hold, queue):
    child = hold(queue)
    with pytest.raises(LockTimeout, match=rf"stayed locked for 0\.2 s, now by .*process {child.pid}.*, since 20"):
        lsm_state_service(api_url=prefect_server).read_project(project, timeout_s=0.2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_lock_of_a_killed_holder_is_free_when_its_lease_ends(prefect_server, project, hold):
    child = hold("queue")
    child.send_signal(signal.SIGKILL)
    child.wait()
    service = lsm_state_service(api_url=prefect_server)
    with pytest.raises(LockTimeout, match=rf"process {child.pid}.*the lease of a dead holder ends after 60 s"):
        service.read_project(project, timeout_s=0.5)
    with service.open_slice(project, slice_id=1, timeout_s=300):
        pass
    assert service.store.lock.holder(project) is None


def test_a_lock_can_be_freed_by_force(prefect_server, project, hold):
    hold("no queue")
    service = lsm_state_service(api_url=prefect_server)
    with pytest.raises(LockTimeout):
        service.read_project(project, timeout_s=0.1)
    service.store.lock.free(project)
    with service.open_slice(project, slice_id=1, timeout_s=5):
        pass


def test_a_lost_lease_saves_nothing(prefect_server, project):
    service = lsm_state_service(api_url=prefect_server)
    fill(service, project, slices=1, strips=1)

    def overrun():
        with service.store.lock.hold(project, timeout_s=30) as held:
            held._valid_until_s = time.monotonic()  # the process was stopped for a minute
            held.ensure_held()

    with pytest.raises(StateError, match="was lost"):
        overrun()
    with service.open_slice(project, slice_id=1, timeout_s=10):  # and the lock was given back
        pass


def test_a_limit_that_somebody_changed_is_refused(api, prefect_server, project):
    service = lsm_state_service(api_url=prefect_server)
    with service.open_slice(project, slice_id=1):
        pass
    api.call("PATCH", f"/v2/concurrency_limits/{project}-lsm-state", {"limit": 2})
    with pytest.raises(StateError, match="keeps nobody out: limit 2"), service.open_slice(project, slice_id=2):
        pytest.fail("the block must not be entered")
    api.call("DELETE", f"/v2/concurrency_limits/{project}-lsm-state")
    with service.open_slice(project, slice_id=2):  # a deleted one is made again
        pass


def test_a_server_that_does_not_answer_is_an_error_with_its_address():
    service = lsm_state_service(api_url="http://127.0.0.1:9/api")
    with pytest.raises(ServerError, match=r"http://127\.0\.0\.1:9/api/variables.* had no answer"):
        service.peek_project("p")
