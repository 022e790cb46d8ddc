# SPDX-License-Identifier: Apache-2.0
"""Zeroing and discarding: every shape around cluster borders, any size at no cost, no byte lost."""

from __future__ import annotations

import random
import time
import tracemalloc
from itertools import product
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.buffers import ZERO_CHUNK, ZEROES, Vector, vector_length
from blocklayer.base.errors import InvalidArgument, NotSupported, OutOfRange, ReadOnly
from blocklayer.base.options import OptionTree
from blocklayer.base.units import SECTOR, KiB, MiB, TiB
from blocklayer.core.disk import Disk
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import ALLOCATE, NO_FALLBACK, UNMAP, Node
from blocklayer.core.padding import Padded
from blocklayer.testing.liar import Liar
from blocklayer.testing.model import ModelDisk
from blocklayer.testing.recorder import Recorder
from tests.support.graphs import check, create, memory, open_disk, open_node, tree

CLUSTER = 4 * KiB
FLAGS = ("default", "unmap", "allocate", "no_fallback")
HOLE, ZERO, DATA = STATES = ("hole", "zero", "data")


class Spy(FilterNode):
    """Notes zeroing with its flags and every buffer that is written; refuses what it is told to."""

    driver = "spy"

    def __init__(self, child: Node) -> None:
        super().__init__(child)
        self.zeroed: list[tuple[int, int, int]] = []
        self.written: list[tuple[int, int]] = []
        self.foreign = 0
        """Bytes written that do not come from the shared zeroes."""
        self.refuse_from = -1
        """Refuse from this offset on, after everything before it has been zeroed."""

    def writev(self, offset: int, vector: Vector) -> None:
        self.written.append((offset, vector_length(vector)))
        self.foreign += sum(len(view) for view in vector if view.obj is not ZEROES)
        super().writev(offset, vector)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        self.zeroed.append((offset, length, flags))
        if 0 <= self.refuse_from < offset + length:
            if offset < self.refuse_from:
                super().zero(offset, self.refuse_from - offset, flags)
            raise NotSupported("no further")
        super().zero(offset, length, flags)


# --- every offset and length ----------------------------------------------------------------------

EDGES = sorted({b + d for b in range(0, 4 * CLUSTER, CLUSTER) for d in (-512, -1, 0, 1, 512)})
POINTS = [edge for edge in EDGES if 0 <= edge <= 3 * CLUSTER]
RANGES = [(start, end) for start in POINTS for end in POINTS if start <= end]
STRIDE = 4 * CLUSTER
"""Each case has three clusters of its own, and one that shows what went too far."""


def cases() -> list[tuple[int, int, tuple[str, ...]]]:
    """(offset, length, the states of three clusters), each where nothing else is."""
    every = product(RANGES, product(STATES, repeat=3))
    return [
        (index * STRIDE + start, end - start, states)
        for index, ((start, end), states) in enumerate(every)
    ]


def prepared(
    disk: Disk, found: list[tuple[int, int, tuple[str, ...]]], model: ModelDisk
) -> ModelDisk:
    """Give the clusters of each case their states."""
    noise = random.Random(1).randbytes(CLUSTER)
    writes = []
    for index, (_, _, states) in enumerate(found):
        for cluster, state in enumerate(states):
            offset = index * STRIDE + cluster * CLUSTER
            if state == DATA:
                writes.append((offset, noise))
            elif state == ZERO:
                disk.write_zeroes(offset, CLUSTER)
                model.write_zeroes(offset, CLUSTER)
    disk.write_many(writes)
    model.write_many(writes)
    return model


def in_setting(setting: str, size: int) -> tuple[Disk, ModelDisk, Node]:
    node = memory()
    if setting == "overlay":
        below = memory(size=size)
        content = random.Random(2).randbytes(64 * KiB) * (size // (64 * KiB) + 1)
        below.writev(0, [memoryview(content)[:size]])
        model = ModelDisk(size)
        model.write(0, content[:size])
        create(node, size=size, cluster_size=CLUSTER, backing_file="below")
        return open_disk(node, backing=tree(below, "raw")), model.overlay(), node
    create(node, size=size, cluster_size=CLUSTER)
    return open_disk(node), ModelDisk(size), node


def flags_of(name: str) -> dict[str, bool]:
    return {} if name == "default" else {name: True}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("setting", ["alone", "overlay"])
def test_every_range_around_cluster_borders(setting: str, flag: str) -> None:
    found = cases()
    disk, model, node = in_setting(setting, len(found) * STRIDE)
    with disk:
        prepared(disk, found, model)
        for offset, length, _ in found:
            try:
                disk.write_zeroes(offset, length, **flags_of(flag))
            except NotSupported:
                assert flag == "no_fallback"
                model.require(offset, disk.read(offset, length))
            else:
                model.write_zeroes(offset, length)
        model.check(disk)
        if flag == "allocate":
            require_allocated(disk, found)
        elif flag != "no_fallback":
            require_nothing_stored_in_vain(disk, found)
    assert check(node).clean


def require_allocated(disk: Disk, found: list[tuple[int, int, tuple[str, ...]]]) -> None:
    for offset, length, _ in found:
        if length:
            extents = list(disk.extents(offset, length))
            assert all(extent.data and extent.depth == 0 for extent in extents), (offset, length)


def require_nothing_stored_in_vain(
    disk: Disk, found: list[tuple[int, int, tuple[str, ...]]]
) -> None:
    """Whole clusters that had no place, or were zero, are zero clusters."""
    for index, (offset, length, states) in enumerate(found):
        for cluster, state in enumerate(states):
            start = index * STRIDE + cluster * CLUSTER
            if state != DATA and offset <= start and start + CLUSTER <= offset + length:
                (extent,) = disk.extents(start, CLUSTER)
                assert (extent.zero, extent.present, extent.depth) == (True, True, 0)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("setting", ["alone", "overlay"])
@pytest.mark.parametrize("rest", [SECTOR, 3 * SECTOR, CLUSTER - SECTOR])
def test_every_range_at_the_end_of_a_disk(setting: str, flag: str, rest: int) -> None:
    """The last cluster is cut by the end of the disk."""
    size = CLUSTER + rest
    points = sorted({0, 1, CLUSTER - 1, CLUSTER, CLUSTER + 1, size - SECTOR, size - 1, size})
    for start, end in [(start, end) for start in points for end in points if start <= end]:
        for states in product(STATES, repeat=2):
            disk, model, node = in_setting(setting, size)
            with disk:
                for cluster, state in enumerate(states):
                    length = min(CLUSTER, size - cluster * CLUSTER)
                    if state == DATA:
                        disk.write(cluster * CLUSTER, b"\xdd" * length)
                        model.write(cluster * CLUSTER, b"\xdd" * length)
                    elif state == ZERO:
                        disk.write_zeroes(cluster * CLUSTER, length)
                        model.write_zeroes(cluster * CLUSTER, length)
                try:
                    disk.write_zeroes(start, end - start, **flags_of(flag))
                    model.write_zeroes(start, end - start)
                except NotSupported:
                    assert flag == "no_fallback"
                    model.maybe_zero(start, end - start)
                    model.settle(start, disk.read(start, end - start))
                model.check(disk)
                # What a cluster holds behind the end of the disk must not come to light.
                if setting == "alone" and not size % CLUSTER % SECTOR:
                    disk.resize(2 * CLUSTER)
                    assert disk.read(size, 2 * CLUSTER - size) == bytes(2 * CLUSTER - size)
            assert check(node).clean


@pytest.mark.parametrize("alignment", [1, 512, 4096])
@pytest.mark.parametrize("zeroes", [0.0, 0.5, 1.0])
def test_raw_storage_of_any_alignment(rng: random.Random, alignment: int, zeroes: float) -> None:
    size = 8 * CLUSTER
    node = memory(size=size)
    liar = Liar(node, rng=rng, alignment=alignment, zeroes=zeroes)
    expected = bytearray(rng.randbytes(size))
    with open_disk(liar, "raw") as disk:
        disk.write(0, expected)
        for start, end in RANGES:
            data = rng.randbytes(end - start)
            disk.write(start, data)
            flags = {rng.choice(["unmap", "allocate"]): rng.random() < 0.5}
            disk.write_zeroes(start, end - start, **flags)
            expected[start:end] = bytes(end - start)
            assert disk.read(0, size) == expected


# --- flags, arguments -----------------------------------------------------------------------------


def test_flags_reach_the_storage() -> None:
    spy = Spy(memory(size=MiB))
    with open_disk(spy, "raw") as disk:
        disk.write_zeroes(0, 1000)
        disk.write_zeroes(1, 1000, unmap=True)
        disk.write_zeroes(2, 1000, allocate=True)
        disk.write_zeroes(3, 1000, no_fallback=True)
        disk.write_zeroes(4, 1000, no_fallback=True, unmap=True)
    assert spy.zeroed == [
        (0, 1000, 0),
        (1, 1000, UNMAP),
        (2, 1000, ALLOCATE),
        (3, 1000, NO_FALLBACK),
        (4, 1000, NO_FALLBACK | UNMAP),
    ]


def test_a_part_of_a_cluster_is_never_unmapped() -> None:
    """A hole in a cluster saves nothing on most storage; whole clusters may go."""
    node = memory()
    create(node, size=MiB, cluster_size=CLUSTER)
    spy = Spy(node)
    with open_disk(spy) as disk:
        disk.write(0, b"x" * 4 * CLUSTER)
        spy.zeroed.clear()
        disk.write_zeroes(100, 3 * CLUSTER, unmap=True)
    assert [(length, flags) for _, length, flags in spy.zeroed] == [
        (CLUSTER - 100, 0),
        (2 * CLUSTER, UNMAP),
        (100, 0),
    ]


def test_arguments_are_checked() -> None:
    with open_disk(memory(size=MiB), "raw") as disk:
        with pytest.raises(InvalidArgument, match="both unmap and allocate"):
            disk.write_zeroes(0, 512, unmap=True, allocate=True)
        for offset, length in [(-1, 1), (0, -1), (MiB, 1), (1, MiB), (MiB + 1, 0)]:
            with pytest.raises(OutOfRange):
                disk.write_zeroes(offset, length)
            with pytest.raises(OutOfRange):
                disk.discard(offset, length)
        disk.write_zeroes(MiB, 0)
        disk.discard(MiB, 0)
    with Disk(open_node(tree(memory(size=MiB), "raw"), read_only=True)) as disk:
        with pytest.raises(ReadOnly):
            disk.write_zeroes(0, 512)
        with pytest.raises(ReadOnly):
            disk.discard(0, 512)


def test_fua_flushes_after_zeroing() -> None:
    recorder = Recorder(memory(size=MiB))
    with open_disk(recorder, "raw") as disk:
        disk.write_zeroes(0, 512, fua=True)
        assert recorder.take() == [("zero", 0, 512), ("flush", 0, 0)]


# --- any size at no cost --------------------------------------------------------------------------

HUGE_SECONDS = 30.0
"""Bound on a busy machine; it takes a second or two."""
CACHE = 32 * MiB
"""What QED keeps of its tables."""
HUGE_MEMORY = CACHE + 16 * MiB


@pytest.mark.parametrize("flag", ["default", "unmap", "no_fallback"])
@pytest.mark.parametrize("format", ["raw", "qed"])
def test_a_tebibyte_of_zeroes(tmp_path: Path, format: str, flag: str) -> None:
    path = tmp_path / "huge"
    blocklayer.create(path, format=format, size=TiB)
    with blocklayer.open(path, mode="r+", format=format) as disk:
        started = time.monotonic()
        disk.write_zeroes(0, TiB, **flags_of(flag))
        assert time.monotonic() - started < HUGE_SECONDS
        for offset in (0, TiB // 3, TiB - 512):
            assert disk.read(offset, 512) == bytes(512)
        if format == "qed":
            extents = list(disk.extents())
            assert {(e.zero, e.present, e.depth) for e in extents} == {(True, True, 0)}
            assert sum(extent.length for extent in extents) == TiB
    assert path.stat().st_blocks * 512 < 200 * MiB


@pytest.mark.parametrize("format", ["raw", "qed"])
def test_a_tebibyte_of_zeroes_takes_no_more_memory_than_a_quarter(
    tmp_path: Path, format: str
) -> None:
    peaks = []
    for size in (TiB // 4, TiB):
        path = tmp_path / f"{size}"
        blocklayer.create(path, format=format, size=size)
        with blocklayer.open(path, mode="r+", format=format) as disk:
            tracemalloc.start()
            try:
                disk.write_zeroes(0, size)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    assert peaks[1] < peaks[0] + CACHE + MiB
    assert peaks[1] < HUGE_MEMORY


def test_a_tebibyte_that_is_discarded(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    blocklayer.create(path, format="qed", size=TiB)
    with blocklayer.open(path, mode="r+", discard="unmap") as disk:
        disk.write(TiB // 2, b"x" * 64 * KiB)
        started = time.monotonic()
        disk.discard(0, TiB)
        assert time.monotonic() - started < HUGE_SECONDS


# --- storage that cannot zero ---------------------------------------------------------------------


def test_bounded_pieces_of_shared_zeroes() -> None:
    """A driver that cannot zero gets pieces of the one page of zeroes; nothing is allocated."""
    length = 10 * ZERO_CHUNK + 12345
    node = memory(size=length + 2000)
    node.writev(0, [memoryview(b"\xcc" * node.size)])
    spy = Spy(Liar(node, zeroes=0.0))
    with open_disk(spy, "raw") as disk:
        tracemalloc.start()
        try:
            disk.write_zeroes(1000, length)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < ZERO_CHUNK // 4
        assert len(spy.zeroed) == 1
        assert spy.foreign == 0
        assert all(0 < count <= ZERO_CHUNK for _, count in spy.written)
        assert spy.written[0][0] == 1000
        for (start, count), (following, _) in zip(spy.written, spy.written[1:], strict=False):
            assert start + count == following
        assert sum(spy.written[-1]) == 1000 + length
        assert disk.read(0, 1001) == b"\xcc" * 1000 + b"\0"
        assert disk.read(1000 + length - 1, 1001) == b"\0" + b"\xcc" * 1000


def test_bounded_pieces_in_the_clusters_of_a_format() -> None:
    node = memory()
    create(node, size=32 * MiB)
    spy = Spy(Liar(node, zeroes=0.0))
    with open_disk(spy) as disk:
        disk.write(0, b"x" * 8 * MiB)
        spy.written.clear()
        spy.foreign = 0
        disk.write_zeroes(3, 8 * MiB - 5)
        assert spy.foreign == 0
        assert max(count for _, count in spy.written) <= ZERO_CHUNK
        assert disk.read(0, 8 * MiB) == b"xxx" + bytes(8 * MiB - 5) + b"xx"
        spy.written.clear()
        disk.write_zeroes(16 * MiB, 8 * MiB, allocate=True)
        data = [count for _, count in spy.written if count > 64 * KiB]
        assert sum(data) == 8 * MiB
        assert max(data) <= ZERO_CHUNK


def test_no_fallback_writes_nothing() -> None:
    node = memory(size=MiB)
    node.writev(0, [memoryview(b"\xcc" * MiB)])
    spy = Spy(Liar(node, zeroes=0.0))
    with open_disk(spy, "raw") as disk:
        with pytest.raises(NotSupported):
            disk.write_zeroes(0, MiB, no_fallback=True)
        assert spy.written == []
        assert disk.read(0, MiB) == b"\xcc" * MiB


def test_what_is_refused_is_what_would_be_written() -> None:
    """A part of a cluster that is not stored here, and is not zero, and nothing else."""
    found = cases()
    disk, model, _ = in_setting("overlay", len(found) * STRIDE)
    refused = 0
    with disk:
        prepared(disk, found, model)
        for offset, length, states in found:
            start = offset // STRIDE * STRIDE
            parts = [
                states[point // CLUSTER]
                for point in (offset - start, offset + length - start)
                if length and point % CLUSTER
            ]
            try:
                disk.check_zero(offset, length)
                disk.write_zeroes(offset, length, no_fallback=True)
            except NotSupported:
                refused += 1
                assert HOLE in parts
            else:
                assert HOLE not in parts
    assert refused > 100


@pytest.mark.parametrize("format", ["raw", "qed"])
@pytest.mark.parametrize("flag", ["default", "unmap", "allocate", "no_fallback"])
def test_a_refusal_in_the_middle_loses_nothing(format: str, flag: str) -> None:
    """Zeroing comes to any point of the storage, and is refused from there on."""
    size = 6 * CLUSTER
    for place in range(0, 10 * CLUSTER, 1024):
        node = memory(size=size if format == "raw" else 0)
        if format == "qed":
            create(node, size=size, cluster_size=CLUSTER)
        spy = Spy(node)
        with open_disk(spy, format) as disk:
            model = ModelDisk(size)
            data = random.Random(place).randbytes(size - CLUSTER)
            disk.write(0, data)
            model.write(0, data)
            first = node.size - size if format == "raw" else node.size - len(data) - CLUSTER
            spy.refuse_from = max(0, first) + place
            start, length = 700, size - 1400
            try:
                disk.write_zeroes(start, length, **flags_of(flag))
                model.write_zeroes(start, length)
            except NotSupported:
                assert flag == "no_fallback"
                model.maybe_zero(start, length)
            model.require(0, disk.read(0, size))
        if format == "qed":
            assert check(node).clean


# --- chains ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("longer", [-3 * CLUSTER - SECTOR, 0, 5 * CLUSTER + SECTOR])
def test_zeroes_in_an_overlay_hide_what_is_below(depth: int, longer: int) -> None:
    """The backing file may be shorter or longer than the overlay; zeroes hide all of it."""
    size = 16 * CLUSTER
    base = memory(size=size + longer)
    base.writev(0, [memoryview(b"\xbb" * base.size)])
    below: OptionTree = tree(base, "raw")
    for _ in range(depth - 1):
        layer = memory()
        create(layer, size=size, cluster_size=CLUSTER, backing_file="below")
        below = tree(layer, backing=below)
    node = memory()
    create(node, size=size, cluster_size=CLUSTER, backing_file="below")
    with open_disk(node, backing=below) as disk:
        expected = bytearray(disk.read(0, size))
        for start, length in [
            (CLUSTER, CLUSTER),
            (3 * CLUSTER + 5, 10),
            (5 * CLUSTER + 1, 3 * CLUSTER - 2),
            (size - 100, 100),
            (size - 4 * CLUSTER, CLUSTER // 2),
        ]:
            disk.write_zeroes(start, length, unmap=True)
            expected[start : start + length] = bytes(length)
        assert disk.read(0, size) == expected
        (extent,) = disk.extents(CLUSTER, CLUSTER)
        assert (extent.zero, extent.present, extent.depth) == (True, True, 0)
    unchanged = bytearray(base.size)
    base.readv(0, [memoryview(unchanged)])
    assert unchanged == b"\xbb" * base.size


def test_zeroing_does_not_read_what_it_hides() -> None:
    base = memory(size=MiB)
    base.writev(0, [memoryview(b"\xbb" * MiB)])
    recorder = Recorder(base)
    node = memory()
    create(node, size=MiB, cluster_size=CLUSTER, backing_file="below")
    with open_disk(node, backing=tree(recorder, "raw")) as disk:
        disk.write_zeroes(0, MiB)
        assert recorder.take() == []
        assert disk.read(0, MiB) == bytes(MiB)
        assert recorder.take() == []


# --- discarding -----------------------------------------------------------------------------------


def test_discards_are_ignored_unless_asked_for() -> None:
    recorder = Recorder(memory(size=MiB))
    with Disk(open_node(tree(recorder, "raw"))) as disk:
        disk.write(0, b"x" * 4096)
        recorder.take()
        disk.discard(0, MiB)
        assert recorder.take() == []
        assert disk.read(0, 4096) == b"x" * 4096


def test_a_wrong_mode_is_refused() -> None:
    node = open_node(tree(memory(size=MiB), "raw"))
    with pytest.raises(InvalidArgument, match="discard mode 'on'"):
        Disk(node, discard="on")
    node.close()


def test_a_raw_disk_discards_what_is_asked_for() -> None:
    recorder = Recorder(memory(size=MiB))
    with open_disk(recorder, "raw") as disk:
        disk.discard(1000, 5000)
        assert recorder.take() == [("discard", 1000, 5000)]


@pytest.mark.parametrize("setting", ["alone", "overlay"])
def test_every_discard_around_cluster_borders(setting: str) -> None:
    """Ends that cover a part of a cluster are dropped; nothing is ever zeroed or written."""
    found = cases()
    disk, model, node = in_setting(setting, len(found) * STRIDE)
    prepared(disk, found, model)
    below = disk.node.children.get("backing")
    disk.node.children.pop("backing", None)
    disk.close()
    recorder = Recorder(node)
    disk = open_disk(recorder, backing=None if below is None else {"file": below, "driver": "raw"})
    with disk:
        for index, (offset, length, states) in enumerate(found):
            recorder.take()
            disk.discard(offset, length)
            requests = [r for r in recorder.take() if r.verb != "read"]
            whole = [
                index * STRIDE + cluster * CLUSTER
                for cluster, state in enumerate(states)
                if state == DATA
                and offset <= index * STRIDE + cluster * CLUSTER
                and index * STRIDE + (cluster + 1) * CLUSTER <= offset + length
            ]
            assert {r.verb for r in requests} <= {"discard"}
            assert sum(r.length for r in requests) == len(whole) * CLUSTER
            for start in whole:
                model.settle(start, disk.read(start, CLUSTER))
        for offset in range(0, model.size, MiB):
            length = min(MiB, model.size - offset)
            model.require(offset, disk.read(offset, length))


def test_a_discard_keeps_the_mapping_and_hides_the_backing_file() -> None:
    base = memory(size=MiB)
    base.writev(0, [memoryview(b"\xbb" * MiB)])
    node = memory()
    create(node, size=MiB, cluster_size=CLUSTER, backing_file="below")
    with open_disk(node, backing=tree(base, "raw")) as disk:
        disk.write(0, b"x" * 4 * CLUSTER)
        disk.discard(0, 2 * CLUSTER)
        assert disk.read(0, 4 * CLUSTER) == bytes(2 * CLUSTER) + b"x" * 2 * CLUSTER
        disk.discard(8 * CLUSTER, CLUSTER)
        assert disk.read(8 * CLUSTER, CLUSTER) == b"\xbb" * CLUSTER


def test_the_last_cluster_is_discarded_whole() -> None:
    node = memory()
    size = 4 * CLUSTER + 3 * SECTOR
    create(node, size=size, cluster_size=CLUSTER)
    recorder = Recorder(node)
    with open_disk(recorder) as disk:
        disk.write(0, b"x" * size)
        recorder.take()
        disk.discard(4 * CLUSTER, 3 * SECTOR)
        assert [r.verb for r in recorder.take()] == ["discard"]
        disk.discard(4 * CLUSTER, 2 * SECTOR)
        disk.discard(4 * CLUSTER + 1, 3 * SECTOR - 1)
        assert recorder.take() == []


def test_blocks_of_storage_are_discarded_whole() -> None:
    recorder = Recorder(memory(size=MiB))
    recorder.limits.request_alignment = 4096
    with Disk(open_node({"driver": "raw", "file": Padded(recorder)}), discard="unmap") as disk:
        disk.discard(1, 12288)
        assert recorder.take() == [("discard", 4096, 8192)]
        disk.discard(4097, 8190)
        assert recorder.take() == []
