# SPDX-License-Identifier: Apache-2.0
"""The `nbd` protocol: an export of a server, near or far.

All threads share one connection, or several where the server allows that, with many requests in
flight. What a request is larger than the server takes is cut, and the pieces are in flight at the
same time; reads land in the caller's memory. `nbd/client*.py` have the protocol.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from blocklayer.base.align import align_down
from blocklayer.base.buffers import Vector, fill_zero, slice_vector, vector_length
from blocklayer.base.errors import (
    BlocklayerError,
    InvalidArgument,
    IoError,
    NotSupported,
    ProtocolError,
    ReadOnly,
    RemoteError,
)
from blocklayer.base.extent import BACKING, DATA, ZERO
from blocklayer.base.options import OptionTree
from blocklayer.base.units import GiB, MiB
from blocklayer.core.drivers import PROTOCOL, Driver
from blocklayer.core.node import ALLOCATE, EMULATE, NATIVE, NO_FALLBACK, UNMAP, Mapped, Node, Span
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.nbd import wire
from blocklayer.nbd.client import Client
from blocklayer.nbd.client_command import Command
from blocklayer.nbd.client_handshake import Wish
from blocklayer.protocols.nbd_flush import Unflushed
from blocklayer.protocols.nbd_options import take_options
from blocklayer.protocols.nbd_padding import PaddedExport
from blocklayer.protocols.nbd_status import BlockStatus

PIECE = 2 * MiB
"""Bytes of one read or write of many that make a large one: a server works on several at once."""

EFFECT_MAX = GiB
"""Bytes that one command zeroes or trims: fits 32 bits, and a slow server still answers in time."""

_OPERATIONS = {
    wire.CMD_READ: "read",
    wire.CMD_WRITE: "write",
    wire.CMD_FLUSH: "flush",
    wire.CMD_TRIM: "discard",
    wire.CMD_WRITE_ZEROES: "write zeroes",
    wire.CMD_BLOCK_STATUS: "block status",
}


class NbdNode(Node):
    """An export in use."""

    driver = "nbd"

    def __init__(self, client: Client, filename: str, flags: OpenFlags, *, context: str) -> None:
        read_only = flags.read_only
        super().__init__(filename, read_only=read_only)
        self.client = client
        self._no_flush = flags.cache.no_flush
        self._unflushed = Unflushed(client.losses)
        agreement, info = client.agreement, client.agreement.info
        if agreement.has(wire.FLAG_READ_ONLY) and not read_only:
            raise ReadOnly("request on write denied without write permission")
        self.size = info.size
        self.limits.request_alignment = info.block_minimum
        self.limits.zero_alignment = info.block_minimum
        if info.told_block_sizes:
            self.limits.opt_transfer = info.block_preferred
        payload_max = min(info.block_maximum, wire.MAX_PAYLOAD)
        self._piece = align_down(min(PIECE, payload_max), info.block_minimum)
        self._effect_max = EFFECT_MAX
        self._context = context
        known = context in agreement.contexts.values()
        self._status = BlockStatus(client, context) if known else None

    @property
    def has_status(self) -> bool:
        """Whether the server tells where there are zeroes."""
        return self._status is not None

    @property
    def zero_ability(self) -> str:
        """By the server, where it can."""
        return NATIVE if self.client.agreement.has(wire.FLAG_SEND_WRITE_ZEROES) else EMULATE

    # --- moving bytes ---------------------------------------------------------------------------

    def readv(self, offset: int, vector: Vector) -> None:
        """Read; what lies behind the end of the export is zero."""
        length = vector_length(vector)
        inside = max(0, min(length, self.size - offset))
        if inside < length:
            fill_zero(slice_vector(vector, inside, length - inside))
        if inside:
            self._run(self._transfers(wire.CMD_READ, offset, vector, inside))

    def writev(self, offset: int, vector: Vector) -> None:
        """Write; an export does not grow."""
        length = vector_length(vector)
        self._require_inside("write", offset, length)
        self._change(self._transfers(wire.CMD_WRITE, offset, vector, length))

    def read_each(self, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        """All in flight at the same time."""
        return self._each(wire.CMD_READ, requests)

    def write_each(self, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        """All in flight at the same time."""
        return self._each(wire.CMD_WRITE, requests)

    def _each(self, kind: int, requests: Sequence[Span]) -> list[BlocklayerError | None]:
        spans = [(offset, vector, vector_length(vector)) for offset, vector in requests]
        if any(offset + length > self.size for offset, _, length in spans):
            # What lies behind the end of the export is told request by request.
            one_by_one = super().read_each if kind == wire.CMD_READ else super().write_each
            return one_by_one(requests)
        shares = [self._transfers(kind, *span) for span in spans]
        commands = [command for share in shares for command in share]
        try:
            if kind == wire.CMD_READ:
                self.client.run(commands)
            else:
                self._run_changing(commands)
        except (RemoteError, ProtocolError) as error:
            return [self._unreachable(share[0], error) for share in shares]
        return [self._first_failure(share) for share in shares]

    def _first_failure(self, commands: Sequence[Command]) -> BlocklayerError | None:
        return next((self._failure(command) for command in commands if command.error), None)

    def _transfers(self, kind: int, offset: int, vector: Vector, length: int) -> list[Command]:
        piece = self._piece
        if length <= piece:
            return [Command(kind, offset, length, vector=slice_vector(vector, 0, length))]
        return [
            Command(
                kind,
                offset + start,
                min(piece, length - start),
                vector=slice_vector(vector, start, min(piece, length - start)),
            )
            for start in range(0, length, piece)
        ]

    def _require_inside(self, operation: str, offset: int, length: int) -> None:
        if offset + length > self.size:
            raise IoError(
                "the export ends before", self.filename, errno.ENOSPC, operation, offset, length
            )

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Let the server zero."""
        if not self.client.agreement.has(wire.FLAG_SEND_WRITE_ZEROES):
            raise NotSupported("The server cannot zero without writing")
        command_flags = 0 if flags & UNMAP and not flags & ALLOCATE else wire.CMD_FLAG_NO_HOLE
        length = min(length, self.size - offset)
        if flags & NO_FALLBACK and length > 0:
            # The first command of several tells: a later one that was refused would come too late.
            self.check_zero(offset, length, flags)
            info = self.client.agreement.info
            most = min(align_down(info.block_maximum, info.block_minimum), self._effect_max)
            count = min(length, most)
            fast = command_flags | wire.CMD_FLAG_FAST_ZERO
            self._effects(wire.CMD_WRITE_ZEROES, offset, count, fast)
            offset, length = offset + count, length - count
        if length > 0:
            self._effects(wire.CMD_WRITE_ZEROES, offset, length, command_flags)

    def check_zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Whether the server would tell; it tells only when it is asked to zero."""
        if not self.client.agreement.has(wire.FLAG_SEND_FAST_ZERO):
            raise NotSupported("The server does not tell whether it zeroes fast")

    def discard(self, offset: int, length: int) -> None:
        """Trim, if the server takes such hints."""
        length = min(length, self.size - offset)
        if length > 0 and self.client.agreement.has(wire.FLAG_SEND_TRIM):
            self._effects(wire.CMD_TRIM, offset, length, 0)

    def _effects(self, kind: int, offset: int, length: int, flags: int) -> None:
        """Commands whose length is no payload: it may be more than the largest block, or not."""
        try:
            self._change(self._effect_commands(kind, offset, length, flags))
        except IoError as error:
            largest = self.client.agreement.info.block_maximum
            too_long = error.errno in (errno.EINVAL, errno.EOVERFLOW)
            if not too_long or length <= largest or self._effect_max <= largest:
                raise
            self._effect_max = largest
            self._change(self._effect_commands(kind, offset, length, flags))

    def _effect_commands(self, kind: int, offset: int, length: int, flags: int) -> list[Command]:
        most = self._effect_max
        return [
            Command(kind, offset + start, min(most, length - start), flags=flags)
            for start in range(0, length, most)
        ]

    def flush(self) -> None:
        """Have the server flush. A server that does not offer it has nothing to flush.

        Fails for ever once a connection was lost between a write and its flush, unless requests
        are to survive that (`reconnect-delay`): then it is the server's promise alone.
        """
        if self.read_only or self._no_flush:
            return
        if not self.client.agreement.has(wire.FLAG_SEND_FLUSH):
            return
        safe = self._unflushed.flush(lambda: self._run([Command(wire.CMD_FLUSH)]))
        if not safe and not self.client.survives_losses:
            raise IoError(
                "the connection was lost after writes that were not flushed, so data may be lost",
                self.filename,
                errno.EIO,
                "flush",
            )

    # --- commands -------------------------------------------------------------------------------

    def _change(self, commands: list[Command]) -> None:
        """Run commands that change bytes; the first failure is raised."""
        self._run(commands, self._run_changing)

    def _run_changing(self, commands: list[Command]) -> None:
        losses = self.client.losses()
        try:
            self._run_past_status(commands)
        except BaseException:
            if len(commands) > 1:  # some may have been acknowledged
                self._unflushed.note(losses)
            raise
        if not all(command.error for command in commands):
            self._unflushed.note(losses)

    def _run_past_status(self, commands: list[Command]) -> None:
        status = self._status
        if status is None or not commands:
            self.client.run(commands)
            return
        start = min(command.offset for command in commands)
        length = max(command.offset + command.length for command in commands) - start
        try:
            status.change(start, length)
            self.client.run(commands)
        finally:
            status.change(start, length)

    def _run(
        self, commands: list[Command], run: Callable[[list[Command]], None] | None = None
    ) -> None:
        try:
            (run or self.client.run)(commands)
        except (RemoteError, ProtocolError) as error:
            raise self._unreachable(commands[0], error) from error
        failure = self._first_failure(commands)
        if failure is not None:
            raise failure

    def _unreachable(self, command: Command, error: RemoteError | ProtocolError) -> IoError:
        return IoError(str(error), self.filename, errno.EIO, *self._place(command))

    def _place(self, command: Command) -> tuple[str, int, int]:
        operation = _OPERATIONS[command.kind]
        if command.kind == wire.CMD_FLUSH:
            return operation, -1, -1
        return operation, command.offset, command.length

    def _failure(self, command: Command) -> IoError | NotSupported:
        """The error of a command that the server refused."""
        code = wire.system_error(command.error)
        if code == errno.ENOTSUP and command.kind == wire.CMD_WRITE_ZEROES:
            return NotSupported("The server can zero this only by writing")
        message = os.strerror(code)
        if command.message:
            message += f"\nserver reported: {command.message}"
        return IoError(message, self.filename, code, *self._place(command))

    # --- where bytes live -----------------------------------------------------------------------

    def map(self, offset: int, length: int) -> Mapped:
        """As the server tells: zeroes (allocated or not), or data.

        Of a dirty bitmap, used in place of allocation, dirty bytes are neither.
        """
        if offset >= self.size:
            return ZERO, length, None, offset
        length = min(length, self.size - offset)
        if self._status is None:
            return DATA, length, None, offset
        try:
            count, flags, failed = self._status.find(offset, length)
        except (RemoteError, ProtocolError) as error:
            command = Command(wire.CMD_BLOCK_STATUS, offset, length)
            raise self._unreachable(command, error) from error
        if failed is not None:
            raise self._failure(failed)
        if self._context != wire.BASE_ALLOCATION:
            return (BACKING if flags & wire.STATE_DIRTY else DATA), count, None, offset
        # A hole that does not read as zeroes has to be read like data.
        return (ZERO if flags & wire.STATE_ZERO else DATA), count, None, offset

    # --- life -----------------------------------------------------------------------------------

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Only to the size that the export has."""
        if size != self.size:
            raise NotSupported("Cannot resize NBD nodes")

    def reopen(self, read_only: bool) -> None:
        """The connection stays as it is."""
        if not read_only and self.client.agreement.has(wire.FLAG_READ_ONLY):
            raise ReadOnly("request on write denied without write permission")
        self.read_only = read_only

    def close(self) -> None:
        """Disconnect; the gate has flushed."""
        self.tracker.close()
        self.client.close()


def _open(opener: Opener, options: OptionTree) -> Node:
    wanted = take_options(options)
    client = Client(
        wanted.location,
        encrypted=wanted.encrypted,
        wish=Wish(contexts=(wanted.context,)),
        settings=wanted.settings,
        connections=wanted.connections,
    )
    try:
        filename = wanted.location.shown
        node = NbdNode(client, filename, opener.flags, context=wanted.context)
        if wanted.context != wire.BASE_ALLOCATION and not node.has_status:
            raise InvalidArgument(f"Server does not have metadata context '{wanted.context}'")
    except BaseException:
        client.close()
        raise
    return PaddedExport(node) if node.limits.request_alignment > 1 else node


DRIVER = Driver(name="nbd", kind=PROTOCOL, open=_open)
