# SPDX-License-Identifier: Apache-2.0
"""An NBD client of bytes, for tests of the server: it can send anything, and believes nothing.

It does not share the package's client, so that no mistake is made twice. Replies are checked
against the protocol document as they come: kinds, bounds, order, and the whole of what was asked.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from blocklayer.nbd import wire

SIMPLE, STRUCTURED, EXTENDED = "simple", "structured", "extended"
MODES = (SIMPLE, STRUCTURED, EXTENDED)
PATIENCE = 30.0
"""Seconds after which a server that says nothing is taken to hang."""

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZERO, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << bit for bit in range(6))


class Wrong(AssertionError):
    """The server broke the protocol."""


@dataclass
class OptionAnswer:
    """Every reply to one option: (type, data) in order."""

    replies: list[tuple[int, bytes]]

    @property
    def kind(self) -> int:
        """Of the last one."""
        return self.replies[-1][0]

    @property
    def words(self) -> str:
        """What an error says."""
        return self.replies[-1][1].decode()

    def infos(self) -> dict[int, bytes]:
        """Items of INFO replies by their kinds."""
        found = [data for kind, data in self.replies if kind == wire.REP_INFO]
        return {int.from_bytes(data[:2], "big"): data[2:] for data in found}

    def contexts(self) -> dict[str, int]:
        """Metadata contexts by their names."""
        found = [data for kind, data in self.replies if kind == wire.REP_META_CONTEXT]
        return {data[4:].decode(): int.from_bytes(data[:4], "big") for data in found}


@dataclass
class Pending:
    """What was asked."""

    command: int
    flags: int
    offset: int
    length: int


@dataclass
class Reply:
    """The whole answer to a request."""

    error: int = 0
    words: str = ""
    place: int | None = None
    """Where an error happened, if that was told."""
    data: dict[int, bytes] = field(default_factory=dict)
    holes: dict[int, int] = field(default_factory=dict)
    status: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    chunks: int = 0

    def content(self, offset: int, length: int) -> bytes:
        """The bytes that were read; all of them must have been told of, once."""
        result = bytearray(length)
        position = offset
        parts = [(start, data) for start, data in self.data.items()]
        parts += [(start, bytes(count)) for start, count in self.holes.items()]
        for start, data in sorted(parts):
            check(start == position, f"chunk at {start}, the last one ended at {position}")
            result[start - offset : start - offset + len(data)] = data
            position += len(data)
        check(position == offset + length, f"{length} bytes asked for, {position - offset} came")
        return bytes(result)


def check(condition: bool, words: str) -> None:
    """Raise `Wrong` if the server did wrong."""
    if not condition:
        raise Wrong(words)


def text(value: str) -> bytes:
    """A string with its length before it."""
    data = value.encode()
    return struct.pack(">I", len(data)) + data


def option_bytes(option: int, data: bytes = b"", *, length: int | None = None) -> bytes:
    """An option as a client sends it."""
    size = len(data) if length is None else length
    return struct.pack(">QII", wire.OPTION_MAGIC, option, size) + data


def go_data(name: str, items: Sequence[int] = ()) -> bytes:
    """The data of GO and INFO."""
    return text(name) + struct.pack(f">H{len(items)}H", len(items), *items)


def context_data(name: str, queries: Sequence[str]) -> bytes:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    return text(name) + struct.pack(">I", len(queries)) + b"".join(map(text, queries))


def request_bytes(
    command: int,
    offset: int = 0,
    length: int = 0,
    *,
    flags: int = 0,
    cookie: int = 1,
    payload: bytes = b"",
    extended: bool = False,
) -> bytes:
    """A request as a client sends it."""
    magic = wire.EXTENDED_REQUEST_MAGIC if extended else wire.REQUEST_MAGIC
    shape = ">IHHQQQ" if extended else ">IHHQQI"
    return struct.pack(shape, magic, flags, command, cookie, offset, length) + payload


class NbdPeer:
    """A connection to a server.

    address  a path, or (host, port), or a socket that is connected
    mode     None: nothing is negotiated yet
    """

    def __init__(
        self,
        address: Path | str | tuple[str, int] | socket.socket,
        *,
        export: str = "",
        mode: str | None = STRUCTURED,
        contexts: Sequence[str] = (),
        patience: float = PATIENCE,
    ) -> None:
        if isinstance(address, socket.socket):
            self.socket = address
        elif isinstance(address, tuple):
            self.socket = socket.create_connection(address, timeout=patience)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(patience)
            try:
                self.socket.connect(str(address))
            except BaseException:
                self.socket.close()
                raise
        self.socket.settimeout(patience)
        self.mode = SIMPLE
        self.size = 0
        self.flags = 0
        self.contexts: dict[str, int] = {}
        self._pending: dict[int, Pending] = {}
        self._partial: dict[int, Reply] = {}
        self._finished: dict[int, Reply] = {}
        self._cookie = 0
        if mode is not None:
            try:
                self.begin(export, mode, contexts)
            except BaseException:
                self.close()
                raise

    # --- bytes ----------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send all."""
        self.socket.sendall(data)

    def take(self, count: int) -> bytes:
        """Exactly so many bytes. Raises `EOFError`."""
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(min(count - len(data), 1 << 20))
            if not piece:
                raise EOFError(f"the server left; {len(data)} of {count} bytes had come")
            data += piece
        return bytes(data)

    def ended(self) -> bool:
        """Whether the server closes the connection, with nothing left to be read."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Leave without a word."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- handshake ------------------------------------------------------------------------------

    def greet(self, flags: int = wire.FIXED_NEWSTYLE | wire.NO_ZEROES) -> int:
        """Exchange greetings; the server's flags."""
        magic, style, offered = struct.unpack(">QQH", self.take(18))
        check((magic, style) == (wire.MAGIC, wire.OPTION_MAGIC), "no newstyle greeting")
        self.send(struct.pack(">I", flags))
        return int(offered)

    def option(self, option: int, data: bytes = b"") -> OptionAnswer:
        """Send an option; its replies up to the last."""
        self.send(option_bytes(option, data))
        return self.option_answer(option)

    def option_answer(self, option: int) -> OptionAnswer:
        """The replies to an option, up to the last."""
        replies = []
        while True:
            magic, about, kind, length = struct.unpack(">QIII", self.take(20))
            check(magic == wire.OPTION_REPLY_MAGIC, f"option reply with magic {magic:#x}")
            check(about == option, f"an answer to option {about}, not {option}")
            replies.append((kind, self.take(length)))
            if kind == wire.REP_ACK or kind & wire.REP_ERROR:
                return OptionAnswer(replies)

    def begin(self, export: str, mode: str, contexts: Sequence[str] = ()) -> None:
        """Negotiate everything that is wanted, and choose the export."""
        self.greet()
        if mode != SIMPLE:
            wanted = wire.OPT_EXTENDED_HEADERS
            if mode == STRUCTURED:
                wanted = wire.OPT_STRUCTURED_REPLY
            check(self.option(wanted).kind == wire.REP_ACK, f"{mode} replies refused")
        self.mode = mode
        if contexts:
            answer = self.option(wire.OPT_SET_META_CONTEXT, context_data(export, contexts))
            check(answer.kind == wire.REP_ACK, "contexts refused")
            self.contexts = answer.contexts()
        self.go(export)

    def go(self, export: str) -> None:
        """Choose an export: transmission begins."""
        answer = self.option(wire.OPT_GO, go_data(export))
        check(answer.kind == wire.REP_ACK, f"GO refused: {answer.replies}")
        self.size, self.flags = struct.unpack(">QH", answer.infos()[wire.INFO_EXPORT])

    # --- transmission ---------------------------------------------------------------------------

    def ask(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        payload: bytes = b"",
        announce: int | None = None,
    ) -> int:
        """Send a request, do not wait; its cookie."""
        self._cookie += 1
        cookie = self._cookie
        self.note(cookie, command, offset, length, flags)
        self.send(self.packed(cookie, command, offset, length, flags, payload, announce))
        return cookie

    def packed(
        self,
        cookie: int,
        command: int,
        offset: int,
        length: int,
        flags: int = 0,
        payload: bytes = b"",
        announce: int | None = None,
    ) -> bytes:
        """A request in this connection's shape; `announce`: a length that is not true."""
        if command == WRITE:
            length = len(payload)
            flags |= PAYLOAD_LEN if self.mode == EXTENDED else 0
        return request_bytes(
            command,
            offset,
            length if announce is None else announce,
            flags=flags,
            cookie=cookie,
            payload=payload,
            extended=self.mode == EXTENDED,
        )

    def note(self, cookie: int, command: int, offset: int, length: int, flags: int = 0) -> None:
        """A request with this cookie was sent, and will be answered."""
        self._pending[cookie] = Pending(command, flags, offset, length)

    def do(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        payload: bytes = b"",
    ) -> Reply:
        """Send a request and wait for its answer."""
        return self.wait(self.ask(command, offset, length, flags=flags, payload=payload))

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        """Read, and fail if the server does."""
        reply = self.do(READ, offset, length, flags=flags)
        check(not reply.error, f"read failed: {reply.error} {reply.words}")
        return reply.content(offset, length)

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        """Write, and fail if the server does."""
        reply = self.do(WRITE, offset, len(data), flags=flags, payload=data)
        check(not reply.error, f"write failed: {reply.error} {reply.words}")

    def wait(self, cookie: int) -> Reply:
        """The answer to a request."""
        while cookie not in self._finished:
            self.receive()
        return self._finished.pop(cookie)

    def any_reply(self) -> tuple[int, Reply]:
        """The next answer that is complete, whatever it answers."""
        while not self._finished:
            self.receive()
        return self._finished.popitem()

    def receive(self) -> None:
        """Take one reply or chunk."""
        (magic,) = struct.unpack(">I", self.take(4))
        if magic == wire.SIMPLE_REPLY_MAGIC:
            self._receive_simple()
        elif magic == wire.STRUCTURED_REPLY_MAGIC:
            check(self.mode == STRUCTURED, f"a structured reply in {self.mode} mode")
            flags, kind, cookie, length = struct.unpack(">HHQI", self.take(16))
            self._chunk(flags, kind, cookie, None, self.take(length))
        elif magic == wire.EXTENDED_REPLY_MAGIC:
            check(self.mode == EXTENDED, f"an extended reply in {self.mode} mode")
            flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", self.take(28))
            check(length <= 64 << 20, f"a chunk of {length} bytes")
            self._chunk(flags, kind, cookie, offset, self.take(length))
        else:
            raise Wrong(f"a reply with magic {magic:#x}")

    def _receive_simple(self) -> None:
        error, cookie = struct.unpack(">IQ", self.take(12))
        pending = self._asked(cookie)
        check(self.mode != EXTENDED, "a simple reply in extended mode")
        if self.mode == STRUCTURED:
            check(
                pending.command not in (READ, STATUS), f"simple reply to command {pending.command}"
            )
        reply = Reply(error=error)
        if pending.command == READ and not error and pending.length:
            reply.data[pending.offset] = self.take(pending.length)
        self._finish(cookie, reply)

    def _asked(self, cookie: int) -> Pending:
        check(
            cookie in self._pending, f"an answer to {cookie:#x}, which was never asked or is over"
        )
        return self._pending[cookie]

    def _finish(self, cookie: int, reply: Reply) -> None:
        del self._pending[cookie]
        check(reply.error in wire.ERROR_NAMES or not reply.error, f"error number {reply.error}")
        self._finished[cookie] = reply

    def _chunk(self, flags: int, kind: int, cookie: int, offset: int | None, data: bytes) -> None:
        pending = self._asked(cookie)
        check(offset in (None, pending.offset), f"chunk for offset {offset}: {pending}")
        check(not flags & ~wire.REPLY_FLAG_DONE, f"unknown chunk flags {flags:#x}")
        reply = self._partial.setdefault(cookie, Reply())
        reply.chunks += 1
        done = bool(flags & wire.REPLY_FLAG_DONE)
        if kind == wire.REPLY_NONE:
            check(done and not data, "a NONE chunk that is not the last, or has a payload")
        elif kind & wire.REPLY_ERROR_BIT:
            self._error_chunk(kind, reply, pending, data)
        elif kind in (wire.REPLY_OFFSET_DATA, wire.REPLY_OFFSET_HOLE):
            self._content_chunk(kind, reply, pending, data)
        else:
            self._status_chunk(kind, reply, pending, data)
        if done:
            del self._partial[cookie]
            if pending.command == READ and not reply.error:
                reply.content(pending.offset, pending.length)
            self._finish(cookie, reply)

    def _error_chunk(self, kind: int, reply: Reply, pending: Pending, data: bytes) -> None:
        code, count = struct.unpack_from(">IH", data)
        check(bool(code), "an error chunk without an error")
        check(count <= wire.MAX_STRING, "a message that is too long")
        reply.error = reply.error or code
        reply.words = data[6 : 6 + count].decode()
        rest = data[6 + count :]
        if kind == wire.REPLY_ERROR_OFFSET:
            (reply.place,) = struct.unpack(">Q", rest)
            inside = pending.offset <= reply.place < pending.offset + pending.length
            check(inside, f"error at {reply.place}, outside of {pending}")
        else:
            check(kind == wire.REPLY_ERROR and not rest, f"error chunk of kind {kind:#x}")

    def _content_chunk(self, kind: int, reply: Reply, pending: Pending, data: bytes) -> None:
        check(pending.command == READ, f"content for command {pending.command}")
        (start,) = struct.unpack_from(">Q", data)
        if kind == wire.REPLY_OFFSET_HOLE:
            (count,) = struct.unpack(">I", data[8:])
            reply.holes[start] = count
        else:
            count = len(data) - 8
            reply.data[start] = data[8:]
        check(count > 0, "an empty chunk")
        inside = pending.offset <= start and start + count <= pending.offset + pending.length
        check(inside, f"{count} bytes at {start}, outside of {pending}")
        if pending.flags & DF:
            check(len(reply.data) + len(reply.holes) == 1, "several chunks in spite of DF")

    def _status_chunk(self, kind: int, reply: Reply, pending: Pending, data: bytes) -> None:
        check(pending.command == STATUS, f"chunk {kind} for command {pending.command}")
        (number,) = struct.unpack_from(">I", data)
        check(number in self.contexts.values(), f"status of context {number}")
        check(number not in reply.status, f"context {number} told twice")
        if self.mode == EXTENDED:
            check(kind == wire.REPLY_BLOCK_STATUS_EXT, f"chunk {kind} in extended mode")
            (count,) = struct.unpack_from(">I", data, 4)
            fields = struct.unpack(f">{2 * count}Q", data[8:])
        else:
            check(kind == wire.REPLY_BLOCK_STATUS, f"chunk {kind} in {self.mode} mode")
            fields = struct.unpack(f">{(len(data) - 4) // 4}I", data[4:])
        extents = list(zip(fields[::2], fields[1::2], strict=True))
        check(bool(extents), "no extents")
        check(all(length > 0 for length, _ in extents), "an extent without length")
        if pending.flags & REQ_ONE:
            check(len(extents) == 1, "several extents in spite of REQ_ONE")
        before_last = sum(length for length, _ in extents[:-1])
        check(before_last < pending.length, "extents beyond the request")
        reply.status[number] = extents
