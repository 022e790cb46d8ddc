# SPDX-License-Identifier: Apache-2.0
"""What a job's steps cost: no memory that nothing is read into, and no thread for a single one."""

from __future__ import annotations

import threading

import pytest

from blocklayer.base.units import KiB, MiB
from blocklayer.jobs import mirror
from blocklayer.jobs.steps import Step
from blocklayer.jobs.workers import StepBuffer, Workers
from blocklayer.protocols.memory import MemoryNode
from tests.jobs.scenes import stage, wait_end, wait_ready
from tests.support.graphs import snapshot


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[StepBuffer]:
    """Buffers whose memory was asked for."""
    asked: list[StepBuffer] = []
    before = vars(StepBuffer)["memory"].fget

    def memory(buffer: StepBuffer) -> bytearray:
        if buffer not in asked:
            asked.append(buffer)
        found: bytearray = before(buffer)
        return found

    monkeypatch.setattr(StepBuffer, "memory", property(memory))
    return asked


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Workers]:
    """Workers that have started a thread, as often as they did."""
    found: list[Workers] = []
    before = Workers._start_thread

    def start(workers: Workers) -> None:
        found.append(workers)
        before(workers)

    monkeypatch.setattr(Workers, "_start_thread", start)
    return found


def move(data: bytes, target_has: bytes = b"") -> None:
    source, target = MemoryNode(4 * MiB), MemoryNode(4 * MiB)
    if data:
        source.writev(MiB, [memoryview(data)])
    if target_has:
        target.writev(0, [memoryview(target_has)])
    with stage() as here:
        here.put("src", source)
        here.put("dst", target)
        job = mirror.start(here.graph, here.jobs, device="src", target="dst", sync="full")
        wait_ready(job)
        job.cancel()
        wait_end(job)
        assert snapshot(target) == snapshot(source)


def test_zeroes_need_no_memory(made: list[StepBuffer]) -> None:
    move(b"", b"x" * 4 * MiB)
    assert made == []


def test_what_is_read_needs_memory_once(made: list[StepBuffer]) -> None:
    move(b"x" * 256 * KiB)
    assert len(made) == 1


def test_a_single_step_needs_no_thread(started: list[Workers]) -> None:
    move(b"x" * 256 * KiB)
    assert started == []


def test_more_than_one_step_is_done_by_threads(started: list[Workers]) -> None:
    move(b"x" * 3 * MiB)
    assert started


def test_a_step_in_the_callers_thread() -> None:
    done: list[tuple[object, int, threading.Thread]] = []

    def act(step: object, buffer: StepBuffer) -> None:
        done.append((step, len(buffer.memory), threading.current_thread()))

    workers = Workers("w", 1, 4 * KiB, act)
    step = Step([(0, 512)])
    workers.do(step)
    assert done == [(step, 4 * KiB, threading.current_thread())]
    workers.submit(step)
    workers.close()
    assert done[1][:2] == (step, 4 * KiB)
    assert done[1][2] is not threading.current_thread()
