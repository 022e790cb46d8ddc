# SPDX-License-Identifier: Apache-2.0
"""Guests who write faster than a mirror copies: it becomes ready, ends, and leaves them room."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import IoError
from blocklayer.base.units import KiB, MiB
from blocklayer.jobs import mirror, pace
from blocklayer.jobs.mirror_engine import WRITE, Engine, IoFailed, Moved
from blocklayer.jobs.workers import StepBuffer
from tests.jobs.scenes import Stage, stage, wait_end, wait_ready

SIZE = 64 * MiB
GRANULE = 64 * KiB
assert mirror.REST_BYTES < SIZE


class Guest:
    """Writes into every granule, round after round, until it is stopped."""

    def __init__(self, made: Stage, folder: Path) -> None:
        for name in ("src", "dst"):
            blocklayer.create(folder / name, format="raw", size=SIZE)
            file = {"driver": "file", "filename": str(folder / name)}
            made.graph.add({"driver": "raw", "node-name": name, "file": file})
        self.disk = made.graph.open_disk("src", writable=True)
        self.disk.write(0, b"\xee" * SIZE)
        self.rounds = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.rounds += 1
            data = memoryview(self.rounds.to_bytes(8, "big") * 64)
            for start in range(0, SIZE, 64 * GRANULE):
                places = range(start, start + 64 * GRANULE, GRANULE)
                assert self.disk.write_each([(place, data) for place in places]) == {}

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def check(self, path: Path) -> None:
        """The last round is there, and what it did not touch."""
        found = path.read_bytes()
        last = self.rounds.to_bytes(8, "big") * 64
        for place in range(0, SIZE, GRANULE):
            assert found[place : place + 512] == last
            assert found[place + 512 : place + GRANULE] == b"\xee" * (GRANULE - 512)


def start(made: Stage, **options: str) -> mirror.MirrorJob:
    return mirror.start(
        made.graph,
        made.jobs,
        job_id="j",
        device="src",
        target="dst",
        sync="full",
        speed=128 * MiB,
        on_target_error=options.get("on_target_error", "report"),
    )


@pytest.mark.parametrize("ending", ["complete", "cancel"])
def test_it_converges(tmp_path: Path, ending: str) -> None:
    with stage() as made:
        guest = Guest(made, tmp_path)
        try:
            job = start(made)
            wait_ready(job)
            assert job.engine.dirty.count > mirror.REST_BYTES, "the guest was too slow"
            if ending == "complete":
                job.complete()
            else:
                job.cancel(force=False)
            wait_end(job)
            assert job.error is None
            rounds = guest.rounds
            time.sleep(0.1)
            assert guest.rounds > rounds
        finally:
            guest.stop()
        guest.disk.close()
    guest.check(tmp_path / ("dst" if ending == "complete" else "src"))


def test_guests_follow_while_it_catches_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is left when they are stopped, although they write everywhere all the time."""
    left: list[int] = []
    before = mirror.MirrorJob.flush_rest

    def note(job: mirror.MirrorJob) -> None:
        left.append(job._current - seen[0])
        before(job)

    seen: list[int] = [0]
    catch_up = mirror.MirrorJob._catch_up

    def caught_up(job: mirror.MirrorJob) -> None:
        catch_up(job)
        seen[0] = job._current

    monkeypatch.setattr(mirror.MirrorJob, "flush_rest", note)
    monkeypatch.setattr(mirror.MirrorJob, "_catch_up", caught_up)
    with stage() as made:
        guest = Guest(made, tmp_path)
        try:
            job = start(made)
            wait_ready(job)
            job.complete()
            wait_end(job)
        finally:
            guest.stop()
        guest.disk.close()
    assert len(left) == 1
    assert left[0] <= mirror.REST_BYTES


def test_not_ready_as_long_as_something_was_never_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()
    broken.set()
    before = Engine.copy

    def copy(engine: Engine, runs: list[tuple[int, int]], buffer: StepBuffer) -> Moved:
        if broken.is_set() and runs[0][0] == 0:
            raise IoFailed(WRITE, IoError("as told", "dst"))
        return before(engine, runs, buffer)

    monkeypatch.setattr(Engine, "copy", copy)
    with stage() as made:
        guest = Guest(made, tmp_path)
        try:
            job = start(made, on_target_error="ignore")
            assert job.wait_for_status("ready", timeout=2) == "running"
            broken.clear()
            wait_ready(job)
            job.complete()
            wait_end(job)
            assert job.error is None
        finally:
            guest.stop()
        guest.disk.close()
    guest.check(tmp_path / "dst")


# --- room for guests ------------------------------------------------------------------------------


def test_rests_grow_with_work_and_with_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    courtesy = pace.Courtesy()
    assert not courtesy.is_due(10_000), "nothing was done"
    courtesy.worked(0.01)
    assert not courtesy.is_due(pace.REQUESTS_MIN - 1)
    assert courtesy.is_due(10_000)
    now[0] += 1
    assert courtesy.rest(10_000) == pytest.approx(0.01 * pace.REST_FACTOR)
    courtesy.worked(0.02)
    now[0] += 1
    few = 10_000 + int(pace.BUSY_RATE / 10)
    assert courtesy.rest(few) == pytest.approx(0.002 * pace.REST_FACTOR)
    courtesy.worked(0.02)
    now[0] += 1
    assert courtesy.rest(few) == 0


def test_a_mirror_rests_for_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    before = pace.Courtesy.rest

    def rest(courtesy: pace.Courtesy, requests: int) -> float:
        rests.append(before(courtesy, requests))
        return rests[-1]

    monkeypatch.setattr(pace.Courtesy, "rest", rest)
    with stage() as made:
        guest = Guest(made, tmp_path)
        try:
            job = start(made)
            wait_ready(job)
            assert any(seconds > 0 for seconds in rests)
        finally:
            guest.stop()
        job.complete()
        wait_end(job)
        guest.disk.close()
