# SPDX-License-Identifier: Apache-2.0
"""A source in loads: what fits a buffer, read at once, and the zeroes in it found.

Buffers are few and go round: `loads` waits for one that `give_back` has returned. When salvaging,
what cannot be read is taken for zeroes, as little of it as possible.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from blocklayer.base.align import align_down
from blocklayer.base.errors import BlocklayerError, FormatError, IoError
from blocklayer.base.extent import Extent
from blocklayer.base.queues import Empty, SimpleQueue
from blocklayer.base.units import SECTOR, KiB
from blocklayer.core.copy_sources import Source
from blocklayer.core.zero_runs import find_zeroes

BUFFERS = 4
"""Loads that are read and not written yet."""

SALVAGE_STEP = 64 * KiB
"""Guest bytes to go on behind what a table should tell but cannot."""

SALVAGE_TRIES = 16
"""Smaller steps to take first: a single wrong entry hides no more than its own cluster."""

ZERO_GRANULARITY = 4 * KiB
"""Runs of zeroes shorter than this are copied as data (qemu-img's -S default)."""

STEP_SECONDS = 0.1
"""Longest wait or sleep: then it is looked whether the copy was cancelled."""

RUNS_MAX = 1024
"""Runs in one buffer: bounds what one commit makes visible of an image of tiny pieces."""


class Stopped(Exception):
    """Nobody wants the rest: whoever reads it ends."""


class Load:
    """A buffer on its way from the reader to the writer.

    pieces  (guest offset, length, start in the buffer or -1 for zeroes): what is to be read
    runs    the same when it is read and its zeroes are found, ascending
    """

    __slots__ = ("buffer", "data", "filled", "guest", "pieces", "runs", "zero")

    def __init__(self, buffer: bytearray) -> None:
        self.buffer = buffer
        self.filled = 0
        self.guest = 0
        self.data = 0
        self.zero = 0
        self.pieces: list[tuple[int, int, int]] = []
        self.runs: list[tuple[int, int, int]] = []

    def add(self, offset: int, length: int, start: int) -> None:
        """Append a run; a run that continues the last one becomes part of it."""
        self.guest += length
        if self.runs:
            last_offset, last_length, last_start = self.runs[-1]
            # Zeroes are not in the buffer: data may come behind them at any place of it.
            follows = last_start if last_start < 0 else last_start + last_length
            if last_offset + last_length == offset and start == follows:
                self.runs[-1] = (last_offset, last_length + length, last_start)
                return
        self.runs.append((offset, length, start))


class Loader:
    """Takes a source apart. `loads` is one thread's at a time; `fill` may be called by several.

    piece        bytes of a load
    sparse_size  granularity of looking for zeroes; 0 for not at all
    salvage      what cannot be read becomes zeroes, and is told to `lost` as (offset, length)
    """

    def __init__(
        self,
        source: Source,
        piece: int,
        *,
        sparse_size: int,
        salvage: bool,
        lost: Callable[[int, int], None],
    ) -> None:
        self._source = source
        self._piece = piece
        self._sparse_size = sparse_size
        self._salvages = salvage
        self._lost = lost
        self._stop = threading.Event()
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(bytearray())  # made when it is needed, as large as it has to be

    def stop(self) -> None:
        """Whoever waits for a load, or for a buffer, gets `Stopped`."""
        self._stop.set()

    def give_back(self, load: Load) -> None:
        """A load is written: its buffer is free."""
        self._free.put(load.buffer)

    def _new_load(self) -> Load:
        while True:
            if self._stop.is_set():
                raise Stopped
            try:
                return Load(self._free.get(timeout=STEP_SECONDS))
            except Empty:
                continue

    def loads(self) -> Iterator[Load]:
        """What goes into each buffer; data is cut at multiples of pieces: clusters stay whole."""
        piece = self._piece
        load = self._new_load()
        zeroes = 0
        for extent in self._extents():
            if self._stop.is_set():
                raise Stopped
            if extent.zero:
                # More and more of them: the walk may have taken long already.
                zeroes += 1
                if zeroes > RUNS_MAX or (load.pieces and not load.filled):
                    yield load
                    load, zeroes = self._new_load(), 1
                load.pieces.append((extent.offset, extent.length, -1))
                continue
            position = extent.offset
            while position < extent.end:
                count = min(extent.end, align_down(position, piece) + piece) - position
                if load.filled + count > piece or len(load.pieces) >= RUNS_MAX:
                    yield load
                    load, zeroes = self._new_load(), 0
                load.pieces.append((position, count, load.filled))
                load.filled += count
                position += count
        yield load

    def _extents(self) -> Iterator[Extent]:
        """The source's extents; when salvaging, what its tables cannot tell is zeroes."""
        position, size = 0, self._source.size
        failures, failed = 0, -1
        while position < size:
            try:
                for extent in self._source.extents(position, size - position):
                    yield extent
                    position = extent.end
            except (FormatError, IoError):
                if not self._salvages:
                    raise
                failures = failures + 1 if position == failed else 1
                step = SALVAGE_STEP if failures > SALVAGE_TRIES else ZERO_GRANULARITY
                failed = end = min(size, align_down(position, step) + step)
                self._lost(position, end - position)
                yield Extent(position, end - position, False, True, True, 0)
                position = end

    def fill(self, load: Load) -> Load:
        """Read all pieces of a load at once, and find the zeroes in them."""
        pieces = load.pieces
        if len(load.buffer) < load.filled:
            load.buffer = bytearray(load.filled)
        with memoryview(load.buffer) as view:
            wanted = [(guest, view[at : at + count]) for guest, count, at in pieces if at >= 0]
            try:
                self._read(wanted)
            finally:
                for _, part in wanted:
                    part.release()
        granularity = self._sparse_size
        for offset, length, start in pieces:
            if start < 0:
                load.add(offset, length, -1)
                continue
            for run_start, count, zero in find_zeroes(
                load.buffer, start, length, offset, granularity
            ):
                load.add(offset + run_start - start, count, -1 if zero else run_start)
        return load

    def _read(self, wanted: list[tuple[int, memoryview]]) -> None:
        if len(wanted) > 1 and not self._salvages:
            self._source.read_each(wanted)
            return
        for offset, view in wanted:
            try:
                self._source.read_into(offset, view)
            except IoError:
                if not self._salvages:
                    raise
                self._salvage(offset, view)

    def _salvage(self, offset: int, view: memoryview) -> None:
        """Read sector by sector what cannot be read at once."""
        for start in range(0, len(view), SECTOR):
            sector = view[start : start + SECTOR]
            try:
                self._source.read_into(offset + start, sector)
            except BlocklayerError:
                sector[:] = bytes(len(sector))
                self._lost(offset + start, len(sector))
