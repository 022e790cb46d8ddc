# SPDX-License-Identifier: Apache-2.0
"""Padding: its arithmetic by enumeration, and the node against a byte array."""

from __future__ import annotations

import random
from itertools import product

import pytest

from blocklayer.base.errors import IoError, NotSupported
from blocklayer.base.units import SECTOR, KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.node import NO_FALLBACK
from blocklayer.core.padding import BOUNCE_SIZE, Padded, pad
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import READ, InjectError
from blocklayer.protocols.memory import MemoryNode
from blocklayer.testing.exercise import Exercise
from blocklayer.testing.liar import Liar
from blocklayer.testing.model import ModelDisk
from blocklayer.testing.recorder import Recorder
from tests.support.crew import run_together
from tests.support.graphs import memory, open_disk, snapshot

ALIGNMENTS = (1, 2, 4, 8, 16)


def test_every_small_request_is_padded_to_the_blocks_it_touches() -> None:
    for offset, length, alignment in product(range(40), range(1, 40), ALIGNMENTS):
        padding = pad(offset, length, alignment)
        start, padded = padding.start, padding.length
        head, tail = padding.head, padding.tail
        blocks = {byte // alignment for byte in range(offset, offset + length)}
        assert start == min(blocks) * alignment
        assert padded == len(blocks) * alignment
        assert head == offset - start
        assert tail == start + padded - offset - length
        assert 0 <= head < alignment
        assert 0 <= tail < alignment


@pytest.mark.parametrize("alignment", [2, 4, 8])
def test_every_small_write_changes_what_it_is_asked_to(alignment: int) -> None:
    """All offsets and lengths in a file of two blocks and a half; growing ones too."""
    size = 2 * alignment + alignment // 2
    original = bytes(range(1, size + 1))
    for offset, length in product(range(4 * alignment), range(1, 3 * alignment)):
        node = memory(size=size)
        node.writev(0, [memoryview(original)])
        padded = Padded(Liar(node, alignment=alignment, zeroes=1.0))
        data = b"\xff" * length
        padded.writev(offset, [memoryview(data)])
        expected = bytearray(original.ljust(max(size, offset + length), b"\0"))
        expected[offset : offset + length] = data
        assert snapshot(node) == expected, (offset, length)


@pytest.mark.parametrize("alignment", [2, 4, 8])
def test_every_small_zeroing_and_discard(alignment: int) -> None:
    size = 4 * alignment
    original = bytes(range(1, size + 1))
    for offset, length in product(range(size), range(1, size)):
        if offset + length > size:
            continue
        for discards in (False, True):
            node = memory(size=size)
            node.writev(0, [memoryview(original)])
            padded = Padded(Liar(node, alignment=alignment, zeroes=1.0, garbles=False))
            expected = bytearray(original)
            if discards:
                padded.discard(offset, length)
                start = -(-offset // alignment) * alignment
                end = (offset + length) // alignment * alignment
                expected[start:end] = bytes(max(0, end - start))
            else:
                padded.zero(offset, length)
                expected[offset : offset + length] = bytes(length)
            assert snapshot(node) == expected, (offset, length, discards)


@pytest.mark.parametrize("alignment", [2, 4, 8])
def test_every_small_read(alignment: int) -> None:
    size = 3 * alignment + 1
    original = bytes(range(1, size + 1))
    node = memory(size=size)
    node.writev(0, [memoryview(original)])
    padded = Padded(Liar(node, alignment=alignment))
    for offset, length in product(range(size), range(1, size)):
        for cut in {0, length // 2, length - 1}:
            parts = [bytearray(cut), bytearray(length - cut)] if cut else [bytearray(length)]
            padded.readv(offset, [memoryview(part) for part in parts])
            expected = original[offset : offset + length].ljust(length, b"\0")
            assert b"".join(parts) == expected


@pytest.mark.parametrize("alignment", [512, 4096])
@pytest.mark.parametrize("zeroes", [0.0, 0.5, 1.0])
def test_a_padded_disk_is_a_byte_array(seed: int, alignment: int, zeroes: float) -> None:
    liar = Liar(memory(size=3 * MiB), rng=random.Random(seed), alignment=alignment, zeroes=zeroes)
    disk = open_disk(liar, "raw")
    exercise = Exercise(
        disk, ModelDisk(3 * MiB), seed=seed, grain=4 * KiB, length_max=MiB, size_max=4 * MiB
    )
    exercise.run(150)
    disk.close()


def test_requests_longer_than_the_buffer_go_in_pieces() -> None:
    recorder = Recorder(memory(size=8 * MiB))
    recorder.limits.request_alignment = 4096
    padded = Padded(recorder)
    data = random.Random(1).randbytes(3 * BOUNCE_SIZE)
    padded.writev(1000, [memoryview(data)])
    writes = recorder.take("write")
    assert max(length for _, _, length in writes) <= BOUNCE_SIZE
    assert sum(length for _, _, length in writes) == 3 * BOUNCE_SIZE + 4096
    assert not any(offset % 4096 or length % 4096 for _, offset, length in writes)
    buffer = bytearray(len(data))
    padded.readv(1000, [memoryview(buffer)])
    assert buffer == data


def test_whole_blocks_are_not_read_before_they_are_written() -> None:
    recorder = Recorder(memory(size=MiB))
    recorder.limits.request_alignment = 4096
    padded = Padded(recorder)
    padded.writev(4096, [memoryview(bytes(8192))])
    assert recorder.take() == [("write", 4096, 8192)]
    padded.writev(5, [memoryview(bytes(10))])
    assert recorder.take() == [("read", 0, 4096), ("write", 0, 4096)]
    padded.writev(4095, [memoryview(bytes(4098))])
    assert recorder.take() == [("read", 0, 4096), ("read", 8192, 4096), ("write", 0, 12288)]


def test_a_limit_on_transfers() -> None:
    recorder = Recorder(memory(size=MiB))
    recorder.limits.max_transfer = 1000
    padded = Padded(recorder)
    padded.writev(7, [memoryview(bytes(2500))])
    assert [length for _, _, length in recorder.take()] == [1000, 1000, 500]


def test_alignment_larger_than_the_buffer() -> None:
    node = memory(size=8 * MiB)
    liar = Liar(node, alignment=4 * MiB, zeroes=1.0)
    padded = Padded(liar)
    padded.writev(3 * MiB, [memoryview(b"x" * 2 * MiB)])
    content = snapshot(node)
    assert content == bytes(3 * MiB) + b"x" * 2 * MiB + bytes(3 * MiB)


@pytest.mark.parametrize(("outer", "inner"), [(512, 4096), (4096, 512)])
def test_padding_over_padding(seed: int, outer: int, inner: int) -> None:
    """Each has its own memory, or the inner one would read over what the outer one has gathered."""
    node = memory(size=MiB)
    lower = Liar(Padded(Liar(node, alignment=inner, zeroes=0.5)), alignment=outer, zeroes=1.0)
    disk = Disk(Padded(lower))
    Exercise(disk, ModelDisk(MiB), seed=seed, grain=512, length_max=20000).run(200)
    disk.close()


def test_neighbours_in_one_block_do_not_undo_each_other(seed: int) -> None:
    rng = random.Random(seed)
    node = memory(size=64 * KiB)
    padded = Padded(Liar(node, rng=rng, alignment=4096, delay=0.0005))
    pieces = [(block * 4096 + i * 500, rng.randbytes(500)) for block in range(4) for i in range(8)]
    rng.shuffle(pieces)
    run_together(
        *(lambda at=at, data=data: padded.writev(at, [memoryview(data)]) for at, data in pieces)
    )
    content = snapshot(node)
    for at, data in pieces:
        assert content[at : at + 500] == data


def test_zeroing_is_not_undone_by_a_write_into_the_same_block(seed: int) -> None:
    """The write reads the block, the zeroing clears it, the write puts the rest of it back: no."""
    rng = random.Random(seed)
    for _ in range(30):
        node = memory(size=8192)
        node.writev(0, [memoryview(b"\xff" * 8192)])
        padded = Padded(Liar(node, rng=rng, alignment=4096, zeroes=1.0, delay=0.002))
        run_together(
            lambda padded=padded: padded.zero(0, 8192),  # type: ignore[misc]
            lambda padded=padded: padded.writev(100, [memoryview(b"data")]),  # type: ignore[misc]
        )
        content = snapshot(node)
        assert content[:100] == bytes(100)
        assert content[104:] == bytes(8192 - 104)


def test_zeroing_a_part_of_a_block_without_writing_is_refused() -> None:
    recorder = Recorder(memory(size=MiB))
    recorder.limits.request_alignment = 4096
    padded = Padded(recorder)
    for offset, length in ((0, 100), (100, 8192), (0, 8191)):
        with pytest.raises(NotSupported):
            padded.zero(offset, length, NO_FALLBACK)
    assert recorder.take() == []
    padded.zero(4096, 8192, NO_FALLBACK)
    assert recorder.take() == [("zero", 4096, 8192)]


def test_a_block_that_cannot_be_read_fails_the_write() -> None:
    fault = FaultNode(memory(size=MiB), [InjectError(iotypes=frozenset({READ}))])
    fault.limits.request_alignment = SECTOR
    padded = Padded(fault)
    for offset, length in ((5, 10), (0, 700), (100, 2000)):
        with pytest.raises(IoError):
            padded.writev(offset, [memoryview(b"x" * length)])
    assert snapshot(fault.child) == bytes(MiB)
    padded.writev(0, [memoryview(b"x" * SECTOR)])


def test_a_file_keeps_its_odd_size() -> None:
    node = MemoryNode(1000, name="odd")
    padded = Padded(Liar(node, alignment=512, zeroes=1.0))
    padded.writev(990, [memoryview(b"x" * 5)])
    assert node.size == 1000
    padded.writev(990, [memoryview(b"y" * 20)])
    assert node.size == 1010
    padded.truncate(700)
    assert node.size == 700
    assert padded.grows_zeroed
