# SPDX-License-Identifier: Apache-2.0
"""What a QED file means, read from its specification alone and slowly: the oracle of these tests.

Nothing here is shared with the package but the declaration of the header.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from blocklayer.formats.qed.layout import Header

KNOWN_FEATURES = 7
NAME_MAX = 4095


@dataclass(frozen=True)
class Cluster:
    """What a guest cluster is: data at `host`, zero, unallocated, or impossible."""

    kind: str
    host: int = 0


class Reference:
    """One file, read anew for every question."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.length = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(Header.SIZE)
        self._path = path
        self.header = Header.unpack_from(head) if len(head) == Header.SIZE else None

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file; zeroes behind its end."""
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset).ljust(length, b"\0")
        finally:
            os.close(descriptor)

    @property
    def table_bytes(self) -> int:
        assert self.header is not None
        return self.header.cluster_size * self.header.table_size

    def is_valid(self) -> bool:
        """Whether the header may be opened."""
        header = self.header
        if header is None or header.magic != int.from_bytes(b"QED\0", "little"):
            return False
        if header.features & ~KNOWN_FEATURES:
            return False
        if header.cluster_size not in {1 << bits for bits in range(12, 27)}:
            return False
        if header.table_size not in (1, 2, 4, 8, 16):
            return False
        entries = self.table_bytes // 8
        if header.image_size % 512 or header.image_size > entries * entries * header.cluster_size:
            return False
        if header.image_size >= 1 << 63:
            return False
        return self._places_are_valid(header)

    def _places_are_valid(self, header: Header) -> bool:
        header_bytes = header.header_size * header.cluster_size
        if not 0 < header_bytes < 1 << 32:
            return False
        l1 = header.l1_table_offset
        if l1 % header.cluster_size or l1 < header_bytes:
            return False
        if l1 + self.table_bytes > self._end():
            return False
        if not header.features & 1:
            return True
        start, size = header.backing_filename_offset, header.backing_filename_size
        if start + size > header_bytes or size > NAME_MAX:
            return False
        return b"\0" not in self.read(start, size)

    def _end(self) -> int:
        assert self.header is not None
        return self.length - self.length % self.header.cluster_size

    def backing_name(self) -> bytes | None:
        """The name of the backing file, if there is one."""
        header = self.header
        assert header is not None
        if not header.features & 1:
            return None
        return self.read(header.backing_filename_offset, header.backing_filename_size) or None

    def _entry(self, table: int, index: int) -> int:
        return int.from_bytes(self.read(table + index * 8, 8), "little")

    def _may_be_at(self, place: int, length: int) -> bool:
        """Whether `length` bytes of data or of a table may stand at `place`."""
        header = self.header
        assert header is not None
        if place % header.cluster_size or place < header.header_size * header.cluster_size:
            return False
        if place + length > self._end():
            return False
        l1 = header.l1_table_offset
        return place + length <= l1 or l1 + self.table_bytes <= place

    def cluster(self, offset: int) -> Cluster:
        """What the guest cluster at `offset` is."""
        header = self.header
        assert header is not None
        number = offset // header.cluster_size
        l1_index, l2_index = divmod(number, self.table_bytes // 8)
        table = self._entry(header.l1_table_offset, l1_index)
        if not table:
            return Cluster("unallocated")
        if not self._may_be_at(table, self.table_bytes):
            return Cluster("impossible")
        entry = self._entry(table, l2_index)
        if entry == 0:
            return Cluster("unallocated")
        if entry == 1:
            return Cluster("zero")
        if not self._may_be_at(entry, header.cluster_size):
            return Cluster("impossible")
        return Cluster("data", entry)

    def tables(self) -> list[int]:
        """The L2 tables that L1 names, possible or not; of the first few L1 entries."""
        header = self.header
        assert header is not None
        count = min(self.table_bytes // 8, 4096)
        data = self.read(header.l1_table_offset, count * 8)
        found = (int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8))
        return [table for table in found if table]

    def bytes_at(self, offset: int, length: int, backing: bytes = b"") -> bytes | None:
        """What a guest reads within one cluster; None where it must be refused."""
        found = self.cluster(offset)
        if found.kind == "impossible":
            return None
        assert self.header is not None
        if found.kind == "data":
            return self.read(found.host + offset % self.header.cluster_size, length)
        if found.kind == "unallocated":
            return backing[offset : offset + length].ljust(length, b"\0")
        return bytes(length)
