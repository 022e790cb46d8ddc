# SPDX-License-Identifier: Apache-2.0
"""Counting the clusters that tables reference, a chunk of entries at a time.

`BitmapTally` takes entries as one long integer and clusters as a compressed bitmap. `ArrayTally`
does the same with numpy, if that is installed: many times faster, but its import takes as long as
looking at half a million entries.
"""

from __future__ import annotations

import importlib.util
from array import array

from blocklayer.base.units import MiB
from blocklayer.formats.qed.layout import ENTRY_SIZE, ZERO_CLUSTER

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias

ARRAY_CLUSTERS_MAX = 64 * MiB
"""An array has a byte a cluster; beyond, bitmaps bound what a file of absurd length costs."""

ARRAY_WORTH_CLUSTERS = 1 << 18
"""Clusters of a file from which on importing numpy pays."""


class Doubt(Exception):
    """Something may be wrong: the careful check has to look."""


class BitmapTally:
    """References to clusters, with what the standard library has, and a compressed bitmap."""

    def __init__(self, clusters: int, cluster_size: int) -> None:
        from pyroaring import BitMap

        self._cluster = cluster_size
        self._end = clusters * cluster_size
        self._bitmap = BitMap
        self._used = BitMap()
        self._masks: dict[int, int] = {}
        self.allocated = 0
        self.fragmented = 0

    @property
    def distinct(self) -> int:
        """Different clusters that are referenced."""
        return len(self._used)

    def add_run(self, first: int, count: int) -> None:
        """Neighbouring clusters are in use."""
        self._used.add_range(first, first + count)

    def add_entries(self, data: bytearray, expected: int) -> int:
        """Count table entries; where the next cluster would lie that is not fragmented.

        `expected` is what this returned for the entries before, 0 at the start of a table.
        """
        number = int.from_bytes(data, "little")
        if not number:
            return expected
        entries: list[int] = list(filter(None, memoryview(data).cast("Q")))
        if number & self._mask(len(data)):
            entries = [entry for entry in entries if entry != ZERO_CLUSTER]
            if any(entry % self._cluster for entry in entries):
                raise Doubt
            number = int.from_bytes(array("Q", entries).tobytes(), "little")
        if not entries:
            return expected
        if max(entries) >= self._end:
            raise Doubt
        self.allocated += len(entries)
        self._used |= self._bitmap(self._numbers(number, len(data)))
        fragmented = 0 if expected else -1  # the first of a table follows nothing
        for entry in entries:
            if entry != expected:
                fragmented += 1
            expected = entry + self._cluster
        self.fragmented += fragmented
        return expected

    def _mask(self, length: int) -> int:
        """The bits that are 0 in the offset of a cluster, of so many bytes of entries."""
        if length not in self._masks:
            entry = (self._cluster - 1).to_bytes(ENTRY_SIZE, "little")
            self._masks[length] = int.from_bytes(entry * (length // ENTRY_SIZE), "little")
        return self._masks[length]

    def _numbers(self, number: int, length: int) -> array[int]:
        """Entries as one long number -> cluster numbers, 0 for what is unallocated.

        Offsets of clusters end with zeroes: shifting the whole moves nothing into a neighbour, and
        32 bits of each remain. Cluster 0 is the header, which is in use in any case.
        """
        shifted = (number >> (self._cluster.bit_length() - 1)).to_bytes(length, "little")
        return array("I", memoryview(shifted).cast("I")[::2].tobytes())


class ArrayTally:
    """The same with numpy."""

    def __init__(self, clusters: int, cluster_size: int) -> None:
        import numpy

        self._numpy = numpy
        self._cluster = cluster_size
        self._end = clusters * cluster_size
        self._used = numpy.zeros(clusters, numpy.bool_)
        self.allocated = 0
        self.fragmented = 0

    @property
    def distinct(self) -> int:
        """Different clusters that are referenced."""
        return int(self._numpy.count_nonzero(self._used))

    def add_run(self, first: int, count: int) -> None:
        """Neighbouring clusters are in use."""
        self._used[first : first + count] = True

    def add_entries(self, data: bytearray, expected: int) -> int:
        """Count table entries; see `BitmapTally`."""
        entries = self._numpy.frombuffer(data, self._numpy.uint64)
        entries = entries[entries > ZERO_CLUSTER]
        if not entries.size:
            return expected
        if int(entries.max()) >= self._end or bool((entries % self._cluster).any()):
            raise Doubt
        self.allocated += entries.size
        follows = entries[1:] == entries[:-1] + self._cluster
        self.fragmented += follows.size - int(self._numpy.count_nonzero(follows))
        if expected and int(entries[0]) != expected:
            self.fragmented += 1
        self._used[entries // self._cluster] = True
        return int(entries[-1]) + self._cluster


Tally: TypeAlias = "BitmapTally | ArrayTally"


def make_tally(clusters: int, cluster_size: int) -> Tally:
    """The faster one for a file of so many clusters."""
    worth = ARRAY_WORTH_CLUSTERS <= clusters <= ARRAY_CLUSTERS_MAX
    if worth and importlib.util.find_spec("numpy") is not None:
        return ArrayTally(clusters, cluster_size)
    return BitmapTally(clusters, cluster_size)
