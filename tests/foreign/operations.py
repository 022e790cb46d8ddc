# SPDX-License-Identifier: Apache-2.0
"""Random requests that QEMU, we and a plain array of bytes all understand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from blocklayer import Disk
from blocklayer.base.align import align_down, align_up
from blocklayer.base.units import KiB, MiB

ALIGNMENTS = (1, 512, 4 * KiB)
CLUSTERS_MAX = 24
"""Longest request; QEMU 7.2 miscounts the clusters of requests of thousands of them."""


@dataclass(frozen=True)
class Operation:
    """One request. `value` is the byte that a write fills its range with."""

    verb: str
    offset: int = 0
    length: int = 0
    value: int = 0
    unmap: bool = False
    fua: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length

    def tell_disk(self, disk: Disk) -> None:
        """Have us do it."""
        if self.verb == "write":
            disk.write(self.offset, bytes([self.value]) * self.length, fua=self.fua)
        elif self.verb == "write_zeroes":
            disk.write_zeroes(self.offset, self.length, unmap=self.unmap, fua=self.fua)
        elif self.verb == "read":
            disk.read(self.offset, self.length)
        else:
            assert self.verb == "flush"
            disk.flush()

    @property
    def command(self) -> str:
        """It, in the words of `qemu-io` and of `blk io`."""
        place = f"{self.offset} {self.length}"
        fua = "-f " if self.fua else ""
        if self.verb == "write":
            return f"write -q {fua}-P {self.value} {place}"
        if self.verb == "write_zeroes":
            return f"write -q {fua}-z {'-u ' if self.unmap else ''}{place}"
        if self.verb == "read":
            return f"read -q {place}"
        assert self.verb == "flush"
        return "flush"

    def tell_bytes(self, model: bytearray) -> None:
        """Do it to an array."""
        if self.verb == "write":
            model[self.offset : self.end] = bytes([self.value]) * self.length
        elif self.verb == "write_zeroes":
            model[self.offset : self.end] = bytes(self.length)


class Generator:
    """Random requests to a disk of `size` bytes.

    DEFECT: where QEMU writes a part of a zero cluster of an overlay, the backing file's bytes come
    back around it. `over_backing` widens such writes to whole clusters.
    """

    def __init__(
        self, rng: random.Random, size: int, cluster_size: int, *, over_backing: bool = False
    ) -> None:
        self._rng = rng
        self._size = size
        self._cluster = cluster_size
        self._over_backing = over_backing
        self._maybe_zero: set[int] = set()

    def many(self, count: int) -> list[Operation]:
        """The next requests."""
        return [self._next() for _ in range(count)]

    def resized(self, size: int) -> None:
        """The disk has another size."""
        self._size = size

    def learn(self, disk: Disk) -> None:
        """Look at an image's zero clusters, which not only requests make."""
        for extent in disk.extents():
            if extent.zero and extent.present and not extent.depth:
                first = extent.offset // self._cluster
                self._maybe_zero.update(range(first, self._clusters(extent.end)))

    def _clusters(self, size: int) -> int:
        return align_up(size, self._cluster) // self._cluster

    def _next(self) -> Operation:
        rng = self._rng
        verb = rng.choices(("write", "write_zeroes", "read", "flush"), (12, 6, 2, 1))[0]
        if verb == "flush":
            return Operation(verb)
        offset, length = self._range()
        operation = Operation(
            verb,
            offset,
            length,
            value=rng.randrange(1, 256),
            unmap=rng.random() < 0.5,
            fua=rng.random() < 0.05,
        )
        return operation if verb == "read" else self._noted(operation)

    def _range(self) -> tuple[int, int]:
        rng = self._rng
        alignment = rng.choice((*ALIGNMENTS, self._cluster))
        longest = rng.choice((1, 2, CLUSTERS_MAX)) * self._cluster
        start = align_down(rng.randrange(self._size), alignment)
        length = align_up(rng.randint(1, min(longest, MiB)), alignment)
        if rng.random() < 0.1:
            start = self._size - length
        start = max(0, start)
        return start, min(length, self._size - start)

    def _noted(self, operation: Operation) -> Operation:
        if self._over_backing:
            operation = self._widened(operation)
        first, behind = operation.offset // self._cluster, self._clusters(operation.end)
        touched = range(first, behind)
        if operation.verb == "write":
            self._maybe_zero.difference_update(touched)
        else:
            whole = range(self._clusters(operation.offset), behind)
            self._maybe_zero.update(whole)
        return operation

    def _widened(self, operation: Operation) -> Operation:
        start, end = operation.offset, operation.end
        if start // self._cluster in self._maybe_zero:
            start = align_down(start, self._cluster)
        if (end - 1) // self._cluster in self._maybe_zero:
            end = min(align_up(end, self._cluster), self._size)
        return replace(operation, offset=start, length=end - start)


def commands(operations: list[Operation]) -> list[str]:
    """All of them for `qemu-io`."""
    return [operation.command for operation in operations]


def pieces(total: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, length) of the pieces of at most `size` that `total` has."""
    for start in range(0, total, size):
        yield start, min(size, total - start)
