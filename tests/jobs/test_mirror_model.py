"""Mirrors under fire: guests write at every moment, sides fail, and nothing is ever lost.

Each guest owns a part of the disk (cut at odd offsets, so that guests share granules) and a part of
the model. The source is compared with the target at the very moment of the switch.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blocklayer.base.buffers import Vector
from blocklayer.base.errors import IoError
from blocklayer.base.units import KiB
from blocklayer.core.disk import Disk
from blocklayer.core.filter import FilterNode
from blocklayer.core.graph import Graph
from blocklayer.core.graph_options import Settings
from blocklayer.core.node import Node
from blocklayer.jobs import mirror
from blocklayer.jobs.errors import WrongState
from blocklayer.jobs.job import Job
from blocklayer.jobs.manager import Jobs
from blocklayer.jobs.mirror import MirrorJob
from blocklayer.protocols.memory import MemoryNode
from blocklayer.testing.model import ModelDisk
from tests.support.graphs import snapshot

SIZE = 1024 * KiB + 512


def seeds(first: int, count: int) -> list[object]:
    """Seeds of random runs; a few of them in every run of the tests, the others in long ones."""
    every = range(first, first + count)
    return [s if s < first + 3 else pytest.param(s, marks=pytest.mark.slow) for s in every]


GUESTS = 3


class Flaky(FilterNode):
    """Fails now and then, while it is told to; half of what it fails at is done nonetheless."""

    def __init__(self, child: Node, seed: int) -> None:
        super().__init__(child)
        self.failing = 0.0
        self.code = errno.EIO
        self._random = random.Random(seed)

    def _maybe_fail(self, operation: str) -> bool:
        return self._random.random() < self.failing

    def _fail(self, operation: str) -> None:
        raise IoError("as told", "flaky", self.code, operation)

    def readv(self, offset: int, vector: Vector) -> None:
        if self._maybe_fail("read"):
            self._fail("read")
        super().readv(offset, vector)

    def writev(self, offset: int, vector: Vector) -> None:
        fails = self._maybe_fail("write")
        if not fails or self._random.random() < 0.5:
            super().writev(offset, vector)
        if fails:
            self._fail("write")

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        fails = self._maybe_fail("write_zeroes")
        if not fails or self._random.random() < 0.5:
            super().zero(offset, length, flags)
        if fails:
            self._fail("write_zeroes")


class Guest(threading.Thread):
    """Changes and reads its part of a disk until it is told to stop."""

    def __init__(self, disk: Disk, start: int, end: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._disk = disk
        self._start_at, self._end = start, end
        self.model = ModelDisk(SIZE)
        self._random = random.Random(seed)
        self._stop_it = threading.Event()
        self.failure: BaseException | None = None
        self.requests = 0

    def run(self) -> None:
        try:
            while not self._stop_it.is_set():
                self._step()
                self.requests += 1
                if self.requests % 16 == 0:
                    time.sleep(0.0005)
        except BaseException as error:
            self.failure = error

    def _step(self) -> None:
        choice = self._random
        offset = choice.randrange(self._start_at, self._end)
        length = min(choice.choice((1, 512, 3000, 4096, 20000, 70000)), self._end - offset)
        verb = choice.randrange(8)
        if verb < 3:
            data = choice.randbytes(length)
            self._disk.write(offset, data)
            self.model.write(offset, data)
        elif verb < 5:
            self._disk.write_zeroes(offset, length, unmap=verb == 3)
            self.model.write_zeroes(offset, length)
        elif verb == 5:
            self._disk.discard(offset, length)
            self.model.settle(offset, self._disk.read(offset, length))
        else:
            self.model.require(offset, self._disk.read(offset, length))

    def stop(self) -> None:
        self._stop_it.set()
        self.join(30)
        assert not self.is_alive(), "a guest hangs"
        if self.failure is not None:
            raise self.failure

    def check(self) -> None:
        """The whole part."""
        data = self._disk.read(self._start_at, self._end - self._start_at)
        self.model.require(self._start_at, data)


class Scene:
    """A graph with a source, a target, and guests on the source."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.graph, self.jobs = Graph(), Jobs()
        self.events: list[tuple[str, dict[str, object]]] = []
        self.jobs.add_listener(lambda name, data: self.events.append((name, data)))
        self.source_storage, self.target_storage = MemoryNode(SIZE), MemoryNode(SIZE)
        if self.random.random() < 0.5:  # the target is not known to be zero, and is not
            self.target_storage.writev(0, [memoryview(b"old" * (SIZE // 3))])
        self.source = Flaky(self.source_storage, seed)
        self.target = Flaky(self.target_storage, seed + 1)
        modes = self.random.choice((("ignore", "off"), ("unmap", "off"), ("unmap", "unmap")))
        both = Settings("unmap", "off")
        self.graph.add_node(self.source, "src", both)
        self.graph.add_node(self.target, "dst", Settings(*modes))
        self.disk = self.graph.open_disk("src", writable=True)
        edges = [SIZE * index // GUESTS + index for index in range(GUESTS + 1)]
        edges[-1] = SIZE
        self.guests = [
            Guest(self.disk, edges[index], edges[index + 1], seed * 100 + index)
            for index in range(GUESTS)
        ]

    def start(self, **options: object) -> MirrorJob:
        job = mirror.start(
            self.graph,
            self.jobs,
            job_id="j",
            device="src",
            target="dst",
            sync="full",
            granularity=self.random.choice((512, 4096, 65536)),
            buf_size=self.random.choice((0, 65536)),
            copy_mode=self.random.choice(("background", "write-blocking")),
            **options,  # type: ignore[arg-type]
        )
        leave = job.leave

        def compare_first(to: Node | None = None) -> None:
            if job.status == "pending":
                self.require_equal()
            leave(to)

        job.leave = compare_first  # type: ignore[method-assign]
        return job

    def require_equal(self) -> None:
        one, other = snapshot(self.source_storage), snapshot(self.target_storage)
        if one != other:
            where = next(i for i in range(SIZE) if one[i] != other[i])
            raise AssertionError(f"source and target differ at {where} at the switch")

    def close(self) -> None:
        self.disk.close()
        self.graph.close()


@contextmanager
def scene(seed: int) -> Iterator[Scene]:
    made = Scene(seed)
    for guest in made.guests:
        guest.start()
    try:
        yield made
        made.source.failing = made.target.failing = 0
        for guest in made.guests:
            guest.stop()
        for guest in made.guests:
            guest.check()
    finally:
        for guest in made.guests:
            guest._stop_it.set()
        made.jobs.end_all(20)
        made.close()


def disturb(made: Scene, job: MirrorJob, until: float) -> None:
    """Steer the job at random for a while."""
    choice = made.random
    while time.monotonic() < until and not job.ended.is_set():
        try:
            action = choice.randrange(5)
            if action == 0:
                job.pause()
            elif action == 1:
                job.resume()
            elif action == 2:
                job.set_speed(choice.choice((0, 0, 50_000_000, 10_000_000)))
            elif action == 3:
                job.change(copy_mode=choice.choice(("background", "write-blocking")))
            else:
                time.sleep(choice.random() * 0.02)
        except WrongState:
            time.sleep(0.002)
    try:
        job.set_speed(0)
        job.resume()
    except WrongState:
        return


def wait_ready(job: Job) -> None:
    assert job.wait_for_status("ready", timeout=30) in ("ready", "standby"), job.info()


@pytest.mark.parametrize("seed", seeds(0, 12))
def test_a_disk_moves_while_guests_write(seed: int) -> None:
    with scene(seed) as made:
        job = made.start()
        disturb(made, job, time.monotonic() + 0.2)
        wait_ready(job)
        disturb(made, job, time.monotonic() + made.random.random() * 0.2)
        wait_ready(job)
        job.complete()
        assert job.wait(30)
        assert job.error is None
        assert made.disk.node is made.target
        time.sleep(0.05)
    assert [name for name, _ in made.events].count("BLOCK_JOB_COMPLETED") == 1


@pytest.mark.parametrize("seed", seeds(12, 8))
def test_cancelled_when_ready_the_target_is_a_copy_of_one_moment(seed: int) -> None:
    with scene(seed) as made:
        job = made.start()
        wait_ready(job)
        disturb(made, job, time.monotonic() + made.random.random() * 0.1)
        wait_ready(job)
        job.cancel()
        assert job.wait(30)
        assert made.disk.node is made.source
        kept = snapshot(made.target_storage)
        time.sleep(0.05)
        assert snapshot(made.target_storage) == kept, "the target is written to after the end"
    assert made.events[-3][0] == "BLOCK_JOB_COMPLETED"


@pytest.mark.parametrize("seed", seeds(20, 12))
def test_cancelled_by_force_at_any_moment(seed: int) -> None:
    with scene(seed) as made:
        job = made.start(speed=made.random.choice((0, 5_000_000)))
        time.sleep(made.random.random() * 0.1)
        if made.random.random() < 0.3:
            try:
                job.pause()
            except WrongState:
                pass
        job.cancel(force=True)
        assert job.wait(30)
        assert made.disk.node is made.source
        assert [name for name in made.graph.names if name[0] != "#"] == ["src", "dst"]
        kept = snapshot(made.target_storage)
        time.sleep(0.05)
        assert snapshot(made.target_storage) == kept, "the target is written to after the end"
    assert ("BLOCK_JOB_CANCELLED") in [name for name, _ in made.events]


@pytest.mark.parametrize("policy", ["ignore", "stop", "enospc"])
@pytest.mark.parametrize("seed", seeds(32, 4))
def test_errors_of_the_target_cost_nothing(seed: int, policy: str) -> None:
    with scene(seed) as made:
        made.target.code = errno.ENOSPC
        made.target.failing = 0.3
        job = made.start(on_target_error=policy)
        begun = time.monotonic()
        while (took := time.monotonic() - begun) < 0.3 or (
            took < 30 and not any(name == "BLOCK_JOB_ERROR" for name, _ in made.events)
        ):  # a job that gives way to guests may take longer to meet an error
            if job.paused:
                job.resume()
            time.sleep(0.01)
        assert not job.ended.is_set()
        made.target.failing = 0
        while job.status != "ready":
            if job.paused:
                job.resume()
            time.sleep(0.005)
        if job.paused:
            job.resume()
        wait_ready(job)
        job.complete()
        assert job.wait(30)
        assert job.error is None
        assert made.disk.node is made.target
    errors = [data for name, data in made.events if name == "BLOCK_JOB_ERROR"]
    wanted = "ignore" if policy == "ignore" else "stop"
    assert {"device": "j", "operation": "write", "action": wanted} in errors


@pytest.mark.parametrize("seed", seeds(36, 6))
def test_an_error_that_is_reported_ends_the_job_and_harms_nobody(seed: int) -> None:
    with scene(seed) as made:
        job = made.start()
        time.sleep(made.random.random() * 0.05)
        made.target.failing = 0.5
        assert job.wait(30)
        assert made.disk.node is made.source
        time.sleep(0.02)
    assert job.error == "Input/output error"
    completed = [data for name, data in made.events if name == "BLOCK_JOB_COMPLETED"]
    assert [data["error"] for data in completed] == ["Input/output error"]


@pytest.mark.parametrize("policy", ["ignore", "stop"])
def test_a_switch_that_cannot_be_lets_guests_go_on(policy: str) -> None:
    with scene(50) as made:
        job = made.start(on_target_error=policy, auto_finalize=False)
        wait_ready(job)
        job.complete()
        assert job.wait_for_status("pending", timeout=20) == "pending"
        time.sleep(0.05)
        made.target.failing = 1.0
        job.finalize()
        assert job.wait(30)
        assert job.error == "Input/output error"
        assert made.disk.node is made.source
        time.sleep(0.05)
