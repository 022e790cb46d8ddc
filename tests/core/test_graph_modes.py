# SPDX-License-Identifier: Apache-2.0
"""Nodes that are opened again in another mode: no disk above keeps the number of a closed file.

The system gives the numbers of closed files to those that are opened next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB
from blocklayer.core.disk import Disk
from blocklayer.jobs import commit, stream
from tests.jobs.scenes import Stage, stage, wait_end, wait_ready

SIZE = 256 * KiB


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "a").write_bytes(SIZE * b"a")
    (tmp_path / "other").write_bytes(4 * SIZE * b"x")
    blocklayer.create(
        tmp_path / "o", format="qed", size=SIZE, backing=tmp_path / "a", backing_format="raw"
    )
    with stage() as made:
        yield made


@pytest.fixture
def open_others(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Opens other files, which get the numbers that are free."""
    numbers: list[int] = []

    def open_them() -> None:
        numbers.extend(os.open(tmp_path / "other", os.O_RDWR) for _ in range(16))

    yield open_them
    for number in numbers:
        os.close(number)


def file(path: Path) -> dict[str, str]:
    return {"driver": "file", "filename": str(path)}


def add_base(here: Stage, folder: Path) -> Disk:
    node = {"driver": "raw", "node-name": "a", "read-only": True, "file": file(folder / "a")}
    here.graph.add(node)
    return here.graph.open_disk("a")


def add_overlay(here: Stage, folder: Path, *, read_only: bool = False) -> Disk:
    node = {"driver": "qed", "node-name": "o", "backing": "a", "file": file(folder / "o")}
    here.graph.add({**node, "read-only": read_only})
    return here.graph.open_disk("o", writable=not read_only)


def test_a_file_below_a_disk_is_reopened(
    here: Stage, tmp_path: Path, open_others: Callable[[], None]
) -> None:
    options = {**file(tmp_path / "a"), "node-name": "f"}
    here.graph.add(options)
    here.graph.add({"driver": "raw", "node-name": "s", "file": "f", "read-only": True})
    with here.graph.open_disk("s") as disk:
        assert disk.read(0, 4) == b"aaaa"
        for read_only in (True, False):
            here.graph.reopen([{**options, "read-only": read_only}])
            open_others()
            assert disk.read(0, 4) == b"aaaa"


@pytest.mark.parametrize("completed", [False, True])
def test_a_disk_on_the_base_of_a_commit(
    here: Stage, tmp_path: Path, open_others: Callable[[], None], completed: bool
) -> None:
    with add_base(here, tmp_path) as base, add_overlay(here, tmp_path) as disk:
        assert base.read(8, 4) == b"aaaa"
        disk.write(0, b"o")
        job = commit.start(here.graph, here.jobs, device="o", job_id="j")
        wait_ready(job)
        open_others()
        assert base.read(8, 4) == b"aaaa"
        if completed:
            job.complete()
        else:
            job.cancel(force=True)
        wait_end(job)
        open_others()
        assert base.read(8, 4) == b"aaaa"
        assert disk.read(0, 2) == b"oa"


def test_a_disk_on_an_image_into_which_is_streamed(
    here: Stage, tmp_path: Path, open_others: Callable[[], None]
) -> None:
    with add_base(here, tmp_path), add_overlay(here, tmp_path, read_only=True) as disk:
        assert disk.read(0, 4) == b"aaaa"
        job = stream.start(here.graph, here.jobs, device="o", job_id="j", auto_finalize=False)
        job.wait_for_status("pending")
        for _ in range(2):
            assert disk.read(0, 4) == b"aaaa"  # it looks where that is now
            open_others()
            assert disk.read(0, 4) == b"aaaa"
            if not job.ended.is_set():
                job.finalize()
                assert wait_end(job).error is None


def test_nobody_reads_while_the_base_of_a_commit_is_reopened(here: Stage, tmp_path: Path) -> None:
    """Requests in flight would go on with the number of the file that is closed."""
    with add_base(here, tmp_path), add_overlay(here, tmp_path) as disk:
        base = here.graph.find("a")
        seen: list[bool] = []
        reopen = base.reopen

        def watch(read_only: bool) -> None:
            seen.append(bool(base.tracker.drained and disk.node.tracker.drained))
            reopen(read_only)

        base.reopen = watch  # type: ignore[method-assign]
        job = commit.start(here.graph, here.jobs, device="o", job_id="j")
        wait_ready(job)
        job.cancel(force=True)
        wait_end(job)
        assert seen == [True, True]
