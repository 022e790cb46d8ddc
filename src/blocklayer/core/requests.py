# SPDX-License-Identifier: Apache-2.0
"""Who is at work on a node: requests in flight, and ranges that exclude each other.

Lock order, everywhere in the package, outermost first; a lock further down is never held while
one further up is taken:

    1. Tracker      a request is in flight (never blocks requests, only drains wait for it)
    2. RangeLock    a range of guest bytes is being allocated or read-modified-written
    3. driver lock  a format's tables; never held while guest data moves
    4. leaf locks   a protocol's own bookkeeping (size, zero ladder)

A node's locks are taken before those of its children, since requests run downwards.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from blocklayer.base.errors import Closed


class Tracker:
    """Requests in flight on a node, and the drain that waits for them.

    Entering and leaving are one atomic deque operation each (about 50 ns). Correctness is
    Dekker's: a request first adds itself and then looks for a drain, a drain first raises its
    flag and then looks for requests; one of the two must see the other.

    The inline path uses `inflight` and `drained` directly.
    """

    __slots__ = (
        "_calling_out",
        "_changed",
        "_sections",
        "_waiting",
        "closed",
        "drained",
        "inflight",
    )

    def __init__(self) -> None:
        self.inflight: deque[None] = deque()
        self.drained = 0
        self.closed = False
        self._changed = threading.Condition()
        self._sections = threading.RLock()
        self._waiting = 0
        self._calling_out: set[int] = set()

    def enter(self) -> None:
        """Begin a request; waits while the node is drained. Raises `Closed`."""
        try:
            # The first call in here: an interrupt (Ctrl-C) never finds it undone.
            self.inflight.append(None)
            if not self.drained or threading.get_ident() in self._calling_out:
                return
        except BaseException:
            self.leave()
            raise
        self.leave()
        with self._changed:
            self._waiting += 1
            try:
                while self.drained and not self.closed:
                    self._changed.wait()
                if self.closed:
                    raise Closed("The disk is closed")
            finally:
                self._waiting -= 1
                self._changed.notify_all()
            self.inflight.append(None)  # no drain can begin before: it needs the lock

    def leave(self) -> None:
        """End a request. The order matters: first out, then look for a drain."""
        self.inflight.pop()
        if self.drained:
            self.wake()

    def wake(self) -> None:
        """Tell a drain that a request has ended."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def calling_out(self) -> Iterator[None]:
        """Inside a request that calls somebody else's code: its own requests do not wait.

        A drain waits for the request, so requests that this one makes must not wait for the drain.
        """
        thread = threading.get_ident()
        if thread in self._calling_out:
            yield
            return
        self._calling_out.add(thread)
        try:
            yield
        finally:
            self._calling_out.discard(thread)

    def drain_begin(self) -> None:
        """Stop new requests and wait for those in flight.

        Requests that waited for the last drain come first, else drains in a row would starve them.
        """
        with self._changed:
            while self._waiting and not self.drained:
                self._changed.wait()
            self.drained += 1
            try:
                while self.inflight:
                    self._changed.wait()
            except BaseException:  # an interrupt: nobody will end this drain
                self.drained -= 1
                self._changed.notify_all()
                raise

    def drain_end(self) -> None:
        """Let requests continue."""
        with self._changed:
            self.drained -= 1
            self._changed.notify_all()

    @contextmanager
    def drained_section(self) -> Iterator[None]:
        """No request is in flight inside, and no other such section of another thread.

        The caller must not be inside a request itself. Raises `Closed`.
        """
        with self._sections:
            self.drain_begin()
            try:
                if self.closed:
                    raise Closed("The disk is closed")
                yield
            finally:
                self.drain_end()

    def close(self) -> None:
        """Wait for requests in flight; everything after is refused with `Closed`.

        The drain is never ended, so that the inline path needs no second flag to look at.
        """
        with self._sections:
            self.drain_begin()
            self.closed = True
            self.wake()


class RangeLock:
    """Exclusive ranges of bytes: the only mechanism by which overlapping requests wait.

    First come, first served, so that nobody waits for ever: who comes waits for those who hold
    something that overlaps, and for those who wait for it already. Therefore a thread that holds
    ranges must not acquire others of the same lock.
    """

    __slots__ = ("_changed", "_held", "_waiting")

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: list[tuple[int, int]] = []
        self._waiting: list[list[tuple[int, int]]] = []

    def acquire(self, ranges: list[tuple[int, int]]) -> None:
        """Wait until nobody holds anything that overlaps one of `ranges` (start, end); take all.

        All or nothing, so that two batches cannot wait for each other.
        """
        with self._changed:
            if self._waiting or _overlap(self._held, ranges):
                self._wait(ranges)
            self._held.extend(ranges)

    def _wait(self, ranges: list[tuple[int, int]]) -> None:
        earlier = self._waiting[:]
        self._waiting.append(ranges)
        try:
            while _overlap(self._held, ranges) or any(
                _overlap(other, ranges) and any(other is each for each in self._waiting)
                for other in earlier
            ):
                self._changed.wait()
        finally:
            self._waiting = [other for other in self._waiting if other is not ranges]
            self._changed.notify_all()

    def release(self, ranges: list[tuple[int, int]]) -> None:
        """Give back what `acquire` took."""
        with self._changed:
            for taken in ranges:
                self._held.remove(taken)
            self._changed.notify_all()


def _overlap(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> bool:
    return bool(some) and any(
        start < other_end and other_start < end
        for start, end in some
        for other_start, other_end in others
    )
