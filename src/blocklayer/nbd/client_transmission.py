# SPDX-License-Identifier: Apache-2.0
"""The client's side of transmission: commands to bytes, and bytes, cut anywhere, to answers.

    engine = Replies(agreement, rest)
    send(engine.encode(command))                  and the payload of a write behind it
    for command in engine.received(recv_into(engine.buffers())): …

Content lands in the reader's own memory: `buffers` tells where the next bytes are to be put, which
is the command's vector while content comes that is larger than what has arrived already, and the
engine's scratch memory behind it. Every rule of the protocol that a reply can break is checked; a
server that breaks one is named wrong, with the rule and the command (`ProtocolError`), and nothing
that comes behind is looked at.

A server can make the engine keep no more than the scratch memory and one payload that holds no
content, which is bounded by its kind.

Source: "The NBD protocol", section "Transmission phase".
"""

from __future__ import annotations

from collections.abc import Iterator

from blocklayer.base.buffers import Vector, slice_vector
from blocklayer.base.units import KiB, MiB
from blocklayer.nbd import wire
from blocklayer.nbd.client_command import Command
from blocklayer.nbd.client_handshake import EXTENDED, SIMPLE, STRUCTURED, Agreement
from blocklayer.nbd.client_options import printable, wrong

SCRATCH = 256 * KiB
"""Bytes received at once where it is not known yet what they are."""

STATUS_MAX = 8 + 16 * MiB
"""Bytes of one block status: a million wide extents, which is what nbdkit sends at most."""

_ERROR_MAX = wire.ErrorChunk.SIZE + wire.MAX_STRING + 8

_pack_request = wire.RequestHeader.codec().pack
_pack_extended = wire.ExtendedRequestHeader.codec().pack
_simple = wire.SimpleReply.codec().unpack_from
_chunk = wire.ChunkHeader.codec().unpack_from
_extended = wire.ExtendedChunkHeader.codec().unpack_from

_HEADS = {
    wire.SIMPLE_REPLY_MAGIC: wire.SimpleReply.SIZE,
    wire.STRUCTURED_REPLY_MAGIC: wire.ChunkHeader.SIZE,
    wire.EXTENDED_REPLY_MAGIC: wire.ExtendedChunkHeader.SIZE,
}


class Replies:
    """One connection's commands in flight, and the parser of what the server sends."""

    def __init__(self, agreement: Agreement, rest: bytes = b"") -> None:
        self._mode = agreement.mode
        self._contexts = agreement.contexts
        self.pending: dict[int, Command] = {}
        """Commands without a whole answer, by their cookies."""
        self._cookie = 0
        self._scratch = memoryview(bytearray(max(SCRATCH, len(rest))))
        self._scratch[: len(rest)] = rest
        self._start = 0
        self._end = len(rest)
        # The payload that is coming: bytes left, where they go, and what to do when they are there.
        self._left = 0
        self._target: Vector | None = None
        self._collecting: bytearray | None = None
        self._command: Command | None = None
        self._kind = 0
        self._is_last = False
        """The command has its whole answer when the payload is there."""

    # --- sending --------------------------------------------------------------------------------

    def encode(self, command: Command) -> bytes:
        """The header of a command, which is in flight from now on."""
        self._cookie = cookie = self._cookie + 1
        command.cookie = cookie
        kind, flags = command.kind, command.flags
        if self._mode == EXTENDED:
            if kind == wire.CMD_WRITE:
                flags |= wire.CMD_FLAG_PAYLOAD_LEN
            head = _pack_extended(
                wire.EXTENDED_REQUEST_MAGIC, flags, kind, cookie, command.offset, command.length
            )
        else:
            head = _pack_request(
                wire.REQUEST_MAGIC, flags, kind, cookie, command.offset, command.length
            )
        if kind != wire.CMD_DISC:  # it has no reply
            self.pending[cookie] = command
        return head

    def is_filling(self, command: Command) -> bool:
        """Whether the buffers may be the command's memory."""
        return self._command is command

    # --- receiving ------------------------------------------------------------------------------

    def buffers(self) -> Vector:
        """Where the next bytes go, in this order."""
        # Everything in the scratch memory has been looked at; what is left of it is less than a
        # header, or belongs to no payload.
        if self._start:
            rest = self._end - self._start
            self._scratch[:rest] = self._scratch[self._start : self._end]
            self._start, self._end = 0, rest
        free = self._scratch[self._end :]
        if self._command is not None and self._collecting is None and self._command.vector is None:
            self._target = None  # nobody waits for the content any more
        if self._left and self._target is not None:
            return [*self._target, free]
        return [free]

    def received(self, count: int) -> Iterator[Command]:
        """`count` bytes are in the buffers; the commands that have their whole answer now.

        They are told one by one, since the server may be right about some before it is wrong.
        """
        if self._left and self._target is not None:
            direct = min(count, self._left)
            self._advance(direct)
            count -= direct
        self._end += count
        done: list[Command] = []
        while self._step(done):
            if done:
                yield done.pop()

    def _advance(self, count: int) -> None:
        """`count` bytes of the payload are where they belong."""
        self._left -= count
        if self._target is not None:
            rest = slice_vector(self._target, count, self._left) if self._left else None
            self._target = rest

    def _step(self, done: list[Command]) -> bool:
        """Take a payload or a header from the scratch memory; False if too little is there."""
        available = self._end - self._start
        if self._left:
            if not available:
                return False
            self._take(min(available, self._left))
            if self._left:
                return False
        if self._command is not None:
            self._finish_payload(done)
            return True
        if available < 4:
            return False
        start = self._start
        magic = int.from_bytes(self._scratch[start : start + 4], "big")
        size = _HEADS.get(magic)
        if size is None:
            raise wrong(f"invalid magic {magic:#010x} where a reply should begin")
        if available < size:
            return False
        if magic == wire.SIMPLE_REPLY_MAGIC:
            self._start += size
            self._simple_reply(start)
            return True
        return self._take_chunk(magic, size, available)

    def _take(self, count: int) -> None:
        """Move payload from the scratch memory to where it belongs."""
        start = self._start
        self._start += count
        source = self._scratch[start : start + count]
        if self._target is not None:
            for view in slice_vector(self._target, 0, count):
                view[:] = source[: len(view)]
                source = source[len(view) :]
        self._advance(count)

    def _expect(self, command: Command, length: int, target: Vector | None) -> None:
        self._command, self._left, self._target = command, length, target

    def _finish_payload(self, done: list[Command]) -> None:
        """The payload (if any) of a header has arrived."""
        command, self._command = self._command, None
        collected, self._collecting = self._collecting, None
        self._target = None
        assert command is not None
        if collected is not None:
            self._understand(command, collected)
        if self._is_last:
            command.end(self._contexts)
            del self.pending[command.cookie]
            done.append(command)

    def _find(self, cookie: int) -> Command:
        command = self.pending.get(cookie)
        if command is None:
            raise wrong(f"it answers a request that was not made, or was answered: {cookie:#x}")
        return command

    # --- simple replies -------------------------------------------------------------------------

    def _simple_reply(self, start: int) -> None:
        _, error, cookie = _simple(self._scratch, start)
        command = self._find(cookie)
        if self._mode == EXTENDED:
            raise command.wrong("simple reply after extended headers were agreed on")
        if self._mode != SIMPLE and command.kind in (wire.CMD_READ, wire.CMD_BLOCK_STATUS):
            raise command.wrong("simple reply when structured reply chunk was expected")
        self._is_last = True
        if error:
            command.add_error(error, "")
        elif command.kind == wire.CMD_READ:
            self._expect(command, command.length, command.claim(command.offset, command.length))
            return
        self._expect(command, 0, None)

    # --- chunks -----------------------------------------------------------------------------------

    def _take_chunk(self, magic: int, size: int, available: int) -> bool:
        """Take the header of a chunk, with the offset of its content if it has any."""
        start = self._start
        if magic == wire.STRUCTURED_REPLY_MAGIC:
            _, flags, kind, cookie, length = _chunk(self._scratch, start)
            command = self._find(cookie)
            if self._mode != STRUCTURED:
                raise command.wrong("structured reply that was not agreed on")
        else:
            _, flags, kind, cookie, offset, length = _extended(self._scratch, start)
            command = self._find(cookie)
            if self._mode != EXTENDED:
                raise command.wrong("extended header that was not agreed on")
            if offset != command.offset:
                raise command.wrong(f"the reply says that the request's offset is {offset}")
        if flags & ~wire.REPLY_FLAG_DONE:
            raise command.wrong(f"unknown reply flags {flags:#x}")
        self._is_last = bool(flags & wire.REPLY_FLAG_DONE)
        if kind == wire.REPLY_OFFSET_DATA:
            return self._take_data_head(command, start + size, length, available - size)
        self._check_length(command, kind, length)
        self._start = start + size
        self._kind = kind
        self._collecting = collecting = bytearray(length)
        self._expect(command, length, [memoryview(collecting)] if length else None)
        return True

    def _take_data_head(self, command: Command, start: int, length: int, available: int) -> bool:
        if command.kind != wire.CMD_READ:
            raise command.wrong("content, which only reads can have")
        if not 8 < length <= 8 + command.length:
            raise command.wrong(f"content chunk of {length} bytes")
        if available < 8:
            return False
        offset = int.from_bytes(self._scratch[start : start + 8], "big")
        if command.flags & wire.CMD_FLAG_DF and command.received:
            raise command.wrong("fragments where none were allowed")
        self._start = start + 8
        self._expect(command, length - 8, command.claim(offset, length - 8))
        return True

    def _check_length(self, command: Command, kind: int, length: int) -> None:
        """Before memory is taken for a payload that holds no content."""
        if kind & wire.REPLY_ERROR_BIT:
            tail = 8 if kind == wire.REPLY_ERROR_OFFSET else 0
            valid = wire.ErrorChunk.SIZE + tail <= length <= _ERROR_MAX
        elif kind == wire.REPLY_NONE:
            if not self._is_last:
                raise command.wrong("NBD_REPLY_TYPE_NONE chunk without NBD_REPLY_FLAG_DONE flag")
            valid = not length
        elif kind == wire.REPLY_OFFSET_HOLE:
            if command.kind != wire.CMD_READ:
                raise command.wrong("a hole, which only reads can have")
            valid = length == wire.Hole.SIZE
        elif kind in (wire.REPLY_BLOCK_STATUS, wire.REPLY_BLOCK_STATUS_EXT):
            if command.kind != wire.CMD_BLOCK_STATUS:
                raise command.wrong("a block status that was not asked for")
            wide = kind == wire.REPLY_BLOCK_STATUS_EXT
            if wide != (self._mode == EXTENDED):
                raise command.wrong("a block status of the wrong width")
            head, each = (8, 16) if wide else (4, 8)
            valid = head + each <= length <= STATUS_MAX and not (length - head) % each
        else:
            raise command.wrong(f"unexpected reply type {kind}")
        if not valid:
            raise command.wrong(f"payload of {length} bytes for reply type {kind}")

    def _understand(self, command: Command, payload: bytearray) -> None:
        """A payload that holds no content has arrived."""
        kind = self._kind
        if kind == wire.REPLY_OFFSET_HOLE:
            hole = wire.Hole.unpack_from(payload)
            if not hole.length:
                raise command.wrong("a hole without length")
            if command.flags & wire.CMD_FLAG_DF and command.received:
                raise command.wrong("fragments where none were allowed")
            command.fill_hole(hole.offset, hole.length)
        elif kind & wire.REPLY_ERROR_BIT:
            _understand_error(command, kind, payload)
        elif payload:
            self._understand_status(command, payload)

    def _understand_status(self, command: Command, payload: bytearray) -> None:
        context = int.from_bytes(payload[:4], "big")
        name = self._contexts.get(context)
        if name is None:
            raise command.wrong(f"a block status for context {context}, which was not chosen")
        wide = self._mode == EXTENDED
        start = 8 if wide else 4
        if wide:
            count = int.from_bytes(payload[4:8], "big")
            if count != (len(payload) - 8) // wire.ExtendedExtent.SIZE:
                raise command.wrong(
                    f"a block status that does not hold the {count} extents it says"
                )
        command.add_extents(name, memoryview(payload)[start:], wide=wide)


def _understand_error(command: Command, kind: int, payload: bytearray) -> None:
    head = wire.ErrorChunk.unpack_from(payload)
    text = payload[wire.ErrorChunk.SIZE :]
    tail = 8 if kind == wire.REPLY_ERROR_OFFSET else 0
    # Kinds of errors to come may have anything behind the message.
    exact = kind in (wire.REPLY_ERROR, wire.REPLY_ERROR_OFFSET)
    if head.length + tail > len(text) or (exact and head.length + tail < len(text)):
        raise command.wrong(f"an error's message of {head.length} bytes does not fit its payload")
    if head.length > wire.MAX_STRING:
        raise command.wrong(f"an error's message of {head.length} bytes is too long")
    if not head.error:
        raise command.wrong("an error without a number")
    if tail:
        offset = int.from_bytes(text[head.length : head.length + 8], "big")
        if not command.offset <= offset < command.offset + max(command.length, 1):
            raise command.wrong(f"an error at offset {offset}, outside the request")
    command.add_error(head.error, printable(bytes(text[: head.length])))
