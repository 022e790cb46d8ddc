# SPDX-License-Identifier: Apache-2.0
"""Requests in flight, drains, and ranges that exclude each other."""

from __future__ import annotations

import random
import threading
import time

import pytest

from blocklayer.base.errors import Closed
from blocklayer.core.requests import RangeLock, Tracker
from tests.support.crew import in_thread, run_together


def ends(thread: threading.Thread) -> bool:
    thread.join(10)
    return not thread.is_alive()


def goes_on_waiting(thread: threading.Thread) -> bool:
    thread.join(0.03)
    return thread.is_alive()


def take(lock: RangeLock, ranges: list[tuple[int, int]]) -> object:
    token = object()
    lock.acquire(token, ranges)
    return token


class Requests(Tracker):
    """A tracker whose requests may be ended by anybody."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[object] = []

    def begin(self) -> None:
        token = object()
        self.enter(token)
        self.tokens.append(token)

    def end(self) -> None:
        self.requests.discard(self.tokens.pop())
        if self.drained:
            self.wake()


# --- the tracker ---


def test_a_drain_waits_for_what_is_in_flight() -> None:
    tracker = Requests()
    tracker.begin()
    tracker.begin()
    drain = in_thread(lambda: tracker.drain_begin(object()))
    assert goes_on_waiting(drain)
    tracker.end()
    assert goes_on_waiting(drain)
    tracker.end()
    assert ends(drain)


def test_requests_wait_for_the_end_of_a_drain() -> None:
    tracker = Requests()
    with tracker.drained_section():
        request = in_thread(tracker.begin)
        assert goes_on_waiting(request)
    assert ends(request)
    tracker.end()


def test_drains_nest_in_one_thread_and_wait_in_others() -> None:
    tracker = Requests()
    inside = []

    def section() -> None:
        with tracker.drained_section():
            inside.append(1)

    with tracker.drained_section():
        with tracker.drained_section():
            other = in_thread(section)
            assert goes_on_waiting(other)
        assert not inside
    assert ends(other)
    assert inside
    tracker.begin()
    tracker.end()


def test_after_closing_everything_is_refused() -> None:
    tracker = Requests()
    tracker.close()
    assert tracker.closed
    with pytest.raises(Closed):
        tracker.begin()
    with pytest.raises(Closed), tracker.drained_section():
        pass
    tracker.close()
    with pytest.raises(Closed):
        tracker.begin()


def test_requests_that_wait_for_a_drain_are_refused_when_it_ends_by_closing() -> None:
    tracker = Requests()
    refused = []

    def request() -> None:
        try:
            tracker.begin()
        except Closed:
            refused.append(1)

    tracker.begin()
    closing = in_thread(tracker.close)
    assert goes_on_waiting(closing)
    requests = [in_thread(request) for _ in range(3)]
    assert all(map(goes_on_waiting, requests))
    tracker.end()
    assert ends(closing)
    assert all(map(ends, requests))
    assert len(refused) == 3


def test_no_request_is_ever_inside_a_drain() -> None:
    tracker = Requests()
    inside = [0]
    draining = [0]
    wrong = []
    stop = threading.Event()

    def request() -> None:
        while not stop.is_set():
            tracker.begin()
            inside[0] += 1
            if draining[0]:
                wrong.append("a request in a drain")
            tracker.end()

    def drain() -> None:
        for _ in range(60):
            with tracker.drained_section():
                draining[0] += 1
                if draining[0] > 1:
                    wrong.append("a drain in another's")
                time.sleep(0)
                draining[0] -= 1
        stop.set()

    run_together(request, request, request, drain, drain)
    assert not wrong
    assert inside[0]
    assert not tracker.requests
    assert not tracker.inflight


# --- ranges ---


def test_overlapping_ranges_exclude_each_other() -> None:
    lock = RangeLock()
    held = take(lock, [(10, 20), (30, 40)])
    for ranges in ([(0, 10)], [(20, 30)], [(40, 50), (0, 1)]):
        lock.release(take(lock, ranges))
    for ranges in ([(0, 11)], [(19, 20)], [(0, 1), (35, 36)], [(0, 100)]):
        waiting = in_thread(lambda wanted=ranges: lock.run(wanted, time.sleep, 0))  # type: ignore[misc]
        assert goes_on_waiting(waiting)
        lock.release(held)
        assert ends(waiting)
        held = take(lock, [(10, 20), (30, 40)])


def test_all_or_nothing() -> None:
    """Who waits for one range does not hold another meanwhile."""
    lock = RangeLock()
    held = take(lock, [(0, 10)])
    waiting = in_thread(lambda: take(lock, [(0, 10), (90, 95)]))
    assert goes_on_waiting(waiting)
    # Nobody holds 95 to 100, and nobody who came earlier wants it.
    take(lock, [(95, 100)])
    lock.release(held)
    assert ends(waiting)


def test_first_come_first_served() -> None:
    """Two that take turns cannot keep a third one out."""
    lock = RangeLock()
    done = threading.Event()
    turns = [0]

    def hog() -> None:
        while not done.is_set():
            held = take(lock, [(0, 10)])
            time.sleep(0.001)
            lock.release(held)
            turns[0] += 1

    def patient() -> None:
        for _ in range(20):
            held = take(lock, [(5, 6)])
            lock.release(held)
        done.set()

    run_together(hog, hog, hog, patient)
    # Everybody has at most one turn before the patient one has the next.
    assert turns[0] <= 20 * 4 + 3


def test_the_order_of_those_who_wait_is_kept() -> None:
    lock = RangeLock()
    order: list[int] = []
    held = take(lock, [(0, 100)])
    threads = []
    for number in range(5):

        def take_turn(number: int = number) -> None:
            held = take(lock, [(number, 50)])
            order.append(number)
            lock.release(held)

        threads.append(in_thread(take_turn))
        assert goes_on_waiting(threads[-1])
    lock.release(held)
    assert all(map(ends, threads))
    assert order == [0, 1, 2, 3, 4]


def test_nobody_is_ever_inside_with_another(seed: int) -> None:
    lock = RangeLock()
    owners: dict[int, int] = {}
    wrong = []

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        for _ in range(150):
            starts = sorted(rng.sample(range(0, 40, 4), 2))
            ranges = [(start, start + rng.randint(1, 4)) for start in starts]
            held = take(lock, ranges)
            places = [place for start, end in ranges for place in range(start, end)]
            for place in places:
                if owners.get(place, number) != number:
                    wrong.append(place)
                owners[place] = number
            time.sleep(0)
            for place in places:
                del owners[place]
            lock.release(held)

    run_together(*(lambda number=number: work(number) for number in range(5)))
    assert not wrong
