# SPDX-License-Identifier: Apache-2.0
"""The model disk, and that exercising finds what is wrong with a driver."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from blocklayer.base.buffers import Vector
from blocklayer.base.errors import BlocklayerError, OutOfRange
from blocklayer.base.extent import ZERO, Extent
from blocklayer.base.units import SECTOR, KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Mapped
from blocklayer.testing.exercise import Exercise
from blocklayer.testing.liar import Liar
from blocklayer.testing.model import Mismatch, ModelDisk
from tests.support.graphs import create, memory, open_disk

SIZE = 8 * KiB


# --- the verbs ---


def test_it_remembers() -> None:
    model = ModelDisk(SIZE)
    model.write(5, b"abc")
    model.write_many([(6, b"xy"), (7, b"z")])
    assert model.read(4, 6) == b"\0axz\0\0"
    model.write_zeroes(5, 2)
    buffer = bytearray(4)
    assert model.read_into(5, buffer) == 4
    assert buffer == b"\0\0z\0"
    assert model.read_many([(7, 1), (0, 2)]) == [b"z", b"\0\0"]


def test_it_has_a_size() -> None:
    model = ModelDisk(1000)
    model.write(990, b"0123456789")
    model.resize(995)
    model.resize(1000)
    assert model.read(990, 10) == b"01234" + bytes(5)
    for action in (
        lambda: model.read(0, 1001),
        lambda: model.read(-1, 1),
        lambda: model.write(999, b"xx"),
        lambda: model.write_zeroes(1000, 1),
    ):
        with pytest.raises(OutOfRange):
            action()


@pytest.mark.parametrize("size", [500, 1000, 1500])
def test_a_layer_over_another(size: int) -> None:
    base = ModelDisk(1000)
    base.write(0, b"b" * 1000)
    layer = base.overlay(size)
    shown = min(size, 1000)
    assert layer.read(0, size) == b"b" * shown + bytes(size - shown)
    layer.write(10, b"x")
    assert base.read(10, 1) == b"b"
    layer.resize(400)
    layer.resize(1000)
    assert layer.read(400, 600) == bytes(600)


# --- what is not certain ---


def test_a_failed_write_leaves_each_sector_old_or_new() -> None:
    model = ModelDisk(SIZE)
    model.write(0, b"o" * 3 * SECTOR)
    model.maybe_write(100, b"n" * 2 * SECTOR)
    old, new = b"o" * SECTOR, b"n" * SECTOR
    sectors = (b"o" * 100 + b"n" * 412, new, b"n" * 100 + b"o" * 412)
    for choice in range(8):
        content = b"".join(sectors[i] if choice >> i & 1 else old for i in range(3))
        assert model.difference(0, content) is None
        assert model.difference(50, content[50:1000]) is None
    torn = old + b"n" * 5 + b"o" * 507 + old
    assert model.difference(0, torn) == SECTOR
    assert model.difference(0, b"o" * 600 + b"?") == 512


def test_a_second_failure_adds_to_what_may_be() -> None:
    model = ModelDisk(SIZE)
    model.maybe_write(0, b"a")
    model.maybe_write(1, b"b")
    for content in (b"\0\0", b"a\0", b"\0b", b"ab"):
        assert model.difference(0, content) is None
    assert model.difference(0, b"b\0") == 0


def test_success_ends_uncertainty() -> None:
    model = ModelDisk(SIZE)
    model.maybe_write(0, b"a" * SECTOR)
    model.write(0, b"x" * 300)
    assert model.difference(0, b"x" * 300 + b"a" * 212) is None
    assert model.difference(0, b"x" * 300 + bytes(212)) is None
    assert model.difference(0, bytes(SECTOR)) == 0
    model.write_zeroes(200, 312)
    assert model.difference(0, b"x" * 200 + bytes(312)) is None
    assert model.difference(0, b"x" * 300 + bytes(212)) == 200
    model.maybe_zero(0, SECTOR)
    model.settle(0, b"x" * 200 + bytes(312))
    assert model.difference(0, bytes(SECTOR)) == 0


def test_a_layer_over_something_uncertain() -> None:
    base = ModelDisk(700)
    base.maybe_write(0, b"a" * 700)
    layer = base.overlay(600)
    assert layer.difference(0, b"a" * 600) is None
    assert layer.difference(0, b"a" * 512 + bytes(88)) is None
    base.resize(100)
    assert base.read(0, 100) == bytes(100)


# --- comparing ---


class Fake:
    """Says what it is told to say."""

    def __init__(self, content: bytes, extents: list[Extent]) -> None:
        self.content, self.told = content, extents
        self.size = len(content)

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        return iter(self.told)


def data(offset: int, length: int, depth: int = 0) -> Extent:
    return Extent(offset, length, True, False, True, depth, offset, "file")


def zero(offset: int, length: int, depth: int = 0, *, present: bool = True) -> Extent:
    return Extent(offset, length, False, True, present, depth)


@pytest.fixture
def model() -> ModelDisk:
    """Data, then zeroes."""
    model = ModelDisk(2000)
    model.write(0, b"x" * 1000)
    return model


def test_what_is_right(model: ModelDisk) -> None:
    content = bytes(model.content)
    for extents in (
        [data(0, 2000)],
        [data(0, 1000), zero(1000, 1000)],
        [data(0, 1500), zero(1500, 500, present=False)],
    ):
        model.check(Fake(content, extents))


@pytest.mark.parametrize(
    ("extents", "words"),
    [
        ([], "the extents end at 0 of 2000"),
        ([data(0, 1000)], "the extents end at 1000"),
        ([data(1, 1999)], "should start at 0"),
        ([data(0, 1000), data(1001, 999)], "should start at 1000"),
        ([data(0, 1000), data(1000, 1000)], "could have been one"),
        ([data(0, 1000), zero(1000, 500), zero(1500, 500)], "could have been one"),
        ([data(0, 999), zero(999, 1001)], "is not zero"),
        ([data(0, 1000, depth=1), zero(1000, 1000)], "byte 0 was written to the disk itself"),
        ([Extent(0, 2000, True, True, True, 0)], "either data or zero"),
        ([Extent(0, 2000, True, False, False, 0)], "nowhere and yet data"),
    ],
)
def test_extents_that_are_wrong(model: ModelDisk, extents: list[Extent], words: str) -> None:
    with pytest.raises(Mismatch, match=words):
        model.check(Fake(bytes(model.content), extents))


@pytest.mark.parametrize("where", [0, 999, 1000, 1999])
def test_a_byte_that_is_wrong(model: ModelDisk, where: int) -> None:
    content = bytearray(model.content)
    content[where] ^= 1
    with pytest.raises(Mismatch, match=f"byte {where} is "):
        model.check(Fake(bytes(content), [data(0, 2000)]))


def test_a_size_that_is_wrong(model: ModelDisk) -> None:
    with pytest.raises(Mismatch, match="has 1999 bytes, its model 2000"):
        model.check(Fake(bytes(1999), [data(0, 1999)]))


# --- exercising finds what is wrong ---


class ShiftsLateWrites(FilterNode):
    """Writes one byte too far, rarely."""

    def writev(self, offset: int, vector: Vector) -> None:
        super().writev(offset + (offset % 97 == 1), vector)


class ForgetsTheTail(FilterNode):
    """Loses the last byte of long reads."""

    def readv(self, offset: int, vector: Vector) -> None:
        keep = bytes(vector[-1][-1:])
        super().readv(offset, vector)
        if len(vector[-1]) > 5000:
            vector[-1][-1:] = keep


class ClaimsZeroes(FilterNode):
    """Takes a page for a hole that is none."""

    def map(self, offset: int, length: int) -> Mapped:
        kind, count, child, below = self.child.map(offset, length)
        return (ZERO, count, None, below) if offset // 65536 == 3 else (kind, count, child, below)


class ZeroesTooMuch(FilterNode):
    """Rounds zeroing up to sectors."""

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        super().zero(offset, -(-length // SECTOR) * SECTOR, flags)


class GrowsWithGarbage(FilterNode):
    """New bytes are not zero."""

    def truncate(self, size: int, preallocation: str = "off") -> None:
        old = self.size
        super().truncate(size, preallocation)
        if size > old:
            super().writev(old, [memoryview(b"\xa5" * (size - old))])


def exercise_for_long(exercise: Exercise) -> None:
    for _ in range(50):
        exercise.run(100)


@pytest.mark.parametrize(
    "fault", [ShiftsLateWrites, ForgetsTheTail, ClaimsZeroes, ZeroesTooMuch, GrowsWithGarbage]
)
def test_a_driver_with_this_fault_is_caught(fault: type[FilterNode], seed: int) -> None:
    node = memory(size=MiB)
    disk = open_disk(fault(node), "raw")
    exercise = Exercise(disk, ModelDisk(MiB), seed=seed, size_max=2 * MiB, grain=4 * KiB)
    with pytest.raises(Mismatch) as caught:
        exercise_for_long(exercise)
    [note] = caught.value.__notes__
    assert f"seed {seed}" in note
    assert len(note.splitlines()) > 1
    disk.close()


@pytest.mark.parametrize("fault", [ShiftsLateWrites, ForgetsTheTail, ZeroesTooMuch])
def test_a_fault_below_qed_is_caught(fault: type[FilterNode], seed: int) -> None:
    node = memory()
    create(node, size=MiB, cluster_size=4096, table_size=1)
    disk = open_disk(fault(node))
    exercise = Exercise(disk, ModelDisk(MiB), seed=seed, grain=4 * KiB)
    # The tables suffer as well: then the driver finds it first.
    with pytest.raises((Mismatch, BlocklayerError)):
        exercise_for_long(exercise)
    disk.close()


def test_a_driver_without_faults_is_not(seed: int) -> None:
    disk = open_disk(FilterNode(memory(size=MiB)), "raw")
    Exercise(disk, ModelDisk(MiB), seed=seed, size_max=2 * MiB).run(300)
    disk.close()


def test_the_same_seed_makes_the_same_requests() -> None:
    histories = []
    for _ in range(2):
        disk = open_disk(memory(size=MiB), "raw")
        exercise = Exercise(disk, ModelDisk(MiB), seed=7)
        exercise.run(60)
        histories.append(list(exercise.history))
        disk.close()
    assert histories[0] == histories[1]


def test_disks_of_no_size() -> None:
    disk = open_disk(memory(size=0), "raw")
    Exercise(disk, ModelDisk(0), seed=1).run(50)
    disk.close()


def test_refused_zeroing_is_settled(seed: int) -> None:
    disk = open_disk(Liar(memory(size=MiB), rng=random.Random(seed), zeroes=0.3), "raw")
    assert isinstance(disk, Disk)
    Exercise(disk, ModelDisk(MiB), seed=seed, grain=512).run(400)
    disk.close()
