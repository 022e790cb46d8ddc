# SPDX-License-Identifier: Apache-2.0
"""A disk: what users, exports and jobs hold. The gate through which every request passes.

Order of the gate: state and permission, range, tracking, inline path or the node, FUA by one
flush at the end. Reads and in-place writes whose mapping is in memory take the *inline path*: one
lookup and one system call, no lock; everything else goes through `core/io`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from errno import EOPNOTSUPP
from threading import Lock
from types import TracebackType

from blocklayer.base.buffers import Buffer, Vector, byte_view, vector_length
from blocklayer.base.errors import BlocklayerError, InvalidArgument, OutOfRange, ReadOnly
from blocklayer.base.extent import Extent
from blocklayer.core import io as core_io
from blocklayer.core import mapping
from blocklayer.core.detect import detection_unit, may_hold_zeroes, zero_detected
from blocklayer.core.modes import check_modes
from blocklayer.core.node import ALLOCATE, NO_FALLBACK, UNMAP, FormatNode, Inline, Lookup, Node
from blocklayer.core.requests import Retired

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, Self, TypeVar

    from blocklayer.base.extent import Row
    from blocklayer.core.batch import MergedRun, Request
    from blocklayer.core.bitmap import DirtyBitmap
    from blocklayer.core.hooks import BeforeWrite, WriteHooks
    from blocklayer.core.sparse import Place
    from blocklayer.core.stream import DiskStream

    T = TypeVar("T")

try:
    from os import pread as _pread
    from os import preadv as _preadv
    from os import pwrite as _pwrite
    from os import pwritev as _pwritev
except ImportError:  # nodes offer no inline path here, so nobody calls them
    pass


_NOWAIT = getattr(os, "RWF_NOWAIT", 0)

VECTOR_MAX = 1024
"""Buffers that one system call takes on every system."""


class Disk:
    """An open disk image. Thread-safe; offsets and lengths are bytes at any alignment.

    Made by `blocklayer.open`. A context manager; closing flushes.
    """

    def __init__(
        self,
        node: Node,
        *,
        writethrough: bool = False,
        discard: str = "ignore",
        detect_zeroes: str = "off",
        owns_node: bool = True,
    ) -> None:
        check_modes(discard, detect_zeroes)
        self.node = node
        self.discard_mode = discard
        self.detect_zeroes = detect_zeroes
        self._tracker = node.tracker
        self.writethrough = writethrough
        self._detect_unit = detection_unit(node) if detect_zeroes != "off" else 0
        self._detect_unmap = detect_zeroes == "unmap"
        self._owns_node = owns_node
        self._open = True
        self._closing = Lock()
        self._read_lookup: Lookup | None = None
        self._write_lookup: Lookup | None = None
        self._followed: Inline | None = None
        """Instead of a lookup for writes: somebody has to be told of them. Only batches care."""
        self._descriptor = -1
        self._nowait = _NOWAIT
        self._refresh_inline()
        node.users.add(self)

    def _refresh_inline(self) -> None:
        """Ask the graph for an inline path; there is none while somebody listens to events."""
        inline = self.node.inline() if self.node.sink is None else None
        self._read_lookup = inline.read if inline else None
        self._descriptor = inline.descriptor if inline else -1
        writable = not (self.read_only or self.writethrough or self.node.watched)
        written = inline.write if inline and writable else None
        followed = written is not None and inline is not None and inline.written is not None
        self._write_lookup = None if followed else written
        self._followed = inline if followed else None

    def _run(self, action: Callable[..., T], *arguments: object) -> T:
        """Call `action` as a request; one that waits while the disk is switched is not lost."""
        while True:
            try:
                return self._tracker.run(action, *arguments)
            except Retired:
                # The disk is on another node now, or its node has another tracker.
                self._tracker = self.node.tracker

    @contextmanager
    def _drained_section(self) -> Iterator[None]:
        from blocklayer.core.hurry import hurried

        with ExitStack() as stack:
            stack.enter_context(hurried([self.node]))
            while True:
                try:
                    stack.enter_context(self._tracker.drained_section())
                    break
                except Retired:
                    self._tracker = self.node.tracker
            yield

    def switch(self, node: Node, *, discard: str, detect_zeroes: str) -> None:
        """Stand on another node from now on; the caller has drained both, and owns them."""
        check_modes(discard, detect_zeroes)
        self.node.users.discard(self)
        self.node = node
        self._tracker = node.tracker
        self.discard_mode = discard
        self.detect_zeroes = detect_zeroes
        self._detect_unit = detection_unit(node) if detect_zeroes != "off" else 0
        self._detect_unmap = detect_zeroes == "unmap"
        self._refresh_inline()
        node.users.add(self)

    # --- what it is -----------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes."""
        return self.node.size

    @property
    def format(self) -> str:
        """The driver's name: ``qed``, ``raw`` …"""
        return self.node.driver

    @property
    def filename(self) -> str:
        """The image's file name, as it was opened."""
        return self.node.filename

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self.node.read_only

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._open

    @property
    def backing(self) -> Disk | None:
        """What lies below, as a read-only disk that lives as long as this one; None if nothing."""
        node = self.node
        if not isinstance(node, FormatNode) or node.backing is None:
            return None
        return Disk(node.backing, owns_node=False)

    def info(self) -> dict[str, Any]:
        """What the driver says of itself: format specific fields."""
        return self.node.info()

    def __repr__(self) -> str:
        state = "closed" if self.closed else ("r" if self.read_only else "r+")
        return f"<Disk {self.filename!r} {self.format} {self.size} bytes, {state}>"

    # --- reading --------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`. Raises `OutOfRange`, `IoError`, `Closed` …"""
        tracker = self._tracker
        try:
            tracker.inflight.append(None)  # the first call in here: see `core/requests`
            lookup = self._read_lookup
            if lookup is not None and not tracker.drained:
                host = lookup(offset, length)
                if host >= 0:
                    data = _pread(self._descriptor, length, host)
                    if len(data) == length:
                        return data
        except OSError:
            pass  # the slow path meets the same error and says where
        finally:
            tracker.inflight.pop()
            if tracker.drained:
                tracker.wake()
        self.check_range("read", offset, length)
        # bytes(bytearray) copies once more; only requests that miss the inline path pay for it.
        buffer = bytearray(length)
        self._run(self._read_vector, offset, [memoryview(buffer)] if length else [])
        return bytes(buffer)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fill a writable buffer with the bytes from `offset`; its length."""
        view = byte_view(buffer)
        if view.readonly:
            raise InvalidArgument("read_into needs a writable buffer")
        length = len(view)
        tracker = self._tracker
        try:
            tracker.inflight.append(None)  # the first call in here: see `core/requests`
            lookup = self._read_lookup
            if lookup is not None and not tracker.drained:
                host = lookup(offset, length)
                if host >= 0 and _preadv(self._descriptor, [view], host) == length:
                    return length
        except OSError:
            pass  # the slow path meets the same error and says where
        finally:
            tracker.inflight.pop()
            if tracker.drained:
                tracker.wake()
        self.check_range("read", offset, length)
        self._run(self._read_vector, offset, [view] if length else [])
        return length

    def read_many(self, requests: Iterable[tuple[int, int]]) -> list[bytes]:
        """The bytes of many (offset, length) requests, in their order, at the cost of a batch."""
        results: list[bytes] = []
        append = results.append

        def read_all() -> None:
            lookup = self._read_lookup
            descriptor = self._descriptor
            for offset, length in requests:
                host = lookup(offset, length) if lookup is not None else -1
                if host >= 0:
                    try:
                        data = _pread(descriptor, length, host)
                    except OSError:
                        data = None  # the slow path meets the same error and says where
                    if data is not None and len(data) == length:
                        append(data)
                        continue
                append(self._read_tracked(offset, length))

        self._run(read_all)
        return results

    def read_each(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        """Fill the views of many (offset, view) requests, at the cost of a batch.

        Storage that is far away has them all in flight. The first error is raised.
        """
        if self._read_lookup is None:
            self._run(self._read_spans, requests)
            return
        for offset, view in requests:
            self.read_into(offset, view)

    def _read_spans(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        for offset, view in requests:
            self.check_range("read", offset, len(view))
        for error in self.node.read_each([(o, [view]) for o, view in requests if len(view)]):
            if error is not None:
                raise error

    def read_inline(self, requests: Sequence[tuple[int, memoryview]]) -> list[int]:
        """Fill the views of (offset, view) requests that make nobody wait.

        The indices of the others: their place is not known in memory, they reach beyond the disk,
        or their bytes have to be fetched from the storage.
        """
        late: list[int] = []
        tracker = self._tracker
        index = 0
        try:
            tracker.inflight.append(None)  # the first call in here: see `core/requests`
            lookup = self._read_lookup
            if lookup is None or tracker.drained:
                return list(range(len(requests)))
            descriptor, nowait = self._descriptor, self._nowait
            for offset, view in requests:
                length = len(view)
                host = lookup(offset, length)
                try:
                    if host < 0 or _preadv(descriptor, (view,), host, nowait) != length:
                        late.append(index)
                except OSError as error:
                    late.append(index)  # whoever tries again meets the same error and says where
                    if error.errno == EOPNOTSUPP:
                        self._nowait = nowait = 0  # this file system cannot tell
                index += 1
        finally:
            tracker.inflight.pop()
            if tracker.drained:
                tracker.wake()
        return late

    def read_sparse(self, offset: int, view: memoryview) -> list[tuple[int, bool]]:
        """Fill a view except for what is known to be zeroes; its (length, zero) runs in order."""
        from blocklayer.core.sparse import read_sparse

        def read() -> list[tuple[int, bool]]:
            # Inside the request: who waited for a drain may find a smaller disk.
            self.check_range("read", offset, len(view))
            return read_sparse(self.node, offset, view)

        return self._run(read)

    def with_places(self, offset: int, length: int, action: Callable[[list[Place]], None]) -> bool:
        """Call `action` with the places of a range in plain files; they stay there meanwhile.

        False, and nothing is called, if a part of the range lies elsewhere.
        """
        from blocklayer.core.sparse import locate

        def find() -> bool:
            self.check_range("read", offset, length)
            places = locate(self.node, offset, length)
            if places is None:
                return False
            action(places)
            return True

        return self._run(find)

    def _read_tracked(self, offset: int, length: int) -> bytes:
        self.check_range("read", offset, length)
        buffer = bytearray(length)
        if length:
            self.node.readv(offset, [memoryview(buffer)])
        return bytes(buffer)

    def _read_vector(self, offset: int, vector: Vector) -> None:
        if vector:
            # Once more: who waited for a drain may find a smaller disk.
            self.check_range("read", offset, vector_length(vector))
            self.node.readv(offset, vector)

    # --- writing --------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write all of `data` at `offset`; with `fua` it is on stable storage on return."""
        tracker = self._tracker
        try:
            tracker.inflight.append(None)  # the first call in here: see `core/requests`
            lookup = self._write_lookup
            if lookup is not None and not tracker.drained and type(data) is bytes and not fua:
                length = len(data)
                host = lookup(offset, length)
                unit = self._detect_unit
                if (
                    host >= 0
                    and not (unit and may_hold_zeroes(offset, data, unit))
                    and _pwrite(self._descriptor, data, host) == length
                ):
                    return
        except OSError:
            pass  # the slow path meets the same error and says where
        finally:
            tracker.inflight.pop()
            if tracker.drained:
                tracker.wake()
        self._run(self._write_view, offset, byte_view(data), fua)

    def _write_view(self, offset: int, view: memoryview, fua: bool) -> None:
        # Checked inside the request: who waited for a drain may find a smaller disk.
        self.check_write("write", offset, len(view))
        if len(view):
            with self.recorded(offset, len(view)):
                self._write_recorded(offset, view)
        self._end_write(fua)

    def _write_recorded(self, offset: int, view: memoryview) -> None:
        runs = self.zero_detected(offset, [view])
        if len(runs) == 1:
            self.node.writev(*runs[0])
            return
        for error in core_io.write_each(self.node, runs):
            if error is not None:
                raise error

    def write_each(self, requests: Sequence[tuple[int, memoryview]]) -> dict[int, BlocklayerError]:
        """Write (offset, view) requests as a batch; the errors of those that failed, by index.

        Neighbours in the sequence that are neighbours in the image are one system call.
        """
        if self._followed is None:
            late = self._write_each_inline(requests)
        else:
            late = self._write_each_followed(requests)
        return self._run(self._write_late, requests, late) if late else {}

    def _write_each_inline(self, requests: Sequence[tuple[int, memoryview]]) -> list[int]:
        tracker = self._tracker
        try:
            tracker.inflight.append(None)  # the first call in here: see `core/requests`
            lookup = self._write_lookup
            if lookup is None or tracker.drained:
                return list(range(len(requests)))
            return self._write_found(requests, lookup)
        finally:
            tracker.inflight.pop()
            if tracker.drained:
                tracker.wake()

    def _write_each_followed(self, requests: Sequence[tuple[int, memoryview]]) -> list[int]:
        tracker = self._tracker
        try:
            tracker.inflight.append(None)  # no drain may end before somebody was told
            inline = self._followed
            if inline is None or tracker.drained:
                return list(range(len(requests)))
            lookup, written = inline.write, inline.written
            assert lookup is not None
            assert written is not None
            try:
                late = self._write_found(requests, lookup)
                if not late:
                    written(requests)
                elif len(late) < len(requests):  # the node tells of those that are late
                    others = set(range(len(requests))).difference(late)
                    written([requests[index] for index in others])
            except BaseException:
                written(requests)
                raise
            return late
        finally:
            tracker.inflight.pop()
            if tracker.drained:
                tracker.wake()

    def _write_found(self, requests: Sequence[tuple[int, memoryview]], lookup: Lookup) -> list[int]:
        """Write what has a place; the indices of the others. The caller counts as in flight."""
        late: list[int] = []
        vector: Vector = []
        start = end = first = 0
        unit = self._detect_unit
        for index, (offset, view) in enumerate(requests):
            length = len(view)
            host = lookup(offset, length)
            if host < 0 or (unit and may_hold_zeroes(offset, view, unit)):
                late.append(index)
                host = end = -1
            if vector and (host != end or len(vector) == VECTOR_MAX):
                if not self._write_vector(vector, start):
                    late += range(first, first + len(vector))
                vector = []
            if host >= 0:
                if not vector:
                    start, first = host, index
                vector.append(view)
                end = host + length
        if vector and not self._write_vector(vector, start):
            late += range(first, first + len(vector))
        return late

    def _write_vector(self, vector: Vector, host: int) -> bool:
        """Write to the file below; False if the node has to try again and say what is wrong."""
        try:
            return _pwritev(self._descriptor, vector, host) == vector_length(vector)
        except OSError:
            return False

    def _write_late(
        self, requests: Sequence[tuple[int, memoryview]], late: list[int]
    ) -> dict[int, BlocklayerError]:
        from blocklayer.core.submit import attempt, write_checked

        late.sort()
        found, _ = write_checked(self, [requests[index] for index in late])
        errors = {late[place]: error for place, error in found.items()}
        done = [index for index in late if index not in errors]
        if self.writethrough and done and (failure := attempt(self.node.flush)) is not None:
            errors.update(dict.fromkeys(done, failure))
        return errors

    def write_many(self, requests: Sequence[tuple[int, Buffer]], *, fua: bool = False) -> None:
        """Write many (offset, data) requests; new clusters are made visible by one update a table.

        Where requests overlap, the later one in the sequence wins. The first error is raised when
        all have been tried; `submit` tells which they were.
        """
        from blocklayer.core.batch import merge_writes
        from blocklayer.core.submit import write_merged

        views = [(offset, byte_view(data)) for offset, data in requests]

        def write_all() -> None:
            for offset, view in views:
                self.check_write("write", offset, len(view))
            for error in write_merged(self, merge_writes(views)):
                if error is not None:
                    raise error
            self._end_write(fua)

        self._run(write_all)

    def submit(self, requests: Sequence[Request]) -> int:
        """Run a batch of `Request`s of any kinds; how many writes were merged into others.

        The effect is that of the order of submission. Afterwards each request is done, or has its
        own `error`; nothing is raised for a request that failed.
        """
        from blocklayer.core.submit import run_batch

        return self._run(run_batch, self, requests)

    # What batches need, inside a tracked request.

    def write_inline(self, run: MergedRun) -> bool:
        """Write a run that is one buffer with a place in memory's knowledge."""
        lookup = self._write_lookup
        if lookup is None or len(run.vector) != 1:
            return False
        view = run.vector[0]
        unit = self._detect_unit
        if unit and may_hold_zeroes(run.offset, view, unit):
            return False
        host = lookup(run.offset, run.length)
        try:
            return host >= 0 and _pwrite(self._descriptor, view, host) == run.length
        except OSError:
            return False  # the node meets the same error and says where

    def zero_detected(self, offset: int, vector: Vector) -> list[tuple[int, Vector]]:
        """With `detect_zeroes`: zero what is zero; the (offset, vector) runs left to write."""
        if not self._detect_unit:
            return [(offset, vector)]
        return zero_detected(self.node, offset, vector, self._detect_unit, unmap=self._detect_unmap)

    def zero_checked(self, offset: int, length: int, flags: int) -> None:
        """Zero a range that may be refused; flags are those of nodes."""
        from blocklayer.core.zeroing import zero_range

        self.check_write("write_zeroes", offset, length)
        if length:
            with self.recorded(offset, length):
                zero_range(self.node, offset, length, flags)

    def discard_checked(self, offset: int, length: int) -> None:
        """Discard a range that may be refused."""
        self.check_write("discard", offset, length)
        if length and self.discard_mode == "unmap":
            with self.recorded(offset, length):
                self.node.discard(offset, length)

    def begin_recorded(self, offset: int, length: int) -> None:
        """A range is about to change: tell whoever asked to know before."""
        hooks = self.node.hooks
        if hooks is not None and hooks.before:
            with self._tracker.calling_out():
                hooks.begin(offset, length)

    def end_recorded(self, offset: int, length: int) -> None:
        """A range has changed, or may have: mark dirty bitmaps."""
        hooks = self.node.hooks
        if hooks is not None:
            hooks.end(offset, length)

    @contextmanager
    def recorded(self, offset: int, length: int) -> Iterator[None]:
        """Both around a change."""
        self.begin_recorded(offset, length)
        try:
            yield
        finally:
            self.end_recorded(offset, length)

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        unmap: bool = False,
        fua: bool = False,
        no_fallback: bool = False,
        allocate: bool = False,
    ) -> None:
        """Make a range of any size read as zeroes without moving data where that is possible.

        unmap         the storage may be deallocated
        no_fallback   raise `NotSupported`, with nothing changed, rather than write zeroes
        allocate      the storage must be allocated afterwards
        """
        if unmap and allocate:
            raise InvalidArgument("write_zeroes cannot both unmap and allocate")
        flags = (
            (UNMAP if unmap else 0)
            | (NO_FALLBACK if no_fallback else 0)
            | (ALLOCATE if allocate else 0)
        )

        def zero() -> None:
            self.zero_checked(offset, length, flags)
            self._end_write(fua)

        self._run(zero)

    def check_zero(self, offset: int, length: int, *, allocate: bool = False) -> None:
        """Raise `NotSupported` if `write_zeroes` would have to write, as far as that can be told.

        For those who zero a range in pieces, and must refuse all of it or nothing.
        """

        def check() -> None:
            self.check_write("write_zeroes", offset, length)
            self.node.check_zero(offset, length, ALLOCATE if allocate else 0)

        self._run(check)

    def discard(self, offset: int, length: int) -> None:
        """Tell that nobody needs a range: its content is undefined afterwards.

        Does nothing unless the disk was opened with ``discard="unmap"``.
        """
        self._run(self.discard_checked, offset, length)

    def copy_range(self, descriptor: int, host: int, offset: int, length: int) -> int:
        """Copy bytes of an open file inside the kernel; how many of the first ones, or 0.

        See `core/kernel_copy`: whoever calls this has another way for the rest.
        """
        from blocklayer.core.kernel_copy import copy_range

        def copy() -> int:
            self.check_write("write", offset, length)
            with self.recorded(offset, length):
                return copy_range(self.node, descriptor, host, offset, length)

        return self._run(copy)

    def flush(self) -> None:
        """Everything written before survives a power failure when this returns."""

        def flush() -> None:
            if not self.read_only:
                self.node.flush()

        self._run(flush)

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        """Change the disk's size; new bytes read as zeroes. No request is in flight meanwhile."""
        if self.read_only:
            raise ReadOnly(f"Cannot resize '{self.filename}': it is open read-only")
        if size < 0:
            raise InvalidArgument(f"Cannot resize '{self.filename}' to {size} bytes")
        with self._drained_section():
            try:
                self.node.truncate(size, preallocation)
            finally:  # a failure may come after the size has changed
                self._follow_size()

    def _follow_size(self) -> None:
        """The node may have another size."""
        if self.node.hooks is not None:
            self.node.hooks.follow(self.node.size)

    def check_write(self, verb: str, offset: int, length: int) -> None:
        """Raise `OutOfRange` or `ReadOnly` unless this may be written."""
        self.check_range(verb, offset, length)
        if self.node.read_only:
            raise ReadOnly(f"Cannot {verb} to '{self.filename}': it is open read-only")

    def _end_write(self, fua: bool) -> None:
        if fua or self.writethrough:
            self.node.flush()

    def check_range(self, verb: str, offset: int, length: int) -> None:
        """Raise `OutOfRange` unless the range lies within the disk."""
        if offset < 0 or length < 0 or offset + length > self.node.size:
            raise OutOfRange(
                f"Cannot {verb} {length} bytes at offset {offset}:"
                f" '{self.filename}' has {self.node.size} bytes"
            )

    # --- hooks for jobs --------------------------------------------------------------------------

    @property
    def bitmaps(self) -> dict[str, DirtyBitmap]:
        """Dirty bitmaps by name."""
        return dict(self.node.hooks.bitmaps) if self.node.hooks is not None else {}

    def add_bitmap(
        self, name: str, granularity: int = 65536, *, enabled: bool = True
    ) -> DirtyBitmap:
        """Record writes from now on: granules of `granularity` bytes, a power of 2 from 512."""
        with self._changing_hooks() as hooks:
            return hooks.add_bitmap(name, self.size, granularity, enabled=enabled)

    def remove_bitmap(self, name: str) -> None:
        """Stop recording and forget."""
        with self._changing_hooks() as hooks:
            hooks.bitmap(name)
            del hooks.bitmaps[name]

    def restore_bitmaps(self, bitmaps: dict[str, DirtyBitmap]) -> None:
        """Record in these again, as `bitmaps` was; others are forgotten."""
        with self._changing_hooks() as hooks:
            hooks.bitmaps = dict(bitmaps)

    def add_before_write(self, callback: BeforeWrite) -> None:
        """Call `callback(offset, length)` inside every write, zeroing and discard, before it.

        It may use the disk, in the thread that calls it, but not drain, resize or close it.
        """
        with self._changing_hooks() as hooks:
            hooks.before.append(callback)

    def remove_before_write(self, callback: BeforeWrite) -> None:
        """Undo `add_before_write`."""
        with self._changing_hooks() as hooks:
            hooks.before.remove(callback)

    @contextmanager
    def _changing_hooks(self) -> Iterator[WriteHooks]:
        """Nobody writes while hooks change; afterwards every disk on the node knows."""
        from blocklayer.core.hooks import WriteHooks

        with self._drained_section():
            hooks = self.node.hooks or WriteHooks()
            try:
                yield hooks
            finally:
                self.node.set_hooks(hooks or None)
                for disk in list(self.node.users):
                    disk._refresh_inline()

    def drain(self) -> AbstractContextManager[None]:
        """A context in which no request is in flight: new ones wait until it ends."""
        return self._drained_section()

    # --- looking --------------------------------------------------------------------------------

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The extents of a range in order: what is data, zero or nowhere, in which layer, where."""
        for batch in self.extent_rows(offset, length):
            for row in batch:
                yield Extent(*row)

    def extent_rows(self, offset: int = 0, length: int | None = None) -> Iterator[list[Row]]:
        """The same as lists of plain tuples, an extent's fields in their order: for millions."""
        if length is None:
            length = self.size - offset
        self.check_range("map", offset, length)
        position, end = offset, offset + length
        node: Node | None = None
        found: Iterator[list[Row]] = iter(())

        def step() -> list[Row] | None:
            nonlocal node, found
            if node is not self.node:  # at first, and if the disk was switched meanwhile
                node = self.node
                batches = mapping.row_batches(node, position, end - position)
                found = mapping.merged_batches(batches, mapping.MERGED_MAX)
            return next(found, None)

        while (batch := self._run(step)) is not None:
            position = batch[-1][0] + batch[-1][1]  # the list is the caller's from now on
            yield batch

    def as_file(self) -> DiskStream:
        """The disk as a seekable binary file object (`io.RawIOBase`) with its own position."""
        from blocklayer.core.stream import DiskStream

        return DiskStream(self)

    def reopen(self, mode: str) -> None:
        """Change between ``r`` and ``r+``; no request is in flight meanwhile."""
        if mode not in ("r", "r+"):
            raise InvalidArgument(f"Invalid mode {mode!r}: use 'r' or 'r+'")
        read_only = mode == "r"
        with self._drained_section():
            if read_only == self.read_only:
                return
            if read_only:
                self.node.flush()
            try:
                self.node.reopen(read_only)
            finally:
                for disk in list(self.node.users):
                    disk._refresh_inline()

    # --- life -----------------------------------------------------------------------------------

    def __reduce__(self) -> Any:
        """A copy would be a second owner of one open image."""
        raise TypeError(f"{self!r} cannot be copied or pickled: open the image again by its name")

    def close(self) -> None:
        """Wait for requests in flight, flush, release the image. Closing again does nothing.

        It may be interrupted while it waits, and called again.
        """
        if not self._owns_node:
            self._open = False
        while self._open:
            self._tracker.close()
            with self._closing:
                if self._open:
                    self._release()

    def _release(self) -> None:
        try:
            if not self.read_only:
                self.node.flush()
        finally:
            try:
                self.node.close()
            finally:
                self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as failure:
            error.add_note(f"closing '{self.filename}' failed as well: {failure}")

    def __del__(self) -> None:
        if getattr(self, "_open", False) and self._owns_node:
            try:  # where warnings are errors as well
                warnings.warn(f"unclosed disk {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                self.close()
