# SPDX-License-Identifier: Apache-2.0
"""A QED image in memory whose parts tests can look at and damage, past the driver."""

from __future__ import annotations

from typing import Any

from blocklayer.base.options import OptionTree
from blocklayer.base.units import KiB
from blocklayer.core.checking import CheckResult, Repair
from blocklayer.core.disk import Disk
from blocklayer.core.node import PROBLEMS_KEPT
from blocklayer.formats.qed.driver import QedNode
from blocklayer.formats.qed.layout import Geometry, Header
from blocklayer.protocols.memory import MemoryNode
from tests.support.graphs import NO_REPAIR, check, create, memory, open_disk, snapshot, tree

CLUSTER = 4 * KiB


class QedImage:
    """One image; open it as often as you like."""

    def __init__(self, size: int, *, name: str = "image", **options: Any) -> None:
        self.node: MemoryNode = memory(name)
        create(self.node, size=size, **{"cluster_size": CLUSTER, "table_size": 1, **options})
        self.geometry = Geometry(self.header.cluster_size, self.header.table_size)

    def open(self, backing: OptionTree | None = None, **flags: Any) -> Disk:
        return open_disk(self.node, backing=backing, **flags)

    def tree(self, backing: OptionTree | None = None) -> OptionTree:
        return tree(self.node, backing=backing)

    def check(
        self, repair: Repair = NO_REPAIR, *, problems_max: int | None = PROBLEMS_KEPT
    ) -> CheckResult:
        return check(self.node, repair, problems_max=problems_max)

    @property
    def content(self) -> bytes:
        return snapshot(self.node)

    # --- header ---------------------------------------------------------------------------------

    @property
    def header(self) -> Header:
        return Header.unpack_from(snapshot(self.node)[: Header.SIZE])

    def set_header(self, **fields: int) -> None:
        self.put(0, self.header.replace(**fields).pack())

    # --- bytes and tables -----------------------------------------------------------------------

    def put(self, offset: int, data: bytes) -> None:
        self.node.writev(offset, [memoryview(data)])

    def get(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.node.readv(offset, [memoryview(data)])
        return bytes(data)

    def _number(self, offset: int) -> int:
        return int.from_bytes(self.get(offset, 8), "little")

    def l1_place(self, guest: int) -> int:
        return self.header.l1_table_offset + 8 * self.geometry.l1_index(guest)

    def l1(self, guest: int) -> int:
        return self._number(self.l1_place(guest))

    def set_l1(self, guest: int, value: int) -> None:
        self.put(self.l1_place(guest), value.to_bytes(8, "little"))

    def l2_place(self, guest: int) -> int:
        table = self.l1(guest)
        assert table, f"no table for {guest}"
        return table + 8 * self.geometry.l2_index(guest)

    def l2(self, guest: int) -> int:
        return self._number(self.l2_place(guest))

    def set_l2(self, guest: int, value: int) -> None:
        self.put(self.l2_place(guest), value.to_bytes(8, "little"))


def qed(disk: Disk) -> QedNode:
    """The node of a disk that is QED."""
    assert isinstance(disk.node, QedNode)
    return disk.node
