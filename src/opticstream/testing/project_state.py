"""What every kind of project state store must do: tests to inherit.

Subclass `ProjectStateStoreContract` and give it a `make_service` fixture that returns a function; each call of that
function returns a new `LSMStateService` on the same states, as another process would open it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from opticstream.model.errors import LockTimeout, StateError
from opticstream.state.lsm_state import (
    LSMChannelStateView,
    LSMProjectState,
    LSMProjectStateView,
    LSMSliceStateView,
    LSMStateService,
    LSMStripState,
    LSMStripStateView,
)

MakeService = Callable[[], LSMStateService]
PROJECT = "Contract Project"


class ProjectStateStoreContract:
    """Inherit this and provide the fixture `make_service`."""

    @pytest.fixture
    def make_service(self) -> MakeService:
        raise NotImplementedError

    @pytest.fixture
    def service(self, make_service: MakeService) -> LSMStateService:
        return make_service()

    @pytest.fixture
    def other(self, make_service: MakeService) -> LSMStateService:
        return make_service()

    def test_what_was_opened_and_changed_is_seen_by_others(
        self, service: LSMStateService, other: LSMStateService
    ) -> None:
        with service.open_strip(PROJECT, slice_id=1, strip_id=2, channel_id=0) as strip:
            assert isinstance(strip, LSMStripState)
            strip.mark_started()
            strip.mark_completed()
            strip.set_uploaded(True)
            strip.set_archived(True)
        for look in (other.read_strip, other.peek_strip):
            seen = look(PROJECT, slice_id=1, strip_id=2, channel_id=0)
            assert type(seen) is LSMStripStateView
            assert (seen.finished, seen.uploaded, seen.archived, seen.failed) == (True, True, True, False)

    def test_every_level_opens_reads_and_peeks(self, service: LSMStateService, other: LSMStateService) -> None:
        with service.open_project(PROJECT) as project:
            assert isinstance(project, LSMProjectState)
            project.get_or_create_slice(7)
        with service.open_slice(PROJECT, slice_id=1) as slice_state:
            slice_state.mark_started()
        with service.open_channel(PROJECT, slice_id=1, channel_id=3) as channel:
            channel.mark_failed("no light")
        project_view = other.read_project(PROJECT)
        assert type(project_view) is LSMProjectStateView
        assert project_view == other.peek_project(PROJECT)
        assert list(project_view.slices) == [1, 7]
        slice_view = other.read_slice(PROJECT, slice_id=1)
        assert type(slice_view) is LSMSliceStateView
        assert slice_view == other.peek_slice(PROJECT, slice_id=1) == project_view.slice(1)
        assert slice_view.started
        channel_view = other.read_channel(PROJECT, slice_id=1, channel_id=3)
        assert type(channel_view) is LSMChannelStateView
        assert channel_view == other.peek_channel(PROJECT, slice_id=1, channel_id=3) == slice_view.channel(3)
        assert (channel_view.failed, channel_view.failure) == (True, "no light")
        assert channel_view.strip(1) is None

    def test_looking_creates_nothing(self, service: LSMStateService, other: LSMStateService) -> None:
        assert service.read_project(PROJECT) is None
        assert service.peek_project(PROJECT) is None
        assert service.read_strip(PROJECT, slice_id=1, strip_id=2, channel_id=0) is None
        assert other.peek_project(PROJECT) is None
        with service.open_slice(PROJECT, slice_id=1):
            pass
        assert service.read_strip(PROJECT, slice_id=1, strip_id=2, channel_id=0) is None
        assert service.peek_channel(PROJECT, slice_id=2, channel_id=0) is None
        seen = other.read_project(PROJECT)
        assert seen is not None
        assert seen == LSMProjectStateView(project_name=PROJECT, slices={1: LSMSliceStateView(slice_id=1)})

    def test_a_reader_that_changes_what_it_reads_changes_nothing(
        self, service: LSMStateService, other: LSMStateService
    ) -> None:
        with service.open_slice(PROJECT, slice_id=1):
            pass
        service.store.read(PROJECT, lambda state: state.get_or_create_slice(2))
        service.store.peek(PROJECT, lambda state: state.get_or_create_slice(3))
        seen = other.read_project(PROJECT)
        assert seen is not None
        assert list(seen.slices) == [1]

    def test_an_exception_inside_saves_nothing(self, service: LSMStateService, other: LSMStateService) -> None:
        with service.open_slice(PROJECT, slice_id=1):
            pass

        def fail_in_the_middle() -> None:
            with service.open_slice(PROJECT, slice_id=1) as opened:
                opened.mark_completed()
                raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError, match="in the middle"):
            fail_in_the_middle()
        seen = other.read_slice(PROJECT, slice_id=1)
        assert seen is not None
        assert not seen.finished

    def test_a_getter_that_raises_saves_nothing(self, service: LSMStateService, other: LSMStateService) -> None:
        def getter(state: LSMProjectState) -> object:
            state.get_or_create_slice(5)
            raise LookupError("after a change")

        with pytest.raises(LookupError), service.store.edit(PROJECT, getter):
            pytest.fail("the block must not be entered")
        with pytest.raises(ValidationError), service.open_strip(PROJECT, slice_id=5, strip_id=-1, channel_id=0):
            pytest.fail("the block must not be entered")
        assert other.read_project(PROJECT) is None
        with service.open_slice(PROJECT, slice_id=1):  # and the lock is free again
            pass

    def test_update_returns_what_the_function_returns(self, service: LSMStateService, other: LSMStateService) -> None:
        def mutate(state: LSMProjectState) -> int:
            return state.get_or_create_slice(1).mark_started().attempts

        assert service.store.update(PROJECT, mutate) == 1
        assert other.store.update(PROJECT, mutate) == 2

    def test_replacing_forgets_what_was_kept_before(self, service: LSMStateService, other: LSMStateService) -> None:
        with service.open_slice(PROJECT, slice_id=1):
            pass

        def rebuilt() -> LSMProjectState:
            state = LSMProjectState(project_name=PROJECT)
            state.get_or_create_slice(2)
            return state

        service.store.replace(PROJECT, rebuilt)
        seen = other.read_project(PROJECT)
        assert seen is not None
        assert list(seen.slices) == [2]

    def test_deleted_state_is_gone(self, service: LSMStateService, other: LSMStateService) -> None:
        with service.open_slice(PROJECT, slice_id=1):
            pass
        service.store.repository.delete(PROJECT)
        assert other.read_project(PROJECT) is None
        with other.open_slice(PROJECT, slice_id=2):
            pass
        seen = service.peek_project(PROJECT)
        assert seen is not None
        assert list(seen.slices) == [2]

    def test_projects_do_not_meet(self, service: LSMStateService, other: LSMStateService) -> None:
        names = [PROJECT, "contract project", "contract-project", "Contract_Project", "Contract.Project"]
        for number, name in enumerate(names):
            with service.open_slice(name, slice_id=number):
                pass
        for number, name in enumerate(names):
            seen = other.peek_project(name)
            assert seen is not None
            assert (seen.project_name, list(seen.slices)) == (name, [number])

    def test_views_are_frozen_and_do_not_follow_later_changes(self, service: LSMStateService) -> None:
        with service.open_slice(PROJECT, slice_id=1) as opened:
            opened.get_or_create_channel(0)
            inside = opened.to_view()
            opened.mark_completed()
        assert not inside.finished
        seen = service.read_slice(PROJECT, slice_id=1)
        assert seen is not None
        with pytest.raises(ValidationError, match="frozen"):
            seen.completed_at = None  # type: ignore[misc]
        with pytest.raises(TypeError, match="cannot be changed"):
            seen.channels[1] = seen.channels[0]

    def test_times_survive_in_utc_and_whole_seconds(self, service: LSMStateService, other: LSMStateService) -> None:
        before = datetime.now(UTC) - timedelta(seconds=1)
        with service.open_slice(PROJECT, slice_id=1) as opened:
            opened.mark_started()
        seen = other.read_slice(PROJECT, slice_id=1)
        assert seen is not None
        assert seen.started_at is not None
        assert before <= seen.started_at <= datetime.now(UTC)
        assert seen.started_at.microsecond == 0

    def test_a_project_that_is_open_keeps_others_out_and_names_its_holder(
        self, service: LSMStateService, other: LSMStateService
    ) -> None:
        inside, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with service.open_slice(PROJECT, slice_id=1) as opened:
                inside.set()
                leave.wait(30)
                opened.mark_completed()

        thread = threading.Thread(target=hold, name="the holder")
        thread.start()
        try:
            assert inside.wait(30)
            time.sleep(0.5)  # who holds a lock for long says so
            assert other.peek_project(PROJECT) is None  # looking without the lock does not wait
            with pytest.raises(LockTimeout, match=r"Contract Project.* stayed locked for 0\.3 s.*process|thread"):
                other.read_project(PROJECT, timeout_s=0.3)
            with other.open_slice("another project", slice_id=1, timeout_s=10):
                pass  # only this project is locked
        finally:
            leave.set()
            thread.join(30)
        seen = other.read_slice(PROJECT, slice_id=1, timeout_s=30)
        assert seen is not None
        assert seen.finished

    def test_opening_twice_in_one_thread_is_refused_at_once(self, service: LSMStateService) -> None:
        with (
            service.open_slice(PROJECT, slice_id=1),
            pytest.raises(StateError, match="open in this thread already"),
            service.open_slice(PROJECT, slice_id=2),
        ):
            pytest.fail("the block must not be entered")
        with service.open_slice(PROJECT, slice_id=2):
            pass

    def test_concurrent_updates_lose_none(self, make_service: MakeService) -> None:
        def work(number: int) -> None:
            mine = make_service()
            for round_ in range(5):
                with mine.open_slice(PROJECT, slice_id=0) as opened:
                    opened.mark_started()
                with mine.open_strip(PROJECT, slice_id=1, channel_id=number, strip_id=round_) as strip:
                    strip.mark_completed()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        seen = make_service().read_project(PROJECT)
        assert seen is not None
        assert seen.slices[0].attempts == 15
        assert {channel: len(view.strips) for channel, view in seen.slices[1].channels.items()} == {0: 5, 1: 5, 2: 5}
        assert all(strip.finished for strip in seen.strips())
