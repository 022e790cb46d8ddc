# SPDX-License-Identifier: Apache-2.0
"""Backup: the disk as it was when the job began, whatever guests do meanwhile."""

from __future__ import annotations

import errno
import random
import threading
from contextlib import suppress
from typing import Any

import pytest

from blocklayer.base.buffers import Vector, vector_length
from blocklayer.base.units import KiB, MiB
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Node
from blocklayer.jobs import backup
from blocklayer.jobs.backup import BackupJob
from blocklayer.jobs.errors import WrongState
from blocklayer.jobs.transaction import JobTransaction
from blocklayer.protocols.memory import MemoryNode
from tests.jobs.scenes import Stage, stage, wait_end
from tests.jobs.test_mirror_model import Flaky, seeds
from tests.support.graphs import snapshot
from tests.support.refusals import refusal

SIZE = MiB + 512


class Guest(threading.Thread):
    """Writes all over the disk."""

    def __init__(self, here: Stage, seed: int = 1) -> None:
        super().__init__(daemon=True)
        self.disk = here.graph.open_disk("src", writable=True)
        self._chooser = random.Random(seed)
        self._over = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self.step()
                self._over.wait(0.0005)
        except BaseException as error:
            self.failure = error

    def step(self) -> None:
        chooser = self._chooser
        offset = chooser.randrange(SIZE)
        length = min(chooser.randrange(1, 70000), SIZE - offset)
        verb = chooser.randrange(4)
        if verb < 2:
            self.disk.write(offset, chooser.randbytes(length))
        elif verb == 2:
            self.disk.write_zeroes(offset, length)
        else:
            self.disk.discard(offset, length)

    def stop(self) -> None:
        self._over.set()
        if self.is_alive():
            self.join(20)
        self.disk.close()
        if self.failure is not None:
            raise self.failure


def set_up(here: Stage, seed: int = 1) -> tuple[MemoryNode, MemoryNode, Flaky]:
    source, target = MemoryNode(SIZE), MemoryNode(SIZE)
    chooser = random.Random(seed)
    for _ in range(6):
        offset = chooser.randrange(SIZE - 100 * KiB)
        source.writev(offset, [memoryview(chooser.randbytes(100 * KiB))])
    if chooser.random() < 0.5:
        target.writev(0, [memoryview(b"o" * SIZE)])
    flaky = Flaky(target, seed)
    here.put("src", source)
    here.put("dst", flaky)
    return source, target, flaky


def begin(here: Stage, sync: str = "full", **options: Any) -> BackupJob:
    named = {"job_id": "b", "device": "src", "target": "dst", "sync": sync} | options
    return backup.start(here.graph, here.jobs, **named)


@pytest.mark.parametrize("seed", seeds(0, 8))
def test_the_moment_is_kept(seed: int) -> None:
    with stage() as here:
        source, target, _ = set_up(here, seed)
        guest = Guest(here, seed)
        for _ in range(30):
            guest.step()
        kept = snapshot(source)
        job = begin(here, speed=200_000)
        guest.start()
        job.sleep(0.05)
        with suppress(WrongState):  # guests may have copied all of it
            job.set_speed(0)
        wait_end(job)
        assert job.error is None
        guest.stop()
        assert snapshot(target) == kept
        assert snapshot(source) != kept


def test_none_keeps_only_what_is_overwritten() -> None:
    with stage() as here:
        source, target, _ = set_up(here)
        target.writev(0, [memoryview(b"o" * SIZE)])
        kept = snapshot(source)
        job = begin(here, "none")
        with here.graph.open_disk("src", writable=True) as disk:
            disk.write(100 * KiB, b"new")
        job.cancel(force=True)
        wait_end(job)
        grain = 64 * KiB
        expected = b"o" * grain + kept[grain : 2 * grain] + b"o" * (SIZE - 2 * grain)
        assert snapshot(target) == expected


def test_incremental() -> None:
    with stage() as here:
        source, target, flaky = set_up(here)
        with here.graph.open_disk("src") as disk:
            bitmap = disk.add_bitmap("b0", 4096)
        wait_end(begin(here))
        guest = Guest(here)
        for _ in range(5):
            guest.step()
        kept = snapshot(source)
        job = begin(here, "incremental", bitmap="b0", speed=1)
        assert bitmap.busy
        guest.step()
        job.set_speed(0)
        wait_end(job)
        assert job.error is None
        assert snapshot(target) == kept
        assert not bitmap.busy
        assert not bitmap.is_empty, "what the guest wrote meanwhile is for the next time"
        kept = snapshot(source)
        wait_end(begin(here, "bitmap", bitmap="b0", bitmap_mode="never"))
        assert snapshot(target) == kept
        assert not bitmap.is_empty
        flaky.failing = 1.0
        before = bitmap.count
        failed = begin(here, "incremental", bitmap="b0")
        wait_end(failed)
        assert failed.error == "Input/output error"
        assert bitmap.count == before
        guest.stop()


def test_a_guest_does_not_fail_with_the_target() -> None:
    with stage() as here:
        source, _, flaky = set_up(here)
        job = begin(here, speed=1)
        flaky.failing = 1.0
        with here.graph.open_disk("src", writable=True) as disk:
            disk.write(SIZE - 10, b"x" * 10)
        wait_end(job)
        assert job.error == "Input/output error"
        assert snapshot(source).endswith(b"x" * 10)


def test_ignored_errors_are_tried_again() -> None:
    with stage() as here:
        source, target, flaky = set_up(here)
        kept = snapshot(source)
        flaky.code = errno.ENOSPC
        flaky.failing = 0.5
        wait_end(begin(here, on_target_error="ignore"))
        assert snapshot(target) == kept


def test_backups_of_one_moment() -> None:
    """Two disks in a transaction: both succeed, or neither."""
    with stage() as here:
        set_up(here)
        here.put("dst2", MemoryNode(SIZE))
        here.put("src2", MemoryNode(SIZE))
        group = JobTransaction()
        one = begin(here, transaction=group)
        other = begin(here, transaction=group, job_id="b2", device="src2", target="dst2")
        for job in (one, other):
            job.start()
        other.cancel(force=True)
        for job in (one, other):
            wait_end(job)
        names = [name for name, _ in here.events if name.startswith("BLOCK_JOB")]
        assert set(names) in ({"BLOCK_JOB_CANCELLED"}, {"BLOCK_JOB_COMPLETED"})
        assert len(names) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sync": "incremental"}, "must provide a valid bitmap name for 'incremental' sync mode"),
        (
            {"sync": "bitmap", "bitmap": "b0"},
            "Bitmap sync mode must be given when providing a bitmap",
        ),
        (
            {"sync": "none", "bitmap": "b0", "bitmap_mode": "always"},
            "sync mode 'none' does not produce meaningful bitmap outputs",
        ),
        (
            {"sync": "full", "bitmap_mode": "always"},
            "Cannot specify bitmap sync mode without a bitmap",
        ),
        (
            {"sync": "bitmap", "bitmap": "nix", "bitmap_mode": "always"},
            "Bitmap 'nix' could not be found",
        ),
        ({"target": "src"}, "Source and target cannot be the same"),
        ({"target": "small"}, "Source and target image have different sizes"),
        ({"device": "nix"}, "Cannot find device='nix' nor node-name='nix'"),
        ({"job_id": "1 j"}, "Invalid job ID '1 j'"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with stage() as here:
        set_up(here)
        with here.graph.open_disk("src") as disk:
            disk.add_bitmap("b0")
        here.put("small", MemoryNode(512))
        assert refusal(lambda: begin(here, **options)) == words
        assert here.jobs.all() == []
        names = [name for name in here.graph.names if name[0] != "#"]
        assert names == ["src", "dst", "small"]


class Watched(FilterNode):
    """Notes how long reads are, and how many there are at a time."""

    def __init__(self, child: Node) -> None:
        super().__init__(child)
        self.longest = self.most = self._now = 0
        self._lock = threading.Lock()

    def readv(self, offset: int, vector: Vector) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.longest = max(self.longest, vector_length(vector))
        threading.Event().wait(0.002)
        super().readv(offset, vector)
        with self._lock:
            self._now -= 1


@pytest.mark.parametrize(
    ("perf", "most", "longest"),
    [
        ({"max-workers": 1, "max-chunk": 64 * KiB}, 1, 64 * KiB),
        ({"max-workers": 2**31 - 1, "max-chunk": 128 * KiB}, 4, 128 * KiB),
        ({"max-workers": 1, "max-chunk": 0}, 1, 2 * MiB),
        ({}, 4, 2 * MiB),
    ],
)
def test_limits_of_requests_are_kept(perf: dict[str, int], most: int, longest: int) -> None:
    with stage() as here:
        source, target = MemoryNode(8 * MiB), MemoryNode(8 * MiB)
        source.writev(0, [memoryview(random.Random(1).randbytes(8 * MiB))])
        watched = Watched(source)
        here.put("src", watched)
        here.put("dst", target)
        job = backup.start(
            here.graph,
            here.jobs,
            device="src",
            target="dst",
            sync="full",
            job_id="b",
            x_perf=perf,
        )
        wait_end(job)
        assert job.error is None
        assert snapshot(target) == snapshot(source)
        assert watched.most <= most
        assert watched.longest <= longest
        if perf.get("max-chunk"):
            assert watched.longest == longest
