# SPDX-License-Identifier: Apache-2.0
"""Buffers: vectors of memoryviews, aligned memory, shared zeroes.

A *vector* is a list of non-empty byte memoryviews: the payload of one request, in order.
"""

from __future__ import annotations

from collections.abc import Iterator

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    import mmap
    from typing import Any, TypeAlias

Buffer: TypeAlias = "Any"
"""Anything that supports the buffer protocol (typing has no name for it before Python 3.12)."""

Vector: TypeAlias = list[memoryview]

ZERO_CHUNK = 1024 * 1024
"""Bytes of zeroes that are shared by every writer of zeroes: the bounded piece of a fallback."""

ZEROES = bytes(ZERO_CHUNK)
_ZERO_VIEW = memoryview(ZEROES)


def byte_view(buffer: Buffer) -> memoryview:
    """`buffer` as a flat view of bytes; ValueError for one that is not contiguous."""
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise ValueError("the buffer is not contiguous")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def vector_length(vector: Vector) -> int:
    """Bytes in a vector."""
    return sum(map(len, vector))


def slice_vector(vector: Vector, start: int, length: int) -> Vector:
    """Bytes `start` … `start + length` of a vector, without copying."""
    if len(vector) == 1:
        view = vector[0]
        return vector if start == 0 and length == len(view) else [view[start : start + length]]
    result: Vector = []
    for view in vector:
        size = len(view)
        if start < size:
            piece = view[start : start + length]
            result.append(piece)
            length -= len(piece)
            if not length:
                break
        start = start - size if start > size else 0
    return result


def fill_zero(vector: Vector) -> None:
    """Overwrite a vector with zeroes."""
    for view in vector:
        for start in range(0, len(view), ZERO_CHUNK):
            piece = view[start : start + ZERO_CHUNK]
            piece[:] = _ZERO_VIEW[: len(piece)]


def zero_vector(length: int) -> Vector:
    """A vector of `length` zero bytes that costs no memory: the shared chunk, repeated."""
    whole, rest = divmod(length, ZERO_CHUNK)
    return [_ZERO_VIEW] * whole + ([_ZERO_VIEW[:rest]] if rest else [])


def zero_pieces(offset: int, length: int) -> Iterator[tuple[int, memoryview]]:
    """Cut a range into pieces of at most `ZERO_CHUNK`, each with its shared zeroes."""
    end = offset + length
    while offset < end:
        piece = min(ZERO_CHUNK, end - offset)
        yield offset, _ZERO_VIEW[:piece]
        offset += piece


def is_zero(data: bytes | bytearray, start: int = 0, length: int | None = None) -> bool:
    """Whether `length` bytes from `start` are all zero.

    `startswith` is a memcmp at memory speed; comparing memoryviews is sixty times slower.
    """
    end = len(data) if length is None else start + length
    while end - start > ZERO_CHUNK:
        if not data.startswith(ZEROES, start):
            return False
        start += ZERO_CHUNK
    return data.startswith(ZEROES[: end - start], start)


def aligned_buffer(length: int) -> mmap.mmap:
    """Writable, zeroed memory that starts on a page: what O_DIRECT asks for."""
    import mmap  # costs start-up time

    return mmap.mmap(-1, max(length, 1))
