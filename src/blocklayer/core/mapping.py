# SPDX-License-Identifier: Apache-2.0
"""One primitive for block status: resolve an offset down to the leaf that holds it.

    depth 0   |  data  |......|  zero  |.......|      the disk itself
    depth 1            | data |        |...|          its backing file, which may be shorter
    answer    |  data  | data |  zero  | hole  |
              depth 0    1       0       (past the end of every layer: reads as zeroes)

`map`, convert, compare, measure, commit and rebase all walk these extents.
"""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.base.errors import BlocklayerError
from blocklayer.base.extent import BACKING, DATA, ZERO, Extent
from blocklayer.core.node import FormatNode, Node

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.base.extent import Row

MERGED_MAX = 4096
"""Answers merged into one extent: a table that is used again and again can describe a disk of
exbibytes, and whoever walks it must be able to stop."""


def resolve(node: Node, offset: int, length: int, *, holes: bool = True) -> Extent:
    """The first extent of a range: where its bytes live, through the whole chain.

    With `holes`, storage below a DATA answer is asked where it has holes, if the format wants it.
    """
    return _resolve(node, offset, length, 0, holes=holes)


def _resolve(node: Node, offset: int, length: int, depth: int, *, holes: bool) -> Extent:
    """`resolve` for a node that is `depth` layers below the top."""
    while True:
        if offset >= node.size:
            # The layer above has nothing here either; its zeroes are its own, as QEMU counts.
            return Extent(offset, length, False, True, False, max(0, depth - 1))
        length = min(length, node.size - offset)
        if not isinstance(node, FormatNode):
            below = _format_below(node, offset)
            if below is None:
                return _storage_extent(node, offset, length, depth, offset)
            node = below
            continue
        kind, count, child, host = node.map(offset, length)
        length = min(length, count)
        if kind == DATA:
            assert child is not None
            if holes and node.recurse_status:
                return _storage_extent(child, offset, length, depth, host)
            return Extent(offset, length, True, False, True, depth, *_leaf(child, host))
        if kind == ZERO:
            return Extent(offset, length, False, True, True, depth)
        if kind != BACKING:
            return Extent(offset, length, True, False, True, depth)
        if node.backing is None:
            return Extent(offset, length, False, True, False, depth)
        if offset < node.backing.size:
            length = min(length, node.backing.size - offset)
        node = node.backing
        depth += 1


def _format_below(node: Node, offset: int) -> FormatNode | None:
    """The format that a stack of filters stands on; filters are no layers of a chain."""
    while not isinstance(node, FormatNode):
        kind, _, child, place = node.map(offset, 1)
        if kind != DATA or child is None or place != offset:
            return None
        node = child
    return node


def _storage_extent(node: Node, offset: int, length: int, depth: int, host: int) -> Extent:
    """Ask storage (a protocol or a filter) about the bytes at `host`."""
    if isinstance(node, FormatNode):
        inner = resolve(node, host, length)
        return Extent(
            offset,
            inner.length,
            inner.data,
            inner.zero,
            True,
            depth,
            inner.host_offset,
            inner.filename,
        )
    kind, count, child, below = node.map(host, length)
    length = min(length, count)
    if kind == DATA and child is not None:
        return _storage_extent(child, offset, length, depth, below)
    data = kind not in (ZERO, BACKING)  # of a dirty bitmap's "map", what is dirty is neither
    return Extent(offset, length, data, kind == ZERO, True, depth, below, node.filename)


def _leaf(node: Node, host: int) -> tuple[int, str]:
    """Where `host` of a child ends up: through filters, windows and nested formats."""
    while True:
        if not node.children:
            return host, node.filename
        kind, _, child, below = node.map(host, 1)
        if kind != DATA or child is None:
            return host, node.filename
        node, host = child, below


def row_batches(
    node: Node, offset: int, length: int, *, holes: bool = True, depth: int = 0
) -> Iterator[list[Row]]:
    """Walk a range in lists of rows, one answer of a driver each; nothing is merged.

    What this layer does not have is looked for below before the walk goes on.
    """
    end = offset + length
    while offset < end:
        inside = min(end, node.size) - offset
        if inside > 0 and isinstance(node, FormatNode) and not (holes and node.recurse_status):
            rows: list[Row] = []
            for kind, count, child, host in node.map_many(offset, inside):
                if kind == DATA:
                    assert child is not None
                    place = (host, child.filename) if not child.children else _leaf(child, host)
                    rows.append((offset, count, True, False, True, depth, *place))
                elif kind == ZERO:
                    rows.append((offset, count, False, True, True, depth, None, None))
                elif kind != BACKING:
                    rows.append((offset, count, True, False, True, depth, None, None))
                elif node.backing is None:
                    rows.append((offset, count, False, True, False, depth, None, None))
                else:
                    if rows:
                        yield rows
                        rows = []
                    yield from row_batches(
                        node.backing, offset, count, holes=holes, depth=depth + 1
                    )
                offset += count
            if rows:
                yield rows
        else:
            extent = _resolve(node, offset, end - offset, depth, holes=holes)
            yield [extent.row()]
            offset = extent.end


def merged_batches(batches: Iterator[list[Row]], limit: int | None) -> Iterator[list[Row]]:
    """The same rows, with those that one row can describe merged: at most `limit` (None: all).

    Drivers do not cut what belongs together, so only the borders of batches are looked at.
    """
    last: Row | None = None
    merged = 0
    failure: BlocklayerError | None = None
    try:
        for batch in batches:
            if last is not None:
                if (limit is None or merged < limit) and _continues(last, batch[0]):
                    batch[0] = (last[0], last[1] + batch[0][1], *last[2:])
                    merged = merged + 1 if len(batch) == 1 else 0
                else:
                    batch.insert(0, last)
                    merged = 0
            last = batch.pop()
            if batch:
                yield batch
    except BlocklayerError as error:
        failure = error  # what was found before is told first
    if last is not None:
        yield [last]
    if failure is not None:
        raise failure


def _continues(last: Row, row: Row) -> bool:
    if last[2:6] != row[2:6] or last[7] != row[7]:
        return False
    before, host = last[6], row[6]
    return host is before if host is None or before is None else host == before + last[1]


def extents(node: Node, offset: int, length: int, *, holes: bool = True) -> Iterator[Extent]:
    """Walk a range; neighbours that one extent can describe are merged, a great many at once."""
    batches = row_batches(node, offset, length, holes=holes)
    for batch in merged_batches(batches, MERGED_MAX):
        for row in batch:
            yield Extent(*row)


def reads_as_zero(node: Node, offset: int, length: int) -> bool:
    """Whether the whole range is known to read as zeroes without reading it."""
    end = offset + length
    while offset < end:
        found = resolve(node, offset, end - offset)
        if not found.zero:
            return False
        offset = found.end
    return True
