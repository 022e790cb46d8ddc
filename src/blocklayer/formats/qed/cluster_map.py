# SPDX-License-Identifier: Apache-2.0
"""Which clusters of an image's file are referenced: what the careful check and repair go by."""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.base.errors import NotSupported

_PAGE = 4096
"""Clusters in a page of the map."""

_PAGES_MAX = 1 << 18
"""Pages of the map: 180 MiB of memory, enough for every image that is not sparse."""

_BITS = tuple(1 << bit for bit in range(8))


class ClusterMap:
    """Which clusters of the file are referenced: a bit each, in pages made on first use.

    Pages are limited, so that a hostile sparse file of absurd length cannot fill memory.
    """

    def __init__(self, clusters: int) -> None:
        self.clusters = clusters
        self.used = 0
        self._pages: dict[int, bytearray] = {}

    def mark(self, first: int, count: int = 1) -> int:
        """Mark clusters; how many of them were marked before."""
        if count > 1:
            return self._mark_run(first, count)
        number, within = divmod(first, _PAGE)
        page = self._pages.get(number)
        if page is None:
            page = self._new_page(number)
        byte, bit = divmod(within, 8)
        if page[byte] & _BITS[bit]:
            return 1
        page[byte] |= _BITS[bit]
        self.used += 1
        return 0

    def _mark_run(self, first: int, count: int) -> int:
        end = first + count
        already = 0
        while first < end:
            number, within = divmod(first, _PAGE)
            page = self._pages.get(number)
            if page is None:
                page = self._new_page(number)
            here = min(end - first, _PAGE - within)
            already += _set_bits(page, within, here)
            first += here
        self.used += count - already
        return already

    def unmark(self, first: int, count: int = 1) -> None:
        """Nobody references these clusters any more."""
        for cluster in range(first, first + count):
            number, within = divmod(cluster, _PAGE)
            byte, bit = divmod(within, 8)
            self._pages[number][byte] &= ~_BITS[bit]
            self.used -= 1

    def _new_page(self, number: int) -> bytearray:
        if len(self._pages) >= _PAGES_MAX:
            raise NotSupported(
                "The image's clusters are too scattered to be checked in bounded memory"
            )
        page = self._pages[number] = bytearray(_PAGE // 8)
        return page

    def has(self, cluster: int) -> bool:
        """Whether a cluster is marked."""
        number, within = divmod(cluster, _PAGE)
        page = self._pages.get(number)
        byte, bit = divmod(within, 8)
        return page is not None and bool(page[byte] & _BITS[bit])

    def free(self, first: int, count: int) -> list[int]:
        """Which of some neighbouring clusters are not marked."""
        return [cluster for cluster in range(first, first + count) if not self.has(cluster)]

    def free_runs(self, end: int | None = None) -> Iterator[tuple[int, int]]:
        """Runs (first, count) of clusters below `end` that are not marked, in ascending order."""
        end = self.clusters if end is None else end
        start = 0
        for first, count in self._used_runs():
            if first >= end:
                break
            if start < first:
                yield start, first - start
            start = first + count
        if start < end:
            yield start, end - start

    def _used_runs(self) -> Iterator[tuple[int, int]]:
        """Runs of marked clusters in ascending order; long ones in several pieces."""
        for number in sorted(self._pages):
            base = number * _PAGE
            # Read anew for each run: between two of them the caller may mark and unmark.
            position = 0
            while position < _PAGE:
                bits = int.from_bytes(self._pages[number], "little") >> position
                if not bits:
                    break
                first = _lowest_bit(bits)
                count = _lowest_bit(~(bits >> first))
                yield base + position + first, count
                position += first + count

    def count(self, start: int) -> int:
        """How many clusters from `start` on are marked."""
        total = 0
        for number, page in self._pages.items():
            base = number * _PAGE
            if base + _PAGE > start:
                total += (int.from_bytes(page, "little") >> max(0, start - base)).bit_count()
        return total

    def last_used(self) -> int:
        """The highest marked cluster; -1 if there is none."""
        for number in sorted(self._pages, reverse=True):
            bits = int.from_bytes(self._pages[number], "little")
            if bits:
                return number * _PAGE + bits.bit_length() - 1
        return -1


def _set_bits(page: bytearray, first: int, count: int) -> int:
    """Set `count` bits from bit `first`; how many of them were set before."""
    start, shift = divmod(first, 8)
    end = (first + count + 7) // 8
    before = int.from_bytes(page[start:end], "little")
    mask = ((1 << count) - 1) << shift
    page[start:end] = (before | mask).to_bytes(end - start, "little")
    return (before & mask).bit_count()


def _lowest_bit(bits: int) -> int:
    """The number of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1
