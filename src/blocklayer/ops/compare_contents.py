# SPDX-License-Identifier: Apache-2.0
"""The bytes of two disks, or of parts of them, side by side, in the order of the guest.

another thread   extents of both -> loads; reads the second disk     ─┐  as many as buffers
caller's thread  reads the first disk, compares                      ─┘
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from blocklayer.base.align import align_down
from blocklayer.base.extent import Extent
from blocklayer.base.progress import Reporter
from blocklayer.base.queues import Empty, SimpleQueue
from blocklayer.base.units import SECTOR, MiB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from blocklayer.ops.digest import Source

    class HasExtents(Protocol):
        """What can be walked side by side."""

        def extents(self, offset: int, length: int) -> Iterator[Extent]:
            """Those of a range, in order."""


PIECE = 2 * MiB
BUFFERS = 4
LOADS_ALONE = 2
"""Buffers that one thread fills and compares before another one reads ahead: starting a thread for
a small image costs more than it saves."""

STEP_SECONDS = 0.1
"""Longest wait until it is noticed that somebody wants to stop."""

ZEROES_MAX = 64
"""Extents of zeroes for which data that is to be compared waits for more."""

CONTENT, STATUS = "content", "status"


class _Load:
    """Parts of the disks on their way to be compared, in ascending order.

    runs      (offset, length, start in the buffer); neighbours are one run
    zero      bytes of the guest before the end of this that are zero in both disks
    mismatch  where allocation differs behind all of these, or None
    """

    __slots__ = ("buffer", "filled", "mismatch", "runs", "zero")

    def __init__(self) -> None:
        self.buffer: bytearray | None = None
        self.filled = 0
        self.runs: list[tuple[int, int, int]] = []
        self.zero = 0
        self.mismatch: int | None = None

    def add(self, offset: int, length: int) -> None:
        """Room for bytes that have to be compared."""
        if self.runs and sum(self.runs[-1][:2]) == offset:
            start, before, place = self.runs.pop()
            self.runs.append((start, before + length, place))
        else:
            self.runs.append((offset, length, self.filled))
        self.filled += length


def compare_contents(
    one: Source, two: Source, length: int, reporter: Reporter, *, strict: bool
) -> tuple[int | None, str | None]:
    """(offset, kind) of the first difference in the first `length` bytes; None if there is none."""
    return _Comparison(one, two, length, reporter, strict=strict).run()


class _Comparison:
    def __init__(
        self, one: Source, two: Source, length: int, reporter: Reporter, *, strict: bool
    ) -> None:
        self._one = one
        self._two = two
        self._length = length
        self._strict = strict
        self._reporter = reporter
        self._stop = threading.Event()
        self._ours = bytearray()  # what the first disk has
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        self._ready: SimpleQueue[_Load | BaseException | None] = SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(bytearray())  # made when it is needed, as large as it has to be

    def run(self) -> tuple[int | None, str | None]:
        loads = self._filled_loads()
        for _ in range(LOADS_ALONE):
            load = next(loads, None)
            if load is None:
                return None, None
            found = self._compare(load)
            if found is not None:
                return found
        reader = threading.Thread(
            target=self._read_all, args=(loads,), name="blocklayer-compare", daemon=True
        )
        reader.start()
        try:
            for load in self._handed_over():
                found = self._compare(load)
                if found is not None:
                    return found
            return None, None
        finally:
            self._stop.set()
            reader.join()

    # --- the caller's thread --------------------------------------------------------------------

    def _compare(self, load: _Load) -> tuple[int, str] | None:
        """Where the disks differ in a load, and how; None if they do not."""
        if load.buffer is not None:
            if len(self._ours) < load.filled:
                self._ours = bytearray(load.filled)
            view = memoryview(self._ours)
            for offset, length, start in load.runs:
                self._one.read_into(offset, view[start : start + length])
            if not load.buffer.startswith(view[: load.filled]):
                return _where(load, self._ours), CONTENT
            self._free.put(load.buffer)
        self._reporter.advance(load.filled + load.zero, zero=load.zero)
        return None if load.mismatch is None else (load.mismatch, STATUS)

    def _handed_over(self) -> Iterator[_Load]:
        """What the other thread has read."""
        while (load := self._next()) is not None:
            if isinstance(load, BaseException):
                raise load
            yield load

    def _next(self) -> _Load | BaseException | None:
        while True:
            try:
                return self._ready.get(timeout=STEP_SECONDS)
            except Empty:
                self._reporter.check()

    # --- the other thread -----------------------------------------------------------------------

    def _read_all(self, loads: Iterator[_Load]) -> None:
        try:
            for load in loads:
                self._ready.put(load)
            self._ready.put(None)
        except _Stopped:
            return
        except BaseException as error:
            self._ready.put(error)

    def _filled_loads(self) -> Iterator[_Load]:
        """Loads with what the second disk has."""
        for load in self._loads():
            if self._stop.is_set():
                raise _Stopped
            if load.filled:
                load.buffer = self._next_buffer(load.filled)
                view = memoryview(load.buffer)
                for offset, length, start in load.runs:
                    self._two.read_into(offset, view[start : start + length])
            yield load

    def _next_buffer(self, size: int) -> bytearray:
        while not self._stop.is_set():
            try:
                buffer = self._free.get(timeout=STEP_SECONDS)
                return buffer if len(buffer) >= size else bytearray(size)
            except Empty:
                continue
        raise _Stopped

    def _loads(self) -> Iterator[_Load]:
        load = _Load()
        zeroes = 0
        for left, right in zip_extents(self._one, self._two, self._length):
            if self._stop.is_set():
                raise _Stopped
            if self._strict and _status(left) != _status(right):
                load.mismatch = left.offset
                break
            if left.zero and right.zero:
                # More and more of them: the walk may have taken long already.
                if (load.zero and not load.filled) or zeroes >= ZEROES_MAX:
                    yield load
                    load, zeroes = _Load(), 0
                load.zero += left.length
                zeroes += 1
                continue
            position = left.offset
            while position < left.end:
                if load.filled == PIECE:
                    yield load
                    load, zeroes = _Load(), 0
                # Cut at multiples of PIECE, so that clusters stay whole.
                count = min(left.end, align_down(position, PIECE) + PIECE) - position
                count = min(count, PIECE - load.filled)
                load.add(position, count)
                position += count
        yield load


class _Stopped(Exception):
    """Nobody wants to know any more."""


def _where(load: _Load, ours: bytearray) -> int:
    """The offset of the first difference in a load that has one."""
    assert load.buffer is not None
    for offset, length, start in load.runs:
        left, right = (
            bytes(ours[start : start + length]),
            bytes(load.buffer[start : start + length]),
        )
        if left != right:
            return offset + first_difference(left, right)
    raise AssertionError("a load that differs has a run that does")


def _status(extent: Extent) -> tuple[bool, bool, bool]:
    return extent.data, extent.zero, extent.present


def zip_extents(one: HasExtents, two: HasExtents, length: int) -> Iterator[tuple[Extent, Extent]]:
    """Extents of both disks, cut so that each pair covers the same range."""
    lefts, rights = one.extents(0, length), two.extents(0, length)
    left, right = next(lefts, None), next(rights, None)
    while left is not None and right is not None:
        end = min(left.end, right.end)
        yield _until(left, end), _until(right, end)
        left = _from(left, end) if end < left.end else next(lefts, None)
        right = _from(right, end) if end < right.end else next(rights, None)


def _until(extent: Extent, end: int) -> Extent:
    return extent.part(extent.offset, end - extent.offset)


def _from(extent: Extent, start: int) -> Extent:
    return extent.part(start, extent.end - start)


def first_difference(ours: bytes, theirs: bytes) -> int:
    """The first sector that differs, as an offset in bytes."""
    low, high = 0, len(ours)
    while high - low > SECTOR:
        middle = align_down((low + high) // 2 + SECTOR - 1, SECTOR)
        if middle >= high or middle <= low:
            break
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle
    return align_down(low, SECTOR)
