# SPDX-License-Identifier: Apache-2.0
"""An export: a disk under a name, and what clients may do with it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from blocklayer.base.errors import InvalidArgument
from blocklayer.core.bitmap import DirtyBitmap
from blocklayer.core.disk import Disk
from blocklayer.nbd import wire
from blocklayer.nbd.offers import Offer

PREFERRED_BLOCK = 4096
"""What page-cached files are best read in."""


UNKNOWN = -1
"""Stands for all commands that there are not."""


class ExportStats:
    """What clients of one export have asked for; counted by batches, without a lock."""

    __slots__ = ("bytes_read", "bytes_written", "clients", "connections", "errors", "requests")

    def __init__(self) -> None:
        self.requests = dict.fromkeys((*wire.COMMAND_NAMES, UNKNOWN), 0)
        self.bytes_read = 0
        self.bytes_written = 0
        self.errors = 0
        self.clients = 0
        """Connected now."""
        self.connections = 0
        """Ever."""


class Export:
    """A disk that is served.

    writable          clients may write; refused if the disk is read-only
    shared            several clients at once see each other's writes (MULTI_CONN)
    bitmaps           dirty bitmaps that clients may ask for: names of the disk's, or any
    allocation_depth  clients may ask in which layer of a chain bytes are
    """

    def __init__(
        self,
        name: str,
        disk: Disk,
        *,
        description: str = "",
        writable: bool = False,
        shared: bool = True,
        bitmaps: Sequence[str | DirtyBitmap] = (),
        allocation_depth: bool = False,
        rotational: bool = False,
    ) -> None:
        for what, text in (("Export name", name), ("Export description", description)):
            _check_string(what, text)
        if writable and disk.read_only:
            raise InvalidArgument(f"'{disk.filename}' is read-only: it cannot be exported writable")
        self.name = name
        self.disk = disk
        self.description = description
        self.writable = writable
        self.shared = shared
        self.rotational = rotational
        self.stats = ExportStats()
        self.gone = threading.Event()
        """Clients are told to go: the export is being removed."""
        self.contexts = [wire.BASE_ALLOCATION]
        if allocation_depth:
            self.contexts.append(wire.ALLOCATION_DEPTH)
        self._bitmaps: dict[str, DirtyBitmap] = {}
        for bitmap in bitmaps:
            if isinstance(bitmap, str):
                name = bitmap
                if name not in disk.bitmaps:
                    raise InvalidArgument(f"Bitmap '{name}' is not found")
            else:
                name = bitmap.name
                self._bitmaps[name] = bitmap
            context = wire.DIRTY_BITMAP_PREFIX + name
            _check_string("Bitmap context", context)
            self.contexts.append(context)

    def bitmap(self, name: str) -> DirtyBitmap | None:
        """One of the bitmaps, as long as there is one."""
        return self._bitmaps[name] if name in self._bitmaps else self.disk.bitmaps.get(name)

    @property
    def flags(self) -> int:
        """Transmission flags, without those that depend on the client."""
        flags = wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_FUA
        flags |= wire.FLAG_SEND_CACHE
        if self.writable:
            flags |= wire.FLAG_SEND_TRIM | wire.FLAG_SEND_WRITE_ZEROES | wire.FLAG_SEND_FAST_ZERO
        else:
            flags |= wire.FLAG_READ_ONLY
        if self.shared:
            flags |= wire.FLAG_CAN_MULTI_CONN
        if self.rotational:
            flags |= wire.FLAG_ROTATIONAL
        return flags

    def offer(self) -> Offer:
        """What the handshake tells of this export."""
        return Offer(
            name=self.name,
            size=self.disk.size,
            flags=self.flags,
            description=self.description,
            block_preferred=PREFERRED_BLOCK,
            contexts=tuple(self.contexts),
        )


def _check_string(what: str, text: str) -> None:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} {text!r} is not valid UTF-8") from None
    if length > wire.MAX_STRING:
        raise InvalidArgument(f"{what} '{text[:40]}…' too long")
    if "\0" in text:
        raise InvalidArgument(f"{what} {text!r} has NUL characters in it")
