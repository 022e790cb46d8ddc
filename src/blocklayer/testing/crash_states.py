# SPDX-License-Identifier: Apache-2.0
"""Everything that a crash may leave of what a `CrashDisk` has recorded.

    operations   w0 w1 FLUSH w2 w3 w4 FLUSH w5
    killed       every prefix: the process is gone, what it has written is there
    power loss   w0 w1 for certain, of w2 w3 w4 any subset: each 512-byte sector of a write, each
                 zeroing and each change of size is there or not, in any combination

A sector whose last change is missing holds what it held before; one that was written twice may hold
the older of both. A write behind a change of size that was lost makes the file longer by itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from blocklayer.testing.crash import FLUSH, CrashDisk, Operation, Snapshot, apply


@dataclass(frozen=True, slots=True)
class CrashState:
    """What one crash may leave.

    killed        the process is gone, the machine is not: everything written is there
    first, last   the moments (numbers of operations) at which a crash can leave it
    present       for each operation that may be lost the sectors that are not, a bit a sector
    """

    snapshot: Snapshot
    killed: bool
    first: int
    last: int
    lost_from: int
    present: tuple[int, ...]

    def describe(self, operations: list[Operation]) -> str:
        """What is there of the operations around the crash."""
        if self.killed:
            last = operations[self.first - 1] if self.first else "nothing"
            return f"killed after {self.first} operations, the last of them: {last}"
        lines = [f"power lost after {self.first} to {self.last} operations; not flushed:"]
        for number, mask in enumerate(self.present, self.lost_from):
            operation = operations[number]
            lines.append(f"  {number:4} {operation}: {_extent_of(operation, mask)}")
        return "\n".join(lines)


def _extent_of(operation: Operation, mask: int) -> str:
    if mask in (0, -1) or len(operation.sectors) < 2:
        return "there" if mask else "lost"
    bits = (str(mask >> number & 1) for number in range(len(operation.sectors)))
    return f"sectors {''.join(bits)}"


@dataclass(frozen=True, slots=True)
class Effort:
    """How many of the possible states to look at.

    exhaustive   all subsets of operations where there are no more of them than this
    torn         all pieces of one operation, likewise
    samples      random ones in each place where there are more
    places       positions at which a long operation is torn, besides
    """

    exhaustive: int = 256
    torn: int = 256
    samples: int = 16
    places: int = 8


OPERATION_PLACES = 24
"""A longer sequence of operations without a flush is lost or there in runs from so many places."""


def crash_states(disk: CrashDisk, effort: Effort, rng: random.Random) -> Iterator[CrashState]:
    """All states that crashes may leave, as far as `effort` goes; some of them are equal."""
    operations = list(disk.operations)
    sectors, size = dict(disk.start.sectors), disk.start.size
    start = 0
    for end in [*(n for n, op in enumerate(operations) if op is FLUSH), len(operations)]:
        unflushed = operations[start:end]
        for choice in _choices(unflushed, effort, rng):
            yield _power_loss(sectors, size, unflushed, choice, start)
        for moment in range(start, end + 1):
            yield CrashState(Snapshot(dict(sectors), size), True, moment, moment, start, ())
            if moment < end:
                size = apply(sectors, size, operations[moment])
        start = end + 1


def _power_loss(
    sectors: dict[int, bytes],
    size: int,
    operations: list[Operation],
    choice: tuple[int, ...],
    start: int,
) -> CrashState:
    left = dict(sectors)
    first = start
    for number, (operation, mask) in enumerate(zip(operations, choice, strict=True), start + 1):
        if mask:
            size = apply(left, size, operation, mask)
            first = number
    last = start + len(operations)
    return CrashState(Snapshot(left, size), False, first, last, start, choice)


def _choices(
    operations: list[Operation], effort: Effort, rng: random.Random
) -> Iterator[tuple[int, ...]]:
    """For each operation the sectors of it that are there: 0 for none, -1 for all."""
    count = len(operations)
    for mask in subsets(count, effort.exhaustive, OPERATION_PLACES, effort.samples, rng):
        yield tuple(-(mask >> number & 1) for number in range(count))
    torn = [number for number, operation in enumerate(operations) if _pieces(operation) > 1]
    for number in torn:
        for others in _contexts(count, number, rng):
            choice = [-(others >> other & 1) for other in range(count)]
            pieces = _pieces(operations[number])
            for mask in subsets(pieces, effort.torn, effort.places, effort.samples, rng):
                yield (*choice[:number], mask, *choice[number + 1 :])
    for _ in range(effort.samples if torn else 0):
        yield tuple(_random_part(operation, rng) for operation in operations)


def _random_part(operation: Operation, rng: random.Random) -> int:
    pieces = _pieces(operation)
    return -rng.getrandbits(1) if pieces < 2 else rng.getrandbits(pieces)


def _pieces(operation: Operation) -> int:
    """Parts of an operation that are there or not, each by itself."""
    return 1 if operation.kind == "truncate" else len(operation.sectors)


def _contexts(count: int, number: int, rng: random.Random) -> list[int]:
    """What of the others is there around a torn operation: all, earlier ones, none, some."""
    everything = (1 << count) - 1
    return list(dict.fromkeys((everything, (1 << number) - 1, 0, rng.getrandbits(count))))


def subsets(
    count: int, exhaustive: int, places: int, samples: int, rng: random.Random
) -> Iterator[int]:
    """Subsets of `count` things as bit masks: all, or structured and random ones."""
    if 1 << count <= exhaustive:
        yield from range(1 << count)
        return
    everything = (1 << count) - 1
    chosen = sorted(rng.sample(range(count), places)) if count > places else list(range(count))
    for place in chosen:
        yield 1 << place
        yield everything ^ 1 << place
    # A run of neighbours is there or lost; prefixes and suffixes are among them.
    for first in [0, *chosen, count]:
        for end in [*chosen, count]:
            if first <= end:
                run = (1 << end) - (1 << first)
                yield run
                yield everything ^ run
    for _ in range(samples):
        yield rng.getrandbits(count)
