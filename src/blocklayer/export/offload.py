# SPDX-License-Identifier: Apache-2.0
"""Threads for what would keep a connection waiting: flushes, cold reads, zeroing.

They belong to one connection, so that a client that does not read its answers keeps nobody waiting
but itself. They are started when there is work, and end when there has been none for a while.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

THREADS_MAX = 16
"""Requests of one client that may wait for the storage at the same time."""

WAITING_MAX = 64
"""Requests that may wait for a thread; who brings more waits."""

IDLE_SECONDS = 5.0


class Offload:
    """A small pool of threads; whoever has used it closes it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING_MAX)
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._open = 0
        self._changed = threading.Condition(self._lock)

    def submit(self, job: Callable[[], None]) -> None:
        """Have `job` run soon; waits while there is too much to do. `job` must not raise."""
        with self._lock:
            self._open += 1
            start = self._idle < self._open and self._threads < THREADS_MAX
            if start:
                self._threads += 1
        if start and not self._start_thread():
            self._run(job)  # the caller's own thread will do
            return
        self._jobs.put(job)

    def _start_thread(self) -> bool:
        """Whether there is a thread that will take a job."""
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:  # the system has no more
            with self._lock:
                self._threads -= 1
                return self._threads > 0
        return True

    def close(self) -> None:
        """Wait until everything is done; the threads end."""
        with self._changed:
            while self._open:
                self._changed.wait()
            threads = self._threads
        for _ in range(threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            try:
                job = self._jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    self._idle -= 1
                    if self._open > self._idle and self._threads == 1:
                        continue  # somebody has counted on this thread
                    self._threads -= 1
                return
            with self._lock:
                self._idle -= 1
            if job is None:
                return
            self._run(job)

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()
