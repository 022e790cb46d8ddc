# SPDX-License-Identifier: Apache-2.0
"""The recorder and the liar."""

from __future__ import annotations

import random

import pytest

from blocklayer.base.buffers import Vector
from blocklayer.base.errors import NotSupported
from blocklayer.base.extent import DATA, ZERO
from blocklayer.base.units import MiB
from blocklayer.core.padding import Padded
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import InjectError
from blocklayer.testing.liar import POISON, Liar, storage
from blocklayer.testing.recorder import Recorder
from tests.support.graphs import memory, open_disk, snapshot
from tests.support.qed_image import QedImage

SIZE = MiB


def parts(*lengths: int) -> Vector:
    return [memoryview(bytearray(length)) for length in lengths]


# --- the recorder ---


def test_requests_are_noted_in_their_order() -> None:
    recorder = Recorder(memory(size=SIZE), status=True)
    recorder.writev(5, parts(3, 4))
    recorder.readv(0, parts(10))
    recorder.zero(20, 30)
    recorder.discard(40, 50)
    recorder.flush()
    recorder.truncate(2 * SIZE)
    recorder.map(60, 70)
    noted = [
        ("write", 5, 7),
        ("read", 0, 10),
        ("zero", 20, 30),
        ("discard", 40, 50),
        ("flush", 0, 0),
        ("truncate", 2 * SIZE, 0),
        ("map", 60, 70),
    ]
    assert recorder.requests == noted
    assert recorder.take() == noted
    assert recorder.take() == []


def test_some_verbs_alone() -> None:
    recorder = Recorder(memory(size=SIZE))
    recorder.writev(0, parts(1))
    recorder.map(0, 1)
    recorder.flush()
    assert recorder.take("flush", "map") == [("flush", 0, 0)]
    assert recorder.take() == []


def test_failed_requests_are_noted_too() -> None:
    recorder = Recorder(FaultNode(memory(size=SIZE), [InjectError()]))
    with pytest.raises(Exception, match="injected"):
        recorder.writev(0, parts(1))
    assert recorder.take() == [("write", 0, 1)]


def test_events_stand_among_the_requests() -> None:
    image = QedImage(SIZE)
    recorder = Recorder(image.node, events=True)
    with open_disk(recorder) as disk:
        recorder.take()
        disk.write(0, b"x")
        verbs = [r.verb for r in recorder.take() if r.verb != "read"]
    assert verbs[:3] == ["event:need_check_set", "write", "flush"]
    assert verbs[-3:] == ["flush", "event:l1_update", "write"]
    assert not Recorder(memory()).hears
    assert Recorder(FaultNode(memory())).hears


def test_a_recorder_changes_nothing() -> None:
    node = memory(size=SIZE)
    recorder = Recorder(node)
    assert (recorder.size, recorder.grows_zeroed, recorder.filename) == (SIZE, True, node.filename)
    recorder.writev(3, [memoryview(b"data")])
    recorder.truncate(SIZE // 2)
    assert snapshot(recorder) == snapshot(node) == bytes(3) + b"data" + bytes(SIZE // 2 - 7)
    recorder.reopen(True)
    assert node.read_only
    recorder.close()
    assert node.tracker.closed


# --- the liar ---


def test_a_liar_is_true() -> None:
    node = memory(size=SIZE)
    liar = Liar(node, zeroes=1.0, garbles=False)
    liar.writev(3, [memoryview(b"data")])
    buffer = bytearray(6)
    liar.readv(2, [memoryview(buffer)])
    assert buffer == b"\0data\0"
    liar.zero(3, 2)
    liar.truncate(10)
    assert snapshot(liar) == bytes(5) + b"ta" + bytes(3)


@pytest.mark.parametrize("granularity", [1, 512, 4096])
def test_it_says_as_little_as_it_may(granularity: int) -> None:
    liar = Liar(memory(size=SIZE), granularity=granularity)
    assert liar.map(0, SIZE)[:2] == (ZERO, granularity)
    assert liar.map(granularity - 1, SIZE // 2)[1] == 1
    liar = Liar(memory(size=SIZE), granularity=granularity, knows_holes=False)
    assert liar.map(granularity // 2, 5)[0] == DATA


def test_it_can_zero_never_always_or_now_and_then() -> None:
    def refusals(zeroes: float) -> int:
        liar = Liar(memory(size=SIZE), zeroes=zeroes, rng=random.Random(1))
        count = 0
        for _ in range(100):
            try:
                liar.zero(0, 10)
            except NotSupported:
                count += 1
        return count

    assert refusals(0.0) == 100
    assert refusals(1.0) == 0
    assert 20 < refusals(0.5) < 80


def test_discarded_bytes_are_garbage() -> None:
    liar = Liar(memory(size=SIZE))
    liar.discard(100, SIZE)
    assert snapshot(liar) == bytes(100) + bytes([POISON]) * (SIZE - 100)


def test_a_device_does_not_change_its_size() -> None:
    liar = Liar(memory(size=SIZE), fixed=True)
    assert not liar.grows_zeroed
    liar.truncate(SIZE // 2)
    assert liar.size == SIZE
    with pytest.raises(NotSupported):
        liar.truncate(SIZE + 1)
    with pytest.raises(AssertionError, match="does not grow"):
        liar.writev(SIZE - 1, parts(2))


def test_it_insists_on_blocks() -> None:
    liar = Liar(memory(size=SIZE), alignment=512)
    for offset, length in ((1, 512), (512, 100), (100, 100)):
        with pytest.raises(AssertionError, match="blocks of 512"):
            liar.readv(offset, parts(length))
        with pytest.raises(AssertionError, match="blocks of 512"):
            liar.writev(offset, parts(length))
        with pytest.raises(AssertionError, match="blocks of 512"):
            liar.zero(offset, length)
        with pytest.raises(AssertionError, match="blocks of 512"):
            liar.discard(offset, length)
    padded = storage(liar)
    assert isinstance(padded, Padded)
    padded.writev(700, [memoryview(b"data")])
    assert snapshot(padded)[699:705] == b"\0data\0"


def test_it_insists_on_requests_that_are_not_empty() -> None:
    liar = Liar(memory(size=SIZE))
    for action in (
        lambda: liar.readv(0, []),
        lambda: liar.writev(5, parts(0)),
        lambda: liar.readv(5, parts(1, 0)),
        lambda: liar.zero(0, 0),
        lambda: liar.map(0, 0),
    ):
        with pytest.raises(AssertionError):
            action()


def test_storage_pads_what_needs_it() -> None:
    node = memory(size=SIZE)
    assert storage(node) is node
    fault = FaultNode(node)
    fault.limits.max_transfer = 4096
    assert isinstance(storage(fault), Padded)
