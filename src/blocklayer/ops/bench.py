# SPDX-License-Identifier: Apache-2.0
"""Timing many requests of one kind on a disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter
from blocklayer.base.record import Record
from blocklayer.core.batch import Request
from blocklayer.core.disk import Disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from concurrent.futures import Executor


class BenchPlan(Record, frozen=True):
    """Which requests to send.

    count           requests in all, `depth` of them together
    offset          of the first; each is `step` bytes (`size` if not given) behind the one before,
                    and the disk begins again behind its end
    size            bytes in a request
    write           write `pattern` instead of reading
    flush_interval  flush after so many writes; 0 does not
    drain           no request is in flight while flushing
    threads         that send the requests of a depth: more than one where storage takes its time
    """

    count: int = 75000
    depth: int = 64
    offset: int = 0
    size: int = 4096
    step: int = 0
    write: bool = False
    pattern: int = 0
    flush_interval: int = 0
    drain: bool = True
    threads: int = 1


def bench_disk(
    disk: Disk,
    plan: BenchPlan,
    *,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> float:
    """Send the requests of `plan`; the seconds it took. The first that fails is raised."""
    if plan.depth < 1 or plan.threads < 1:
        raise InvalidArgument("Requests are sent one at a time at least: give a depth from 1")
    reporter = Reporter("bench", plan.count, progress, cancel)
    with contextlib.ExitStack() as stack:
        sender = _Sender(disk, plan)
        threads = min(plan.threads, plan.depth)
        if threads > 1:
            from concurrent.futures import ThreadPoolExecutor

            pool = stack.enter_context(ThreadPoolExecutor(threads, "blocklayer-bench"))
            sender.submit = lambda batch: _submit_together(pool, threads, disk, batch)
        start = time.perf_counter()
        while sender.left:
            reporter.advance(sender.send())
        seconds = time.perf_counter() - start
    reporter.finish()
    return seconds


def _submit_together(pool: Executor, threads: int, disk: Disk, batch: list[Request]) -> None:
    """Each thread has one request in flight: as many are in flight together."""
    shares = [batch[number::threads] for number in range(min(threads, len(batch)))]
    list(pool.map(disk.submit, shares))


class _Sender:
    """Where the next request goes, and how many there still are."""

    def __init__(self, disk: Disk, plan: BenchPlan) -> None:
        self._disk = disk
        self._plan = plan
        self.submit: Callable[[list[Request]], object] = disk.submit
        self._position = plan.offset
        self._until_flush = plan.flush_interval
        self.left = plan.count
        if plan.count:
            # Before there is a buffer: requests larger than the disk need none.
            disk.check_range("write" if plan.write else "read", plan.offset, plan.size)
        self._buffer = memoryview(bytearray([plan.pattern]) * plan.size)

    def send(self) -> int:
        """Send what may be in flight together; how many requests that were."""
        plan = self._plan
        count = min(plan.depth, self.left)
        if plan.flush_interval:
            count = min(count, self._until_flush)
        batch = [self._next() for _ in range(count)]
        self.left -= count
        self._until_flush -= count
        if not plan.flush_interval or self._until_flush:
            self._submit(batch)
            return count
        self._until_flush = plan.flush_interval
        if plan.drain:
            self._submit(batch)
            self._disk.flush()
        else:
            self._submit([*batch, Request.flush()])
        return count

    def _next(self) -> Request:
        plan = self._plan
        offset = self._position
        self._position += plan.step or plan.size
        if self._disk.size:
            self._position %= self._disk.size
        if plan.write:
            return Request.write(offset, self._buffer)
        return Request.read_into(offset, self._buffer)

    def _submit(self, batch: list[Request]) -> None:
        self.submit(batch)
        for request in batch:
            if request.error is not None:
                raise request.error
