# SPDX-License-Identifier: Apache-2.0
"""Guests' batches, which go straight to the source's storage, while it is mirrored."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.jobs import mirror
from blocklayer.jobs.mirror_engine import Engine
from tests.jobs.scenes import Stage, stage, wait_end, wait_ready

SIZE = 8 * MiB
THREADS = 2
BLOCK = 4 * KiB
Batch = Sequence[tuple[int, memoryview]]


def put_images(made: Stage, folder: Path, format: str) -> Disk:
    """A source that is allocated whole, a target, and a guest."""
    for name in ("src", "dst"):
        path = folder / name
        blocklayer.create(path, format=format, size=SIZE)
        if name == "src":
            with blocklayer.open(path, mode="r+", format=format) as disk:
                disk.write(0, b"\xff" * SIZE)
        file = {"driver": "file", "filename": str(path)}
        made.graph.add({"driver": format, "node-name": name, "file": file})
    return made.graph.open_disk("src", writable=True)


def start(made: Stage, **options: Any) -> mirror.MirrorJob:
    return mirror.start(
        made.graph, made.jobs, job_id="j", device="src", target="dst", sync="full", **options
    )


class Guest:
    """Writes batches to every so many-th block, until it is stopped."""

    def __init__(self, disk: Disk, number: int, seed: int) -> None:
        self.blocks: dict[int, bytes] = {}
        self.batches = 0
        self._disk = disk
        self._mine = range(number, SIZE // BLOCK, THREADS)
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            chosen = self._rng.sample(self._mine, 8)
            data = [self._rng.randbytes(BLOCK) for _ in chosen]
            batch = [(b * BLOCK, memoryview(piece)) for b, piece in zip(chosen, data, strict=True)]
            assert self._disk.write_each(batch) == {}
            self.blocks.update(zip(chosen, data, strict=True))
            self.batches += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)


@pytest.mark.parametrize("mode", ["background", "write-blocking"])
@pytest.mark.parametrize("format", ["raw", "qed"])
def test_nothing_is_lost(tmp_path: Path, seed: int, format: str, mode: str) -> None:
    with stage() as made:
        disk = put_images(made, tmp_path, format)
        guests = [Guest(disk, number, seed + number) for number in range(THREADS)]
        try:
            job = start(made, copy_mode=mode, speed=32 * MiB)
            wait_ready(job)
            time.sleep(0.2)
            job.complete()
            wait_end(job)
            assert job.error is None
            seen = [guest.batches for guest in guests]
            time.sleep(0.1)
        finally:
            for guest in guests:
                guest.stop()
        assert all(g.batches > before for g, before in zip(guests, seen, strict=True))
        disk.close()
    with blocklayer.open(tmp_path / "dst", format=format) as target:
        found = target.read(0, SIZE)
    for guest in guests:
        for block, data in guest.blocks.items():
            assert found[block * BLOCK : (block + 1) * BLOCK] == data, f"block {block}"


def test_batches_take_the_inline_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    before = Engine.guest_wrote

    def note(engine: Engine, requests: Batch) -> None:
        told.append(len(requests))
        before(engine, requests)

    monkeypatch.setattr(Engine, "guest_wrote", note)
    with stage() as made:
        disk = put_images(made, tmp_path, "qed")
        disk.read(0, SIZE)  # now its tables are in memory
        job = start(made, speed=1)
        batch = [(offset, memoryview(b"x" * 512)) for offset in (0, 100 * KiB, MiB)]
        assert disk.write_each(batch) == {}
        assert told == [3]
        job.engine.write_blocking = True  # as after the first scan
        assert disk.write_each(batch) == {}
        assert told == [3], "the target had to follow"
        assert job.engine.guest_requests == 6
        job.cancel(force=True)
        wait_end(job)
        disk.close()


def test_a_drain_waits_until_the_job_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who moves everybody to the target must not miss what was just written."""
    told, go_on = threading.Event(), threading.Event()
    before = Engine.guest_wrote

    def wait(engine: Engine, requests: Batch) -> None:
        told.set()
        assert go_on.wait(20)
        before(engine, requests)

    monkeypatch.setattr(Engine, "guest_wrote", wait)
    with stage() as made:
        disk = put_images(made, tmp_path, "raw")
        job = start(made)
        wait_ready(job)
        batch = [(MiB, memoryview(b"late" * 128))]
        guest = threading.Thread(target=disk.write_each, args=(batch,))
        guest.start()
        assert told.wait(20)
        job.complete()
        assert not job.wait(0.5), "the job has ended without what was just written"
        go_on.set()
        guest.join(20)
        wait_end(job)
        assert disk.read(MiB, 512) == b"late" * 128
        disk.close()


def test_what_is_refused_marks_nothing_outside(tmp_path: Path) -> None:
    with stage() as made:
        disk = put_images(made, tmp_path, "raw")
        job = start(made)
        wait_ready(job)
        errors = disk.write_each(
            [
                (SIZE, memoryview(b"x" * 512)),
                (SIZE - 256, memoryview(b"x" * 512)),
                (-512, memoryview(b"x" * 512)),
                (0, memoryview(b"y" * 512)),
            ]
        )
        assert sorted(errors) == [0, 1, 2]
        job.complete()
        wait_end(job)
        assert job.error is None
        assert disk.read(0, 512) == b"y" * 512
        disk.close()


@pytest.mark.parametrize("moment", ["start", "pivot"])
def test_the_graph_changes_as_a_batch_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """What a batch takes for granted has to be looked at when no drain can end any more."""
    before_start, before_pivot = Disk._write_each_inline, Disk._write_each_followed
    with stage() as made:
        disk = put_images(made, tmp_path, "qed")
        disk.read(0, SIZE)
        target = made.graph.open_disk("dst", writable=True)
        target.write(2 * MiB, b"z" * MiB)  # its clusters lie elsewhere
        target.close()
        batch = [(offset, memoryview(b"new" * 512)) for offset in (0, MiB, 2 * MiB)]

        def begin(late_disk: Disk, requests: Batch) -> list[int]:
            monkeypatch.undo()
            wait_ready(start(made))
            return before_start(late_disk, requests)

        def pivot(late_disk: Disk, requests: Batch) -> list[int]:
            monkeypatch.undo()
            job = made.jobs.find("j")
            job.complete()
            wait_end(job)
            return before_pivot(late_disk, requests)

        if moment == "start":
            monkeypatch.setattr(Disk, "_write_each_inline", begin)
        else:
            wait_ready(start(made))
            monkeypatch.setattr(Disk, "_write_each_followed", pivot)
        assert disk.write_each(batch) == {}
        if moment == "start":
            job = made.jobs.find("j")
            job.complete()
            wait_end(job)
        disk.close()
    with blocklayer.open(tmp_path / "dst", format="qed") as copy:
        expected = bytearray(b"\xff" * SIZE)
        for offset, view in batch:
            expected[offset : offset + len(view)] = view
        assert copy.read(0, SIZE) == expected
    assert blocklayer.check(tmp_path / "dst").clean
