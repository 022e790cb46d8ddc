# SPDX-License-Identifier: Apache-2.0
"""Zero detection: writes whose bytes are zero become zeroing, whole or by cluster.

Data that is no candidate is told apart by a few of its bytes: a block of zeroes begins with one.
"""

from __future__ import annotations

from blocklayer.base.align import align_down
from blocklayer.base.buffers import ZEROES, Vector
from blocklayer.base.units import KiB
from blocklayer.core.node import UNMAP, Node

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias

_STEP = 4 * KiB

Piece: TypeAlias = "tuple[int, int, Vector | None]"
"""(offset, length, bytes); None instead of bytes that are all zero."""


def detection_unit(node: Node) -> int:
    """Zeroes inside larger writes are looked for in aligned blocks of so many bytes."""
    return max(node.limits.opt_transfer, _STEP)


def may_hold_zeroes(offset: int, data: bytes | memoryview, unit: int) -> bool:
    """False if a write is certainly neither all zeroes nor has a whole unit of them."""
    if not data or not data[0]:
        return True
    return len(data) > unit and 0 in bytes(data[-offset % unit :: unit])


def view_is_zero(view: memoryview) -> bool:
    """Whether a view holds nothing but zeroes; leaves at the first byte or block that is not.

    Comparing memoryviews is slow, so blocks are copied out; only zeroes are ever copied.
    """
    if not len(view):
        return True
    if view[0] or view[-1]:
        return False
    position, step = 0, _STEP
    while position < len(view):
        block = view[position : position + step].tobytes()
        if not ZEROES.startswith(block):
            return False
        position += step
        step = min(step * 4, len(ZEROES))
    return True


def find_pieces(offset: int, vector: Vector, unit: int) -> list[Piece]:
    """Cut a write into pieces that are zero and pieces that are not, in ascending order.

    A buffer is zero as a whole, or in whole aligned units; neighbours of a kind become one piece.
    """
    pieces: list[Piece] = []
    for view in vector:
        end = offset + len(view)
        if not may_hold_zeroes(offset, view, unit):
            _append(pieces, offset, view, zero=False)
        elif view_is_zero(view):
            _append(pieces, offset, view, zero=True)
        else:
            start = offset
            while start < end:
                stop = min(align_down(start, unit) + unit, end)
                part = view[start - offset : stop - offset]
                _append(pieces, start, part, zero=stop - start == unit and view_is_zero(part))
                start = stop
        offset = end
    return pieces


def _append(pieces: list[Piece], offset: int, view: memoryview, *, zero: bool) -> None:
    if pieces:
        start, length, vector = pieces[-1]
        if (vector is None) == zero:
            if vector is not None:
                vector.append(view)
            pieces[-1] = (start, length + len(view), vector)
            return
    pieces.append((offset, len(view), None if zero else [view]))


def zero_detected(
    node: Node, offset: int, vector: Vector, unit: int, *, unmap: bool
) -> list[tuple[int, Vector]]:
    """Zero what is zero in a write; the (offset, vector) runs of data that are left to write."""
    from blocklayer.core.zeroing import zero_range

    runs: list[tuple[int, Vector]] = []
    for start, length, data in find_pieces(offset, vector, unit):
        if data is None:
            zero_range(node, start, length, UNMAP if unmap else 0)
        else:
            runs.append((start, data))
    return runs
