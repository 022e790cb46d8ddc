# SPDX-License-Identifier: Apache-2.0
"""Statistics: exact counts of what was asked for, under QEMU's names."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import BlocklayerError, InvalidArgument, OutOfRange
from blocklayer.base.units import MiB
from blocklayer.core.batch import Request
from blocklayer.core.disk import Disk
from blocklayer.core.node import Node
from blocklayer.core.stats import CountingDisk, Stats
from blocklayer.filters import fault_rules
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import InjectError
from tests.support.graphs import memory, open_node, tree

NAMES = {
    *(f"{name}_operations" for name in ("rd", "wr", "unmap", "flush")),
    *(f"{name}_total_time_ns" for name in ("rd", "wr", "unmap", "flush")),
    *(f"failed_{name}_operations" for name in ("rd", "wr", "unmap", "flush")),
    *(f"invalid_{name}_operations" for name in ("rd", "wr", "unmap", "flush")),
    *("rd_bytes", "wr_bytes", "unmap_bytes", "rd_merged", "wr_merged", "unmap_merged"),
    *("zero_operations", "zero_bytes", "wr_highest_offset"),
}


def counting(node: Node | None = None, *, discard: str = "unmap", **flags: bool) -> CountingDisk:
    file = memory(size=MiB) if node is None else node
    return CountingDisk(open_node(tree(file, "raw"), **flags), discard=discard)


def counts(stats: Stats) -> dict[str, int]:
    """What is not zero, without the times."""
    members = stats.as_dict()
    return {k: v for k, v in members.items() if v and not k.endswith("time_ns")}


def test_a_new_disk_has_done_nothing() -> None:
    with counting() as disk:
        assert disk.stats.as_dict() == dict.fromkeys(NAMES, 0)


def test_every_verb_is_counted_once() -> None:
    with counting() as disk:
        disk.read(0, 100)
        disk.read_into(100, bytearray(200))
        disk.read_many([(0, 10), (20, 30)])
        disk.write(1000, b"x" * 50)
        disk.write_many([(5000, b"y" * 7), (5007, b"z" * 8), (9000, b"w")])
        disk.write_zeroes(20000, 300)
        disk.discard(0, 4096)
        disk.flush()
        disk.flush()
        assert counts(disk.stats) == {
            "rd_operations": 4,
            "rd_bytes": 340,
            "wr_operations": 5,
            "wr_bytes": 50 + 16 + 300,
            "wr_merged": 1,
            "wr_highest_offset": 20300,
            "zero_operations": 1,
            "zero_bytes": 300,
            "unmap_operations": 1,
            "unmap_bytes": 4096,
            "flush_operations": 2,
        }


def test_a_batch() -> None:
    with counting() as disk:
        disk.submit(
            [
                *[Request.write(i * 512, b"x" * 512) for i in range(8)],
                Request.read(MiB - 512, 512),
                Request.write_zeroes(65536, 1000),
                Request.discard(0, 512),
                Request.flush(),
                Request.write(MiB, b"x"),
                Request.read(-1, 1),
                Request.discard(0, MiB + 1),
            ]
        )
        assert counts(disk.stats) == {
            "rd_operations": 1,
            "rd_bytes": 512,
            "wr_operations": 9,
            "wr_bytes": 4096 + 1000,
            "wr_merged": 7,
            "wr_highest_offset": 66536,
            "zero_operations": 1,
            "zero_bytes": 1000,
            "unmap_operations": 1,
            "unmap_bytes": 512,
            "flush_operations": 1,
            "invalid_wr_operations": 1,
            "invalid_rd_operations": 1,
            "invalid_unmap_operations": 1,
        }


def test_failed_and_invalid_requests() -> None:
    fault = FaultNode(memory(size=MiB))
    with counting(fault) as disk:
        fault.add_rule(InjectError(iotypes=fault_rules.MOVING))
        failing: list[Callable[[], object]] = [
            lambda: disk.read(0, 512),
            lambda: disk.write(0, b"x"),
            lambda: disk.write_zeroes(0, 512),
            lambda: disk.discard(0, 512),
            disk.flush,
            lambda: disk.write_many([(0, b"x"), (512, b"y")]),
        ]
        for verb in failing:
            with pytest.raises(BlocklayerError):
                verb()
        fault.clear_rules()
        outside: list[Callable[[], object]] = [
            lambda: disk.read(MiB, 1),
            lambda: disk.read_into(MiB, bytearray(1)),
            lambda: disk.read_many([(0, 1), (MiB, 1)]),
            lambda: disk.write(MiB, b"x"),
            lambda: disk.write_many([(0, b"x"), (MiB, b"y")]),
            lambda: disk.write_zeroes(-1, 1),
            lambda: disk.discard(MiB, 1),
        ]
        for verb in outside:
            with pytest.raises(OutOfRange):
                verb()
        with pytest.raises(InvalidArgument):
            disk.write_zeroes(0, 1, unmap=True, allocate=True)
        assert counts(disk.stats) == {
            "rd_operations": 1,
            "rd_bytes": 1,
            "failed_rd_operations": 1,
            "failed_wr_operations": 4,
            "failed_unmap_operations": 1,
            "failed_flush_operations": 1,
            "invalid_rd_operations": 3,
            "invalid_wr_operations": 4,
            "invalid_unmap_operations": 1,
        }


def test_writes_to_a_read_only_disk_are_invalid() -> None:
    with counting(read_only=True) as disk:
        with pytest.raises(BlocklayerError):
            disk.write(0, b"x")
        assert counts(disk.stats) == {"invalid_wr_operations": 1}


def test_a_mistake_of_a_callback_is_no_success() -> None:
    with counting() as disk:

        def before(offset: int, length: int) -> None:
            raise ValueError("a mistake")

        disk.add_before_write(before)
        with pytest.raises(ValueError, match="a mistake"):
            disk.write(0, b"x")
        disk.remove_before_write(before)
        assert counts(disk.stats) == {"failed_wr_operations": 1}


def test_times() -> None:
    with counting() as disk:
        started = time.monotonic_ns()
        for _ in range(50):
            disk.write(0, b"x" * 512)
            disk.read(0, 512)
        disk.submit([Request.write(0, b"x"), Request.write(512, b"x")])
        elapsed = time.monotonic_ns() - started
        members = disk.stats.as_dict()
        assert 0 < members["rd_total_time_ns"] < elapsed
        assert 0 < members["wr_total_time_ns"] < 2 * elapsed
        time.sleep(0.01)
        idle = disk.stats.as_dict()["idle_time_ns"]
        assert 10_000_000 <= idle <= time.monotonic_ns() - started


def test_many_threads_lose_no_count() -> None:
    with counting() as disk:

        def run(number: int) -> None:
            for _ in range(300):
                disk.write(number * 4096, b"x" * 100)
                disk.read(number * 4096, 50)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts(disk.stats) == {
            "rd_operations": 1200,
            "rd_bytes": 60000,
            "wr_operations": 1200,
            "wr_bytes": 120000,
            "wr_highest_offset": 3 * 4096 + 100,
        }


def test_only_disks_that_were_asked_to_count(tmp_path: Path) -> None:
    path = tmp_path / "disk.qed"
    blocklayer.create(path, format="qed", size=MiB)
    with blocklayer.open(path, mode="r+") as disk:
        assert type(disk) is Disk
    with blocklayer.open(path, mode="r+", stats=True) as disk:
        assert isinstance(disk, CountingDisk)
        disk.write(0, b"x" * 512)
        assert disk.read(0, 512) == b"x" * 512
        assert counts(disk.stats)["wr_bytes"] == counts(disk.stats)["rd_bytes"] == 512
