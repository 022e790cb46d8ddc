# SPDX-License-Identifier: Apache-2.0
"""Fleecing: who reads an overlay of a disk that is written to sees the moment of the backup."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.buffers import Vector
from blocklayer.base.errors import InvalidArgument, IoError
from blocklayer.base.extent import OPAQUE, ZERO
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.filter import FilterNode
from blocklayer.core.graph_disk import GraphDisk
from blocklayer.core.node import Mapped, Node
from blocklayer.core.point_in_time import PointInTime
from blocklayer.jobs import backup
from blocklayer.jobs.backup import BackupJob
from blocklayer.jobs.errors import WrongState
from blocklayer.protocols.memory import MemoryNode
from blocklayer.testing.model import ModelDisk
from tests.jobs.scenes import Stage, stage, wait_end
from tests.jobs.test_mirror_model import Flaky, seeds
from tests.support.graphs import snapshot

SIZE = 2 * MiB + 512
READERS = 3
GUESTS = 2
ROUNDS = 150


class Slow(FilterNode):
    """Takes its time before it looks: so guests can overtake a reader."""

    def __init__(self, child: Node) -> None:
        super().__init__(child)
        self.seconds = 0.0

    def _wait(self) -> None:
        if self.seconds:
            time.sleep(random.random() * self.seconds)

    def readv(self, offset: int, vector: Vector) -> None:
        self._wait()
        super().readv(offset, vector)

    def map(self, offset: int, length: int) -> Mapped:
        self._wait()
        return super().map(offset, length)


def fill(node: Node, chooser: random.Random) -> ModelDisk:
    """Data here and there; the model of what the overlay has to show."""
    for _ in range(8):
        offset = chooser.randrange(SIZE - 100 * KiB)
        node.writev(offset, [memoryview(chooser.randbytes(chooser.randrange(1, 100 * KiB)))])
    kept = ModelDisk(SIZE)
    kept.write(0, snapshot(node))
    return kept


def overlay(here: Stage, folder: Path, name: str = "tmp", below: str = "src", **more: Any) -> Node:
    """An empty QED image over a node."""
    path = folder / f"{name}.qed"
    blocklayer.create(str(path), size=SIZE, format="qed", **more)
    file = {"driver": "file", "filename": str(path)}
    return here.graph.add({"driver": "qed", "node-name": name, "file": file, "backing": below})


def begin(here: Stage, sync: str = "none", target: str = "tmp", **options: Any) -> BackupJob:
    named = {"job_id": "b", "device": "src", "target": target, "sync": sync} | options
    return backup.start(here.graph, here.jobs, **named)


def end(job: BackupJob) -> None:
    with contextlib.suppress(WrongState):  # there was nothing left to copy
        job.cancel(force=True)
    wait_end(job)


def change(disk: Disk, chooser: random.Random) -> None:
    """What a guest does."""
    offset = chooser.randrange(SIZE)
    length = min(chooser.randrange(1, 90 * KiB), SIZE - offset)
    verb = chooser.randrange(4)
    if verb < 2:
        disk.write(offset, chooser.randbytes(length))
    elif verb == 2:
        disk.write_zeroes(offset, length)
    else:
        disk.discard(offset, length)


def look(disk: Disk, kept: ModelDisk, chooser: random.Random) -> None:
    """What a client of an export does, in the ways that exports have."""
    offset = chooser.randrange(SIZE)
    length = min(chooser.randrange(1, 200 * KiB), SIZE - offset)
    way = chooser.randrange(3)
    if way == 0:
        kept.require(offset, disk.read(offset, length))
    elif way == 1:
        buffer = bytearray(length)
        view, done = memoryview(buffer), 0
        for count, zero in disk.read_sparse(offset, view):
            if zero:
                view[done : done + count] = bytes(count)
            done += count
        kept.require(offset, bytes(buffer))
    else:
        for extent in disk.extents(offset, length):
            if extent.zero:
                assert not any(kept.read(extent.offset, extent.length)), extent


@contextmanager
def threads(*actions: Any) -> Iterator[None]:
    """Each action again and again, in a thread of its own, until all is over."""
    over = threading.Event()
    failures: list[BaseException] = []

    def work(action: Any, number: int) -> None:
        chooser = random.Random(number)
        try:
            while not over.is_set():
                action(chooser)
                time.sleep(0.0002)
        except BaseException as error:
            failures.append(error)
            over.set()

    running = [
        threading.Thread(target=work, args=(action, number), daemon=True)
        for number, action in enumerate(actions)
    ]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in running:
            thread.join(20)
    if failures:
        raise failures[0]


@contextmanager
def disks(here: Stage, name: str, count: int, *, writable: bool = False) -> Iterator[list[Any]]:
    opened: list[GraphDisk] = [here.graph.open_disk(name, writable=writable) for _ in range(count)]
    try:
        yield opened
    finally:
        for disk in opened:
            disk.close()


@pytest.mark.parametrize("cluster", [4 * KiB, 64 * KiB, MiB])
@pytest.mark.parametrize("seed", seeds(0, 6))
def test_readers_see_the_moment(seed: int, cluster: int, tmp_path: Path) -> None:
    chooser = random.Random(seed)
    with stage() as here:
        source = Slow(MemoryNode(SIZE))
        here.put("src", source)
        kept = fill(source, chooser)
        overlay(here, tmp_path, cluster_size=cluster)
        with disks(here, "src", GUESTS, writable=True) as guests:
            job = begin(here)
            with disks(here, "tmp", READERS) as readers:
                source.seconds = 0.004
                with threads(
                    *(lambda chooser, disk=disk: change(disk, chooser) for disk in guests),
                    *(lambda chooser, disk=disk: look(disk, kept, chooser) for disk in readers),
                ):
                    for _ in range(ROUNDS):
                        look(readers[0], kept, chooser)
                source.seconds = 0
                kept.require(0, readers[0].read(0, SIZE))
                assert snapshot(source) != bytes(kept.content)
            end(job)
        assert job.error == "Operation canceled"


@pytest.mark.parametrize("seed", seeds(10, 4))
def test_a_disk_that_is_an_overlay_itself(seed: int, tmp_path: Path) -> None:
    """In files, where reads of others may be sent by the kernel, or copied there."""
    chooser = random.Random(seed)
    (tmp_path / "base.raw").write_bytes(chooser.randbytes(MiB) + bytes(SIZE - MiB))
    source = str(tmp_path / "src.qed")
    base = str(tmp_path / "base.raw")
    blocklayer.create(source, size=SIZE, format="qed", backing=base, backing_format="raw")
    with stage() as here:
        file = {"driver": "file", "filename": source}
        node = here.graph.add({"driver": "qed", "node-name": "src", "file": file})
        kept = fill(node, chooser)
        overlay(here, tmp_path)
        with disks(here, "src", GUESTS, writable=True) as guests:
            job = begin(here)
            with disks(here, "tmp", READERS) as readers:
                told: list[object] = []
                assert not readers[0].with_places(0, 4 * KiB, told.append)
                assert not told
                with threads(
                    *(lambda chooser, disk=disk: change(disk, chooser) for disk in guests),
                    *(lambda chooser, disk=disk: look(disk, kept, chooser) for disk in readers),
                ):
                    for _ in range(ROUNDS):
                        look(readers[0], kept, chooser)
                kept.require(0, readers[0].read(0, SIZE))
            end(job)


def test_one_read_that_is_overtaken(tmp_path: Path) -> None:
    """The overlay has nothing there; then a guest changes it; then the reader gets to it."""
    with stage() as here:
        source = MemoryNode(SIZE)
        source.writev(0, [memoryview(b"o" * SIZE)])
        here.put("src", source)
        tmp = overlay(here, tmp_path)
        guest = here.graph.open_disk("src", writable=True)
        job = begin(here)
        below = tmp.children["backing"]
        assert isinstance(below, PointInTime)
        guest.write(70 * KiB, b"n" * 100)
        read = bytearray(100)
        below.readv(70 * KiB - 50, [memoryview(read)])
        assert bytes(read) == b"o" * 100
        assert below.map(70 * KiB, 10)[0] == OPAQUE, "no place of new content is told"
        guest.write_zeroes(256 * KiB, 64 * KiB)
        assert source.map(256 * KiB, KiB)[0] == ZERO
        assert below.map(256 * KiB, KiB)[0] == OPAQUE, "these are new zeroes"
        guest.close()
        end(job)


def test_zeroes_of_the_moment_are_zeroes_of_the_overlay(tmp_path: Path) -> None:
    """The overlay reads as zeroes before they are copied to it, and must not rely on that."""
    for cluster in (4 * KiB, MiB):
        for sync in ("none", "full"):
            with stage() as here:
                here.put("src", MemoryNode(SIZE))
                overlay(here, tmp_path, f"t{cluster}{sync}", cluster_size=cluster)
                guest = here.graph.open_disk("src", writable=True)
                job = begin(here, sync, f"t{cluster}{sync}", speed=1 if sync == "full" else 0)
                for offset in range(1000, SIZE, 100 * KiB):
                    guest.write(offset, b"new")
                with here.graph.open_disk(f"t{cluster}{sync}") as reader:
                    assert not any(reader.read(0, SIZE))
                guest.close()
                end(job)


def test_a_full_backup_to_an_overlay(tmp_path: Path) -> None:
    with stage() as here:
        source = MemoryNode(SIZE)
        kept = fill(source, random.Random(3))
        here.put("src", source)
        tmp = overlay(here, tmp_path)
        job = begin(here, "full", speed=MiB)
        with disks(here, "src", 1, writable=True) as (guest,), disks(here, "tmp", 1) as (reader,):
            for number in range(20):
                change(guest, random.Random(number))
                look(reader, kept, random.Random(number))
            job.set_speed(0)
            wait_end(job)
            assert job.error is None
            guest.write(0, b"n" * SIZE)
            kept.require(0, reader.read(0, SIZE))
        assert not isinstance(tmp.children["backing"], PointInTime)


def test_layers_in_between(tmp_path: Path) -> None:
    """The target lies over an overlay of the source; readers of both see the moment."""
    with stage() as here:
        source = MemoryNode(SIZE)
        source.writev(0, [memoryview(b"o" * SIZE)])
        here.put("src", source)
        here.graph.add({"driver": "raw", "node-name": "whole", "file": "src"})
        overlay(here, tmp_path, "low", "whole")
        overlay(here, tmp_path, "tmp", "low")
        job = begin(here)
        with here.graph.open_disk("src", writable=True) as guest:
            guest.write(0, b"n" * SIZE)
        for name in ("tmp", "low"):
            with here.graph.open_disk(name) as reader:
                assert reader.read(0, SIZE) == b"o" * SIZE
        end(job)


def test_when_nothing_is_kept_any_more_reading_is_an_error(tmp_path: Path) -> None:
    """New content must not follow old: neither after a cancellation, nor after a failure."""
    for fails in (False, True):
        with stage() as here:
            source = MemoryNode(SIZE)
            source.writev(0, [memoryview(b"o" * SIZE)])
            here.put("src", source)
            name = f"tmp{fails}"
            flaky = Flaky(MemoryNode(4 * MiB), 1)
            here.put("store", flaky)
            blocklayer.create(str(tmp_path / name), size=SIZE, format="qed")
            flaky.writev(0, [memoryview((tmp_path / name).read_bytes())])
            options = {"driver": "qed", "node-name": name, "file": "store", "backing": "src"}
            here.graph.add(options)
            job = begin(here, target=name)
            guest, reader = here.graph.open_disk("src", writable=True), here.graph.open_disk(name)
            guest.write(0, b"new")
            if fails:
                flaky.failing = 1.0
                guest.write(MiB, b"n")  # a guest does not suffer
                assert wait_end(job).error == "Input/output error"
                flaky.failing = 0.0
            else:
                end(job)
            guest.write(MiB, b"n")
            assert reader.read(0, 3) == b"ooo"
            with pytest.raises(IoError, match="has ended") as caught:
                reader.read(MiB, 1)
            assert caught.value.errno == errno.EIO
            for disk in (guest, reader):
                disk.close()
            again = begin(here, target=name)  # another moment
            with here.graph.open_disk(name) as reader:
                assert reader.read(MiB, 1) == b"n"
            end(again)


def test_nobody_writes_past_the_job(tmp_path: Path) -> None:
    """A node between the overlay and the source stays where it is: its writes would be missed."""
    with stage() as here:
        source = MemoryNode(SIZE)
        here.put("src", source)
        here.graph.add({"driver": "raw", "node-name": "whole", "file": "src"})
        overlay(here, tmp_path, "tmp", "whole")
        with here.graph.open_disk("whole", writable=True) as writer:
            with pytest.raises(InvalidArgument, match="permissions 'write' are both required by"):
                begin(here)
            assert here.jobs.all() == []
            writer.write(0, b"1")
        job = begin(here)
        with pytest.raises(InvalidArgument, match="permissions 'write' are both required by"):
            here.graph.open_disk("whole", writable=True)
        with here.graph.open_disk("src", writable=True) as guest:
            guest.write(0, b"2")
        with here.graph.open_disk("tmp") as reader:
            assert reader.read(0, 1) == b"1"
        end(job)


def test_what_only_a_backing_image_can_do(tmp_path: Path) -> None:
    with stage() as here:
        here.put("src", MemoryNode(SIZE))
        here.graph.add({"driver": "raw", "node-name": "over", "file": "src"})
        with pytest.raises(InvalidArgument, match="more than as its backing image"):
            begin(here, target="over")
        assert here.jobs.all() == []
