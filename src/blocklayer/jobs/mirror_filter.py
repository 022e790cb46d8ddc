# SPDX-License-Identifier: Apache-2.0
"""The node through which guests write while their disk is mirrored."""

from __future__ import annotations

from collections.abc import Sequence

from blocklayer.base.buffers import Vector
from blocklayer.base.errors import BlocklayerError
from blocklayer.core.node import Inline, Node, Span
from blocklayer.jobs.job_filter import JobFilter
from blocklayer.jobs.mirror_engine import Engine


class MirrorFilter(JobFilter):
    """Hands what changes the disk to the mirror's engine."""

    driver = "mirror_top"

    def __init__(self, child: Node, engine: Engine, busy: str) -> None:
        super().__init__(child, busy)
        self._engine = engine

    def inline(self) -> Inline | None:
        """Guests write straight to the child's storage as well, unless the target has to follow."""
        inline = self.child.inline()
        if inline is None or inline.write is None:
            return inline
        engine, lookup = self._engine, inline.write

        def write(offset: int, length: int) -> int:
            return -1 if engine.write_blocking else lookup(offset, length)

        return Inline(inline.read, write, inline.descriptor, engine.guest_wrote)

    def write_each(self, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        """Batches stay together as long as guests write to the source alone."""
        if self._engine.write_blocking:
            return super().write_each(requests)
        return self._engine.guest_write_each(requests)

    def writev(self, offset: int, vector: Vector) -> None:
        """Write to the source, and to the target or its list of things to do."""
        self._engine.guest_write(offset, vector)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zero likewise."""
        self._engine.guest_zero(offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        """Discard likewise."""
        self._engine.guest_discard(offset, length)
