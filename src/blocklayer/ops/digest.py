# SPDX-License-Identifier: Apache-2.0
"""A digest of what a guest sees: the same for every format, cluster size and state of allocation.

The disk, followed by zeroes up to 2^63 bytes, is cut into blocks of 64 KiB, the leaves of a binary
hash tree; `docs/digest.md` is the definition. Whole subtrees of zeroes have digests that are known
beforehand, so a hole of any size costs a few steps, and pieces of the tree are made by any number
of threads.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator

from blocklayer.base.buffers import ZERO_CHUNK, ZEROES, is_zero
from blocklayer.base.errors import InvalidArgument
from blocklayer.base.extent import Extent
from blocklayer.base.progress import CancelToken, ProgressCallback, Reporter
from blocklayer.base.record import Record
from blocklayer.base.units import KiB
from blocklayer.core.crew import Crew, Task
from blocklayer.core.names import FilenameLike
from blocklayer.ops.open_image import open_disk

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, Protocol

    from blocklayer.core.trust import Trust

    class Source(Protocol):
        """What is hashed: a disk, or a part of one."""

        @property
        def size(self) -> int:
            """Bytes."""

        def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
            """All of it."""

        def read_into(self, offset: int, buffer: memoryview) -> int:
            """Fill the buffer."""


BLOCK = 64 * KiB
"""Bytes of a leaf. Part of the definition."""

PIECE_LEVEL = 5
PIECE = BLOCK << PIECE_LEVEL
"""Bytes that a thread reads and hashes at once: a subtree."""

HEIGHT = 47
"""Of the tree: 2^63 bytes, the largest disk, are 2^47 blocks. Part of the definition."""

PIECES_ALONE = 1
"""Pieces that are read and hashed before threads are started: small images have no more data."""

THREADS_MAX = 8

LEAF, INNER, ROOT = b"\0", b"\1", b"\2"
"""What is hashed begins with these, so that none of the three can stand for another."""


class DigestResult(Record, frozen=True):
    """A digest, in hexadecimal digits.

    kind        ``tree``, or ``flat``: the plain hash of all bytes
    size        bytes of the disk
    block_size  of the tree; None if flat
    """

    digest: str
    algorithm: str
    kind: str
    size: int
    block_size: int | None = BLOCK

    def as_dict(self) -> dict[str, Any]:
        """For JSON: names with hyphens, and only the members that apply."""
        members = super().as_dict().items()
        return {name.replace("_", "-"): value for name, value in members if value is not None}


def digest(
    name: FilenameLike,
    *,
    format: str | None = None,
    algorithm: str = "sha256",
    flat: bool = False,
    threads: int | None = None,
    cache: str = "writeback",
    force_share: bool = False,
    trust: Trust | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> DigestResult:
    """The digest of an image's disk, backing files included.

    algorithm  any of `hashlib` with digests of a fixed size
    flat       the hash of all bytes in a row, as ``sha256sum`` of a raw image: zeroes cost as much
               as data, and one thread hashes
    threads    that read and hash; as many as there are processors if not given

    Raises `OpenError`, `IoError`, `InvalidArgument`, `Cancelled`.
    """
    check_algorithm(algorithm)
    with open_disk(name, format=format, cache=cache, force_share=force_share, trust=trust) as disk:
        reporter = Reporter("digest", disk.size, progress, cancel)
        make = flat_digest if flat else tree_digest
        found = make(disk, algorithm, threads or default_threads(), reporter)
        reporter.finish()
        kind, block = ("flat", None) if flat else ("tree", BLOCK)
        return DigestResult(found.hex(), algorithm, kind, disk.size, block)


def check_algorithm(name: str) -> None:
    """Raises `InvalidArgument`."""
    known = sorted(each for each in hashlib.algorithms_available if not each.startswith("shake"))
    if name not in known:
        raise InvalidArgument(f"Unknown digest algorithm '{name}': there are {', '.join(known)}")


def default_threads() -> int:
    """One a processor, and not too many."""
    return min(os.cpu_count() or 1, THREADS_MAX)


# --- the tree -------------------------------------------------------------------------------------


def tree_digest(source: Source, algorithm: str, threads: int, reporter: Reporter) -> bytes:
    """The digest of `source`; `reporter` is told of every byte, holes included."""
    hasher = Hasher(algorithm)
    tree = Tree(hasher)
    with Crew(threads, "blocklayer-digest", alone=PIECES_ALONE) as crew:
        waiting: deque[tuple[int, Task]] = deque()
        try:
            for start, length, zero in pieces(source, reporter):
                if not zero:
                    waiting.append((length, crew.submit(hasher.piece, source, start, length)))
                while waiting and (zero or len(waiting) > 2 * threads):
                    _take(tree, waiting, reporter)
                if zero:
                    tree.add_zeroes(-(-length // PIECE), PIECE_LEVEL)
                    reporter.advance(length)
            while waiting:
                _take(tree, waiting, reporter)
        finally:
            for _, task in waiting:
                task.cancel()
    return hasher.root(source.size, tree.root())


def _take(tree: Tree, waiting: deque[tuple[int, Task]], reporter: Reporter) -> None:
    length, task = waiting[0]
    tree.add(PIECE_LEVEL, task.result())
    waiting.popleft()
    reporter.advance(length)


def pieces(source: Source, reporter: Reporter) -> Iterator[tuple[int, int, bool]]:
    """The whole of `source` as (start, length, is zero): single pieces, or many of zeroes.

    A piece is zero if all of it is known to be without reading.
    """
    size = source.size
    position = 0  # where the next piece begins: all before it is out
    for start, end in _data_runs(source, reporter):
        first = max(position, start - start % PIECE)
        if first > position:
            yield position, first - position, True
        position = first
        while position < end:
            count = min(PIECE, size - position)
            yield position, count, False
            position += count
    if position < size:
        yield position, size - position, True


def _data_runs(source: Source, reporter: Reporter) -> Iterator[tuple[int, int]]:
    """(start, end) of what has to be read."""
    for extent in source.extents(0, source.size):
        reporter.check()  # the walk alone may take long
        if not extent.zero:
            yield extent.offset, extent.end


class Hasher:
    """The hash function, and what is known of zeroes."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self._leaf = hashlib.new(algorithm, LEAF, usedforsecurity=False)
        self._inner = hashlib.new(algorithm, INNER, usedforsecurity=False)
        self.zeroes = [self.leaf(memoryview(ZEROES)[:BLOCK])]
        """Digests of trees of zeroes, by level: 2^level blocks."""
        for _ in range(HEIGHT):
            self.zeroes.append(self.inner(self.zeroes[-1], self.zeroes[-1]))

    def leaf(self, block: memoryview) -> bytes:
        """Of one block; the last one of a disk is filled up with zeroes."""
        state = self._leaf.copy()
        state.update(block)
        if len(block) < BLOCK:
            state.update(ZEROES[: BLOCK - len(block)])
        return state.digest()

    def inner(self, left: bytes, right: bytes) -> bytes:
        """Of two subtrees."""
        state = self._inner.copy()
        state.update(left + right)
        return state.digest()

    def root(self, size: int, tree: bytes) -> bytes:
        """Of a whole disk."""
        data = ROOT + size.to_bytes(8, "big") + tree
        return hashlib.new(self.algorithm, data, usedforsecurity=False).digest()

    def piece(self, source: Source, start: int, length: int) -> bytes:
        """Read a piece and hash its subtree; runs in any thread."""
        buffer = bytearray(length)
        with memoryview(buffer) as view:
            source.read_into(start, view)
            level = [
                self.zeroes[0]
                if is_zero(buffer, at, min(BLOCK, length - at))
                else self.leaf(view[at : at + BLOCK])
                for at in range(0, length, BLOCK)
            ]
        for height in range(PIECE_LEVEL):
            if len(level) % 2:
                level.append(self.zeroes[height])
            level = [self.inner(*level[at : at + 2]) for at in range(0, len(level), 2)]
        return level[0]


class Tree:
    """Puts subtrees together from left to right, keeping one for each level at most."""

    def __init__(self, hasher: Hasher) -> None:
        self._hasher = hasher
        self._stack: list[tuple[int, bytes]] = []
        self._blocks = 0

    def add(self, level: int, node: bytes) -> None:
        """A subtree of 2^level blocks, which stands at a multiple of its size."""
        self._blocks += 1 << level
        while self._stack and self._stack[-1][0] == level:
            node = self._hasher.inner(self._stack.pop()[1], node)
            level += 1
        self._stack.append((level, node))

    def add_zeroes(self, count: int, unit: int) -> None:
        """`count` subtrees of level `unit`, all zero: by the largest that fit."""
        while count:
            at = self._blocks >> unit
            fits = count.bit_length() - 1
            if at:
                fits = min(fits, (at & -at).bit_length() - 1)
            self.add(unit + fits, self._hasher.zeroes[unit + fits])
            count -= 1 << fits

    def root(self) -> bytes:
        """The whole tree: what is missing is zero."""
        zeroes = self._hasher.zeroes
        level, node = self._stack.pop() if self._stack else (HEIGHT, zeroes[HEIGHT])
        while level < HEIGHT:
            if self._stack and self._stack[-1][0] == level:
                node = self._hasher.inner(self._stack.pop()[1], node)
            else:
                node = self._hasher.inner(node, zeroes[level])
            level += 1
        return node


# --- flat -----------------------------------------------------------------------------------------


def flat_digest(source: Source, algorithm: str, threads: int, reporter: Reporter) -> bytes:
    """All bytes in a row: hashed here, read ahead by other threads."""
    state = hashlib.new(algorithm, usedforsecurity=False)

    def read(start: int, length: int) -> bytearray:
        buffer = bytearray(length)
        with memoryview(buffer) as view:
            source.read_into(start, view)
        return buffer

    with Crew(threads, "blocklayer-digest", alone=PIECES_ALONE) as crew:
        waiting: deque[Task] = deque()

        def take() -> None:
            data = waiting[0].result()
            waiting.popleft()
            state.update(data)
            reporter.advance(len(data))

        try:
            for start, length, zero in pieces(source, reporter):
                if not zero:
                    waiting.append(crew.submit(read, start, length))
                while waiting and (zero or len(waiting) > 2 * threads):
                    take()
                if zero:
                    _hash_zeroes(state, length, reporter)
            while waiting:
                take()
        finally:
            for task in waiting:
                task.cancel()
    return state.digest()


def _hash_zeroes(state: Any, length: int, reporter: Reporter) -> None:
    while length:
        count = min(length, ZERO_CHUNK)
        state.update(memoryview(ZEROES)[:count])
        reporter.advance(count)
        length -= count
