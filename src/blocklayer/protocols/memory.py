# SPDX-License-Identifier: Apache-2.0
"""The `memory` protocol: a disk in memory that costs only what is written to it.

Bytes live in pages of 64 KiB; a page that was never written, or was zeroed, does not exist.
"""

from __future__ import annotations

import threading

from blocklayer.base.buffers import Vector
from blocklayer.base.errors import InvalidArgument
from blocklayer.base.extent import DATA, ZERO
from blocklayer.base.options import OptionTree
from blocklayer.base.units import KiB, parse_size
from blocklayer.core.drivers import PROTOCOL, Driver
from blocklayer.core.node import Mapped, Node
from blocklayer.core.opening import Opener

PAGE = 64 * KiB


class MemoryNode(Node):
    """Sparse memory."""

    driver = "memory"

    def __init__(self, size: int, *, read_only: bool = False, name: str = "memory") -> None:
        super().__init__(name, read_only=read_only)
        self.size = size
        self._pages: dict[int, bytearray] = {}
        self._lock = threading.Lock()

    @property
    def grows_zeroed(self) -> bool:
        """New bytes are absent pages."""
        return True

    def readv(self, offset: int, vector: Vector) -> None:
        """Copy out of the pages."""
        with self._lock:
            for view in vector:
                for page, start, piece in _pieces(offset, view):
                    stored = self._pages.get(page)
                    count = len(piece)
                    piece[:] = bytes(count) if stored is None else stored[start : start + count]
                offset += len(view)

    def writev(self, offset: int, vector: Vector) -> None:
        """Copy into the pages."""
        with self._lock:
            for view in vector:
                for page, start, piece in _pieces(offset, view):
                    stored = self._pages.get(page)
                    if stored is None:
                        stored = self._pages[page] = bytearray(PAGE)
                    stored[start : start + len(piece)] = piece
                offset += len(view)
            self.size = max(self.size, offset)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Drop whole pages, clear parts of others."""
        end = offset + length
        with self._lock:
            for page in [p for p in self._pages if p * PAGE < end and (p + 1) * PAGE > offset]:
                start, stop = max(offset, page * PAGE), min(end, (page + 1) * PAGE)
                if stop - start == PAGE:
                    del self._pages[page]
                else:
                    self._pages[page][start - page * PAGE : stop - page * PAGE] = bytes(
                        stop - start
                    )
            self.size = max(self.size, end)

    def discard(self, offset: int, length: int) -> None:
        """Forget the bytes."""
        length = min(length, self.size - offset)
        if length > 0:
            self.zero(offset, length)

    def flush(self) -> None:
        """Memory has nowhere to flush to."""

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Change the size."""
        if size < self.size:
            self.zero(size, self.size - size)
        with self._lock:
            self.size = size

    def map(self, offset: int, length: int) -> Mapped:
        """Present pages are data."""
        first = offset // PAGE
        stop = (offset + length - 1) // PAGE + 1
        with self._lock:
            if first in self._pages:
                kind, page = DATA, first + 1
                while page < stop and page in self._pages:
                    page += 1
            elif stop - first > len(self._pages):
                kind = ZERO
                page = min((page for page in self._pages if first < page < stop), default=stop)
            else:
                kind, page = ZERO, first + 1
                while page < stop and page not in self._pages:
                    page += 1
        return kind, min(length, page * PAGE - offset), None, offset


def _pieces(offset: int, view: memoryview) -> list[tuple[int, int, memoryview]]:
    """Cut a view at page boundaries: (page, offset in the page, bytes)."""
    pieces = []
    done = 0
    while done < len(view):
        page, start = divmod(offset + done, PAGE)
        count = min(PAGE - start, len(view) - done)
        pieces.append((page, start, view[done : done + count]))
        done += count
    return pieces


def _open(opener: Opener, options: OptionTree) -> Node:
    if "size" not in options:
        raise InvalidArgument("The 'memory' block driver requires a size")
    size = parse_size(options.pop("size"))
    return MemoryNode(size, read_only=opener.flags.read_only)


DRIVER = Driver(name="memory", kind=PROTOCOL, open=_open)
