# SPDX-License-Identifier: Apache-2.0
"""QED on disk (QED specification, "Header" and "Tables"), and all address arithmetic.

    +--------+----------+----------+----------+-----
    | header | L1 table | cluster  | cluster  | ...        everything in units of clusters
    +--------+----------+----------+----------+-----

    guest offset    | L1 index | L2 index | offset in cluster |

Tables are read and cached in *slices* of 4 KiB (512 entries): the smallest table is one slice,
the largest, 1 GiB, is never in memory as a whole.
"""

from __future__ import annotations

from blocklayer.base.align import align_down, div_ceil, is_power_of_two
from blocklayer.base.layout import Layout, u32, u64
from blocklayer.base.units import INT64_MAX, SECTOR, KiB, MiB

MAGIC = int.from_bytes(b"QED\0", "little")

F_BACKING_FILE = 0x01
F_NEED_CHECK = 0x02
F_BACKING_FORMAT_NO_PROBE = 0x04
KNOWN_FEATURES = F_BACKING_FILE | F_NEED_CHECK | F_BACKING_FORMAT_NO_PROBE

CLUSTER_SIZE_MIN = 4 * KiB
CLUSTER_SIZE_MAX = 64 * MiB
CLUSTER_SIZE_DEFAULT = 64 * KiB
TABLE_SIZE_MIN = 1
TABLE_SIZE_MAX = 16
TABLE_SIZE_DEFAULT = 4
BACKING_FILENAME_MAX = 4095

UNALLOCATED = 0
"""L1: no L2 table. L2: look at the backing file."""
ZERO_CLUSTER = 1
"""L2 only: reads as zeroes, nothing is stored."""

ENTRY_SIZE = 8
SLICE_ENTRIES = 512
SLICE_BYTES = SLICE_ENTRIES * ENTRY_SIZE
SECTOR_ENTRIES = SECTOR // ENTRY_SIZE


class Header(Layout, byte_order="<"):
    """The first 64 bytes of the file."""

    magic = u32("QED\\0")
    cluster_size = u32("bytes")
    table_size = u32("clusters")
    header_size = u32("clusters")
    features = u64("mask")
    compat_features = u64("mask")
    autoclear_features = u64("mask")
    l1_table_offset = u64("bytes")
    image_size = u64("bytes")
    backing_filename_offset = u32("bytes")
    backing_filename_size = u32("bytes")


assert Header.SIZE == 64


def is_cluster_size_valid(cluster_size: int) -> bool:
    """A power of two from 4 KiB to 64 MiB."""
    return CLUSTER_SIZE_MIN <= cluster_size <= CLUSTER_SIZE_MAX and is_power_of_two(cluster_size)


def is_table_size_valid(table_size: int) -> bool:
    """A power of two from 1 to 16 clusters."""
    return TABLE_SIZE_MIN <= table_size <= TABLE_SIZE_MAX and is_power_of_two(table_size)


class Geometry:
    """Address arithmetic for one cluster size and table size; no other file shifts or masks."""

    __slots__ = (
        "cluster_bits",
        "cluster_mask",
        "cluster_size",
        "l1_shift",
        "slice_mask",
        "slice_shift",
        "slice_span",
        "table_bytes",
        "table_entries",
        "table_size",
        "table_slices",
        "table_span",
    )

    def __init__(self, cluster_size: int, table_size: int) -> None:
        self.cluster_size = cluster_size
        self.table_size = table_size
        self.cluster_bits = cluster_size.bit_length() - 1
        self.cluster_mask = cluster_size - 1
        self.table_bytes = table_size * cluster_size
        self.table_entries = self.table_bytes // ENTRY_SIZE
        self.table_span = self.table_entries * cluster_size
        """Guest bytes that one L2 table maps."""
        self.l1_shift = self.table_span.bit_length() - 1
        self.slice_mask = SLICE_ENTRIES - 1
        self.slice_span = SLICE_ENTRIES * cluster_size
        """Guest bytes that one slice of an L2 table maps."""
        self.slice_shift = self.slice_span.bit_length() - 1
        self.table_slices = self.table_entries // SLICE_ENTRIES

    @property
    def image_size_max(self) -> int:
        """The largest disk, inclusive: what the tables can map and a file offset can express."""
        return min(self.table_entries * self.table_span, align_down(INT64_MAX, SECTOR))

    def l1_index(self, offset: int) -> int:
        """Which entry of the L1 table maps a guest offset."""
        return offset >> self.l1_shift

    def l2_index(self, offset: int) -> int:
        """Which entry of its L2 table maps a guest offset."""
        return (offset >> self.cluster_bits) & (self.table_entries - 1)

    def slice_number(self, offset: int) -> int:
        """Which slice of all L2 tables together maps a guest offset."""
        return offset >> self.slice_shift

    def slice_index(self, offset: int) -> int:
        """Which entry of its slice maps a guest offset."""
        return (offset >> self.cluster_bits) & self.slice_mask

    def slice_in_table(self, slice_number: int) -> int:
        """A slice's number within its own table."""
        return slice_number & (self.table_slices - 1)

    def guest_offset(self, l1_index: int, l2_index: int) -> int:
        """The first guest byte that an L2 entry maps."""
        return (l1_index << self.l1_shift) + (l2_index << self.cluster_bits)

    def clusters(self, length: int) -> int:
        """Clusters that `length` bytes from a cluster's start touch."""
        return div_ceil(length, self.cluster_size)

    def cluster_start(self, offset: int) -> int:
        """The start of the cluster that holds `offset`."""
        return offset & ~self.cluster_mask

    def cluster_up(self, offset: int) -> int:
        """The first cluster start that is not below `offset`."""
        return (offset + self.cluster_mask) & ~self.cluster_mask

    def in_cluster(self, offset: int) -> int:
        """Bytes from the start of its cluster to `offset`."""
        return offset & self.cluster_mask

    def to_slice_end(self, offset: int) -> int:
        """Guest bytes from `offset` to where its slice ends."""
        return self.slice_span - (offset & (self.slice_span - 1))

    def to_table_end(self, offset: int) -> int:
        """Guest bytes from `offset` to where its L2 table ends."""
        return self.table_span - (offset & (self.table_span - 1))
