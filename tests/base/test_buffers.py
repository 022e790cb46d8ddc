# SPDX-License-Identifier: Apache-2.0
"""Vectors, shared zeroes, and looking for zeroes."""

from __future__ import annotations

import array
import ctypes
import mmap
from itertools import pairwise

import pytest

from blocklayer.base import buffers
from blocklayer.base.buffers import (
    ZERO_CHUNK,
    Vector,
    aligned_buffer,
    byte_view,
    fill_zero,
    is_zero,
    slice_vector,
    vector_length,
    zero_pieces,
    zero_vector,
)


def vector(*parts: bytes) -> Vector:
    return [memoryview(bytearray(part)) for part in parts]


def joined(some: Vector) -> bytes:
    return b"".join(some)


@pytest.mark.parametrize("parts", [(b"abcdef",), (b"a", b"bcd", b"ef"), (b"ab", b"cd", b"ef")])
def test_every_slice_of_a_vector(parts: tuple[bytes, ...]) -> None:
    whole = vector(*parts)
    content = joined(whole)
    for start in range(7):
        for length in range(1, 8 - start):
            part = slice_vector(whole, start, min(length, 6 - start)) if start < 6 else []
            assert joined(part) == content[start : start + length]
            assert all(len(view) for view in part)
    assert vector_length(whole) == 6


def test_slices_are_views() -> None:
    whole = vector(b"abc", b"def")
    part = slice_vector(whole, 2, 2)
    part[0][:] = b"X"
    part[1][:] = b"Y"
    assert joined(whole) == b"abXYef"
    single = vector(b"abc")
    assert slice_vector(single, 0, 3) is single


@pytest.mark.parametrize(
    ("buffer", "expected"),
    [
        (b"ab", b"ab"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"xabx")[1:3], b"ab"),
        (array.array("H", b"abcd"), b"abcd"),
        (memoryview(b"abcd").cast("B", (2, 2)), b"abcd"),
        (memoryview(b"ab").cast("c"), b"ab"),
        (b"", b""),
    ],
)
def test_anything_with_bytes_is_a_flat_view(buffer: object, expected: bytes) -> None:
    view = byte_view(buffer)
    assert (view.format, view.ndim, bytes(view)) == ("B", 1, expected)


def test_what_is_no_view_of_bytes_in_a_row() -> None:
    with pytest.raises(ValueError, match="not contiguous"):
        byte_view(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        byte_view("text")


def test_zeroes_are_shared_and_bounded() -> None:
    for length in (0, 1, ZERO_CHUNK, ZERO_CHUNK + 1, 3 * ZERO_CHUNK + 7):
        zeroes = zero_vector(length)
        assert vector_length(zeroes) == length
        assert all(0 < len(view) <= ZERO_CHUNK for view in zeroes)
        assert all(view.obj is buffers.ZEROES for view in zeroes)
        pieces = list(zero_pieces(100, length))
        assert sum(len(view) for _, view in pieces) == length
        assert all(one[0] + len(one[1]) == two[0] for one, two in pairwise(pieces))
        assert not pieces or pieces[0][0] == 100


def test_filling_with_zeroes() -> None:
    buffer = bytearray(b"x") * (2 * ZERO_CHUNK + 100)
    view = memoryview(buffer)
    fill_zero([view[1:50], view[60 : 2 * ZERO_CHUNK + 99]])
    assert buffer[0] == buffer[-1] == ord("x")
    assert buffer[50:60] == b"x" * 10
    assert not any(buffer[1:50])
    assert not any(buffer[60 : 2 * ZERO_CHUNK + 99])


@pytest.mark.parametrize("length", [0, 1, 100, ZERO_CHUNK, ZERO_CHUNK + 1, 2 * ZERO_CHUNK + 3])
def test_looking_for_zeroes(length: int) -> None:
    data = bytearray(length)
    assert is_zero(data)
    assert is_zero(bytes(length))
    for place in {0, length // 2, length - 1, ZERO_CHUNK - 1, ZERO_CHUNK} & set(range(length)):
        data[place] = 1
        assert not is_zero(data)
        assert is_zero(data, 0, place)
        assert is_zero(data, place + 1)
        assert not is_zero(data, place, 1)
        assert is_zero(data, place, 0)
        data[place] = 0


def test_aligned_memory() -> None:
    for length in (1, 4096, 5000):
        memory = aligned_buffer(length)
        assert len(memory) == length
        assert not any(memory[:])
        first = ctypes.c_char.from_buffer(memory)
        assert ctypes.addressof(first) % mmap.PAGESIZE == 0
        del first
        memory.close()
