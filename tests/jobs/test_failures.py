# SPDX-License-Identifier: Apache-2.0
"""Jobs that meet errors: nothing that a guest was told of is lost, nothing hangs or stays busy."""

from __future__ import annotations

import errno
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import blocklayer
from blocklayer.base.align import align_up
from blocklayer.base.buffers import Vector
from blocklayer.base.errors import BlocklayerError, IoError
from blocklayer.base.units import KiB, MiB
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Node
from blocklayer.jobs import backup, commit, copying, mirror, stream
from blocklayer.jobs.backup import BackupJob
from blocklayer.jobs.errors import WrongState
from blocklayer.jobs.transaction import JobTransaction
from blocklayer.protocols.memory import MemoryNode
from tests.jobs.scenes import PATIENCE, Stage, stage, wait_end, wait_ready
from tests.support.graphs import snapshot

GRANULE = 64 * KiB


class Failing(FilterNode):
    """Fails so many times as it is told, by operation."""

    def __init__(self, child: Node, **times: int) -> None:
        super().__init__(child)
        self.times = times

    def _meet(self, operation: str) -> None:
        if self.times.get(operation, 0):
            self.times[operation] -= 1
            raise IoError("as told", "failing", errno.EIO, operation)

    def readv(self, offset: int, vector: Vector) -> None:
        self._meet("read")
        super().readv(offset, vector)

    def flush(self) -> None:
        self._meet("flush")
        super().flush()


def make_chain(here: Stage, folder: Path) -> None:
    """Images base <- top, with data in the base, as nodes of these names."""
    base, top = str(folder / "base.qed"), str(folder / "top.qed")
    blocklayer.create(base, format="qed", size=MiB)
    with blocklayer.open(base, mode="r+") as disk:
        disk.write(0, b"B" * MiB)
    blocklayer.create(top, format="qed", size=MiB, backing=base)
    below: str | None = None
    for name, path in (("base", base), ("top", top)):
        file = {"driver": "file", "filename": path}
        read_only = name == "base"
        here.graph.add(
            {"driver": "qed", "node-name": name, "backing": below, "file": file}
            | {"read-only": read_only}
        )
        below = name


def test_a_stream_keeps_the_base_if_it_has_ignored_an_error(
    tmp_path: Path,
) -> None:
    with stage() as here:
        make_chain(here, tmp_path)
        graph = here.graph
        base, top = graph.find("base"), graph.find("top")
        real, failures = base.readv, [IoError("as told", "base", errno.EIO, "read")]

        def readv(offset: int, vector: Vector) -> None:
            if failures:
                raise failures.pop()
            real(offset, vector)

        base.readv = readv  # type: ignore[method-assign]
        with graph.open_disk("top") as disk:
            job = stream.start(graph, here.jobs, device="top", job_id="s", on_error="ignore")
            wait_end(job)
            assert job.error == "Input/output error"
            assert graph.backing_chain(top) == [top, base]
            assert disk.read(0, MiB) == b"B" * MiB
        names = [name for name, _ in here.events if name.startswith("BLOCK_")]
        assert names == ["BLOCK_JOB_ERROR", "BLOCK_JOB_COMPLETED"]


@pytest.mark.parametrize("module", [backup, mirror])
def test_what_has_failed_is_not_tried_before_the_job_is_resumed(module: ModuleType) -> None:
    with stage() as here:
        source = Failing(MemoryNode(MiB), read=1)
        source.child.writev(0, [memoryview(b"x" * MiB)])
        here.put("src", source)
        here.put("dst", MemoryNode(MiB))
        names = {"device": "src", "target": "dst", "sync": "full", "job_id": "j"}
        job = module.start(here.graph, here.jobs, **names, on_source_error="stop")
        assert job.wait_for_status("paused", timeout=PATIENCE) == "paused"
        assert (job.current, job.total) == (0, MiB)
        job.resume()
        if module is mirror:
            wait_ready(job)
            job.cancel(force=False)
        wait_end(job)
        assert (job.current, job.total, job.error) == (MiB, MiB, None)


class Racing(FilterNode):
    """Lets a write of Bs, begun in time, end in the middle of a later write of As."""

    def __init__(self, child: Node) -> None:
        super().__init__(child)
        self.began, self.first, self.second = (threading.Event() for _ in range(3))

    def writev(self, offset: int, vector: Vector) -> None:
        is_late = bytes(vector[0][:1]) == b"B"
        if is_late:
            self.began.set()
            assert self.first.wait(PATIENCE)
        super().writev(offset, vector)
        if not is_late:
            self.first.set()
            assert self.second.wait(PATIENCE)


def test_a_switch_of_the_copy_mode_loses_no_mark() -> None:
    with stage() as here:
        racing, target = Racing(MemoryNode(MiB)), MemoryNode(MiB)
        here.put("src", racing)
        here.put("dst", target)
        with here.graph.open_disk("src", writable=True) as disk:
            job = mirror.start(
                here.graph, here.jobs, device="src", target="dst", sync="full", job_id="m"
            )
            wait_ready(job)
            late = threading.Thread(target=disk.write, args=(0, b"B" * 512))
            late.start()
            assert racing.began.wait(PATIENCE)
            job.change(copy_mode="write-blocking")
            early = threading.Thread(target=disk.write, args=(0, b"A" * GRANULE))
            early.start()
            late.join(PATIENCE)  # acknowledged, and marked
            racing.second.set()
            early.join(PATIENCE)
            assert disk.read(0, 512) == b"B" * 512
            job.complete()
            wait_end(job)
            assert disk.read(0, 512) == b"B" * 512
            assert snapshot(racing.child) == snapshot(target)


def test_an_early_flush_that_fails_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "WRITEBACK_BYTES", 4 * MiB)
    with stage() as here:
        source, target = MemoryNode(16 * MiB), MemoryNode(16 * MiB)
        source.writev(0, [memoryview(b"a" * 16 * MiB)])
        here.put("src", source)
        here.put("dst", Failing(target, flush=1))
        job = mirror.start(
            here.graph, here.jobs, device="src", target="dst", sync="full", job_id="m"
        )
        wait_end(job)
        assert job.error == "Input/output error"
        errors = [data for name, data in here.events if name == "BLOCK_JOB_ERROR"]
        assert errors == [{"device": "m", "operation": "write", "action": "report"}]


def test_a_backup_that_cannot_begin_leaves_its_bitmap_alone() -> None:
    with stage() as here:
        for name in ("src", "dst"):
            here.put(name, MemoryNode(MiB))
        with here.graph.open_disk("src", writable=True) as disk:
            bitmap = disk.add_bitmap("bm", GRANULE)
            disk.write(0, b"x" * GRANULE)
            job = backup.start(
                here.graph,
                here.jobs,
                device="src",
                target="dst",
                sync="incremental",
                bitmap="bm",
                job_id="j",
                filter_node_name="f",
                transaction=JobTransaction(),
            )
            here.put("f", MemoryNode(512))
            with pytest.raises(BlocklayerError):
                job.start()
            assert job.ended.is_set()
            assert (bitmap.count, bitmap.busy) == (GRANULE, False)
            assert here.jobs.all() == []


def test_a_commit_that_cannot_begin_leaves_its_base_read_only(tmp_path: Path) -> None:
    with stage() as here:
        make_chain(here, tmp_path)
        job = commit.start(
            here.graph,
            here.jobs,
            device="top",
            job_id="c",
            filter_node_name="f",
            transaction=JobTransaction(),
        )
        here.put("f", MemoryNode(512))
        with pytest.raises(BlocklayerError):
            job.start()
        assert here.graph.find("base").read_only


def test_a_job_that_cannot_begin_fails_its_group() -> None:
    with stage() as here:
        group, made = JobTransaction(), []
        for number in range(3):
            names = f"s{number}", f"t{number}"
            for name in names:
                here.put(name, MemoryNode(MiB))
            made.append(
                backup.start(
                    here.graph,
                    here.jobs,
                    device=names[0],
                    target=names[1],
                    sync="full",
                    job_id=f"j{number}",
                    filter_node_name="f" if number < 2 else None,
                    transaction=group,
                )
            )
        made[0].start()
        with pytest.raises(BlocklayerError):
            made[1].start()
        for job in made:
            wait_end(job)
        assert here.jobs.all() == []


def test_an_unexpected_error_in_a_worker_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    with stage() as here:
        source = MemoryNode(8 * MiB)
        source.writev(0, [memoryview(b"a" * 8 * MiB)])
        here.put("src", source)
        here.put("dst", MemoryNode(8 * MiB))

        def readv(offset: int, vector: Vector) -> None:
            raise MemoryError("no buffer")

        monkeypatch.setattr(source, "readv", readv)
        job = mirror.start(
            here.graph,
            here.jobs,
            device="src",
            target="dst",
            sync="full",
            job_id="m",
            buf_size=MiB,  # one worker
        )
        assert job.wait(PATIENCE)
        assert job.error == "internal error: MemoryError: no buffer"


def test_no_pivot_after_a_cancellation() -> None:
    with stage() as here:
        here.put("src", MemoryNode(8 * MiB))
        here.put("dst", MemoryNode(8 * MiB))
        with here.graph.open_disk("src", writable=True) as disk:
            job = mirror.start(
                here.graph, here.jobs, device="src", target="dst", sync="full", job_id="m"
            )
            wait_ready(job)
            job.set_speed(GRANULE)
            for offset in range(0, 8 * MiB, GRANULE):
                disk.write(offset, b"x" * GRANULE)
            job.cancel()
            with pytest.raises(WrongState, match="The active block job 'm' cannot be completed"):
                job.complete()
            job.set_speed(0)
            wait_end(job)
            assert here.graph.name_of(disk.node) == "src"


@pytest.mark.parametrize("kind", [commit, stream])
def test_the_backing_link_is_frozen_while_a_job_uses_it(tmp_path: Path, kind: ModuleType) -> None:
    with stage() as here:
        make_chain(here, tmp_path)
        job = kind.start(here.graph, here.jobs, device="top", job_id="j", speed=1)
        file = {"driver": "file", "filename": str(tmp_path / "top.qed")}
        text = "Cannot change frozen 'backing' link from 'top' to 'base'"
        with pytest.raises(BlocklayerError, match=text):
            here.graph.reopen(
                [{"driver": "qed", "node-name": "top", "backing": None, "file": file}]
            )
        top, base = here.graph.find("top"), here.graph.find("base")
        assert here.graph.backing_chain(top) == [top, base]
        job.cancel(force=True)
        wait_end(job)


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_verbs_while_a_job_enters(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    real = BackupJob.enter

    def enter(job: BackupJob) -> None:
        other = threading.Thread(target=getattr(job, verb))  # another monitor
        other.start()
        other.join(PATIENCE)
        real(job)

    monkeypatch.setattr(BackupJob, "enter", enter)
    with stage() as here:
        for name in ("src", "dst"):
            here.put(name, MemoryNode(MiB))
        job = backup.start(
            here.graph, here.jobs, device="src", target="dst", sync="full", job_id="j"
        )
        if verb == "pause":
            assert job.wait_for_status("paused", timeout=PATIENCE) == "paused"
            job.resume()
        wait_end(job)
        assert job.error == ("Operation canceled" if verb == "cancel" else None)
        assert sorted(here.graph.names) == ["dst", "src"]
        here.graph.require_unblocked("src")
        here.graph.require_unblocked("dst")


def test_a_target_known_as_zero_while_a_guest_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BackupJob.target_reads_as_zero
    with stage() as here:
        source, target = MemoryNode(MiB), MemoryNode(MiB)
        source.writev(0, [memoryview(b"old" * (MiB // 4))])
        before = snapshot(source)
        here.put("src", source)
        here.put("dst", target)
        with here.graph.open_disk("src", writable=True) as disk:

            def answer(job: BackupJob) -> bool:
                found = real(job)
                disk.write_zeroes(0, 100)  # copies what was there before
                return found

            monkeypatch.setattr(BackupJob, "target_reads_as_zero", answer)
            job = backup.start(
                here.graph, here.jobs, device="src", target="dst", sync="full", job_id="j"
            )
            wait_end(job)
            assert job.engine.zero.count == MiB - align_up(3 * (MiB // 4), GRANULE)
        assert snapshot(target) == before


def test_a_cancellation_at_the_last_gate_waits_for_the_group() -> None:
    with stage() as here:
        group, go_on, made = JobTransaction(), threading.Event(), []
        for number in range(2):
            names = f"s{number}", f"t{number}"
            for name in names:
                here.put(name, MemoryNode(MiB))
        with here.graph.open_disk("s0", writable=True) as disk:
            bitmap = disk.add_bitmap("bm", GRANULE)
            disk.write(0, b"x" * GRANULE)
            with_bitmap: dict[str, Any] = {"sync": "incremental", "bitmap": "bm"}
            for number, options in enumerate((with_bitmap, {"sync": "full"})):
                names = f"s{number}", f"t{number}"
                job = backup.start(
                    here.graph,
                    here.jobs,
                    device=names[0],
                    target=names[1],
                    job_id=f"j{number}",
                    transaction=group,
                    **options,
                )
                made.append(job)
            one, other = made
            prepared = threading.Event()

            def fail() -> None:
                assert go_on.wait(PATIENCE)
                raise IoError("as told", "t1", errno.EIO, "flush")

            def prepare() -> None:
                BackupJob.prepare(one)
                prepared.set()

            one.prepare, other.prepare = prepare, fail  # type: ignore[method-assign]
            one.start()
            other.start()
            assert prepared.wait(PATIENCE)
            while one.block_info()["busy"]:
                time.sleep(0.001)
            one.cancel(force=True)
            assert not one.wait(0.02)
            go_on.set()
            wait_end(one)
            wait_end(other)
            assert (one.error, other.error) == ("Operation canceled", "Input/output error")
            assert bitmap.count == GRANULE


def test_what_was_written_while_a_mirror_was_pending_is_copied_before_guests_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirror, "REST_BYTES", MiB)
    with stage() as here:
        target = MemoryNode(8 * MiB)
        here.put("src", MemoryNode(8 * MiB))
        here.put("dst", target)
        with here.graph.open_disk("src", writable=True) as disk:
            job = mirror.start(
                here.graph,
                here.jobs,
                device="src",
                target="dst",
                sync="full",
                job_id="m",
                auto_finalize=False,
            )
            wait_ready(job)
            job.complete()
            assert job.wait_for_status("pending", timeout=PATIENCE) == "pending"
            disk.write(0, b"x" * 8 * MiB)
            left: list[int] = []
            real = here.graph.drained

            def drained(*nodes: Node) -> AbstractContextManager[None]:
                left.append(job.engine.dirty.count)
                return real(*nodes)

            monkeypatch.setattr(here.graph, "drained", drained)
            job.finalize()
            wait_end(job)
            assert left
            assert left[0] <= MiB
            assert snapshot(target) == b"x" * 8 * MiB


def test_a_pending_mirror_is_not_stopped_by_an_error() -> None:
    with stage() as here:
        failing = Failing(MemoryNode(MiB))
        here.put("src", failing)
        here.put("dst", MemoryNode(MiB))
        with here.graph.open_disk("src", writable=True) as disk:
            job = mirror.start(
                here.graph,
                here.jobs,
                device="src",
                target="dst",
                sync="full",
                job_id="m",
                on_source_error="stop",
                auto_finalize=False,
            )
            wait_ready(job)
            job.complete()
            assert job.wait_for_status("pending", timeout=PATIENCE) == "pending"
            disk.write(0, b"x" * MiB)
            failing.times["read"] = 1
            job.finalize()
            wait_end(job)
            assert job.error == "Input/output error"
            assert here.graph.name_of(disk.node) == "src"
        errors = [data for name, data in here.events if name == "BLOCK_JOB_ERROR"]
        assert errors == [{"device": "m", "operation": "read", "action": "report"}]


def test_a_backup_leaves_nothing_out_after_ignored_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "RETRY_SECONDS", 0.001)
    with stage() as here:
        source, target, failures = MemoryNode(MiB), MemoryNode(MiB), [20]
        source.writev(0, [memoryview(b"x" * MiB)])
        real = source.readv

        def readv(offset: int, vector: Vector) -> None:
            if offset < GRANULE and failures[0]:
                failures[0] -= 1
                raise IoError("as told", "src", errno.EIO, "read")
            real(offset, vector)

        monkeypatch.setattr(source, "readv", readv)
        here.put("src", source)
        here.put("dst", target)
        job = backup.start(
            here.graph,
            here.jobs,
            device="src",
            target="dst",
            sync="full",
            job_id="j",
            on_source_error="ignore",
        )
        wait_end(job)
        assert job.error is None
        assert failures == [0]
        assert snapshot(target) == b"x" * MiB
