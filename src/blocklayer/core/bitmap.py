# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps: which granules of a disk were written since somebody looked.

Marking rounds wide (a granule touched is dirty), clearing rounds narrow (a granule is clean only if
all of it is cleared). The bits are a compressed bitmap of the pyroaring library, so that a bitmap
of a petabyte costs what is dirty in it; those of a small disk are an integer (`few_bits`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sized

from blocklayer.base.align import is_power_of_two
from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import GiB, KiB
from blocklayer.core import few_bits

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

GRANULARITY_MIN = 512
GRANULARITY_MAX = 2 * GiB
GRANULARITY_DEFAULT = 64 * KiB

NAME_MAX = 1023
"""Bytes of a bitmap's name."""


class Bitmap:
    """A set of granules of a disk of `size` bytes; thread-safe."""

    def __init__(self, size: int, granularity: int = GRANULARITY_DEFAULT) -> None:
        if not GRANULARITY_MIN <= granularity <= GRANULARITY_MAX or not is_power_of_two(
            granularity
        ):
            raise InvalidArgument(
                f"Granularity must be a power of 2 from {GRANULARITY_MIN} to {GRANULARITY_MAX}"
            )
        self.size = size
        self.granularity = granularity
        self._shift = granularity.bit_length() - 1
        self._lock = threading.Lock()
        self._bits: Any = _bits_for(self._granule_up(size))

    def copy(self) -> Bitmap:
        """Another one with the same marks: without a name, and nothing is recorded in it."""
        copied = Bitmap(self.size, self.granularity)
        copied.merge(self)
        return copied

    def set(self, offset: int, length: int) -> None:
        """Mark every granule that the range touches."""
        if length:
            with self._lock:
                self._bits.add_range(offset >> self._shift, self._granule_up(offset + length))

    def set_each(self, spans: Iterable[tuple[int, Sized]]) -> None:
        """`set` for many (offset, what lies there), as far as they lie in the disk.

        Cheap where much is marked already.
        """
        shift, bits, size = self._shift, self._bits, self.size
        found: list[int] = []
        for offset, data in spans:
            first = offset >> shift
            end = offset + len(data)
            if first == (end - 1) >> shift and 0 <= offset < end <= size:
                if first not in bits:
                    found.append(first)
            elif offset >= 0:
                self.set(offset, max(0, min(end, size) - offset))
        if found:
            with self._lock:
                self._bits.update(found)

    def clear(self, offset: int = 0, length: int | None = None) -> None:
        """Unmark every granule that lies wholly in the range (the last one may be cut short)."""
        end = self.size if length is None else offset + length
        first = self._granule_up(offset)
        last = self._granule_up(end) if end >= self.size else end >> self._shift
        if first < last:
            with self._lock:
                self._bits.remove_range(first, last)

    def _granule_up(self, offset: int) -> int:
        return (offset + self.granularity - 1) >> self._shift

    def is_set(self, offset: int) -> bool:
        """Whether the granule of `offset` is marked."""
        return (offset >> self._shift) in self._bits

    def all_set(self, offset: int, length: int) -> bool:
        """Whether every granule that the range touches is marked."""
        first, end = offset >> self._shift, self._granule_up(offset + length)
        with self._lock:
            return bool(self._bits.contains_range(first, end))

    def any_set(self, offset: int, length: int) -> bool:
        """Whether any granule that the range touches is marked."""
        first, end = offset >> self._shift, self._granule_up(offset + length)
        with self._lock:
            found = self._next(first, marked=True)
        return found is not None and found < end

    @property
    def is_empty(self) -> bool:
        """Whether nothing is marked."""
        return not self._bits

    @property
    def count(self) -> int:
        """Bytes marked, in whole granules."""
        return len(self._bits) << self._shift

    def runs(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """(offset, length) of marked runs from `start`, clipped to the disk.

        Changes made meanwhile may or may not be seen.
        """
        position = start >> self._shift
        while True:
            with self._lock:
                first = self._next(position, marked=True)
                end = None if first is None else self._next(first, marked=False)
            if first is None or first << self._shift >= self.size:
                return
            assert end is not None
            offset = first << self._shift
            yield offset, min(end << self._shift, self.size) - offset
            position = end

    def _next(self, position: int, *, marked: bool) -> int | None:
        """The first granule from `position` that is marked, or is not; holds the lock."""
        bits = self._bits
        if marked:
            return next(iter(bits.iter_equal_or_larger(position)), None)
        # Doubling, then halving: runs may be millions of granules long.
        step = 1
        while bits.contains_range(position, position + step):
            position += step
            step *= 2
        while step > 1:
            step //= 2
            if bits.contains_range(position, position + step):
                position += step
        return position

    def merge(self, other: Bitmap) -> None:
        """Mark everything that `other` marks; granularities may differ, sizes may not."""
        if other.size != self.size:
            raise InvalidArgument(
                "Bitmaps are incompatible and can't be merged:"
                f" one is of {self.size} bytes, the other of {other.size}"
            )
        if other.granularity == self.granularity:
            with self._lock:
                self._bits |= other._bits
            return
        for offset, length in other.runs():
            self.set(offset, length)

    def keep_only(self, other: Bitmap) -> None:
        """Unmark what `other`, of the same size and granularity, does not mark."""
        with self._lock:
            self._bits &= other._bits

    def resize(self, size: int) -> None:
        """The disk has another size: granules behind it are forgotten, new ones are clean."""
        with self._lock:
            if size < self.size and self._bits:
                end = max(self._granule_up(size), self._bits.max() + 1)
                self._bits.remove_range(self._granule_up(size), end)
            self.size = size
            bits = _bits_for(self._granule_up(size))
            if type(bits) is not type(self._bits):
                bits.update(self._bits.iter_equal_or_larger(0))
                self._bits = bits


def _bits_for(granules: int) -> Any:
    """No bits yet: of the same kind for every bitmap of so many."""
    if granules <= few_bits.FEW:
        return few_bits.FewBits()
    from pyroaring import BitMap64

    return BitMap64()


class DirtyBitmap(Bitmap):
    """A bitmap with a name that records a disk's writes while it is enabled."""

    def __init__(
        self, name: str, size: int, granularity: int = GRANULARITY_DEFAULT, *, enabled: bool = True
    ) -> None:
        if not name:
            raise InvalidArgument("Bitmap name cannot be empty")
        if len(name.encode()) > NAME_MAX:
            raise InvalidArgument(f"Bitmap name too long: more than {NAME_MAX} bytes")
        super().__init__(size, granularity)
        self.name = name
        self.enabled = enabled
        self.busy = False
        """A job or an export uses it: it is not to be changed by others."""

    def require_free(self) -> None:
        """Raise `InvalidArgument` if somebody uses it."""
        if self.busy:
            raise InvalidArgument(
                f"Bitmap '{self.name}' is currently in use by another operation and cannot be used"
            )

    def record(self, offset: int, length: int) -> None:
        """A write has happened."""
        if self.enabled:
            self.set(offset, length)
