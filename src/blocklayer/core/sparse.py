# SPDX-License-Identifier: Apache-2.0
"""Reading without moving what need not be moved: zeroes, and bytes that the kernel can send."""

from __future__ import annotations

from blocklayer.base.extent import BACKING, DATA, ZERO
from blocklayer.core.mapping import row_batches
from blocklayer.core.node import FormatNode, Node

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias

NOWHERE = -1
"""Stands for the descriptor of a run of zeroes."""

Place: TypeAlias = "tuple[int, int, int]"
"""(length, descriptor, host offset)"""

PLACES_MAX = 1024
"""Places of one request; one that is scattered wider is better read."""


def read_sparse(node: Node, offset: int, view: memoryview) -> list[tuple[int, bool]]:
    """Fill `view` with the bytes from `offset`, except for what is known to be zeroes.

    The (length, zero) runs of the view in order; neighbours differ.
    """
    runs: list[tuple[int, bool]] = []
    for rows in row_batches(node, offset, len(view)):
        for row in rows:
            length, zero = row[1], row[3]
            if runs and runs[-1][1] == zero:
                length += runs.pop()[0]
            runs.append((length, zero))
    position = 0
    for length, zero in runs:
        if not zero:
            node.readv(offset + position, [view[position : position + length]])
        position += length
    return runs


def locate(node: Node, offset: int, length: int) -> list[Place] | None:
    """Where a range lies in plain files, whole and in order; None if a part lies elsewhere."""
    places: list[Place] = []
    end = offset + length
    while offset < end:
        place = _locate_first(node, offset, end - offset)
        if place is None or len(places) == PLACES_MAX:
            return None
        offset += place[0]
        if places:
            count, descriptor, host = places[-1]
            if descriptor == place[1] and (descriptor == NOWHERE or host + count == place[2]):
                places.pop()
                place = (count + place[0], descriptor, host)
        places.append(place)
    return places


def _locate_first(node: Node, offset: int, length: int) -> Place | None:
    while True:
        if node.sink is not None:
            return None  # somebody wants to be told of every read
        if not isinstance(node, FormatNode):
            return _in_file(node, offset, length)
        length = min(length, node.size - offset)
        kind, count, child, host = node.map(offset, length)
        length = min(length, count)
        if kind == DATA:
            assert child is not None
            if not node.recurse_status and child.inline_descriptor is not None:
                return length, child.inline_descriptor, host
            node, offset = child, host
        elif kind == ZERO or (kind == BACKING and node.backing is None):
            return length, NOWHERE, 0
        elif kind == BACKING:
            assert node.backing is not None
            node = node.backing
            if offset >= node.size:
                return length, NOWHERE, 0
            length = min(length, node.size - offset)
        else:
            return None


def _in_file(node: Node, offset: int, length: int) -> Place | None:
    descriptor = node.inline_descriptor
    if descriptor is None:
        return None
    kind, count, _, _ = node.map(offset, length)
    if kind == ZERO:
        return min(count, length), NOWHERE, 0
    return (min(count, length), descriptor, offset) if kind == DATA else None
