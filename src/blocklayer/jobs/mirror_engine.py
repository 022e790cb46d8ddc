# SPDX-License-Identifier: Apache-2.0
"""How jobs that copy move bytes: in the background, and with the guest's own writes.

    dirty    granules in which the target may differ from the source. A guest's write marks them
             after it has changed the source; the copier unmarks them before it looks at the source.
             Whatever comes between is marked again, so nothing is lost. (A backup has a use of its
             own for the marks: what has not been copied yet, see `backup`.)
    zero     granules of the target that are known to read as zeroes (`ZeroBitmap`)
    ranges   who changes the target holds the granules it touches, so that what is known of them is
             true, and the guest's later bytes are never overwritten by earlier ones

Order of locks: the source's tracker, `ranges`, the nodes' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from blocklayer.base.align import align_down, align_up
from blocklayer.base.buffers import Vector, slice_vector, vector_length
from blocklayer.base.errors import BlocklayerError
from blocklayer.base.units import KiB, MiB
from blocklayer.core.bitmap import Bitmap
from blocklayer.core.disk import Disk
from blocklayer.core.kernel_copy import copy_in_kernel, may_copy
from blocklayer.core.mapping import reads_as_zero, row_batches
from blocklayer.core.node import ALLOCATE, NATIVE, UNMAP, Node, Span
from blocklayer.core.requests import RangeLock
from blocklayer.core.zero_runs import find_zeroes
from blocklayer.jobs.zero_bitmap import ZeroBitmap

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.jobs.workers import StepBuffer

BLOCK = 4 * KiB
"""Zeroes are looked for in blocks of this size."""

EMULATED_ZERO_MAX = 16 * MiB
"""Zeroes that have to be written are written in pieces between which the job can be stopped."""

KERNEL_MIN = 64 * KiB
"""What is shorter is as fast with a buffer."""

LOOK_MAX = MiB
"""What is shorter is read and looked at, without asking the source where it reads as zeroes.

Looking costs little where there is data, and dirty granules rarely are holes. Where the kernel can
share blocks it is asked all the same.
"""

SMALL_EXTENT = 64 * KiB
"""Asking where such a one ends takes longer than reading it, while other threads want to run."""

QUESTIONS = 8
"""Asked before the answers' lengths are judged."""

BYTES, ZEROES, MIXED = "bytes", "zeroes", "mixed"

READ, WRITE = "read", "write"


class IoFailed(Exception):
    """I/O on one side has failed.

    side  `READ` or `WRITE`; events call the operation so
    """

    def __init__(self, side: str, error: BlocklayerError) -> None:
        super().__init__(str(error))
        self.side = side
        self.error = error


class Moved:
    """What a step has done, in bytes: data copied, zeroes written, zeroes left as they were."""

    __slots__ = ("data", "skipped", "zero")

    def __init__(self) -> None:
        self.data = self.zero = self.skipped = 0


class Engine:
    """The bitmaps of one job, and everything of it that touches its target.

    on_guest_error  told when the target could not follow a guest's write
    on_guest_moved  told how many bytes a guest's write has brought to the target
    """

    def __init__(
        self,
        source: Node,
        target: Disk,
        granularity: int,
        *,
        unmap: bool,
        on_guest_error: Callable[[BlocklayerError], None],
        on_guest_moved: Callable[[int], None],
    ) -> None:
        self.source = source
        self.target = target
        self.size = source.size
        self.granularity = granularity
        self.dirty = Bitmap(self.size, granularity)
        self.zero = ZeroBitmap(self.size, granularity)
        self.unmap = unmap and target.discard_mode == "unmap"
        self.write_blocking = False
        """Guests wait until the target has their writes, too."""
        self.stopped = False
        """Nothing is written to the target any more."""
        self.guest_requests = 0
        """How often guests have changed the source, about: to see how busy they are."""
        self._may_share = may_copy(source, target)
        self._ranges = RangeLock()
        self._on_guest_error = on_guest_error
        self._on_guest_moved = on_guest_moved
        self._zero_min = BLOCK if self.unmap else max(granularity, BLOCK)

    # --- in the background ----------------------------------------------------------------------

    def copy(self, runs: list[tuple[int, int]], buffer: StepBuffer) -> Moved:
        """Bring runs of whole granules, no longer marked dirty, to the target.

        Ascending. Raises `IoFailed`; then they have to be marked again.
        """
        start, end = runs[0][0], sum(runs[-1])
        moved = Moved()
        self._ranges.run([self._whole(start, end - start)], self._copy_runs, runs, buffer, moved)
        return moved

    def copy_marked(
        self, runs: list[tuple[int, int]], buffer: StepBuffer, *, whole: bool = False
    ) -> Moved:
        """Bring what is marked in some ranges to the target, and unmark it.

        whole  also the rest of the granules at the ends. Raises `IoFailed`; then what is not done
               is still marked.
        """
        start, end = self._whole(runs[0][0], sum(runs[-1]) - runs[0][0])
        if whole:
            runs = [(start, min(end, self.size) - start)]
        moved = Moved()
        self._ranges.run([(start, end)], self._copy_marked, runs, buffer, moved)
        return moved

    def _copy_marked(self, runs: list[tuple[int, int]], buffer: StepBuffer, moved: Moved) -> None:
        for offset, length in runs:
            end = offset + length
            for start, count in self.dirty.runs(offset):
                if start >= end:
                    break
                start, stop = max(start, offset), min(start + count, end)
                self._copy_runs([(start, stop - start)], buffer, moved)
                self.dirty.clear(start, stop - start)

    def _copy_runs(self, runs: list[tuple[int, int]], buffer: StepBuffer, moved: Moved) -> None:
        load = _Load(self, buffer, moved)
        for offset, length in runs:
            for start, count, known_zero in self.zero.segments(offset, length):
                for position, size, kind in self._pieces(start, count, known_zero):
                    if kind == ZEROES and known_zero:
                        moved.skipped += size
                    elif kind == ZEROES:
                        self._write_zero(position, size, moved, unmap=self.unmap)
                    else:
                        done = 0
                        if kind == BYTES and self._may_share:
                            done = self._copy_in_kernel(position, size, moved, known_zero)
                        load.read(position + done, size - done, known_zero)
        load.write()

    def _copy_in_kernel(self, offset: int, length: int, moved: Moved, known_zero: bool) -> int:
        """Bytes at the start of a range that needed no buffer; errors are the slower way's."""
        done = 0
        while length - done >= KERNEL_MIN:
            self.zero.clear(offset + done, length - done)
            try:
                count = copy_in_kernel(self.source, self.target, offset + done, length - done)
            except BlocklayerError:
                break
            if not count:
                break
            done += count
        if known_zero and done < length:
            self.zero.set(offset + done, length - done)  # nothing was written there
        moved.data += done
        return done

    def _pieces(self, offset: int, length: int, known_zero: bool) -> Iterator[tuple[int, int, str]]:
        """The source's extents in a range as (offset, length, kind), merged.

        Where they are small and each costs a question, the rest is `MIXED`: it is read and looked
        at, which is faster.
        """
        if length <= LOOK_MAX and not self._may_share:
            yield offset, length, MIXED
            return
        least = 1 if known_zero else self._zero_min
        start, end, kind = offset, offset + length, BYTES
        try:
            for asked, batch in enumerate(row_batches(self.source, offset, length), 1):
                for row in batch:
                    is_zero = row[3] and (kind == ZEROES or row[1] >= least)
                    if is_zero != (kind == ZEROES):
                        if row[0] > start:
                            yield start, row[0] - start, kind
                        start, kind = row[0], ZEROES if is_zero else BYTES
                found = batch[-1][0] + batch[-1][1]
                if asked % QUESTIONS == 0 and found - offset < asked * SMALL_EXTENT:
                    if found < end:
                        yield start, found - start, kind
                        start, kind = found, MIXED
                    break
        except BlocklayerError as error:
            raise IoFailed(READ, error) from error
        if start < end:
            yield start, end - start, kind

    def know_dirty_as_zero(self) -> None:
        """The target was found to read as zeroes: so it does where nothing was copied since.

        For jobs that unmark what they have copied.
        """
        everything = self._whole(0, self.size)
        self._ranges.run([everything], self._know_dirty_as_zero)

    def _know_dirty_as_zero(self) -> None:
        for offset, length in self.dirty.runs():
            self.zero.set(offset, length)

    def read_source(self, offset: int, view: memoryview) -> None:
        """Raises `IoFailed`."""
        try:
            self.source.readv(offset, [view])
        except BlocklayerError as error:
            raise IoFailed(READ, error) from error

    def write_target(self, writes: list[tuple[int, memoryview]]) -> None:
        """Raises `IoFailed`. The granules are the caller's."""
        for offset, view in writes:
            self.zero.clear(offset, len(view))
        try:
            self.target.write_many(writes)
        except BlocklayerError as error:
            raise IoFailed(WRITE, error) from error

    def _write_zero(self, offset: int, length: int, moved: Moved, *, unmap: bool) -> None:
        """Make a range of the target zero unless it is. The granules are the caller's."""
        if self.zero.is_set(offset, length):
            moved.skipped += length
            return
        native = self.target.node.zero_ability == NATIVE
        piece = length if native else align_up(EMULATED_ZERO_MAX, self.granularity)
        try:
            for start in range(offset, offset + length, piece):
                count = min(piece, offset + length - start)
                self.target.write_zeroes(start, count, unmap=unmap)
                self.zero.set(start, count)
        except BlocklayerError as error:
            raise IoFailed(WRITE, error) from error
        moved.zero += length

    def _whole(self, offset: int, length: int) -> tuple[int, int]:
        """The granules that a range touches."""
        return align_down(offset, self.granularity), align_up(offset + length, self.granularity)

    # --- with the guest's writes ----------------------------------------------------------------

    def guest_wrote(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        """A guest has written to the source's storage by itself."""
        self.guest_requests += len(requests)
        self.dirty.set_each(requests)

    def guest_write_each(self, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        """A guest writes a batch, which the target need not follow."""
        self.guest_requests += len(requests)
        try:
            return self.source.write_each(requests)
        finally:
            for offset, vector in requests:
                self.dirty.set(offset, vector_length(vector))

    def guest_write(self, offset: int, vector: Vector) -> None:
        """A guest writes."""
        length = vector_length(vector)

        def to_source() -> None:
            self.source.writev(offset, vector)

        def to_target(start: int, count: int) -> int:
            part = slice_vector(vector, start - offset, count)
            self.zero.clear(start, count)
            self.target.write_many(_at(start, part))
            return count

        self._guest_change(offset, length, to_source, to_target)

    def guest_zero(self, offset: int, length: int, flags: int) -> None:
        """A guest writes zeroes."""

        def to_source() -> None:
            self.source.zero(offset, length, flags)

        def to_target(start: int, count: int) -> int:
            unmap = self.unmap and bool(flags & UNMAP) and not flags & ALLOCATE
            return self._zero_for_guest(start, count, unmap=unmap)

        self._guest_change(offset, length, to_source, to_target)

    def guest_discard(self, offset: int, length: int) -> None:
        """A guest discards. The target gets what the source has now, whatever that is.

        So both stay equal, although a discard promises nothing of what can be read later.
        """

        def to_source() -> None:
            self.source.discard(offset, length)

        def to_target(start: int, count: int) -> int:
            if reads_as_zero(self.source, start, count):
                return self._zero_for_guest(start, count, unmap=self.unmap)
            self.dirty.set(start, count)
            return 0

        self._guest_change(offset, length, to_source, to_target)

    def _zero_for_guest(self, offset: int, length: int, *, unmap: bool) -> int:
        moved = Moved()
        try:
            self._write_zero(offset, length, moved, unmap=unmap)
        except IoFailed as failure:
            raise failure.error from failure
        return moved.zero

    def _guest_change(
        self,
        offset: int,
        length: int,
        to_source: Callable[[], None],
        to_target: Callable[[int, int], int],
    ) -> None:
        self.guest_requests += 1
        if self.write_blocking and not self.stopped:
            ranges = [self._whole(offset, length)]
            self._ranges.run(ranges, self._change_both, offset, length, to_source, to_target)
            return
        try:
            to_source()
        finally:  # a request that failed, or that was refused, may have changed a part
            self.dirty.set(offset, length)

    def _change_both(
        self,
        offset: int,
        length: int,
        to_source: Callable[[], None],
        to_target: Callable[[int, int], int],
    ) -> None:
        start, end = self._without_dirty_ends(offset, offset + length)
        # Unmarked before the source changes: another write of these bytes, which does not hold the
        # range (a switch of the copy mode is in flight), marks them after it has changed the
        # source, and that mark has to stay. What is only partly rewritten stays marked anyway.
        self.dirty.clear(start, max(0, end - start))
        try:
            to_source()
        except BaseException:
            self.dirty.set(offset, length)
            raise
        if start >= end:
            return
        try:
            self._on_guest_moved(to_target(start, end - start))
        except BlocklayerError as error:
            self.dirty.set(start, end - start)
            self._on_guest_error(error)
        except BaseException:
            self.dirty.set(start, end - start)
            raise

    def _without_dirty_ends(self, start: int, end: int) -> tuple[int, int]:
        """Parts of granules that are to be copied as a whole anyway need not be written now."""
        first = align_up(start, self.granularity)
        if start < first and self.dirty.is_set(start):
            start = first
        last = align_down(end, self.granularity)
        if last < end < self.size and start < end and self.dirty.is_set(end - 1):
            end = last
        return start, end


def _at(offset: int, vector: Vector) -> list[tuple[int, memoryview]]:
    """A vector as (offset, view) requests."""
    placed = []
    for view in vector:
        placed.append((offset, view))
        offset += len(view)
    return placed


class _Load:
    """Data on its way through a buffer: read piece by piece, written together."""

    def __init__(self, engine: Engine, buffer: StepBuffer, moved: Moved) -> None:
        self._engine = engine
        self._buffer = buffer
        self._moved = moved
        self._filled = 0
        self._parts: list[tuple[int, int, int, bool]] = []

    def read(self, offset: int, length: int, known_zero: bool) -> None:
        """Read a piece of the source; what was read before is written when there is no room.

        known_zero  the target reads as zeroes there, as long as nothing of it is written
        """
        while length:
            view = memoryview(self._buffer.memory)
            room = len(view) - self._filled
            if not room:
                self.write()
                continue
            count = min(room, length)
            start = self._filled
            self._engine.read_source(offset, view[start : start + count])
            self._parts.append((offset, count, start, known_zero))
            self._filled += count
            offset += count
            length -= count

    def write(self) -> None:
        """Write what was read, but for zeroes."""
        if not self._parts:
            return
        memory = self._buffer.memory
        view = memoryview(memory)
        writes: list[tuple[int, memoryview]] = []
        zeroes: list[tuple[int, int]] = []
        moved = self._moved
        for offset, length, start, known_zero in self._parts:
            for begin, count, zero in find_zeroes(memory, start, length, offset, BLOCK):
                place = offset + begin - start
                if zero and known_zero:
                    moved.skipped += count
                elif zero and count >= self._engine._zero_min:
                    zeroes.append((place, count))
                else:
                    writes.append((place, view[begin : begin + count]))
                    moved.data += count
        self._parts.clear()
        self._filled = 0
        for place, count in zeroes:
            self._engine._write_zero(place, count, moved, unmap=self._engine.unmap)
        if writes:
            self._engine.write_target(writes)
