# SPDX-License-Identifier: Apache-2.0
"""Alignment: any request at any offset, on storage that takes only aligned ones.

    blocks    |           |           |           |           |
    request          [=======================]
    head       ......                              bytes of the first block before the request
    tail                                     ....  bytes of the last block behind it
    padded    [...... ======================= ....]

`Padded` stands in the graph directly above such storage, so that nothing else ever thinks about
alignment and storage without it pays nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from blocklayer.base.align import align_down, align_up
from blocklayer.base.buffers import (
    Vector,
    aligned_buffer,
    slice_vector,
    vector_length,
    zero_vector,
)
from blocklayer.base.errors import NotSupported
from blocklayer.base.record import Record
from blocklayer.base.units import INT64_MAX, MiB
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import NO_FALLBACK, Node

BOUNCE_SIZE = MiB
"""Bytes of aligned memory a thread owns; larger requests are moved in pieces of it."""


class Padding(Record, frozen=True):
    """A request widened to whole blocks; bytes."""

    start: int
    length: int
    head: int
    tail: int


def pad(offset: int, length: int, alignment: int) -> Padding:
    """Widen a request to whole blocks of `alignment`."""
    start = align_down(offset, alignment)
    end = align_up(offset + length, alignment)
    return Padding(start, end - start, offset - start, end - offset - length)


class _Bounce(threading.local):
    """One aligned buffer a thread. Each node has its own: a stack of filters may pad twice."""

    def __init__(self, size: int) -> None:
        self.view = memoryview(aligned_buffer(size))


class Padded(FilterNode):
    """Gives byte granularity to a child with `request_alignment`, by read-modify-write.

    What changes blocks holds their range lock: two requests that share a block must not both read
    it before either writes it. What changes the size excludes everything behind it as well, since
    padding makes a file longer than anybody asked, and is cut off again.
    """

    def __init__(self, child: Node) -> None:
        super().__init__(child)
        self.driver = child.driver  # nobody has asked for this node
        self._alignment = child.limits.request_alignment
        limit = child.limits.max_transfer or BOUNCE_SIZE
        self._piece_max = max(min(BOUNCE_SIZE, align_down(limit, self._alignment)), self._alignment)
        self._bounce = _Bounce(max(BOUNCE_SIZE, self._alignment))
        self.limits.opt_transfer = max(self.limits.opt_transfer, self._alignment)

    # --- reading --------------------------------------------------------------------------------

    def readv(self, offset: int, vector: Vector) -> None:
        """Read whole blocks into aligned memory and copy out what was asked for."""
        length = vector_length(vector)
        done = 0
        while done < length:
            padding = self._piece(offset + done, length - done)
            memory = self._bounce.view[: padding.length]
            self.child.readv(padding.start, [memory])
            count = padding.length - padding.head - padding.tail
            _scatter(memory[padding.head : padding.head + count], slice_vector(vector, done, count))
            done += count

    def _piece(self, offset: int, length: int) -> Padding:
        limit = self._piece_max - offset % self._alignment
        return pad(offset, min(length, limit), self._alignment)

    # --- writing --------------------------------------------------------------------------------

    def writev(self, offset: int, vector: Vector) -> None:
        """Write whole blocks; the parts of blocks that the request leaves alone are read first."""
        whole = pad(offset, vector_length(vector), self._alignment)
        end = whole.start + whole.length
        self._exclusively(whole.start, end, lambda: self._write_padded(offset, vector, end))

    def _write_padded(self, offset: int, vector: Vector, end: int) -> None:
        length = vector_length(vector)
        size = self.child.size
        done = 0
        while done < length:
            padding = self._piece(offset + done, length - done)
            count = padding.length - padding.head - padding.tail
            self._write_piece(padding, slice_vector(vector, done, count))
            done += count
        wanted = max(size, offset + length)
        if end > wanted:
            self._cut_growth(wanted)

    def _exclusively(self, start: int, end: int, action: Callable[[], None]) -> None:
        """Act on blocks alone, and on everything behind them if they reach behind the end."""

        def act(grows: bool) -> bool:
            # The file may have been longer for a moment, by the padding of somebody else's write.
            if not grows and end > self.child.size:
                return False
            action()
            return True

        done = False
        while not done:
            grows = end > self.child.size
            done = self.ranges.run([(start, INT64_MAX if grows else end)], act, grows)

    def _write_piece(self, padding: Padding, vector: Vector) -> None:
        memory = self._bounce.view[: padding.length]
        block = self._alignment
        if padding.head:
            self._fill_block("head", padding.start, memory[:block])
        if padding.tail and (padding.length > block or not padding.head):
            last = padding.length - block
            self._fill_block("tail", padding.start + last, memory[last:])
        _gather(vector, memory[padding.head : padding.length - padding.tail])
        self.child.writev(padding.start, [memory])

    def _fill_block(self, which: str, offset: int, memory: memoryview) -> None:
        """Read a block of which the request changes a part."""
        self._announce(f"pwritev_rmw_{which}", offset)
        self.child.readv(offset, [memory])
        self._announce(f"pwritev_rmw_after_{which}", offset)

    def _announce(self, event: str, offset: int) -> None:
        if self.sink is not None:
            self.sink(self, event, {"offset": offset, "length": self._alignment})

    def _cut_growth(self, size: int) -> None:
        """A padded write behind the end of a file made the file longer than anyone asked."""
        if self.child.size > size and self.child.grows_zeroed:
            self.child.truncate(size)

    # --- zeroing and the rest -------------------------------------------------------------------

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Whole blocks by the child's means; the ends are written."""
        if flags & NO_FALLBACK:
            self._require_blocks(offset, length)
        start = align_up(offset, self._alignment)
        end = align_down(offset + length, self._alignment)
        if start >= end:
            self.writev(offset, zero_vector(length))
            return
        self._exclusively(start, end, lambda: self.child.zero(start, end - start, flags))
        if offset < start:
            self.writev(offset, zero_vector(start - offset))
        if end < offset + length:
            self.writev(end, zero_vector(offset + length - end))

    def check_zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Whole blocks, and as the child."""
        self._require_blocks(offset, length)
        self.child.check_zero(offset, length, flags)

    def _require_blocks(self, offset: int, length: int) -> None:
        if offset % self._alignment or (offset + length) % self._alignment:
            raise NotSupported("Zeroing a part of a block means writing it")

    def discard(self, offset: int, length: int) -> None:
        """Whole blocks only."""
        start = align_up(offset, self._alignment)
        end = align_down(offset + length, self._alignment)
        if start < end:
            self._exclusively(start, end, lambda: self.child.discard(start, end - start))

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Resize the child."""
        start = min(size, self.child.size)
        self._exclusively(start, INT64_MAX, lambda: self.child.truncate(size, preallocation))


def _scatter(source: memoryview, vector: Vector) -> None:
    done = 0
    for view in vector:
        view[:] = source[done : done + len(view)]
        done += len(view)


def _gather(vector: Vector, target: memoryview) -> None:
    done = 0
    for view in vector:
        target[done : done + len(view)] = view
        done += len(view)
