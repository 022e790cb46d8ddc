# SPDX-License-Identifier: Apache-2.0
"""The merger of writes: disjoint ascending runs with the effect of the order of submission."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise, product

import pytest

from blocklayer.base.buffers import vector_length
from blocklayer.core.batch import RUN_PARTS_MAX, MergedRun, Request, merge_writes, phases

Write = tuple[int, memoryview]

SPACE = 6
INTERVALS = [(start, end) for start in range(SPACE + 1) for end in range(start, SPACE + 1)]
"""Every interval in 0..6, the empty ones included."""
SHORT_INTERVALS = [(start, end) for start in range(5) for end in range(start + 1, 5)]


def paint(size: int, writes: Sequence[Write]) -> tuple[bytearray, list[int]]:
    """The bytes after all writes, and the index of the write that each byte comes from (or -1)."""
    content, painter = bytearray(size), [-1] * size
    for index, (offset, view) in enumerate(writes):
        content[offset : offset + len(view)] = view
        painter[offset : offset + len(view)] = [index] * len(view)
    return content, painter


def require_merged(size: int, writes: Sequence[Write]) -> list[MergedRun]:
    runs = merge_writes(writes)
    content, painter = paint(size, writes)
    found, owners = bytearray(size), [-1] * size
    for run in runs:
        assert run.length == vector_length(run.vector) > 0
        assert len(run.owners) == len(run.vector)
        position = run.offset
        for view, owner in zip(run.vector, run.owners, strict=True):
            assert len(view), "a vector holds an empty view"
            found[position : position + len(view)] = view
            owners[position : position + len(view)] = [owner] * len(view)
            position += len(view)
        assert position == run.offset + run.length
    assert found == content
    assert owners == painter
    for one, two in pairwise(runs):
        if len(one.vector) < RUN_PARTS_MAX:
            assert one.offset + one.length < two.offset, "neighbours are one run"
        assert one.offset + one.length <= two.offset
    return runs


def numbered(intervals: Sequence[tuple[int, int]]) -> list[Write]:
    """One write an interval; no byte is like any other, within a write or between two."""
    return [
        (start, memoryview(bytes(range(16 * index + 1, 16 * index + 1 + end - start))))
        for index, (start, end) in enumerate(intervals)
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_every_set_of_intervals(count: int) -> None:
    for intervals in product(INTERVALS, repeat=count):
        require_merged(SPACE, numbered(intervals))


def test_every_set_of_four_intervals() -> None:
    for intervals in product(SHORT_INTERVALS, repeat=4):
        require_merged(SPACE, numbered(intervals))


def random_writes(rng: random.Random, size: int) -> Iterator[Write]:
    for _ in range(rng.randrange(1, 60)):
        offset = rng.randrange(size)
        length = rng.choice([0, 1, 2, rng.randrange(8), rng.randrange(1 + size // 4)])
        yield offset, memoryview(rng.randbytes(min(length, size - offset)))


def test_random_writes(rng: random.Random) -> None:
    for _ in range(400):
        size = rng.choice([16, 100, 1000])
        require_merged(size, list(random_writes(rng, size)))


def test_nothing_is_copied() -> None:
    payload = bytearray(b"abcdefgh")
    (run,) = merge_writes([(0, memoryview(payload)[:4]), (4, memoryview(payload)[4:])])
    payload[:] = b"ABCDEFGH"
    assert b"".join(run.vector) == b"ABCDEFGH"


def test_a_run_has_no_more_parts_than_a_system_call_takes() -> None:
    writes = [(index * 8, memoryview(b"12345678")) for index in range(5000)]
    random.Random(1).shuffle(writes)
    runs = require_merged(40000, writes)
    assert [len(run.vector) for run in runs] == [1024, 1024, 1024, 1024, 904]


def test_one_write_that_covers_all_others() -> None:
    writes = [(index * 8, memoryview(b"12345678")) for index in range(100)]
    covering = memoryview(bytes(800))
    (run,) = merge_writes([*writes, (0, covering)])
    assert run.owners == [100]
    (run,) = merge_writes([(0, covering), *writes])
    assert sorted(run.owners) == list(range(1, 101))


# --- phases ---------------------------------------------------------------------------------------


def kinds(cut: list[list[Request]]) -> list[list[str]]:
    return [[request.kind for request in phase] for phase in cut]


def test_requests_that_do_not_touch_share_a_phase() -> None:
    batch = [Request.write(0, b"x" * 8), Request.read(8, 8), Request.write_zeroes(16, 8)]
    assert len(phases(batch)) == 1


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (Request.write(0, b"x" * 8), Request.read(7, 1)),
        (Request.read(0, 8), Request.write(0, b"x")),
        (Request.write_zeroes(0, 8), Request.write(4, b"x" * 8)),
        (Request.discard(0, 8), Request.read(0, 1)),
        (Request.write(0, b"x"), Request.flush()),
        (Request.flush(), Request.write(0, b"x")),
        (Request.flush(), Request.flush()),
    ],
)
def test_order_that_matters_cuts(one: Request, two: Request) -> None:
    assert phases([one, two]) == [[one], [two]]


def test_writes_may_overlap_within_a_phase() -> None:
    assert len(phases([Request.write(0, b"x" * 8), Request.write(4, b"y" * 8)])) == 1


def test_phases_keep_everything_in_order(rng: random.Random) -> None:
    for _ in range(100):
        batch = []
        for _ in range(rng.randrange(60)):
            offset, length = rng.randrange(64), rng.randrange(1, 16)
            batch.append(
                rng.choice(
                    [
                        Request.read(offset, length),
                        Request.write(offset, bytes(length)),
                        Request.write_zeroes(offset, length),
                        Request.discard(offset, length),
                        Request.flush(),
                    ]
                )
            )
        cut = phases(batch)
        assert [request for phase in cut for request in phase] == batch
        for phase in cut:
            for index, request in enumerate(phase):
                for other in phase[:index]:
                    apart = request.end <= other.offset or other.end <= request.offset
                    assert request.kind == other.kind or apart, kinds(cut)


def test_a_phase_is_bounded() -> None:
    batch = [Request.write(index, b"x") for index in range(2500)]
    assert [len(phase) for phase in phases(batch)] == [1024, 1024, 452]
