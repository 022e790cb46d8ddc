# SPDX-License-Identifier: Apache-2.0
"""Writing what an overlay holds into the image it is based on."""

from __future__ import annotations

import os

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.extent import Extent
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter, Watch
from blocklayer.base.units import GiB, MiB
from blocklayer.core.copy import Pace
from blocklayer.core.disk import Disk
from blocklayer.core.identity import is_file_of
from blocklayer.core.names import FilenameLike, backing_path
from blocklayer.core.node import FormatNode, Node
from blocklayer.ops.open_image import open_disk
from blocklayer.ops.told import told

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.trust import Trust

PIECE = 2 * MiB

ZERO_PIECE = 16 * GiB
"""Zeroed at once: a moment where storage can do it, and not for ever where it cannot."""


def commit(
    name: FilenameLike,
    *,
    format: str | None = None,
    base: str | os.PathLike[str] | None = None,
    keep: bool = False,
    cache: str = "writeback",
    rate_limit: int = 0,
    trust: Trust | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> str:
    """Copy an overlay's content into its backing file, or into `base` further down the chain.

    The base grows if the overlay is larger. Afterwards the overlay is emptied, unless `keep` is
    set or it was committed past layers that still hold older data. `rate_limit` is bytes per
    second, 0 for none. `trust` is for an overlay that somebody else made: what it names is written
    to if it lies in its folder. Returns the base's file name.
    """
    with open_disk(name, mode="r+", format=format, cache=cache, trust=trust) as disk:
        top = disk.node
        if not isinstance(top, FormatNode) or top.backing is None:
            raise InvalidArgument("Image does not have a backing file")
        target, depth = _find_base(top, base)
        target.reopen(read_only=False)
        try:
            with (
                told(
                    f"'{top.filename}' is as it was, and still shows the same;"
                    f" '{target.filename}' may hold a part of its data: commit again"
                ),
                Disk(target, owns_node=False) as base_disk,
            ):
                reporter = Reporter("commit", disk.size, progress, cancel)
                if base_disk.size < disk.size:
                    base_disk.resize(disk.size)
                _copy_down(disk, base_disk, depth, reporter, Pace(rate_limit, reporter))
                base_disk.flush()
        finally:
            target.reopen(read_only=True)
        if not keep and depth == 1:
            top.watch = Watch(cancel=cancel)
            with told(
                f"'{target.filename}' holds everything;"
                f" '{top.filename}' shows the same and may not be emptied yet: commit again"
            ):
                _empty(disk, top)
        return target.filename


def _find_base(top: FormatNode, base: str | os.PathLike[str] | None) -> tuple[FormatNode, int]:
    node, depth = top.backing, 1
    if base is not None:
        wanted = os.fspath(base)
        while node is not None and not _is_named(node, top, wanted):
            node = node.backing if isinstance(node, FormatNode) else None
            depth += 1
        if node is None:
            raise InvalidArgument(
                f"Did not find '{wanted}' in the backing chain of '{top.filename}'"
            )
    if not isinstance(node, FormatNode):
        raise NotSupported("The base cannot be written to")
    return node, depth


def _is_named(node: Node, top: FormatNode, wanted: str) -> bool:
    """Whether `wanted` is a node's file, as seen from here or from the overlay."""
    paths = (wanted, backing_path(top.filename, wanted))
    return node.filename in paths or any(is_file_of(node, path) for path in paths)


def _copy_down(disk: Disk, base: Disk, depth: int, reporter: Reporter, pace: Pace) -> None:
    """Every extent that lies above the base goes into the base."""
    for extent in disk.extents():
        if not extent.present or extent.depth >= depth:
            # Past the end of every layer above, a longer base may show something else.
            if extent.zero and extent.depth < depth:
                _zero(base, extent, reporter)
            else:
                reporter.advance(extent.length, skipped=extent.length)
            continue
        if extent.zero:
            _zero(base, extent, reporter)
            continue
        position = extent.offset
        while position < extent.end:
            count = min(PIECE, extent.end - position)
            base.write(position, disk.read(position, count))
            reporter.advance(count)
            pace.advance(count)
            position += count
    reporter.finish()


def _zero(base: Disk, extent: Extent, reporter: Reporter) -> None:
    """Zero a range of the base, in pieces between which it can be stopped."""
    for start in range(extent.offset, extent.end, ZERO_PIECE):
        count = min(ZERO_PIECE, extent.end - start)
        base.write_zeroes(start, count, unmap=True)
        reporter.advance(count, zero=count)


def _empty(disk: Disk, top: FormatNode) -> None:
    with disk.node.tracker.drained_section():
        top.make_empty()
