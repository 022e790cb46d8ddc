# SPDX-License-Identifier: Apache-2.0
"""Batches of requests: sorted, merged, submitted together, each with its own result.

The merger is pure: it takes writes in the order of their submission and gives disjoint runs in
ascending order. Where writes overlap, the one submitted later wins, byte by byte.

    submitted   1 [=======]      2     [=======]     3              [====]
    parts       1 [===]          2     [=======]     3              [====]
    runs        [============]                                      [====]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from blocklayer.base.buffers import Buffer, Vector, byte_view
from blocklayer.base.errors import BlocklayerError, InvalidArgument

READ = "read"
WRITE = "write"
WRITE_ZEROES = "write_zeroes"
DISCARD = "discard"
FLUSH = "flush"


PHASE_MAX = 1024
"""Requests looked at together: bounds the search for conflicts between kinds."""

RUN_PARTS_MAX = 1024
"""Parts of one merged run: as many as one system call takes, and cutting a run up stays cheap."""


class Request:
    """One request of a batch, and after `Disk.submit` what became of it.

    `data` is what a write writes; for a read it may be a writable buffer to fill, and `result` has
    the bytes otherwise. `error` is None if the request is done.
    """

    __slots__ = (
        "data",
        "error",
        "fua",
        "kind",
        "length",
        "no_fallback",
        "offset",
        "result",
        "unmap",
        "view",
    )

    def __init__(
        self,
        kind: str,
        offset: int = 0,
        length: int = 0,
        data: Buffer = None,
        fua: bool = False,
        unmap: bool = False,
        no_fallback: bool = False,
        view: memoryview | None = None,
    ) -> None:
        self.kind = kind
        self.offset = offset
        self.length = length
        self.data = data
        self.fua = fua
        self.unmap = unmap
        self.no_fallback = no_fallback
        self.view = view
        self.result: bytes | None = None
        self.error: BlocklayerError | None = None

    def __repr__(self) -> str:
        state = "" if self.error is None else f", error={self.error!r}"
        return f"<Request {self.kind} {self.length} bytes at {self.offset}{state}>"

    @classmethod
    def read(cls, offset: int, length: int) -> Request:
        """Read `length` bytes; they are in `result` afterwards."""
        return cls(READ, offset, length)

    @classmethod
    def read_into(cls, offset: int, buffer: Buffer) -> Request:
        """Fill a writable buffer."""
        view = byte_view(buffer)
        if view.readonly:
            raise InvalidArgument("read_into needs a writable buffer")
        return cls(READ, offset, len(view), buffer, view=view)

    @classmethod
    def write(cls, offset: int, data: Buffer, *, fua: bool = False) -> Request:
        """Write all of `data`, which must not change before the batch is done."""
        view = byte_view(data)
        return cls(WRITE, offset, len(view), data, fua, view=view)

    @classmethod
    def write_zeroes(
        cls,
        offset: int,
        length: int,
        *,
        unmap: bool = False,
        no_fallback: bool = False,
        fua: bool = False,
    ) -> Request:
        """Make a range read as zeroes."""
        return cls(WRITE_ZEROES, offset, length, None, fua, unmap, no_fallback)

    @classmethod
    def discard(cls, offset: int, length: int) -> Request:
        """Tell that nobody needs a range."""
        return cls(DISCARD, offset, length)

    @classmethod
    def flush(cls) -> Request:
        """Make durable what was submitted before."""
        return cls(FLUSH)

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.offset + self.length


class MergedRun:
    """Neighbouring writes as one: where, what, and which writes (by index) have a part in it."""

    __slots__ = ("length", "offset", "owners", "vector")

    def __init__(self, offset: int, vector: Vector, owners: list[int], length: int) -> None:
        self.offset = offset
        self.vector = vector
        self.owners = owners
        self.length = length


Part = tuple[int, memoryview, int]
"""(offset, bytes, index of the write they come from)"""


def merge_writes(writes: Sequence[tuple[int, memoryview]]) -> list[MergedRun]:
    """Disjoint runs in ascending order that have the same effect as `writes` one after another."""
    runs: list[MergedRun] = []
    end = -1
    for offset, view, index in _disjoint(writes):
        size = len(view)
        if offset == end and len(runs[-1].vector) < RUN_PARTS_MAX:
            run = runs[-1]
            run.vector.append(view)
            run.owners.append(index)
            run.length += size
        else:
            runs.append(MergedRun(offset, [view], [index], size))
        end = offset + size
    return runs


def _disjoint(writes: Sequence[tuple[int, memoryview]]) -> list[Part]:
    """The parts of writes that nothing later overwrites, in ascending order."""
    parts = [(offset, view, index) for index, (offset, view) in enumerate(writes) if len(view)]
    parts.sort(key=_offset_of)
    if not any(one[0] + len(one[1]) > two[0] for one, two in pairwise(parts)):
        return parts
    result: list[Part] = []
    taken = _Taken()
    for index in range(len(writes) - 1, -1, -1):
        offset, view = writes[index]
        for start, end in taken.claim(offset, offset + len(view)):
            result.append((start, view[start - offset : end - offset], index))
    result.sort(key=_offset_of)
    return result


def _offset_of(part: Part) -> int:
    return part[0]


class _Taken:
    """Ranges that later writes have claimed: disjoint and ascending."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def claim(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of a range that were free; all of it is taken afterwards."""
        from bisect import bisect_left  # costs start-up time; writes seldom overlap

        first = bisect_left(self._ends, start)
        last = first
        free = []
        position = start
        while last < len(self._starts) and self._starts[last] <= end:
            if position < self._starts[last]:
                free.append((position, self._starts[last]))
            position = max(position, self._ends[last])
            last += 1
        if position < end:
            free.append((position, end))
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        return free


def phases(requests: Sequence[Request]) -> list[list[Request]]:
    """Cut a batch where order matters, so that it has the effect of its order of submission.

    Within a phase, requests of different kinds do not touch the same bytes.
    """
    result: list[list[Request]] = []
    current: list[Request] = []
    for request in requests:
        if current and (
            request.kind == FLUSH
            or len(current) >= PHASE_MAX
            or current[-1].kind == FLUSH
            or any(_conflict(request, other) for other in _others(request, current))
        ):
            result.append(current)
            current = []
        current.append(request)
    if current:
        result.append(current)
    return result


def _others(request: Request, current: list[Request]) -> list[Request]:
    """Requests of another kind; none in the usual batch of one kind."""
    kind = request.kind
    return [other for other in current if other.kind != kind]


def _conflict(one: Request, two: Request) -> bool:
    return one.offset < two.end and two.offset < one.end
