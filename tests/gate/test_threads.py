# SPDX-License-Identifier: Apache-2.0
"""All verbs from many threads at once, over storage of any alignment, against a model.

Each thread has sectors of its own, which share clusters and blocks with those of the others:

    sector   0 1 2 3 4 5 6 7 ...
    thread   A B C D A B C D ...      in stripes
    thread   A A A A B B B B ...      or in parts of odd lengths
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from blocklayer.base.errors import BlocklayerError
from blocklayer.base.options import OptionTree
from blocklayer.base.units import KiB, MiB
from blocklayer.core.batch import READ, Request
from blocklayer.core.disk import Disk
from blocklayer.core.node import Node
from blocklayer.testing.liar import Liar, storage
from blocklayer.testing.recorder import Recorder
from tests.support.graphs import check, create, memory, open_node, tree

CLUSTER = 4 * KiB
SIZE = 384 * KiB + 512
THREADS = 4
STEPS = 120
PIECE = 700
"""Bytes of a stripe: no multiple of any alignment."""


class Worker:
    """Random verbs on the stripes of one thread; knows what they must hold."""

    def __init__(self, disk: Disk, number: int, content: bytearray, seed: int) -> None:
        self.disk = disk
        self.number = number
        self.content = content
        self.rng = random.Random(seed + number)
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._guarded)

    def _guarded(self) -> None:
        try:
            for _ in range(STEPS):
                self._step()
        except BaseException as failure:
            self.failure = failure

    def piece(self) -> tuple[int, int]:
        """A part of a stripe that is this thread's."""
        stripes = SIZE // PIECE // THREADS
        start = (self.rng.randrange(stripes) * THREADS + self.number) * PIECE
        skip = self.rng.choice([0, 0, self.rng.randrange(PIECE)])
        return start + skip, self.rng.randrange(PIECE - skip) + 1

    def changed(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def data(self, length: int) -> bytes:
        return bytes(length) if self.rng.random() < 0.2 else self.rng.randbytes(length)

    def _step(self) -> None:
        offset, length = self.piece()
        match self.rng.randrange(9):
            case 0 | 1:
                data = self.data(length)
                self.disk.write(offset, data, fua=self.rng.random() < 0.1)
                self.changed(offset, data)
            case 2:
                batch = []
                for _ in range(self.rng.randrange(1, 6)):
                    offset, length = self.piece()
                    batch.append((offset, self.data(length)))
                self.disk.write_many(batch)
                for offset, data in batch:
                    self.changed(offset, data)
            case 3:
                self.submit()
            case 4:
                flags = {self.rng.choice(["unmap", "allocate"]): self.rng.random() < 0.6}
                self.disk.write_zeroes(offset, length, **flags)
                self.changed(offset, bytes(length))
            case 5:
                # Discards what nobody may miss: afterwards it is written.
                data = self.data(length)
                self.disk.discard(offset, length)
                self.disk.write(offset, data)
                self.changed(offset, data)
            case 6:
                self.disk.flush()
            case 7:
                pieces = [self.piece() for _ in range(3)]
                for found, (at, count) in zip(self.disk.read_many(pieces), pieces, strict=True):
                    assert found == self.content[at : at + count]
            case _:
                assert self.disk.read(offset, length) == self.content[offset : offset + length]

    def submit(self) -> None:
        batch = []
        for _ in range(self.rng.randrange(1, 8)):
            offset, length = self.piece()
            batch.append(
                self.rng.choice(
                    [
                        Request.write(offset, self.data(length)),
                        Request.write_zeroes(offset, length),
                        Request.read(offset, length),
                        Request.flush(),
                    ]
                )
            )
        self.disk.submit(batch)
        for request in batch:
            if request.error is not None:
                raise request.error
            if request.kind == READ:
                assert request.result == bytes(self.content[request.offset : request.end])
            elif request.length:
                data = bytes(request.length) if request.data is None else bytes(request.data)
                self.changed(request.offset, data)


def fight(disk: Disk, content: bytearray, seed: int) -> None:
    """Let all threads work, with drains and bitmaps coming and going; compare in the end."""
    workers = [Worker(disk, number, content, seed) for number in range(THREADS)]
    for worker in workers:
        worker.thread.start()
    number = 0
    while any(worker.thread.is_alive() for worker in workers):
        with disk.drain():
            found = disk.node
            snapshot = bytearray(SIZE)
            found.readv(0, [memoryview(snapshot)])
        disk.add_bitmap(f"b{number}", 512)
        list(disk.extents())
        disk.remove_bitmap(f"b{number}")
        number += 1
    for worker in workers:
        worker.thread.join()
        if worker.failure is not None:
            raise worker.failure
    assert disk.read(0, SIZE) == content


def raw_image(wrap: Callable[[Node], Node], rng: random.Random) -> tuple[OptionTree, bytearray]:
    node = memory(size=SIZE)
    content = bytearray(rng.randbytes(SIZE))
    node.writev(0, [memoryview(content)])
    return {"driver": "raw", "file": storage(wrap(node))}, content


def qed_image(wrap: Callable[[Node], Node], rng: random.Random) -> tuple[OptionTree, bytearray]:
    node = memory()
    create(node, size=SIZE, cluster_size=CLUSTER, table_size=1)
    return {"driver": "qed", "file": storage(wrap(node)), "backing": None}, bytearray(SIZE)


def overlay_image(wrap: Callable[[Node], Node], rng: random.Random) -> tuple[OptionTree, bytearray]:
    base = memory(size=SIZE - 30000)
    content = bytearray(rng.randbytes(base.size))
    base.writev(0, [memoryview(content)])
    node = memory()
    create(node, size=SIZE, cluster_size=CLUSTER, table_size=1, backing_file="below")
    below = tree(base, "raw")
    options = {"driver": "qed", "file": storage(wrap(node)), "backing": below}
    return options, content + bytes(30000)


IMAGES = {"raw": raw_image, "qed": qed_image, "overlay": overlay_image}


@pytest.mark.parametrize("detect", ["off", "unmap"])
@pytest.mark.parametrize("alignment", [1, 512, 4096])
@pytest.mark.parametrize("kind", IMAGES)
def test_all_verbs_from_many_threads(seed: int, kind: str, alignment: int, detect: str) -> None:
    rng = random.Random(seed)
    # Discards of raw storage reach into the blocks of neighbours only where they are whole.
    options, content = IMAGES[kind](
        lambda node: Liar(node, rng=rng, alignment=alignment, zeroes=0.5, delay=0.0002), rng
    )
    with Disk(open_node(options), discard="unmap", detect_zeroes=detect) as disk:
        fight(disk, content, seed)
    if kind != "raw":
        file = disk.node.children["file"]
        while (below := file.children.get("file")) is not None:
            file = below
        assert check(file).clean


@pytest.mark.parametrize("kind", ["qed", "overlay"])
def test_all_verbs_through_a_throttle_that_does_not_limit(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    options, content = IMAGES[kind](Recorder, rng)
    file = options["file"]
    options["file"] = {"driver": "throttle", "file": file, "bps-total": 1 << 40}
    with Disk(open_node(options), discard="unmap") as disk:
        fight(disk, content, seed)


def test_threads_that_fill_the_same_clusters_share_them(seed: int) -> None:
    """Every cluster is written by all threads at once; none is allocated twice."""
    node = memory()
    create(node, size=MiB, cluster_size=64 * KiB)
    size = node.size
    liar = Liar(node, rng=random.Random(seed), delay=0.0004)
    failures: list[BaseException] = []
    with Disk(open_node(tree(liar)), discard="unmap") as disk:
        barrier = threading.Barrier(THREADS)

        def run(number: int) -> None:
            try:
                for cluster in range(16):
                    barrier.wait(20)
                    offset = cluster * 64 * KiB + number * 16 * KiB
                    disk.write(offset, bytes([number + 1]) * 16 * KiB)
            except (BlocklayerError, threading.BrokenBarrierError) as failure:
                failures.append(failure)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        cluster = b"".join(bytes([number + 1]) * 16 * KiB for number in range(THREADS))
        assert disk.read(0, MiB) == cluster * 16
    assert check(node).clean
    assert node.size - size == 16 * 64 * KiB + 4 * 64 * KiB  # the clusters, and one table
