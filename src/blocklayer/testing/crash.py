# SPDX-License-Identifier: Apache-2.0
"""Storage that records what a driver does to it, to be crashed afterwards.

`CrashDisk` notes every operation that reaches it, in order, with the sectors that it changes.
`crash_states` then tells what a crash may leave of them, `crash_guest.Guest` remembers what the
disk's user was promised meanwhile, and `crash_explore.explore` compares the two.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from blocklayer.base.align import div_ceil
from blocklayer.base.buffers import Vector
from blocklayer.base.errors import IoError, NotSupported
from blocklayer.base.extent import DATA, ZERO
from blocklayer.base.units import SECTOR
from blocklayer.core.node import Mapped, Node

ZERO_SECTOR: Final = bytes(SECTOR)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What storage holds at one moment: its sectors that are not zero, and its size in bytes."""

    sectors: Mapping[int, bytes] = field(default_factory=dict)
    size: int = 0

    @property
    def key(self) -> int:
        """Equal for equal snapshots, and for no others in practice."""
        return hash((self.size, frozenset(self.sectors.items())))

    def save(self, path: Path) -> None:
        """Write a sparse file with this content."""
        with path.open("wb") as file:
            for sector, content in self.sectors.items():
                file.seek(sector * SECTOR)
                file.write(content)
            file.truncate(self.size)


@dataclass(frozen=True, slots=True)
class Operation:
    """One request as it reached the storage.

    kind      write, zero, discard, truncate or flush
    offset    the new size, for truncate
    sectors   the content after it of all sectors that it changes
    """

    kind: str
    offset: int = 0
    length: int = 0
    sectors: Mapping[int, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.kind == "flush":
            return "flush"
        if self.kind == "truncate":
            return f"truncate to {self.offset:#x}"
        return f"{self.kind} {self.length:#x} bytes at {self.offset:#x}"


FLUSH: Final = Operation("flush")


class SectorDisk(Node):
    """Storage in memory, kept in sectors; starts as a snapshot and can be taken as one."""

    driver = "sectors"

    def __init__(
        self,
        snapshot: Snapshot | None = None,
        *,
        read_only: bool = False,
        growable: bool = True,
        name: str = "sectors",
    ) -> None:
        super().__init__(name, read_only=read_only)
        snapshot = snapshot or Snapshot()
        self.size = snapshot.size
        self._sectors = dict(snapshot.sectors)
        self._growable = growable
        self._lock = threading.Lock()

    def snapshot(self) -> Snapshot:
        """What it holds now."""
        with self._lock:
            return Snapshot(dict(self._sectors), self.size)

    # --- looking --------------------------------------------------------------------------------

    @property
    def grows_zeroed(self) -> bool:
        """A file grows by a hole; a device (not growable) holds what somebody left on it."""
        return self._growable

    def readv(self, offset: int, vector: Vector) -> None:
        """Copy out of the sectors; zeroes behind the end."""
        with self._lock:
            for view in vector:
                view[:] = self._bytes(offset, len(view))
                offset += len(view)

    def _bytes(self, offset: int, length: int) -> bytes:
        first, within = divmod(offset, SECTOR)
        end = div_ceil(offset + length, SECTOR)
        get = self._sectors.get
        data = b"".join([get(sector, ZERO_SECTOR) for sector in range(first, end)])
        return data if len(data) == length else data[within : within + length]

    def map(self, offset: int, length: int) -> Mapped:
        """Sectors that are not zero are data."""
        first, end = offset // SECTOR, div_ceil(offset + length, SECTOR)
        held = self._sectors
        is_data = first in held
        sector = first + 1
        if is_data:
            while sector < end and sector in held:
                sector += 1
        elif end - sector > len(held):
            # A hole may be as long as the disk: look through what is there, not through it.
            sector = min((other for other in held if first < other < end), default=end)
        else:
            while sector < end and sector not in held:
                sector += 1
        return DATA if is_data else ZERO, min(length, sector * SECTOR - offset), None, offset

    # --- changing -------------------------------------------------------------------------------

    def writev(self, offset: int, vector: Vector) -> None:
        """Copy into the sectors."""
        self._announce("write", offset)
        data = b"".join(vector)
        with self._lock:
            self._require_room(offset + len(data))
            self._change(Operation("write", offset, len(data), self._patched(offset, data)))

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Zero without writing; a change of size, if there is one, is an operation of its own."""
        self._announce("zero", offset)
        with self._lock:
            self._require_room(offset + length)
            if offset + length > self.size:
                self._change(Operation("truncate", offset + length))
            self._zero("zero", offset, length)

    def discard(self, offset: int, length: int) -> None:
        """Zero; that a discarded range may keep its bytes as well is for its user to know."""
        self._announce("discard", offset)
        with self._lock:
            length = min(length, self.size - offset)
            if length > 0:
                self._zero("discard", offset, length)

    def _zero(self, kind: str, offset: int, length: int) -> None:
        sectors = self._zeroed(offset, offset + length)
        if sectors:
            self._change(Operation(kind, offset, length, sectors))

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Change the size; bytes behind it are gone."""
        self._announce("truncate", size)
        with self._lock:
            if not self._growable:
                if size > self.size:
                    raise NotSupported("Cannot grow a device")
                return
            self._change(Operation("truncate", size, 0, self._zeroed(size, None)))

    def flush(self) -> None:
        """Nothing to do; the record of a `CrashDisk` remembers it."""
        self._announce("flush", 0)
        with self._lock:
            self._change(FLUSH)

    def _announce(self, kind: str, offset: int) -> None:
        """Before an operation, outside of the lock."""
        if self.read_only and kind != "flush":
            raise IoError("the storage is read-only", self.filename, errno.EROFS, kind, offset)

    def _require_room(self, end: int) -> None:
        if end > self.size and not self._growable:
            raise IoError("the device ends before", self.filename, errno.ENOSPC, "write", end)

    def _change(self, operation: Operation) -> None:
        """Carry an operation out; the lock is held."""
        self.size = apply(self._sectors, self.size, operation)

    def _patched(self, offset: int, data: bytes) -> dict[int, bytes]:
        """The sectors that hold `data` at `offset`, with the old bytes around it."""
        first, head = divmod(offset, SECTOR)
        tail = -(head + len(data)) % SECTOR
        if head or tail:
            end = offset + len(data)
            data = self._bytes(offset - head, head) + data + self._bytes(end, tail)
        pieces = (data[start : start + SECTOR] for start in range(0, len(data), SECTOR))
        return dict(enumerate((piece if any(piece) else ZERO_SECTOR for piece in pieces), first))

    def _zeroed(self, offset: int, end: int | None) -> dict[int, bytes]:
        """The sectors that change when a range (to infinity without `end`) becomes zero."""
        first, head = divmod(offset, SECTOR)
        zeroed = {}
        if head:
            stop = (first + 1) * SECTOR if end is None else min((first + 1) * SECTOR, end)
            zeroed = self._patched(offset, bytes(stop - offset))
            first += 1
        last, tail = (None, 0) if end is None else divmod(end, SECTOR)
        for sector in self._ever_held():
            if sector >= first and (last is None or sector < last):
                zeroed[sector] = ZERO_SECTOR
        if tail and last is not None and last >= first:
            zeroed |= self._patched(last * SECTOR, bytes(tail))
        return zeroed

    def _ever_held(self) -> Iterable[int]:
        """Sectors that may be anything but zero."""
        return self._sectors


def apply(sectors: dict[int, bytes], size: int, operation: Operation, mask: int = -1) -> int:
    """Carry out the part of an operation that `mask` names, a bit a sector; the new size."""
    last = -1
    for number, (sector, content) in enumerate(operation.sectors.items()):
        if mask >> number & 1:
            last = sector
            if content is ZERO_SECTOR:
                sectors.pop(sector, None)
            else:
                sectors[sector] = content
    if operation.kind == "truncate":
        return operation.offset
    if operation.kind == "write" and last >= 0:
        return max(size, min(operation.offset + operation.length, (last + 1) * SECTOR))
    return size


class CrashDisk(SectorDisk):
    """Storage that records every operation, in order."""

    driver = "crash"

    def __init__(self, snapshot: Snapshot | None = None, *, name: str = "crash") -> None:
        super().__init__(snapshot, name=name)
        self.start = self.snapshot()
        """What was there before the first operation."""
        self.operations: list[Operation] = []
        self.before: Callable[[str, int], None] | None = None
        """Called with kind and offset before each operation, by the thread that asks for it: may
        wait, to interleave threads, or raise, to make the operation fail."""
        self.after: Callable[[Operation], None] | None = None
        """Called after each operation; may raise, for one that fails and has been done."""
        self.flushes = 0
        """How many flushes were asked for."""
        self.ignored: set[int] = set()
        """Flushes, by number from 0, that are not carried out: as if the driver had left them out.
        A test whose outcome does not change has not looked at what this flush is for."""
        self._held = set(self._sectors)

    @property
    def moment(self) -> int:
        """How many operations there were."""
        return len(self.operations)

    def _announce(self, kind: str, offset: int) -> None:
        if self.before is not None:
            self.before(kind, offset)

    def flush(self) -> None:
        """Note it, unless it is to be ignored."""
        number = self.flushes
        self.flushes += 1
        if number not in self.ignored:
            super().flush()

    def _change(self, operation: Operation) -> None:
        super()._change(operation)
        self._held.update(operation.sectors)
        self.operations.append(operation)
        if self.after is not None:
            self.after(operation)

    def _ever_held(self) -> Iterable[int]:
        return sorted(self._held)
