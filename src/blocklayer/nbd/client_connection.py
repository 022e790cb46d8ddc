# SPDX-License-Identifier: Apache-2.0
"""One connection in transmission, shared by any number of threads.

    callers         encode and send under a lock, then wait for their own command
    reader thread   receives, and wakes whoever has a whole answer

The reader always reads, so that a server which waits for its replies to be taken never waits for
us. When the connection breaks, whoever notices shuts it down, and the reader, which alone touches
commands that are in flight, tells them that they are lost when it has come to its end.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence

from blocklayer.base.buffers import Buffer
from blocklayer.base.errors import BlocklayerError, RemoteError
from blocklayer.nbd import wire
from blocklayer.nbd.client_command import Command
from blocklayer.nbd.client_connect import Session
from blocklayer.nbd.client_stream import TICK_SECONDS
from blocklayer.nbd.client_transmission import Replies

OVERTAKEN_FACTOR = 10
"""How much longer one command may wait while the server answers others."""

CLOSE_SECONDS = 10.0
"""How long closing waits for the reader thread, which only has to notice."""


class Connection:
    """Commands in flight on one socket.

    patience  seconds without any answer after which a server is taken for dead; 0 is for ever
    """

    def __init__(self, session: Session, *, patience: float) -> None:
        self.agreement = session.agreement
        self._stream = session.stream
        self._stream.send_seconds = patience
        self._replies = Replies(session.agreement, session.rest)
        self._patience = patience
        self._sending = threading.Lock()
        self._registering = threading.Lock()
        self.lost: BlocklayerError | None = None
        """Why the connection is of no use any more."""
        self.lost_at = 0.0
        self._heard = time.monotonic()
        self._reader = threading.Thread(target=self._read, name="blocklayer-nbd", daemon=True)
        self._reader.start()

    # --- sending --------------------------------------------------------------------------------

    def start(self, commands: Sequence[Command]) -> None:
        """Send commands with one call. If the connection is lost, so are they."""
        with self._sending:
            try:
                buffers = self._encoded(commands)
                if buffers:
                    self._stream.send(buffers)
            except OSError as error:
                self._break(_broken(error))
            except BaseException:
                # Nobody knows how much of the commands was sent.
                self._break(RemoteError("A request was interrupted while it was sent", errno.EINTR))
                raise

    def _encoded(self, commands: Sequence[Command]) -> list[Buffer]:
        """Commands as bytes, which are in flight from now on; none if there is no connection."""
        buffers: list[Buffer] = []
        with self._registering:
            if self.lost is not None:
                _lose(commands, self.lost)
                return []
            now = time.monotonic()
            for command in commands:
                command.started = now
                buffers.append(self._replies.encode(command))
                if command.kind == wire.CMD_WRITE:
                    buffers += command.vector or ()
        return buffers

    def abandon(self, command: Command) -> None:
        """Nobody waits any more: what still comes for a command is dropped.

        If its memory is being filled right now, nothing but breaking the connection ends that.
        """
        if command.kind != wire.CMD_READ:
            return
        command.vector = None
        if self._replies.is_filling(command):
            self._break(RemoteError("A request was interrupted while it was read", errno.EINTR))
            self._reader.join(CLOSE_SECONDS)

    # --- receiving ------------------------------------------------------------------------------

    def _read(self) -> None:
        replies, stream = self._replies, self._stream
        looked = self._heard
        try:
            while self.lost is None:
                count = stream.receive(replies.buffers())
                now = time.monotonic()
                if count == 0:
                    raise RemoteError("The server closed the connection", errno.ECONNRESET)
                if now - looked >= TICK_SECONDS:
                    self._check_patience(now, self._heard if count is None else now)
                    looked = now
                if count is None:
                    continue
                self._heard = now
                for command in replies.received(count):
                    command.finished.release()
        except BlocklayerError as error:
            self._break(error)
        except OSError as error:
            self._break(_broken(error))
        except BaseException as error:
            self._break(RemoteError(f"Reading replies failed: {error!r}", errno.EIO))
            raise
        finally:
            self._lose_all()

    def _check_patience(self, now: float, heard: float) -> None:
        """Whether somebody has waited for too long: in silence, or while others were answered.

        Raises `RemoteError`.
        """
        oldest = self._oldest()
        if oldest is None or not self._patience:
            return
        silence, age = now - max(heard, oldest.started), now - oldest.started
        if silence > self._patience or age > OVERTAKEN_FACTOR * self._patience:
            raise RemoteError(
                f"The server has not answered for {self._patience:g} seconds", errno.ETIMEDOUT
            )

    def _oldest(self) -> Command | None:
        with self._registering:
            return next(iter(self._replies.pending.values()), None)

    def silence(self) -> float:
        """Seconds for which the server has owed an answer and sent nothing; 0 if it owes none."""
        oldest = self._oldest()
        if oldest is None or self.lost is not None:
            return 0.0
        return time.monotonic() - max(self._heard, oldest.started)

    # --- the end ----------------------------------------------------------------------------------

    def _break(self, error: BlocklayerError) -> None:
        """The connection is of no use any more; the first reason is the one to tell."""
        with self._registering:
            if self.lost is None:
                self.lost_at = time.monotonic()
                self.lost = error
        self._stream.shut_down()

    def interrupt(self) -> None:
        """Nobody is to wait any more; who waits is told. Closing waits for nothing, either."""
        self._break(RemoteError("interrupted", errno.EINTR))

    def _lose_all(self) -> None:
        """The reader ends, and touches nobody's memory any more: now commands may be sent again."""
        with self._registering:
            assert self.lost is not None
            commands = list(self._replies.pending.values())
            self._replies.pending.clear()
        _lose(commands, self.lost)

    def close(self) -> None:
        """Say good-bye and release the socket; commands in flight are lost."""
        if self.lost is None and self._sending.acquire(timeout=CLOSE_SECONDS):
            try:
                self._stream.send_seconds = CLOSE_SECONDS
                self._stream.send([self._replies.encode(Command(wire.CMD_DISC))])
            except OSError as error:
                self._break(_broken(error))
            finally:
                self._sending.release()
        self._break(RemoteError("The connection is closed", errno.ESHUTDOWN))
        self._reader.join(CLOSE_SECONDS)
        if not self._reader.is_alive():
            self._stream.close()


def _lose(commands: Sequence[Command], reason: BlocklayerError) -> None:
    for command in commands:
        command.lost = reason
        command.finished.release()


def _broken(error: OSError) -> RemoteError:
    code = error.errno or errno.EIO
    reason = os.strerror(code) if error.errno else str(error)
    return RemoteError(f"The connection to the server broke: {reason}", code)
