# SPDX-License-Identifier: Apache-2.0
"""The node through which guests write while their disk is mirrored."""

from __future__ import annotations

from blocklayer.base.buffers import Vector
from blocklayer.core.node import Node
from blocklayer.jobs.job_filter import JobFilter
from blocklayer.jobs.mirror_engine import Engine


class MirrorFilter(JobFilter):
    """Hands what changes the disk to the mirror's engine."""

    driver = "mirror_top"

    def __init__(self, child: Node, engine: Engine, busy: str) -> None:
        super().__init__(child, busy)
        self._engine = engine

    def writev(self, offset: int, vector: Vector) -> None:
        """Write to the source, and to the target or its list of things to do."""
        self._engine.guest_write(offset, vector)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zero likewise."""
        self._engine.guest_zero(offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        """Discard likewise."""
        self._engine.guest_discard(offset, length)
