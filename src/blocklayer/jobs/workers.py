# SPDX-License-Identifier: Apache-2.0
"""A few threads that do a job's steps, so that reading, writing and looking overlap."""

from __future__ import annotations

import threading
from collections.abc import Callable

from blocklayer.base.queues import SimpleQueue

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.jobs.steps import Step


class StepBuffer:
    """Memory for one step at a time, made for the first that needs it.

    Touching all of it takes longer than a small step, and where the kernel moves the bytes none is
    needed.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._memory: bytearray | None = None

    @property
    def memory(self) -> bytearray:
        """What is in it is the last step's."""
        if self._memory is None:
            self._memory = bytearray(self._size)
        return self._memory


class Workers:
    """Runs `action(step, buffer)` in threads that are started when they are needed.

    Not more steps are in flight than there are threads; each thread has a buffer of its own. The
    action deals with its errors itself.
    """

    def __init__(
        self, name: str, count: int, buffer_size: int, action: Callable[[Step, StepBuffer], None]
    ) -> None:
        self.in_flight: set[Step] = set()
        self._name = name
        self._count = count
        self._buffer_size = buffer_size
        self._own_buffer = StepBuffer(buffer_size)
        self._action = action
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[Step | None] = SimpleQueue()
        self._changed = threading.Condition()

    def submit(self, step: Step) -> None:
        """Hand out a step; waits until a thread is free."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.in_flight) < self._count)
            if len(self.in_flight) >= len(self._threads):
                self._start_thread()
            self.in_flight.add(step)
        self._queue.put(step)

    def do(self, step: Step) -> None:
        """Do a step in the caller's thread: where it is all there is, another one saves nothing."""
        self._action(step, self._own_buffer)

    def _start_thread(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        buffer = StepBuffer(self._buffer_size)
        thread = threading.Thread(target=self._serve, args=(buffer,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _serve(self, buffer: StepBuffer) -> None:
        while (step := self._queue.get()) is not None:
            try:
                self._action(step, buffer)
            finally:
                with self._changed:
                    self.in_flight.discard(step)
                    self._changed.notify_all()

    def wait_while(self, condition: Callable[[], bool]) -> None:
        """Wait as long as `condition`, which depends on what is in flight."""
        with self._changed:
            self._changed.wait_for(lambda: not condition())

    def drain(self) -> None:
        """Wait until nothing is in flight."""
        self.wait_while(lambda: bool(self.in_flight))

    def close(self) -> None:
        """Wait for everything, and end the threads."""
        self.drain()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()


class EarlyFlush:
    """Has what is written brought to stable storage while more of it comes.

    So the flush at the end has little left to do.

    every   bytes after which the target is told to begin, if `begin` can tell it so
    flush   done after `whole` bytes otherwise; `failed` is told of errors, in the thread that met
            them: a system reports a lost write once, and later flushes succeed
    """

    def __init__(
        self,
        name: str,
        *,
        every: int,
        whole: int,
        begin: Callable[[], bool],
        flush: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._name = name
        self._every = every
        self._whole = whole
        self._begin = begin
        self._flush = flush
        self._failed = failed
        self._written = 0
        self._thread: threading.Thread | None = None
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._idle = threading.Lock()
        """Held from when a flush is wanted until it is done."""

    def written(self, amount: int) -> None:
        """So many bytes more; only one thread calls this at a time."""
        self._written += amount
        if self._written >= self._every and self._idle.acquire(blocking=False):
            self._written = 0
            if self._thread is None and not self._start_thread():
                self._idle.release()
                return
            self._wanted.put(True)

    def _start_thread(self) -> bool:
        thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more; the flush at the end does it all
            return False
        self._thread = thread
        return True

    def _serve(self) -> None:
        while self._wanted.get():
            try:
                if not self._begin():
                    self._every = self._whole
                    self._flush()
            except Exception as error:
                self._failed(error)
            finally:
                self._idle.release()

    def wait(self) -> None:
        """Wait for a flush that is on its way."""
        with self._idle:
            pass

    def close(self) -> None:
        """Wait, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._wanted.put(False)
            thread.join()
