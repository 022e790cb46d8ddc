# SPDX-License-Identifier: Apache-2.0
"""The copy engine where source and target can share blocks: nearly nothing is read or written."""

from __future__ import annotations

from itertools import islice

from blocklayer.base.errors import NotSupported
from blocklayer.base.extent import Extent
from blocklayer.base.progress import Reporter
from blocklayer.core.copy import CopyOptions, CopyResult
from blocklayer.core.disk import Disk
from blocklayer.core.node import FormatNode
from blocklayer.core.share import COPY_MAX, locate, share
from blocklayer.core.zero_runs import find_zeroes

TRIES = 3
"""The first bytes of an extent may have to be copied; then it is seen whether blocks are shared."""


EXTENTS_TRIED = 64
"""Among so many from the start there must be one that is worth sharing."""


def copy_by_sharing(
    source: Disk, target: Disk, options: CopyOptions, reporter: Reporter
) -> CopyResult | None:
    """Copy all of `source`; None, and nothing of note is done, if blocks cannot be shared."""
    if not _can_share(source, target, reporter):
        return None
    return _Sharing(source, target, options, reporter).run()


def _can_share(source: Disk, target: Disk, reporter: Reporter) -> bool:
    """Whether the first extent of some length can be shared, found out by doing it."""
    node = target.node
    if not isinstance(node, FormatNode) or node.probed or node.file.inline_descriptor is None:
        return False
    if node.watched:
        return False  # whoever wants to know of writes is not told of blocks that are shared
    enough = 2 * max(node.cluster_size, COPY_MAX)
    extent = _first_long_extent(source, enough, reporter)
    if extent is None or locate(source.node, extent.offset, extent.length) is None:
        return False
    position = extent.offset
    try:
        for _ in range(TRIES):
            shared, to_copy = share(source.node, node, position, min(enough, extent.end - position))
            if shared:
                return True
            position += to_copy
    except NotSupported:
        pass
    return False


def _first_long_extent(source: Disk, enough: int, reporter: Reporter) -> Extent | None:
    for extent in islice(source.extents(), EXTENTS_TRIED):
        reporter.check()
        if extent.data and extent.length >= enough:
            return extent
    return None


class _Sharing:
    def __init__(
        self, source: Disk, target: Disk, options: CopyOptions, reporter: Reporter
    ) -> None:
        self._source = source
        self._target = target
        self._options = options
        self._reporter = reporter
        self._result = CopyResult()

    def run(self) -> CopyResult:
        """Extent by extent, in one thread: there is nothing to wait for."""
        for extent in self._source.extents():
            if extent.zero:
                self._zero(extent.offset, extent.length)
                self._reporter.advance(extent.length, zero=extent.length)
            else:
                self._extent(extent)
        return self._result

    def _zero(self, offset: int, length: int) -> None:
        self._result.zero += length
        if not self._options.target_is_zero:
            self._target.write_zeroes(offset, length, unmap=True)

    def _extent(self, extent: Extent) -> None:
        position = extent.offset
        while position < extent.end:
            try:
                shared, to_copy = share(
                    self._source.node, self._target.node, position, extent.end - position
                )
            except NotSupported:
                shared, to_copy = 0, min(COPY_MAX, extent.end - position)
            if to_copy:
                self._copy(position, to_copy)
            self._result.data += shared
            position += shared + to_copy
            self._reporter.advance(shared + to_copy)

    def _copy(self, offset: int, length: int) -> None:
        buffer = bytearray(length)
        self._source.read_into(offset, buffer)
        writes = []
        for start, count, zero in find_zeroes(buffer, 0, length, offset, self._options.sparse_size):
            if zero:
                self._zero(offset + start, count)
            else:
                writes.append((offset + start, memoryview(buffer)[start : start + count]))
                self._result.data += count
        self._target.write_many(writes)
