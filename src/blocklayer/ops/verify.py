# SPDX-License-Identifier: Apache-2.0
"""Reading back what was written, and holding it against where it came from, or against its hash."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from blocklayer.base.align import align_up
from blocklayer.base.errors import IoError
from blocklayer.base.extent import Extent
from blocklayer.base.progress import Reporter
from blocklayer.base.units import MiB
from blocklayer.core.copy_sources import Concatenation
from blocklayer.core.disk import Disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias

    Whole: TypeAlias = Disk | Concatenation

PIECE = 2 * MiB
ALGORITHM = "sha256"


class Part:
    """A part of a disk, as if it were a whole one."""

    def __init__(self, source: Whole, start: int, end: int) -> None:
        self._source = source
        self._start = start
        self.size = end - start

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Extents, counted from where the part begins."""
        length = self.size - offset if length is None else length
        for extent in self._source.extents(self._start + offset, length):
            yield extent.moved(extent.offset - self._start)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read from the part."""
        return self._source.read_into(self._start + offset, buffer)


class Zeroes:
    """A disk of nothing."""

    def __init__(self, size: int) -> None:
        self.size = size

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """One hole."""
        if self.size:
            yield Extent(0, self.size, False, True, False, 0)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Zeroes."""
        buffer[:] = bytes(len(buffer))
        return len(buffer)


def part_digest(source: Part, reporter: Reporter) -> bytes:
    """What a part is known by when it can be compared no more."""
    from blocklayer.ops.digest import default_threads, tree_digest

    return tree_digest(source, ALGORITHM, default_threads(), reporter)


def cut(
    source: Whole, start: int, amount: Callable[[], int], quiet: Reporter
) -> Iterator[tuple[int, int]]:
    """(start, end) of parts from `start` to the end, each with about so many bytes of data.

    The amount is asked for before each part.
    """
    begin, found, data = start, 0, amount()
    for extent in source.extents(start, source.size - start):
        quiet.check()  # the walk alone may take long
        position = extent.offset
        while not extent.zero and found + extent.end - position >= data:
            position = min(extent.end, align_up(position + data - found, PIECE))
            yield begin, position
            begin, found, data = position, 0, amount()
        if not extent.zero:
            found += extent.end - position
    if begin < source.size:
        yield begin, source.size


def verify(source: Whole, target: Disk, *, new: bool, reporter: Reporter, quiet: Reporter) -> None:
    """Raise `IoError` where `target` does not read as `source`, or a new one as zeroes behind it.

    `reporter` is told of the source's bytes; `quiet` only knows whether to go on.
    """
    from blocklayer.ops.compare_contents import compare_contents

    found, _ = compare_contents(source, target, source.size, reporter, strict=False)
    if found is not None:
        raise _error(target, found, source.size - found, "the copy differs")
    rest = target.size - source.size
    if new and rest:
        tail = Part(target, source.size, target.size)
        found, _ = compare_contents(tail, Zeroes(rest), rest, quiet, strict=False)
        if found is not None:
            found += source.size
            message = "it is not zero behind the end of the source"
            raise _error(target, found, target.size - found, message)


def _error(target: Disk, offset: int, length: int, what: str) -> IoError:
    message = f"{what} from its source; the storage of one of them may be failing"
    if what.startswith("it "):
        message = f"{what}; its storage may be failing"
    return IoError(message, target.filename, errno.EIO, "verify", offset, length)


def forget_cached(filename: str) -> None:
    """Have the system read a file from its storage, as far as it can be asked to."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(filename, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
