# SPDX-License-Identifier: Apache-2.0
"""Counting the clusters that tables reference, a chunk of entries at a time.

`LaneTally` takes the numbers of a chunk as one long integer, in which every operation is done to
all of them at once, and clusters as a compressed bitmap. `ArrayTally` does the same with numpy, if
that is installed: some times faster, but its import takes as long as looking at some millions of
entries.
"""

from __future__ import annotations

from array import array
from contextlib import suppress
from threading import Lock

from blocklayer.base.units import KiB, MiB
from blocklayer.formats.qed.layout import ENTRY_SIZE, ZERO_CLUSTER

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias

ARRAY_CLUSTERS_MAX = 64 * MiB
"""An array has a byte a cluster; beyond, bitmaps bound what a file of absurd length costs."""

ARRAY_WORTH_CLUSTERS = 3 << 19
"""Clusters of a file from which on importing numpy pays."""

NONE = -1
"""Number of the last cluster where there has been none in a table."""

_LANE = 32
_TOP = 1 << (_LANE - 1)
_NOWHERE = _TOP - 2
"""What the first cluster of a table follows: no number is as large, nor is the next one."""

CLUSTERS_MAX = _NOWHERE
"""Numbers leave the highest bit of a lane free, for sums that must not reach the next lane."""

_STEPS = (1, 2, 4)
"""Lanes by which numbers are moved into holes. Those longer than their sum are taken out."""


class Doubt(Exception):
    """Something may be wrong: the careful check has to look."""


class _Masks:
    """The same number in each of so many lanes, and what no entry of so large a chunk may have."""

    def __init__(self, lanes: int, cluster_bits: int) -> None:
        self.ones = int.from_bytes((1).to_bytes(_LANE // 8, "little") * lanes, "little")
        self.tops = self.ones << (_LANE - 1)
        self.rests = self.tops - self.ones
        """All bits but the highest: added to a lane, they carry into that where it is not zero."""
        wrong = ~(((1 << _LANE) - 1) << cluster_bits) % (1 << 8 * ENTRY_SIZE)
        self.wrong = int.from_bytes(wrong.to_bytes(ENTRY_SIZE, "little") * lanes, "little")
        """The bits of entries that are in no cluster's offset."""


class LaneTally:
    """References to clusters, with what the standard library has, and a compressed bitmap."""

    threads_max = 1  # nothing in it lets others run meanwhile
    chunk_bytes = 32 * KiB  # numbers of more bytes leave the processor's cache

    def __init__(self, clusters: int, cluster_size: int) -> None:
        from pyroaring import BitMap

        self._used = BitMap()
        self._clusters = clusters
        self._cluster_bits = cluster_size.bit_length() - 1
        self._masks: dict[int, _Masks] = {}
        self.allocated = 0
        self.fragmented = 0

    @property
    def distinct(self) -> int:
        """Different clusters that are referenced."""
        return len(self._used)

    def add_run(self, first: int, count: int) -> None:
        """Neighbouring clusters are in use."""
        self._used.add_range(first, first + count)

    def add_entries(self, data: bytearray, last: int) -> int:
        """Count table entries; one that does not follow the one before it is fragmented.

        `last` is what this returned for the entries before, `NONE` at the start of a table.
        """
        masks = self._masks_for(len(data) // ENTRY_SIZE)
        numbers = self._numbers(data, masks)
        values = int.from_bytes(numbers, "little")
        if not values:
            return last
        self._used.update(numbers)
        if self._used.max() >= self._clusters:
            raise Doubt
        used = (values + masks.rests) & masks.tops  # the highest bit of each lane that is not zero
        first = _NOWHERE if last == NONE else last
        before = values << _LANE | first
        if used != masks.tops:
            before = _filled(before, used, masks)
        if not before:
            numbers = array("I", list(filter(None, numbers)))
            values = int.from_bytes(numbers, "little")
            used = masks.tops & ((1 << _LANE * len(numbers)) - 1)
            before = values << _LANE | first
        breaks = values ^ (before + masks.ones)  # zero in the lanes that go on from the one before
        self.allocated += used.bit_count()
        self.fragmented += ((breaks + masks.rests) & used).bit_count() - (last == NONE)
        return before >> _LANE * len(numbers)

    def _masks_for(self, lanes: int) -> _Masks:
        found = self._masks.get(lanes)
        if found is None:
            found = self._masks[lanes] = _Masks(lanes, self._cluster_bits)
        return found

    def _numbers(self, data: bytearray, masks: _Masks) -> array[int]:
        """The cluster numbers of entries, 0 where nothing is allocated.

        A cluster's offset ends with zeroes. Where these are whole bytes, its number can be taken
        out as it is; otherwise the whole is shifted, which moves nothing into a neighbour. Cluster
        0 is the header, which is in use in any case.
        """
        numbers = array("I")
        skipped, shift = divmod(self._cluster_bits, 8)
        if shift:
            whole = int.from_bytes(data, "little")
            if whole & masks.wrong:
                data = _without_zero_clusters(data)
                whole = int.from_bytes(data, "little")
                if whole & masks.wrong:
                    raise Doubt
            shifted = (whole >> self._cluster_bits).to_bytes(len(data), "little")
            numbers.frombytes(shifted)
            return numbers[::2]
        if not self._is_aligned(data, skipped):
            data = _without_zero_clusters(data)
            if not self._is_aligned(data, skipped):
                raise Doubt
        numbers.frombytes(memoryview(data)[skipped : skipped + len(data) - _LANE // 8])
        return numbers[::2]

    def _is_aligned(self, data: bytearray, skipped: int) -> bool:
        """Whether the bytes of entries around the numbers are all zero."""
        zeroes = bytes(len(data) // ENTRY_SIZE)
        around = (*range(skipped), *range(skipped + _LANE // 8, ENTRY_SIZE))
        return all(data[byte::ENTRY_SIZE] == zeroes for byte in around)


def _without_zero_clusters(data: bytearray) -> bytearray:
    entries = memoryview(data).cast("Q")
    kept = array("Q", [0 if entry == ZERO_CLUSTER else entry for entry in entries])
    return bytearray(kept.tobytes())


def _filled(before: int, used: int, masks: _Masks) -> int:
    """`before` with each hole filled by the number in front of it; 0 if one is too long for that.

    `used` are flags of the lanes above the first one of `before`, which is no hole.
    """
    holes = (masks.tops ^ used) << _LANE
    for step in _STEPS:
        mask = holes - (holes >> (_LANE - 1))  # all bits but the highest
        before |= (before << step * _LANE) & mask
        holes &= holes << step * _LANE
        if not holes:
            return before
    return 0


class ArrayTally:
    """The same with numpy, which lets other threads run meanwhile."""

    threads_max = 2
    chunk_bytes = 256 * KiB

    def __init__(self, clusters: int, cluster_size: int) -> None:
        import numpy

        self._numpy = numpy
        self._cluster_bits = cluster_size.bit_length() - 1
        self._cluster_mask = cluster_size - 1
        self._used = numpy.zeros(clusters, numpy.bool_)
        self._lock = Lock()
        self.allocated = 0
        self.fragmented = 0

    @property
    def distinct(self) -> int:
        """Different clusters that are referenced."""
        return int(self._numpy.count_nonzero(self._used))

    def add_run(self, first: int, count: int) -> None:
        """Neighbouring clusters are in use."""
        self._used[first : first + count] = True

    def add_entries(self, data: bytearray, last: int) -> int:
        """Count table entries; see `LaneTally`. Threads may do so at once, each with its table."""
        numpy = self._numpy
        entries = numpy.frombuffer(data, numpy.uint64)
        entries = entries.compress(entries > ZERO_CLUSTER)
        if not entries.size:
            return last
        if int(numpy.bitwise_or.reduce(entries)) & self._cluster_mask:
            raise Doubt
        numbers = (entries >> self._cluster_bits).view(numpy.int64)  # an index without conversion
        try:
            self._used[numbers] = True
        except IndexError:
            raise Doubt from None
        follows = int(numpy.count_nonzero(numbers[1:] - numbers[:-1] == 1))
        if last != NONE and numbers[0] != last + 1:
            follows -= 1
        with self._lock:
            self.allocated += numbers.size
            self.fragmented += numbers.size - 1 - follows
        return int(numbers[-1])


Tally: TypeAlias = "LaneTally | ArrayTally"


def make_tally(clusters: int, cluster_size: int) -> Tally:
    """The faster one for a file of so many clusters."""
    if ARRAY_WORTH_CLUSTERS <= clusters <= ARRAY_CLUSTERS_MAX:
        with suppress(ImportError):  # it need not be installed
            return ArrayTally(clusters, cluster_size)
    return LaneTally(clusters, cluster_size)
