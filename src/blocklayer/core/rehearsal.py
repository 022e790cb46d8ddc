# SPDX-License-Identifier: Apache-2.0
"""Storage that is changed in memory only: what a repair would do can be tried, and looked at.

Reads see what was written before; the file below stays as it is. What is copied from one place to
another is remembered by its place, so that memory holds tables, and no guest's data, however much
would be moved.
"""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.base.buffers import Vector
from blocklayer.base.extent import DATA, ZERO
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Mapped, Node

PAGE = 4096
"""Bytes of a page: what is written is kept in these."""

STEPS_MAX = 4096
"""Units looked at for one answer about block status."""

_ZERO = -1


class Rehearsal(FilterNode):
    """Stands where a format has its file; `unit` is the format's cluster size.

    A unit has a source: its own place below, another one's, or zeroes. Pages that were written lie
    above that.
    """

    driver = "rehearsal"

    def __init__(self, child: Node, unit: int) -> None:
        super().__init__(child)
        self.read_only = False
        self.copied = 0
        self._unit = unit
        self._size = self._limit = child.size
        self._sources: dict[int, int] = {}
        self._pages: dict[int, dict[int, bytearray]] = {}

    @property
    def size(self) -> int:  # type: ignore[override]
        """As it would be."""
        return self._size

    def close(self) -> None:
        """The storage below belongs to whoever opened it."""
        self.tracker.close()

    def reopen(self, read_only: bool) -> None:
        """Nothing below changes."""
        self.read_only = read_only

    # --- reading --------------------------------------------------------------------------------

    def readv(self, offset: int, vector: Vector) -> None:
        """What is below, with what was changed over it."""
        for unit, within, part in self._parts(offset, vector):
            self._read_source(unit, within, part)
            for number, page in self._pages.get(unit, {}).items():
                start = max(number * PAGE, within)
                end = min((number + 1) * PAGE, within + len(part))
                if start < end:
                    part[start - within : end - within] = page[
                        start - number * PAGE : end - number * PAGE
                    ]

    def _read_source(self, unit: int, within: int, part: memoryview) -> None:
        source = self._source(unit)
        inside = 0
        if source != _ZERO:
            place = source * self._unit + within
            inside = max(0, min(len(part), self._limit_of(unit) - place))
            if inside:
                self.child.readv(place, [part[:inside]])
        part[inside:] = bytes(len(part) - inside)

    def _source(self, unit: int) -> int:
        return self._sources.get(unit, unit)

    def _limit_of(self, unit: int) -> int:
        """Where what is below ends: cut off is gone, but not what was copied before."""
        return self.child.size if unit in self._sources else self._limit

    def _parts(self, offset: int, vector: Vector) -> Iterator[tuple[int, int, memoryview]]:
        """A vector, cut at units: (unit, offset in it, bytes)."""
        for view in vector:
            done = 0
            while done < len(view):
                unit, within = divmod(offset, self._unit)
                count = min(self._unit - within, len(view) - done)
                yield unit, within, view[done : done + count]
                done += count
                offset += count

    def map(self, offset: int, length: int) -> Mapped:
        """Zeroes, or data: here, or below."""
        unit, within = divmod(offset, self._unit)
        rest = min(length, self._unit - within)
        if unit in self._pages:
            return DATA, rest, None, offset
        source = self._source(unit)
        place = source * self._unit + within
        limit = self._limit_of(unit)
        if source == _ZERO or place >= limit:
            return ZERO, rest, None, 0
        if unit in self._sources:
            return DATA, min(rest, limit - place), self.child, place
        for step in range(1, STEPS_MAX):
            if rest >= length or unit + step in self._pages or unit + step in self._sources:
                break
            rest += self._unit
        return DATA, min(rest, length, limit - place), self.child, place

    # --- changing -------------------------------------------------------------------------------

    def writev(self, offset: int, vector: Vector) -> None:
        """Keep what is written."""
        for unit, within, part in self._parts(offset, vector):
            self._write(unit, within, part)
            offset += len(part)
        self._size = max(self._size, offset)

    def _write(self, unit: int, within: int, part: memoryview) -> None:
        done = 0
        while done < len(part):
            number, start = divmod(within + done, PAGE)
            count = min(PAGE - start, len(part) - done)
            page = self._page(unit, number)
            page[start : start + count] = part[done : done + count]
            done += count

    def _page(self, unit: int, number: int) -> bytearray:
        pages = self._pages.setdefault(unit, {})
        if number not in pages:
            page = bytearray(PAGE)
            self._read_source(unit, number * PAGE, memoryview(page))
            pages[number] = page
        return pages[number]

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Whole units have no source any more; parts are written."""
        end = offset + length
        position = offset
        while position < end:
            unit, within = divmod(position, self._unit)
            count = min(self._unit - within, end - position)
            if count == self._unit:
                self._replace(unit, _ZERO)
            else:
                self._write(unit, within, memoryview(bytes(count)))
            position += count
        self._size = max(self._size, end)

    def _replace(self, unit: int, source: int) -> None:
        self._sources[unit] = source
        self._pages.pop(unit, None)

    def copy_within(self, source: int, target: int, length: int) -> None:
        """Copy whole units from one place to another."""
        for step in range(0, length, self._unit):
            old, new = (source + step) // self._unit, (target + step) // self._unit
            at = self._source(old)
            beyond = at == _ZERO or at * self._unit >= self._limit_of(old)
            pages = {number: page[:] for number, page in self._pages.get(old, {}).items()}
            self._replace(new, _ZERO if beyond else at)
            if pages:
                self._pages[new] = pages
        self.copied += length
        self._size = max(self._size, target + length)

    def discard(self, offset: int, length: int) -> None:
        """Nobody needs it; it may as well stay."""

    def flush(self) -> None:
        """There is nothing to flush."""

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Forget what is cut off: if the file grows again, zeroes are there."""
        if size < self._size:
            first = -(-size // self._unit)
            if size % self._unit:
                within = size % self._unit
                self._write(size // self._unit, within, memoryview(bytes(self._unit - within)))
            for kept in (self._sources, self._pages):
                for unit in [unit for unit in kept if unit >= first]:
                    del kept[unit]
            self._limit = min(self._limit, size)
        self._size = size
