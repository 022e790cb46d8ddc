# SPDX-License-Identifier: Apache-2.0
"""The copy engine: guest bytes from one disk to another, zeroes left out.

    reader thread    extents -> fill a buffer, look for zeroes   ─┐  as many as there are buffers
    caller's thread  write what is data, zero what has to be     ─┘  in ascending order

Reading and writing overlap on two cores, and writing in order keeps the target's clusters in the
order of the guest. Buffers are few and reused, so memory does not depend on the image; a buffer
collects small extents, zeroes between them included, so that hand-overs are few as well.

Where every byte of the target has its place already, and both ends are local, two threads do the
same instead, each with buffers of its own: read, look for zeroes, write. What one has read is in
its core's cache when it writes it, and nobody waits for anybody. (`_run_in_any_order`)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

from blocklayer.base.align import align_down
from blocklayer.base.extent import Extent
from blocklayer.base.progress import Reporter
from blocklayer.base.queues import Empty, SimpleQueue
from blocklayer.base.record import Record, fresh
from blocklayer.base.units import KiB, MiB
from blocklayer.core.copy_loads import STEP_SECONDS, ZERO_GRANULARITY, Load, Loader, Stopped
from blocklayer.core.copy_sources import Source
from blocklayer.core.disk import Disk

PIECE = 2 * MiB
"""Bytes read at once where one thread reads and another writes."""

OWN_PIECE = 512 * KiB
"""The same where each thread reads and writes: half of the cache that a core has to itself."""

ALONE = 4 * MiB
"""Bytes of buffers that are filled and written by one thread before there is another one.

Nearly every small image is less: starting a thread for that costs more than it saves.
"""

EXTENTS_AT_ONCE = 4096
"""Of a disk that is changed while its extents are looked at."""


class CopyResult(Record):
    """Bytes written as data, bytes zeroed or left as zeroes, and ranges that could not be read."""

    data: int = 0
    zero: int = 0
    salvaged: list[tuple[int, int]] = fresh(factory=list)

    def add_salvaged(self, offset: int, length: int) -> None:
        """Bytes from `offset` could not be read; neighbours become one range."""
        if self.salvaged and sum(self.salvaged[-1]) == offset:
            offset, before = self.salvaged.pop()
            length += before
        self.salvaged.append((offset, length))


class CopyOptions(Record, frozen=True):
    """How to copy.

    target_is_zero    the target reads as zeroes where nothing was written: zeroes are skipped
    sparse_size       granularity of looking for zeroes in data; 0 copies everything as data
    only_differences  the target already has content (a backing file): write what differs
    salvage           unreadable sectors become zeroes
    rate_limit        bytes per second; 0 is no limit
    share             the target may refer to the source's blocks where files can
    """

    target_is_zero: bool = False
    sparse_size: int = ZERO_GRANULARITY
    only_differences: bool = False
    salvage: bool = False
    rate_limit: int = 0
    share: bool = True


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


def copy(source: Source, target: Disk, options: CopyOptions, reporter: Reporter) -> CopyResult:
    """Copy everything of `source`; what lies behind it in a longer target is not touched."""
    if isinstance(source, Disk) and source.size >= PIECE and _may_share(options):
        from blocklayer.core.copy_by_sharing import copy_by_sharing

        result = copy_by_sharing(source, target, options, reporter)
        if result is not None:
            return result
    return _Copy(source, target, options, reporter).run()


def _may_share(options: CopyOptions) -> bool:
    """Nobody wants to see the bytes: neither to compare them, nor to hold them back."""
    unseen = not (options.only_differences or options.salvage or options.rate_limit)
    return unseen and options.share and options.sparse_size > 0


def _has_no_order(source: Source, target: Disk, options: CopyOptions) -> bool:
    """Whether it is all the same what is copied first."""
    if options.only_differences or options.salvage or options.rate_limit:
        return False
    disks = [source] if isinstance(source, Disk) else source.disks
    has_places = target.node.driver == "raw"
    return has_places and all(disk.node.is_local for disk in [*disks, target])


class _Copy:
    def __init__(
        self, source: Source, target: Disk, options: CopyOptions, reporter: Reporter
    ) -> None:
        self._source = source
        self._target = target
        self._options = options
        self._reporter = reporter
        self._result = CopyResult()
        self._ready: SimpleQueue[Load | BaseException | None] = SimpleQueue()
        self._pace = Pace(options.rate_limit, reporter)
        self._in_any_order = _has_no_order(source, target, options)
        self._piece = OWN_PIECE if self._in_any_order else PIECE
        self._loader = Loader(
            source,
            self._piece,
            sparse_size=options.sparse_size,
            salvage=options.salvage,
            lost=self._result.add_salvaged,
        )
        self._turn = threading.Lock()
        """Held by whoever asks for the next load."""

    def run(self) -> CopyResult:
        loads = self._loader.loads()
        for _ in range(ALONE // self._piece):
            load = next(loads, None)
            if load is None:
                return self._result
            self._take(self._loader.fill(load))
        run = self._run_in_any_order if self._in_any_order else self._run_in_order
        run(loads)
        return self._result

    def _run_in_order(self, loads: Iterator[Load]) -> None:
        """Write what another thread reads."""
        with self._helped_by(self._read_all, loads):
            while (load := self._next_ready()) is not None:
                self._take(load)
            for load in loads:  # where there is nobody who reads
                self._take(self._loader.fill(load))

    def _run_in_any_order(self, loads: Iterator[Load]) -> None:
        """Read and write what another thread does not; progress is told by this one alone."""
        with self._helped_by(self._copy_all, loads):
            ended = False
            for load in self._shared(loads):
                self._take(self._loader.fill(load))
                while not ended and not self._ready.empty():
                    ended = self._tell_ready()
            while not ended:
                ended = self._tell_ready()

    def _tell_ready(self) -> bool:
        """Count what the helper has written; whether that was all."""
        load = self._next_ready()
        if load is not None:
            self._tell(load)
        return load is None

    @contextmanager
    def _helped_by(
        self, work: Callable[[Iterator[Load]], None], loads: Iterator[Load]
    ) -> Iterator[None]:
        helper = threading.Thread(
            target=self._help, args=(work, loads), name="blocklayer-copy", daemon=True
        )
        try:
            try:
                helper.start()
            except RuntimeError:  # the system has no more threads
                self._ready.put(None)
            yield
        finally:
            self._loader.stop()
            if helper.is_alive():
                helper.join()

    def _help(self, work: Callable[[Iterator[Load]], None], loads: Iterator[Load]) -> None:
        try:
            work(loads)
            self._ready.put(None)
        except Stopped:
            return
        except BaseException as error:
            self._ready.put(error)

    def _read_all(self, loads: Iterator[Load]) -> None:
        for load in loads:
            self._ready.put(self._loader.fill(load))

    def _copy_all(self, loads: Iterator[Load]) -> None:
        for load in self._shared(loads):
            self._write(self._loader.fill(load))
            self._loader.give_back(load)
            self._ready.put(load)

    def _shared(self, loads: Iterator[Load]) -> Iterator[Load]:
        """Those of the loads that this thread gets."""
        while True:
            with self._turn:
                load = next(loads, None)
            if load is None:
                return
            yield load

    def _take(self, load: Load) -> None:
        """Write a buffer, and give it back."""
        self._write(load)
        self._loader.give_back(load)
        self._tell(load)

    def _tell(self, load: Load) -> None:
        """Count a load that is written."""
        self._result.data += load.data
        self._result.zero += load.zero
        skipped = load.guest - load.data - load.zero
        self._reporter.advance(load.guest, zero=load.zero, skipped=skipped)
        self._pace.advance(load.data)

    def _next_ready(self) -> Load | None:
        """Wait for the helper, whose storage may be slow, and notice a cancellation meanwhile."""
        while True:
            try:
                load = self._ready.get(timeout=STEP_SECONDS)
            except Empty:
                self._reporter.check()
                continue
            if isinstance(load, BaseException):
                raise load
            return load

    def _write(self, load: Load) -> None:
        data: list[tuple[int, memoryview]] = []
        with memoryview(load.buffer) as view:
            for offset, length, start in load.runs:
                if start < 0:
                    load.zero += length
                    self._write_zero(offset, length)
                else:
                    data.extend(self._changed(offset, view[start : start + length]))
            self._target.write_many(data)
            for _, part in data:
                load.data += len(part)
                part.release()

    def _write_zero(self, offset: int, length: int) -> None:
        options = self._options
        if options.target_is_zero:
            return
        if not options.only_differences:
            allocate = not options.sparse_size
            self._target.write_zeroes(offset, length, unmap=not allocate, allocate=allocate)
            return
        end = offset + length
        for start, count in changing_ranges(self._target, offset, end, self._reporter, _not_zero):
            self._target.write_zeroes(start, count)

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


def _not_zero(extent: Extent) -> bool:
    return not extent.zero


def changing_ranges(
    disk: Disk, start: int, end: int, reporter: Reporter, wanted: Callable[[Extent], bool]
) -> Iterator[tuple[int, int]]:
    """(offset, length) of extents that are `wanted`, on a disk that is changed there meanwhile.

    A bounded number is looked up at a time, however many there are; between two it may be stopped.
    """
    position = start
    while position < end:
        batch = list(islice(disk.extents(position, end - position), EXTENTS_AT_ONCE))
        for extent in batch:
            reporter.check()
            if wanted(extent):
                yield extent.offset, extent.length
        position = batch[-1].end
