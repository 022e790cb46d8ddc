# SPDX-License-Identifier: Apache-2.0
"""Copying without moving a byte: the target refers to the source's blocks.

What can be shared lies in a file at both ends, at places that are whole blocks; what the target
allocates for it are whole clusters. The rest, mostly ends of extents, is left to who asks.
"""

from __future__ import annotations

from blocklayer.base.align import align_down
from blocklayer.base.extent import BACKING, DATA
from blocklayer.base.units import KiB, MiB
from blocklayer.core.node import FormatNode, Node

BLOCK = 4 * KiB
"""Files share blocks of this size, or of a larger one, in which case they refuse this."""

COPY_MAX = MiB
ALLOCATION_MAX = 64 * MiB
"""Bytes that one commit makes visible."""


def locate(node: Node | None, offset: int, length: int) -> tuple[Node, int, int] | None:
    """(file, offset in it, length) that hold the first bytes of a range; None if no file does."""
    while node is not None:
        if not isinstance(node, FormatNode):
            inside = min(length, node.size - offset)
            return (node, offset, inside) if node.inline_descriptor is not None else None
        if offset >= node.size:
            return None
        kind, length, child, host = node.map(offset, min(length, node.size - offset))
        if kind == BACKING:
            node = node.backing
        elif kind == DATA:
            node, offset = child, host
        else:
            return None
    return None


def share(source: Node, target: Node, offset: int, length: int) -> tuple[int, int]:
    """Share the first bytes of a range of the source with the same range of the target.

    How many bytes are shared now, or else how many have to be copied before the next try.
    Raises `NotSupported` if these files cannot share blocks, and `IoError`.
    """
    found = locate(source, offset, length)
    if found is None or not isinstance(target, FormatNode):
        return 0, min(length, COPY_MAX)
    file, host, count = found
    placed = target.place(offset, count)
    unit = BLOCK if placed is not None else max(BLOCK, target.cluster_size)
    head = -offset % unit
    if head or host % BLOCK:
        return 0, min(head or COPY_MAX, count)
    if placed is None:
        size = align_down(min(count, ALLOCATION_MAX), unit)
        if size:
            ranges = [(offset, offset + size)]
            return target.ranges.run(ranges, _allocate, target, offset, size, file, host), 0
    else:
        child, place, count = placed[0], placed[1], min(count, placed[2])
        size = 0 if place % BLOCK else align_down(count, BLOCK)
        if size:
            child.share(_descriptor(file), host, place, size)
            return size, 0
    return 0, min(count, COPY_MAX)


def _descriptor(file: Node) -> int:
    descriptor = file.inline_descriptor
    assert descriptor is not None
    return descriptor


def _allocate(target: FormatNode, offset: int, length: int, file: Node, host: int) -> int:
    """New clusters for a prefix of a range, made of the file's blocks."""
    plan = target.plan_write(offset, length)
    try:
        target.file.share(_descriptor(file), host, plan.host, plan.length)
        target.commit_writes([plan])
    except BaseException:
        target.abandon_writes([plan])
        raise
    return plan.length
