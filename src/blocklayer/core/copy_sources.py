# SPDX-License-Identifier: Apache-2.0
"""What can be copied besides a disk: several disks in a row, or a part of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blocklayer.base.extent import Extent
from blocklayer.core.disk import Disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias


class Concatenation:
    """Several disks one after the other."""

    def __init__(self, disks: list[Disk]) -> None:
        self._disks = disks
        self._starts = [0]
        for disk in disks:
            self._starts.append(self._starts[-1] + disk.size)
        self.size = self._starts[-1]

    @property
    def disks(self) -> list[Disk]:
        """Where the bytes are."""
        return self._disks

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The disks' extents, moved to where each disk starts."""
        end = self.size if length is None else offset + length
        for start, disk in zip(self._starts, self._disks, strict=False):
            first, last = max(0, offset - start), min(disk.size, end - start)
            if first < last:
                for extent in disk.extents(first, last - first):
                    yield extent.moved(extent.offset + start)

    def read_each(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        """Read one after the other."""
        for offset, view in requests:
            self.read_into(offset, view)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read across the borders of disks."""
        done = 0
        for start, disk in zip(self._starts, self._disks, strict=False):
            position = offset + done - start
            if 0 <= position < disk.size and done < len(buffer):
                count = min(disk.size - position, len(buffer) - done)
                disk.read_into(position, buffer[done : done + count])
                done += count
        return done


class Window:
    """A part of a disk."""

    def __init__(self, disk: Disk, start: int, size: int) -> None:
        self._disk = disk
        self._start = start
        self.size = size

    @property
    def disks(self) -> list[Disk]:
        """Where the bytes are."""
        return [self._disk]

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The disk's extents, counted from where the window begins."""
        length = self.size - offset if length is None else length
        for extent in self._disk.extents(self._start + offset, length):
            yield extent.moved(extent.offset - self._start)

    def read_each(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        """Read from the window."""
        self._disk.read_each([(self._start + offset, view) for offset, view in requests])

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read from the window."""
        self._disk.read_into(self._start + offset, buffer)
        return len(buffer)


class Segment:
    """A part of a disk at its own offsets: copying it leaves the rest of the target alone."""

    def __init__(self, source: Disk | Concatenation, start: int, end: int) -> None:
        self._source = source
        self._start = start
        self.size = end

    @property
    def disks(self) -> list[Disk]:
        """Where the bytes are."""
        return [self._source] if isinstance(self._source, Disk) else self._source.disks

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The extents of the part; of what lies before it, none."""
        end = self.size if length is None else offset + length
        start = max(offset, self._start)
        return self._source.extents(start, max(0, end - start))

    def read_each(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        """Read at the disk's own offsets."""
        self._source.read_each(requests)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read at the disk's own offset."""
        return self._source.read_into(offset, buffer)


Source: TypeAlias = "Disk | Concatenation | Window | Segment"
