# SPDX-License-Identifier: Apache-2.0
"""The server's side of transmission: a stream of bytes becomes requests, answers become bytes.

`RequestReader` owns the buffer that is received into, so that payloads are written to the disk
from where the socket put them. A payload of more than `WHOLE_MAX` comes in pieces, so a client
that announces much and sends little costs no memory:

    LARGE   (LARGE, flags, cookie, offset, length, None)        what is to come
    PIECE   (PIECE, flags, cookie, offset, bytes left, view)    until nothing is left

Every other request is one tuple: (command, flags, cookie, offset, length, payload or None).
Views are valid until the next `space`.
"""

from __future__ import annotations

from collections.abc import Sequence

from blocklayer.base.buffers import aligned_buffer
from blocklayer.nbd import wire
from blocklayer.nbd.offers import EXTENDED, SIMPLE

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Final, TypeAlias

WHOLE_MAX = 1024 * 1024
"""Bytes of a payload that is handed over whole."""

BUFFER_SMALL = 256 * 1024
"""The buffer of a connection that sends no large payloads."""

BUFFER_LARGE = 2 * WHOLE_MAX

ALIGNMENT = 4096
"""Of the payload of a request that stands alone: copying it from there is cheaper."""

SKIP_MAX = 1 << 32
"""Payloads beyond this are a broken peer, not a large request."""

LARGE: Final = -1
PIECE: Final = -2

# Names of this module, since the loop over requests is counted in nanoseconds.
_WRITE, _PAYLOAD_LEN = wire.CMD_WRITE, wire.CMD_FLAG_PAYLOAD_LEN

Item: TypeAlias = "tuple[int, int, int, int, int, memoryview | None]"


class RequestReader:
    """Cuts what a client sends into requests."""

    def __init__(self, *, extended: bool = False) -> None:
        layout = wire.ExtendedRequestHeader if extended else wire.RequestHeader
        self._extended = extended
        self._magic = wire.EXTENDED_REQUEST_MAGIC if extended else wire.REQUEST_MAGIC
        self._header = layout.codec()
        self._buffer = memoryview(aligned_buffer(BUFFER_SMALL))
        self._origin = ALIGNMENT - self._header.size
        """Where requests begin, so that the payload of the first one is aligned."""
        self._start = self._end = self._origin
        self._needed = 0
        """Bytes of a request that has begun."""
        self._piece: tuple[int, int, int] | None = None
        """(flags, cookie, next offset) of a payload that comes in pieces."""
        self._left = 0
        self.problem = ""
        """How the client broke the protocol: nothing that it sends has a meaning any more."""

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has been received."""
        return self._start == self._end and self._piece is None

    def space(self) -> memoryview:
        """Where to receive. Everything handed out before is gone."""
        buffer = self._buffer
        if self._needed > len(buffer) - self._origin:
            self._receive_at(memoryview(aligned_buffer(BUFFER_LARGE)))
        elif self._start != self._origin:
            self._receive_at(buffer)
        if self._needed:
            # No more than this request: the next one finds the same memory in the cache.
            return self._buffer[self._end : self._start + self._needed]
        return self._buffer[self._end :]

    def _receive_at(self, buffer: memoryview) -> None:
        """Receive into `buffer` from now on; what has begun moves to its origin."""
        kept = self._end - self._start
        origin = self._origin
        if kept:
            buffer[origin : origin + kept] = self._buffer[self._start : self._end]
        self._buffer = buffer
        self._start, self._end = origin, origin + kept

    def feed(self, data: bytes) -> list[Item]:
        """Take bytes that are there already; for what came behind the handshake, and tests."""
        items: list[Item] = []
        position = 0
        while position < len(data):
            if items and (self._start or items[-1][5] is not None):
                items = [_kept(item) for item in items]
            space = self.space()
            count = min(len(space), len(data) - position)
            space[:count] = data[position : position + count]
            items += self.received(count)
            position += count
        return items

    def received(self, count: int) -> list[Item]:
        """`count` bytes have been put into `space`: the requests that are complete now."""
        self._end += count
        items: list[Item] = []
        if self._piece is not None and not self._take_piece(items):
            return items
        buffer, header, wanted = self._buffer, self._header, self._magic
        unpack, size = header.unpack_from, header.size
        start, end = self._start, self._end
        while end - start >= size:
            magic, flags, command, cookie, offset, length = unpack(buffer, start)
            if magic != wanted:
                self.problem = f"client request has wrong magic number {magic:#x}"
                return items  # what came before is answered first
            if command != _WRITE and not (self._extended and flags & _PAYLOAD_LEN):
                items.append((command, flags, cookie, offset, length, None))
                start += size
                continue
            body = start + size
            if length <= WHOLE_MAX:
                stop = body + length
                if stop > end:
                    break
                items.append((command, flags, cookie, offset, length, buffer[body:stop]))
                start = stop
                continue
            self._start = body
            self._begin_large(items, command, flags, cookie, offset, length)
            if self.problem or not self._take_piece(items):
                return items
            start = self._start
        self._start = start
        # Longer than a header: the loop has stopped at a payload that is not complete.
        self._needed = size + length if end - start >= size else 0
        return items

    def _begin_large(
        self, items: list[Item], command: int, flags: int, cookie: int, offset: int, length: int
    ) -> None:
        if command != wire.CMD_WRITE or length > SKIP_MAX:
            name = wire.COMMAND_NAMES.get(command, f"command {command}")
            self.problem = f"client announced {length} bytes of payload for {name}"
            return
        items.append((LARGE, flags, cookie, offset, length, None))
        self._piece = (flags, cookie, offset)
        self._left = length

    def _take_piece(self, items: list[Item]) -> bool:
        """Hand over pieces that are complete; whether the payload is."""
        assert self._piece is not None
        flags, cookie, offset = self._piece
        while self._left:
            size = min(self._left, WHOLE_MAX)
            self._needed = size
            if self._end - self._start < size:
                self._piece = (flags, cookie, offset)
                return False
            view = self._buffer[self._start : self._start + size]
            self._start += size
            self._left -= size
            items.append((PIECE, flags, cookie, offset, self._left, view))
            offset += size
        self._piece = None
        self._needed = 0
        return True


def _kept(item: Item) -> Item:
    """An item whose payload does not depend on the buffer."""
    payload = item[5]
    return (*item[:5], None if payload is None else memoryview(bytes(payload)))


class Replies:
    """Packs answers in the shape that was agreed on."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._simple = wire.SimpleReply.codec().pack
        self._chunk = wire.ChunkHeader.codec().pack
        self._extended = wire.ExtendedChunkHeader.codec().pack

    def done(self, cookie: int, offset: int) -> bytes:
        """Success, without data."""
        if self.mode == EXTENDED:
            return self._chunk_head(wire.REPLY_NONE, cookie, offset, 0, last=True)
        return self._simple(wire.SIMPLE_REPLY_MAGIC, 0, cookie)

    def end(self, cookie: int, offset: int) -> bytes:
        """The last chunk of a structured reply that has said everything."""
        return self._chunk_head(wire.REPLY_NONE, cookie, offset, 0, last=True)

    def error(self, cookie: int, offset: int, code: int, words: str = "") -> bytes:
        """Failure of a request."""
        if self.mode == SIMPLE:
            return self._simple(wire.SIMPLE_REPLY_MAGIC, code, cookie)
        message = wire.message(words)
        payload = _error_payload(code, message)
        return self._chunk_head(wire.REPLY_ERROR, cookie, offset, len(payload), last=True) + payload

    def error_at(self, cookie: int, offset: int, code: int, words: str, place: int) -> bytes:
        """Failure of a read at `place`, after chunks of it have been sent."""
        message = wire.message(words)
        payload = _error_payload(code, message) + place.to_bytes(8, "big")
        kind = wire.REPLY_ERROR_OFFSET
        return self._chunk_head(kind, cookie, offset, len(payload), last=True) + payload

    def simple_data(self, cookie: int) -> bytes:
        """What stands before the data of a read in a simple reply."""
        return self._simple(wire.SIMPLE_REPLY_MAGIC, 0, cookie)

    def data(self, cookie: int, offset: int, place: int, length: int, *, last: bool) -> bytes:
        """What stands before the data of a chunk."""
        head = self._chunk_head(wire.REPLY_OFFSET_DATA, cookie, offset, length + 8, last=last)
        return head + place.to_bytes(8, "big")

    def hole(self, cookie: int, offset: int, place: int, length: int, *, last: bool) -> bytes:
        """A chunk for bytes that read as zeroes."""
        head = self._chunk_head(wire.REPLY_OFFSET_HOLE, cookie, offset, 12, last=last)
        return head + wire.Hole(offset=place, length=length).pack()

    def status(
        self,
        cookie: int,
        offset: int,
        context: int,
        extents: Sequence[tuple[int, int]],
        *,
        last: bool,
    ) -> bytes:
        """A chunk of (length, flags) extents of one context."""
        numbers = [number for extent in extents for number in extent]
        if self.mode == EXTENDED:
            kind = wire.REPLY_BLOCK_STATUS_EXT
            payload = wire.pack_numbers((context, len(extents)), 4) + wire.pack_numbers(numbers, 8)
        else:
            kind = wire.REPLY_BLOCK_STATUS
            payload = wire.pack_numbers((context, *numbers), 4)
        return self._chunk_head(kind, cookie, offset, len(payload), last=last) + payload

    def _chunk_head(self, kind: int, cookie: int, offset: int, length: int, *, last: bool) -> bytes:
        flags = wire.REPLY_FLAG_DONE if last else 0
        if self.mode == EXTENDED:
            magic = wire.EXTENDED_REPLY_MAGIC
            return self._extended(magic, flags, kind, cookie, offset, length)
        return self._chunk(wire.STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length)


def _error_payload(code: int, message: bytes) -> bytes:
    return wire.ErrorChunk(error=code, length=len(message)).pack() + message
