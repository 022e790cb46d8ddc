# SPDX-License-Identifier: Apache-2.0
"""Zeroes in what has been read, found at the speed of memory.

Most blocks tell by their first byte that they are no zeroes; those bytes are looked at all at once.
"""

from __future__ import annotations

from blocklayer.base.buffers import ZERO_CHUNK, ZEROES

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias

BLOCKS_AT_ONCE = 16
"""Blocks of a run of zeroes that are compared together."""

Run: TypeAlias = "tuple[int, int, bool]"


def find_zeroes(
    buffer: bytearray, start: int, length: int, offset: int, granularity: int
) -> list[Run]:
    """Cut `length` bytes at `start` into runs (start, length, is zero).

    Zeroes count in whole blocks of `granularity`, aligned to the guest `offset` of the first byte;
    what an end cuts off a block counts as a block.
    """
    if not granularity:
        return [(start, length, False)]
    runs: list[Run] = []
    end = start + length
    first_border = min(end, start + -offset % granularity)
    data = start  # what is not told of yet
    if start < first_border and not any(buffer[start:first_border]):
        runs.append((start, first_border - start, True))
        data = first_border
    first_bytes = buffer[first_border:end:granularity]
    index = first_bytes.find(0)
    while index >= 0:
        place = first_border + index * granularity
        stop = _end_of_zeroes(buffer, place, end, granularity)
        if stop == place:
            index = first_bytes.find(0, index + 1)
            continue
        if data < place:
            runs.append((data, place - data, False))
        if runs and runs[-1][2]:
            place = runs.pop()[0]
        runs.append((place, stop - place, True))
        data = stop
        index = first_bytes.find(0, -((first_border - stop) // granularity))
    if data < end:
        runs.append((data, end - data, False))
    return runs


def _end_of_zeroes(buffer: bytearray, position: int, end: int, granularity: int) -> int:
    """Where the blocks of zeroes end that begin at `position`, a border of blocks."""
    starts = buffer.startswith
    if granularity * BLOCKS_AT_ONCE <= ZERO_CHUNK:
        several = ZEROES[: granularity * BLOCKS_AT_ONCE]
        while position + len(several) <= end and starts(several, position):
            position += len(several)
    while position < end:
        block_end = min(position + granularity, end)
        if block_end - position <= ZERO_CHUNK:
            zero = starts(ZEROES[: block_end - position], position)
        else:
            zero = not any(buffer[position:block_end])
        if not zero:
            break
        position = block_end
    return position
