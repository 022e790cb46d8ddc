# SPDX-License-Identifier: Apache-2.0
"""A cancellation comes in time, and nothing has happened, or it is refused, and everything has."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.units import MiB
from blocklayer.core.filter import FilterNode
from blocklayer.jobs import commit, mirror, stream
from blocklayer.jobs.errors import WrongState
from blocklayer.jobs.job import Job
from blocklayer.jobs.mirror import MirrorJob
from blocklayer.protocols.memory import MemoryNode
from tests.jobs.scenes import PATIENCE, Stage, stage, wait_end, wait_ready
from tests.support.graphs import snapshot


class SlowToFlush(FilterNode):
    """Its flushes wait for somebody, once they are told to."""

    driver = "slow"

    def __init__(self, child: MemoryNode) -> None:
        super().__init__(child)
        self.flushes = 0
        self.hangs_at = 1 << 30
        self.hanging, self.go_on = threading.Event(), threading.Event()

    def flush(self) -> None:
        self.flushes += 1
        if self.flushes >= self.hangs_at:
            self.hanging.set()
            assert self.go_on.wait(PATIENCE)
        super().flush()


def ends(here: Stage) -> list[str]:
    return [name for name, _ in here.events if name.endswith(("COMPLETED", "CANCELLED"))]


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("soft", [False, True])
def test_a_mirror_that_is_cancelled_while_it_waits_for_its_target(nth: int, soft: bool) -> None:
    """Before the guests are stopped, and after it."""
    with stage() as here:
        source, target = MemoryNode(4 * MiB), SlowToFlush(MemoryNode(4 * MiB))
        here.put("src", source)
        here.put("dst", target)
        with here.graph.open_disk("src", writable=True) as disk:
            disk.write(0, b"a" * MiB)
            job = mirror.start(
                here.graph, here.jobs, device="src", target="dst", sync="full", job_id="j"
            )
            wait_ready(job)
            target.hangs_at = target.flushes + nth
            if soft:
                job.cancel()
            else:
                job.complete()
            assert target.hanging.wait(PATIENCE)
            with here.graph.looking():  # whoever only asks is answered
                assert [entry.name for entry in here.graph.named()][:2] == ["src", "dst"]
            job.cancel(force=True)
            target.go_on.set()
            wait_end(job)
            assert ends(here) == ["BLOCK_JOB_CANCELLED"]
            disk.write(0, b"b" * MiB)
            assert snapshot(source)[:MiB] == b"b" * MiB
            assert snapshot(target)[:MiB] == b"a" * MiB
            assert disk.node is source


@pytest.mark.parametrize("soft", [False, True])
def test_a_mirror_that_has_its_result_is_not_cancelled(
    soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage() as here:
        target = MemoryNode(4 * MiB)
        here.put("src", MemoryNode(4 * MiB))
        here.put("dst", target)
        with here.graph.open_disk("src", writable=True) as disk:
            job = mirror.start(
                here.graph, here.jobs, device="src", target="dst", sync="full", job_id="j"
            )
            wait_ready(job)
            leave: Callable[..., None] = job.leave
            refused = []

            def leave_and_cancel(*arguments: Any) -> None:
                leave(*arguments)
                refused.append(is_refused(job))

            monkeypatch.setattr(job, "leave", leave_and_cancel)
            if soft:
                job.cancel()
            else:
                job.complete()
            wait_end(job)
            assert refused == [True]
            assert job.error is None
            assert ends(here) == ["BLOCK_JOB_COMPLETED"]
            assert (disk.node is target) is not soft


def is_refused(job: Job) -> bool:
    """Also what a failure of others, or the end of the daemon, does has no effect."""
    with job.changed:
        job.cancel_with_group()
    try:
        job.cancel(force=True)
    except WrongState:
        return not job.cancelled
    return False


def make_chain(here: Stage, folder: Path) -> None:
    """a <- b <- c, of which each has a MiB of its own."""
    below = None
    for number, name in enumerate("abc"):
        image = folder / f"{name}.qed"
        blocklayer.create(
            image,
            format="qed",
            size=4 * MiB,
            backing=below,
            backing_format=None if below is None else "qed",
        )
        with blocklayer.open(image, mode="r+") as disk:
            disk.write(number * MiB, name.encode() * MiB)
        below = image
    backing: Any = None
    for name in "abc":
        file = {"driver": "file", "filename": str(folder / f"{name}.qed")}
        options = {"driver": "qed", "node-name": name, "file": file, "backing": backing}
        here.graph.add(options | ({} if name == "c" else {"read-only": True}))
        backing = name


STARTS: dict[str, Callable[[Stage], Job]] = {
    "stream": lambda here: stream.start(
        here.graph, here.jobs, device="c", base_node="a", job_id="j"
    ),
    "commit": lambda here: commit.start(
        here.graph, here.jobs, device="c", top_node="b", base_node="a", job_id="j"
    ),
    "active": lambda here: commit.start(here.graph, here.jobs, device="c", job_id="j"),
}


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("late", [False, True])
def test_other_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, late: bool) -> None:
    make_real = Job.make_real
    refused = []

    def cancel_around(job: Job) -> None:
        if not late:
            job.cancel(force=True)
        make_real(job)
        refused.append(is_refused(job))

    monkeypatch.setattr(Job, "make_real", cancel_around)
    with stage() as here:
        make_chain(here, tmp_path)
        with here.graph.open_disk("c", writable=True) as disk:
            before = disk.read(0, disk.size)
            job = STARTS[kind](here)
            if isinstance(job, MirrorJob):
                wait_ready(job)
                job.complete()
            wait_end(job)
            assert refused == ([True] if late else [])
            assert ends(here) == [f"BLOCK_JOB_{'COMPLETED' if late else 'CANCELLED'}"]
            top = here.graph.name_of(disk.node)
            layers = [here.graph.name_of(node) for node in here.graph.backing_chain(disk.node)]
            if not late:
                assert layers == ["c", "b", "a"]
            elif kind == "active":
                assert layers == ["a"]
            else:
                assert layers == ["c", "a"]
            disk.write(3 * MiB, top.encode() * MiB)
            assert disk.read(0, disk.size) == before[: 3 * MiB] + top.encode() * MiB


def test_looking_waits_for_changes_only() -> None:
    with stage() as here:
        node = here.put("n", MemoryNode(MiB))
        inside, go_on, looked = threading.Event(), threading.Event(), threading.Event()

        def change() -> None:
            with here.graph.drained(node):
                inside.set()
                assert go_on.wait(PATIENCE)

        def look() -> None:
            with here.graph.looking():
                looked.set()

        threads = [threading.Thread(target=change), threading.Thread(target=look)]
        threads[0].start()
        assert inside.wait(PATIENCE)
        threads[1].start()
        assert not looked.wait(0.3)
        go_on.set()
        assert looked.wait(PATIENCE)
        for thread in threads:
            thread.join()
