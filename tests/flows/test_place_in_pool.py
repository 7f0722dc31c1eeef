"""A run that waits for tiles leaves its place to a run that finds no other one, and to no run of its own column."""

from __future__ import annotations

from opticstream.flows.queues import PlaceInPool
from opticstream.model.ids import BatchId

OWN, OTHER, ELSEWHERE = ("p", 1, 1), ("p", 1, 2), ("q", 1, 1)


class Queue:
    def __init__(self) -> None:
        self.runs: dict[str, tuple[object, ...]] = {}
        self.now = 100.0
        self.looks = 0

    def waiting(self, pool: str) -> dict[str, tuple[object, ...]]:
        assert pool == "tile"
        self.looks += 1
        return dict(self.runs)

    def place(self) -> PlaceInPool:
        return PlaceInPool("tile", "p", BatchId(1, 1), waiting=self.waiting, clock=lambda: self.now)


def looks(queue: Queue, place: PlaceInPool, *, times: int) -> list[bool]:
    found = []
    for _ in range(times):
        found.append(place.is_wanted())
        queue.now += 3
    return found


def test_a_run_that_waits_from_one_look_to_the_next_wants_the_place():
    queue = Queue()
    place = queue.place()
    queue.runs = {"a": OTHER}
    assert looks(queue, place, times=2) == [False, True]


def test_a_run_of_another_microscope_counts_like_one_of_ours():
    queue = Queue()
    queue.runs = {"a": ELSEWHERE}
    assert looks(queue, queue.place(), times=2) == [False, True]


def test_a_run_that_finds_a_place_of_its_own_does_not_count():
    queue = Queue()
    place = queue.place()
    queue.runs = {"a": OTHER}
    assert looks(queue, place, times=1) == [False]
    queue.runs = {"b": OTHER}
    assert looks(queue, place, times=1) == [False]


def test_runs_of_the_same_column_do_not_count():
    queue = Queue()
    queue.runs = {"a": OWN}
    assert looks(queue, queue.place(), times=3) == [False] * 3


def test_the_server_is_asked_every_few_seconds_only():
    queue = Queue()
    place = queue.place()
    for _ in range(50):
        place.is_wanted()
    assert queue.looks == 1
