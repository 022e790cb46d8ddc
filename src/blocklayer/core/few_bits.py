# SPDX-License-Identifier: Apache-2.0
"""A set of small numbers: the bits of one integer.

Up to some thousands of bits it is as fast as a compressed bitmap of the pyroaring library, whose
methods it has, and importing that takes a fifth of the interpreter's start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Self

FEW = 4096
"""Numbers below this are small. With more, clearing a bit is slower than in a bitmap."""


class FewBits:
    """As `pyroaring.BitMap64`, as far as `core/bitmap` needs it. Ranges do not have their end."""

    __slots__ = ("_bits",)

    def __init__(self) -> None:
        self._bits = 0

    def __contains__(self, number: int) -> bool:
        return bool(self._bits >> number & 1)

    def __len__(self) -> int:
        return self._bits.bit_count()

    def __bool__(self) -> bool:
        return self._bits != 0

    def __ior__(self, other: Self) -> Self:
        self._bits |= other._bits
        return self

    def __iand__(self, other: Self) -> Self:
        self._bits &= other._bits
        return self

    def max(self) -> int:
        """The largest number of some."""
        return self._bits.bit_length() - 1

    def update(self, numbers: Iterable[int]) -> None:
        """Add numbers."""
        for number in numbers:
            self._bits |= 1 << number

    def add_range(self, first: int, end: int) -> None:
        """Add a range."""
        self._bits |= _mask(first, end)

    def remove_range(self, first: int, end: int) -> None:
        """Remove a range."""
        self._bits &= ~_mask(first, end)

    def contains_range(self, first: int, end: int) -> bool:
        """Whether all of a range is there."""
        return not _mask(first, end) & ~self._bits

    def iter_equal_or_larger(self, number: int) -> Iterator[int]:
        """Those from `number` on, in ascending order."""
        rest = self._bits >> number << number
        while rest:
            lowest = rest & -rest
            yield lowest.bit_length() - 1
            rest ^= lowest


def _mask(first: int, end: int) -> int:
    return (1 << end) - (1 << first) if first < end else 0
