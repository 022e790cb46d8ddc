# SPDX-License-Identifier: Apache-2.0
"""Reading without moving zeroes: for those who can pass on that a run reads as zeroes."""

from __future__ import annotations

from blocklayer.core.mapping import row_batches
from blocklayer.core.node import Node


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
