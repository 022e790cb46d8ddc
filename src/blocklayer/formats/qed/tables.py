# SPDX-License-Identifier: Apache-2.0
"""L1 and L2 tables: loading, the cache, writing.

Both are cached in slices of 512 entries as native `array("Q")`. The caches are write-through and
bounded; whatever is in them is on disk (or about to be reported as failed). Two threads may miss
the same slice at once: both read it, the first one's copy stays. A slice that was read while some
entry was being changed is read again, so that no stale copy enters the cache.

Callers of the `write_…` methods hold the driver's lock; everybody may read.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from threading import Lock

from blocklayer.base.align import align_down, align_up
from blocklayer.base.errors import CorruptImage, TruncatedImage
from blocklayer.base.units import KiB, MiB
from blocklayer.core.mapping import resolve
from blocklayer.formats.qed.header import read_bytes
from blocklayer.formats.qed.layout import (
    ENTRY_SIZE,
    SECTOR_ENTRIES,
    SLICE_BYTES,
    SLICE_ENTRIES,
)

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.formats.qed.mapping import QedMapping

CACHE_SLICES_MAX = 32 * MiB // SLICE_BYTES
"""Slices kept of the L2 tables; with 64 KiB clusters they map 256 GiB. As many of the L1 table."""

SCAN_BYTES = 64 * KiB
"""Bytes of a table that a scan reads at once."""

_ZERO_SCAN = bytes(SCAN_BYTES)

_SWAP = sys.byteorder == "big"


def decode(data: bytes | bytearray) -> array[int]:
    """Table entries from their little-endian bytes."""
    entries = array("Q")
    entries.frombytes(data)
    if _SWAP:
        entries.byteswap()
    return entries


def encode(entries: array[int]) -> bytes:
    """Table entries as they stand on disk."""
    if _SWAP:
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()


def nonzero_entries(data: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """(index, entry) of the entries in `data` that are not 0."""
    if data.startswith(_ZERO_SCAN[: len(data)]):
        return iter(())
    return ((index, entry) for index, entry in enumerate(decode(data)) if entry)


class Tables:
    """The two levels of one image."""

    def __init__(self, node: QedMapping) -> None:
        self._node = node
        self._file = node.file
        self._geometry = node.geometry
        self._lock = Lock()
        self._changes = 0
        self.l2_slices: dict[int, array[int]] = {}
        """Slices of L2 tables by slice number; read directly by the inline path."""
        self._l1_slices: dict[int, array[int]] = {}

    # --- reading --------------------------------------------------------------------------------

    def l1_slice(self, number: int) -> array[int]:
        """Slice `number` of the L1 table."""
        found = self._l1_slices.get(number)
        if found is None:
            found = self._load(self._l1_slices, number, self._l1_place(number))
        return found

    def _l1_place(self, number: int) -> int:
        return self._node.header.l1_table_offset + number * SLICE_BYTES

    def l1_entry(self, index: int) -> int:
        """Offset of an L2 table, 0 for none; not validated."""
        number, within = divmod(index, SLICE_ENTRIES)
        return self.l1_slice(number)[within]

    def l2_slice(self, number: int) -> array[int] | None:
        """Slice `number` of the L2 tables; None where there is no table.

        Raises `CorruptImage` or `TruncatedImage` if its table cannot be where L1 says.
        """
        found = self.l2_slices.get(number)
        if found is not None:
            return found
        l1_index = number // self._geometry.table_slices
        table = self.l1_entry(l1_index)
        if not table:
            return None
        self.require_table(l1_index, table)
        place = table + self._geometry.slice_in_table(number) * SLICE_BYTES
        node = self._node
        if node.sink is not None:
            node.sink(node, "l2_load", {"l1_index": l1_index, "offset": place})
        return self._load(self.l2_slices, number, place)

    def _load(self, cache: dict[int, array[int]], number: int, place: int) -> array[int]:
        while True:
            changes = self._changes
            loaded = decode(read_bytes(self._file, place, SLICE_BYTES))
            with self._lock:
                found = cache.get(number)
                if found is not None:
                    return found
                if changes == self._changes:
                    self._insert(cache, number, loaded)
                    return loaded

    def _insert(self, cache: dict[int, array[int]], number: int, entries: array[int]) -> None:
        while len(cache) >= CACHE_SLICES_MAX:
            del cache[next(iter(cache))]
        cache[number] = entries

    def require_table(self, l1_index: int, table: int) -> None:
        """Raise unless an L2 table can stand at `table`."""
        problem = self._node.table_problem(table)
        if problem is None:
            return
        kind = TruncatedImage if "end of the file" in problem else CorruptImage
        raise kind(f"L2 table {l1_index} at {table:#x} {problem}", self._file.filename)

    def scan(
        self, place: int, start: int = 0, length: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Entries of the table at `place` that are not 0, as (index, value), past the cache.

        Of the whole table, or of `length` bytes from its byte `start`. Holes of the file below are
        skipped: the largest tables have 134 million entries.
        """
        position = start
        end = self._geometry.table_bytes if length is None else start + length
        watch = self._node.watch
        while position < end:
            if watch is not None:
                watch.check()
            extent = resolve(self._file, place + position, end - position)
            if extent.zero and extent.length >= ENTRY_SIZE:
                position += align_down(extent.length, ENTRY_SIZE)
                continue
            data = read_bytes(self._file, place + position, min(SCAN_BYTES, end - position))
            base = position // ENTRY_SIZE
            for index, entry in nonzero_entries(data):
                yield base + index, entry
            position += len(data)

    # --- writing --------------------------------------------------------------------------------

    def write_l2(
        self, l1_index: int, updates: dict[int, array[int]], firsts: dict[int, int]
    ) -> None:
        """Change entries of an existing table: only the sectors that change are written.

        `updates` has new entries by slice number, `firsts` the index of the first of them there.
        """
        table = self.l1_entry(l1_index)
        self.require_table(l1_index, table)
        for number, values in updates.items():
            self.l2_slice(number)  # into the cache, from where it may be gone again
            place = table + self._geometry.slice_in_table(number) * SLICE_BYTES
            self._write_entries(self.l2_slices, number, firsts[number], values, place, "l2_update")

    def write_l1_entry(self, index: int, table: int) -> None:
        """Point an L1 entry to a table."""
        number, within = divmod(index, SLICE_ENTRIES)
        self.write_l1_entries(number, within, array("Q", [table]))

    def write_l1_entries(self, number: int, first: int, values: array[int]) -> None:
        """Change entries of slice `number` of the L1 table, from its entry `first` on."""
        place = self._l1_place(number)
        self._write_entries(self._l1_slices, number, first, values, place, "l1_update")

    def _write_entries(
        self,
        cache: dict[int, array[int]],
        number: int,
        first: int,
        values: array[int],
        place: int,
        event: str,
    ) -> None:
        """Disk first: what memory says must never be less true than what a crash would leave."""
        entries = cache.get(number)
        if entries is None:
            entries = self._load(cache, number, place)
        start = align_down(first, SECTOR_ENTRIES)
        end = align_up(first + len(values), SECTOR_ENTRIES)
        sectors = entries[start:end]
        sectors[first - start : first - start + len(values)] = values
        node = self._node
        offset = place + start * ENTRY_SIZE
        if node.sink is not None:
            node.sink(node, event, {"offset": offset, "entries": len(values)})
        with self._lock:
            self._changes += 1
        try:
            self._file.writev(offset, [memoryview(encode(sectors))])
        except BaseException:
            # It may have happened all the same. What is on disk is what counts: read it again.
            with self._lock:
                self._changes += 1
                cache.pop(number, None)
            raise
        with self._lock:
            self._changes += 1
            entries[first : first + len(values)] = values
            if (current := cache.get(number)) is not None and current is not entries:
                # It was evicted meanwhile, and read again before the change reached the disk.
                current[first : first + len(values)] = values

    def write_new_table(self, place: int, slices: dict[int, array[int]]) -> None:
        """Fill the slices that are not empty of a table in new space that reads as zeroes."""
        node = self._node
        for number, entries in slices.items():
            offset = place + self._geometry.slice_in_table(number) * SLICE_BYTES
            if node.sink is not None:
                node.sink(node, "l2_update", {"offset": offset, "entries": len(entries)})
            self._file.writev(offset, [memoryview(encode(entries))])

    def adopt(self, slices: dict[int, array[int]]) -> None:
        """Put the slices of a new table, now reachable, into the cache."""
        with self._lock:
            for number, entries in slices.items():
                self._insert(self.l2_slices, number, entries)

    def forget(self) -> None:
        """Empty the caches: the tables on disk were changed behind them."""
        with self._lock:
            self._changes += 1
            self.l2_slices.clear()
            self._l1_slices.clear()
