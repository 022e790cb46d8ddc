# SPDX-License-Identifier: Apache-2.0
"""Block status: what a range consists of, in each context that the client has negotiated."""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.export.export import Export
from blocklayer.nbd import wire
from blocklayer.nbd.offers import EXTENDED, Choice
from blocklayer.nbd.server_transmission import Item, Replies

EXTENTS_MAX = 16384
"""Descriptors of one context in an answer; the client asks again for what is behind them."""

LOOK_MAX = 65536
"""Runs looked at for one answer, however many of them can be told as one."""

COMPACT_LENGTH_MAX = 0xFFFF_0000
"""Bytes of an extent where lengths have 32 bits."""


class BlockStatus:
    """Answers of one client's export. Thread-safe."""

    def __init__(self, export: Export, choice: Choice, replies: Replies) -> None:
        self._export = export
        self._disk = export.disk
        self._replies = replies
        self._mode = choice.mode
        self._contexts = choice.contexts

    def answer(self, item: Item) -> bytes:
        """The chunks of all contexts that are wanted, or why there are none."""
        _, flags, cookie, offset, length, payload = item
        wanted = dict(self._contexts)
        if payload is not None:
            chosen = self._chosen(payload)
            if chosen is None:
                return self._replies.error(
                    cookie, offset, wire.EINVAL, "block status failed: invalid payload"
                )
            length, numbers = chosen
            wanted = {number: wanted[number] for number in numbers}
        if not wanted or not length:
            why = "length is zero" if wanted else "no metadata context was negotiated"
            return self._replies.error(cookie, offset, wire.EINVAL, f"block status failed: {why}")
        if offset + length > self._disk.size:
            return self._replies.error(
                cookie, offset, wire.EINVAL, "block status failed: beyond the end of the export"
            )
        limit = 1 if flags & wire.CMD_FLAG_REQ_ONE else EXTENTS_MAX
        chunks = []
        for index, (number, context) in enumerate(wanted.items()):
            found = self._merged(self._runs_of(context, offset, length), limit)
            last = index == len(wanted) - 1
            chunks.append(self._replies.status(cookie, offset, number, found, last=last))
        return b"".join(chunks)

    def _chosen(self, payload: memoryview) -> tuple[int, list[int]] | None:
        """(length, context ids) of a request that chooses among its contexts."""
        count, odd = divmod(len(payload) - 8, 4)
        if count < 1 or odd or count > len(self._contexts):
            return None
        (length,) = wire.unpack_numbers(payload[:8], 8)
        numbers = wire.unpack_numbers(payload[8:], 4)
        if len(set(numbers)) < count or not set(numbers) <= self._contexts.keys():
            return None
        return length, numbers

    def _merged(self, runs: Iterator[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
        """Neighbours with the same flags as one, cut where lengths have too few bits."""
        most = 1 << 63 if self._mode == EXTENDED else COMPACT_LENGTH_MAX
        result: list[tuple[int, int]] = []
        for looked, (count, flags) in enumerate(runs):
            length = count
            if result and result[-1][1] == flags and result[-1][0] + length <= most:
                length += result.pop()[0]
            elif len(result) == limit:
                break
            result.append((min(length, most), flags))
            if length > most or looked >= LOOK_MAX:
                break
        return result

    def _runs_of(self, context: str, offset: int, length: int) -> Iterator[tuple[int, int]]:
        if context.startswith(wire.DIRTY_BITMAP_PREFIX):
            name = context.removeprefix(wire.DIRTY_BITMAP_PREFIX)
            bitmap = self._export.bitmap(name)
            if bitmap is None:  # it was removed meanwhile: everything may have changed
                yield length, wire.STATE_DIRTY
                return
            yield from _dirty_runs(bitmap.runs(offset), offset, length)
            return
        depths = context == wire.ALLOCATION_DEPTH
        for rows in self._disk.extent_rows(offset, length):
            for row in rows:
                if depths:
                    yield row[1], row[5] + 1 if row[4] else 0
                else:
                    hole = 0 if row[2] else wire.STATE_HOLE
                    yield row[1], hole | (wire.STATE_ZERO if row[3] else 0)


def _dirty_runs(
    dirty: Iterator[tuple[int, int]], offset: int, length: int
) -> Iterator[tuple[int, int]]:
    """(length, flags) of a range, from the (offset, length) ranges of it that are dirty."""
    position, end = offset, offset + length
    for start, count in dirty:
        first, last = max(start, offset), min(start + count, end)
        if first >= end:
            break
        if last <= position:
            continue
        if first > position:
            yield first - position, 0
        yield last - max(first, position), wire.STATE_DIRTY
        position = last
    if position < end:
        yield end - position, 0
