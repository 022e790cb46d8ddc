# SPDX-License-Identifier: Apache-2.0
"""What a picture of a map has to know, gathered from extents as they come.

An image can have thousands of millions of them, and a hostile one of a few kilobytes can say so.
What is kept does not depend on that: how much of each cell of the map is covered by what, and of
each file's extents those that are not one dot of its diagram.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.base.extent import Row

COLUMNS, ROWS_MAX = 512, 16
"""Cells of the map: as many as can be told apart on a screen."""

LAYERS_MAX = 6
"""Layers with a colour of their own, and a diagram; deeper ones share the last colour."""

DOTS = (1000, 160)
"""Dots that can be told apart in a diagram, across and upwards."""

CHUNK = 1 << 17
"""Extents that are looked at together."""

LINES_KEPT = 1 << 18
"""Extents of a file that are kept before those are dropped that cannot be told apart."""

ZERO, HOLE = -1, -2
"""Kinds beside the depths of data: zeroes, and what no layer has."""


class File:
    """Where in a layer's file the data of the disk lies."""

    def __init__(self, name: str) -> None:
        import numpy

        self.name = name
        self.data = 0
        """Bytes of the disk that it shows, and of those the ones whose place is known."""
        self.placed = 0
        self.end = 1
        self.fragments = 0
        """Straight lines of the diagram: what lies in the file as it lies on the disk."""
        self._shift: int | None = None
        none = numpy.zeros(0, dtype="int64")
        self.starts, self.lengths, self.hosts = none, none, none

    def add(self, starts: Any, lengths: Any, hosts: Any, survey: Survey) -> None:
        """More extents, in the order of the disk."""
        import numpy

        self.data += int(lengths.sum())
        known = hosts >= 0
        starts, lengths, hosts = starts[known], lengths[known], hosts[known]
        if not len(starts):
            return
        self.placed += int(lengths.sum())
        self.end = max(self.end, int((hosts + lengths).max()))
        self.fragments += fragments(starts, hosts, self._shift)
        self._shift = int(hosts[-1] - starts[-1])
        self.starts = numpy.concatenate((self.starts, starts))
        self.lengths = numpy.concatenate((self.lengths, lengths))
        self.hosts = numpy.concatenate((self.hosts, hosts))
        if len(self.starts) > LINES_KEPT:
            self.thin(survey)

    def thin(self, survey: Survey) -> None:
        """Of extents that would be one dot of the diagram, keep one."""
        size = survey.end - survey.start
        kept = visible(self.starts - survey.start, self.lengths, self.hosts, size, self.end)
        self.starts, self.lengths = self.starts[kept], self.lengths[kept]
        self.hosts = self.hosts[kept]


class Survey:
    """A part of a disk, from `start` to `end`."""

    def __init__(self, start: int, end: int) -> None:
        import numpy

        self.start = start
        self.end = end
        self.files: dict[int, File] = {}
        """By depth: the layers that have data."""
        self.known = {ZERO: 0, HOLE: 0}
        """Bytes of zeroes and of holes."""
        self.rows, self.row_bytes = rows_of(end - start)
        self.covered = {
            kind: numpy.zeros(self.rows * COLUMNS) for kind in (*range(LAYERS_MAX), ZERO, HOLE)
        }
        """How much of each cell is of a kind."""

    @property
    def depths(self) -> list[int]:
        """Layers that have data."""
        return sorted(self.files)

    def bytes_of(self, kind: int) -> int:
        """Bytes of one kind."""
        return self.files[kind].data if kind >= 0 else self.known[kind]

    def add(self, rows: list[Row]) -> None:
        """Extents behind those that were added before."""
        import numpy

        columns = tuple(array("q") for _ in range(4))
        for at, length, data, zero, present, depth, host, filename in rows:
            kind = depth if data and not zero else ZERO if present else HOLE
            if kind >= 0 and depth not in self.files:
                self.files[depth] = File(filename or "")
            place = -1 if host is None else host
            for column, value in zip(columns, (at, length, kind, place), strict=True):
                column.append(value)
        starts, lengths, kinds, hosts = (numpy.array(column, dtype="int64") for column in columns)
        for kind in numpy.unique(kinds).tolist():
            chosen = kinds == kind
            self._cover(min(kind, LAYERS_MAX - 1), starts[chosen], lengths[chosen])
            if kind >= 0:
                self.files[kind].add(starts[chosen], lengths[chosen], hosts[chosen], self)
            else:
                self.known[kind] += int(lengths[chosen].sum())

    def _cover(self, kind: int, starts: Any, lengths: Any) -> None:
        width = self.row_bytes / COLUMNS
        first = (starts - self.start) / width
        cells = self.covered[kind]
        # Only the cells that these extents reach: there may be many lots of few.
        low = int(first[0])
        high = min(len(cells), int(first[-1] + lengths[-1] / width) + 1)
        cells[low:high] += coverage(first - low, first - low + lengths / width, high - low)


def survey(batches: Iterable[list[Row]], start: int, end: int) -> Survey:
    """Look at all extents of a disk from `start` to `end`."""
    found = Survey(start, end)
    rows: list[Row] = []
    for batch in batches:
        rows += batch
        while len(rows) >= CHUNK:
            found.add(rows[:CHUNK])
            del rows[:CHUNK]
    if rows:
        found.add(rows)
    return found


def rows_of(size: int) -> tuple[int, int]:
    """How many rows a map has, and bytes in each: a power of two, or the whole disk in one row."""
    if size <= COLUMNS:
        return 1, max(size, 1)
    row_bytes = 1 << max(0, (size - 1).bit_length() - (ROWS_MAX.bit_length() - 1))
    row_bytes = max(row_bytes, COLUMNS)
    return -(-size // row_bytes), row_bytes


def coverage(starts: Any, ends: Any, count: int) -> Any:
    """How much of each of `count` cells of length 1 is covered by the ranges."""
    import numpy

    # The integral of the covered length up to each border is a sum of ramps.
    points = numpy.concatenate((starts, ends))
    signs = numpy.concatenate((numpy.ones(len(starts)), -numpy.ones(len(ends))))
    order = numpy.argsort(points, kind="stable")
    points, signs = points[order], signs[order]
    slopes = numpy.concatenate(([0.0], numpy.cumsum(signs)))
    before = numpy.concatenate(([0.0], numpy.cumsum(signs * points)))
    borders = numpy.arange(count + 1, dtype=float)
    index = numpy.searchsorted(points, borders, side="right")
    covered = slopes[index] * borders - before[index]
    return numpy.clip(numpy.diff(covered), 0, 1)


def visible(starts: Any, lengths: Any, hosts: Any, width: int, height: int) -> Any:
    """Which lines to draw, by index: of those that would be the same dots, one."""
    import numpy

    across, upwards = DOTS[0] / max(1, width), DOTS[1] / max(1, height)
    columns = (starts * across).astype("int64")
    rows = (hosts * upwards).astype("int64")
    tops = numpy.minimum(((hosts + lengths) * upwards).astype("int64"), DOTS[1])
    dots = (columns * (DOTS[1] + 1) + rows) * (DOTS[1] + 1) + tops
    long = lengths * across > 1  # of these there are no more than dots across
    dots[long] = -1 - numpy.arange(int(long.sum()))
    return numpy.unique(dots, return_index=True)[1]


def fragments(starts: Any, hosts: Any, shift: int | None = None) -> int:
    """How many straight lines begin, if the extents before have ended with `shift`."""
    if not len(starts):
        return 0
    shifts = hosts - starts
    return int(shifts[0] != shift) + int((shifts[1:] != shifts[:-1]).sum())
