# SPDX-License-Identifier: Apache-2.0
"""Zero detection: what is zero in a write stores nothing, and nothing else is changed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.buffers import ZERO_CHUNK, Vector, vector_length
from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import KiB, MiB
from blocklayer.core.batch import Request
from blocklayer.core.detect import view_is_zero
from blocklayer.core.disk import Disk
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import UNMAP, Node
from blocklayer.testing.liar import Liar
from blocklayer.testing.model import ModelDisk
from blocklayer.testing.recorder import Recorder
from tests.support.graphs import check, create, memory, open_node, tree

CLUSTER = 4 * KiB
MODES = ("off", "on", "unmap")


class Spy(FilterNode):
    """Notes writes and zeroing, with the flags."""

    driver = "spy"

    def __init__(self, child: Node) -> None:
        super().__init__(child)
        self.requests: list[tuple[str, int, int, int]] = []

    def writev(self, offset: int, vector: Vector) -> None:
        self.requests.append(("write", offset, vector_length(vector), 0))
        super().writev(offset, vector)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        self.requests.append(("zero", offset, length, flags))
        super().zero(offset, length, flags)


def raw(mode: str, size: int = MiB) -> tuple[Disk, Spy]:
    spy = Spy(memory(size=size))
    return Disk(open_node(tree(spy, "raw")), discard="unmap", detect_zeroes=mode), spy


def qed(mode: str, backing: Node | None = None) -> tuple[Disk, Node]:
    node = memory()
    name = None if backing is None else "below"
    create(node, size=MiB, cluster_size=CLUSTER, backing_file=name)
    below = None if backing is None else tree(backing, "raw")
    return Disk(open_node(tree(node, backing=below)), discard="unmap", detect_zeroes=mode), node


# --- the modes ------------------------------------------------------------------------------------


def test_unmap_needs_discard() -> None:
    """QEMU's words."""
    node = open_node(tree(memory(size=MiB), "raw"))
    with pytest.raises(InvalidArgument) as caught:
        Disk(node, detect_zeroes="unmap")
    assert str(caught.value) == (
        "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"
    )
    with pytest.raises(InvalidArgument, match="detect-zeroes mode 'maybe'"):
        Disk(node, detect_zeroes="maybe")
    node.close()


def test_unmap_without_discard_by_name(tmp_path: Path) -> None:
    path = tmp_path / "disk.qed"
    blocklayer.create(path, format="qed", size=MiB)
    with pytest.raises(InvalidArgument, match="not allowed without setting discard"):
        blocklayer.open(path, mode="r+", detect_zeroes="unmap")
    with blocklayer.open(path, mode="r+", detect_zeroes="unmap", discard="unmap") as disk:
        disk.write(0, bytes(MiB))
        assert not any(extent.data for extent in disk.extents())


def test_off_writes_zeroes() -> None:
    disk, spy = raw("off")
    with disk:
        disk.write(0, bytes(8192))
        disk.submit([Request.write(8192, bytes(8192))])
        disk.write_many([(16384, bytes(8192))])
    assert spy.requests == [("write", offset, 8192, 0) for offset in (0, 8192, 16384)]


@pytest.mark.parametrize(("mode", "flags"), [("on", 0), ("unmap", UNMAP)])
def test_a_write_of_zeroes_is_zeroing(mode: str, flags: int) -> None:
    disk, spy = raw(mode)
    with disk:
        disk.write(1000, bytes(5000))
        disk.write_many([(MiB - 8, bytes(8))])
        disk.submit([Request.write(8192, bytes(1))])
    assert spy.requests == [
        ("zero", 1000, 5000, flags),
        ("zero", MiB - 8, 8, flags),
        ("zero", 8192, 1, flags),
    ]


def test_zero_blocks_inside_a_large_write() -> None:
    disk, spy = raw("on")
    data = b"a" * 4096 + bytes(8192) + b"b" * 4096 + bytes(4096)
    with disk:
        disk.write(0, data)
        assert disk.read(0, len(data)) == data
    assert spy.requests == [
        ("zero", 4096, 8192, 0),
        ("zero", 16384, 4096, 0),
        ("write", 0, 4096, 0),
        ("write", 12288, 4096, 0),
    ]


def test_zeroes_that_fill_no_block_are_written() -> None:
    disk, spy = raw("on")
    data = b"a" + bytes(8190) + b"b"
    with disk:
        disk.write(0, data)
        disk.write(10000, b"a" * 100 + bytes(4500) + b"b")
    assert [request[0] for request in spy.requests] == ["write", "write"]


@pytest.mark.parametrize("cluster", [4 * KiB, 64 * KiB])
def test_the_block_of_a_format_is_its_cluster(cluster: int) -> None:
    node = memory()
    create(node, size=MiB, cluster_size=cluster)
    with Disk(open_node(tree(node)), detect_zeroes="on") as disk:
        # Half a cluster of zeroes, a whole one, and half of one, with data around them.
        data = b"x" * (cluster // 2) + bytes(2 * cluster) + b"y" * (cluster // 2)
        disk.write(0, data)
        assert [(e.offset, e.length, e.zero) for e in disk.extents(0, 3 * cluster)] == [
            (0, cluster, False),
            (cluster, cluster, True),
            (2 * cluster, cluster, False),
        ]
        assert disk.read(0, 3 * cluster) == data
    assert check(node).clean


def test_zeroes_over_a_backing_file_hide_it() -> None:
    below = memory(size=MiB)
    below.writev(0, [memoryview(b"\xbb" * MiB)])
    disk, _ = qed("on", below)
    with disk:
        disk.write(CLUSTER, bytes(2 * CLUSTER))
        disk.write(8 * CLUSTER + 100, bytes(50))
        expected = bytearray(b"\xbb" * MiB)
        expected[CLUSTER : 3 * CLUSTER] = bytes(2 * CLUSTER)
        expected[8 * CLUSTER + 100 : 8 * CLUSTER + 150] = bytes(50)
        assert disk.read(0, MiB) == expected
        (extent,) = disk.extents(CLUSTER, 2 * CLUSTER)
        assert (extent.zero, extent.present, extent.depth) == (True, True, 0)


def test_fua_and_writethrough_flush() -> None:
    recorder = Recorder(memory(size=MiB))
    node = open_node(tree(recorder, "raw"))
    with Disk(node, detect_zeroes="on") as disk:
        disk.write(0, bytes(4096), fua=True)
        assert [r.verb for r in recorder.take()] == ["zero", "flush"]
        disk.submit([Request.write(0, bytes(4096), fua=True)])
        assert [r.verb for r in recorder.take()] == ["zero", "flush"]


def test_zero_pages_of_an_empty_disk_are_no_data(tmp_path: Path) -> None:
    path = tmp_path / "disk.qed"
    blocklayer.create(path, format="qed", size=16 * MiB)
    size = path.stat().st_size
    with blocklayer.open(path, mode="r+", detect_zeroes="on") as disk:
        for offset in range(0, 16 * MiB, 4 * KiB):
            disk.write(offset, bytes(4 * KiB))
        disk.submit([Request.write(i * 4 * KiB, bytes(4 * KiB)) for i in range(512)])
        assert disk.read(0, 16 * MiB) == bytes(16 * MiB)
    assert path.stat().st_size - size <= 256 * KiB


# --- anything -------------------------------------------------------------------------------------


def patchwork(rng: random.Random, length: int) -> bytes:
    """Runs of zeroes and of noise, from one byte to several clusters."""
    data = bytearray()
    while len(data) < length:
        run = rng.choice([1, 100, CLUSTER - 1, CLUSTER, CLUSTER + 1, 3 * CLUSTER])
        data += bytes(run) if rng.random() < 0.6 else rng.randbytes(run)
    return bytes(data[:length])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("setting", ["raw", "qed", "overlay", "liar"])
def test_any_mixture(rng: random.Random, setting: str, mode: str) -> None:
    model = ModelDisk(MiB)
    if setting == "raw":
        disk, _ = raw(mode)
    elif setting == "liar":
        liar = Liar(memory(size=MiB), rng=rng, alignment=512, zeroes=0.4)
        disk = Disk(open_node(tree(liar, "raw")), discard="unmap", detect_zeroes=mode)
    elif setting == "qed":
        disk, _ = qed(mode)
    else:
        below = memory(size=MiB - 7 * CLUSTER)
        content = rng.randbytes(below.size)
        below.writev(0, [memoryview(content)])
        model.write(0, content)
        model = model.overlay()
        disk, _ = qed(mode, below)
    with disk:
        for _ in range(60):
            batch = []
            for _ in range(rng.choice([1, 1, 5])):
                offset = rng.randrange(MiB)
                if rng.random() < 0.5:
                    offset = offset // CLUSTER * CLUSTER
                length = min(rng.choice([1, 512, CLUSTER, 10 * CLUSTER + 77]), MiB - offset)
                batch.append((offset, patchwork(rng, length)))
            if len(batch) == 1:
                disk.write(*batch[0])
            elif rng.random() < 0.5:
                disk.write_many(batch)
            else:
                disk.submit([Request.write(offset, data) for offset, data in batch])
            model.write_many(batch)
        assert disk.read(0, MiB) == model.read(0, MiB)


# --- the test for zeroes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length", [0, 1, 2, 4095, 4096, 4097, 20480, 20481, ZERO_CHUNK, 3 * ZERO_CHUNK + 5]
)
def test_one_byte_that_is_not_zero_is_found_anywhere(length: int) -> None:
    data = bytearray(length)
    assert view_is_zero(memoryview(data))
    steps = {0, 1, length // 2, length - 2, length - 1}
    steps |= {b + d for b in (4096, 20480, 86016, 348160, ZERO_CHUNK) for d in (-1, 0, 1)}
    for position in sorted(p for p in steps if 0 <= p < length):
        data[position] = 1
        assert not view_is_zero(memoryview(data)), position
        data[position] = 0


def test_every_position_of_a_short_view() -> None:
    for length in range(1, 40):
        for position in range(length):
            data = bytearray(length)
            data[position] = 0x80
            assert not view_is_zero(memoryview(data))
