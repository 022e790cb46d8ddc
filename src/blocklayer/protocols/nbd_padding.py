# SPDX-License-Identifier: Apache-2.0
"""Byte granularity above exports whose server wants whole blocks.

Requests that are whole blocks go straight through: unlike storage that is opened for direct
access, a server does not care where they lie in memory.
"""

from __future__ import annotations

from blocklayer.base.buffers import Vector, vector_length
from blocklayer.core.node import Node
from blocklayer.core.padding import Padded


class PaddedExport(Padded):
    """`Padded` with a short way."""

    def __init__(self, child: Node) -> None:
        super().__init__(child)
        self._block = child.limits.request_alignment

    def readv(self, offset: int, vector: Vector) -> None:
        """Straight into the caller's memory, if that is whole blocks."""
        if (offset | vector_length(vector)) % self._block:
            super().readv(offset, vector)
        else:
            self.child.readv(offset, vector)

    def writev(self, offset: int, vector: Vector) -> None:
        """Whole blocks still wait for whoever changes a part of one of them."""
        length = vector_length(vector)
        if (offset | length) % self._block:
            super().writev(offset, vector)
        else:
            ranges = [(offset, offset + length)]
            self.ranges.run(ranges, self.child.writev, offset, vector)
