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

from blocklayer.base.extent import BACKING, DATA, ZERO, Extent
from blocklayer.core.node import FormatNode, Node

MERGED_MAX = 16384
"""Answers merged into one extent: a table that is used again and again can describe a disk of
exbibytes, and whoever walks it must be able to stop."""


def resolve(node: Node, offset: int, length: int, *, holes: bool = True) -> Extent:
    """The first extent of a range: where its bytes live, through the whole chain.

    With `holes`, storage below a DATA answer is asked where it has holes, if the format wants it.
    """
    depth = 0
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
            return Extent(offset, length, True, False, True, depth, *_leaf_place(child, host))
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
    return Extent(offset, length, kind != ZERO, kind == ZERO, True, depth, below, node.filename)


def _leaf_place(node: Node, host: int) -> tuple[int, str]:
    """Where `host` of a child ends up: through filters, windows and nested formats."""
    while True:
        kind, _, child, below = node.map(host, 1)
        if kind != DATA or child is None:
            return host, node.filename
        node, host = child, below


def extents(node: Node, offset: int, length: int, *, holes: bool = True) -> Iterator[Extent]:
    """Walk a range; neighbours that one extent can describe are merged, a great many at once."""
    end = offset + length
    current: Extent | None = None
    merged = 0
    while offset < end:
        found = resolve(node, offset, end - offset, holes=holes)
        offset = found.end
        if current is None:
            current = found
        elif merged < MERGED_MAX and found.follows(current):
            current = current.joined(found)
            merged += 1
        else:
            yield current
            current = found
            merged = 0
    if current is not None:
        yield current


def reads_as_zero(node: Node, offset: int, length: int) -> bool:
    """Whether the whole range is known to read as zeroes without reading it."""
    end = offset + length
    while offset < end:
        found = resolve(node, offset, end - offset)
        if not found.zero:
            return False
        offset = found.end
    return True
