# SPDX-License-Identifier: Apache-2.0
"""Threads: one on its own, and some that start together, whose failures are the test's."""

from __future__ import annotations

import threading
from collections.abc import Callable

PATIENCE = 60.0
"""Seconds after which threads that have not ended are taken to wait for each other."""


def run_together(*actions: Callable[[], object]) -> None:
    """Run each action in a thread of its own, all released at one moment; raise what they raise."""
    barrier = threading.Barrier(len(actions))
    failures: list[BaseException] = []

    def run(action: Callable[[], object]) -> None:
        try:
            barrier.wait(PATIENCE)
            action()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"


def in_thread(action: Callable[[], object]) -> threading.Thread:
    """A thread of its own for an action, whose failure nobody is told of."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread
