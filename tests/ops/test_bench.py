# SPDX-License-Identifier: Apache-2.0
"""Which requests a benchmark sends."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer import Cancelled, CancelToken, InvalidArgument, IoError, OutOfRange, Progress
from blocklayer.core.stats import CountingDisk
from blocklayer.ops.bench import BenchPlan, bench_disk

SIZE = 256 * 1024


def make(path: Path) -> Path:
    blocklayer.create(path, format="qed", size=SIZE, cluster_size=4096)
    return path


def test_writes_where_it_should(tmp_path: Path, rng: random.Random) -> None:
    for number in range(8):
        plan = BenchPlan(
            count=rng.randrange(100),
            depth=rng.choice((1, 3, 64)),
            offset=512 * rng.randrange(100),
            size=rng.choice((512, 1024)),
            step=rng.choice((0, 512, 3072, 66048)),
            write=True,
            pattern=7,
            flush_interval=rng.choice((0, 64, 70)),
            drain=rng.random() < 0.5,
            threads=rng.choice((1, 1, 5)),
        )
        expected = bytearray(SIZE)
        position, fits = plan.offset, True
        for _ in range(plan.count):
            fits = fits and position + plan.size <= SIZE
            expected[position : position + plan.size] = b"\x07" * plan.size
            position = (position + (plan.step or plan.size)) % SIZE
        with blocklayer.open(make(tmp_path / f"{number}"), mode="r+") as disk:
            if not fits:
                with pytest.raises(OutOfRange):
                    bench_disk(disk, plan)
                continue
            assert bench_disk(disk, plan) >= 0
            assert disk.read(0, SIZE) == expected


def test_flushes(tmp_path: Path) -> None:
    for drain in (True, False):
        path = make(tmp_path / f"{drain}")
        with blocklayer.open(path, mode="r+", stats=True) as disk:
            assert isinstance(disk, CountingDisk)
            plan = BenchPlan(count=100, depth=8, write=True, flush_interval=10, drain=drain)
            bench_disk(disk, plan)
            assert disk.stats.flush.operations == 10
            assert disk.stats.wr.operations == 100


def test_reading_changes_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    before = path.read_bytes()
    seen: list[Progress] = []
    with blocklayer.open(path) as disk:
        bench_disk(disk, BenchPlan(count=1000, size=1024), progress=seen.append)
    assert path.read_bytes() == before
    assert seen[-1].done == seen[-1].total == 1000


def test_requests_are_in_flight_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are threads: each waits until the others are there."""
    path = make(tmp_path / "image")
    barrier = threading.Barrier(4, timeout=30)
    real = blocklayer.Disk.submit

    def submit(disk: blocklayer.Disk, batch: list[Any]) -> object:
        barrier.wait()
        return real(disk, batch)

    monkeypatch.setattr(blocklayer.Disk, "submit", submit)
    with blocklayer.open(path) as disk:
        bench_disk(disk, BenchPlan(count=40, depth=8, threads=4))


def test_a_failure_in_a_thread_is_raised(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    rule = {"iotype": "read", "sector": 32 * 8 + 64}
    file = {"driver": "fault", "file.filename": str(path), "inject-error": [rule]}
    with blocklayer.open(path, mode="r+") as disk:
        disk.write(0, b"x" * SIZE)
    with (
        blocklayer.open({"driver": "qed", "file": file}) as disk,
        pytest.raises(IoError, match="injected"),
    ):
        bench_disk(disk, BenchPlan(count=64, depth=16, threads=4))


def test_refusals(tmp_path: Path) -> None:
    with blocklayer.open(make(tmp_path / "image")) as disk:
        with pytest.raises(InvalidArgument):
            bench_disk(disk, BenchPlan(depth=0))
        with pytest.raises(OutOfRange):
            bench_disk(disk, BenchPlan(size=2**40))
        with pytest.raises(OutOfRange):
            bench_disk(disk, BenchPlan(offset=SIZE))
        cancel = CancelToken()
        cancel.cancel()
        with pytest.raises(Cancelled):
            bench_disk(disk, BenchPlan(), cancel=cancel)
