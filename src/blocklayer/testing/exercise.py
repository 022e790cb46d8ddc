# SPDX-License-Identifier: Apache-2.0
"""Random requests at odd offsets, to a disk and to its model, compared at every step.

    exercise = Exercise(disk, ModelDisk(disk.size), seed=seed)
    exercise.run(200)

The last requests and the seed are told when something is wrong; the same seed repeats it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from blocklayer.base.errors import NotSupported
from blocklayer.base.units import SECTOR, KiB
from blocklayer.core.batch import READ, WRITE, WRITE_ZEROES, Request
from blocklayer.core.disk import Disk
from blocklayer.testing.liar import POISON
from blocklayer.testing.model import Mismatch, ModelDisk

HISTORY = 30
"""Requests that are told when something is wrong."""

Reopen = Callable[[], Disk]
"""Opens the disk again after it was closed."""


class Exercise:
    """One disk, its model, and a source of random requests.

    grain        what offsets like to be near to: the cluster size
    length_max   longest usual request; a few are longer
    reopen       how to open the disk again; without it, it is never closed
    size_max     how large it may grow; without it, it is never resized
    """

    def __init__(
        self,
        disk: Disk,
        model: ModelDisk,
        *,
        seed: int,
        grain: int = 64 * KiB,
        length_max: int = 64 * KiB,
        reopen: Reopen | None = None,
        size_max: int = 0,
    ) -> None:
        self.disk = disk
        self.model = model
        self.history: deque[str] = deque(maxlen=HISTORY)
        self._seed = seed
        self._rng = random.Random(seed)
        self._grain = grain
        self._length_max = length_max
        self._reopen_disk = reopen
        self._size_max = size_max
        self._verbs = self._choose_verbs()

    def _choose_verbs(self) -> list[Callable[[], None]]:
        """Each as often as it is to be done."""
        verbs = [
            *[self._read, self._read_into, self._read_many] * 3,
            *[self._write] * 6,
            *[self._write_many, self._write_zeroes, self._submit] * 3,
            *[self._discard, self._flush, self._extents],
        ]
        if self._size_max:
            verbs += [self._resize]
        if self._reopen_disk is not None:
            verbs += [self._reopen]
        return verbs

    def run(self, steps: int) -> None:
        """Do so many random requests, then compare everything."""
        try:
            for _ in range(steps):
                self._rng.choice(self._verbs)()
            self.model.check(self.disk)
        except Exception as error:
            done = "\n  ".join(self.history)
            error.add_note(f"seed {self._seed}; the last requests were\n  {done}")
            raise

    def _note(self, verb: str, *arguments: Any) -> None:
        self.history.append(f"{verb}({', '.join(map(str, arguments))})")

    # --- what to ask for ------------------------------------------------------------------------

    def range(self, longest: int = 0) -> tuple[int, int]:
        """An offset and a length: odd ones, or such that meet what things are aligned to."""
        rng, size = self._rng, self.model.size
        longest = longest or self._length_max * (8 if rng.random() < 0.05 else 1)
        if not size:
            return 0, 0
        offset = rng.randrange(size)
        if rng.random() < 0.5:
            unit = rng.choice([SECTOR, 4 * KiB, self._grain])
            offset = offset // unit * unit + rng.choice([0, 0, 0, -1, 1, SECTOR])
            offset = min(max(offset, 0), size - 1)
        length = rng.choice([1, SECTOR, 4 * KiB, self._grain, rng.randrange(1, longest + 1)])
        if rng.random() < 0.1:
            length = size - offset
        return offset, min(length, longest, size - offset)

    def data(self, length: int) -> bytes:
        """Something to write: noise, runs of zeroes in noise, or zeroes."""
        kind = self._rng.random()
        if kind < 0.1:
            return bytes(length)
        noise = self._rng.randbytes(min(length, 4 * KiB))
        if kind < 0.3:
            noise += bytes(len(noise))
        return (noise * (length // max(len(noise), 1) + 1))[:length]

    def _ranges(self) -> list[tuple[int, int]]:
        """Several ranges, near to each other, so that some overlap or touch."""
        offset, length = self.range()
        found = [(offset, length)]
        for _ in range(self._rng.randrange(8)):
            near = offset + self._rng.randrange(-2 * self._grain, 2 * self._grain)
            near = min(max(near, 0), self.model.size)
            length = self._rng.choice([1, SECTOR, self._rng.randrange(1, self._length_max)])
            found.append((near, min(length, self.model.size - near)))
        return found

    # --- the verbs ------------------------------------------------------------------------------

    def _read(self) -> None:
        offset, length = self.range()
        self._note("read", offset, length)
        self.model.require(offset, self.disk.read(offset, length))

    def _read_into(self) -> None:
        offset, length = self.range()
        self._note("read_into", offset, length)
        buffer = bytearray([POISON]) * length
        count = self.disk.read_into(offset, buffer)
        if count != length:
            raise Mismatch(f"read_into({offset}) of {length} bytes gave {count}")
        self.model.require(offset, bytes(buffer))

    def _read_many(self) -> None:
        ranges = self._ranges()
        self._note("read_many", ranges)
        found = self.disk.read_many(ranges)
        for (offset, length), data in zip(ranges, found, strict=True):
            if len(data) != length:
                raise Mismatch(f"read_many gave {len(data)} bytes for {length} at {offset}")
            self.model.require(offset, data)

    def _write(self) -> None:
        offset, length = self.range()
        data = self.data(length)
        fua = self._rng.random() < 0.1
        self._note("write", offset, length, f"fua={fua}")
        self.disk.write(offset, self._rng.choice([bytes, bytearray, memoryview])(data), fua=fua)
        self.model.write(offset, data)

    def _write_many(self) -> None:
        requests = [(offset, self.data(length)) for offset, length in self._ranges()]
        self._note("write_many", [(offset, len(data)) for offset, data in requests])
        self.disk.write_many(requests, fua=self._rng.random() < 0.1)
        self.model.write_many(requests)

    def _submit(self) -> None:
        """A batch of any kinds, whose effect is that of its order."""
        requests = [self._request(offset, length) for offset, length in self._ranges()]
        self._note("submit", [(r.kind, r.offset, r.length) for r in requests])
        self.disk.submit(requests)
        for request in requests:
            if request.error is not None:
                raise request.error
            self._follow(request)

    def _request(self, offset: int, length: int) -> Request:
        kind = self._rng.random()
        if kind < 0.6:
            return Request.write(offset, self.data(length), fua=self._rng.random() < 0.1)
        if kind < 0.8:
            return Request.read(offset, length)
        if kind < 0.9:
            return Request.write_zeroes(offset, length, unmap=self._rng.random() < 0.5)
        return Request.flush()

    def _follow(self, request: Request) -> None:
        if request.kind == WRITE:
            self.model.write(request.offset, request.data)
        elif request.kind == WRITE_ZEROES:
            self.model.write_zeroes(request.offset, request.length)
        elif request.kind == READ:
            assert request.result is not None
            self.model.require(request.offset, request.result)

    def _write_zeroes(self) -> None:
        offset, length = self.range(self._length_max * 8)
        flags = {"fua": self._rng.random() < 0.1, "no_fallback": self._rng.random() < 0.2}
        flags[self._rng.choice(["unmap", "allocate"])] = self._rng.random() < 0.5
        self._note("write_zeroes", offset, length, flags)
        try:
            self.disk.write_zeroes(offset, length, **flags)
        except NotSupported:
            if not flags["no_fallback"]:
                raise
            # A refusal changes nothing.
            self.model.require(offset, self.disk.read(offset, length))
            return
        self.model.write_zeroes(offset, length)

    def _discard(self) -> None:
        offset, length = self.range()
        self._note("discard", offset, length)
        self.disk.discard(offset, length)
        if self.disk.discard_mode == "unmap":
            self._settle(offset, length)

    def _settle(self, offset: int, length: int) -> None:
        self.model.settle(offset, self.disk.read(offset, length))

    def _flush(self) -> None:
        self._note("flush")
        self.disk.flush()

    def _extents(self) -> None:
        self._note("extents")
        self.model.check_extents(self.disk)

    def _resize(self) -> None:
        size = self._rng.randrange(self._size_max + 1) // SECTOR * SECTOR
        if self._rng.random() < 0.5:
            size = min(self.model.size + self._rng.randrange(0, 3) * self._grain, self._size_max)
            size = size // SECTOR * SECTOR
        self._note("resize", size)
        self.disk.resize(size)
        self.model.resize(size)

    def _reopen(self) -> None:
        assert self._reopen_disk is not None
        self._note("close, open")
        self.disk.close()
        self.disk = self._reopen_disk()
