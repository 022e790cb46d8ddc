# SPDX-License-Identifier: Apache-2.0
"""A way to an export that survives its connections.

    lost in flight ── reconnect_delay > 0: connect again and again, send again when that succeeds
                   └─ else, or when the delay is over: the command fails
    a new request without a connection: tries to connect once, if nobody has just tried

A command may be sent again because all that NBD has are idempotent: reads change nothing, and
writing, zeroing or trimming twice leaves what doing it once does, as long as nobody else writes the
same bytes meanwhile, which nobody may before the command was answered.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence

from blocklayer.base.errors import BlocklayerError, ProtocolError, RemoteError
from blocklayer.base.record import Record
from blocklayer.nbd import wire
from blocklayer.nbd.client_command import Command
from blocklayer.nbd.client_connect import CONNECT_SECONDS, Encryption, connect
from blocklayer.nbd.client_connection import Connection
from blocklayer.nbd.client_handshake import Agreement, Wish
from blocklayer.nbd.client_waits import Waits
from blocklayer.nbd.uri import Location

RETRY_SECONDS = 0.5
"""Between attempts to connect."""

ATTEMPT_SECONDS = 5.0
"""One attempt may take so long, even if requests do not wait."""

LOSSES_MAX = 10
"""Connections that one command may lose before it is taken for the reason."""

PATIENCE_SECONDS = 300.0
"""A server that sends nothing for so long, while it owes an answer, is taken for dead."""


class Settings(Record, frozen=True):
    """Seconds. The first two are QEMU's options.

    open_timeout     how long to try again to connect when opening; 0 tries once
    reconnect_delay  how long requests wait after the loss of a connection for another one
    patience         a server that sends nothing for so long while it owes an answer is taken for
                     dead; 0 waits for ever
    connect          for one attempt: to connect, encrypt and negotiate
    """

    open_timeout: float = 0
    reconnect_delay: float = 0
    patience: float = PATIENCE_SECONDS
    connect: float = CONNECT_SECONDS


class Lane:
    """One connection after the other."""

    def __init__(
        self,
        location: Location,
        encrypted: Encryption | None,
        wish: Wish,
        settings: Settings,
        waits: Waits,
    ) -> None:
        self._location = location
        self._encrypted = encrypted
        self._wish = wish
        self._settings = settings
        self._waits = waits
        self._changing = threading.Lock()
        self._closed = False
        self._tried_at = 0.0
        self._failure: BlocklayerError | None = None
        self.losses = 0
        """Connections that were lost, not given up, and that others have replaced."""
        with waits.connecting():
            self._connection = self._open()
        self.agreement = self._connection.agreement
        """Of the first connection; later ones must not offer less."""

    def _open(self) -> Connection:
        deadline = time.monotonic() + self._settings.open_timeout
        while True:
            try:
                return self._connect(self._settings.connect)
            except RemoteError:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                self._waits.sleep(min(left, RETRY_SECONDS))

    def _connect(self, seconds: float) -> Connection:
        session = connect(
            self._location, self._encrypted, self._wish, seconds=seconds, waits=self._waits
        )
        return Connection(session, patience=self._settings.patience)

    # --- requests -------------------------------------------------------------------------------

    def start(self, commands: Sequence[Command]) -> None:
        """Send commands. Raises `RemoteError`, `ProtocolError` if there is nowhere to send them."""
        self._waits.check()
        connection = self._connection
        if connection.lost is not None:
            connection = self._alive()
        connection.start(commands)

    def wait(self, command: Command) -> None:
        """Until the command is answered. Raises `RemoteError`, `ProtocolError` if it never is."""
        command.finished.acquire()
        while command.lost is not None:
            self._waits.check()
            reason = command.lost
            command.losses += 1
            # A server that breaks the protocol would do so again.
            final = isinstance(reason, ProtocolError) or command.losses > LOSSES_MAX
            # An interrupt of somebody else is no fault of the server's: it is there to be asked.
            again = self._settings.reconnect_delay or reason.errno == errno.EINTR
            if final or not again:
                raise reason
            connection = self._alive()
            command.restart()
            connection.start([command])
            command.finished.acquire()

    def abandon(self, command: Command) -> None:
        """Nobody waits for this command any more."""
        self._connection.abandon(command)

    # --- connecting again -----------------------------------------------------------------------

    def _alive(self) -> Connection:
        """The connection, or another one in place of a broken one. Raises why there is none."""
        with self._waits.connecting():
            connection = self._next_alive()
        self._waits.check()
        return connection

    def _next_alive(self) -> Connection:
        while True:
            self._waits.check()
            with self._changing:  # others wait, and find what this one has made
                if self._closed:
                    raise RemoteError("The connection is closed", errno.ESHUTDOWN)
                if self._connection.lost is None:
                    return self._connection
                now = time.monotonic()
                deadline = self._connection.lost_at + self._settings.reconnect_delay
                failure = self._failure
                if failure is None or now - self._tried_at >= RETRY_SECONDS:
                    failure = self._try(max(deadline - now, ATTEMPT_SECONDS))
                if failure is None:
                    return self._connection
            left = deadline - time.monotonic()
            if left <= 0:
                raise failure
            self._waits.sleep(min(left, RETRY_SECONDS))

    def _try(self, seconds: float) -> BlocklayerError | None:
        """Connect once; why that failed."""
        try:
            connection = self._connect(min(seconds, self._settings.connect))
        except (RemoteError, ProtocolError) as error:
            self._failure, self._tried_at = error, time.monotonic()
            return error
        try:
            self._require_no_less(connection.agreement)
        except BaseException as error:
            connection.close()
            if not isinstance(error, RemoteError):
                raise
            self._failure, self._tried_at = error, time.monotonic()
            return error
        old, self._connection, self._failure = self._connection, connection, None
        if old.lost is None or old.lost.errno != errno.EINTR:
            self.losses += 1
        old.close()
        return None

    def _require_no_less(self, new: Agreement) -> None:
        """What was decided by the first agreement still has to hold."""
        old, info = self.agreement, new.info
        changed = (
            info.size != old.info.size
            or info.flags & old.info.flags != old.info.flags
            or (info.flags ^ old.info.flags) & wire.FLAG_READ_ONLY
            or info.block_minimum > old.info.block_minimum
            or info.block_maximum < old.info.block_maximum
            or new.mode != old.mode
            or set(new.contexts.values()) != set(old.contexts.values())
        )
        if changed:
            raise RemoteError("The export is not what it was before the connection broke")

    # --- the end --------------------------------------------------------------------------------

    def silence(self) -> float:
        """Seconds for which the server has owed an answer."""
        return self._connection.silence()

    def interrupt(self) -> None:
        """Tell those who wait for answers, once nobody connects again."""
        self._connection.interrupt()

    def close(self) -> None:
        """Say good-bye."""
        self._closed = True
        with self._changing:
            self._connection.close()
