# SPDX-License-Identifier: Apache-2.0
"""Reads that tell holes from data, places that a kernel can send from, and batches."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import Closed, OutOfRange, ReadOnly
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.graph import Graph
from blocklayer.core.sparse import NOWHERE, PLACES_MAX, Place
from blocklayer.testing.model import ModelDisk

SIZE = 2 * MiB + 512
KINDS = ["raw", "qed", "over qed", "over short raw", "memory", "fault", "direct", "offset"]


@pytest.fixture(params=KINDS)
def filled(
    request: pytest.FixtureRequest, tmp_path: Path, rng: random.Random
) -> Iterator[tuple[Disk, ModelDisk]]:
    """A disk with data and holes, and what it is."""
    kind = request.param
    path, base = str(tmp_path / "image"), str(tmp_path / "base")
    model = ModelDisk(SIZE)
    if kind.startswith("over"):
        below = kind.split()[-1]
        size = SIZE - 700_000 if "short" in kind else SIZE
        blocklayer.create(base, format=below, size=size)
        with blocklayer.open(base, mode="r+", format=below) as disk:
            scatter(disk, model, rng, size)
        model = model.overlay()
        blocklayer.create(path, format="qed", size=SIZE, backing=base, backing_format=below)
        disk = blocklayer.open(path, mode="r+", format="qed")
    elif kind == "memory":
        disk = blocklayer.open(
            {"driver": "raw", "file": {"driver": "memory", "size": SIZE}}, mode="r+"
        )
    else:
        format = "qed" if kind in ("qed", "fault") else "raw"
        blocklayer.create(path, format=format, size=SIZE + (4096 if kind == "offset" else 0))
        file: dict[str, object] = {"driver": "file", "filename": path}
        if kind == "fault":
            file = {"driver": "fault", "image": file}
        tree: dict[str, object] = {"driver": format, "file": file}
        if kind == "offset":
            tree["offset"] = 4096
        cache = "none" if kind == "direct" else "writeback"
        disk = blocklayer.open(tree, mode="r+", cache=cache)
    assert disk.size == SIZE
    scatter(disk, model, rng, SIZE)
    with disk:
        yield disk, model


def scatter(disk: Disk, model: ModelDisk, rng: random.Random, size: int) -> None:
    """Data and zeroes here and there."""
    for _ in range(12):
        length = rng.choice([1, 512, 4 * KiB, 64 * KiB, 150_000])
        offset = rng.choice([0, rng.randrange(size - length), size - length])
        if rng.random() < 0.7:
            data = rng.randbytes(length)
            disk.write(offset, data)
            model.write(offset, data)
        else:
            disk.write_zeroes(offset, length)
            model.write_zeroes(offset, length)


def ranges(rng: random.Random) -> Iterator[tuple[int, int]]:
    """Offsets and lengths, the odd ones as well."""
    yield 0, SIZE
    yield SIZE - 1, 1
    for _ in range(60):
        offset = rng.randrange(SIZE)
        yield offset, rng.randrange(1, min(SIZE - offset, rng.choice([600, 70_000, SIZE])) + 1)


Filled = tuple[Disk, ModelDisk]


def test_runs_are_what_is_there(filled: Filled, rng: random.Random) -> None:
    disk, model = filled
    for offset, length in ranges(rng):
        view = memoryview(bytearray(b"\xee" * length))
        runs = disk.read_sparse(offset, view)
        assert sum(count for count, _ in runs) == length
        assert all(count > 0 for count, _ in runs)
        assert all(one[1] != other[1] for one, other in pairwise(runs))
        position = 0
        for count, zero in runs:
            if zero:
                view[position : position + count] = bytes(count)
            position += count
        assert model.difference(offset, bytes(view)) is None


def test_places_hold_the_bytes(filled: Filled, rng: random.Random) -> None:
    disk, model = filled
    found = 0
    for offset, length in ranges(rng):
        taken: list[Place] = []
        if not disk.with_places(offset, length, taken.extend):
            assert taken == []
            continue
        found += 1
        data = b""
        for count, descriptor, host in taken:
            assert count > 0
            data += bytes(count) if descriptor == NOWHERE else os.pread(descriptor, count, host)
        assert model.difference(offset, data) is None
        assert len(data) == length
        ends = [
            (a, b)
            for a, b in pairwise(taken)
            if a[1] == b[1] and (a[1] == NOWHERE or a[2] + a[0] == b[2])
        ]
        assert not ends, "neighbours that are one place"
    told = disk.filename
    if isinstance(disk.node.inline_descriptor, int) or disk.node.inline() is not None:
        assert found, f"{told}: nothing was found in plain files"


def test_no_places_where_somebody_looks_at_every_read(filled: Filled) -> None:
    disk, _ = filled
    kinds = [type(child).__name__ for child in disk.node.children.values()]
    if "FaultNode" in kinds or "MemoryNode" in kinds:
        disk.write(0, b"data" * 1000)
        assert not disk.with_places(0, 4000, lambda places: None)


def test_inline_reads_are_right_or_late(filled: Filled, rng: random.Random) -> None:
    disk, model = filled
    for _ in range(20):
        requests = []
        for offset, length in ranges(rng):
            requests.append((offset, memoryview(bytearray(b"\xee" * min(length, 5000)))))
        requests.append((SIZE - 10, memoryview(bytearray(11))))
        late = disk.read_inline(requests)
        assert len(requests) - 1 in late, "it reaches beyond the end"
        assert late == sorted(set(late))
        for index, (offset, view) in enumerate(requests):
            if index not in late:
                assert model.difference(offset, bytes(view)) is None


def test_batches_of_writes(filled: Filled, rng: random.Random) -> None:
    disk, model = filled
    for _ in range(20):
        requests = []
        position = 0
        while position < SIZE - 80_000:
            length = rng.choice([1, 512, 4096, 70_000])
            data = rng.choice([rng.randbytes(length), bytes(length)])
            requests.append((position, memoryview(data)))
            position += length + rng.choice([0, 0, 0, 100_000, 300_000])
        rng.shuffle(requests)
        beyond = rng.randrange(len(requests))
        requests.insert(beyond, (SIZE - 1, memoryview(b"xx")))
        errors = disk.write_each(requests)
        assert list(errors) == [beyond]
        assert isinstance(errors[beyond], OutOfRange)
        for index, (offset, view) in enumerate(requests):
            if index not in errors:
                model.write(offset, view)
        assert model.difference(0, disk.read(0, SIZE)) is None


def test_beyond_the_end(filled: Filled) -> None:
    disk, _ = filled
    with pytest.raises(OutOfRange):
        disk.read_sparse(SIZE - 1, memoryview(bytearray(2)))
    with pytest.raises(OutOfRange):
        disk.with_places(SIZE, 1, lambda places: None)
    assert disk.read_inline([]) == []
    assert disk.write_each([]) == {}


# --- together with the rest of a disk's life ----------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    blocklayer.create(str(path), format="raw", size=SIZE)
    return path


def test_detected_zeroes_and_hooks(image: Path) -> None:
    with blocklayer.open(str(image), mode="r+", format="raw", detect_zeroes="on") as disk:
        disk.write(0, b"x" * MiB)
        bitmap = disk.add_bitmap("b", granularity=64 * KiB)
        seen: list[tuple[int, int]] = []
        callback = lambda offset, length: seen.append((offset, length))  # noqa: E731
        disk.add_before_write(callback)
        requests = [(0, memoryview(bytes(4096))), (MiB, memoryview(b"y" * 10))]
        assert disk.write_each(requests) == {}
        assert disk.read(0, 4096) == bytes(4096)
        assert disk.read(MiB, 10) == b"y" * 10
        assert list(bitmap.runs(0)) == [(0, 64 * KiB), (MiB, 64 * KiB)]
        assert sorted(seen) == [(0, 4096), (MiB, 10)]
        disk.remove_before_write(callback)


def test_read_only_and_closed(image: Path) -> None:
    disk = blocklayer.open(str(image), format="raw")
    errors = disk.write_each([(0, memoryview(b"x")), (5, memoryview(b"y"))])
    assert {index: type(error) for index, error in errors.items()} == {0: ReadOnly, 1: ReadOnly}
    disk.close()
    view = memoryview(bytearray(5))
    for action in (
        lambda: disk.read_sparse(0, view),
        lambda: disk.with_places(0, 5, lambda places: None),
        lambda: disk.write_each([(0, view)]),
    ):
        with pytest.raises(Closed):
            action()
    assert disk.read_inline([(0, view)]) == [0]


def test_a_drain_waits_for_who_uses_places(image: Path) -> None:
    with blocklayer.open(str(image), mode="r+", format="raw") as disk:
        disk.write(0, b"x" * 4096)
        inside, go_on, drained = threading.Event(), threading.Event(), threading.Event()

        def use(places: list[Place]) -> None:
            inside.set()
            assert go_on.wait(10)
            assert not drained.is_set()

        def drain() -> None:
            with disk.drain():
                drained.set()

        user = threading.Thread(target=lambda: disk.with_places(0, 4096, use))
        user.start()
        assert inside.wait(10)
        drainer = threading.Thread(target=drain)
        drainer.start()
        assert not drained.wait(0.1)
        # Others are late meanwhile; they do not wait inside the batch.
        assert disk.read_inline([(0, memoryview(bytearray(5)))]) == [0]
        go_on.set()
        assert drained.wait(10)
        user.join()
        drainer.join()


def test_who_waited_for_a_drain_sees_the_new_size(image: Path) -> None:
    with blocklayer.open(str(image), mode="r+", format="raw") as disk:
        disk.write(0, b"x" * SIZE)
        view = memoryview(bytearray(4096))
        results: list[object] = []

        def attempt(action: object) -> None:
            try:
                results.append(action())  # type: ignore[operator]
            except OutOfRange as error:
                results.append(error)

        actions = [
            lambda: disk.read_sparse(SIZE - 4096, view),
            lambda: disk.with_places(SIZE - 4096, 4096, lambda places: None),
            lambda: disk.write_each([(SIZE - 4096, view)])[0],
        ]
        threads = [threading.Thread(target=attempt, args=(action,)) for action in actions]
        with disk.drain():
            for thread in threads:
                thread.start()
            time.sleep(0.1)
            disk.node.truncate(MiB)
        for thread in threads:
            thread.join(10)
        assert [type(result) for result in results] == [OutOfRange] * 3


def test_requests_that_wait_go_to_the_new_node(tmp_path: Path) -> None:
    graph = Graph()
    for name in "ab":
        path = tmp_path / name
        path.write_bytes(name.encode() * SIZE)
        file = {"driver": "file", "filename": str(path)}
        graph.add({"driver": "raw", "node-name": name, "file": file})
    disk = graph.open_disk("a", writable=True)
    view = memoryview(bytearray(4096))
    places: list[Place] = []
    failures: list[BaseException] = []

    def attempt(action: object) -> None:
        try:
            action()  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    actions = [
        lambda: disk.read_sparse(0, view),
        lambda: disk.with_places(0, 4096, places.extend),
        lambda: disk.write_each([(MiB, memoryview(b"new"))]),
    ]
    threads = [threading.Thread(target=attempt, args=(action,)) for action in actions]
    one, other = graph.find("a"), graph.find("b")
    with graph.drained(one, other):
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        graph.replace(one, other)
    for thread in threads:
        thread.join(10)
    assert failures == []
    assert bytes(view) == b"b" * 4096
    assert [os.pread(descriptor, 1, host) for _, descriptor, host in places] == [b"b"]
    disk.close()
    graph.close()
    assert (tmp_path / "b").read_bytes()[MiB : MiB + 4] == b"newb"
    assert (tmp_path / "a").read_bytes() == b"a" * SIZE


def test_scattered_ranges_are_better_read(tmp_path: Path) -> None:
    path = str(tmp_path / "image")
    blocklayer.create(path, format="qed", size=64 * MiB, cluster_size=4096)
    with blocklayer.open(path, mode="r+") as disk:
        order = list(range(PLACES_MAX + 10))
        random.Random(1).shuffle(order)
        for number in order:
            disk.write(number * 8192, b"z" * 4096)
        whole = (PLACES_MAX + 10) * 8192
        assert not disk.with_places(0, whole, lambda places: None)
        assert disk.with_places(0, 64 * KiB, lambda places: None)
