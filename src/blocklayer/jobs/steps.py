# SPDX-License-Identifier: Apache-2.0
"""What a copying job does next: dirty runs in steps, in ascending order, round and round."""

from __future__ import annotations

from blocklayer.base.align import align_up
from blocklayer.base.errors import BlocklayerError
from blocklayer.base.units import MiB
from blocklayer.core.mapping import row_batches

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.node import Node
    from blocklayer.jobs.mirror_engine import Engine

STEP_SPAN = 8 * MiB
"""Steps collect small dirty runs; if guests may wait for a step, those that lie near each other."""

CAUTION_MAX = 12
"""Halvings of a step after failures: of 2 MiB that leaves one sector."""


class Step:
    """Dirty runs, in ascending order, that are copied by one thread."""

    __slots__ = ("end", "length", "runs", "start")

    def __init__(self, runs: list[tuple[int, int]]) -> None:
        self.runs = runs
        self.start = runs[0][0]
        self.end = sum(runs[-1])
        self.length = sum(length for _, length in runs)

    def overlaps(self, other: Step) -> bool:
        """Whether both may touch the same granule."""
        return self.start < other.end and other.start < self.end


class Steps:
    """Cuts what the engine has marked into steps. One thread asks; workers tell how steps went.

    passes  how often the end of the disk, or of what was marked, was reached
    """

    def __init__(self, source: Node, engine: Engine, step_bytes: int) -> None:
        self._source = source
        self._engine = engine
        self._step_bytes = step_bytes
        self._cursor = 0
        self._caution = 0
        """After failures steps are halved so often: what can be copied is soon copied."""
        self.passes = 0

    def find(self, speed: int) -> Step | None:
        """The next dirty runs, still marked; shorter ones if `speed`, in bytes a second, is low."""
        limit = self._limit(speed)
        step = self._collect(self._cursor, limit)
        if step is None and self._cursor:
            self.passes += 1
            self._cursor = 0
            step = self._collect(0, limit)
        return step

    def take(self, step: Step) -> None:
        """What was found is done now; the next is behind it."""
        self._cursor = step.end
        if step.end >= self._engine.size:
            self._cursor = 0
            self.passes += 1

    def went_well(self) -> None:
        """A step is done."""
        self._caution = max(0, self._caution - 1)

    def went_wrong(self) -> None:
        """A step has failed."""
        self._caution = min(self._caution + 2, CAUTION_MAX)

    def _collect(self, start: int, limit: int) -> Step | None:
        engine = self._engine
        span = STEP_SPAN if engine.write_blocking else engine.size
        runs: list[tuple[int, int]] = []
        size = 0
        for offset, length in engine.dirty.runs(start):
            offset, length = max(offset, start), length - max(0, start - offset)
            if runs and offset + min(length, limit) - runs[0][0] > span:
                break
            if not runs and length > limit and (zeroes := self._zeroes_from(offset, length)):
                return Step([(offset, zeroes)])
            count = min(length, limit - size)
            runs.append((offset, count))
            size += count
            if size >= limit:
                break
        return Step(runs) if runs else None

    def _limit(self, speed: int) -> int:
        """Bytes that a step may have now."""
        limit = self._step_bytes >> self._caution
        if speed:
            limit = min(limit, speed // 10)
        return align_up(max(limit, 1), self._engine.granularity)

    def _zeroes_from(self, offset: int, length: int) -> int:
        """Whole granules of zeroes that the source has there now: a hint, it is looked at again."""
        try:
            row = next(row_batches(self._source, offset, length))[0]
        except (BlocklayerError, StopIteration):
            return 0  # whoever copies it meets the same error and says where
        if not row[3] or row[1] <= self._step_bytes:
            return 0
        end = offset + row[1]
        granularity = self._engine.granularity
        return row[1] if end >= self._engine.size else end // granularity * granularity - offset
