# SPDX-License-Identifier: Apache-2.0
"""A thin asyncio face: the same disk, whose verbs can be awaited.

    async with blocklayer.aio.open("disk.qed", mode="r+") as disk:
        data = await disk.read(0, 4096)

The core stays synchronous; each call runs on a small pool of threads that belongs to the disk, so
that several requests are in flight together and the event loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from blocklayer.base.buffers import Buffer
from blocklayer.base.errors import Closed
from blocklayer.base.extent import Extent
from blocklayer.core.disk import Disk
from blocklayer.core.names import FilenameLike
from blocklayer.ops.open_image import open_disk

T = TypeVar("T")

THREADS = 4
"""Requests of one disk that run at once."""


class AsyncDisk:
    """A `Disk` whose verbs are coroutines. Cancelling one does not stop what has begun."""

    def __init__(self, name: FilenameLike, **options: Any) -> None:
        self._name = name
        self._options = options
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="blocklayer-aio")
        self._disk: Disk | None = None
        self._closed = False

    @property
    def disk(self) -> Disk:
        """The synchronous disk below."""
        if self._closed:
            raise Closed(f"The disk '{self._name}' is closed")
        if self._disk is None:
            raise RuntimeError("the disk is not open: use 'async with'")
        return self._disk

    @property
    def size(self) -> int:
        """Bytes."""
        return self.disk.size

    async def _run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(function, *arguments, **options))

    async def read(self, offset: int, length: int) -> bytes:
        """As `Disk.read`."""
        return await self._run(self.disk.read, offset, length)

    async def read_into(self, offset: int, buffer: Buffer) -> int:
        """As `Disk.read_into`."""
        return await self._run(self.disk.read_into, offset, buffer)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """As `Disk.write`."""
        await self._run(self.disk.write, offset, data, fua=fua)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, fua: bool = False
    ) -> None:
        """As `Disk.write_zeroes`."""
        await self._run(self.disk.write_zeroes, offset, length, unmap=unmap, fua=fua)

    async def discard(self, offset: int, length: int) -> None:
        """As `Disk.discard`."""
        await self._run(self.disk.discard, offset, length)

    async def flush(self) -> None:
        """As `Disk.flush`."""
        await self._run(self.disk.flush)

    async def extents(self, offset: int = 0, length: int | None = None) -> list[Extent]:
        """As `Disk.extents`, all at once."""
        disk = self.disk
        return await self._run(lambda: list(disk.extents(offset, length)))

    async def close(self) -> None:
        """As `Disk.close`."""
        disk, self._disk = self._disk, None
        self._closed = True
        try:
            if disk is not None:
                await self._run(disk.close)
        finally:
            self._pool.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        opening = self._pool.submit(open_disk, self._name, **self._options)
        try:
            self._disk = await asyncio.wrap_future(opening)
        except BaseException:
            opening.add_done_callback(_close_unwanted)
            self._pool.shutdown(wait=False)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"closing '{self._name}' failed as well: {failure}")


def _close_unwanted(opening: Future[Disk]) -> None:
    """Whoever wanted the disk was cancelled while it was being opened."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def open(name: FilenameLike, **options: Any) -> AsyncDisk:
    """Open a disk with ``async with``; options as `blocklayer.open`."""
    return AsyncDisk(name, **options)
