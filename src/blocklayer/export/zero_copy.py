# SPDX-License-Identifier: Apache-2.0
"""Large reads that the kernel sends from the page cache to the client: nobody looks at the bytes.

The places of the bytes are good as long as the read is a request in flight, and a request in
flight delays whoever wants the disk for itself. So only what the client takes at once is sent from
there; the rest is read and sent as other answers are, when the request is over.

What a client receives may be newer than its read: the pages are not copied. That is no news, since
a write that changes them meanwhile is in flight together with the read.
"""

from __future__ import annotations

import os
from errno import EOPNOTSUPP

from blocklayer.base.errors import BlocklayerError
from blocklayer.core.disk import Disk
from blocklayer.core.sparse import NOWHERE, Place
from blocklayer.export.channel import Channel
from blocklayer.nbd import wire
from blocklayer.nbd.offers import SIMPLE
from blocklayer.nbd.server_transmission import Replies

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)

COPY_PIECE = 1024 * 1024
"""Bytes in memory at once where copying is needed after all."""


class ZeroCopyRead:
    """One answer."""

    def __init__(
        self, disk: Disk, replies: Replies, channel: Channel, cookie: int, offset: int, length: int
    ) -> None:
        self._disk = disk
        self._replies = replies
        self._channel = channel
        self._cookie = cookie
        self._offset = offset
        self._length = length
        self._suits = False
        self._heads: list[bytes] = []
        self._places: list[Place] = []
        self._step = 0
        self._sent = 0

    def answer(self) -> bool:
        """Send the answer; False if nothing was sent because the bytes lie elsewhere."""
        with self._channel.exclusive():
            try:
                located = self._disk.with_places(self._offset, self._length, self._begin)
            except BlocklayerError:
                return False  # whoever tries again meets the same error and says where
            if located and self._suits:
                self._finish()
                return True
        return False

    def _begin(self, places: list[Place]) -> None:
        """Send what can be sent without waiting. Runs inside a request."""
        if not all(map(_is_in_memory, places)):
            return  # reading it may take long, or fail: that is found out before success is told
        if self._replies.mode == SIMPLE:
            if any(descriptor == NOWHERE for _, descriptor, _ in places):
                return
            self._heads = [self._replies.simple_data(self._cookie)] + [b""] * (len(places) - 1)
        else:
            self._heads = self._chunk_heads(places)
        self._suits = True
        self._places = places
        pending = b""
        for step, (count, descriptor, host) in enumerate(places):
            self._step = step
            pending += self._heads[step]
            if descriptor == NOWHERE and step < len(places) - 1:
                continue
            taken = self._channel.try_send(pending)
            if taken < len(pending):
                self._heads[step] = pending[taken:]
                return
            pending = self._heads[step] = b""
            if descriptor != NOWHERE:
                self._sent = self._channel.try_sendfile(descriptor, host, count)
                if self._sent < count:
                    return
        self._step = len(places)

    def _chunk_heads(self, places: list[Place]) -> list[bytes]:
        heads = []
        position = self._offset
        for index, (count, descriptor, _) in enumerate(places):
            last = index == len(places) - 1
            if descriptor == NOWHERE:
                pack = self._replies.hole
            else:
                # An error may still follow, but then this read is no success for anybody.
                pack = self._replies.data
            heads.append(pack(self._cookie, self._offset, position, count, last=last))
            position += count
        return heads

    def _finish(self) -> None:
        """Send what is left. Copies."""
        position = self._offset + sum(place[0] for place in self._places[: self._step])
        for step in range(self._step, len(self._places)):
            count, descriptor, _ = self._places[step]
            self._channel.send_part(self._heads[step])
            if descriptor != NOWHERE:
                self._copy(position + self._sent, position + count)
            self._sent = 0
            position += count

    def _copy(self, start: int, end: int) -> None:
        buffer = memoryview(bytearray(min(end - start, COPY_PIECE)))
        while start < end:
            piece = buffer[: end - start]
            try:
                self._disk.read_into(start, piece)
            except BlocklayerError as error:
                # The client was told that all is well: only leaving tells it otherwise.
                raise ConnectionAbortedError(f"read failed in an answer: {error}") from error
            self._channel.send_part(piece)
            start += len(piece)


def _is_in_memory(place: Place) -> bool:
    """Whether the ends of a place are in the page cache, and so, very likely, is all of it."""
    length, descriptor, host = place
    if descriptor == NOWHERE or not _NOWAIT:
        return True
    try:
        for offset in (host, host + length - 1):
            if not os.preadv(descriptor, [bytearray(1)], offset, _NOWAIT):
                return False  # the file ends before
    except OSError as error:
        return error.errno == EOPNOTSUPP  # this file system cannot tell
    return True


def is_worth_it(channel: Channel, length: int) -> bool:
    """Whether a read of this length should be sent without copying."""
    return channel.can_sendfile and ZERO_COPY_MIN <= length <= wire.MAX_PAYLOAD


ZERO_COPY_MIN = 32 * 1024
"""Bytes from which on a system call of its own is cheaper than copying twice."""
