# SPDX-License-Identifier: Apache-2.0
"""The zero bitmap, by the requests that reach the target."""

from __future__ import annotations

import random
import time

import pytest

from blocklayer.base.units import KiB, MiB
from blocklayer.jobs import mirror
from blocklayer.jobs.mirror import MirrorJob
from blocklayer.jobs.zero_bitmap import ZeroBitmap
from blocklayer.protocols.memory import MemoryNode
from blocklayer.testing.recorder import Recorded, Recorder
from tests.jobs.scenes import Stage, stage, wait_end, wait_ready
from tests.support.graphs import snapshot

SIZE = 4 * MiB
GRAIN = 64 * KiB


def begin(here: Stage, *, target_has: bytes = b"", **options: object) -> tuple[MirrorJob, Recorder]:
    source, storage = MemoryNode(SIZE), MemoryNode(SIZE)
    source.writev(MiB, [memoryview(b"x" * (256 * KiB))])
    if target_has:
        storage.writev(0, [memoryview(target_has)])
    recorder = Recorder(storage, status=True)
    here.put("src", source)
    here.put("dst", recorder, discard=str(options.pop("discard", "ignore")))
    job = mirror.start(
        here.graph,
        here.jobs,
        **{"job_id": "j", "device": "src", "target": "dst", "sync": "full"} | options,  # type: ignore[arg-type]
    )
    wait_ready(job)
    return job, recorder


def changes(recorder: Recorder) -> list[Recorded]:
    return recorder.take("write", "zero", "discard", "map")


def test_rounding() -> None:
    zero = ZeroBitmap(10 * GRAIN + 5, GRAIN)
    assert not zero.is_set(0, 1)
    zero.set(GRAIN // 2, 2 * GRAIN)  # narrow: one granule lies wholly in it
    assert zero.is_set(GRAIN, GRAIN)
    assert not zero.is_set(0, GRAIN)
    assert not zero.is_set(2 * GRAIN, 1)
    zero.set(0, zero._size)  # and the last one, which is cut short
    assert zero.is_set(0, zero._size)
    zero.clear(3 * GRAIN - 1, 2)  # wide: two granules are touched
    assert zero.is_set(0, 2 * GRAIN)
    assert not zero.is_set(2 * GRAIN, 1)
    assert not zero.is_set(3 * GRAIN, 1)
    assert zero.is_set(4 * GRAIN, GRAIN)
    assert list(zero.segments(GRAIN, 4 * GRAIN)) == [
        (GRAIN, GRAIN, True),
        (2 * GRAIN, 2 * GRAIN, False),
        (4 * GRAIN, GRAIN, True),
    ]


def test_a_target_that_reads_as_zero_gets_data_alone() -> None:
    with stage() as here:
        job, recorder = begin(here)
        requests = recorder.take("write", "zero", "discard")
        assert [each.verb for each in requests] == ["write"]
        assert requests[0][1:] == (MiB, 256 * KiB)
        assert (job.current, job.total) == (256 * KiB, 256 * KiB)


def test_a_target_that_holds_something_is_zeroed_once() -> None:
    with stage() as here:
        job, recorder = begin(here, target_has=b"old" * 1000)
        zeroed = sum(each.length for each in recorder.take("zero"))
        assert zeroed == SIZE - 256 * KiB
        assert snapshot(here.graph.find("dst")) == snapshot(job.source)


def test_told_that_it_is_zero_nobody_looks() -> None:
    with stage() as here:
        _, recorder = begin(here, target_is_zero=True)
        assert [each.verb for each in recorder.take("write", "zero", "map")] == ["write"]


@pytest.mark.parametrize("mode", ["background", "write-blocking"])
def test_zeroes_of_guests_are_not_written_twice(mode: str) -> None:
    with stage() as here:
        job, recorder = begin(here, copy_mode=mode)
        disk = here.graph.open_disk("src", writable=True)
        recorder.take()
        done = job.current
        disk.write_zeroes(2 * MiB, 512 * KiB)  # zero already
        settle(job)
        assert changes(recorder) == []
        assert job.current == done, "what is skipped is not counted"
        disk.write_zeroes(MiB, 128 * KiB)  # data until now
        settle(job)
        assert [each.verb for each in changes(recorder)] == ["zero"]
        disk.write_zeroes(MiB, 128 * KiB)  # zero by now
        disk.write_zeroes(MiB + 5, 3000)
        settle(job)
        assert changes(recorder) == []
        disk.write(MiB, b"y")
        disk.write_zeroes(MiB, GRAIN)  # known to be zero no longer
        settle(job)
        assert "zero" in [each.verb for each in changes(recorder)] or mode == "background"
        assert snapshot(here.graph.find("dst")) == snapshot(job.source)
        disk.close()


def settle(job: MirrorJob) -> None:
    """Wait until the background has nothing to do."""
    while not job.engine.dirty.is_empty or job._moving:
        time.sleep(0.005)


def test_a_failed_or_partial_zeroing_is_not_believed() -> None:
    with stage() as here:
        job, recorder = begin(here, copy_mode="write-blocking")
        disk = here.graph.open_disk("src", writable=True)
        disk.write_zeroes(MiB + 100, GRAIN)  # no whole granule
        assert not job.engine.zero.is_set(MiB, GRAIN)
        disk.write_zeroes(MiB, 2 * GRAIN)
        assert job.engine.zero.is_set(MiB, 2 * GRAIN)
        recorder.take()
        disk.discard(MiB, GRAIN)
        settle(job)
        assert changes(recorder) == []
        disk.close()


def test_the_status_of_the_target_is_never_asked_for_a_guest() -> None:
    with stage() as here:
        job, recorder = begin(here, copy_mode="write-blocking")
        disk = here.graph.open_disk("src", writable=True)
        recorder.take()
        chooser = random.Random(1)
        for _ in range(200):
            offset, length = chooser.randrange(SIZE - 70000), chooser.randrange(1, 70000)
            if chooser.random() < 0.5:
                disk.write(offset, chooser.randbytes(length))
            else:
                disk.write_zeroes(offset, length, unmap=chooser.random() < 0.5)
        settle(job)
        assert recorder.take("map") == []
        assert snapshot(here.graph.find("dst")) == snapshot(job.source)
        disk.close()


def test_sync_top_begins_with_nothing_known() -> None:
    with stage() as here:
        from tests.support.graphs import create, memory, open_node, tree

        below, above = memory("below"), memory("above")
        create(below, size=SIZE)
        create(above, size=SIZE, backing_file="below", backing_fmt="qed")
        top = open_node(tree(above, backing=tree(below)))
        top.writev(MiB, [memoryview(b"x" * GRAIN)])
        here.put("src", top)
        recorder = Recorder(MemoryNode(SIZE))
        here.put("dst", recorder)
        job = mirror.start(
            here.graph, here.jobs, job_id="j", device="src", target="dst", sync="top"
        )
        wait_ready(job)
        assert job.engine.zero.count == 0
        assert recorder.take("write", "zero") == [("write", MiB, GRAIN)]
        disk = here.graph.open_disk("src", writable=True)
        disk.write_zeroes(2 * MiB, GRAIN)
        settle(job)
        assert [each.verb for each in recorder.take("write", "zero")] == ["zero"]
        disk.write_zeroes(2 * MiB, GRAIN)
        settle(job)
        assert recorder.take("write", "zero") == []
        disk.close()


def test_no_data_is_skipped_and_no_zero_written_twice() -> None:
    """Whatever a source looks like: each zero once, each byte of data once, nothing else."""
    chooser = random.Random(7)
    for _ in range(10):
        with stage() as here:
            source, storage = MemoryNode(SIZE), MemoryNode(SIZE)
            storage.writev(0, [memoryview(b"o" * SIZE)])
            for _ in range(20):
                offset = chooser.randrange(SIZE - 100000)
                source.writev(offset, [memoryview(chooser.randbytes(chooser.randrange(1, 99999)))])
            recorder = Recorder(storage)
            here.put("src", source)
            here.put("dst", recorder)
            job = mirror.start(
                here.graph, here.jobs, job_id="j", device="src", target="dst", sync="full"
            )
            wait_ready(job)
            seen = bytearray(SIZE)
            for verb, offset, length in recorder.take("write", "zero"):
                assert not any(seen[offset : offset + length]), f"{verb} twice at {offset}"
                seen[offset : offset + length] = b"\1" * length
            assert all(seen)
            assert snapshot(storage) == snapshot(source)
            job.cancel()
            wait_end(job)
