# SPDX-License-Identifier: Apache-2.0
"""Counting what a disk does, with the members of QEMU's `query-blockstats`.

Counting costs time on a path that has little of it, so it is a disk of its own class, made by
``open(…, stats=True)``; other disks pay nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from blocklayer.base.buffers import Buffer, byte_view
from blocklayer.base.errors import InvalidArgument, OutOfRange, ReadOnly
from blocklayer.core.batch import DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, Request
from blocklayer.core.disk import Disk
from blocklayer.core.submit import attempt

_NAMES = {READ: "rd", WRITE: "wr", WRITE_ZEROES: "wr", DISCARD: "unmap", FLUSH: "flush"}


class Counters:
    """One kind of request. Times are nanoseconds from submission to completion."""

    __slots__ = ("bytes", "failed", "invalid", "merged", "operations", "total_time_ns")

    def __init__(self) -> None:
        self.operations = self.bytes = self.merged = 0
        self.total_time_ns = 0
        self.failed = self.invalid = 0


class Stats:
    """Counters by kind, and what concerns the disk as a whole."""

    def __init__(self) -> None:
        self.rd, self.wr, self.unmap, self.flush = (Counters() for _ in range(4))
        self.zero_operations = self.zero_bytes = 0
        self.wr_highest_offset = 0
        self.last_access_ns = 0
        self._lock = threading.Lock()

    def account(
        self, kind: str, offset: int, length: int, elapsed_ns: int, error: BaseException | None
    ) -> None:
        """One request has ended."""
        counters: Counters = getattr(self, _NAMES[kind])
        with self._lock:
            self.last_access_ns = time.monotonic_ns()
            if isinstance(error, (InvalidArgument, OutOfRange, ReadOnly)):
                counters.invalid += 1
                return
            counters.total_time_ns += elapsed_ns
            if error is not None:
                counters.failed += 1
                return
            counters.operations += 1
            counters.bytes += length
            if kind == WRITE_ZEROES:
                self.zero_operations += 1
                self.zero_bytes += length
            if kind in (WRITE, WRITE_ZEROES):
                self.wr_highest_offset = max(self.wr_highest_offset, offset + length)

    def merge(self, count: int) -> None:
        """Writes have been merged into others."""
        with self._lock:
            self.wr.merged += count

    def as_dict(self) -> dict[str, int]:
        """Members as QEMU names them, and the zeroing that it counts as writing."""
        members: dict[str, int] = {}
        with self._lock:
            for name in ("rd", "wr", "unmap", "flush"):
                counters: Counters = getattr(self, name)
                members |= {
                    f"{name}_bytes": counters.bytes,
                    f"{name}_operations": counters.operations,
                    f"{name}_total_time_ns": counters.total_time_ns,
                    f"{name}_merged": counters.merged,
                    f"failed_{name}_operations": counters.failed,
                    f"invalid_{name}_operations": counters.invalid,
                }
            members["zero_operations"] = self.zero_operations
            members["zero_bytes"] = self.zero_bytes
            members["wr_highest_offset"] = self.wr_highest_offset
            if self.last_access_ns:
                members["idle_time_ns"] = time.monotonic_ns() - self.last_access_ns
        for name in ("flush_bytes", "flush_merged"):
            del members[name]
        return members


class CountingDisk(Disk):
    """A disk that counts."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.stats = Stats()
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    @contextmanager
    def _counted(self, kind: str, offset: int = 0, length: int = 0) -> Iterator[None]:
        started = time.monotonic_ns()
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            self.stats.account(kind, offset, length, time.monotonic_ns() - started, failure)

    def read(self, offset: int, length: int) -> bytes:
        """As `Disk.read`."""
        with self._counted(READ, offset, length):
            return super().read(offset, length)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """As `Disk.read_into`."""
        with self._counted(READ, offset, len(byte_view(buffer))):
            return super().read_into(offset, buffer)

    def read_many(self, requests: Iterable[tuple[int, int]]) -> list[bytes]:
        """As `Disk.read_many`."""
        return [self.read(offset, length) for offset, length in requests]

    def read_each(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        """As `Disk.read_each`."""
        for offset, view in requests:
            self.read_into(offset, view)

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """As `Disk.write`."""
        with self._counted(WRITE, offset, len(byte_view(data))):
            super().write(offset, data, fua=fua)

    def write_many(self, requests: Sequence[tuple[int, Buffer]], *, fua: bool = False) -> None:
        """As `Disk.write_many`."""
        batch = [Request.write(offset, data, fua=fua) for offset, data in requests]
        for request in batch:
            refusal = attempt(self.check_write, WRITE, request.offset, request.length)
            if refusal is not None:
                self.stats.account(WRITE, request.offset, request.length, 0, refusal)
                raise refusal
        self.submit(batch)
        for request in batch:
            if request.error is not None:
                raise request.error

    def submit(self, requests: Sequence[Request]) -> int:
        """As `Disk.submit`; each request of a batch takes as long as the batch."""
        started = time.monotonic_ns()
        merged = super().submit(requests)
        elapsed = time.monotonic_ns() - started
        for request in requests:
            if request.kind not in _NAMES:
                continue  # its error says so
            self.stats.account(request.kind, request.offset, request.length, elapsed, request.error)
        self.stats.merge(merged)
        return merged

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
        """As `Disk.write_zeroes`."""
        with self._counted(WRITE_ZEROES, offset, length):
            super().write_zeroes(
                offset, length, unmap=unmap, fua=fua, no_fallback=no_fallback, allocate=allocate
            )

    def discard(self, offset: int, length: int) -> None:
        """As `Disk.discard`."""
        with self._counted(DISCARD, offset, length):
            super().discard(offset, length)

    def flush(self) -> None:
        """As `Disk.flush`."""
        with self._counted(FLUSH):
            super().flush()
