# SPDX-License-Identifier: Apache-2.0
"""What each command of a client does to the disk, and its answer.

Which error: the protocol document's words, where QEMU's server says EINVAL to everything. Writing
beyond the end is ENOSPC, writing what may not be written EPERM, all other nonsense EINVAL.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence

from blocklayer.base.align import align_down
from blocklayer.base.buffers import Buffer
from blocklayer.base.errors import BlocklayerError, FormatError, IoError, os_reason
from blocklayer.export.block_status import BlockStatus
from blocklayer.export.channel import Channel
from blocklayer.export.export import UNKNOWN, Export
from blocklayer.nbd import wire
from blocklayer.nbd.offers import EXTENDED, SIMPLE, Choice
from blocklayer.nbd.server_transmission import Item, Replies

READ_PIECE = 1024 * 1024
"""Bytes of a read that are in memory at once."""

QUICK_ZERO_MAX = 256 * 1024
"""Bytes whose zeroing does not keep other requests waiting."""

CHANGE_PIECE = 1 << 30
"""Bytes that are zeroed or trimmed as one request to the disk."""


class ShuttingDown(BlocklayerError, eq=False):
    """A request ends unfinished because its connection does."""

    template = "{message}"
    errno = errno.ESHUTDOWN


Refusal = tuple[int, str]
"""An error of the protocol, and words for people."""

Send = Callable[[Sequence[Buffer]], None]


def error_words(operation: str, error: BlocklayerError) -> str:
    """What a client is told: what failed and why, but not the names of our files."""
    if isinstance(error, IoError):
        return f"{operation} failed: {error.reason}"
    if isinstance(error, FormatError):
        return f"{operation} failed: the image is damaged"
    return f"{operation} failed: {os_reason(error)}"


def error_code(error: BlocklayerError) -> int:
    """The protocol's number; an image that is damaged is no fault of the client's request."""
    return wire.EIO if isinstance(error, FormatError) else wire.wire_error(error.errno)


class Commands:
    """The commands of one client on one export. Thread-safe."""

    def __init__(self, export: Export, choice: Choice, replies: Replies) -> None:
        self._export = export
        self._disk = export.disk
        self._replies = replies
        self._mode = choice.mode
        self._status = BlockStatus(export, choice, replies)
        self._maximum = choice.offer.block_maximum
        usual = wire.CMD_FLAG_PAYLOAD_LEN if choice.mode == EXTENDED else 0
        self._write_flags = ~usual
        """Flags of writes that need a second look."""
        self.leaving = False
        """Nobody waits for the rest of what takes long: the client has gone, or the server goes."""

    # --- what may be asked ------------------------------------------------------------------------

    def is_slow(self, command: int, length: int) -> bool:
        """Whether a command may take long, so that a thread should do it."""
        if command == wire.CMD_WRITE_ZEROES:
            return length > QUICK_ZERO_MAX
        return command in (wire.CMD_FLUSH, wire.CMD_TRIM, wire.CMD_CACHE)

    def _refusal(self, item: Item) -> Refusal | None:
        """Why a request is nonsense, before anything is done; None if it is not."""
        command, flags, _, offset, length, payload = item
        name = wire.COMMAND_NAMES.get(command)
        if name is None or command == wire.CMD_DISC:
            return wire.EINVAL, f"unsupported command type {command:#x}"
        allowed = wire.CMD_FLAG_FUA | _FLAGS.get(command, 0)
        if self._mode == EXTENDED and command in (wire.CMD_WRITE, wire.CMD_BLOCK_STATUS):
            allowed |= wire.CMD_FLAG_PAYLOAD_LEN
        if command == wire.CMD_READ and self._mode == SIMPLE:
            allowed &= ~wire.CMD_FLAG_DF
        if flags & ~allowed:
            return wire.EINVAL, f"unsupported flags for command {name} (got {flags:#x})"
        if command in _WRITING and not self._export.writable:
            return wire.EPERM, f"{name} failed: the export is read-only"
        if command == wire.CMD_FLUSH or (payload is not None and command != wire.CMD_WRITE):
            return None
        if offset + length > self._disk.size:
            code = wire.ENOSPC if command in _GROWING else wire.EINVAL
            return code, (
                f"{name} failed: {length} bytes at offset {offset} reach beyond the export's"
                f" {self._disk.size} bytes"
            )
        if command in (wire.CMD_READ, wire.CMD_WRITE) and length > self._maximum:
            return wire.EINVAL, f"{name} failed: {length} bytes are more than {self._maximum}"
        return None

    def read_is_good(self, item: Item) -> bool:
        """Whether a read may be answered by its data."""
        fragments = self._mode == SIMPLE or not item[1] & wire.CMD_FLAG_DF
        return fragments and self._refusal(item) is None

    def write_refusal(self, flags: int, offset: int, length: int) -> Refusal | None:
        """Why a write is not even tried."""
        return self._refusal((wire.CMD_WRITE, flags, 0, offset, length, None))

    def count(self, command: int, length: int, *, failed: bool) -> None:
        """Count a request that is answered."""
        stats = self._export.stats
        stats.requests[command if command in wire.COMMAND_NAMES else UNKNOWN] += 1
        if failed:
            stats.errors += 1
        elif command == wire.CMD_READ:
            stats.bytes_read += length
        elif command == wire.CMD_WRITE:
            stats.bytes_written += length

    # --- reads ------------------------------------------------------------------------------------

    def send_read(self, item: Item, channel: Channel, buffer: memoryview | None = None) -> None:
        """Read and answer, in pieces of `READ_PIECE`: holes are told of, not sent."""
        send = channel.send_vector
        _, flags, cookie, offset, length, _ = item
        refusal = self._refusal(item)
        self.count(wire.CMD_READ, length, failed=refusal is not None)
        if refusal is not None:
            send([self._replies.error(cookie, offset, *refusal)])
        elif not length:
            # A read is answered by chunks, even if it is of nothing.
            end = self._replies.done if self._mode == SIMPLE else self._replies.end
            send([end(cookie, offset)])
        else:
            view = buffer if buffer is not None else memoryview(bytearray(min(length, READ_PIECE)))
            if self._mode != SIMPLE and not flags & wire.CMD_FLAG_DF:
                self._send_chunks(cookie, offset, length, view, send)
                return
            # Bytes without a head of their own follow: no other answer may come between.
            answer = self._send_simple if self._mode == SIMPLE else self._send_whole
            with channel.exclusive():
                answer(cookie, offset, length, view, channel.send_parts)

    def _send_simple(
        self, cookie: int, offset: int, length: int, view: memoryview, send: Send
    ) -> None:
        head = self._replies.simple_data(cookie)
        position = 0
        while position < length:
            piece = view[: min(length - position, READ_PIECE)]
            try:
                self._disk.read_into(offset + position, piece)
            except BlocklayerError as error:
                if position:
                    # The client was told that all is well: only leaving tells it otherwise.
                    raise ConnectionAbortedError(f"read failed in an answer: {error}") from error
                self._export.stats.errors += 1
                send([self._failure("read", cookie, offset, error)])
                return
            send([piece] if position else [head, piece])
            position += len(piece)

    def _send_whole(
        self, cookie: int, offset: int, length: int, view: memoryview, send: Send
    ) -> None:
        """One chunk, because the client wants it so; an error is told behind it."""
        failure: tuple[int, BlocklayerError] | None = None
        position = 0
        while position < length:
            piece = view[: min(length - position, READ_PIECE)]
            try:
                if failure is None:
                    self._disk.read_into(offset + position, piece)
            except BlocklayerError as error:
                if not position:
                    self._export.stats.errors += 1
                    send([self._failure("read", cookie, offset, error)])
                    return
                failure = (offset + position, error)
            if failure is not None:
                piece[:] = bytes(len(piece))
            last = position + len(piece) == length and failure is None
            if position:
                send([piece])
            else:
                # Not the last chunk as long as an error may follow.
                whole = last and len(piece) == length
                send([self._replies.data(cookie, offset, offset, length, last=whole), piece])
            position += len(piece)
        if failure is not None:
            place, cause = failure
            send([self._read_failure_at(cookie, offset, cause, place)])
        elif length > READ_PIECE or len(view) < length:
            send([self._replies.end(cookie, offset)])

    def _send_chunks(
        self, cookie: int, offset: int, length: int, view: memoryview, send: Send
    ) -> None:
        position = 0
        while position < length:
            piece = view[: min(length - position, READ_PIECE)]
            place = offset + position
            try:
                runs = self._disk.read_sparse(place, piece)
            except BlocklayerError as error:
                if position:
                    send([self._read_failure_at(cookie, offset, error, place)])
                else:
                    self._export.stats.errors += 1
                    send([self._failure("read", cookie, offset, error)])
                return
            position += len(piece)
            send(list(self._chunks(cookie, offset, place, piece, runs, last=position == length)))

    def _chunks(
        self,
        cookie: int,
        offset: int,
        place: int,
        piece: memoryview,
        runs: list[tuple[int, bool]],
        *,
        last: bool,
    ) -> Iterator[Buffer]:
        start = 0
        for index, (count, zero) in enumerate(runs):
            end = last and index == len(runs) - 1
            if zero:
                yield self._replies.hole(cookie, offset, place + start, count, last=end)
            else:
                yield self._replies.data(cookie, offset, place + start, count, last=end)
                yield piece[start : start + count]
            start += count

    # --- writes -----------------------------------------------------------------------------------

    def write_all(self, items: list[Item]) -> tuple[list[bytes], list[Item]]:
        """Write a batch: answers, and the items that must be flushed before they are answered."""
        flags = 0
        size = self._disk.size
        maximum = self._maximum
        good = self._export.writable
        requests: list[tuple[int, memoryview]] = []
        length_of_all = 0
        for _, one, _, offset, length, payload in items:
            flags |= one
            good = good and offset + length <= size and 0 < length <= maximum
            length_of_all += length
            assert payload is not None
            requests.append((offset, payload))
        if not good or flags & self._write_flags:
            return self._write_carefully(items)
        errors = self._disk.write_each(requests)
        stats = self._export.stats
        stats.requests[wire.CMD_WRITE] += len(items)
        done = self._replies.done
        if not errors:
            stats.bytes_written += length_of_all
            return [done(item[2], item[3]) for item in items], []
        return [self._write_answer(item, errors.get(index)) for index, item in enumerate(items)], []

    def _write_answer(self, item: Item, error: BlocklayerError | None) -> bytes:
        if error is None:
            self._export.stats.bytes_written += item[4]
            return self._replies.done(item[2], item[3])
        self._export.stats.errors += 1
        return self._failure("write", item[2], item[3], error)

    def _write_carefully(self, items: list[Item]) -> tuple[list[bytes], list[Item]]:
        """A batch with a request that is refused, has to be flushed, or is empty."""
        answers: list[bytes] = []
        valid: list[Item] = []
        for item in items:
            refusal = self._refusal(item)
            if refusal is not None:
                self.count(wire.CMD_WRITE, 0, failed=True)
                answers.append(self._replies.error(item[2], item[3], *refusal))
            else:
                valid.append(item)
        requests = [(item[3], item[5]) for item in valid if item[5] is not None and item[4]]
        errors = self._disk.write_each(requests)
        results = {id(view): errors.get(index) for index, (_, view) in enumerate(requests)}
        durable: list[Item] = []
        for item in valid:
            error = results.get(id(item[5]))
            if error is None and item[1] & wire.CMD_FLAG_FUA:
                durable.append((*item[:5], None))  # the buffer is used again before the answer
            else:
                answers.append(self._write_answer(item, error))
            self._export.stats.requests[wire.CMD_WRITE] += 1
        return answers, durable

    def flush_for(self, items: list[Item]) -> bytes:
        """One flush for writes that are done; their answers."""
        try:
            self._disk.flush()
        except BlocklayerError as error:
            self._export.stats.errors += len(items)
            return b"".join(self._failure("flush", item[2], item[3], error) for item in items)
        for item in items:
            self._export.stats.bytes_written += item[4]
        return b"".join(self._replies.done(item[2], item[3]) for item in items)

    # --- everything else --------------------------------------------------------------------------

    def answer(self, item: Item) -> bytes:
        """Do a request that is not a read, and answer it whole."""
        command, _, cookie, offset, length, _ = item
        refusal = self._refusal(item)
        if refusal is None:
            try:
                reply = _ACTIONS[command](self, item)
                self.count(command, length, failed=False)
                return reply
            except BlocklayerError as error:
                self.count(command, length, failed=True)
                return self._failure(wire.COMMAND_NAMES[command], cookie, offset, error)
        self.count(command, length, failed=True)
        return self._replies.error(cookie, offset, *refusal)

    def _failure(self, name: str, cookie: int, offset: int, error: BlocklayerError) -> bytes:
        code = error_code(error)
        return self._replies.error(cookie, offset, code, error_words(name, error))

    def _read_failure_at(
        self, cookie: int, offset: int, error: BlocklayerError, place: int
    ) -> bytes:
        code = error_code(error)
        self._export.stats.errors += 1
        return self._replies.error_at(cookie, offset, code, error_words("read", error), place)

    def _flush(self, item: Item) -> bytes:
        self._disk.flush()
        return self._replies.done(item[2], item[3])

    def _trim(self, item: Item) -> bytes:
        _, flags, cookie, offset, length, _ = item
        for start, count in self._pieces(offset, length):
            self._disk.discard(start, count)
        if flags & wire.CMD_FLAG_FUA:
            self._disk.flush()
        return self._replies.done(cookie, offset)

    def _write_zeroes(self, item: Item) -> bytes:
        _, flags, cookie, offset, length, _ = item
        keep = bool(flags & wire.CMD_FLAG_NO_HOLE)
        fast = bool(flags & wire.CMD_FLAG_FAST_ZERO)
        if fast and length > CHANGE_PIECE:
            # What is refused must be as it was; so the pieces are not refused one by one.
            self._disk.check_zero(offset, length, allocate=keep)
        for start, count in self._pieces(offset, length):
            self._disk.write_zeroes(
                start,
                count,
                unmap=not keep and self._disk.discard_mode == "unmap",
                allocate=keep,
                no_fallback=fast and start == offset,
            )
        if flags & wire.CMD_FLAG_FUA:
            self._disk.flush()
        return self._replies.done(cookie, offset)

    def _cache(self, item: Item) -> bytes:
        """Bring into memory; with copy-on-read, into the overlay."""
        _, _, cookie, offset, length, _ = item
        scratch = memoryview(bytearray(min(length, READ_PIECE)))
        for rows in self._disk.extent_rows(offset, length):
            for start, count, _, zero, *_ in rows:
                for place in range(start, start if zero else start + count, READ_PIECE):
                    if self.leaving:
                        return self._replies.done(cookie, offset)  # it was only advice
                    piece = scratch[: min(READ_PIECE, start + count - place)]
                    self._disk.read_into(place, piece)
        return self._replies.done(cookie, offset)

    def _block_status(self, item: Item) -> bytes:
        return self._status.answer(item)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """A range in parts that are each done soon: others, and a server that stops, get a turn.

        They end at multiples of their length, which cut no cluster.
        """
        start, end = offset, offset + length
        while start < end:
            if self.leaving and start > offset:
                raise ShuttingDown("the server is shutting down")
            stop = min(end, align_down(start, CHANGE_PIECE) + CHANGE_PIECE)
            yield start, stop - start
            start = stop


_FLAGS = {
    wire.CMD_READ: wire.CMD_FLAG_DF,
    wire.CMD_WRITE_ZEROES: wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO,
    wire.CMD_BLOCK_STATUS: wire.CMD_FLAG_REQ_ONE,
}
"""Flags of a command beside FUA, which every command may have."""

_WRITING = (wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES)
_GROWING = (wire.CMD_WRITE, wire.CMD_WRITE_ZEROES)

_ACTIONS: dict[int, Callable[[Commands, Item], bytes]] = {
    wire.CMD_FLUSH: Commands._flush,
    wire.CMD_TRIM: Commands._trim,
    wire.CMD_WRITE_ZEROES: Commands._write_zeroes,
    wire.CMD_CACHE: Commands._cache,
    wire.CMD_BLOCK_STATUS: Commands._block_status,
}
