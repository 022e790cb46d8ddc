# SPDX-License-Identifier: Apache-2.0
"""Who is at work on a node: requests in flight, and ranges that exclude each other.

Lock order, everywhere in the package, outermost first; a lock further down is never held while
one further up is taken:

    1. Tracker      a request is in flight (never blocks requests, only drains wait for it)
    2. RangeLock    a range of guest bytes is being allocated or read-modified-written
    3. driver lock  a format's tables; never held while guest data moves
    4. leaf locks   a protocol's own bookkeeping (size, zero ladder)

A node's locks are taken before those of its children, since requests run downwards.

An interrupt (Ctrl-C) may come between any two steps of the main thread, and must leave nothing
taken. Calls of Python functions can be interrupted before their first step; single operations of
built-in types cannot. So whoever takes something is noted under a token in a set or dictionary,
inside a `try` whose `finally` begins with removing the token; and who waits holds no lock meanwhile
(as a `threading.Condition` would), and looks again from time to time, since the one who should have
woken him may have been interrupted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blocklayer.base.errors import Closed

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias, TypeVar

    T = TypeVar("T")

Ranges: TypeAlias = "list[tuple[int, int]]"

LOOK_AGAIN_SECONDS = 0.2
"""For how long the worst of interrupts delays somebody else."""


class Retired(Exception):
    """The node's users have moved on, and wait elsewhere: ask for their tracker again.

    Whoever waits for a tracker of a node that can be replaced (`Disk.switch`) catches this.
    """


class _Bell:
    """Wakes all who wait."""

    __slots__ = ("_sleepers",)

    def __init__(self) -> None:
        self._sleepers: dict[object, threading.Lock] = {}

    def wait_until(self, token: object, attempt: Callable[[], bool]) -> None:
        """Call `attempt` until it succeeds, again whenever the bell rings."""
        sleeper = threading.Lock()
        sleeper.acquire()
        try:
            self._sleepers[token] = sleeper  # before the attempt: no ring is missed
            while not attempt():
                sleeper.acquire(timeout=LOOK_AGAIN_SECONDS)
        finally:
            self._sleepers.pop(token, None)

    def ring(self) -> None:
        """Something has changed."""
        for sleeper in list(self._sleepers.values()):
            try:
                sleeper.release()
            except RuntimeError:
                continue  # it has been woken, and has not looked yet


class Tracker:
    """Requests in flight on a node, and the drain that waits for them.

    Correctness is Dekker's: a request first adds itself and then looks for a drain, a drain first
    adds itself and then looks for requests; one of the two must see the other.

    The inline path counts itself in `inflight` instead of using `run`, which is faster (50 ns).
    """

    __slots__ = (
        "_bell",
        "_calling_out",
        "_lock",
        "_sections",
        "_waiting",
        "closed",
        "drained",
        "inflight",
        "requests",
        "retired",
    )

    def __init__(self) -> None:
        self.requests: set[object] = set()
        self.inflight: deque[None] = deque()
        self.drained: set[object] = set()
        """Drains that have begun."""
        self.closed = False
        self.retired = False
        self._lock = threading.Lock()
        self._bell = _Bell()
        self._sections = threading.RLock()
        self._waiting: set[object] = set()
        self._calling_out: set[int] = set()

    def run(self, action: Callable[..., T], *arguments: object) -> T:
        """Call `action` as a request: waits while the node is drained. Raises `Closed`."""
        token = object()
        try:
            self.enter(token)
            return action(*arguments)
        finally:
            self.requests.discard(token)
            if self.drained:
                self.wake()

    def enter(self, token: object) -> None:
        """Begin a request; waits while the node is drained. Raises `Closed`.

        Whoever calls this removes the token from `requests`, as `run` does.
        """
        self.requests.add(token)
        if not self.drained or threading.get_ident() in self._calling_out:
            return
        self.requests.discard(token)
        self.wake()

        def enter() -> bool:
            with self._lock:
                self._require_life()
                if self.drained:
                    return False
                self.requests.add(token)  # no drain can begin before: it needs the lock
                return True

        try:
            self._waiting.add(token)
            self._bell.wait_until(token, enter)
        finally:
            self._waiting.discard(token)
            self.wake()

    def wake(self) -> None:
        """Tell those who wait that something has changed."""
        self._bell.ring()

    @contextmanager
    def calling_out(self) -> Iterator[None]:
        """Inside a request that calls somebody else's code: its own requests do not wait.

        A drain waits for the request, so requests that this one makes must not wait for the drain.
        """
        thread = threading.get_ident()
        if thread in self._calling_out:
            yield
            return
        try:
            self._calling_out.add(thread)
            yield
        finally:
            self._calling_out.discard(thread)

    def drain_begin(self, token: object) -> None:
        """Stop new requests and wait for those in flight.

        Requests that waited for the last drain come first, else drains in a row would starve them.
        """

        def begin() -> bool:
            with self._lock:
                if self._waiting and not self.drained:
                    return False
                self.drained.add(token)
                return True

        self._bell.wait_until(token, begin)
        self._bell.wait_until(token, lambda: not self.inflight and not self.requests)

    @contextmanager
    def drained_section(self) -> Iterator[None]:
        """No request is in flight inside, and no other such section of another thread.

        The caller must not be inside a request itself. Raises `Closed`.
        """
        token = object()
        with self._sections:
            try:
                self.drain_begin(token)
                self._require_life()
                yield
            finally:
                self.drained.discard(token)
                self.wake()

    def _require_life(self) -> None:
        if self.closed:
            raise Closed("The disk is closed")
        if self.retired:
            raise Retired

    def retire(self) -> None:
        """Inside a drained section: the disks have another tracker now. Nothing enters any more.

        Who waits is sent to look for it; the drain is never ended, so the inline path stays shut.
        """
        self.retired = True
        self.drained.add("retired")
        self.wake()

    def close(self) -> None:
        """Wait for requests in flight; everything after is refused with `Closed`.

        The drain is never ended, so that the inline path needs no second flag to look at.
        """
        token = object()
        with self._sections:
            try:
                self.drain_begin(token)
                self.closed = True
            finally:
                if not self.closed:
                    self.drained.discard(token)
                self.wake()


class RangeLock:
    """Exclusive ranges of bytes: the only mechanism by which overlapping requests wait.

    First come, first served, so that nobody waits for ever: who comes waits for those who hold
    something that overlaps, and for those who wait for it already. Therefore a thread that holds
    ranges must not ask for others of the same lock.
    """

    __slots__ = ("_bell", "_held", "_lock", "_waiting")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bell = _Bell()
        self._held: dict[object, Ranges] = {}
        self._waiting: dict[object, Ranges] = {}

    def run(self, ranges: Ranges, action: Callable[..., T], *arguments: object) -> T:
        """Call `action` with `ranges` (start, end) for oneself, when nobody holds what overlaps.

        All or nothing, so that two batches cannot wait for each other.
        """
        token = object()
        try:
            self.acquire(token, ranges)
            return action(*arguments)
        finally:
            self._held.pop(token, None)
            if self._waiting:
                self._bell.ring()

    def acquire(self, token: object, ranges: Ranges) -> None:
        """Wait for `ranges` and hold them under a token. `run` is safer."""
        try:
            with self._lock:
                if not self._waiting and not _overlap(list(self._held.values()), ranges):
                    self._held[token] = ranges
                    return
                earlier = dict(self._waiting)
                self._waiting[token] = ranges
            self._bell.wait_until(token, lambda: self._take(token, ranges, earlier))
        finally:
            if self._waiting.pop(token, None) is not None:
                self._bell.ring()

    def _take(self, token: object, ranges: Ranges, earlier: dict[object, Ranges]) -> bool:
        with self._lock:
            if _overlap(list(self._held.values()), ranges) or any(
                other in self._waiting and _overlap([theirs], ranges)
                for other, theirs in earlier.items()
            ):
                return False
            self._held[token] = ranges
            return True

    def release(self, token: object) -> None:
        """Give back what `acquire` took."""
        self._held.pop(token, None)
        self._bell.ring()


def _overlap(held: list[Ranges], wanted: Ranges) -> bool:
    return any(
        start < other_end and other_start < end
        for ranges in held
        for start, end in ranges
        for other_start, other_end in wanted
    )
