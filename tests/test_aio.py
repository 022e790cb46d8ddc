# SPDX-License-Identifier: Apache-2.0
"""The asyncio face: many requests at once, cancelled tasks, errors, and closing in the middle."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import (
    Closed,
    Extent,
    InvalidArgument,
    IoError,
    OpenError,
    OutOfRange,
    ReadOnly,
    aio,
)
from blocklayer.aio import THREADS, AsyncDisk
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.names import FilenameLike
from blocklayer.filters.fault import FaultNode
from blocklayer.testing.model import ModelDisk

PATIENCE = 20.0
SIZE = MiB
CLUSTER = 4 * KiB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=SIZE, cluster_size=CLUSTER, table_size=1)
    return path


def run(action: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; whoever waits forever fails."""
    asyncio.run(asyncio.wait_for(action, PATIENCE))


@asynccontextmanager
async def breakable(path: Path) -> AsyncIterator[tuple[AsyncDisk, FaultNode]]:
    """A raw disk whose writes can be made to wait."""
    path.write_bytes(bytes(SIZE))
    name = {"driver": "raw", "file": {"driver": "fault", "file.filename": str(path)}}
    async with aio.open(name, mode="r+") as disk:
        fault = disk.disk.node.children["file"]
        assert isinstance(fault, FaultNode)
        yield disk, fault


async def stuck(fault: FaultNode, tag: str, write: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task whose write waits at a break point."""
    fault.add_break("pwritev", tag)
    task = asyncio.create_task(write)
    while not fault.is_suspended(tag):
        await asyncio.sleep(0.001)
    return task


# --- verbs ---


def test_every_verb_is_the_disk_s(path: Path, rng: random.Random) -> None:
    async def use() -> None:
        model = ModelDisk(SIZE)
        async with aio.open(path, mode="r+", discard="unmap") as disk:
            assert disk.size == SIZE
            for _ in range(100):
                offset = rng.randrange(SIZE)
                length = min(rng.randrange(3 * CLUSTER), SIZE - offset)
                if rng.random() < 0.3:
                    model.write_zeroes(offset, length)
                    await disk.write_zeroes(offset, length, unmap=rng.random() < 0.5)
                else:
                    data = rng.randbytes(length)
                    model.write(offset, data)
                    await disk.write(offset, data, fua=rng.random() < 0.1)
                model.require(offset, await disk.read(offset, length))
            buffer = bytearray(SIZE)
            assert await disk.read_into(0, buffer) == SIZE
            assert buffer == model.content
            extents = await disk.extents()
            assert extents == list(disk.disk.extents())
            assert all(isinstance(extent, Extent) for extent in extents)
            part = await disk.extents(CLUSTER, 1000)
            assert (part[0].offset, part[-1].end) == (CLUSTER, CLUSTER + 1000)
            await disk.flush()
            model.check(disk.disk)
            await disk.discard(0, SIZE)
        with blocklayer.open(path) as again:
            assert again.read(0, SIZE) is not None
        assert blocklayer.check(path).clean

    run(use())


def test_options_are_those_of_open(path: Path) -> None:
    async def use() -> None:
        async with aio.open(path) as disk:
            assert disk.disk.read_only
            with pytest.raises(ReadOnly):
                await disk.write(0, b"x")
        async with aio.open(str(path), mode="r+", cache="writethrough", stats=True) as disk:
            assert disk.disk.writethrough
        with pytest.raises(TypeError):
            async with aio.open(path, nonsense=True):
                pass
        with pytest.raises(InvalidArgument):
            async with aio.open(path, mode="w"):
                pass

    run(use())


# --- concurrency ---


def test_requests_are_in_flight_together(tmp_path: Path) -> None:
    """As many as there are threads; the loop goes on meanwhile."""

    async def use() -> None:
        async with breakable(tmp_path / "raw") as (disk, fault):
            writes = [
                await stuck(fault, str(number), disk.write(number * 4096, bytes([number + 1])))
                for number in range(THREADS)
            ]
            waiting = asyncio.create_task(disk.read(0, 1))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            assert not any(write.done() for write in writes)
            for number in reversed(range(THREADS)):
                fault.resume(str(number))
            await asyncio.gather(*writes)
            assert await waiting in (b"\0", b"\1")
            for number in range(THREADS):
                assert await disk.read(number * 4096, 1) == bytes([number + 1])

    run(use())


def test_a_slow_request_does_not_hold_up_others(tmp_path: Path) -> None:
    async def use() -> None:
        async with breakable(tmp_path / "raw") as (disk, fault):
            slow = await stuck(fault, "slow", disk.write(0, b"slow"))
            for number in range(20):
                await disk.write(CLUSTER * (number + 1), b"fast")
                assert await disk.read(CLUSTER * (number + 1), 4) == b"fast"
            assert not slow.done()
            fault.resume("slow")
            await slow
            assert await disk.read(0, 4) == b"slow"

    run(use())


def test_many_tasks(path: Path, rng: random.Random) -> None:
    """Each has its own clusters, which share tables with those of the others."""
    content = bytearray(SIZE)

    async def work(disk: AsyncDisk, number: int, seed: int) -> None:
        own = random.Random(seed)
        for _ in range(15):
            offset = (own.randrange(SIZE // CLUSTER // 16) * 16 + number) * CLUSTER
            data = own.randbytes(own.randrange(1, CLUSTER))
            await disk.write(offset, data)
            content[offset : offset + len(data)] = data
            assert await disk.read(offset, len(data)) == data

    async def use() -> None:
        async with aio.open(path, mode="r+") as disk:
            await asyncio.gather(*(work(disk, number, rng.getrandbits(32)) for number in range(16)))

    run(use())
    with blocklayer.open(path) as disk:
        assert disk.read(0, SIZE) == content
    assert blocklayer.check(path).clean


def test_several_disks_in_one_loop(tmp_path: Path) -> None:
    async def use(number: int) -> None:
        path = tmp_path / str(number)
        blocklayer.create(path, format="qed", size=SIZE)
        async with aio.open(path, mode="r+") as disk:
            await disk.write(0, str(number).encode())
            await asyncio.sleep(0)
            assert await disk.read(0, 1) == str(number).encode()

    async def everything() -> None:
        await asyncio.gather(*(use(number) for number in range(5)))

    run(everything())


# --- cancellation ---


def test_what_has_begun_goes_on_without_its_task(tmp_path: Path) -> None:
    async def use() -> None:
        async with breakable(tmp_path / "raw") as (disk, fault):
            write = await stuck(fault, "slow", disk.write(0, b"all of it"))
            write.cancel()
            with pytest.raises(asyncio.CancelledError):
                await write
            assert await disk.read(0, 9) == bytes(9)
            fault.resume("slow")
        assert (tmp_path / "raw").read_bytes()[:9] == b"all of it"

    run(use())


def test_what_has_not_begun_is_not_done(tmp_path: Path) -> None:
    async def use() -> None:
        async with breakable(tmp_path / "raw") as (disk, fault):
            busy = [
                await stuck(fault, str(number), disk.write(number, b"x"))
                for number in range(THREADS)
            ]
            late = asyncio.create_task(disk.write(CLUSTER, b"late"))
            await asyncio.sleep(0.01)
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late
            for number in range(THREADS):
                fault.resume(str(number))
            await asyncio.gather(*busy)
            assert await disk.read(CLUSTER, 4) == bytes(4)

    run(use())


def test_a_timeout(tmp_path: Path) -> None:
    async def use() -> None:
        async with breakable(tmp_path / "raw") as (disk, fault):
            fault.add_break("pwritev", "slow")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(disk.write(0, b"x"), 0.05)
            fault.resume("slow")
            await disk.write(1, b"y")
        assert (tmp_path / "raw").read_bytes()[:2] == b"xy"

    run(use())


def descriptors(path: Path) -> int:
    """How many times this process has a file open."""
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return sum(os.path.realpath(link) == str(path.resolve()) for link in links)


def test_nothing_stays_open_of_a_disk_that_nobody_waits_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled in the middle of opening."""
    begun, go_on = threading.Event(), threading.Event()
    opened: list[Disk] = []

    def open_slowly(name: FilenameLike, **options: Any) -> Disk:
        begun.set()
        assert go_on.wait(PATIENCE)
        opened.append(blocklayer.open(name, **options))
        return opened[0]

    monkeypatch.setattr(aio, "open_disk", open_slowly)

    async def use() -> None:
        async def enter() -> None:
            async with aio.open(path, mode="r+"):
                raise AssertionError("cancelled before")

        task = asyncio.create_task(enter())
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        while not (opened and opened[0].closed):
            await asyncio.sleep(0.001)
        while descriptors(path):
            await asyncio.sleep(0.001)

    run(use())


# --- errors ---


def test_errors_are_those_of_the_disk(path: Path) -> None:
    async def use() -> None:
        async with aio.open(path, mode="r+") as disk:
            calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
                lambda: disk.read(SIZE, 1),
                lambda: disk.read_into(SIZE - 1, bytearray(2)),
                lambda: disk.write(SIZE, b"x"),
                lambda: disk.write_zeroes(-1, 1),
                lambda: disk.discard(0, SIZE + 1),
                lambda: disk.extents(0, SIZE + 1),
            ]
            for call in calls:
                with pytest.raises(OutOfRange):
                    await call()
            with pytest.raises(InvalidArgument):
                await disk.read_into(0, b"read-only")
            results = await asyncio.gather(
                disk.read(0, 1), disk.read(SIZE, 1), disk.read(1, 1), return_exceptions=True
            )
            assert [type(result) for result in results] == [bytes, OutOfRange, bytes]

    run(use())


def test_storage_that_fails(path: Path) -> None:
    rule = {"iotype": "read", "errno": 5}
    name = {"driver": "raw", "file": {"driver": "fault", "file.filename": str(path)}}
    name["file"]["inject-error"] = [rule]  # type: ignore[index]

    async def use() -> None:
        async with aio.open(name) as disk:
            with pytest.raises(IoError) as caught:
                await disk.read(0, 10)
            assert (caught.value.errno, caught.value.operation) == (5, "read")

    run(use())


def test_what_cannot_be_opened(path: Path) -> None:
    async def use() -> None:
        for name in (path.parent / "missing", path.parent):
            with pytest.raises(OpenError) as caught:
                async with aio.open(name):
                    pass
            assert caught.value.filename == str(name)
        async with aio.open(path, mode="r+"):
            with pytest.raises(OpenError, match="lock"):
                async with aio.open(path):
                    pass

    run(use())
    assert not descriptors(path)


def test_an_error_in_the_body_closes_the_disk(path: Path) -> None:
    async def use() -> None:
        async def fail() -> None:
            async with aio.open(path, mode="r+") as disk:
                await disk.write(0, b"kept")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert not descriptors(path)

    run(use())
    with blocklayer.open(path) as disk:
        assert disk.read(0, 4) == b"kept"


# --- life ---


def test_before_opening_and_after_closing(path: Path) -> None:
    async def use() -> None:
        disk = aio.open(path, mode="r+")
        for use_early in (lambda: disk.size, lambda: disk.disk):
            with pytest.raises(RuntimeError, match="async with"):
                use_early()
        with pytest.raises(RuntimeError, match="async with"):
            await disk.read(0, 1)
        async with disk as same:
            assert same is disk
        assert not descriptors(path)
        calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: disk.read(0, 1),
            lambda: disk.write(0, b"x"),
            disk.extents,
            disk.flush,
        ]
        for call in calls:
            with pytest.raises(Closed):
                await call()
        with pytest.raises(Closed):
            _ = disk.size
        await disk.close()
        with pytest.raises((RuntimeError, Closed)):
            await disk.__aenter__()

    run(use())


def test_a_disk_that_is_never_opened_is_no_resource(path: Path) -> None:
    aio.open(path)
    aio.open("missing")
    gc.collect()


def test_closing_waits_for_requests(tmp_path: Path) -> None:
    """Those that run, and those that wait for a thread; later ones are refused."""

    async def use() -> None:
        async with breakable(tmp_path / "raw") as (disk, fault):
            slow = await stuck(fault, "slow", disk.write(0, b"slow"))
            queued = [asyncio.create_task(disk.extents()) for _ in range(10)]
            await asyncio.sleep(0)
            closing = asyncio.create_task(disk.close())
            await asyncio.sleep(0.05)
            assert not closing.done()
            with pytest.raises(Closed):
                await disk.read(0, 1)
            fault.resume("slow")
            await slow
            await closing
            for each in await asyncio.gather(*queued, return_exceptions=True):
                assert isinstance(each, (list, Closed))
            await disk.close()
        assert (tmp_path / "raw").read_bytes()[:4] == b"slow"
        assert not descriptors(tmp_path / "raw")

    run(use())


@pytest.mark.parametrize("attempt", range(5))
def test_closing_in_the_middle(path: Path, rng: random.Random, attempt: int) -> None:
    """Every request is done or refused; what is done is there."""

    async def use() -> None:
        disk = await aio.open(path, mode="r+").__aenter__()
        writes = [
            asyncio.create_task(disk.write(number * CLUSTER, b"data")) for number in range(40)
        ]
        for _ in range(rng.randrange(10)):
            await asyncio.sleep(0)
        await asyncio.gather(disk.close(), disk.close())
        results = await asyncio.gather(*writes, return_exceptions=True)
        with blocklayer.open(path) as again:
            for number, result in enumerate(results):
                assert result is None or isinstance(result, Closed)
                shown = again.read(number * CLUSTER, 4)
                assert shown == (b"data" if result is None else bytes(4))

    run(use())
    assert blocklayer.check(path).clean


def test_closing_fails_and_closes_all_the_same(path: Path) -> None:
    rule = {"iotype": "flush", "errno": 5}
    name = {"driver": "raw", "file": {"driver": "fault", "file.filename": str(path)}}
    name["file"]["inject-error"] = [rule]  # type: ignore[index]

    async def use() -> None:
        disk = await aio.open(name, mode="r+").__aenter__()
        with pytest.raises(IoError, match="flush failed"):
            await disk.close()
        assert not descriptors(path)
        await disk.close()

    run(use())


def test_closing_fails_after_the_body_has_failed(path: Path) -> None:
    """The body's error is the one to report."""
    rule = {"iotype": "flush", "errno": 5}
    file = {"driver": "fault", "file.filename": str(path), "inject-error": [rule]}

    async def use() -> None:
        async with aio.open({"driver": "raw", "file": file}, mode="r+"):
            raise KeyError("the body's")

    with pytest.raises(KeyError, match="the body's") as caught:
        run(use())
    (note,) = caught.value.__notes__
    assert "failed as well: flush failed" in note
    assert not descriptors(path)


def test_no_thread_stays(path: Path) -> None:
    async def use() -> None:
        async with aio.open(path) as disk:
            await asyncio.gather(*(disk.read(0, 1) for _ in range(20)))

    run(use())
    for thread in threading.enumerate():
        if thread.name.startswith("blocklayer-aio"):
            thread.join(PATIENCE)
            assert not thread.is_alive()
