# SPDX-License-Identifier: Apache-2.0
"""An interrupt (Ctrl-C) at every single point of a request where one can come through.

Whatever is interrupted, and wherever: what was acknowledged is there, no cluster has two owners,
nothing stays locked, and the disk can be used, and closed, as if nothing had happened.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytest

import blocklayer
from blocklayer.base.units import MiB
from blocklayer.core.batch import Request
from blocklayer.core.disk import Disk
from blocklayer.core.requests import RangeLock
from blocklayer.formats.qed.layout import F_NEED_CHECK
from tests.support.graphs import NO_REPAIR, check, memory, open_disk, tree
from tests.support.qed_image import CLUSTER, QedImage

PLACES = (os.path.dirname(blocklayer.__file__), threading.__file__)
SIZE = 8 * MiB
OLD = b"o" * CLUSTER
POINTS_MAX = 5000


@contextmanager
def interrupt_at(number: int) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt once, at the `number`-th point where a signal can come through.

    The interpreter runs signal handlers when a function begins, and when a built-in one has
    returned to it (and in loops, which is not imitated here): not between any two steps.
    """
    seen = [0]

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PLACES):
            seen[0] += 1
            if seen[0] == number:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)


def allocate(disk: Disk) -> None:
    disk.write(10 * CLUSTER + 100, b"n" * CLUSTER)


def allocate_in_new_table(disk: Disk) -> None:
    disk.write(5 * MiB, b"n" * 3 * CLUSTER)


def batch(disk: Disk) -> None:
    disk.submit(
        [
            Request.write(20 * CLUSTER, b"n" * CLUSTER),
            Request.write(22 * CLUSTER + 5, b"n" * 10),
            Request.write_zeroes(30 * CLUSTER, 2 * CLUSTER),
            Request.write(3 * MiB, b"n" * 10),
        ]
    )


def zero(disk: Disk) -> None:
    disk.write_zeroes(CLUSTER // 2 + 40 * CLUSTER, 3 * CLUSTER)


def overwrite(disk: Disk) -> None:
    disk.write(50 * CLUSTER, memoryview(b"n" * CLUSTER))


VERBS: list[Callable[[Disk], None]] = [
    allocate,
    allocate_in_new_table,
    batch,
    zero,
    overwrite,
]
KEPT = 60 * CLUSTER
"""What is written and flushed before, and never touched by a verb."""


def prepared(backed: bool) -> tuple[QedImage, Any]:
    below = memory("below", SIZE)
    below.writev(0, [memoryview(b"b" * SIZE)])
    names = {"backing_file": "below", "backing_fmt": "raw"} if backed else {}
    image = QedImage(SIZE, **names)
    return image, tree(below, "raw") if backed else None


def play(verb: Callable[[Disk], None], number: int, *, backed: bool) -> bool:
    """Interrupt a verb at one point, go on, and examine; False if there is no such point."""
    image, backing = prepared(backed)
    disk = image.open(backing)
    disk.write(KEPT, OLD)
    disk.write(50 * CLUSTER, OLD)
    disk.flush()
    with interrupt_at(number) as seen:
        try:
            verb(disk)
        except KeyboardInterrupt:
            use(disk)  # while what the traceback refers to is alive
    if seen[0] < number:
        disk.close()
        return False
    use(disk)
    disk.close()
    with image.open(backing) as again:
        assert again.read(KEPT, CLUSTER) == OLD
        assert again.read(61 * CLUSTER, CLUSTER) == b"l" * CLUSTER
        assert again.read(10 * CLUSTER, CLUSTER) == b"l" * CLUSTER
    result = check(image.node, NO_REPAIR)
    assert not result.corruptions, result.problems
    assert not result.check_errors
    assert not image.header.features & F_NEED_CHECK
    return True


def use(disk: Disk) -> None:
    """Nothing is in the way of other requests, also of those to the same clusters."""
    tracker, ranges = disk.node.tracker, disk.node.ranges
    assert not tracker.requests
    assert not tracker.inflight
    assert not tracker.drained
    assert not ranges._held
    assert not ranges._waiting
    assert not ranges._lock.locked()
    assert not tracker._lock.locked()
    disk.write(61 * CLUSTER, b"l" * CLUSTER)
    disk.write_many([(10 * CLUSTER, b"l" * 2 * CLUSTER), (20 * CLUSTER, b"l" * 12 * CLUSTER)])
    disk.write(5 * MiB, b"l" * 3 * CLUSTER)
    disk.flush()


# An interrupt that comes while the interpreter drops a generator is printed and forgotten.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("backed", [False, True], ids=["alone", "overlay"])
@pytest.mark.parametrize("verb", VERBS)
def test_an_interrupt_at_every_point(verb: Callable[[Disk], None], backed: bool) -> None:
    numbers = iter(range(1, POINTS_MAX))
    tried = sum(1 for _ in iter(lambda: play(verb, next(numbers), backed=backed), False))
    assert 20 < tried < POINTS_MAX - 2


def test_closing_can_be_interrupted_and_tried_again() -> None:
    for number in range(1, 200):
        image, _ = prepared(False)
        disk = image.open()
        disk.write(KEPT, OLD)
        with interrupt_at(number), suppress(KeyboardInterrupt):
            disk.close()
        disk.close()
        assert disk.closed
        with open_disk(image.node) as again:
            assert again.read(KEPT, CLUSTER) == OLD
        result = check(image.node, NO_REPAIR)
        assert not result.corruptions


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_waiting_can_be_interrupted() -> None:
    """Somebody else holds what a request waits for; he is not disturbed, and nothing is left."""
    for number in range(1, 200):
        lock = RangeLock()
        holder = object()
        lock.acquire(holder, [(0, 10)])
        releasing = threading.Timer(0.005, lock.release, [holder])
        done: list[int] = []
        releasing.start()
        with interrupt_at(number) as seen, suppress(KeyboardInterrupt):
            lock.run([(5, 6)], done.append, 1)
        releasing.join()
        assert not lock._held
        assert not lock._waiting
        assert not lock._bell._sleepers
        assert not lock._lock.locked()
        if seen[0] < number:
            assert done
            return
    raise AssertionError("it goes on for ever")
