# SPDX-License-Identifier: Apache-2.0
"""Comparing what two disks read as."""

from __future__ import annotations

from blocklayer.base.buffers import is_zero
from blocklayer.base.extent import Extent
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter
from blocklayer.base.record import Record
from blocklayer.base.units import MiB
from blocklayer.core.disk import Disk
from blocklayer.core.names import FilenameLike
from blocklayer.ops.compare_contents import compare_contents, first_difference
from blocklayer.ops.open_image import open_disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.core.trust import Trust

PIECE = 2 * MiB


class CompareResult(Record, frozen=True):
    """The answer.

    offset        of the first difference, rounded down to a sector (counted from where an image
                  ends, if that is within a sector, as qemu-img does); None if there is none
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
    trust: Trust | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> CompareResult:
    """Whether two images show a guest the same disk; a longer one must be zero at its end."""
    shared: dict[str, Any] = {"cache": cache, "force_share": force_share, "trust": trust}
    with (
        open_disk(first, format=first_format, **shared) as one,
        open_disk(second, format=second_format, **shared) as two,
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
    found, kind = compare_contents(one, two, common, reporter, strict=strict)
    if found is not None:
        return CompareResult(False, found, kind, sizes_differ)
    longer = one if one.size > two.size else two
    for extent in longer.extents(common, longer.size - common):
        found = _nonzero(longer, extent, reporter)
        if found is not None:
            return CompareResult(False, found, "content", sizes_differ)
    reporter.finish()
    return CompareResult(True, sizes_differ=sizes_differ)


def _nonzero(disk: Disk, extent: Extent, reporter: Reporter) -> int | None:
    """The first offset in an extent that does not read as zero."""
    if extent.zero:
        reporter.advance(extent.length, zero=extent.length)
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
