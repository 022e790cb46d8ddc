# SPDX-License-Identifier: Apache-2.0
"""What a monitor reads from and writes to: bytes in both directions, blocking, until closed."""

from __future__ import annotations

import os
import socket
import threading
from typing import Protocol

READ_SIZE = 64 * 1024


class Channel(Protocol):
    """A connection to one client. Reading and writing go on in different threads."""

    def read(self) -> bytes:
        """The next bytes; none if there will be no more."""
        ...

    def write(self, data: bytes) -> None:
        """All of `data`. Raises `OSError`."""
        ...

    def close(self) -> None:
        """Both threads return from what they wait for. Closing again does nothing."""
        ...


def _ends(connection: socket.socket) -> str:
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    try:
        sides = (connection.getsockname(), connection.getpeername())
    except OSError:
        return ""  # it is gone already
    texts = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, *_ in sides]
    return " <-> ".join(texts)


class SocketChannel:
    """A connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.ends = _ends(connection)
        """Of a TCP connection: ``HOST:PORT <-> HOST:PORT``, this side first."""

    def read(self) -> bytes:
        """See `Channel`."""
        try:
            return self._socket.recv(READ_SIZE)
        except OSError:
            return b""  # the client is gone

    def write(self, data: bytes) -> None:
        """See `Channel`."""
        self._socket.sendall(data)

    def close(self) -> None:
        """See `Channel`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes who reads or writes
        except OSError:
            pass  # it is not connected any more
        self._socket.close()


class DescriptorChannel:
    """A pair of file descriptors: stdin and stdout, or pipes. -1: nothing there.

    They are polled together with a pipe of our own, which closing makes readable: nothing else
    could wake a thread that reads from a terminal.
    """

    def __init__(self, reading: int, writing: int, *, owned: bool = False) -> None:
        self._reading = reading
        self._writing = writing
        self._owned = owned
        self._wake_reading, self._wake_writing = os.pipe()
        self._closed = False
        self._lock = threading.Lock()

    def read(self) -> bytes:
        """See `Channel`."""
        import select

        poll = select.poll()
        poll.register(self._wake_reading, select.POLLIN)
        if self._reading >= 0:
            poll.register(self._reading, select.POLLIN | select.POLLHUP)
        while self._wake_reading not in dict(poll.poll()):
            try:
                return os.read(self._reading, READ_SIZE)
            except BlockingIOError:
                continue
            except OSError:
                break
        return b""

    def write(self, data: bytes) -> None:
        """See `Channel`."""
        import select

        if self._writing < 0:
            return
        view = memoryview(data)
        poll = select.poll()
        poll.register(self._writing, select.POLLOUT)
        poll.register(self._wake_reading, select.POLLIN)
        while view:
            if self._wake_reading in dict(poll.poll()):
                raise BrokenPipeError
            try:
                # What poll promises is a page; more could block, and then nothing would wake us.
                written = os.write(self._writing, view[:PIPE_PAGE])
            except BlockingIOError:
                continue
            view = view[written:]

    def close(self) -> None:
        """See `Channel`. Descriptors are closed when neither thread can use them any more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.write(self._wake_writing, b"x")

    def __del__(self) -> None:
        owned = {self._reading, self._writing} if self._owned else set()
        for descriptor in {self._wake_reading, self._wake_writing, *owned} - {-1}:
            os.close(descriptor)


PIPE_PAGE = 4096
"""PIPE_BUF of Linux: a pipe that is ready for writing takes as much without blocking."""


class NullChannel:
    """Never says anything, and hears nothing."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def read(self) -> bytes:
        """See `Channel`."""
        self._closed.wait()
        return b""

    def write(self, data: bytes) -> None:
        """See `Channel`."""

    def close(self) -> None:
        """See `Channel`."""
        self._closed.set()
