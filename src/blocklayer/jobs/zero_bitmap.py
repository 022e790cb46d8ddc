# SPDX-License-Identifier: Apache-2.0
"""Which granules of a job's target are known to read as zeroes.

It never asks the target: it follows what is written there. What is stored is the complement, the
granules that may hold something, so that a sparse disk of any size costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.core.bitmap import Bitmap


class ZeroBitmap:
    """Known zeroes of a disk of `size` bytes; at the start nothing is known. Thread-safe."""

    def __init__(self, size: int, granularity: int) -> None:
        self._unknown = Bitmap(size, granularity)
        self._size = size
        self._unknown.set(0, size)

    def clear(self, offset: int, length: int) -> None:
        """The range is about to be written or discarded: every granule it touches is unknown."""
        self._unknown.set(offset, length)

    def set(self, offset: int, length: int) -> None:
        """The range has been zeroed: the granules that lie wholly in it are zero."""
        self._unknown.clear(offset, length)

    def is_set(self, offset: int, length: int) -> bool:
        """Whether every granule that the range touches is zero."""
        return not self._unknown.any_set(offset, length)

    def segments(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """The range cut at borders of granules into (offset, length, known to be zero)."""
        end = offset + length
        for start, count in self._unknown.runs(offset):
            if start >= end:
                break
            start, stop = max(start, offset), min(start + count, end)
            if start > offset:
                yield offset, start - offset, True
            if stop > start:
                yield start, stop - start, False
            offset = stop
        if offset < end:
            yield offset, end - offset, True

    @property
    def count(self) -> int:
        """Bytes known to be zero."""
        return max(0, self._size - self._unknown.count)
