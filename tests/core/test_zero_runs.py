# SPDX-License-Identifier: Apache-2.0
"""Zeroes are found where they are, in whole blocks of the guest, and nowhere else."""

from __future__ import annotations

import random

import pytest

from blocklayer.base.buffers import ZERO_CHUNK
from blocklayer.base.units import KiB, MiB
from blocklayer.core.zero_runs import Run, find_zeroes


def plainly(buffer: bytearray, start: int, length: int, offset: int, granularity: int) -> list[Run]:
    """The same, block by block."""
    runs: list[Run] = []
    position, end = start, start + length
    while position < end:
        guest = offset + position - start
        stop = min(end, position + granularity - guest % granularity)
        zero = not any(buffer[position:stop])
        if runs and runs[-1][2] == zero:
            before = runs.pop()
            runs.append((before[0], stop - before[0], zero))
        else:
            runs.append((position, stop - position, zero))
        position = stop
    return runs


@pytest.mark.parametrize("granularity", [512, 4 * KiB, 64 * KiB, 2 * MiB])
def test_as_block_by_block(rng: random.Random, granularity: int) -> None:
    size = 3 * max(granularity, 32 * KiB)
    for _ in range(150):
        buffer = bytearray(rng.randbytes(size))
        for _ in range(rng.randrange(6)):
            first = rng.randrange(size)
            last = min(size, first + rng.choice([1, granularity, 5 * granularity, size]))
            if rng.random() < 0.7:
                first = first // granularity * granularity
                last = -(-last // granularity) * granularity
            buffer[first:last] = bytes(len(buffer[first:last]))
        if rng.random() < 0.5:  # the first byte of a block tells nothing
            buffer[::512] = bytes(len(buffer[::512]))
        offset = rng.choice([0, granularity, rng.randrange(10 * granularity)])
        start = rng.choice([0, rng.randrange(size)])
        length = rng.choice([size - start, rng.randrange(1, size - start + 1)])
        found = find_zeroes(buffer, start, length, offset, granularity)
        assert found == plainly(buffer, start, length, offset, granularity)


def test_everything_is_data_without_granularity() -> None:
    assert find_zeroes(bytearray(8192), 100, 5000, 7, 0) == [(100, 5000, False)]


@pytest.mark.parametrize("granularity", [ZERO_CHUNK, 2 * ZERO_CHUNK])
def test_blocks_as_large_as_the_shared_zeroes(granularity: int) -> None:
    buffer = bytearray(4 * ZERO_CHUNK)
    assert find_zeroes(buffer, 0, len(buffer), 0, granularity) == [(0, len(buffer), True)]
    buffer[-1] = 1
    last = len(buffer) - granularity
    assert find_zeroes(buffer, 0, len(buffer), 0, granularity) == [
        (0, last, True),
        (last, granularity, False),
    ]
