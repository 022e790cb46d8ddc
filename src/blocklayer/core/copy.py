# SPDX-License-Identifier: Apache-2.0
"""The copy engine: guest bytes from one disk to another, zeroes left out.

    reader thread    extents -> pieces -> read, look for zeroes  ─┐  bounded queue
    caller's thread  write what is data, zero what has to be     ─┘  in ascending order

Reading and writing overlap on two cores, and writing in order keeps the target's clusters in the
order of the guest. Buffers are few and reused, so memory does not depend on the image.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from blocklayer.base.align import align_down, align_up
from blocklayer.base.buffers import ZERO_CHUNK, ZEROES
from blocklayer.base.errors import BlocklayerError, IoError
from blocklayer.base.extent import Extent
from blocklayer.base.progress import Reporter
from blocklayer.base.units import SECTOR, KiB, MiB
from blocklayer.core.disk import Disk

PIECE = 2 * MiB
"""Bytes read at once."""

BUFFERS = 4
"""Pieces between reader and writer."""

ZERO_GRANULARITY = 4 * KiB
"""Runs of zeroes shorter than this are copied as data (qemu-img's -S default)."""


class Source(Protocol):
    """What can be copied from: a disk, or several in a row."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """As `Disk.extents`."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """As `Disk.read_into`."""
        ...


class Concatenation:
    """Several disks one after the other."""

    def __init__(self, disks: list[Disk]) -> None:
        self._disks = disks
        self._starts = [0]
        for disk in disks:
            self._starts.append(self._starts[-1] + disk.size)
        self.size = self._starts[-1]

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The disks' extents, moved to where each disk starts; always of everything."""
        for start, disk in zip(self._starts, self._disks, strict=False):
            for extent in disk.extents():
                yield extent.moved(extent.offset + start)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read across the borders of disks."""
        done = 0
        for start, disk in zip(self._starts, self._disks, strict=False):
            position = offset + done - start
            if 0 <= position < disk.size and done < len(buffer):
                count = min(disk.size - position, len(buffer) - done)
                disk.read_into(position, buffer[done : done + count])
                done += count
        return done


@dataclass(slots=True)
class CopyResult:
    """Bytes written as data, bytes zeroed or left as zeroes, and ranges that could not be read."""

    data: int = 0
    zero: int = 0
    salvaged: list[tuple[int, int]] = field(default_factory=list)

    def add_salvaged(self, offset: int, length: int) -> None:
        """Bytes from `offset` could not be read; neighbours become one range."""
        if self.salvaged and sum(self.salvaged[-1]) == offset:
            offset, before = self.salvaged.pop()
            length += before
        self.salvaged.append((offset, length))


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """How to copy.

    target_is_zero    the target reads as zeroes where nothing was written: zeroes are skipped
    sparse_size       granularity of looking for zeroes in data; 0 copies everything as data
    only_differences  the target already has content (a backing file): write what differs
    salvage           unreadable sectors become zeroes
    rate_limit        bytes per second; 0 is no limit
    """

    target_is_zero: bool = False
    sparse_size: int = ZERO_GRANULARITY
    only_differences: bool = False
    salvage: bool = False
    rate_limit: int = 0


@dataclass(slots=True)
class _Piece:
    """One step of the writer: a run of zeroes, or data in a buffer with its runs."""

    offset: int
    length: int
    buffer: bytearray | None = None
    runs: list[tuple[int, int, bool]] = field(default_factory=list)


STEP_SECONDS = 0.1
"""A copy that waits or is held back notices within this time that it was cancelled."""


class Pace:
    """Holds a copy to a number of bytes per second; 0 does not."""

    def __init__(self, rate_limit: int, reporter: Reporter) -> None:
        self._rate_limit = rate_limit
        self._reporter = reporter
        self._done = 0
        self._started = time.monotonic()

    def advance(self, amount: int) -> None:
        """`amount` bytes were copied: sleep for as long as that was too fast."""
        if self._rate_limit:
            self._done += amount
            due = self._started + self._done / self._rate_limit
            while (ahead := due - time.monotonic()) > 0:
                time.sleep(min(ahead, STEP_SECONDS))
                self._reporter.check()


class _Stopped(Exception):
    """The writer has given up; the reader ends."""


def copy(source: Source, target: Disk, options: CopyOptions, reporter: Reporter) -> CopyResult:
    """Copy everything of `source`; what lies behind it in a longer target is not touched."""
    engine = _Copy(source, target, options, reporter)
    return engine.run()


class _Copy:
    def __init__(
        self, source: Source, target: Disk, options: CopyOptions, reporter: Reporter
    ) -> None:
        self._source = source
        self._target = target
        self._options = options
        self._reporter = reporter
        self._result = CopyResult()
        self._free: queue.Queue[bytearray] = queue.Queue()
        self._ready: queue.Queue[_Piece | BaseException | None] = queue.Queue(BUFFERS)
        self._stop = threading.Event()
        self._pace = Pace(options.rate_limit, reporter)
        for _ in range(BUFFERS):
            self._free.put(bytearray(PIECE))

    def run(self) -> CopyResult:
        reader = threading.Thread(target=self._read_all, name="blocklayer-copy", daemon=True)
        reader.start()
        try:
            while (piece := self._next_piece()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                before = self._result.data
                self._write(piece)
                self._reporter.advance(piece.length)
                self._pace.advance(self._result.data - before)
        finally:
            self._stop.set()
            reader.join()
        return self._result

    def _next_piece(self) -> _Piece | BaseException | None:
        """What the reader has next; looks whether to stop while it is busy."""
        while True:
            try:
                return self._ready.get(timeout=STEP_SECONDS)
            except queue.Empty:
                self._reporter.check()

    # --- reader ---------------------------------------------------------------------------------

    def _read_all(self) -> None:
        try:
            for piece in self._pieces():
                self._hand_over(piece)
            self._hand_over(None)
        except _Stopped:
            return
        except BaseException as error:
            try:
                self._hand_over(error)
            except _Stopped:
                return

    def _hand_over(self, item: _Piece | BaseException | None) -> None:
        while True:
            if self._stop.is_set():
                raise _Stopped
            try:
                self._ready.put(item, timeout=STEP_SECONDS)
                return
            except queue.Full:
                continue

    def _buffer(self) -> bytearray:
        while True:
            if self._stop.is_set():
                raise _Stopped
            try:
                return self._free.get(timeout=STEP_SECONDS)
            except queue.Empty:
                continue

    def _pieces(self) -> Iterator[_Piece]:
        """Extents cut at multiples of PIECE; neighbouring small extents share a buffer."""
        pending: _Piece | None = None
        for extent in self._source.extents(0, self._source.size):
            position = extent.offset
            while position < extent.end:
                if extent.zero:
                    if pending is not None:
                        yield pending
                        pending = None
                    yield _Piece(position, extent.end - position)
                    break
                limit = align_down(position, PIECE) + PIECE
                if pending is not None and pending.offset + pending.length != position:
                    yield pending
                    pending = None
                if pending is None:
                    pending = _Piece(position, 0, self._buffer())
                count = min(extent.end, limit) - position
                self._read_piece(pending, position, count)
                position += count
                if position == limit:
                    yield pending
                    pending = None
        if pending is not None:
            yield pending

    def _read_piece(self, piece: _Piece, offset: int, length: int) -> None:
        """Append bytes to a piece and find the zeroes in them."""
        assert piece.buffer is not None
        start = piece.length
        view = memoryview(piece.buffer)[start : start + length]
        try:
            self._source.read_into(offset, view)
        except IoError:
            if not self._options.salvage:
                raise
            self._salvage(offset, view)
        finally:
            view.release()
        piece.length += length
        for run in find_zeroes(piece.buffer, start, length, offset, self._options.sparse_size):
            if piece.runs and piece.runs[-1][2] == run[2]:
                first, count, zero = piece.runs[-1]
                piece.runs[-1] = (first, count + run[1], zero)
            else:
                piece.runs.append(run)

    def _salvage(self, offset: int, view: memoryview) -> None:
        """Read sector by sector what cannot be read at once."""
        for start in range(0, len(view), SECTOR):
            sector = view[start : start + SECTOR]
            try:
                self._source.read_into(offset + start, sector)
            except BlocklayerError:
                sector[:] = bytes(len(sector))
                self._result.add_salvaged(offset + start, len(sector))

    # --- writer ---------------------------------------------------------------------------------

    def _write(self, piece: _Piece) -> None:
        if piece.buffer is None:
            self._write_zero(piece.offset, piece.length)
            return
        with memoryview(piece.buffer) as view:
            data = []
            for start, length, zero in piece.runs:
                offset = piece.offset + start
                if zero:
                    self._write_zero(offset, length)
                else:
                    data.extend(self._changed(offset, view[start : start + length]))
            self._target.write_many(data)
            self._result.data += sum(len(part) for _, part in data)
            for _, part in data:
                part.release()
        self._free.put(piece.buffer)

    def _write_zero(self, offset: int, length: int) -> None:
        self._result.zero += length
        options = self._options
        if options.target_is_zero:
            return
        if not options.only_differences:
            allocate = not options.sparse_size
            self._target.write_zeroes(offset, length, unmap=not allocate, allocate=allocate)
            return
        for extent in list(self._target.extents(offset, length)):
            if not extent.zero:
                self._target.write_zeroes(extent.offset, extent.length)

    def _changed(self, offset: int, view: memoryview) -> list[tuple[int, memoryview]]:
        """The parts of `view` that the target does not have already, by its clusters."""
        if not self._options.only_differences:
            return [(offset, view)]
        unit = max(self._target.node.limits.opt_transfer, ZERO_GRANULARITY)
        present = self._target.read(offset, len(view))
        changed = []
        position = offset
        while position < offset + len(view):
            end = min(align_down(position, unit) + unit, offset + len(view))
            part = view[position - offset : end - offset]
            if part.tobytes() != present[position - offset : end - offset]:
                changed.append((position, part))
            position = end
        return changed


def find_zeroes(
    buffer: bytearray, start: int, length: int, offset: int, granularity: int
) -> list[tuple[int, int, bool]]:
    """Cut `length` bytes at `start` into runs (start, length, is zero).

    Zeroes count in whole blocks of `granularity`, aligned to the guest `offset` of the first byte.
    """
    if not granularity:
        return [(start, length, False)]
    runs: list[tuple[int, int, bool]] = []
    run_start, run_zero = start, False
    position, end = start, start + length
    block_end = start + align_up(offset + 1, granularity) - offset
    starts = buffer.startswith
    block = ZEROES[: min(granularity, ZERO_CHUNK)]
    while position < end:
        block_end = min(block_end, end)
        if buffer[position]:
            zero = False
        elif block_end - position == len(block):
            zero = starts(block, position)
        else:
            zero = not any(buffer[position:block_end])
        if zero != run_zero:
            if position > run_start:
                runs.append((run_start, position - run_start, run_zero))
            run_start, run_zero = position, zero
        position = block_end
        block_end += granularity
    runs.append((run_start, end - run_start, run_zero))
    return runs
