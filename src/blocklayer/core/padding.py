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
from typing import Any, NamedTuple

from blocklayer.base.align import align_down, align_up
from blocklayer.base.buffers import Vector, aligned_buffer, slice_vector, vector_length
from blocklayer.base.units import MiB
from blocklayer.core.node import Mapped, Node

BOUNCE_SIZE = MiB
"""Bytes of aligned memory a thread owns; larger requests are moved in pieces of it."""


class Padding(NamedTuple):
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
    """One aligned buffer a thread."""

    def __init__(self) -> None:
        self.view = memoryview(aligned_buffer(BOUNCE_SIZE))


_bounce = _Bounce()


class Padded(Node):
    """Gives byte granularity to a child with `request_alignment`, by read-modify-write.

    Writes hold the range lock of their blocks: two requests that share a block must not both read
    it before either writes it.
    """

    driver = "padded"

    def __init__(self, child: Node) -> None:
        super().__init__(child.filename, read_only=child.read_only)
        self._child = child
        self._alignment = child.limits.request_alignment
        self.limits.opt_transfer = self._alignment
        self.attach(file=child)

    @property
    def size(self) -> int:  # type: ignore[override]
        """Bytes, as the child has them: not necessarily whole blocks."""
        return self._child.size

    @property
    def grows_zeroed(self) -> bool:
        """As the child."""
        return self._child.grows_zeroed

    def map(self, offset: int, length: int) -> Mapped:
        """The same bytes, one node further down."""
        return 1, length, self._child, offset

    def readv(self, offset: int, vector: Vector) -> None:
        """Read whole blocks into aligned memory and copy out what was asked for."""
        length = vector_length(vector)
        done = 0
        while done < length:
            padding = self._piece(offset + done, length - done)
            memory = _bounce.view[: padding.length]
            self._child.readv(padding.start, [memory])
            count = padding.length - padding.head - padding.tail
            _scatter(memory[padding.head : padding.head + count], slice_vector(vector, done, count))
            done += count

    def writev(self, offset: int, vector: Vector) -> None:
        """Write whole blocks; the parts of blocks that the request leaves alone are read first."""
        length = vector_length(vector)
        whole = pad(offset, length, self._alignment)
        locked = [(whole.start, whole.start + whole.length)]
        self.ranges.acquire(locked)
        try:
            size = self._child.size
            done = 0
            while done < length:
                padding = self._piece(offset + done, length - done)
                count = padding.length - padding.head - padding.tail
                self._write_piece(padding, slice_vector(vector, done, count))
                done += count
            self._cut_growth(max(size, offset + length))
        finally:
            self.ranges.release(locked)

    def _write_piece(self, padding: Padding, vector: Vector) -> None:
        memory = _bounce.view[: padding.length]
        block = self._alignment
        if padding.head:
            self._child.readv(padding.start, [memory[:block]])
        if padding.tail and (padding.length > block or not padding.head):
            last = padding.length - block
            self._child.readv(padding.start + last, [memory[last:]])
        _gather(vector, memory[padding.head : padding.length - padding.tail])
        self._child.writev(padding.start, [memory])

    def _cut_growth(self, size: int) -> None:
        """A padded write behind the end of a file made the file longer than anyone asked."""
        if self._child.size > size and self._child.grows_zeroed:
            self._child.truncate(size)

    def _piece(self, offset: int, length: int) -> Padding:
        limit = BOUNCE_SIZE - offset % self._alignment
        return pad(offset, min(length, limit), self._alignment)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Whole blocks by the child's means; the ends are written."""
        start = align_up(offset, self._alignment)
        end = align_down(offset + length, self._alignment)
        if start >= end:
            self.writev(offset, [memoryview(bytes(length))])
            return
        self._child.zero(start, end - start, flags)
        if offset < start:
            self.writev(offset, [memoryview(bytes(start - offset))])
        if end < offset + length:
            self.writev(end, [memoryview(bytes(offset + length - end))])

    def discard(self, offset: int, length: int) -> None:
        """Whole blocks only."""
        start = align_up(offset, self._alignment)
        end = align_down(offset + length, self._alignment)
        if start < end:
            self._child.discard(start, end - start)

    def flush(self) -> None:
        """Flush the child."""
        self._child.flush()

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Resize the child."""
        self._child.truncate(size, preallocation)

    def info(self) -> dict[str, Any]:
        """As the child."""
        return self._child.info()


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
