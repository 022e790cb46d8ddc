# SPDX-License-Identifier: Apache-2.0
"""Byte granularity above exports whose server wants whole blocks.

Requests that are whole blocks go straight through: unlike storage that is opened for direct
access, a server does not care where they lie in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from blocklayer.base.buffers import Vector, vector_length
from blocklayer.base.errors import BlocklayerError
from blocklayer.core.node import Node, Span
from blocklayer.core.padding import Padded


class PaddedExport(Padded):
    """`Padded` with a short way."""

    driver = "nbd"

    def __init__(self, child: Node) -> None:
        super().__init__(child)
        self._block = child.limits.request_alignment

    def readv(self, offset: int, vector: Vector) -> None:
        """Straight into the caller's memory, if that is whole blocks."""
        if (offset | vector_length(vector)) % self._block:
            super().readv(offset, vector)
        else:
            self.child.readv(offset, vector)

    def read_each(self, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        """All in flight at the same time, if they are whole blocks."""
        if self._are_whole(requests):
            return self.child.read_each(requests)
        return super().read_each(requests)

    def write_each(self, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        """The same; each waits for whoever changes a part of a block of it."""
        if not self._are_whole(requests):
            return super().write_each(requests)
        ranges = [(offset, offset + vector_length(vector)) for offset, vector in requests]
        return self.ranges.run(ranges, self.child.write_each, requests)

    def _are_whole(self, requests: Sequence[Span]) -> bool:
        block = self._block
        return not any((offset | vector_length(vector)) % block for offset, vector in requests)

    def writev(self, offset: int, vector: Vector) -> None:
        """Whole blocks still wait for whoever changes a part of one of them."""
        length = vector_length(vector)
        if (offset | length) % self._block:
            super().writev(offset, vector)
        else:
            ranges = [(offset, offset + length)]
            self.ranges.run(ranges, self.child.writev, offset, vector)
