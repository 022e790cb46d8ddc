# SPDX-License-Identifier: Apache-2.0
"""A guest's zeroing that its disk refuses half way is followed all the same."""

from __future__ import annotations

import pytest

from blocklayer.base.errors import BlocklayerError, NotSupported
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.filter import FilterNode
from blocklayer.jobs.mirror_engine import Engine
from blocklayer.jobs.workers import StepBuffer
from blocklayer.protocols.memory import MemoryNode


class HalfWay(FilterNode):
    """Zeroes the first half of a range, and refuses the rest."""

    driver = "half-way"

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        super().zero(offset, length // 2, flags)
        raise NotSupported("no further")


def unexpected(error: BlocklayerError) -> None:
    raise error


@pytest.mark.parametrize("follow", [False, True])
def test_what_was_zeroed_before_a_refusal_is_copied(follow: bool) -> None:
    source, target = MemoryNode(MiB), Disk(MemoryNode(MiB))
    source.writev(0, [memoryview(b"x" * MiB)])
    target.write(0, b"x" * MiB)
    engine = Engine(
        HalfWay(source),
        target,
        64 * KiB,
        unmap=False,
        on_guest_error=unexpected,
        on_guest_moved=lambda amount: None,
    )
    engine.write_blocking = follow
    with pytest.raises(NotSupported):
        engine.guest_zero(0, 512 * KiB, 0)
    runs = list(engine.dirty.runs())
    assert runs == [(0, 512 * KiB)]
    engine.copy(runs, StepBuffer(MiB))
    assert target.read(0, MiB) == bytes(256 * KiB) + b"x" * 768 * KiB
    target.close()
