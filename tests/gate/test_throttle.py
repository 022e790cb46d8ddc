# SPDX-License-Identifier: Apache-2.0
"""Limits on bytes and operations: exact with a clock of our own, coarse with the real one."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from blocklayer.base.errors import InvalidArgument, NotSupported
from blocklayer.base.units import KiB, MiB
from blocklayer.core import objects
from blocklayer.core.batch import Request
from blocklayer.core.disk import Disk
from blocklayer.core.filter import FilterNode
from blocklayer.core.graph import Graph
from blocklayer.core.node import Node
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.filters import throttle
from blocklayer.filters.throttle import Bucket, Group, ThrottleNode
from blocklayer.protocols.memory import MemoryNode
from tests.support.graphs import memory


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.naps.append(seconds)
        # A hair more, as real sleeps do: else rounding could need one more nap.
        self.now += seconds + 1e-9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(throttle, "time", fake)
    return fake


def timed(clock: Clock, group: Group, direction: str, sizes: list[int]) -> list[float]:
    """When each of these requests passes, one after another; seconds from now."""
    start = clock.now
    passed = []
    for size in sizes:
        group.admit(direction, size)
        passed.append(clock.now - start)
    return passed


def close_to(*seconds: float) -> Any:
    return pytest.approx(list(seconds), abs=1e-4)


# --- buckets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"bps-read-max": 100}, "require corresponding"),
        ({"bps-read": 100, "bps-read-max": 50}, "cannot be lower"),
        (
            {"bps-read": 100, "bps-read-max": 200, "bps-read-max-length": 0},
            "burst length cannot be 0",
        ),
        ({"bps-read": 100, "bps-read-max-length": 2}, "burst length set without burst rate"),
        ({"bps-read": 10**15 + 1}, r"must be within \[0, 1000000000000000\]"),
        ({"bps-read": 1, "bps-read-max": 10**15, "bps-read-max-length": 2}, "too high"),
        ({"bps-read": 1, "bps-total": 1}, "cannot be used at the same time"),
        ({"iops-write-max": 1, "iops-total-max": 1}, "cannot be used at the same time"),
        ({"iops-size": 1, "bps-total": 1}, "iops size requires an iops value"),
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, int], words: str) -> None:
    """Of a filter that says them itself, and of an object."""
    with pytest.raises(InvalidArgument, match=words):
        opened(limits=limits)
    with pytest.raises(InvalidArgument, match=words):
        opened(**limits)
    for properties in ({"limits": limits}, {f"x-{name}": each for name, each in limits.items()}):
        with pytest.raises(InvalidArgument, match=words):
            objects.add("throttle-group", "wrong", properties)
    assert objects.find("wrong") is None


def test_no_limit_is_no_wait() -> None:
    bucket = Bucket()
    bucket.pour(10**12)
    assert bucket.wait() == 0


def test_a_bucket_holds_a_tenth_of_a_second() -> None:
    bucket = Bucket(1000)
    bucket.pour(100)
    assert bucket.wait() == 0
    bucket.pour(50)
    assert bucket.wait() == pytest.approx(0.05)
    bucket.leak(0.02)
    assert bucket.wait() == pytest.approx(0.03)
    bucket.leak(100)
    assert bucket.wait() == 0


def test_a_burst_lasts_a_second_if_nothing_else_is_said() -> None:
    bucket = Bucket(100, 1000)
    bucket.pour(1000)
    assert bucket.wait() == 0
    bucket.pour(10)
    assert bucket.wait() == pytest.approx(0.1)


def test_a_long_burst_flows_at_its_rate() -> None:
    bucket = Bucket(100, 1000, 5)
    bucket.pour(150)
    assert bucket.wait() == pytest.approx(0.05)
    bucket.leak(0.05)
    assert bucket.wait() == pytest.approx(0)


# --- groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bps-total", "bps-read", "iops-total", "iops-read"])
def test_an_average(clock: Clock, kind: str) -> None:
    """10 requests of 100 bytes at 1000 bytes, or 10 operations, per second: one each 0.1 s."""
    group = Group({kind: Bucket(1000 if kind.startswith("bps") else 10)})
    passed = timed(clock, group, "read", [100] * 12)
    assert passed == close_to(0, 0, *[0.1 * n for n in range(1, 11)])


def test_a_long_run_keeps_to_the_average(clock: Clock) -> None:
    group = Group({"bps-total": Bucket(1 * MiB)})
    passed = timed(clock, group, "write", [64 * KiB] * 320)
    assert passed[-1] == pytest.approx(20, rel=0.02)


def test_a_burst_and_then_the_average(clock: Clock) -> None:
    """1000 operations may burst; the rest flows at 100 a second."""
    group = Group({"iops-total": Bucket(100, 1000)})
    passed = timed(clock, group, "read", [1] * 1201)
    assert passed[1000] == pytest.approx(0, abs=1e-6)
    assert passed[1200] == pytest.approx(2, rel=0.01)


def test_a_burst_of_some_seconds(clock: Clock) -> None:
    """1000 a second for 3 seconds, then 100 a second. It leaks meanwhile, as QEMU has it."""
    group = Group({"iops-total": Bucket(100, 1000, 3)})
    passed = timed(clock, group, "read", [1] * 4001)
    assert passed[1000] == pytest.approx(0.9, rel=0.02)
    assert passed[3000] == pytest.approx(2.9, rel=0.02)
    # The brim is reached after 3000 / (1000 - 100) seconds.
    at_brim = next(i for i in range(3000, 4000) if passed[i + 1] - passed[i] > 0.009)
    assert passed[at_brim] == pytest.approx(3.23, rel=0.05)
    assert passed[4000] - passed[at_brim] == pytest.approx((4000 - at_brim) / 100, rel=0.02)


def test_a_burst_comes_back_after_a_rest(clock: Clock) -> None:
    group = Group({"iops-total": Bucket(100, 1000)})
    timed(clock, group, "read", [1] * 1001)
    clock.now += 10
    assert timed(clock, group, "read", [1] * 1000)[-1] == pytest.approx(0, abs=1e-6)


def test_directions_have_buckets_of_their_own(clock: Clock) -> None:
    group = Group({"iops-read": Bucket(10), "iops-write": Bucket(20)})
    assert timed(clock, group, "read", [1] * 22)[-1] == pytest.approx(2, abs=1e-3)
    # While reads were waiting, time passed for writes too.
    assert timed(clock, group, "write", [1] * 3)[-1] == pytest.approx(0, abs=1e-3)
    assert timed(clock, group, "write", [1] * 20)[-1] == pytest.approx(1, abs=1e-3)


def test_the_tightest_limit_holds(clock: Clock) -> None:
    limits = {"bps-total": Bucket(1000), "iops-total": Bucket(100), "bps-write": Bucket(500)}
    assert timed(clock, Group(limits), "read", [100] * 22)[-1] == pytest.approx(2, abs=1e-3)
    assert timed(clock, Group(dict(limits)), "write", [10] * 3)[-1] <= 1


def test_both_directions_share_the_total(clock: Clock) -> None:
    group = Group({"iops-total": Bucket(10)})
    start = clock.now
    for number in range(22):
        group.admit(("read", "write")[number % 2], 1)
    assert clock.now - start == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize(
    ("length", "operations"), [(1, 1), (4096, 1), (4097, 2), (8192, 2), (40960, 10)]
)
def test_large_requests_are_several_operations(clock: Clock, length: int, operations: int) -> None:
    group = Group({"iops-total": Bucket(10)}, operation_size=4096)
    passed = timed(clock, group, "read", [length] * 12)
    assert passed[-1] == pytest.approx((11 * operations - 1) / 10, abs=1e-3)


def test_limits_can_be_lifted_while_somebody_waits(clock: Clock) -> None:
    group = Group({"iops-total": Bucket(0.01)})
    timed(clock, group, "read", [1])

    def lift(seconds: float) -> None:
        clock.naps.append(seconds)
        clock.now += seconds
        if len(clock.naps) == 7:
            group.set_limits({})

    clock.sleep = lift  # type: ignore[method-assign]
    assert timed(clock, group, "read", [1]) == close_to(0.7)
    assert max(clock.naps) <= 0.1


def test_a_request_larger_than_the_bucket_passes_and_is_paid_for_afterwards(clock: Clock) -> None:
    group = Group({"bps-total": Bucket(1000)})
    assert timed(clock, group, "read", [5000, 1, 1]) == close_to(0, 4.9, 4.901)


# --- the filter -----------------------------------------------------------------------------------


def opened(**options: Any) -> Disk:
    tree = {"driver": "throttle", "file": memory(size=MiB), **options}
    return Disk(Opener(OpenFlags(read_only=False)).open_options(tree), discard="unmap")


def seconds(clock: Clock, action: Callable[[], object]) -> float:
    start = clock.now
    action()
    return clock.now - start


def test_every_verb_is_counted(clock: Clock) -> None:
    with opened(**{"bps-total": 10000}) as disk:
        full = 1000 + 1  # what fits, and a byte that makes the next one wait
        for verb in (
            lambda: disk.read(0, full),
            lambda: disk.write(0, bytes(full)),
            lambda: disk.write_zeroes(0, full),
            lambda: disk.discard(0, full),
            lambda: disk.submit([Request.write(0, bytes(full))]),
        ):
            clock.now += 1000
            assert seconds(clock, verb) == 0
            assert seconds(clock, lambda: disk.read(0, 1)) == pytest.approx(1e-4, rel=0.01)
        clock.now += 1000
        disk.write(0, bytes(5000))
        assert seconds(clock, disk.flush) == 0


def test_zeroes_that_must_be_written_are_counted_once(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(offset: int, length: int, flags: int = 0) -> None:
        raise NotSupported("no zeroing here")

    with opened(**{"bps-total": 10000}) as disk:
        disk.write(0, b"a" * 5000)
        clock.now += 1000
        monkeypatch.setattr(disk.node.children["file"], "zero", refuse)
        assert seconds(clock, lambda: disk.write_zeroes(0, 5000)) == 0
        # 5000 bytes less the 1000 that a bucket holds, at 10000 a second.
        assert seconds(clock, lambda: disk.read(0, 1)) == pytest.approx(0.4, rel=0.01)


def test_options_of_every_kind(clock: Clock) -> None:
    with opened(
        limits={"iops-total": 100, "iops-total-max": 1000, "iops-total-max-length": 2},
        **{"bps-read": "1M"},
    ) as disk:
        assert isinstance(disk.node, ThrottleNode)
        buckets = disk.node.group._buckets
        iops, bps = buckets["iops-total"], buckets["bps-read"]
        assert (iops.average, iops.burst, iops.burst_length) == (100, 1000, 2)
        assert (bps.average, bps.burst, bps.burst_length) == (MiB, 0, 1)
        assert not buckets["bps-write"].average


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bps-all": 1}, "Invalid parameter 'bps-all'"),
        ({"limits": 5}, "Invalid parameter type for 'limits'"),
        ({"limits": {"speed": 5}}, "Invalid parameter 'speed'"),
        ({"iops-total-max": 5}, "require corresponding"),
        ({"iops-read": 5, "iops-read-max-length": 2}, "without burst rate"),
        ({"bps-read": 1, "nonsense": 1}, "Invalid parameter 'nonsense'"),
        ({}, "Please specify a throttle group"),
        ({"limits": {}}, "Please specify a throttle group"),
        ({"throttle-group": "nobody"}, "Throttle group 'nobody' does not exist"),
        ({"bps-read": -1}, "Invalid bps-read '-1'"),
        ({"limits": {"bps-read": 1.5}}, "Invalid bps-read '1.5'"),
        ({"limits": {"bps-read": "fast"}}, "Invalid bps-read 'fast'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        opened(**options)


def use_a_group(clock: Clock) -> None:
    with (
        opened(**{"throttle-group": "shared", "iops-total": 10}) as one,
        opened(**{"throttle-group": "shared"}) as two,
        opened(**{"iops-total": 10}) as alone,
    ):
        start = clock.now
        for _ in range(11):
            one.read(0, 1)
            two.read(0, 1)
        assert clock.now - start == pytest.approx(2, abs=1e-3)
        assert seconds(clock, lambda: alone.read(0, 1)) == 0


def test_filters_of_one_group_share_its_limits(clock: Clock) -> None:
    use_a_group(clock)
    gc.collect()  # nodes and disks know each other
    with pytest.raises(InvalidArgument, match="Throttle group 'shared' does not exist"):
        opened(**{"throttle-group": "shared"})


@pytest.fixture
def defined() -> Iterator[Callable[..., None]]:
    """Adds an object called g, in place of the one there is; there is none afterwards."""

    def define(**properties: Any) -> None:
        objects.forget("g")
        objects.add("throttle-group", "g", properties)

    yield define
    objects.forget("g")


@pytest.mark.parametrize(
    "limits",
    [
        {"limits": {"iops-total": 10}},
        {"x-iops-total": 10},
        {"limits": {"iops-total": 99999}, "x-iops-total": 10},
        {"limits": {"iops-total-max": 20}, "x-iops-total": 10, "x-iops-total-max": 0},
    ],
)
def test_filters_of_an_object_share_its_limits(
    clock: Clock, limits: dict[str, Any], defined: Callable[..., None]
) -> None:
    """Of both spellings, the second one counts where both are given: as QEMU's `qom-get` tells."""
    defined(**limits)
    with opened(**{"throttle-group": "g"}) as one, opened(**{"throttle-group": "g"}) as two:
        for each in (one, two):
            assert isinstance(each.node, ThrottleNode)
        assert seconds(clock, lambda: [d.read(0, 1) for d in [one, two] * 11]) == pytest.approx(2)


def test_a_new_object_has_nothing_of_an_old_one(clock: Clock, defined: Callable[..., None]) -> None:
    defined(**{"x-iops-total": 10})
    with opened(**{"throttle-group": "g"}):
        defined()
        with opened(**{"throttle-group": "g"}) as disk:
            assert seconds(clock, lambda: [disk.read(0, 1) for _ in range(100)]) == 0


def test_an_object_has_the_limits(defined: Callable[..., None]) -> None:
    defined()
    with pytest.raises(InvalidArgument, match="Throttle group 'g' is an object"):
        opened(**{"throttle-group": "g", "iops-total": 10})
    objects.forget("g")
    objects.add("secret", "g", {"data": "x"})
    with pytest.raises(InvalidArgument, match="Throttle group 'g' does not exist"):
        opened(**{"throttle-group": "g"})


def test_the_operation_size_of_a_group(clock: Clock) -> None:
    options = {"throttle-group": "sized", "iops-total": 10, "iops-size": 4096}
    with opened(**options) as disk:
        disk.read(0, 40960)
        assert seconds(clock, lambda: disk.read(0, 1)) == pytest.approx(0.9, abs=1e-3)


# --- the real clock -------------------------------------------------------------------------------


def test_a_real_second() -> None:
    """512 KiB at 1 MiB/s, a tenth of a second of them at once."""
    with opened(**{"bps-write": MiB}) as disk:
        start = time.monotonic()
        for number in range(16):
            disk.write(number * 32 * KiB, bytes(32 * KiB))
        elapsed = time.monotonic() - start
        assert 0.3 <= elapsed < 3
        start = time.monotonic()
        disk.read(0, MiB)
        assert time.monotonic() - start < 0.3


def test_threads_share_a_limit() -> None:
    with opened(**{"iops-total": 100}) as disk:
        start = time.monotonic()

        def run() -> None:
            for _ in range(10):
                disk.read(0, 512)

        threads = [threading.Thread(target=run) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 0.35 <= time.monotonic() - start < 4


@pytest.mark.parametrize("below", [False, True])
def test_a_drain_does_not_wait_for_limits(below: bool) -> None:
    """As with QEMU: a change of the graph would take as long as the limit likes."""
    graph = Graph()
    node: Node = ThrottleNode(MemoryNode(MiB), Group({"bps-write": Bucket(1)}))
    graph.add_node(FilterNode(node) if below else node, "s")
    disk = graph.open_disk("s", writable=True)
    writers = [
        threading.Thread(target=disk.write, args=(offset, bytes([offset + 1]) * 64), daemon=True)
        for offset in range(0, 192, 64)
    ]
    for writer in writers:
        writer.start()
    deadline = time.monotonic() + 10
    while len(disk.node.tracker.requests) < 2:  # the first has passed
        assert time.monotonic() < deadline
    with graph.drained(disk.node):
        assert time.monotonic() < deadline
        for writer in writers:
            writer.join(5)
    assert disk.read(0, 192) == b"".join(bytes([number]) * 64 for number in (1, 65, 129))
    # What has passed is paid for by those that come later; a drain of the disk alone is as quick.
    late = threading.Thread(target=disk.write, args=(0, b"x"))
    late.start()
    late.join(0.3)
    assert late.is_alive()
    with disk.drain():
        assert time.monotonic() < deadline
    late.join(5)
    assert disk.read(0, 1) == b"x"
    graph.close()
