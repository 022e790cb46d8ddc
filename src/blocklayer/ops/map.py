# SPDX-License-Identifier: Apache-2.0
"""The extents of an image."""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.extent import Extent
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter
from blocklayer.core.disk import Disk
from blocklayer.core.mapping import merged_batches
from blocklayer.core.names import FilenameLike
from blocklayer.ops.open_image import open_disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.base.extent import Row
    from blocklayer.core.trust import Trust


def map(
    name: FilenameLike,
    *,
    format: str | None = None,
    offset: int = 0,
    length: int | None = None,
    force_share: bool = False,
    trust: Trust | None = None,
) -> Iterator[Extent]:
    """Walk an image's extents: data, zeroes or nothing, in which layer of the chain, and where."""
    for batch in map_rows(name, format, offset, length, force_share=force_share, trust=trust):
        for row in batch:
            yield Extent(*row)


def map_rows(
    name: FilenameLike,
    format: str | None = None,
    offset: int = 0,
    length: int | None = None,
    *,
    force_share: bool = False,
    trust: Trust | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[list[Row]]:
    """The same in lists of plain tuples, an extent's fields in their order.

    What there is to tell and to stop may take long between two lists, where many can be merged.
    """
    with open_disk(name, format=format, force_share=force_share, trust=trust) as disk:
        yield from map_disk(disk, *part_of(disk, offset, length), progress, cancel)


def part_of(disk: Disk, offset: int, length: int | None) -> tuple[int, int]:
    """(start, end) of what is asked for, as far as the disk goes. Raises `InvalidArgument`."""
    if offset < 0 or (length is not None and length < 0):
        raise InvalidArgument("The start and the length of a map cannot be negative")
    start = min(offset, disk.size)
    end = disk.size if length is None else min(disk.size, offset + length)
    return start, max(start, end)


def map_disk(
    disk: Disk,
    start: int,
    end: int,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[list[Row]]:
    """`map_rows` for a disk that is open."""
    # Once more: a walk that may be interrupted gives endless extents in pieces.
    batches = disk.extent_rows(start, end - start)
    reporter = Reporter("map", end - start, progress, cancel)
    yield from merged_batches(_counted(batches, start, reporter), None)
    reporter.finish()


def _counted(batches: Iterator[list[Row]], start: int, reporter: Reporter) -> Iterator[list[Row]]:
    for batch in batches:
        offset, length = batch[-1][:2]
        reporter.reach(offset + length - start)
        yield batch
