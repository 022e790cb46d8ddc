# SPDX-License-Identifier: Apache-2.0
"""A connection's bytes: plain, or encrypted.

One thread receives, several send. Sending is serialised by the channel, so that answers of
different threads do not mix.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from blocklayer.base.buffers import Buffer

TYPE_CHECKING = False  # importing ssl costs start-up time
if TYPE_CHECKING:
    import ssl

VECTOR_MAX = 512
"""Buffers of one system call: fewer than any system's limit."""

SEND_BUFFER = 4 * 1024 * 1024
"""Asked for, so that a large answer is handed over without waiting; the kernel may give less."""

SEND_SECONDS = 0.1
"""For how long a piece of an answer may wait for the client: see `try_sendfile`."""

SENDFILE_MAX = 512 * 1024
"""Bytes of one system call: between them, the time is looked at."""

POLL_SECONDS = 0.000_050
"""For how long a request of a quick client is looked for; as long as two threads take to wake."""

_awake = threading.Lock()
"""Held by the connection that looks for its client's request."""

_MAY_POLL = hasattr(socket, "MSG_DONTWAIT") and (os.cpu_count() or 1) > 1

_READ_SIZE = 256 * 1024


class Channel:
    """A connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._is_quick = False
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # A client whose machine has gone without a word is noticed some day.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError:
            pass  # it works without, only slower

    @property
    def peer_name(self) -> str:
        """The distinguished name of the client's certificate (RFC 4514); empty without one."""
        return ""

    def receive_into(self, view: memoryview) -> int:
        """Fill a part of `view`; how much. 0: the peer sends no more."""
        return self._socket.recv_into(view)

    def receive_soon(self, view: memoryview) -> int:
        """As `receive_into`, for what a client is about to send.

        It waits for each answer before it asks again, or is in the middle of a request. Falling
        asleep and being woken costs more than that: it is looked for awake, for a moment, by one
        connection at a time, and as long as the client is quick.
        """
        if self._is_quick and _awake.acquire(blocking=False):
            try:
                count = self._poll(view)
            finally:
                _awake.release()
            if count is not None:
                return count
        started = time.perf_counter()
        count = self.receive_into(view)
        self._is_quick = _MAY_POLL and time.perf_counter() - started < POLL_SECONDS
        return count

    def _poll(self, view: memoryview) -> int | None:
        deadline = time.perf_counter() + POLL_SECONDS
        while True:
            try:
                return self._socket.recv_into(view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if time.perf_counter() > deadline:
                    return None

    def send(self, data: Buffer) -> None:
        """Send all of one buffer."""
        with self._lock:
            self.send_part(data)

    def send_vector(self, buffers: Sequence[Buffer]) -> None:
        """Send all of several buffers, with nothing of other threads between them."""
        with self._lock:
            self.send_parts(buffers)

    def _send_some(self, buffers: Sequence[Buffer]) -> None:
        try:
            sent = self._socket.sendmsg(buffers)
        except BlockingIOError:
            sent = 0
        for buffer in buffers:
            size = memoryview(buffer).nbytes
            if sent < size:
                self.send_part(memoryview(buffer)[sent:])
            sent = max(0, sent - size)

    # An answer that is sent in several steps.

    can_sendfile = hasattr(os, "sendfile")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else sends meanwhile; nor afterwards, if an answer was cut by an error.

        What came behind it would be taken for the rest of its data.
        """
        with self._lock:
            try:
                yield
            except BaseException:
                self.abort()
                raise

    def send_parts(self, buffers: Sequence[Buffer]) -> None:
        """Send all of several buffers; the caller has the channel for itself."""
        for start in range(0, len(buffers), VECTOR_MAX):
            self._send_some(buffers[start : start + VECTOR_MAX])

    def send_part(self, data: Buffer) -> None:
        """Send all of a buffer; the caller has the channel for itself."""
        view = memoryview(data)
        while True:
            try:
                sent = self._socket.send(view)
            except BlockingIOError:
                continue  # SEND_SECONDS are over: the client is slow
            if sent == len(view):
                return
            view = view[sent:]

    def try_send(self, data: bytes) -> int:
        """Send what the client takes at once; how much. The caller has the channel for itself."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def try_sendfile(self, descriptor: int, offset: int, length: int) -> int:
        """Have the kernel send bytes of a file; how many went before the client made us wait.

        The caller has the channel for itself.
        """
        sent = 0
        started = time.monotonic()
        while sent < length:
            size = min(length - sent, SENDFILE_MAX)
            try:
                count = os.sendfile(self._socket.fileno(), descriptor, offset + sent, size)
            except BlockingIOError:
                break
            sent += count
            # A client that takes a little again and again never makes us wait for long at once.
            if not count or time.monotonic() - started > SEND_SECONDS:
                break
        return sent

    def begin_transmission(self) -> None:
        """From now on nobody else watches over the time that sending takes."""
        limit = array("l", (0, int(SEND_SECONDS * 1_000_000))).tobytes()  # struct timeval
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def stop_receiving(self) -> None:
        """What is received next is the end; answers can still be sent."""
        self._shut(socket.SHUT_RD)

    def abort(self) -> None:
        """Everything ends now, in other threads as well."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        try:
            self._socket.shutdown(how)
        except OSError:
            pass  # it is disconnected already

    def close(self) -> None:
        """Release the socket."""
        self._shut(socket.SHUT_RDWR)
        self._socket.close()

    def encrypted(self, context: ssl.SSLContext) -> Channel:
        """The same connection with TLS, after its handshake. Raises `OSError` (`ssl.SSLError`)."""
        return _EncryptedChannel(self._socket, context)


class _EncryptedChannel(Channel):
    """TLS in memory: a `ssl.SSLSocket` may not be read and written by two threads at once."""

    can_sendfile = False

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        import ssl

        super().__init__(connection)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._state = threading.Lock()
        self._want_read = ssl.SSLWantReadError
        self._ended = ssl.SSLZeroReturnError
        self._handshake()

    def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                self._flush_outgoing()
                return
            except self._want_read:
                self._flush_outgoing()
                data = self._socket.recv(_READ_SIZE)
                if not data:
                    raise ConnectionResetError(
                        "the client went away during its handshake"
                    ) from None
                self._incoming.write(data)
            except OSError:
                self._flush_outgoing()  # the alert says why
                raise

    def _flush_outgoing(self) -> None:
        data = self._outgoing.read()
        if data:
            self._socket.sendall(data)

    @property
    def peer_name(self) -> str:
        from blocklayer.nbd.tls import distinguished_name

        return distinguished_name(self._tls.getpeercert())

    def receive_soon(self, view: memoryview) -> int:
        return self.receive_into(view)

    def receive_into(self, view: memoryview) -> int:
        while True:
            with self._state:
                try:
                    return int(self._tls.read(len(view), view))
                except self._want_read:
                    pass
                except self._ended:
                    return 0
            if self._outgoing.pending:  # of a key update, say
                self.send(b"")
            data = self._socket.recv(_READ_SIZE)
            if not data:
                return 0
            self._incoming.write(data)

    def _send_some(self, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            self.send_part(buffer)

    def send_part(self, data: Buffer) -> None:
        # What is encrypted first must be sent first, so only who holds the lock takes it out.
        view = memoryview(data)
        while view or self._outgoing.pending:
            with self._state:
                if view:
                    view = view[self._tls.write(view) :]
                sealed = self._outgoing.read()
            super().send_part(sealed)

    def close(self) -> None:
        try:
            with self._state:
                try:
                    self._tls.unwrap()
                except (self._want_read, OSError):
                    pass
                data = self._outgoing.read()
            self._socket.settimeout(1)
            self._socket.sendall(data)
        except OSError:
            pass  # the peer does not listen any more
        super().close()
