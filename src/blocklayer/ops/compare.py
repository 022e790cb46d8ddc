# SPDX-License-Identifier: Apache-2.0
"""Comparing what two disks read as."""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.base.align import align_down
from blocklayer.base.buffers import is_zero
from blocklayer.base.extent import Extent
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter
from blocklayer.base.record import Record
from blocklayer.base.units import SECTOR, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.opening import FilenameLike
from blocklayer.ops.open_image import open_disk

PIECE = 2 * MiB


class CompareResult(Record, frozen=True):
    """The answer.

    offset        of the first difference, rounded down to a sector; None if there is none
    kind          ``content``; with `strict` also ``size`` and ``status`` (allocated or not)
    sizes_differ  the disks have different sizes; no difference by itself unless `strict`
    """

    identical: bool
    offset: int | None = None
    kind: str | None = None
    sizes_differ: bool = False


def compare(
    first: FilenameLike,
    second: FilenameLike,
    *,
    first_format: str | None = None,
    second_format: str | None = None,
    strict: bool = False,
    cache: str = "writeback",
    force_share: bool = False,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> CompareResult:
    """Whether two images show a guest the same disk; a longer one must be zero at its end."""
    with (
        open_disk(first, format=first_format, cache=cache, force_share=force_share) as one,
        open_disk(second, format=second_format, cache=cache, force_share=force_share) as two,
    ):
        return compare_disks(one, two, strict=strict, progress=progress, cancel=cancel)


def compare_disks(
    one: Disk,
    two: Disk,
    *,
    strict: bool = False,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> CompareResult:
    """`compare` for disks that are open."""
    sizes_differ = one.size != two.size
    if strict and sizes_differ:
        return CompareResult(False, None, "size", True)
    common = min(one.size, two.size)
    reporter = Reporter("compare", max(one.size, two.size), progress, cancel)
    for left, right in zip_extents(one, two, common):
        if strict and _status(left) != _status(right):
            return CompareResult(False, left.offset, "status", sizes_differ)
        found = _difference(one, two, left, right, reporter)
        if found is not None:
            return CompareResult(False, found, "content", sizes_differ)
    longer = one if one.size > two.size else two
    for extent in longer.extents(common, longer.size - common):
        found = _nonzero(longer, extent, reporter)
        if found is not None:
            return CompareResult(False, found, "content", sizes_differ)
    reporter.finish()
    return CompareResult(True, sizes_differ=sizes_differ)


def _status(extent: Extent) -> tuple[bool, bool, bool]:
    return extent.data, extent.zero, extent.present


def zip_extents(one: Disk, two: Disk, length: int) -> Iterator[tuple[Extent, Extent]]:
    """Extents of both disks, cut so that each pair covers the same range."""
    lefts, rights = one.extents(0, length), two.extents(0, length)
    left, right = next(lefts, None), next(rights, None)
    while left is not None and right is not None:
        end = min(left.end, right.end)
        yield _until(left, end), _until(right, end)
        left = _from(left, end) if end < left.end else next(lefts, None)
        right = _from(right, end) if end < right.end else next(rights, None)


def _until(extent: Extent, end: int) -> Extent:
    return extent.part(extent.offset, end - extent.offset)


def _from(extent: Extent, start: int) -> Extent:
    return extent.part(start, extent.end - start)


def _difference(
    one: Disk, two: Disk, left: Extent, right: Extent, reporter: Reporter
) -> int | None:
    """The first offset in a common extent where the disks differ."""
    if left.zero and right.zero:
        reporter.advance(left.length)
        return None
    if left.zero:
        return _nonzero(two, right, reporter)
    if right.zero:
        return _nonzero(one, left, reporter)
    position = left.offset
    while position < left.end:
        count = min(PIECE, left.end - position)
        ours, theirs = one.read(position, count), two.read(position, count)
        if ours != theirs:
            return position + first_difference(ours, theirs)
        reporter.advance(count)
        position += count
    return None


def _nonzero(disk: Disk, extent: Extent, reporter: Reporter) -> int | None:
    """The first offset in an extent that does not read as zero."""
    if extent.zero:
        reporter.advance(extent.length)
        return None
    position = extent.offset
    while position < extent.end:
        count = min(PIECE, extent.end - position)
        data = disk.read(position, count)
        if not is_zero(data):
            return position + first_difference(data, bytes(count))
        reporter.advance(count)
        position += count
    return None


def first_difference(ours: bytes, theirs: bytes) -> int:
    """The first sector that differs, as an offset in bytes."""
    low, high = 0, len(ours)
    while high - low > SECTOR:
        middle = align_down((low + high) // 2 + SECTOR - 1, SECTOR)
        if middle >= high or middle <= low:
            break
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle
    return align_down(low, SECTOR)
