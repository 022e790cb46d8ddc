# SPDX-License-Identifier: Apache-2.0
"""Batches that nodes are given whole: each request has its own result, on every kind of node."""

from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import IoError, OutOfRange
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.node import Node
from blocklayer.core.padding import Padded
from blocklayer.formats.raw import RawNode
from blocklayer.protocols.memory import MemoryNode


class Broken(MemoryNode):
    """Fails where it is asked for the second 64 KiB."""

    def readv(self, offset: int, vector: list[memoryview]) -> None:
        self._check("read", offset)
        super().readv(offset, vector)

    def writev(self, offset: int, vector: list[memoryview]) -> None:
        self._check("write", offset)
        super().writev(offset, vector)

    @staticmethod
    def _check(operation: str, offset: int) -> None:
        if offset // (64 * KiB) == 1:
            raise IoError("broken", "memory", 5, operation, offset)


def nodes() -> list[Node]:
    padded = MemoryNode(MiB)
    padded.limits.request_alignment = 512
    window = RawNode(MemoryNode(2 * MiB), read_only=False, offset=MiB)
    return [MemoryNode(MiB), Padded(padded), RawNode(MemoryNode(MiB), read_only=False), window]


@pytest.mark.parametrize("node", nodes(), ids=["memory", "padded", "raw", "window"])
def test_each_request_has_its_own_bytes(node: Node) -> None:
    places = [0, 4096, 100_001, MiB - 3]
    data = [b"one", b"two", b"thr", b"end"]
    written = node.write_each([(o, [memoryview(d)]) for o, d in zip(places, data, strict=True)])
    assert written == [None] * 4
    found = [bytearray(3) for _ in places]
    assert node.read_each([(o, [memoryview(m)]) for o, m in zip(places, found, strict=True)]) == (
        [None] * 4
    )
    assert found == data


def test_each_request_has_its_own_error() -> None:
    for node in (Broken(MiB), RawNode(Broken(MiB), read_only=False)):
        spans = [(place, [memoryview(bytearray(8))]) for place in (0, 64 * KiB, 128 * KiB)]
        for errors in (node.read_each(spans), node.write_each(spans)):
            assert [error is None for error in errors] == [True, False, True]


@pytest.mark.parametrize("format_name", ["raw", "qed"])
@pytest.mark.parametrize("stats", [False, True])
def test_disks_read_each(format_name: str, stats: bool, tmp_path: Path) -> None:
    image = tmp_path / "image"
    blocklayer.create(image, format=format_name, size=MiB)
    with blocklayer.open(image, mode="r+", format=format_name, stats=stats) as disk:
        disk.write(1000, b"here")
        memory = [bytearray(b"x" * 4) for _ in range(3)]
        places = [1000, 500_000, MiB - 4]
        disk.read_each([(o, memoryview(m)) for o, m in zip(places, memory, strict=True)])
        assert memory == [b"here", bytes(4), bytes(4)]
        with pytest.raises(OutOfRange):
            disk.read_each([(0, memoryview(memory[0])), (MiB, memoryview(memory[1]))])


def test_the_first_error_is_raised() -> None:
    with Disk(RawNode(Broken(MiB), read_only=False)) as disk:
        views = [memoryview(bytearray(8)) for _ in range(3)]
        with pytest.raises(IoError) as failure:
            disk.read_each([(0, views[0]), (64 * KiB, views[1]), (64 * KiB + 9, views[2])])
        assert failure.value.offset == 64 * KiB
