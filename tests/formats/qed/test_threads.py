# SPDX-License-Identifier: Apache-2.0
"""Many threads on one QED image: neighbours in one cluster, and everything under fire."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import Closed, OutOfRange
from blocklayer.base.units import SECTOR, KiB, MiB
from blocklayer.core.batch import Request
from blocklayer.core.disk import Disk
from blocklayer.core.node import Node
from blocklayer.core.padding import Padded
from blocklayer.formats.qed import driver
from blocklayer.testing.liar import Liar
from blocklayer.testing.model import ModelDisk
from tests.support.crew import run_together
from tests.support.graphs import check, create, memory, open_disk, tree

THREADS = 6
CLUSTER = 4 * KiB
STORAGES = ("memory", "slow", "blocks of 512", "blocks of 4096", "file", "direct file")


class Bench:
    """An image, perhaps over another, on one kind of storage."""

    def __init__(self, kind: str, folder: Path, seed: int, *, overlay: bool, size: int) -> None:
        self.kind = kind
        self.rng = random.Random(seed)
        self.size = size
        self.folder = folder
        self.base = ModelDisk(size - 3 * SECTOR) if overlay else None
        self.model = ModelDisk(size, backing=self._make_base())
        self.nodes: list[Node] = []
        self._make("top", size, "base" if overlay else None)

    @property
    def on_files(self) -> bool:
        return self.kind.endswith("file")

    def _make_base(self) -> ModelDisk | None:
        if self.base is None:
            return None
        self.base_node = memory("base")
        self.base.write(0, self.rng.randbytes(self.base.size))
        if self.on_files:
            (self.folder / "base").write_bytes(self.base.content)
        else:
            self.base_node.writev(0, [memoryview(bytes(self.base.content))])
        return self.base

    def _make(self, name: str, size: int, backing: str | None) -> None:
        if self.on_files:
            blocklayer.create(
                self.folder / name,
                format="qed",
                size=size,
                cluster_size=CLUSTER,
                table_size=1,
                backing=backing,
                backing_format="raw" if backing else None,
            )
            return
        self.top = memory(name)
        options = {"backing_file": backing, "backing_fmt": "raw"} if backing else {}
        create(self.top, size=size, cluster_size=CLUSTER, table_size=1, **options)

    def wrapped(self, node: Node) -> Node:
        if self.kind == "memory":
            return node
        alignment = int(self.kind.split()[-1]) if self.kind.startswith("blocks") else 1
        return Liar(node, rng=self.rng, alignment=alignment, delay=0.0005, garbles=False)

    def open(self) -> Disk:
        if self.on_files:
            cache = "none" if self.kind == "direct file" else "writeback"
            return blocklayer.open(
                self.folder / "top", mode="r+", format="qed", cache=cache, discard="unmap"
            )
        backing = tree(self.wrapped(self.base_node), "raw") if self.base is not None else None
        return open_disk(self.wrapped(self.top), backing=backing)

    @contextmanager
    def opened(self) -> Iterator[Disk]:
        """A disk, compared with the model, closed, checked and compared again."""
        with self.open() as disk:
            yield disk
            self.model.check(disk)
        if self.on_files:
            result = blocklayer.check(self.folder / "top")
        else:
            result = check(self.top)
        assert result.clean, result
        with self.open() as disk:
            self.model.check(disk)


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["alone", "overlay"])
def overlay(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def stripes(size: int, width: int, owner: int) -> list[tuple[int, int]]:
    """Every THREADS-th stripe of a disk: (offset, length)."""
    starts = range(owner * width, size, THREADS * width)
    return [(start, min(width, size - start)) for start in starts]


class Worker:
    """Does anything to its own stripes, and knows what is in them."""

    def __init__(
        self, disk: Disk, model: ModelDisk, owned: list[tuple[int, int]], seed: int
    ) -> None:
        self.disk, self.model, self.owned = disk, model, owned
        self.rng = random.Random(seed)

    def part(self) -> tuple[int, int]:
        offset, length = self.rng.choice(self.owned)
        start = self.rng.choice([0, 0, self.rng.randrange(length)])
        return offset + start, self.rng.choice(
            [length - start, self.rng.randint(1, length - start)]
        )

    def parts(self) -> list[tuple[int, int]]:
        """Disjoint."""
        return self.rng.sample(self.owned, min(len(self.owned), 4))

    def step(self) -> None:
        verbs = [self.write] * 4 + [self.write_many, self.submit, self.zero, self.read, self.read]
        self.rng.choice([*verbs, self.flush])()

    def write(self) -> None:
        offset, length = self.part()
        data = self.rng.randbytes(length)
        self.disk.write(offset, data, fua=self.rng.random() < 0.05)
        self.model.write(offset, data)

    def write_many(self) -> None:
        writes = [(offset, self.rng.randbytes(length)) for offset, length in self.parts()]
        self.disk.write_many(writes)
        self.model.write_many(writes)

    def submit(self) -> None:
        requests = []
        for offset, length in self.parts():
            if self.rng.random() < 0.3:
                requests.append(Request.write_zeroes(offset, length))
            else:
                requests.append(Request.write(offset, self.rng.randbytes(length)))
        self.disk.submit(requests)
        for request in requests:
            if request.error is not None:
                raise request.error
            if request.data is None:
                self.model.write_zeroes(request.offset, request.length)
            else:
                self.model.write(request.offset, request.data)

    def zero(self) -> None:
        offset, length = self.part()
        flags = {self.rng.choice(["unmap", "allocate"]): self.rng.random() < 0.5}
        self.disk.write_zeroes(offset, length, **flags)
        self.model.write_zeroes(offset, length)

    def read(self) -> None:
        offset, length = self.part()
        self.model.require(offset, self.disk.read(offset, length))

    def flush(self) -> None:
        self.disk.flush()


@pytest.mark.parametrize("turn", range(3))
def test_neighbours_in_one_new_cluster(
    tmp_path: Path, seed: int, storage: str, overlay: bool, turn: int
) -> None:
    """Each thread writes its own bytes of the same clusters, all at one moment."""
    bench = Bench(storage, tmp_path, seed + turn, overlay=overlay, size=64 * CLUSTER + SECTOR)
    width = CLUSTER // THREADS
    with bench.opened() as disk:
        for cluster in bench.rng.sample(range(63), 6):
            parts = [
                (cluster * CLUSTER + i * width + bench.rng.randrange(9), bench.rng.randbytes(600))
                for i in range(THREADS)
            ]
            run_together(*(lambda part=part: disk.write(*part) for part in parts))
            bench.model.write_many(parts)


@pytest.mark.parametrize("width", [700, CLUSTER, 3 * CLUSTER + 5])
def test_disjoint_stripes(
    tmp_path: Path, seed: int, storage: str, overlay: bool, width: int
) -> None:
    """Stripes that share clusters and tables, with everything one can do to them."""
    size = THREADS * width * 30 + 3 * SECTOR
    bench = Bench(storage, tmp_path, seed, overlay=overlay, size=size // SECTOR * SECTOR)
    steps = 60 if storage in ("memory", "file") else 25
    with bench.opened() as disk:
        workers = [
            Worker(disk, bench.model, stripes(bench.size, width, i), bench.rng.getrandbits(32))
            for i in range(THREADS)
        ]
        run_together(*(lambda each=each: [each.step() for _ in range(steps)] for each in workers))


def test_readers_see_old_or_new(tmp_path: Path, seed: int, storage: str, overlay: bool) -> None:
    """While a sector is written over and over, whoever reads it sees one of its contents, whole."""
    bench = Bench(storage, tmp_path, seed, overlay=overlay, size=40 * CLUSTER)
    # Aligned sectors: what lies within one is written at once by every storage here.
    sectors = [cluster * CLUSTER + 3 * SECTOR for cluster in range(0, 40, 5)]
    contents = [bytes([value]) * SECTOR for value in (1, 2, 3)]
    allowed = {sector: {bench.model.read(sector, SECTOR), *contents} for sector in sectors}
    done = threading.Event()
    with bench.opened() as disk:

        def write() -> None:
            for content in contents:
                for sector in sectors:
                    disk.write(sector, content)
            done.set()

        def read() -> None:
            while not done.is_set():
                for sector in sectors:
                    found = disk.read(sector, SECTOR)
                    assert found in allowed[sector], f"{sector}: {found[:8].hex()}"

        run_together(write, read, read)
        for sector in sectors:
            bench.model.write(sector, contents[-1])


def test_resize_under_fire(tmp_path: Path, seed: int, storage: str, overlay: bool) -> None:
    """Requests beyond the end are refused, and never make the disk what it is not."""
    size = 600 * CLUSTER
    bench = Bench(storage, tmp_path, seed, overlay=overlay, size=size)
    kept = 100 * CLUSTER
    sizes = [size - 200 * CLUSTER, size + 50 * CLUSTER, kept, size]
    done = threading.Event()
    with bench.opened() as disk:
        workers = [
            Worker(disk, bench.model, stripes(kept, 700, i), bench.rng.getrandbits(32))
            for i in range(THREADS)
        ]

        def work(worker: Worker) -> None:
            while not done.is_set():
                worker.step()

        def reach_out() -> None:
            """Write and zero where the end moves to and fro; zeroes only, as the model says."""
            rng = random.Random(seed)
            reaches: list[Callable[[int], object]] = [
                lambda at: disk.write(at, bytes(SECTOR)),
                lambda at: disk.write_zeroes(at, SECTOR),
                lambda at: disk.read(at, SECTOR),
                lambda at: disk.write_many([(at, bytes(SECTOR))]),
            ]
            while not done.is_set():
                offset = rng.randrange(kept, size + 50 * CLUSTER)
                try:
                    rng.choice(reaches)(offset)
                except OutOfRange:
                    continue

        def resize() -> None:
            try:
                for each in sizes * 2:
                    disk.resize(each)
                    bench.model.resize(each)
            finally:
                done.set()

        # What the others reach for is settled afterwards.
        run_together(
            *(lambda each=each: work(each) for each in workers[:3]),
            reach_out,
            resize,
        )
        bench.model.settle(kept, disk.read(kept, size - kept))
        assert bench.model.read(kept, size - kept) == bytes(size - kept)


def test_close_under_fire(tmp_path: Path, seed: int, storage: str, overlay: bool) -> None:
    """Whatever was acknowledged is there; everything after is refused."""
    bench = Bench(storage, tmp_path, seed, overlay=overlay, size=200 * CLUSTER)
    disk = bench.open()
    workers = [
        Worker(disk, bench.model, stripes(bench.size, 700, i), bench.rng.getrandbits(32))
        for i in range(THREADS)
    ]
    refused = threading.Semaphore(0)
    written = threading.Semaphore(0)

    def work(worker: Worker) -> None:
        try:
            while True:
                worker.step()
                written.release()
        except Closed:
            refused.release()

    def close() -> None:
        for _ in range(3 * THREADS):
            written.acquire()
        disk.close()

    run_together(*(lambda each=each: work(each) for each in workers), close)
    for _ in workers:
        assert refused.acquire(blocking=False)
    with bench.opened():
        pass


def test_drain_under_fire(tmp_path: Path, seed: int, storage: str, overlay: bool) -> None:
    """Inside a drain nothing changes."""
    bench = Bench(storage, tmp_path, seed, overlay=overlay, size=200 * CLUSTER)
    done = threading.Event()
    with bench.opened() as disk:
        workers = [
            Worker(disk, bench.model, stripes(bench.size, 700, i), bench.rng.getrandbits(32))
            for i in range(THREADS)
        ]

        def work(worker: Worker) -> None:
            while not done.is_set():
                worker.step()

        def drain() -> None:
            try:
                for _ in range(5):
                    with disk.drain():
                        before = bytes(image(disk))
                        threading.Event().wait(0.01)
                        assert bytes(image(disk)) == before
                    threading.Event().wait(0.01)
            finally:
                done.set()

        run_together(*(lambda each=each: work(each) for each in workers), drain)


def image(disk: Disk) -> bytearray:
    """The file of a disk, past its gate."""
    node = disk.node.children["file"]
    data = bytearray(node.size)
    node.readv(0, [memoryview(data)])
    return data


def test_idle_timer_under_fire(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int) -> None:
    """The bit is cleared and set again between allocations, and never while one is under way."""
    monkeypatch.setattr(driver, "NEED_CHECK_IDLE_SECONDS", 0.005)
    bench = Bench("slow", tmp_path, seed, overlay=False, size=400 * CLUSTER)
    with bench.opened() as disk:
        workers = [
            Worker(disk, bench.model, stripes(bench.size, 700, i), bench.rng.getrandbits(32))
            for i in range(THREADS)
        ]

        def work(worker: Worker) -> None:
            for _ in range(15):
                worker.step()
                threading.Event().wait(worker.rng.random() * 0.02)

        run_together(*(lambda each=each: work(each) for each in workers))


@pytest.mark.parametrize("alignment", [512, 4096])
def test_padding_keeps_what_others_append(seed: int, alignment: int) -> None:
    """A write that grows a file by a padded block is cut off again, and nobody else's with it."""
    rng = random.Random(seed)
    for _ in range(20):
        padded = Padded(Liar(memory(), rng=rng, alignment=alignment, delay=0.0003))
        append_together(padded, rng)


def append_together(padded: Padded, rng: random.Random) -> None:
    data = {
        block * CLUSTER + rng.choice([0, 7]): rng.randbytes(CLUSTER - 7)
        for block in rng.sample(range(64), 8)
    }
    run_together(
        *(
            lambda at=at, part=part: padded.writev(at, [memoryview(part)])
            for at, part in data.items()
        )
    )
    assert padded.size == max(at + len(part) for at, part in data.items())
    for at, part in data.items():
        found = bytearray(len(part))
        padded.readv(at, [memoryview(found)])
        assert found == part


@pytest.mark.long
@pytest.mark.parametrize("turn", range(200))
def test_for_long(tmp_path: Path, seed: int, storage: str, overlay: bool, turn: int) -> None:
    width = random.Random(seed + turn).choice([100, 700, CLUSTER, 2 * CLUSTER + 1])
    bench = Bench(storage, tmp_path, seed + turn, overlay=overlay, size=2 * MiB)
    with bench.opened() as disk:
        workers = [
            Worker(disk, bench.model, stripes(bench.size, width, i), bench.rng.getrandbits(32))
            for i in range(THREADS)
        ]
        run_together(*(lambda each=each: [each.step() for _ in range(200)] for each in workers))
