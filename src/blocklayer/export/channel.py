# SPDX-License-Identifier: Apache-2.0
"""A connection's bytes: plain, or encrypted.

One thread receives, several send. Sending is serialised by the channel, so that answers of
different threads do not mix.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

from blocklayer.base.buffers import Buffer

TYPE_CHECKING = False  # importing ssl costs start-up time
if TYPE_CHECKING:
    import ssl

VECTOR_MAX = 512
"""Buffers of one system call: fewer than any system's limit."""

SEND_BUFFER = 4 * 1024 * 1024
"""Asked for, so that a large answer is handed over without waiting; the kernel may give less."""

_READ_SIZE = 256 * 1024


class Channel:
    """A connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # it works without, only slower

    @property
    def peer_name(self) -> str:
        """The common name of the client's certificate; empty without one."""
        return ""

    def receive_into(self, view: memoryview) -> int:
        """Fill a part of `view`; how much. 0: the peer sends no more."""
        return self._socket.recv_into(view)

    def send(self, data: Buffer) -> None:
        """Send all of one buffer."""
        with self._lock:
            self._socket.sendall(data)

    def send_vector(self, buffers: Sequence[Buffer]) -> None:
        """Send all of several buffers, with nothing of other threads between them."""
        with self._lock:
            for start in range(0, len(buffers), VECTOR_MAX):
                self._send_some(list(buffers[start : start + VECTOR_MAX]))

    def _send_some(self, buffers: list[Buffer]) -> None:
        sent = self._socket.sendmsg(buffers)
        for index, buffer in enumerate(buffers):
            view = memoryview(buffer)
            if sent < len(view):
                self._socket.sendall(view[sent:])
                for rest in buffers[index + 1 :]:
                    self._socket.sendall(rest)
                return
            sent -= len(view)

    def set_timeout(self, seconds: float | None) -> None:
        """How long receiving and sending may take."""
        self._socket.settimeout(seconds)

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

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        import ssl

        super().__init__(connection)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._state = threading.Lock()
        self._want_read = ssl.SSLWantReadError
        self._want_write = ssl.SSLWantWriteError
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
        certificate = self._tls.getpeercert() or {}
        for relative in certificate.get("subject", ()):
            for pair in relative:
                if pair[0] == "commonName":
                    return str(pair[1])
        return ""

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
                self.send_vector([])
            data = self._socket.recv(_READ_SIZE)
            if not data:
                return 0
            self._incoming.write(data)

    def send(self, data: Buffer) -> None:
        self.send_vector([data])

    def send_vector(self, buffers: Sequence[Buffer]) -> None:
        # What is encrypted first must be sent first, so only who holds the lock takes it out.
        with self._lock:
            for buffer in (*buffers, b""):
                view = memoryview(buffer)
                while view or self._outgoing.pending:
                    with self._state:
                        if view:
                            view = view[self._tls.write(view) :]
                        data = self._outgoing.read()
                    self._socket.sendall(data)

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
