# SPDX-License-Identifier: Apache-2.0
"""The `write_log` filter (QEMU's name: blklogwrites): logs what changes its child.

The log has the format of Linux's dm-log-writes, whose tools replay it to any point. All in sectors
of one size; an entry is one sector, followed by its data:

    | superblock | write | data data | flush | discard | write | data | ...

Zeroes are logged as written data, discards without data. An entry is logged after its request is
done, a flush after everything that it covers: replaying up to a flush gives what was safe then.
The superblock, which counts the entries, is written at every flush and every so many entries; what
was logged after it is lost in a crash. The format has no entry for a change of size.
"""

from __future__ import annotations

import threading

from blocklayer.base.align import div_ceil, is_power_of_two
from blocklayer.base.buffers import Vector, vector_length
from blocklayer.base.errors import FormatError, InvalidArgument
from blocklayer.base.layout import Layout, u32, u64
from blocklayer.base.options import OptionTree, parse_bool
from blocklayer.base.units import SECTOR, MiB, parse_size
from blocklayer.core import zeroing
from blocklayer.core.drivers import FILTER, Driver
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Node
from blocklayer.core.opening import Opener

MAGIC = 0x6A736677736872
VERSION = 1
FLAG_FLUSH = 1
FLAG_FUA = 2
FLAG_DISCARD = 4
FLAG_MARK = 8

SECTOR_SIZE_MAX = 8 * MiB
SUPER_INTERVAL = 4096
"""Entries between two updates of the superblock, unless a flush comes before."""


class Superblock(Layout):
    """The log's first sector."""

    magic = u64("number")
    version = u64("number")
    entries = u64("entries")
    sector_size = u32("bytes")


class Entry(Layout):
    """One logged request."""

    sector = u64("sectors")
    sectors = u64("sectors")
    flags = u64("mask")
    data_length = u64("bytes")


class _Log:
    """The log's end, and writing there. One lock: entries follow each other."""

    def __init__(self, node: Node, sector_size: int, interval: int) -> None:
        self._node = node
        self._interval = interval
        self._lock = threading.Lock()
        self._entries = 0
        self.sector_size = sector_size
        self._position = sector_size

    def resume(self) -> None:
        """Go on behind the entries of an existing log; an empty one is a new one."""
        head = self._read(0, Superblock.SIZE)
        if not any(head):
            return
        known = Superblock.unpack_from(head)
        name = self._node.filename
        if known.magic != MAGIC:
            raise FormatError("Invalid log superblock magic", name)
        if known.version != VERSION:
            raise FormatError(f"Unsupported log version {known.version}", name)
        check_sector_size(known.sector_size)
        self.sector_size = self._position = known.sector_size
        for _ in range(known.entries):
            if self._position + Entry.SIZE > self._node.size:
                raise FormatError(
                    f"The log ends before its {known.entries} entries: after {self._entries}", name
                )
            self._skip(Entry.unpack_from(self._read(self._position, Entry.SIZE)))

    def _read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        inside = max(0, min(length, self._node.size - offset))
        if inside:
            self._node.readv(offset, [memoryview(data)[:inside]])
        return data

    def _skip(self, entry: Entry) -> None:
        sectors = 0 if entry.flags & FLAG_DISCARD else entry.sectors
        self._position += (1 + sectors) * self.sector_size
        self._entries += 1

    def append(self, offset: int, length: int, flags: int, vector: Vector | None) -> None:
        """Log a request; without a vector its data is zero."""
        size = self.sector_size
        entry = Entry(sector=offset // size, sectors=div_ceil(length, size), flags=flags)
        with self._lock:
            head = memoryview(entry.pack() + bytes(size - Entry.SIZE))
            self._node.writev(self._position, [head, *(vector or [])])
            if length and vector is None and not flags & FLAG_DISCARD:
                zeroing.zero_range(self._node, self._position + size, length, 0)
            self._skip(entry)
            if flags & FLAG_FLUSH or not self._entries % self._interval:
                self._write_superblock()

    def _write_superblock(self) -> None:
        head = Superblock(
            magic=MAGIC, version=VERSION, entries=self._entries, sector_size=self.sector_size
        ).pack()
        sector = head + bytes(self.sector_size - len(head))
        self._node.writev(0, [memoryview(sector)])
        self._node.flush()

    def finish(self) -> None:
        """Make the superblock true."""
        with self._lock:
            self._write_superblock()


class WriteLogNode(FilterNode):
    """Passes requests on and logs them. Requests are whole sectors of the log."""

    driver = "write_log"

    def __init__(
        self,
        child: Node,
        log: Node,
        *,
        sector_size: int = SECTOR,
        append: bool = False,
        interval: int = SUPER_INTERVAL,
    ) -> None:
        super().__init__(child)
        check_sector_size(sector_size)
        if interval < 1:
            raise InvalidArgument(f"Invalid log superblock update interval {interval}")
        self._log = _Log(log, sector_size, interval)
        if append:
            self._log.resume()
        self.limits.request_alignment = self._log.sector_size
        self.attach(log=log)

    def writev(self, offset: int, vector: Vector) -> None:
        """Write, then log."""
        super().writev(offset, vector)
        self._log.append(offset, vector_length(vector), 0, vector)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zero, then log the zeroes."""
        super().zero(offset, length, flags)
        self._log.append(offset, length, 0, None)

    def discard(self, offset: int, length: int) -> None:
        """Discard, then log."""
        super().discard(offset, length)
        self._log.append(offset, length, FLAG_DISCARD, None)

    def flush(self) -> None:
        """Flush, then log; the log is flushed as well."""
        super().flush()
        self._log.append(0, 0, FLAG_FLUSH, None)

    def close(self) -> None:
        """Finish the log, then close both."""
        try:
            if not self.read_only:
                self._log.finish()
        finally:
            super().close()

    def reopen(self, read_only: bool) -> None:
        """Change the mode; nothing is logged while it is read-only."""
        if read_only and not self.read_only:
            self._log.finish()
        super().reopen(read_only)


def check_sector_size(size: int) -> None:
    """Raise `InvalidArgument` for sizes no log can have."""
    if not is_power_of_two(size) or not SECTOR <= size <= SECTOR_SIZE_MAX:
        raise InvalidArgument(f"Invalid log sector size {size}")


def _open(opener: Opener, options: OptionTree) -> Node:
    append = parse_bool(options.pop("log-append", False), "log-append")
    if append and "log-sector-size" in options:
        raise InvalidArgument("log-append and log-sector-size are mutually exclusive")
    sector_size = parse_size(options.pop("log-sector-size", SECTOR), "log-sector-size")
    interval = parse_size(
        options.pop("log-super-update-interval", SUPER_INTERVAL), "log-super-update-interval"
    )
    child = opener.open_child(options, "file")
    try:
        log = opener.open_child(options, "log")
    except BaseException:
        child.close()
        raise
    try:
        return WriteLogNode(child, log, sector_size=sector_size, append=append, interval=interval)
    except BaseException:
        log.close()
        child.close()
        raise


DRIVER = Driver(name="write_log", kind=FILTER, open=_open)
