# SPDX-License-Identifier: Apache-2.0
"""Disks in memory, and disks of nothing."""

from __future__ import annotations

import random
import threading

import pytest

import blocklayer
from blocklayer.base.errors import InvalidArgument, OpenError
from blocklayer.base.extent import DATA, ZERO
from blocklayer.base.units import GiB, KiB, MiB, TiB
from blocklayer.core.disk import Disk
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.protocols.memory import PAGE, MemoryNode
from blocklayer.protocols.null import NullNode
from blocklayer.testing.exercise import Exercise
from blocklayer.testing.model import ModelDisk
from tests.support.crew import run_together
from tests.support.graphs import snapshot


def test_it_is_a_byte_array(seed: int) -> None:
    disk = Disk(MemoryNode(3 * MiB), discard="unmap")
    exercise = Exercise(
        disk, ModelDisk(3 * MiB), seed=seed, grain=PAGE, length_max=3 * PAGE, size_max=4 * MiB
    )
    exercise.run(300)
    disk.close()


def test_it_costs_what_is_written() -> None:
    node = MemoryNode(8 * TiB)
    assert node.map(0, 8 * TiB) == (ZERO, 8 * TiB, None, 0)
    node.writev(5 * TiB, [memoryview(b"x")])
    assert len(node._pages) == 1
    assert node.map(0, 8 * TiB)[:2] == (ZERO, 5 * TiB)
    assert node.map(5 * TiB + 10, TiB)[:2] == (DATA, PAGE - 10)
    assert node.map(5 * TiB + PAGE, TiB)[:2] == (ZERO, TiB)
    node.zero(5 * TiB - 5, PAGE + 5)
    assert not node._pages


@pytest.mark.parametrize("pages", [set(), {0}, {1, 2}, {0, 2, 3, 5}, set(range(9))])
def test_the_map_is_that_of_the_pages(pages: set[int]) -> None:
    node = MemoryNode(9 * PAGE)
    for page in pages:
        node.writev(page * PAGE, [memoryview(b"x")])
    for offset in range(0, 9 * PAGE, PAGE // 2):
        for length in (1, PAGE // 2, PAGE, 3 * PAGE, 9 * PAGE - offset):
            kind, count, child, below = node.map(offset, length)
            assert (child, below) == (None, offset)
            assert 0 < count <= length
            covered = {byte // PAGE in pages for byte in (offset, offset + count - 1)}
            assert covered == {kind == DATA}
            following = (offset + count) // PAGE
            assert count == length or (following in pages) != (kind == DATA)


def test_growing_and_shrinking() -> None:
    node = MemoryNode(100)
    node.writev(90, [memoryview(b"x" * 20)])
    assert node.size == 110
    node.truncate(95)
    node.truncate(200)
    assert snapshot(node) == bytes(90) + b"x" * 5 + bytes(105)
    node.zero(190, 20)
    assert node.size == 210
    node.discard(0, 500)
    assert node.size == 210
    node.discard(300, 5)
    assert snapshot(node) == bytes(210)


def test_threads_in_one_page(seed: int) -> None:
    node = MemoryNode(PAGE)
    rng = random.Random(seed)
    content = rng.randbytes(PAGE)
    barrier = threading.Barrier(4)

    def write(first: int) -> None:
        barrier.wait()
        for start in range(first, PAGE, 4 * KiB):
            node.writev(start, [memoryview(content)[start : start + KiB]])

    run_together(*(lambda first=number * KiB: write(first) for number in range(4)))
    assert snapshot(node) == content


def test_memory_by_name() -> None:
    options = {"driver": "raw", "file": {"driver": "memory", "size": "1M"}}
    with blocklayer.open(options, mode="r+") as disk:
        assert disk.size == MiB
        disk.write(5, b"data")
        assert disk.read(4, 6) == b"\0data\0"
    with pytest.raises(InvalidArgument, match="requires a size"):
        Opener(OpenFlags()).open_options({"driver": "memory"})
    with pytest.raises(OpenError):
        blocklayer.open({"driver": "memory", "size": "much"})


def test_nothing_at_all() -> None:
    node = NullNode(GiB)
    node.writev(0, [memoryview(b"x" * 100)])
    node.zero(0, 100)
    node.flush()
    buffer = bytearray(b"\xa5" * 100)
    node.readv(0, [memoryview(buffer)[:60], memoryview(buffer)[60:]])
    assert buffer == bytes(100)
    assert node.map(5, 100) == (ZERO, 100, None, 5)


def test_nothing_that_does_not_even_read() -> None:
    node = NullNode(GiB, read_zeroes=False)
    buffer = bytearray(b"\xa5" * 100)
    node.readv(0, [memoryview(buffer)])
    assert buffer == b"\xa5" * 100
    assert node.map(5, 100) == (DATA, 100, None, 5)


def test_nothing_by_name() -> None:
    with blocklayer.open("null-co://") as disk:
        assert (disk.size, disk.read(77, 5)) == (GiB, bytes(5))
    node = Opener(OpenFlags()).open_options({"driver": "null", "size": 512, "read-zeroes": "off"})
    assert (node.size, node.map(0, 512)[0]) == (512, DATA)
    node.close()
