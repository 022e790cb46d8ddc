# SPDX-License-Identifier: Apache-2.0
"""Callbacks before writes, the inline path that they close, and drains under fire."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

import blocklayer
from blocklayer.base.buffers import Vector
from blocklayer.base.errors import BlocklayerError, Closed, IoError, NotSupported, OutOfRange
from blocklayer.base.units import KiB, MiB
from blocklayer.core.batch import Request
from blocklayer.core.bitmap import DirtyBitmap
from blocklayer.core.disk import Disk
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Node
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.testing.recorder import Recorder
from tests.support.graphs import create, memory, open_disk, open_node, tree
from tests.support.waiting import wait_until

CLUSTER = 4 * KiB


def qed_file(path: Path) -> Disk:
    blocklayer.create(path, format="qed", size=MiB, cluster_size=CLUSTER)
    return blocklayer.open(path, mode="r+", discard="unmap")


# --- before a write -------------------------------------------------------------------------------


def verbs(disk: Disk) -> dict[str, Callable[[], object]]:
    """Everything that changes a disk, each at a place of its own: 8 KiB from a multiple of 16."""
    return {
        "write": lambda: disk.write(0, b"x" * 8192),
        "write of zeroes": lambda: disk.write(16384, bytes(8192)),
        "write_many": lambda: disk.write_many([(32768, b"x" * 4096), (36864, b"y" * 4096)]),
        "write_zeroes": lambda: disk.write_zeroes(49152, 8192),
        "discard": lambda: disk.discard(65536, 8192),
    }


@pytest.mark.parametrize("detect", ["off", "on"])
def test_the_callback_comes_before_anything_is_written(detect: str) -> None:
    recorder = Recorder(memory(size=MiB))
    node = open_node(tree(recorder, "raw"))
    with Disk(node, discard="unmap", detect_zeroes=detect) as disk:
        calls: list[tuple[int, int, int]] = []

        def before(offset: int, length: int) -> None:
            calls.append((offset, length, len(recorder.requests)))

        disk.add_before_write(before)
        for number, (name, verb) in enumerate(verbs(disk).items()):
            verb()
            assert calls == [(number * 16384, 8192, 0)], name
            assert recorder.take(), name
            calls.clear()


def test_a_batch_asks_for_each_run() -> None:
    recorder = Recorder(memory(size=MiB))
    with open_disk(recorder, "raw") as disk:
        calls: list[tuple[int, int]] = []
        disk.add_before_write(lambda offset, length: calls.append((offset, length)))
        disk.submit(
            [
                Request.write(0, b"x" * 512),
                Request.write(512, b"x" * 512),
                Request.write(4096, b"x" * 512),
                Request.write_zeroes(8192, 100),
                Request.read(65536, 512),
                Request.flush(),
            ]
        )
        assert calls == [(0, 1024), (4096, 512), (8192, 100)]


def test_raising_refuses_the_write() -> None:
    recorder = Recorder(memory(size=MiB))
    with open_disk(recorder, "raw") as disk:

        def before(offset: int, length: int) -> None:
            raise IoError("no", "there", 28, "copy", offset, length)

        bitmap = disk.add_bitmap("b", 512)
        disk.add_before_write(before)
        for name, verb in verbs(disk).items():
            with pytest.raises(IoError, match="copy failed on 'there'"):
                verb()
            assert recorder.take() == [], name
        assert list(bitmap.runs()) == []
        disk.remove_before_write(before)
        disk.write(0, b"x")


def test_a_refused_run_leaves_the_others_of_its_batch_alone() -> None:
    with open_disk(memory(size=MiB), "raw") as disk:

        def before(offset: int, length: int) -> None:
            if offset == 4096:
                raise IoError("no", "there", 28, "copy", offset, length)

        disk.add_before_write(before)
        batch = [Request.write(offset, b"x" * 512) for offset in (0, 4096, 4608, 8192)]
        disk.submit(batch)
        assert [request.error is None for request in batch] == [True, False, False, True]
        assert disk.read(4096, 1024) == bytes(1024)
        assert disk.read(8192, 512) == b"x" * 512


def test_an_error_of_another_kind_is_raised_and_nothing_stays_behind() -> None:
    with open_disk(memory(size=MiB), "raw") as disk:

        def before(offset: int, length: int) -> None:
            raise ValueError("a mistake")

        disk.add_before_write(before)
        for verb in verbs(disk).values():
            with pytest.raises(ValueError, match="a mistake"):
                verb()
        with pytest.raises(ValueError, match="a mistake"):
            disk.submit([Request.write(0, b"x")])
        disk.remove_before_write(before)  # drains: no request may be left in flight
        disk.write(0, b"x")


def test_callbacks_are_called_in_their_order_until_one_refuses() -> None:
    with open_disk(memory(size=MiB), "raw") as disk:
        calls: list[str] = []

        def refuse(offset: int, length: int) -> None:
            calls.append("two")
            raise NotSupported("no")

        disk.add_before_write(lambda offset, length: calls.append("one"))
        disk.add_before_write(refuse)
        disk.add_before_write(lambda offset, length: calls.append("three"))
        with pytest.raises(NotSupported):
            disk.write(0, b"x")
        assert calls == ["one", "two"]


def test_old_content_can_be_copied_before_it_is_lost(rng: random.Random) -> None:
    """What a backup does: in the end the copy and what was never written give the old disk."""
    node = memory()
    create(node, size=MiB, cluster_size=CLUSTER)
    old = rng.randbytes(MiB)
    with open_disk(node) as disk:
        disk.write(0, old)
        saved: dict[int, bytes] = {}

        def before(offset: int, length: int) -> None:
            for granule in range(offset // CLUSTER, -(-(offset + length) // CLUSTER)):
                if granule not in saved:
                    data = bytearray(CLUSTER)
                    disk.node.readv(granule * CLUSTER, [memoryview(data)])
                    saved[granule] = bytes(data)

        disk.add_before_write(before)
        for _ in range(100):
            offset = rng.randrange(MiB - 20000)
            length = rng.randrange(1, 20000)
            match rng.randrange(4):
                case 0:
                    disk.write(offset, rng.randbytes(length))
                case 1:
                    disk.write_zeroes(offset, length, unmap=True)
                case 2:
                    disk.discard(offset, length)
                case _:
                    disk.submit([Request.write(offset, b"1" * length), Request.write(0, b"2")])
        now = disk.read(0, MiB)
        parts = [
            saved.get(granule, now[granule * CLUSTER : (granule + 1) * CLUSTER])
            for granule in range(MiB // CLUSTER)
        ]
        assert b"".join(parts) == old


# --- the inline path ------------------------------------------------------------------------------


class Count(FilterNode):
    """Counts what does not take the inline path."""

    driver = "count"

    def __init__(self, child: Node) -> None:
        super().__init__(child)
        self.writes = 0

    @property
    def inline_descriptor(self) -> int | None:
        """The child's: requests may bypass this node."""
        return self.child.inline_descriptor

    def writev(self, offset: int, vector: Vector) -> None:
        self.writes += 1
        super().writev(offset, vector)


def test_the_inline_path_closes_and_opens_again(tmp_path: Path) -> None:
    qed_file(tmp_path / "disk.qed").close()
    path = {"driver": "file", "filename": str(tmp_path / "disk.qed")}
    count = Count(Opener(OpenFlags(read_only=False)).open_options(path))
    with Disk(open_node({"driver": "qed", "file": count}), discard="unmap") as disk:
        other = Disk(disk.node, owns_node=False)
        disk.write(0, b"x" * CLUSTER)
        disk.read(0, 1)

        def slow_writes() -> int:
            count.writes = 0
            for each in (disk, other):
                each.write(0, b"y" * 512)
                each.write_many([(512, b"z" * 512)])
            return count.writes

        assert slow_writes() == 0
        bitmap = disk.add_bitmap("b", 512)
        assert slow_writes() == 4
        assert list(bitmap.runs()) == [(0, 1024)]
        disk.add_before_write(print_nothing)
        other.remove_bitmap("b")
        assert slow_writes() == 4
        other.remove_before_write(print_nothing)
        assert slow_writes() == 0
        assert disk.node.hooks is None
        assert disk.read(0, 1024) == b"y" * 512 + b"z" * 512


def print_nothing(offset: int, length: int) -> None:
    """A callback."""


def test_a_failed_addition_leaves_the_inline_path_open() -> None:
    with open_disk(memory(size=MiB), "raw") as disk:
        with pytest.raises(BlocklayerError):
            disk.add_bitmap("")
        with pytest.raises(ValueError, match="not in list"):
            disk.remove_before_write(print_nothing)
        assert disk.node.hooks is None


# --- draining -------------------------------------------------------------------------------------


class Gauge(FilterNode):
    """Knows how many requests are inside, and lets each stay for a moment."""

    driver = "gauge"

    def __init__(self, child: Node) -> None:
        super().__init__(child)
        self.inside = 0
        self.passed = 0
        self._lock = threading.Lock()

    def _stay(self, move: Callable[[], None]) -> None:
        with self._lock:
            self.inside += 1
        try:
            time.sleep(0.0002)
            move()
        finally:
            with self._lock:
                self.inside -= 1
                self.passed += 1

    def readv(self, offset: int, vector: Vector) -> None:
        self._stay(lambda: self.child.readv(offset, vector))

    def writev(self, offset: int, vector: Vector) -> None:
        self._stay(lambda: self.child.writev(offset, vector))

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        self._stay(lambda: self.child.zero(offset, length, flags))

    def flush(self) -> None:
        self._stay(self.child.flush)


class Fire:
    """Threads that read and write their own parts of a disk, and check what they read."""

    def __init__(self, disk: Disk, threads: int, part: int) -> None:
        self.disk = disk
        self.stop = threading.Event()
        self.failures: list[BaseException] = []
        self.counts = [0] * threads
        self.threads = [
            threading.Thread(target=self._run, args=(number, part)) for number in range(threads)
        ]

    def _run(self, number: int, part: int) -> None:
        rng = random.Random(number)
        base, mine = number * part, bytearray(part)
        try:
            while not self.stop.is_set():
                offset = rng.randrange(part - 600)
                length = rng.randrange(1, 600)
                data = rng.randbytes(length)
                match rng.randrange(4):
                    case 0:
                        self.disk.write(base + offset, data)
                        mine[offset : offset + length] = data
                    case 1:
                        self.disk.submit([Request.write(base + offset, data), Request.flush()])
                        mine[offset : offset + length] = data
                    case 2:
                        self.disk.write_zeroes(base + offset, length)
                        mine[offset : offset + length] = bytes(length)
                    case _:
                        found = self.disk.read(base + offset, length)
                        assert found == mine[offset : offset + length]
                self.counts[number] += 1
            assert self.disk.read(base, part) == mine
        except BaseException as failure:
            self.failures.append(failure)

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert not self.failures, self.failures


def test_drains_under_fire() -> None:
    """Inside, nothing is in flight on any disk of the node; afterwards everything goes on."""
    gauge = Gauge(memory())
    create(gauge.child, size=MiB, cluster_size=CLUSTER)
    with open_disk(gauge) as disk:
        other = Disk(disk.node, owns_node=False)
        with Fire(disk, 3, 64 * KiB) as fire:
            for number in range(25):
                drainer = disk if number % 2 else other
                with drainer.drain():
                    assert gauge.inside == 0
                    passed, counts = gauge.passed, list(fire.counts)
                    time.sleep(0.004)
                    assert (gauge.passed, gauge.inside) == (passed, 0)
                    # A thread may count what had ended before the drain began.
                    assert all(b - a <= 1 for a, b in zip(counts, fire.counts, strict=True))
                wait_until_above(gauge, passed + 5)


def wait_until_above(gauge: Gauge, count: int) -> None:
    wait_until(lambda: gauge.passed > count, every=0.001)


def wait_for_marks(bitmap: DirtyBitmap) -> None:
    wait_until(lambda: bitmap.count, every=0.001)


def test_drains_of_the_inline_path(tmp_path: Path) -> None:
    with qed_file(tmp_path / "disk.qed") as disk:
        disk.write(0, b"x" * 3 * 64 * KiB)
        disk.write(0, bytes(3 * 64 * KiB))
        with Fire(disk, 3, 64 * KiB) as fire:
            for _ in range(40):
                with disk.drain():
                    assert not disk.node.tracker.inflight
                    assert not disk.node.tracker.requests
                    before = (tmp_path / "disk.qed").read_bytes()
                    time.sleep(0.002)
                    assert (tmp_path / "disk.qed").read_bytes() == before
                time.sleep(0.001)
            assert all(fire.counts)


def test_drains_nest_and_wait_for_each_other() -> None:
    gauge = Gauge(memory(size=MiB))
    with open_disk(gauge, "raw") as disk, Fire(disk, 2, 64 * KiB):
        with disk.drain(), disk.drain():
            assert gauge.inside == 0
        done: list[int] = []

        def drain(number: int) -> None:
            for _ in range(10):
                with disk.drain():
                    assert gauge.inside == 0
                    time.sleep(0.0005)
            done.append(number)

        threads = [threading.Thread(target=drain, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(done) == [0, 1, 2, 3]


def test_hooks_and_resizes_come_and_go_under_fire() -> None:
    gauge = Gauge(memory())
    create(gauge.child, size=MiB, cluster_size=CLUSTER)
    with open_disk(gauge) as disk, Fire(disk, 3, 64 * KiB):
        for number in range(15):
            bitmap = disk.add_bitmap(f"b{number}", 512)
            disk.resize(MiB + number * CLUSTER)
            wait_for_marks(bitmap)
            disk.remove_bitmap(f"b{number}")
            kept = bitmap.count
            time.sleep(0.001)
            assert bitmap.count == kept


def test_what_waits_for_a_drain_is_refused_when_it_ends_with_a_smaller_disk(
    tmp_path: Path,
) -> None:
    """The range is checked when the request begins, not when somebody asks for it."""
    changes: list[Callable[[Disk], object]] = [
        lambda disk: disk.write(MiB - 512, b"x" * 512),
        lambda disk: disk.write_many([(MiB - 512, b"x" * 512)]),
        lambda disk: disk.write_zeroes(MiB - 512, 512),
        lambda disk: disk.discard(MiB - 512, 512),
        lambda disk: disk.read(MiB - 512, 512),
        lambda disk: disk.read_into(MiB - 512, bytearray(512)),
        lambda disk: disk.read_many([(MiB - 512, 512)]),
    ]
    for number, change in enumerate(changes):
        with qed_file(tmp_path / f"{number}.qed") as disk:
            asked = Asked(disk, change)
            with disk.drain():
                asked.start()
                time.sleep(0.02)
                disk.resize(64 * KiB)
            asked.join()
            assert isinstance(asked.error, OutOfRange), number
        assert blocklayer.check(tmp_path / f"{number}.qed").clean


class Asked(threading.Thread):
    """A request from a thread of its own, and its error."""

    def __init__(self, disk: Disk, change: Callable[[Disk], object]) -> None:
        super().__init__()
        self.error: BlocklayerError | None = None
        self._disk = disk
        self._change = change

    def run(self) -> None:
        try:
            self._change(self._disk)
        except BlocklayerError as error:
            self.error = error


def test_closing_under_fire() -> None:
    """Everybody is told; nobody hangs, and nothing is in flight when the storage is closed."""
    gauge = Gauge(memory())
    create(gauge.child, size=MiB, cluster_size=CLUSTER)
    disk = open_disk(gauge)
    fire = Fire(disk, 4, 64 * KiB)
    for thread in fire.threads:
        thread.start()
    time.sleep(0.05)
    disk.close()
    assert gauge.inside == 0
    for thread in fire.threads:
        thread.join(20)
        assert not thread.is_alive()
    assert [type(failure) for failure in fire.failures] == [Closed] * 4
    disk.close()
    with pytest.raises(Closed):
        disk.read(0, 1)
