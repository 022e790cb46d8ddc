# SPDX-License-Identifier: Apache-2.0
"""Zeroing any range of any node: by its own means, through a mapping, or by writing.

With `NO_FALLBACK` a request is refused (`NotSupported`) where a part of it would have to be
written, and a refusal leaves everything as it was: clients of NBD rely on that. So such a request
is looked at as a whole first (`check_zero`), and what is done after that is done to its end.
"""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.base.align import align_down, align_up
from blocklayer.base.buffers import ZERO_CHUNK, zero_pieces, zero_vector
from blocklayer.base.errors import NotSupported
from blocklayer.base.extent import ZERO
from blocklayer.base.units import GiB, KiB
from blocklayer.core.io import ALLOCATION_PIECE
from blocklayer.core.mapping import reads_as_zero, resolve
from blocklayer.core.node import ALLOCATE, NO_FALLBACK, UNMAP, FormatNode, Node, WritePlan

HOLE_MIN = 4 * KiB
"""Bytes of a hole that is worth being left alone where zeroes have to be written."""

ZERO_PIECE = 256 * GiB
"""Most guest bytes whose zeroing one commit makes visible."""


def zero_range(node: Node, offset: int, length: int, flags: int) -> None:
    """Zero any range of any node: by the node's own means, else by writing bounded pieces."""
    try:
        node.zero(offset, length, flags)
    except NotSupported:
        if flags & NO_FALLBACK:
            raise
        keep_holes = not flags & ALLOCATE
        for start, count in data_runs(node, offset, length) if keep_holes else [(offset, length)]:
            for position, zeroes in zero_pieces(start, count):
                node.writev(position, [zeroes])


def data_runs(node: Node, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is not known to read as zeroes; longer runs come in pieces.

    What lies behind the end of the node is a run as well: storage has to grow there.
    """
    end = offset + length
    start = position = offset
    while position < end:
        found = resolve(node, position, end - position) if position < node.size else None
        if found is not None and found.zero and found.length >= HOLE_MIN:
            if start < position:
                yield start, position - start
            start = position = found.end
            continue
        position = end if found is None else min(end, max(found.end, position + HOLE_MIN))
        if position - start >= ZERO_CHUNK:
            yield start, position - start
            start = position
    if start < end:
        yield start, end - start


def zero_mapped(node: FormatNode, offset: int, length: int, flags: int) -> None:
    """Zero through a mapping: zero clusters where nothing is stored, in place where it is."""
    if flags & NO_FALLBACK:
        if _zero_at_once(node, offset, length, flags):
            return
        check_mapped(node, offset, length, flags)
        flags &= ~NO_FALLBACK
    cluster = node.cluster_size
    end = offset + length
    # The last cluster of the disk may be cut by the end of the disk and is whole nonetheless.
    whole_end = end if end == node.size else align_down(end, cluster)
    body, body_end = align_up(offset, cluster), whole_end
    if body >= body_end:
        _zero_part(node, offset, length, flags)
        return
    if offset < body:
        _zero_part(node, offset, body - offset, flags)
    zero_clusters(node, body, body_end, flags)
    if body_end < end:
        _zero_part(node, body_end, end - body_end, flags)


def _zero_part(node: FormatNode, offset: int, length: int, flags: int) -> None:
    """Zero a part of a cluster (or of two neighbours)."""
    done = 0
    while done < length:
        position, left = offset + done, length - done
        placed = node.place(position, left)
        if placed is not None:
            child, host, count = placed
            zero_range(child, host, count, flags & ~UNMAP if count < node.cluster_size else flags)
        else:
            count = min(left, node.cluster_size - position % node.cluster_size)
            if not reads_as_zero(node, position, count) or flags & ALLOCATE:
                node.writev(position, zero_vector(count))
        done += count


def _zero_at_once(node: FormatNode, offset: int, length: int, flags: int) -> bool:
    """Zero a range that is stored in one piece; what is below refuses all of it or nothing."""
    cluster = node.cluster_size
    if flags & UNMAP and (offset % cluster or (length % cluster and offset + length < node.size)):
        return False
    placed = node.place(offset, length)
    if placed is None or placed[2] < length:
        return False
    child, host, _ = placed
    child.zero(host, length, flags)
    return True


def check_mapped(node: FormatNode, offset: int, length: int, flags: int) -> None:
    """Raise `NotSupported` if `zero_mapped` would have to write; nothing is changed."""
    end = offset + length
    while offset < end:
        placed = node.place(offset, end - offset)
        if placed is not None:
            child, host, count = placed
            child.check_zero(host, count, flags)
        else:
            count = _check_placeless(node, offset, end, flags)
        offset += count


def _check_placeless(node: FormatNode, offset: int, end: int, flags: int) -> int:
    """`check_mapped` for what has no place; how many bytes were looked at."""
    cluster = node.cluster_size
    body_end = end if end == node.size else align_down(end, cluster)
    if offset % cluster or offset >= body_end:
        count = min(end - offset, cluster - offset % cluster)
        if flags & ALLOCATE or not reads_as_zero(node, offset, count):
            raise NotSupported("Zeroing a part of a cluster means writing it")
        return count
    kind, count, _, _ = node.map(offset, body_end - offset)
    if flags & ALLOCATE:
        node.file.check_zero(0, node.file.size, flags)
    elif kind != ZERO and not node.has_zero_clusters:
        raise NotSupported(f"{node.driver} has no zero clusters")
    return max(count, min(cluster, body_end - offset))


def zero_clusters(node: FormatNode, start: int, end: int, flags: int) -> None:
    """Zero whole clusters, in bounded pieces with a commit each."""
    while start < end:
        piece_end = min(end, start + max(ZERO_PIECE, node.cluster_size))
        ranges = [(start, align_up(piece_end, node.cluster_size))]
        node.ranges.run(ranges, _zero_clusters_alone, node, start, piece_end, flags)
        start = piece_end


def _zero_clusters_alone(node: FormatNode, start: int, end: int, flags: int) -> None:
    plans: list[WritePlan] = []
    try:
        while start < end:
            placed = node.place(start, end - start)
            if placed is not None:
                child, host, count = placed
                zero_range(child, host, count, flags)
            elif not flags & ALLOCATE and (zeroes := _zero_run(node, start, end)):
                count = zeroes
            else:
                plan = None if flags & ALLOCATE else node.plan_zero(start, end - start)
                if plan is None:
                    plan = node.plan_write(start, min(end - start, ALLOCATION_PIECE))
                plans.append(plan)
                if not plan.zero and not plan.fresh:
                    zero_range(node.file, plan.host, plan.length, flags)
                elif not plan.zero and flags & ALLOCATE:
                    zero_range(node.file, plan.host, plan.length, ALLOCATE)
                count = plan.length
            start += count
        if plans:
            node.commit_writes(plans)
    except BaseException:
        node.abandon_writes(plans)
        raise


def _zero_run(node: FormatNode, start: int, end: int) -> int:
    """Bytes from `start` that are zero clusters already."""
    kind, count, _, _ = node.map(start, end - start)
    return count if kind == ZERO else 0
