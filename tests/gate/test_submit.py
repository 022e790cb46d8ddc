# SPDX-License-Identifier: Apache-2.0
"""Batches: the effect of the order of submission, a result for each, and no I/O too many."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.buffers import Vector
from blocklayer.base.errors import Closed, InvalidArgument, IoError, OutOfRange, ReadOnly
from blocklayer.base.units import SECTOR, KiB, MiB
from blocklayer.core.batch import READ, WRITE, WRITE_ZEROES, Request
from blocklayer.core.disk import Disk
from blocklayer.core.node import Node
from blocklayer.core.stats import CountingDisk
from blocklayer.filters import fault_rules
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import InjectError
from blocklayer.protocols import file_io
from blocklayer.testing.liar import Liar
from blocklayer.testing.model import ModelDisk
from blocklayer.testing.recorder import Recorded, Recorder
from tests.support.graphs import check, create, memory, open_disk, open_node, tree

CLUSTER = 4 * KiB
SIZE = 3 * MiB + 5 * SECTOR
"""More than one table of 4 KiB clusters, and not a whole number of clusters."""


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


# --- the disks that batches run on ----------------------------------------------------------------


def raw_disk(path: Path) -> Disk:
    return open_disk(memory(size=SIZE), "raw")


def raw_file(path: Path) -> Disk:
    blocklayer.create(path / "disk.raw", format="raw", size=SIZE)
    return blocklayer.open(path / "disk.raw", mode="r+", format="raw", discard="unmap")


def qed_disk(path: Path) -> Disk:
    node = memory()
    create(node, size=SIZE, cluster_size=CLUSTER, table_size=1)
    return open_disk(node)


def qed_file(path: Path) -> Disk:
    blocklayer.create(path / "disk.qed", format="qed", size=SIZE, cluster_size=CLUSTER)
    return blocklayer.open(path / "disk.qed", mode="r+", discard="unmap")


def overlay_disk(path: Path) -> Disk:
    below, node = memory(size=2 * MiB), memory()
    create(node, size=SIZE, cluster_size=CLUSTER, table_size=1, backing_file="below")
    return open_disk(node, backing=tree(below, "raw"))


def detecting_disk(path: Path) -> Disk:
    node = memory()
    create(node, size=SIZE, cluster_size=CLUSTER, table_size=1)
    return Disk(open_node(tree(node)), discard="unmap", detect_zeroes="unmap")


def counting_disk(path: Path) -> Disk:
    node = memory()
    create(node, size=SIZE, cluster_size=CLUSTER)
    return CountingDisk(open_node(tree(node)), discard="unmap")


def liars_disk(path: Path) -> Disk:
    node = memory()
    create(node, size=SIZE, cluster_size=CLUSTER, table_size=1)
    return open_disk(Liar(node, alignment=4 * KiB, granularity=512))


DISKS: dict[str, Callable[[Path], Disk]] = {
    "raw": raw_disk,
    "raw file": raw_file,
    "qed": qed_disk,
    "qed file": qed_file,
    "overlay": overlay_disk,
    "detecting zeroes": detecting_disk,
    "counting": counting_disk,
    "liar": liars_disk,
}


# --- the effect of the order of submission --------------------------------------------------------


class Ordered:
    """Batches of any kind, and a byte array that follows them one request after another."""

    def __init__(self, disk: Disk, rng: random.Random) -> None:
        self.disk = disk
        self.rng = rng
        self.content = bytearray(SIZE)
        self.undefined = bytearray(SIZE)
        """1 for each byte that was discarded and not written since."""

    def range(self) -> tuple[int, int]:
        """Ranges of a few clusters, so that requests of one batch overlap."""
        rng = self.rng
        offset = rng.choice([rng.randrange(SIZE), rng.randrange(16 * CLUSTER), SIZE - CLUSTER])
        if rng.random() < 0.4:
            offset = offset // CLUSTER * CLUSTER + rng.choice([0, 0, SECTOR, CLUSTER - 1, 1])
        length = rng.choice(
            [0, 1, SECTOR, CLUSTER, rng.randrange(3 * CLUSTER), rng.randrange(20 * CLUSTER)]
        )
        offset = min(offset, SIZE)
        return offset, min(length, SIZE - offset)

    def request(self) -> Request:
        rng = self.rng
        offset, length = self.range()
        kind = rng.random()
        if kind < 0.5:
            data = bytes(length) if rng.random() < 0.2 else rng.randbytes(length)
            wrapped = rng.choice([bytes, bytearray, memoryview])(data)
            return Request.write(offset, wrapped, fua=rng.random() < 0.1)
        if kind < 0.7:
            return Request.read(offset, length)
        if kind < 0.75:
            return Request.read_into(offset, bytearray(b"\xa5" * length))
        if kind < 0.88:
            unmap, fua = rng.random() < 0.5, rng.random() < 0.1
            return Request.write_zeroes(offset, length, unmap=unmap, fua=fua)
        return Request.discard(offset, length) if kind < 0.95 else Request.flush()

    def run(self, count: int) -> None:
        batch = [self.request() for _ in range(count)]
        self.disk.submit(batch)
        for request in batch:
            assert request.error is None, request
            self.follow(request)

    def follow(self, request: Request) -> None:
        start, end = request.offset, request.end
        if request.kind == WRITE:
            self.content[start:end] = request.data
            self.undefined[start:end] = bytes(end - start)
        elif request.kind == WRITE_ZEROES:
            self.content[start:end] = bytes(end - start)
            self.undefined[start:end] = bytes(end - start)
        elif request.kind == READ:
            result = request.result if request.data is None else bytes(request.data)
            assert result is not None
            assert len(result) == end - start
            self.compare(start, result)
        else:
            self.undefined[start:end] = b"\1" * (end - start)

    def compare(self, offset: int, found: bytes) -> None:
        expected = bytearray(self.content[offset : offset + len(found)])
        for index in range(len(found)):
            if self.undefined[offset + index]:
                expected[index] = found[index]
        assert found == expected


@pytest.mark.parametrize("kind", DISKS)
def test_a_batch_has_the_effect_of_its_order(tmp_path: Path, rng: random.Random, kind: str) -> None:
    with DISKS[kind](tmp_path) as disk:
        ordered = Ordered(disk, rng)
        for count in [1, 2, 3, *[rng.randrange(1, 60) for _ in range(20)], 200]:
            ordered.run(count)
        ordered.compare(0, disk.read(0, SIZE))


def test_batches_of_more_requests_than_a_phase_has(rng: random.Random) -> None:
    with qed_disk(Path()) as disk:
        ordered = Ordered(disk, rng)
        batch = []
        for _ in range(2500):
            offset = rng.randrange(SIZE - 64)
            batch.append(Request.write(offset, rng.randbytes(rng.randrange(64))))
        disk.submit(batch)
        for request in batch:
            assert request.error is None
            ordered.follow(request)
        ordered.compare(0, disk.read(0, SIZE))


def test_an_empty_batch() -> None:
    with qed_disk(Path()) as disk:
        assert disk.submit([]) == 0


def test_requests_can_be_submitted_again() -> None:
    with qed_disk(Path()) as disk:
        write, read = Request.write(0, b"x" * 512), Request.read(0, 512)
        far = Request.write(SIZE, b"x")
        for _ in range(3):
            disk.submit([write, read, far])
            assert (write.error, read.error, read.result) == (None, None, b"x" * 512)
            assert isinstance(far.error, OutOfRange)


def test_how_many_were_merged() -> None:
    with qed_disk(Path()) as disk:
        parts = [Request.write(index * 512, bytes([index + 1]) * 512) for index in range(8)]
        assert disk.submit(parts) == 7
        assert disk.submit([*parts[:4], *parts[5:]]) == 5
        assert disk.submit([Request.read(0, 512), Request.read(512, 512)]) == 0


# --- a result for each ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DISKS)
def test_requests_that_cannot_be_leave_the_others_alone(tmp_path: Path, kind: str) -> None:
    with DISKS[kind](tmp_path) as disk:
        good = [Request.write(0, b"a" * 512), Request.write(SIZE - 512, b"z" * 512)]
        bad = [
            Request.write(SIZE - 511, b"b" * 512),
            Request.write(-1, b"b"),
            Request.write_zeroes(SIZE, 1),
            Request.discard(-512, 512),
            Request.read(SIZE - 1, 2),
            Request.read(0, -1),
            Request.read(-5, 3),
        ]
        disk.submit([*bad[:3], good[0], *bad[3:], good[1]])
        assert [type(request.error) for request in bad] == [OutOfRange] * len(bad)
        assert [request.error for request in good] == [None, None]
        assert disk.read(0, 513) == b"a" * 512 + b"\0"
        assert disk.read(SIZE - 513, 513) == b"\0" + b"z" * 512


@pytest.mark.parametrize("kind", ["raw", "counting"])
def test_an_unknown_kind(tmp_path: Path, kind: str) -> None:
    with DISKS[kind](tmp_path) as disk:
        odd, write = Request("rename"), Request.write(0, b"x")
        disk.submit([odd, write])
        assert isinstance(odd.error, InvalidArgument)
        assert write.error is None


def test_a_disk_that_is_read_only() -> None:
    node = memory()
    create(node, size=SIZE)
    with Disk(open_node(tree(node), read_only=True), discard="unmap") as disk:
        write, zero = Request.write(0, b"x"), Request.write_zeroes(0, 1)
        discard, read, flush = Request.discard(0, 1), Request.read(0, 4), Request.flush()
        disk.submit([write, zero, discard, read, flush])
        assert [type(r.error) for r in (write, zero, discard)] == [ReadOnly] * 3
        assert (read.error, read.result, flush.error) == (None, bytes(4), None)


def test_a_disk_that_is_closed() -> None:
    disk = qed_disk(Path())
    disk.close()
    with pytest.raises(Closed):
        disk.submit([Request.read(0, 1)])


def faulty(
    format: str, rule: InjectError, *, backing: bool = False
) -> tuple[Disk, FaultNode, Node]:
    node = memory(size=SIZE if format == "raw" else 0)
    if format == "qed":
        name = "below" if backing else None
        create(node, size=SIZE, cluster_size=CLUSTER, table_size=1, backing_file=name)
    fault = FaultNode(node)
    below = tree(memory(size=SIZE), "raw") if backing else None
    disk = open_disk(fault, format, backing=below)
    fault.add_rule(rule)
    return disk, fault, node


def test_a_failed_run_is_told_to_each_of_its_parts() -> None:
    rule = InjectError(iotypes=frozenset({fault_rules.WRITE}), sector=9, errno=errno.ENOSPC)
    disk, _, _ = faulty("raw", rule)
    parts = [Request.write(index * 2048, noise(2048, index)) for index in range(4)]
    apart = [Request.write(9000 + index * 4096, noise(600, index)) for index in range(8)]
    others = [Request.read(200, 20), Request.write_zeroes(MiB, 4096), Request.flush()]
    with disk:
        disk.submit([*apart[:4], *parts, *apart[4:], *others])
        codes = [request.error.errno for request in parts if request.error is not None]
        assert codes == [errno.ENOSPC] * 4
        assert [request.error for request in [*apart, *others]] == [None] * 11
        for request in apart:
            assert disk.read(request.offset, request.length) == request.data


@pytest.mark.parametrize("backing", [False, True], ids=["alone", "overlay"])
def test_a_failed_allocation_leaves_the_others_of_its_batch_alone(backing: bool) -> None:
    """The fourth data write of the batch fails; the others share a commit and succeed."""
    write = frozenset({fault_rules.WRITE})
    rule = InjectError(event="write_aio", iotypes=write, once=True, nth=4)
    disk, fault, node = faulty("qed", rule, backing=backing)
    requests = [
        Request.write(index * 3 * CLUSTER + 700 * (index % 2), noise(CLUSTER, index))
        for index in range(8)
    ]
    with disk:
        disk.submit(requests)
        failed = [index for index, request in enumerate(requests) if request.error is not None]
        assert len(failed) == 1
        expected = bytearray(SIZE)
        for index, request in enumerate(requests):
            if index not in failed:
                expected[request.offset : request.end] = request.data
        assert disk.read(0, SIZE) == expected
        fault.clear_rules()
        disk.submit([requests[failed[0]]])
        assert requests[failed[0]].error is None
    assert not check(node).corruptions


def test_a_failed_commit_is_told_to_everybody_in_it() -> None:
    rule = InjectError(event="l2_update", iotypes=frozenset({fault_rules.WRITE}))
    disk, fault, _ = faulty("qed", rule)
    requests = [Request.write(index * 2 * CLUSTER, noise(CLUSTER, index)) for index in range(5)]
    other = Request.read(MiB, 100)
    disk.submit([*requests, other])
    assert all(isinstance(request.error, IoError) for request in requests)
    assert (other.error, other.result) == (None, bytes(100))
    fault.clear_rules()
    disk.submit(requests)
    assert [request.error for request in requests] == [None] * 5
    assert disk.read(0, CLUSTER) == noise(CLUSTER, 0)
    disk.close()


def test_a_failed_flush_is_told_to_those_who_asked_for_it() -> None:
    disk, fault, _ = faulty("raw", InjectError(iotypes=frozenset({fault_rules.FLUSH})))
    plain, durable = Request.write(0, b"a" * 512), Request.write(8192, b"b" * 512, fua=True)
    zero, flush = Request.write_zeroes(4096, 512, fua=True), Request.flush()
    disk.submit([plain, durable, zero, flush])
    assert plain.error is None
    assert [type(r.error) for r in (durable, zero, flush)] == [IoError] * 3
    fault.clear_rules()
    disk.close()


BATCHES: dict[str, Callable[[], list[Request]]] = {
    "neighbours": lambda: [
        Request.write(index * SECTOR, noise(SECTOR, index)) for index in range(20)
    ],
    "clusters apart": lambda: [
        Request.write(index * 5 * CLUSTER, noise(SECTOR * 9, index), fua=index == 3)
        for index in range(6)
    ],
    "two tables": lambda: [
        Request.write(2 * MiB - CLUSTER, noise(3 * CLUSTER)),
        Request.write_zeroes(2 * MiB + 8 * CLUSTER, 3 * CLUSTER),
        Request.write(SECTOR, noise(CLUSTER)),
    ],
    "all kinds": lambda: [
        Request.write(0, noise(3 * CLUSTER)),
        Request.read(CLUSTER, CLUSTER),
        Request.write_zeroes(SECTOR, 2 * CLUSTER),
        Request.flush(),
        Request.write(CLUSTER, noise(SECTOR, 7), fua=True),
        Request.read(0, 4 * CLUSTER),
    ],
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("setting", ["raw", "qed", "overlay"])
def test_every_io_of_a_batch_fails_once(setting: str, batch: str) -> None:
    """Whatever fails: each request is done or has an error, and what is done can be read."""
    for number in range(1, 200):
        rule = InjectError(
            iotypes=frozenset(fault_rules.IO_TYPES) - {fault_rules.BLOCK_STATUS},
            once=True,
            nth=number,
        )
        format = "raw" if setting == "raw" else "qed"
        disk, fault, node = faulty(format, rule, backing=setting == "overlay")
        model = ModelDisk(SIZE)
        requests = BATCHES[batch]()
        disk.submit(requests)
        happened = rule.seen >= number
        fault.clear_rules()
        told = False
        for request in requests:
            told = told or request.error is not None
            if request.kind == WRITE:
                change = model.write if request.error is None else model.maybe_write
                change(request.offset, request.data)
            elif request.kind == WRITE_ZEROES:
                change_zero = model.write_zeroes if request.error is None else model.maybe_zero
                change_zero(request.offset, request.length)
            elif request.kind == READ and request.error is None:
                assert request.result is not None
                model.require(request.offset, request.result)
        model.require(0, disk.read(0, SIZE))
        # A failed truncate that only gives space back may go unnoticed; nothing else may.
        assert told or not happened or fault.requests[fault_rules.TRUNCATE]
        disk.close()
        if format == "qed":
            assert not check(node).corruptions
        if not happened:
            return
    raise AssertionError("the batch never came to an end")


# --- what reaches the storage ---------------------------------------------------------------------

HEADER = ("write", 0, 512)
FLUSH = ("flush", 0, 0)


def recorded_qed(
    *, size: int = 1024 * MiB, backing: Node | None = None, **options: int
) -> tuple[Disk, Recorder, Node]:
    node = memory()
    layout: dict[str, Any] = {**options, "backing_file": None if backing is None else "below"}
    create(node, size=size, **layout)
    recorder = Recorder(node)
    disk = open_disk(recorder, backing=None if backing is None else tree(backing, "raw"))
    disk.read(0, 512)  # the L1 table is in the cache from now on
    recorder.take()
    return disk, recorder, node


def changes(recorder: Recorder) -> list[Recorded]:
    return recorder.take("write", "zero", "discard", "flush", "truncate")


def test_sequential_writes_into_a_fresh_qed() -> None:
    """One data write, one table; what is around them belongs to the first allocation."""
    disk, recorder, node = recorded_qed()
    table = 256 * KiB
    l1 = 64 * KiB
    first = node.size
    with disk:
        disk.submit([Request.write(i * 4096, noise(4096, i)) for i in range(64)])
        assert changes(recorder) == [
            HEADER,  # NEED_CHECK
            FLUSH,
            ("write", first, 64 * 4096),
            ("truncate", first + 64 * 4096 + table, 0),
            ("write", first + 64 * 4096, 4096),  # the slice of the new table that has entries
            FLUSH,
            ("write", l1, 512),
        ]
        disk.submit([Request.write(MiB + i * 4096, noise(4096, i)) for i in range(64)])
        assert changes(recorder) == [
            ("write", first + 64 * 4096 + table, 64 * 4096),
            ("write", first + 64 * 4096, 512),
        ]
        disk.submit([Request.write(MiB + i * 4096, noise(4096, i)) for i in range(64)])
        assert changes(recorder) == [("write", first + 64 * 4096 + table, 64 * 4096)]


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_the_order_within_a_batch_costs_nothing(order: str) -> None:
    disk, recorder, _ = recorded_qed(cluster_size=CLUSTER)
    requests = [Request.write(i * 512, noise(512, i)) for i in range(64)]
    if order == "descending":
        requests.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(requests)
    with disk:
        assert disk.submit(requests) == 63
        writes = [r for r in changes(recorder) if r.verb == "write"]
        assert [r.length for r in writes] == [512, 32 * KiB, 4096, 512]
        for i in range(64):
            assert disk.read(i * 512, 512) == noise(512, i)


def test_one_flush_and_one_update_a_table_over_a_backing_file() -> None:
    backing = memory(size=64 * MiB)
    disk, recorder, _ = recorded_qed(
        size=64 * MiB, backing=backing, cluster_size=CLUSTER, table_size=1
    )
    span = 2 * MiB
    with disk:
        # Two tables that exist ...
        disk.submit([Request.write(0, b"x" * CLUSTER), Request.write(span, b"x" * CLUSTER)])
        recorder.take()
        # ... get 8 clusters each that do not stand together.
        places = [t * span + i * 2 * CLUSTER for t in range(2) for i in range(1, 9)]
        disk.submit([Request.write(place, noise(CLUSTER, place)) for place in places])
        found = changes(recorder)
        assert [r.verb for r in found] == ["write"] * 16 + ["flush"] + ["write"] * 2
        assert [r.length for r in found[:16]] == [CLUSTER] * 16
        assert [r.length for r in found[17:]] == [512, 512]
        for place in places:
            assert disk.read(place, CLUSTER) == noise(CLUSTER, place)


def test_a_batch_that_fills_a_cluster_reads_nothing_from_below() -> None:
    content = noise(4 * CLUSTER, 9)
    backing = memory(size=64 * MiB)
    backing.writev(0, [memoryview(content)])
    below = Recorder(backing)
    disk, recorder, _ = recorded_qed(size=64 * MiB, backing=below, cluster_size=CLUSTER)
    below.take()
    with disk:
        pieces = [Request.write(CLUSTER + i * 512, noise(512, i)) for i in range(8)]
        random.Random(2).shuffle(pieces)
        disk.submit(pieces)
        assert below.take() == []
        assert recorder.take("read") == []
        # All but one sector: the cluster has to be completed.
        most = [i for i in range(8) if i != 3]
        disk.submit([Request.write(2 * CLUSTER + i * 512, noise(512, i)) for i in most])
        assert below.take() == [("read", 2 * CLUSTER + 3 * 512, 5 * 512)]
        expected = bytearray(content)
        expected[CLUSTER : 2 * CLUSTER] = b"".join(noise(512, i) for i in range(8))
        for i in most:
            start = 2 * CLUSTER + i * 512
            expected[start : start + 512] = noise(512, i)
        assert disk.read(0, 4 * CLUSTER) == expected


# --- gaps -----------------------------------------------------------------------------------------


def data_writes(recorder: Recorder, first: int) -> list[tuple[int, int]]:
    """(offset, length) of writes to clusters of data."""
    return [(r.offset, r.length) for r in recorder.take("write") if r.offset >= first]


def test_a_gap_in_a_new_cluster_is_filled() -> None:
    disk, recorder, node = recorded_qed(cluster_size=CLUSTER, table_size=1)
    with disk:
        disk.write(8 * CLUSTER, b"x" * CLUSTER)  # the table exists
        first = node.size
        recorder.take()
        disk.submit([Request.write(0, b"a" * 512), Request.write(1024, b"b" * 512)])
        assert data_writes(recorder, first) == [(first, 1536)]
        assert disk.read(0, CLUSTER) == b"a" * 512 + bytes(512) + b"b" * 512 + bytes(2560)


def test_no_gap_is_filled_beyond_one_cluster() -> None:
    disk, recorder, node = recorded_qed(cluster_size=CLUSTER, table_size=1)
    with disk:
        disk.write(64 * CLUSTER, b"x" * CLUSTER)
        first = node.size
        recorder.take()
        writes = [(100, 412), (CLUSTER + 512, 100), (4 * CLUSTER, 10), (6 * CLUSTER - 10, 10)]
        disk.submit([Request.write(offset, noise(n, n)) for offset, n in writes])
        found = data_writes(recorder, first)
        assert [length for _, length in found] == [412, 100, 10, 10]
        expected = bytearray(8 * CLUSTER)
        for offset, n in writes:
            expected[offset : offset + n] = noise(n, n)
        assert disk.read(0, len(expected)) == expected


def test_no_gap_is_filled_over_a_backing_file() -> None:
    backing = memory(size=64 * MiB)
    backing.writev(0, [memoryview(b"\xbb" * 8 * CLUSTER)])
    disk, recorder, node = recorded_qed(size=64 * MiB, backing=backing, cluster_size=CLUSTER)
    with disk:
        disk.write(64 * CLUSTER, b"x" * CLUSTER)
        first = node.size
        recorder.take()
        disk.submit([Request.write(0, b"a" * 512), Request.write(1024, b"c" * 512)])
        assert len(data_writes(recorder, first)) == 2
        expected = b"a" * 512 + b"\xbb" * 512 + b"c" * 512 + b"\xbb" * (CLUSTER - 1536)
        assert disk.read(0, CLUSTER) == expected


def test_a_gap_in_a_zero_cluster_is_filled_over_a_backing_file_too() -> None:
    backing = memory(size=64 * MiB)
    backing.writev(0, [memoryview(b"\xbb" * 8 * CLUSTER)])
    disk, recorder, node = recorded_qed(size=64 * MiB, backing=backing, cluster_size=CLUSTER)
    with disk:
        disk.write_zeroes(0, 8 * CLUSTER)
        first = node.size
        recorder.take()
        disk.submit([Request.write(512, b"a" * 512), Request.write(1536, b"c" * 512)])
        assert data_writes(recorder, first) == [(first + 512, 1536)]
        assert disk.read(0, 2048) == bytes(512) + b"a" * 512 + bytes(512) + b"c" * 512
        assert disk.read(CLUSTER, 7 * CLUSTER) == bytes(7 * CLUSTER)


def test_no_gap_is_filled_where_there_is_data() -> None:
    disk, recorder, _ = recorded_qed(cluster_size=CLUSTER, table_size=1)
    with disk:
        disk.write(0, b"d" * CLUSTER)
        recorder.take()
        disk.submit([Request.write(0, b"a" * 512), Request.write(1024, b"b" * 512)])
        assert [r.length for r in recorder.take("write")] == [512, 512]
        assert disk.read(0, 2048) == b"a" * 512 + b"d" * 512 + b"b" * 512 + b"d" * 512


def test_gaps_of_every_shape_change_no_other_byte(rng: random.Random) -> None:
    """Clusters of all four states, and writes with gaps of any size between and inside them."""
    for _ in range(60):
        backing = memory(size=64 * CLUSTER)
        backing.writev(0, [memoryview(rng.randbytes(64 * CLUSTER))])
        over = rng.random() < 0.5
        disk, _, node = recorded_qed(
            size=64 * CLUSTER, backing=backing if over else None, cluster_size=CLUSTER
        )
        expected = bytearray(64 * CLUSTER)
        if over:
            backing.readv(0, [memoryview(expected)])
        with disk:
            for cluster in range(64):
                start, end = cluster * CLUSTER, (cluster + 1) * CLUSTER
                state = rng.randrange(3)
                if state == 1:
                    expected[start:end] = rng.randbytes(CLUSTER)
                    disk.write(start, bytes(expected[start:end]))
                elif state == 2:
                    expected[start:end] = bytes(CLUSTER)
                    disk.write_zeroes(start, CLUSTER)
            batch = []
            for _ in range(rng.randrange(2, 80)):
                offset = rng.randrange(64 * CLUSTER - 512)
                batch.append(Request.write(offset, rng.randbytes(rng.choice([1, 100, 512]))))
            disk.submit(batch)
            for request in batch:
                assert request.error is None
                expected[request.offset : request.end] = request.data
            assert disk.read(0, 64 * CLUSTER) == expected
        assert check(node).clean


# --- many parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["raw", "qed"])
@pytest.mark.parametrize("count", [1023, 1024, 1025, 2500])
def test_more_parts_than_a_system_call_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, count: int
) -> None:
    path = tmp_path / "disk"
    blocklayer.create(path, format=format, size=8 * MiB)
    parts = [(i * 512, bytes([i % 255 + 1]) * 512) for i in range(count)]
    random.Random(3).shuffle(parts)
    calls: list[int] = []
    writev = file_io.writev

    def counted(descriptor: int, vector: Vector, offset: int) -> int:
        calls.append(len(vector))
        return writev(descriptor, vector, offset)

    monkeypatch.setattr(file_io, "writev", counted)
    with blocklayer.open(path, mode="r+", format=format) as disk:
        disk.write_many(parts)
        data_calls = [length for length in calls if length > 1]
        assert max(calls) == min(count, 1024)
        assert len(data_calls) <= -(-count // 1024) + 1
        for offset, data in parts:
            assert disk.read(offset, 512) == data


def test_short_writes_of_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that writes less than it was given, at any odd place, is continued."""
    path = tmp_path / "disk"
    blocklayer.create(path, format="qed", size=8 * MiB)
    rng = random.Random(4)
    writev = file_io.writev

    def short(descriptor: int, vector: Vector, offset: int) -> int:
        limit = rng.randrange(1, 3000)
        given = []
        for view in vector:
            given.append(view[:limit])
            limit -= len(given[-1])
            if not limit:
                break
        return writev(descriptor, given, offset)

    parts = [(i * 700, noise(700, i)) for i in range(300)]
    with blocklayer.open(path, mode="r+") as disk:
        monkeypatch.setattr(file_io, "writev", short)
        disk.write_many(parts)
        assert disk.read(0, 210000) == b"".join(data for _, data in parts)
    monkeypatch.undo()
    assert blocklayer.check(path).clean


# --- flushing -------------------------------------------------------------------------------------


def flushes(recorder: Recorder) -> int:
    return len(recorder.take("flush"))


def test_fua_is_one_flush_a_phase() -> None:
    recorder = Recorder(memory(size=MiB))
    with open_disk(recorder, "raw") as disk:
        disk.submit([Request.write(i * 4096, b"x", fua=True) for i in range(20)])
        assert flushes(recorder) == 1
        disk.submit([Request.write(i * 4096, b"x") for i in range(20)])
        assert flushes(recorder) == 0
        disk.submit([Request.write_zeroes(0, 512, fua=True), Request.write(8192, b"x")])
        assert flushes(recorder) == 1
        disk.write_many([(0, b"x"), (8192, b"y")], fua=True)
        assert flushes(recorder) == 1


def test_fua_comes_after_the_data() -> None:
    recorder = Recorder(memory(size=MiB))
    with open_disk(recorder, "raw") as disk:
        disk.submit([Request.write(0, b"x", fua=True), Request.write_zeroes(8192, 512)])
        assert [r.verb for r in recorder.take()] == ["write", "zero", "flush"]


def test_a_writethrough_disk_flushes_what_a_batch_writes() -> None:
    recorder = Recorder(memory(size=MiB))
    with Disk(open_node(tree(recorder, "raw")), writethrough=True, discard="unmap") as disk:
        disk.submit([Request.write(0, b"x"), Request.write(8192, b"y")])
        assert [r.verb for r in recorder.take()] == ["write", "write", "flush"]
        disk.submit([Request.write_zeroes(0, 4096)])
        assert [r.verb for r in recorder.take()] == ["zero", "flush"]
        disk.submit([Request.read(0, 10)])
        assert flushes(recorder) == 0
        disk.write_many([(0, b"x"), (8192, b"y")])
        assert flushes(recorder) == 1


# --- many ranges, one call ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DISKS)
def test_read_many_refuses_what_no_disk_has(tmp_path: Path, kind: str) -> None:
    with DISKS[kind](tmp_path) as disk:
        disk.write(0, b"x" * CLUSTER)
        assert disk.read(0, CLUSTER) == b"x" * CLUSTER
        for offset, length in [(0, -1), (-1, 1), (SIZE, 1), (0, SIZE + 1), (SIZE + 1, 0)]:
            with pytest.raises(OutOfRange):
                disk.read_many([(0, 1), (offset, length)])
            with pytest.raises(OutOfRange):
                disk.read(offset, length)


@pytest.mark.parametrize("kind", DISKS)
def test_write_many_refuses_all_of_it_if_one_lies_outside(tmp_path: Path, kind: str) -> None:
    with DISKS[kind](tmp_path) as disk:
        with pytest.raises(OutOfRange):
            disk.write_many([(0, b"x" * 512), (SIZE - 1, b"yy")])
        assert disk.read(0, 512) == bytes(512)
