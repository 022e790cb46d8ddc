# SPDX-License-Identifier: Apache-2.0
"""Zero detection: writes whose bytes are zero become zeroing, whole or by cluster."""

from __future__ import annotations

from blocklayer.base.align import align_down
from blocklayer.base.buffers import ZEROES
from blocklayer.base.units import KiB
from blocklayer.core import io as core_io
from blocklayer.core.node import UNMAP, Node

_STEP = 4 * KiB


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


def write_detecting(node: Node, offset: int, view: memoryview, *, unmap: bool) -> None:
    """Write a buffer; its zero clusters, or all of it, are zeroed instead."""
    flags = UNMAP if unmap else 0
    if view_is_zero(view):
        core_io.zero_range(node, offset, len(view), flags)
        return
    unit = max(node.limits.opt_transfer, _STEP)
    end = offset + len(view)
    start = position = offset
    while position < end:
        stop = min(align_down(position, unit) + unit, end)
        whole = stop - position == unit
        if whole and view_is_zero(view[position - offset : stop - offset]):
            if start < position:
                node.writev(start, [view[start - offset : position - offset]])
            core_io.zero_range(node, position, unit, flags)
            start = stop
        position = stop
    if start < end:
        node.writev(start, [view[start - offset :]])
