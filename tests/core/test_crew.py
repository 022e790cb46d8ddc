# SPDX-License-Identifier: Apache-2.0
"""Threads that do what they are given."""

from __future__ import annotations

import threading

import pytest

from blocklayer.core.crew import Crew


def test_several_things_at_once() -> None:
    meeting = threading.Barrier(3, timeout=60)

    def meet(number: int) -> tuple[int, str]:
        meeting.wait()
        return number, threading.current_thread().name

    with Crew(3, "crew") as crew:
        tasks = [crew.submit(meet, number) for number in range(6)]
        found = [task.result() for task in tasks]
    assert [number for number, _ in found] == list(range(6))
    assert {name for _, name in found} <= {"crew-0", "crew-1", "crew-2"}
    assert not any(thread.name.startswith("crew-") for thread in threading.enumerate())


def test_what_a_task_raises_is_raised_where_its_result_is_wanted() -> None:
    def fail() -> None:
        raise KeyError("gone")

    with Crew(2, "crew") as crew:
        failing = crew.submit(fail)
        other = crew.submit(lambda: 5)
        assert other.result() == 5
        for _ in range(2):
            with pytest.raises(KeyError):
                failing.result()


def test_a_task_that_nobody_wants_is_not_begun() -> None:
    go_on = threading.Event()
    done: list[int] = []
    with Crew(1, "crew") as crew:
        first = crew.submit(go_on.wait, 60)
        others = [crew.submit(done.append, number) for number in range(3)]
        others[1].cancel()
        go_on.set()
        assert first.result()
    assert done == [0, 2]


def test_the_first_things_are_done_without_threads() -> None:
    def fail() -> None:
        raise KeyError("gone")

    with Crew(3, "crew", alone=2) as crew:
        assert crew.submit(threading.current_thread).result() is threading.current_thread()
        with pytest.raises(KeyError):
            crew.submit(fail)
        assert crew.submit(threading.current_thread).result().name == "crew-0"
