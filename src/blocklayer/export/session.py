# SPDX-License-Identifier: Apache-2.0
"""One client: everything it has sent is parsed, done together, and answered by one send.

    receive      requests of the buffer      reads      page cache -> arena   \\
    ------->     (nbd/server_transmission)   writes     buffer -> page cache   >   one send
                                             others     export/commands       /

Reads whose place is known in memory go straight from the page cache into the *arena*, the buffer
that is sent, behind their headers. What would block goes to threads (`export/offload`) that answer
on their own. Requests that are in flight together have no order (the protocol's section on
ordering), except that what is written is in place when it is answered.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from blocklayer.base.buffers import Buffer
from blocklayer.base.errors import BlocklayerError
from blocklayer.base.layout import Layout
from blocklayer.export.channel import Channel
from blocklayer.export.commands import Commands, error_code, error_words
from blocklayer.export.export import Export
from blocklayer.export.offload import Offload
from blocklayer.export.zero_copy import ZERO_COPY_MIN, ZeroCopyRead, is_worth_it
from blocklayer.nbd import wire
from blocklayer.nbd.offers import EXTENDED, SIMPLE, STRUCTURED, Choice
from blocklayer.nbd.server_transmission import LARGE, PIECE, Item, Replies, RequestReader

ARENA = 1024 * 1024
"""Bytes of answers that are put together before they are sent."""

SLOW_SECONDS = 0.001
"""A read that takes longer has waited for the storage, and the next ones will, too."""

SLOW_RUN = 64
"""Reads after a slow one that are given to threads."""

log = logging.getLogger("blocklayer.nbd")

# Names of this module, since the loop over requests is counted in nanoseconds.
_READ, _WRITE = wire.CMD_READ, wire.CMD_WRITE
_SIMPLE_MAGIC = wire.SIMPLE_REPLY_MAGIC
_CHUNK_MAGIC, _EXTENDED_MAGIC = wire.STRUCTURED_REPLY_MAGIC, wire.EXTENDED_REPLY_MAGIC
_DONE, _DATA = wire.REPLY_FLAG_DONE, wire.REPLY_OFFSET_DATA

_READ_HEADS: dict[str, type[Layout]] = {
    SIMPLE: wire.SimpleReply,
    STRUCTURED: wire.DataChunkHeader,
    EXTENDED: wire.ExtendedDataChunkHeader,
}
"""What stands before the data of a read."""


class Session:
    """Transmission with one client, in the thread that calls `run`."""

    def __init__(self, channel: Channel, export: Export, choice: Choice) -> None:
        self._channel = channel
        self._export = export
        self._disk = export.disk
        self._replies = Replies(choice.mode)
        self._reader = RequestReader(extended=choice.mode == EXTENDED)
        self._commands = Commands(export, choice, self._replies)
        self._offload = Offload(f"nbd {export.name}")
        self._arena = memoryview(bytearray(ARENA))
        self._simple = choice.mode == SIMPLE
        self._read_head = _READ_HEADS[choice.mode].codec()
        self._extended = choice.mode == EXTENDED
        self._inline_max = ZERO_COPY_MIN - 1
        self._read_flags = wire.CMD_FLAG_FUA | (0 if self._simple else wire.CMD_FLAG_DF)
        self._slow_run = 0
        self._large: _LargeWrite | None = None
        self.problem = ""

    def run(self, rest: bytes) -> None:
        """Serve until the client goes, or is told to. Raises `OSError` if it went badly."""
        try:
            if self._serve(self._reader.feed(rest)):
                self._receive()
        except BaseException:
            self._channel.abort()  # whoever sends in another thread must not wait for the client
            raise
        finally:
            self._commands.leaving = True
            self._offload.close()

    def _receive(self) -> None:
        """Receive and serve until the client goes, or nobody knows what it means."""
        reader, channel = self._reader, self._channel
        items: list[Item] = []
        while not reader.problem:
            # A client that waits for one answer, or is about to send the rest, is quick.
            is_soon = len(items) == 1 or not reader.idle
            count = (channel.receive_soon if is_soon else channel.receive_into)(reader.space())
            if not count:
                if not reader.idle:
                    self.problem = "client went away in the middle of a request"
                return
            items = reader.received(count)
            if not self._serve(items):
                return
        self.problem = reader.problem

    # --- a batch ----------------------------------------------------------------------------------

    def _serve(self, items: list[Item]) -> bool:
        """Do what the client asked for; False if it wants to go."""
        size = self._disk.size
        read_flags, inline_max = ~self._read_flags, self._inline_max
        pack, head = self._read_head.pack_into, self._read_head.size
        arena, room = self._arena, ARENA
        simple, extended = self._simple, self._extended
        reads: list[tuple[int, memoryview]] = []
        taken: list[Item] = []
        writes: list[Item] = []
        others: list[Item] = []
        position = 0
        goes_on = True
        for item in items:
            command, flags, cookie, offset, length, _ = item
            if (
                command == _READ
                and 0 < length <= inline_max
                and offset + length <= size
                and not flags & read_flags
            ):
                start = position + head
                if start + length > room:
                    self._finish_reads(reads, taken, position)
                    reads, taken, position, start = [], [], 0, head
                if simple:
                    pack(arena, position, _SIMPLE_MAGIC, 0, cookie)
                elif extended:
                    pack(
                        arena,
                        position,
                        _EXTENDED_MAGIC,
                        _DONE,
                        _DATA,
                        cookie,
                        offset,
                        length + 8,
                        offset,
                    )
                else:
                    pack(arena, position, _CHUNK_MAGIC, _DONE, _DATA, cookie, length + 8, offset)
                position = start + length
                reads.append((offset, arena[start:position]))
                taken.append(item)
            elif command == _WRITE:
                writes.append(item)
            elif command == wire.CMD_DISC:
                goes_on = False
                break
            else:
                others.append(item)
        self._finish_reads(reads, taken, position)
        self._finish_writes(writes)
        for item in others:
            self._serve_other(item)  # after the answers in the arena are sent: it may be used again
        return goes_on

    def _serve_other(self, item: Item) -> None:
        command, flags, cookie, offset, length, payload = item
        if command == LARGE:
            self._begin_large(flags, cookie, offset, length)
        elif command == PIECE:
            self._continue_large(item)
        elif command == _READ:
            self._serve_read(item)
        elif self._commands.is_slow(command, length):
            if payload is not None:
                item = (*item[:5], memoryview(bytes(payload)))
            self._later(item)
        else:
            self._send(self._commands.answer(item))

    def _later(self, item: Item) -> None:
        """Have a thread of the pool do and answer a request."""
        self._in_thread(lambda: self._do_and_answer(item))

    def _do_and_answer(self, item: Item) -> None:
        if item[0] == _READ:
            self._commands.send_read(item, self._channel)
        else:
            self._send(self._commands.answer(item))

    def _in_thread(self, job: Callable[[], None]) -> None:
        def run() -> None:
            try:
                job()
            except OSError:
                self._channel.abort()  # the client does not listen: the connection's thread sees it
            except Exception:
                log.exception("export '%s': a request failed", self._export.name)
                self._channel.abort()  # it has no answer, so nobody shall wait for one

        self._offload.submit(run)

    def _send(self, answer: bytes) -> None:
        self._channel.send(answer)

    # --- reads ------------------------------------------------------------------------------------

    def _finish_reads(
        self, reads: list[tuple[int, memoryview]], taken: list[Item], end: int
    ) -> None:
        """Fill the arena, and send it; `end` is behind the last answer in it."""
        if not reads:
            return
        late = self._disk.read_inline(reads)
        stats = self._export.stats
        stats.requests[_READ] += len(reads) - len(late)
        if not late:
            stats.bytes_read += end - len(reads) * self._read_head.size
            self._channel.send(self._arena[:end])
            return
        self._send_around(late, reads)
        for index in late:
            self._serve_read(taken[index])

    def _send_around(self, late: list[int], reads: list[tuple[int, memoryview]]) -> None:
        """Send the answers of the arena that are complete."""
        parts: list[Buffer] = []
        head = self._read_head.size
        start = position = 0
        missing = set(late)
        for index, (_, view) in enumerate(reads):
            following = position + head + len(view)
            if index in missing:
                if start < position:
                    parts.append(self._arena[start:position])
                start = following
            else:
                self._export.stats.bytes_read += len(view)
            position = following
        if start < position:
            parts.append(self._arena[start:position])
        if parts:
            self._channel.send_vector(parts)

    def _serve_read(self, item: Item) -> None:
        """A read that nobody can be sure of: it may have holes, wait for the storage, or fail."""
        if self._slow_run:
            self._slow_run -= 1
            self._later(item)
            return
        if is_worth_it(self._channel, item[4]) and self._commands.read_is_good(item):
            read = ZeroCopyRead(self._disk, self._replies, self._channel, item[2], item[3], item[4])
            if read.answer():
                self._commands.count(_READ, item[4], failed=False)
                return
        started = time.monotonic()
        self._commands.send_read(item, self._channel, self._arena)
        if time.monotonic() - started > SLOW_SECONDS + item[4] / (1 << 30):
            self._slow_run = SLOW_RUN

    # --- writes -----------------------------------------------------------------------------------

    def _finish_writes(self, items: list[Item]) -> None:
        """Write, and answer what needs not be flushed; threads flush and answer the rest."""
        if not items:
            return
        answers, durable = self._commands.write_all(items)
        if durable:
            self._in_thread(lambda: self._flush_and_answer(durable))
        if answers:
            self._send(b"".join(answers))

    def _flush_and_answer(self, items: list[Item]) -> None:
        self._send(self._commands.flush_for(items))

    def _begin_large(self, flags: int, cookie: int, offset: int, length: int) -> None:
        refusal = self._commands.write_refusal(flags, offset, length)
        self._large = _LargeWrite(cookie, flags, offset, length, refusal)

    def _continue_large(self, item: Item) -> None:
        _, _, _, offset, left, view = item
        large = self._large
        assert large is not None
        assert view is not None
        if large.refusal is None:
            try:
                self._disk.write(offset, view)
            except BlocklayerError as error:
                large.refusal = (error_code(error), error_words("write", error))
        if left:
            return
        self._large = None
        whole = (_WRITE, large.flags, large.cookie, large.offset, large.length, None)
        durable = bool(large.flags & wire.CMD_FLAG_FUA)
        counted = 0 if durable else large.length  # those are counted when they are durable
        self._commands.count(_WRITE, counted, failed=large.refusal is not None)
        if large.refusal is not None:
            code, words = large.refusal
            self._send(self._replies.error(large.cookie, large.offset, code, words))
        elif durable:
            self._in_thread(lambda: self._flush_and_answer([whole]))
        else:
            self._send(self._replies.done(large.cookie, large.offset))


class _LargeWrite:
    """A write that comes in pieces."""

    __slots__ = ("cookie", "flags", "length", "offset", "refusal")

    def __init__(
        self, cookie: int, flags: int, offset: int, length: int, refusal: tuple[int, str] | None
    ) -> None:
        self.cookie = cookie
        self.flags = flags
        self.offset = offset
        self.length = length
        self.refusal = refusal
