# SPDX-License-Identifier: Apache-2.0
"""Several backups of one node: each keeps its own moment, and ends when it likes."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import BlocklayerError
from blocklayer.base.units import KiB
from blocklayer.core.graph import Graph
from blocklayer.core.graph_disk import GraphDisk
from blocklayer.core.node import Node
from blocklayer.jobs import backup, mirror
from blocklayer.jobs.backup import BackupJob
from blocklayer.jobs.errors import WrongState
from blocklayer.jobs.transaction import JobTransaction
from blocklayer.protocols.memory import MemoryNode
from blocklayer.testing.model import ModelDisk
from tests.jobs.scenes import Stage, stage, wait_end
from tests.jobs.test_fleecing import threads
from tests.jobs.test_mirror_model import Flaky, seeds
from tests.support.graphs import snapshot

SIZE = 1024 * KiB + 512
GUESTS = 3
COMPLETE, CANCEL, FAIL = "complete", "cancel", "fail"


class Guests:
    """Each owns a part of the disk, cut at odd offsets, and knows what has to be there."""

    def __init__(self, graph: Graph, disk: GraphDisk, source: Node) -> None:
        self.graph = graph
        self.disk = disk
        self.model = ModelDisk(SIZE)
        self.model.write(0, snapshot(source))
        cuts = [SIZE * number // GUESTS // 7 * 7 for number in range(GUESTS)]
        self.parts = list(zip(cuts, [*cuts[1:], SIZE], strict=True))

    def change(self, number: int, chooser: random.Random) -> None:
        """One request, of somebody who is there, or has just come."""
        if chooser.randrange(4):
            self._change(self.disk, number, chooser)
            return
        with self.graph.open_disk("src", writable=True) as disk:
            self._change(disk, number, chooser)

    def _change(self, disk: GraphDisk, number: int, chooser: random.Random) -> None:
        start, end = self.parts[number]
        offset = chooser.randrange(start, end)
        length = min(chooser.randrange(1, 70 * KiB), end - offset)
        if chooser.randrange(3):
            data = chooser.randbytes(length)
            disk.write(offset, data)
            self.model.write(offset, data)
        else:
            disk.write_zeroes(offset, length)
            self.model.write(offset, bytes(length))

    def change_each(self, chooser: random.Random) -> None:
        """One request of each."""
        for number in range(GUESTS):
            self.change(number, chooser)

    def threads(self) -> list[Callable[[random.Random], None]]:
        return [partial(self.change, number) for number in range(GUESTS)]


class Scene:
    """A source that guests write to, and targets."""

    def __init__(self, here: Stage, chooser: random.Random, targets: int) -> None:
        self.here = here
        self.source = MemoryNode(SIZE)
        for _ in range(6):
            offset = chooser.randrange(SIZE - 100 * KiB)
            self.source.writev(offset, [memoryview(chooser.randbytes(100 * KiB))])
        here.put("src", self.source)
        self.targets = [MemoryNode(SIZE) for _ in range(targets)]
        self.flaky = [Flaky(target, number) for number, target in enumerate(self.targets)]
        for number, node in enumerate(self.flaky):
            here.put(f"dst{number}", node)
        self.names = list(here.graph.names)
        self.disk = here.graph.open_disk("src", writable=True)
        self.guests = Guests(here.graph, self.disk, self.source)
        self.kept: dict[int, bytes] = {}

    def begin(self, number: int, sync: str = "full", **options: Any) -> BackupJob:
        """Back up to a target; what it has to keep is noted."""
        named = {"job_id": f"b{number}", "device": "src", "target": f"dst{number}"} | options
        with self.here.graph.drained(self.source):
            self.kept[number] = snapshot(self.source)
            return backup.start(self.here.graph, self.here.jobs, sync=sync, **named)

    def require_kept(self, number: int) -> None:
        assert snapshot(self.targets[number]) == self.kept[number]

    def require_order(self) -> None:
        """Nothing remains of the jobs, and nobody's write is lost."""
        assert self.here.graph.names == self.names
        assert self.disk.node is self.source
        assert self.here.graph.find_top("src") is self.source
        for name in self.names:
            self.here.graph.require_unblocked(name)
        self.guests.model.require(0, snapshot(self.source))
        self.guests.model.require(0, self.disk.read(0, SIZE))


@contextmanager
def scene(seed: int = 1, targets: int = 3) -> Iterator[Scene]:
    with stage() as here:
        made = Scene(here, random.Random(seed), targets)
        try:
            yield made
        finally:
            assert here.jobs.end_all(30), "a job hangs"
            made.disk.close()


def unleash(job: BackupJob) -> None:
    with suppress(WrongState):  # guests may have copied all of it
        job.set_speed(0)


@pytest.mark.parametrize("seed", seeds(0, 12))
def test_each_keeps_its_moment(seed: int) -> None:
    """They begin and end while guests write, some without success."""
    chooser = random.Random(seed)
    with scene(seed) as here:
        jobs: list[BackupJob] = []
        ways = [chooser.choice([COMPLETE, COMPLETE, COMPLETE, CANCEL, FAIL]) for _ in range(3)]
        with threads(*here.guests.threads()):
            for number in range(3):
                jobs.append(here.begin(number, speed=chooser.choice([0, 200_000, 800_000])))
                time.sleep(chooser.random() * 0.02)
            for number in chooser.sample(range(3), 3):
                if ways[number] == FAIL:
                    here.flaky[number].failing = 1.0
                if ways[number] == CANCEL:
                    with suppress(BlocklayerError):
                        jobs[number].cancel(force=True)
                unleash(jobs[number])
                time.sleep(chooser.random() * 0.02)
            for job in jobs:
                wait_end(job)
        for number, job in enumerate(jobs):
            if job.error is None:
                here.require_kept(number)
            else:
                assert ways[number] != COMPLETE
        here.require_order()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_they_end_in_any_order(order: tuple[int, ...]) -> None:
    """In every way: those that are left go on, and nothing of the others stays."""
    for ways in itertools.product([COMPLETE, CANCEL, FAIL], repeat=3):
        chooser = random.Random(1)
        with scene() as here:
            jobs = []
            for number in range(3):
                jobs.append(here.begin(number, speed=1))
                here.guests.change_each(chooser)
            for number, way in zip(order, ways, strict=True):
                job = jobs[number]
                if way == CANCEL:
                    with suppress(BlocklayerError):
                        job.cancel(force=True)
                elif way == FAIL:
                    here.flaky[number].failing = 1.0
                unleash(job)
                here.guests.change_each(chooser)
                wait_end(job)
                here.guests.change_each(chooser)
                if job.error is None:
                    here.require_kept(number)
            here.require_order()


@pytest.mark.parametrize("grouped", [False, True])
def test_of_one_moment(grouped: bool) -> None:
    """With different modes: all of it, what was written since some time, what is overwritten."""
    chooser = random.Random(3)
    with scene() as here:
        bitmap = here.disk.add_bitmap("b", 64 * KiB)
        here.guests.change_each(chooser)
        marked = list(bitmap.runs())
        group = JobTransaction()
        jobs = []
        with here.here.graph.drained(here.source):
            for number, more in enumerate(
                ({"sync": "full"}, {"sync": "incremental", "bitmap": "b"}, {"sync": "none"})
            ):
                transaction = group if grouped and number < 2 else JobTransaction()
                jobs.append(here.begin(number, transaction=transaction, speed=1, **more))
            for job in jobs:
                job.begin()
            for job in jobs:
                job.go()
        here.guests.change(1, chooser)
        changed = list(bitmap.runs())
        for job in jobs[:2]:
            unleash(job)
        for job in jobs[:2]:
            wait_end(job)
            assert job.error is None
        here.guests.change(0, chooser)
        jobs[2].cancel(force=True)
        wait_end(jobs[2])
        here.require_kept(0)
        for number, runs in ((1, marked), (2, changed)):
            for offset, length in runs:
                found = snapshot(here.targets[number])[offset : offset + length]
                assert found == here.kept[number][offset : offset + length]
        here.require_order()


def test_a_group_fails_as_a_whole() -> None:
    with scene() as here:
        group = JobTransaction()
        jobs = [here.begin(number, "none", transaction=group) for number in range(3)]
        for job in jobs:
            job.start()
        jobs[1].cancel(force=True)
        for job in jobs:
            wait_end(job)
            assert job.error == "Operation canceled"
        here.guests.change_each(random.Random(1))
        here.require_order()


def test_what_is_refused() -> None:
    """A target has one job, and a node that is mirrored is not backed up, nor the other way."""
    with scene() as here:
        first = here.begin(0, "none", filter_node_name="f")
        graph, jobs = here.here.graph, here.here.jobs
        for action in (
            lambda: here.begin(1, target="dst0"),
            lambda: here.begin(1, device="dst0"),
            lambda: here.begin(1, device="f"),
            lambda: here.begin(1, device="dst2", target="src"),
            lambda: mirror.start(graph, jobs, job_id="m", device="src", target="dst1", sync="full"),
            lambda: graph.remove("src"),
        ):
            with pytest.raises(BlocklayerError, match="is busy: block device is in use by"):
                action()
        first.cancel(force=True)
        wait_end(first)
        moving = mirror.start(graph, jobs, job_id="m", device="src", target="dst1", sync="full")
        with pytest.raises(BlocklayerError, match="is busy: block device is in use by"):
            here.begin(0)
        moving.cancel(force=True)
        wait_end(moving)
        here.require_order()


def test_one_that_cannot_begin_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a thread for it is left; that is known before anything has begun."""
    with scene() as here:
        first = here.begin(0, speed=1)
        heard = len(here.here.events)

        beginner, start = threading.current_thread(), threading.Thread.start

        def no_thread(thread: threading.Thread) -> None:
            if threading.current_thread() is beginner:
                raise RuntimeError("can't start new thread")
            start(thread)  # the first one is at work

        with monkeypatch.context() as patch:
            patch.setattr("threading.Thread.start", no_thread)
            with pytest.raises(RuntimeError):
                here.begin(1)
        assert here.here.events[heard:] == []
        assert here.here.jobs.all() == [first]
        here.guests.change_each(random.Random(1))
        unleash(first)
        wait_end(first)
        here.require_kept(0)
        assert not any(snapshot(here.targets[1]))
        here.require_order()


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_two_overlays_show_two_moments(tmp_path: Path, early: bool, first: int) -> None:
    """The second one was there before the first backup, or came when that had a filter there."""
    chooser = random.Random(1)
    with scene(targets=0) as here:
        graph = here.here.graph

        def overlay(number: int) -> None:
            path = str(tmp_path / f"{number}.qed")
            blocklayer.create(path, size=SIZE, format="qed")
            file = {"driver": "file", "filename": path}
            named = {"driver": "qed", "node-name": f"dst{number}", "file": file}
            graph.add({**named, "backing": "src"})

        overlay(0)
        if early:
            overlay(1)
        jobs = [here.begin(0, "none")]
        here.guests.change_each(chooser)
        if not early:
            overlay(1)
        jobs.append(here.begin(1, "none"))
        readers = [graph.open_disk(f"dst{number}") for number in range(2)]

        def look(number: int, chooser: random.Random) -> None:
            offset = chooser.randrange(SIZE - 90 * KiB)
            data = readers[number].read(offset, 90 * KiB)
            assert data == here.kept[number][offset : offset + len(data)]

        both = [lambda chooser, n=number: look(n, chooser) for number in range(2)]
        with threads(*here.guests.threads(), *both):
            time.sleep(0.2)
        jobs[first].cancel(force=True)
        wait_end(jobs[first])
        other = 1 - first
        with threads(*here.guests.threads(), both[other]):
            time.sleep(0.2)
        assert readers[other].read(0, SIZE) == here.kept[other]
        jobs[other].cancel(force=True)
        wait_end(jobs[other])
        for reader in readers:
            reader.close()
        for number in range(2):
            graph.remove(f"dst{number}")
        here.require_order()


@pytest.mark.parametrize(
    ("mode", "sync"),
    [
        ("on-success", "full"),
        ("always", "full"),
        ("on-success", "bitmap"),
        ("always", "bitmap"),
        ("never", "bitmap"),
    ],
)
def test_taken_back_as_if_it_had_never_been(tmp_path: Path, mode: str, sync: str) -> None:
    """The bitmap, and the overlay that would have shown the moment."""
    chooser = random.Random(2)
    with scene(targets=0) as here:
        graph = here.here.graph
        path = str(tmp_path / "o.qed")
        blocklayer.create(path, size=SIZE, format="qed")
        file = {"driver": "file", "filename": path}
        graph.add({"driver": "qed", "node-name": "dst0", "file": file, "backing": "src"})
        here.names = list(graph.names)
        bitmap = here.disk.add_bitmap("b", 4 * KiB)
        here.guests.change(1, chooser)
        before = list(bitmap.runs())
        more = {"bitmap": "b", "bitmap_mode": mode, "auto_dismiss": False}
        with graph.drained(here.source):
            job = here.begin(0, sync, transaction=JobTransaction(), **more)
            job.begin()
            job.take_back()
        assert job.ended.is_set()
        assert here.here.jobs.all() == []
        assert list(bitmap.runs()) == before
        assert not bitmap.busy
        here.guests.change_each(chooser)
        with graph.open_disk("dst0") as reader:
            here.guests.model.require(0, reader.read(0, SIZE))
        here.require_order()
