# SPDX-License-Identifier: Apache-2.0
"""Moving bytes through a mapping: written once, for every format.

A format says where bytes live (`map`), where they may be written (`place`, `plan_write`) and makes
new places visible (`commit_writes`); everything between is here. Callers hold a request on the
node (see `core/requests`); ranges are inside the node.
"""

from __future__ import annotations

from collections.abc import Sequence

from blocklayer.base.align import align_down, align_up
from blocklayer.base.buffers import (
    Vector,
    fill_zero,
    is_zero,
    slice_vector,
    vector_length,
    zero_vector,
)
from blocklayer.base.errors import BlocklayerError, NotSupported
from blocklayer.base.extent import BACKING, DATA, ZERO
from blocklayer.base.units import MiB
from blocklayer.core.mapping import resolve
from blocklayer.core.node import FormatNode, Node, WritePlan

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.node import Span

ALLOCATION_PIECE = 64 * MiB
"""Most guest bytes that one commit makes visible: bounds what a failed huge write leaks."""

COPY_PIECE = MiB
"""Bytes that copy-on-read copies with one commit."""


# --- reading ------------------------------------------------------------------------------------


def read_mapped(node: FormatNode, offset: int, vector: Vector) -> None:
    """Fill `vector` from wherever the mapping says the bytes are."""
    length = vector_length(vector)
    done = 0
    while done < length:
        kind, count, child, host = node.map(offset + done, length - done)
        part = slice_vector(vector, done, count)
        if kind == DATA:
            assert child is not None
            if node.sink is not None:
                node.sink(node, "read_aio", {"offset": offset + done, "length": count})
            child.readv(host, part)
        elif kind == ZERO:
            fill_zero(part)
        elif kind == BACKING:
            read_below(node, offset + done, part)
        else:
            raise NotSupported(f"{node.driver} cannot read an opaque extent")
        done += count


def read_below(node: FormatNode, offset: int, vector: Vector) -> None:
    """Fill `vector` from the backing child; zeroes without one and past its end."""
    backing = node.backing
    length = vector_length(vector)
    inside = 0 if backing is None else max(0, min(length, backing.size - offset))
    if node.sink is not None and backing is not None:
        node.sink(node, "read_backing_aio", {"offset": offset, "length": inside})
    if inside and backing is not None:
        backing.readv(offset, slice_vector(vector, 0, inside))
    if inside < length:
        fill_zero(slice_vector(vector, inside, length - inside))


# --- writing ------------------------------------------------------------------------------------


def write_mapped(node: FormatNode, offset: int, vector: Vector) -> None:
    """Write in place as far as there are places, then allocate for the rest."""
    length = vector_length(vector)
    done = _write_placed(node, offset, vector, length)
    if done < length:
        rest = slice_vector(vector, done, length - done) if done else vector
        error = write_runs(node, [(offset + done, rest)])[0]
        if error is not None:
            raise error


def _write_placed(node: FormatNode, offset: int, vector: Vector, length: int) -> int:
    """Write until the first byte without a place; bytes written."""
    done = 0
    while done < length:
        placed = node.place(offset + done, length - done)
        if placed is None:
            break
        child, host, count = placed
        if node.sink is not None:
            node.sink(node, "write_aio", {"offset": offset + done, "length": count})
        child.writev(host, slice_vector(vector, done, count))
        done += count
    return done


def write_runs(node: FormatNode, runs: Sequence[Span]) -> list[BlocklayerError | None]:
    """Write runs that do not overlap, in ascending order; each one's own error, or None.

    Clusters that have no place yet are allocated together and become visible with one commit.
    """
    errors: list[BlocklayerError | None] = [None] * len(runs)
    group: list[_Placeless] = []
    size = 0
    for index, (offset, vector) in enumerate(runs):
        length = vector_length(vector)
        try:
            done = _write_placed(node, offset, vector, length)
        except BlocklayerError as error:
            errors[index] = error
            continue
        while done < length and errors[index] is None:
            # Bounded pieces, cut at cluster boundaries so that no cut causes copy-on-write.
            end = align_down(offset + done, node.cluster_size) + _piece_size(node)
            count = min(length, end - offset) - done
            group.append(_Placeless([index], offset + done, slice_vector(vector, done, count)))
            done += count
            size += count
            if size >= ALLOCATION_PIECE:
                _allocate(node, group, errors)
                group, size = [], 0
    if group:
        _allocate(node, group, errors)
    return errors


def write_each(node: Node, runs: Sequence[Span]) -> list[BlocklayerError | None]:
    """`write_runs` for nodes of any kind: what goes through a mapping is committed together."""
    if isinstance(node, FormatNode) and type(node).writev is FormatNode.writev:
        return write_runs(node, runs)
    return node.write_each(runs)


def _piece_size(node: FormatNode) -> int:
    return max(ALLOCATION_PIECE, node.cluster_size)


class _Placeless:
    """A piece that needs allocation, and the runs (by index) that it belongs to."""

    __slots__ = ("offset", "owners", "vector")

    def __init__(self, owners: list[int], offset: int, vector: Vector) -> None:
        self.owners = owners
        self.offset = offset
        self.vector = vector


def _allocate(
    node: FormatNode, pieces: list[_Placeless], errors: list[BlocklayerError | None]
) -> None:
    """Allocate for pieces with one commit; errors are noted with the runs they belong to.

    The clusters are locked against other allocating writes while their data is on its way: a
    second writer to the same cluster waits, and then finds it allocated.
    """
    ranges = _cluster_ranges(pieces, node.cluster_size)
    node.ranges.run(ranges, _allocate_alone, node, pieces, errors)


def _allocate_alone(
    node: FormatNode, pieces: list[_Placeless], errors: list[BlocklayerError | None]
) -> None:
    plans: list[WritePlan] = []
    try:
        for piece in _close_gaps(node, pieces):
            known = len(plans)
            try:
                _write_piece(node, piece.offset, piece.vector, plans)
            except BlocklayerError as error:
                _note(errors, piece.owners, error)
                node.abandon_writes(plans[known:])
                del plans[known:]
        if plans:
            node.commit_writes(plans)
    except BlocklayerError as error:
        node.abandon_writes(plans)
        _note(errors, [owner for piece in pieces for owner in piece.owners], error)
    except BaseException:
        node.abandon_writes(plans)
        raise


def _note(errors: list[BlocklayerError | None], owners: list[int], error: BlocklayerError) -> None:
    for owner in owners:
        errors[owner] = errors[owner] or error


def _close_gaps(node: FormatNode, pieces: list[_Placeless]) -> list[_Placeless]:
    """Join neighbours where the driver allows the gap between them to be filled with zeroes."""
    if len(pieces) < 2:
        return pieces
    joined = [pieces[0]]
    for piece in pieces[1:]:
        last = joined[-1]
        end = last.offset + vector_length(last.vector)
        gap = piece.offset - end
        if gap and (gap >= node.cluster_size or not node.can_merge(end, gap)):
            joined.append(piece)
            continue
        joined[-1] = _Placeless(
            [*last.owners, *piece.owners],
            last.offset,
            [*last.vector, *zero_vector(gap), *piece.vector],
        )
    return joined


def _cluster_ranges(pieces: list[_Placeless], cluster: int) -> list[tuple[int, int]]:
    """The pieces' clusters as disjoint ranges."""
    ranges: list[tuple[int, int]] = []
    for piece in pieces:
        start = align_down(piece.offset, cluster)
        end = align_up(piece.offset + vector_length(piece.vector), cluster)
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((start, end))
    return ranges


def _write_piece(node: FormatNode, offset: int, vector: Vector, plans: list[WritePlan]) -> None:
    """Write one piece; new plans are appended, not committed."""
    length = vector_length(vector)
    done = 0
    while done < length:
        planned = plans[-1] if plans else None
        position = offset + done
        if planned is not None and planned.start <= position < planned.start + planned.length:
            # An earlier piece has just been given this cluster.
            count = min(length - done, planned.start + planned.length - position)
            part = slice_vector(vector, done, count)
            if node.sink is not None:
                node.sink(node, "write_aio", {"offset": position, "length": count})
            node.file.writev(planned.host + position - planned.start, part)
            done += count
            continue
        count = _write_placed(
            node, position, slice_vector(vector, done, length - done), length - done
        )
        done += count
        if done < length:
            plan = node.plan_write(offset + done, length - done)
            plans.append(plan)
            count = plan.length - plan.head - plan.tail
            _write_planned(node, plan, slice_vector(vector, done, count))
            done += count


def _write_planned(node: FormatNode, plan: WritePlan, vector: Vector) -> None:
    """Write a plan's data with its head and tail in one request.

    What is announced is in QEMU's order, which makes three requests of it: what is around the data
    is read and written part by part, then comes the data.
    """
    head = _filling(node, plan.start, plan.head, plan.copy_head, plan.fresh)
    tail_start = plan.start + plan.length - plan.tail
    tail = _filling(node, tail_start, plan.tail, plan.copy_tail, plan.fresh)
    host = plan.host if head else plan.host + plan.head
    if node.sink is not None:
        length = plan.length - plan.head - plan.tail
        node.sink(node, "write_aio", {"offset": plan.start + plan.head, "length": length})
    node.file.writev(host, [*head, *vector, *tail])


def _filling(node: FormatNode, offset: int, length: int, copy: bool, fresh: bool) -> Vector:
    """What surrounds the data in a new cluster; empty where the space reads as zeroes anyway."""
    if not length:
        return []
    filling = _filling_bytes(node, offset, length, copy, fresh)
    if node.sink is not None:
        node.sink(node, "cow_write", {"offset": offset, "length": length})
    return filling


def _filling_bytes(node: FormatNode, offset: int, length: int, copy: bool, fresh: bool) -> Vector:
    # Bytes of the last cluster that lie behind the end of the disk are zero, whatever is below.
    inside = min(length, node.size - offset) if copy else 0
    if inside <= 0:
        return [] if fresh else zero_vector(length)
    copied = bytearray(length)
    read_below(node, offset, [memoryview(copied)[:inside]])
    if fresh and is_zero(copied):
        return []
    return [memoryview(copied)]


def copy_up(node: FormatNode, offset: int, length: int) -> None:
    """Copy what lies below into this layer, in whole clusters: copy-on-read.

    What no layer has stays as it is. Races with writers are settled by the range lock: what they
    have allocated meanwhile is not touched.
    """
    cluster = node.cluster_size
    position = align_down(offset, cluster)
    end = min(align_up(offset + length, cluster), node.size)
    while position < end:
        extent = resolve(node, position, end - position, holes=False)
        if extent.present and extent.depth > 0:
            # Extents below may start within a cluster; all of it is copied.
            start = align_down(position, cluster)
            stop = min(align_up(extent.end, cluster), end, start + max(COPY_PIECE, cluster))
            _copy_clusters(node, start, stop)
            position = stop
        else:
            position = extent.end


def copy_up_all(node: FormatNode, offset: int, length: int) -> None:
    """`copy_up`, and zero clusters for what no layer has: another layer may come below."""
    start = align_down(offset, node.cluster_size)
    _copy_clusters(node, start, min(align_up(offset + length, node.cluster_size), node.size))


def _copy_clusters(node: FormatNode, start: int, end: int) -> None:
    """Copy the clusters of a range that are still unallocated."""
    ranges = [(start, align_up(end, node.cluster_size))]
    node.ranges.run(ranges, _copy_clusters_alone, node, start, end)


def _copy_clusters_alone(node: FormatNode, start: int, end: int) -> None:
    plans: list[WritePlan] = []
    try:
        while start < end:
            kind, count, _, _ = node.map(start, end - start)
            if kind == BACKING:
                copied = bytearray(count)
                read_below(node, start, [memoryview(copied)])
                if is_zero(copied):
                    _plan_zeroes(node, start, count, plans)
                else:
                    _write_piece(node, start, [memoryview(copied)], plans)
            start += count
        if plans:
            node.commit_writes(plans)
    except BaseException:
        node.abandon_writes(plans)
        raise


def _plan_zeroes(node: FormatNode, start: int, length: int, plans: list[WritePlan]) -> None:
    """Zero clusters for a run of clusters without a place."""
    done = 0
    while done < length:
        plan = node.plan_zero(start + done, length - done)
        assert plan is not None
        plans.append(plan)
        done += plan.length


# --- discarding -----------------------------------------------------------------------------------


def discard_mapped(node: FormatNode, offset: int, length: int) -> None:
    """Discard the storage of whole clusters; ends that cover a part of one are dropped."""
    cluster = node.cluster_size
    end = offset + length
    start = align_up(offset, cluster)
    stop = end if end == node.size else align_down(end, cluster)
    while start < stop:
        placed = node.place(start, stop - start)
        if placed is not None:
            child, host, count = placed
            child.discard(host, count)
        else:
            count = node.map(start, stop - start)[1]
        start += count
