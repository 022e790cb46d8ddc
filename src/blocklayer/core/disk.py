# SPDX-License-Identifier: Apache-2.0
"""A disk: what users, exports and jobs hold. The gate through which every request passes.

Order of the gate: state and permission, range, tracking, inline path or the node, FUA by one
flush at the end. Reads and in-place writes whose mapping is in memory take the *inline path*: one
lookup and one system call, no lock; everything else goes through `core/io`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from blocklayer.base.buffers import Buffer, Vector, byte_view
from blocklayer.base.errors import InvalidArgument, OutOfRange, ReadOnly
from blocklayer.base.extent import Extent
from blocklayer.core import io as core_io
from blocklayer.core import mapping
from blocklayer.core.node import ALLOCATE, NO_FALLBACK, UNMAP, FormatNode, Lookup, Node

if TYPE_CHECKING:
    from blocklayer.core.stream import DiskStream

_pread = os.pread
_preadv = os.preadv
_pwrite = os.pwrite


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
        owns_node: bool = True,
    ) -> None:
        if discard not in ("ignore", "unmap"):
            raise InvalidArgument(f"Invalid discard mode '{discard}': use 'ignore' or 'unmap'")
        self.node = node
        self.discard_mode = discard
        self._tracker = node.tracker
        self._writethrough = writethrough
        self._owns_node = owns_node
        self._open = True
        self._read_lookup: Lookup | None = None
        self._write_lookup: Lookup | None = None
        self._descriptor = -1
        self._refresh_inline()

    def _refresh_inline(self) -> None:
        """Ask the graph for an inline path; there is none while somebody listens to events."""
        inline = self.node.inline() if self.node.sink is None else None
        self._read_lookup = inline.read if inline else None
        self._descriptor = inline.descriptor if inline else -1
        writable = inline is not None and not self.read_only and not self._writethrough
        self._write_lookup = inline.write if writable and inline else None

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
        tracker.inflight.append(None)
        try:
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
        self._check_range("read", offset, length)
        # bytes(bytearray) copies once more; only requests that miss the inline path pay for it.
        buffer = bytearray(length)
        self._read_slow(offset, [memoryview(buffer)] if length else [])
        return bytes(buffer)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fill a writable buffer with the bytes from `offset`; its length."""
        view = byte_view(buffer)
        if view.readonly:
            raise InvalidArgument("read_into needs a writable buffer")
        length = len(view)
        tracker = self._tracker
        tracker.inflight.append(None)
        try:
            lookup = self._read_lookup
            if lookup is not None and not tracker.drained:
                host = lookup(offset, length)
                if host >= 0 and _preadv(self._descriptor, [view], host) == length:
                    return length
        except OSError:
            pass
        finally:
            tracker.inflight.pop()
            if tracker.drained:
                tracker.wake()
        self._check_range("read", offset, length)
        self._read_slow(offset, [view] if length else [])
        return length

    def read_many(self, requests: Iterable[tuple[int, int]]) -> list[bytes]:
        """The bytes of many (offset, length) requests, in their order, at the cost of a batch."""
        results: list[bytes] = []
        append = results.append
        tracker = self._tracker
        tracker.enter()
        try:
            lookup = self._read_lookup
            descriptor = self._descriptor
            for offset, length in requests:
                host = lookup(offset, length) if lookup is not None else -1
                if host >= 0:
                    data = _pread(descriptor, length, host)
                    if len(data) == length:
                        append(data)
                        continue
                append(self._read_tracked(offset, length))
        finally:
            tracker.leave()
        return results

    def _read_tracked(self, offset: int, length: int) -> bytes:
        self._check_range("read", offset, length)
        buffer = bytearray(length)
        if length:
            self.node.readv(offset, [memoryview(buffer)])
        return bytes(buffer)

    def _read_slow(self, offset: int, vector: Vector) -> None:
        self._tracker.enter()
        try:
            if vector:
                self.node.readv(offset, vector)
        finally:
            self._tracker.leave()

    # --- writing --------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write all of `data` at `offset`; with `fua` it is on stable storage on return."""
        tracker = self._tracker
        tracker.inflight.append(None)
        try:
            lookup = self._write_lookup
            if lookup is not None and not tracker.drained and type(data) is bytes and not fua:
                length = len(data)
                host = lookup(offset, length)
                if host >= 0 and _pwrite(self._descriptor, data, host) == length:
                    return
        except OSError:
            pass
        finally:
            tracker.inflight.pop()
            if tracker.drained:
                tracker.wake()
        view = byte_view(data)
        self._begin_write("write", offset, len(view))
        try:
            if len(view):
                self.node.writev(offset, [view])
            self._end_write(fua)
        finally:
            self._tracker.leave()

    def write_many(self, requests: Sequence[tuple[int, Buffer]], *, fua: bool = False) -> None:
        """Write many (offset, data) requests; new clusters are made visible by one update a table.

        Where requests overlap, the later one in the sequence wins. If it raises, each request is
        either done or not, and which is not said.
        """
        views = [(offset, byte_view(data)) for offset, data in requests]
        for offset, view in views:
            self._check_range("write", offset, len(view))
        self._begin_write("write", 0, 0)
        try:
            self._write_many(views)
            self._end_write(fua)
        finally:
            self._tracker.leave()

    def _write_many(self, views: list[tuple[int, memoryview]]) -> None:
        ordered = sorted((pair for pair in views if len(pair[1])), key=lambda pair: pair[0])
        if any(first[0] + len(first[1]) > second[0] for first, second in pairwise(ordered)):
            for offset, view in views:
                if len(view):
                    self.node.writev(offset, [view])
            return
        rest = self._write_inline(ordered)
        if isinstance(self.node, FormatNode) and rest:
            core_io.write_batch(self.node, [(offset, [view]) for offset, view in rest])
        else:
            for offset, view in rest:
                self.node.writev(offset, [view])

    def _write_inline(self, requests: list[tuple[int, memoryview]]) -> list[tuple[int, memoryview]]:
        """Write what has a place in memory's knowledge; the rest."""
        lookup = self._write_lookup
        if lookup is None:
            return requests
        descriptor = self._descriptor
        rest = []
        for offset, view in requests:
            host = lookup(offset, len(view))
            try:
                if host < 0 or _pwrite(descriptor, view, host) != len(view):
                    rest.append((offset, view))
            except OSError:
                rest.append((offset, view))
        return rest

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
        no_fallback   raise `NotSupported` rather than write zeroes
        allocate      the storage must be allocated afterwards
        """
        if unmap and allocate:
            raise InvalidArgument("write_zeroes cannot both unmap and allocate")
        flags = (
            (UNMAP if unmap else 0)
            | (NO_FALLBACK if no_fallback else 0)
            | (ALLOCATE if allocate else 0)
        )
        self._begin_write("write_zeroes", offset, length)
        try:
            if length:
                core_io.zero_range(self.node, offset, length, flags)
            self._end_write(fua)
        finally:
            self._tracker.leave()

    def discard(self, offset: int, length: int) -> None:
        """Tell that nobody needs a range: its content is undefined afterwards.

        Does nothing unless the disk was opened with ``discard="unmap"``.
        """
        self._begin_write("discard", offset, length)
        try:
            if length and self.discard_mode == "unmap":
                self.node.discard(offset, length)
        finally:
            self._tracker.leave()

    def flush(self) -> None:
        """Everything written before survives a power failure when this returns."""
        self._tracker.enter()
        try:
            if not self.read_only:
                self.node.flush()
        finally:
            self._tracker.leave()

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        """Change the disk's size; new bytes read as zeroes. No request is in flight meanwhile."""
        if self.read_only:
            raise ReadOnly(f"Cannot resize '{self.filename}': it is open read-only")
        if size < 0:
            raise InvalidArgument(f"Cannot resize '{self.filename}' to {size} bytes")
        with self._tracker.drained_section():
            self.node.truncate(size, preallocation)

    def _begin_write(self, verb: str, offset: int, length: int) -> None:
        self._check_range(verb, offset, length)
        self._tracker.enter()
        if self.read_only:
            self._tracker.leave()
            raise ReadOnly(f"Cannot {verb} to '{self.filename}': it is open read-only")

    def _end_write(self, fua: bool) -> None:
        if fua or self._writethrough:
            self.node.flush()

    def _check_range(self, verb: str, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.node.size:
            raise OutOfRange(
                f"Cannot {verb} {length} bytes at offset {offset}:"
                f" '{self.filename}' has {self.node.size} bytes"
            )

    # --- looking --------------------------------------------------------------------------------

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The extents of a range in order: what is data, zero or nowhere, in which layer, where."""
        if length is None:
            length = self.size - offset
        self._check_range("map", offset, length)
        found = mapping.extents(self.node, offset, length)
        while True:
            self._tracker.enter()
            try:
                extent = next(found, None)
            finally:
                self._tracker.leave()
            if extent is None:
                return
            yield extent

    def as_file(self) -> DiskStream:
        """The disk as a seekable binary file object (`io.RawIOBase`) with its own position."""
        from blocklayer.core.stream import DiskStream

        return DiskStream(self)

    def reopen(self, mode: str) -> None:
        """Change between ``r`` and ``r+``; no request is in flight meanwhile."""
        if mode not in ("r", "r+"):
            raise InvalidArgument(f"Invalid mode {mode!r}: use 'r' or 'r+'")
        read_only = mode == "r"
        with self._tracker.drained_section():
            if read_only == self.read_only:
                return
            if read_only:
                self.node.flush()
            try:
                self.node.reopen(read_only)
            finally:
                self._refresh_inline()

    # --- life -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for requests in flight, flush, release the image. Closing again does nothing."""
        if not self._open:
            return
        self._open = False
        if self._owns_node:
            self._tracker.close()
            try:
                if not self.read_only:
                    self.node.flush()
            finally:
                self.node.close()

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
            warnings.warn(f"unclosed disk {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()
