# SPDX-License-Identifier: Apache-2.0
"""Copy-on-read: what was read once from below is stored above, and no writer loses to it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from blocklayer.base.errors import InvalidArgument, IoError
from blocklayer.base.options import OptionTree
from blocklayer.base.units import SECTOR, KiB, MiB
from blocklayer.core.batch import Request
from blocklayer.core.disk import Disk
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.filters import fault_rules
from blocklayer.filters.copy_on_read import CopyOnReadNode
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import InjectError
from blocklayer.testing.liar import Liar, storage
from blocklayer.testing.model import ModelDisk
from blocklayer.testing.recorder import Recorder
from tests.support.graphs import check, create, memory, open_disk, tree

CLUSTER = 4 * KiB
SIZE = 2 * MiB + 5 * SECTOR


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def copying(top: Node, below: OptionTree | None, **flags: Any) -> Disk:
    """A disk that copies what it reads, over an overlay in `top`."""
    options = {"driver": "copy-on-read", "file": tree(top, backing=below)}
    node = Opener(OpenFlags(**{"read_only": False, **flags})).open_options(options)
    return Disk(node, discard="unmap")


def layer_of(disk: Disk) -> FormatNode:
    node = disk.node
    assert isinstance(node, CopyOnReadNode)
    layer = node.child
    assert isinstance(layer, FormatNode)
    return layer


def overlay(size: int = SIZE, cluster: int = CLUSTER) -> Node:
    node = memory()
    create(node, size=size, cluster_size=cluster, backing_file="below")
    return node


def raw_below(content: bytes) -> tuple[Recorder, OptionTree]:
    node = memory(size=len(content))
    node.writev(0, [memoryview(content)])
    recorder = Recorder(node)
    return recorder, tree(recorder, "raw")


def own_data(disk: Disk) -> list[tuple[int, int]]:
    """(offset, length) of what the layer itself stores, wherever it stands in the file."""
    found: list[tuple[int, int]] = []
    for extent in Disk(layer_of(disk), owns_node=False).extents():
        if extent.present and extent.depth == 0:
            if found and sum(found[-1]) == extent.offset:
                found[-1] = (found[-1][0], extent.end - found[-1][0])
            else:
                found.append((extent.offset, extent.length))
    return found


# --- storing --------------------------------------------------------------------------------------


def test_the_second_read_does_not_touch_the_backing_file() -> None:
    content = noise(SIZE)
    below, options = raw_below(content)
    with copying(overlay(), options) as disk:
        for offset, length in [(0, SIZE), (100, 5000), (SIZE - 700, 700)]:
            assert disk.read(offset, length) == content[offset : offset + length]
            below.take()
            assert disk.read(offset, length) == content[offset : offset + length]
            assert below.take() == []
        assert own_data(disk) == [(0, SIZE)]


def test_whole_clusters_are_stored() -> None:
    content = noise(SIZE)
    below, options = raw_below(content)
    top = overlay()
    with copying(top, options) as disk:
        assert disk.read(CLUSTER + 7, 1) == content[CLUSTER + 7 : CLUSTER + 8]
        assert below.take() == [("read", CLUSTER, CLUSTER)]
        assert disk.read(3 * CLUSTER - 1, 2) == content[3 * CLUSTER - 1 : 3 * CLUSTER + 1]
        assert own_data(disk) == [(CLUSTER, 3 * CLUSTER)]
        assert disk.read(SIZE - 1, 1) == content[-1:]
        assert own_data(disk)[-1] == (2 * MiB, 5 * SECTOR)
    assert check(top).clean


def test_a_large_read_is_stored_with_few_commits() -> None:
    content = noise(SIZE)
    _, options = raw_below(content)
    recorder = Recorder(overlay())
    with copying(recorder, options) as disk:
        disk.read(0, 1)
        recorder.take()
        assert disk.read(0, MiB) == content[:MiB]
        assert len(recorder.take("flush")) <= 2


def test_zeroes_are_stored_as_zero_clusters() -> None:
    content = bytearray(noise(SIZE))
    content[4 * CLUSTER : 8 * CLUSTER] = bytes(4 * CLUSTER)
    below, options = raw_below(bytes(content))
    top = overlay()
    with copying(top, options) as disk:
        size = top.size
        assert disk.read(4 * CLUSTER, 4 * CLUSTER) == bytes(4 * CLUSTER)
        extents = list(Disk(layer_of(disk), owns_node=False).extents(4 * CLUSTER, 4 * CLUSTER))
        assert [(e.zero, e.present, e.depth) for e in extents] == [(True, True, 0)]
        assert top.size - size <= 4 * CLUSTER  # a table
        below.take()
        assert disk.read(4 * CLUSTER, 4 * CLUSTER) == bytes(4 * CLUSTER)
        assert below.take() == []


def test_holes_of_the_whole_chain_stay_holes() -> None:
    base, middle = memory(), memory()
    create(base, size=SIZE, cluster_size=CLUSTER)
    with open_disk(base) as disk:
        disk.write(16 * CLUSTER, b"x" * CLUSTER)
        disk.write_zeroes(32 * CLUSTER, CLUSTER)
    create(middle, size=SIZE, cluster_size=CLUSTER, backing_file="below")
    with copying(overlay(), tree(middle, backing=tree(base))) as disk:
        expected = bytearray(SIZE)
        expected[16 * CLUSTER : 17 * CLUSTER] = b"x" * CLUSTER
        assert disk.read(0, SIZE) == expected
        assert own_data(disk) == [(16 * CLUSTER, CLUSTER), (32 * CLUSTER, CLUSTER)]


@pytest.mark.parametrize("first", [0, 3, 15])
def test_clusters_below_may_be_smaller(first: int) -> None:
    """One small cluster of a large one has something below: all of the large one is stored."""
    base = memory()
    create(base, size=MiB, cluster_size=CLUSTER)
    with open_disk(base) as disk:
        disk.write((16 + first) * CLUSTER, noise(CLUSTER))
    recorder = Recorder(base)
    with copying(overlay(MiB, 64 * KiB), tree(recorder)) as disk:
        expected = bytearray(MiB)
        expected[(16 + first) * CLUSTER : (17 + first) * CLUSTER] = noise(CLUSTER)
        assert disk.read(0, MiB) == expected
        assert own_data(disk) == [(64 * KiB, 64 * KiB)]
        recorder.take()
        assert disk.read(64 * KiB, 64 * KiB) == expected[64 * KiB : 128 * KiB]
        assert recorder.take() == []


@pytest.mark.parametrize("length", [CLUSTER // 2, CLUSTER, 5 * CLUSTER + 700, 3 * MiB])
def test_a_backing_file_of_another_size(length: int) -> None:
    content = noise(length)
    below, options = raw_below(content)
    top = overlay()
    with copying(top, options) as disk:
        expected = (content + bytes(SIZE))[:SIZE]
        assert disk.read(0, SIZE) == expected
        below.take()
        assert disk.read(0, SIZE) == expected
        assert below.take("read") == []
    assert check(top).clean


def test_a_layer_that_cannot_be_written_is_only_read() -> None:
    content = noise(SIZE)
    below, options = raw_below(content)
    top = overlay()
    with copying(top, options, read_only=True) as disk:
        for _ in range(2):
            assert disk.read(0, SIZE) == content
            assert below.take("read")
    with open_disk(top, backing=options) as disk:
        assert all(extent.depth == 1 for extent in disk.extents())


def test_a_disk_without_a_backing_file_is_only_read() -> None:
    node = memory()
    create(node, size=SIZE)
    with copying(node, None) as disk:
        size = node.size
        assert disk.read(0, SIZE) == bytes(SIZE)
        assert node.size == size


def test_storage_is_no_layer() -> None:
    with pytest.raises(InvalidArgument, match="needs an image of a format"):
        Opener(OpenFlags()).open_options({"driver": "copy-on-read", "file": memory(size=MiB)})


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["above", "below"])
def test_every_io_of_a_copy_fails_once(where: str) -> None:
    content = noise(SIZE)
    for number in range(1, 40):
        rule = InjectError(
            iotypes=frozenset(fault_rules.IO_TYPES) - {fault_rules.BLOCK_STATUS},
            once=True,
            nth=number,
        )
        base = memory(size=SIZE)
        base.writev(0, [memoryview(content)])
        top = overlay()
        fault = FaultNode(top if where == "above" else base)
        options = tree(fault if where == "below" else base, "raw")
        disk = copying(fault if where == "above" else top, options)
        fault.add_rule(rule)
        try:
            assert disk.read(100, 5 * CLUSTER) == content[100 : 100 + 5 * CLUSTER]
        except IoError:
            assert rule.seen >= number
        fault.clear_rules()
        assert disk.read(0, SIZE) == content
        disk.close()
        assert not check(top).corruptions
        if rule.seen < number:
            return
    raise AssertionError("the read never came to an end")


# --- anything -------------------------------------------------------------------------------------


@pytest.mark.parametrize("liar", [False, True])
@pytest.mark.parametrize("cluster", [4 * KiB, 64 * KiB])
def test_any_requests(rng: random.Random, cluster: int, liar: bool) -> None:
    base = memory()
    create(base, size=SIZE - MiB, cluster_size=4 * KiB)
    model = ModelDisk(SIZE)
    with open_disk(base) as disk:
        for _ in range(30):
            offset, length = rng.randrange(MiB - 30000), rng.randrange(1, 30000)
            data = rng.randbytes(length) if rng.random() < 0.8 else bytes(length)
            disk.write(offset, data)
            model.write(offset, data)
    model = model.overlay()
    top = overlay(cluster=cluster)
    node = storage(Liar(top, rng=rng, alignment=512)) if liar else top
    with copying(node, tree(base)) as disk:
        for _ in range(200):
            offset = rng.randrange(SIZE)
            length = min(rng.choice([1, 512, rng.randrange(1, 70000)]), SIZE - offset)
            match rng.randrange(6):
                case 0:
                    data = rng.randbytes(length)
                    disk.write(offset, data)
                    model.write(offset, data)
                case 1:
                    disk.write_zeroes(offset, length, unmap=rng.random() < 0.5)
                    model.write_zeroes(offset, length)
                case 2:
                    disk.submit([Request.write(offset, b"s" * length), read := Request.read(0, 9)])
                    model.write(offset, b"s" * length)
                    assert read.result == model.read(0, 9)
                case _:
                    assert disk.read(offset, length) == model.read(offset, length)
        assert disk.read(0, SIZE) == model.read(0, SIZE)
    assert check(top).clean


CLUSTERS = 40
"""What threads race for."""


class Racers:
    """Readers that copy up, and writers to other halves of the same clusters."""

    def __init__(self, disk: Disk, content: bytes) -> None:
        self.disk = disk
        self.content = content
        self.expected = bytearray(content)
        self.failures: list[BaseException] = []

    def write(self, half: int) -> None:
        rng = random.Random(half)
        for cluster in rng.sample(range(CLUSTERS), CLUSTERS):
            start = cluster * CLUSTER + half * CLUSTER // 2 + rng.randrange(500)
            if rng.random() < 0.2:
                self.disk.write_zeroes(start, 1000)
                self.expected[start : start + 1000] = bytes(1000)
            else:
                self.disk.write(start, b"W" * 1000)
                self.expected[start : start + 1000] = b"W" * 1000

    def read(self, number: int) -> None:
        rng = random.Random(number)
        for _ in range(CLUSTERS):
            offset = rng.randrange(CLUSTERS * CLUSTER)
            found = self.disk.read(offset, CLUSTER)
            for index in range(0, CLUSTER, 97):
                assert found[index] in (self.content[offset + index], 0, ord("W"))

    def guarded(self, action: Callable[[int], None], number: int) -> None:
        try:
            action(number)
        except BaseException as failure:
            self.failures.append(failure)

    def run(self) -> None:
        jobs = [(self.write, 0), (self.write, 1), (self.read, 2), (self.read, 3)]
        threads = [threading.Thread(target=self.guarded, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.failures, self.failures


@pytest.mark.parametrize("turn", range(6))
def test_races_with_writers(turn: int) -> None:
    """No write is ever undone by a copy that was read before it."""
    content = noise(MiB)
    base = memory(size=MiB)
    base.writev(0, [memoryview(content)])
    top = overlay(MiB)
    slow_top = Liar(top, delay=0.0006, zeroes=1.0, garbles=False, rng=random.Random(turn))
    slow_base = Liar(base, delay=0.0006, rng=random.Random(turn + 50))
    with copying(slow_top, tree(slow_base, "raw")) as disk:
        racers = Racers(disk, content)
        racers.run()
        assert disk.read(0, MiB) == racers.expected
    assert check(top).clean
