# SPDX-License-Identifier: Apache-2.0
"""Everything that a client waits for can be given up, by whoever wants to stop.

    waiting threads   look at `ended` before they wait, and after they have waited
    who gives up      sets `ended`, then breaks what they wait on: sockets and connections

In this order, none begins to wait for something that nobody breaks any more.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator
from weakref import WeakSet

from blocklayer.base.errors import RemoteError

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.nbd.client import Client

_clients: WeakSet[Client] = WeakSet()
_registering = threading.Lock()


class Waits:
    """What one client waits for besides answers: other connections."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._trying: list[float] = []
        self._changing = threading.Lock()

    # --- waiting --------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `RemoteError` if nobody is to wait any more."""
        if self._ended.is_set():
            raise RemoteError("interrupted", errno.EINTR)

    def sleep(self, seconds: float) -> None:
        """Between two attempts. Raises as `check`."""
        self._ended.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def connecting(self) -> Iterator[None]:
        """Around attempts to connect."""
        started = time.monotonic()
        with self._changing:
            self._trying.append(started)
        try:
            yield
        finally:
            with self._changing:
                self._trying.remove(started)

    def hold(self, connected: socket.socket) -> None:
        """A socket that is waited on, until `release`. Raises as `check`."""
        with self._changing:
            self._sockets.add(connected)
        self.check()

    def release(self, connected: socket.socket) -> None:
        """Nobody waits on it here any more."""
        with self._changing:
            self._sockets.discard(connected)

    # --- giving up ------------------------------------------------------------------------------

    def trying_since(self) -> float | None:
        """When the oldest attempt that has not succeeded began."""
        with self._changing:
            return min(self._trying, default=None)

    def end(self) -> None:
        """From now on nobody waits."""
        self._ended.set()
        with self._changing:
            held = list(self._sockets)
        for each in held:
            _shut_down(each)


def _shut_down(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # As a method, an encrypted socket would drop its encryption under the feet of its thread.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def register(client: Client) -> None:
    """Let `interrupt_silent` find a client for as long as it lives."""
    with _registering:
        _clients.add(client)


def interrupt_silent(seconds: float) -> bool:
    """Give up all servers that have owed an answer for so long; whether there was one.

    From any thread, but not from a signal handler, which may have stopped a thread that holds a
    lock that is needed here.
    """
    with _registering:
        clients = list(_clients)
    given_up = [client.interrupt(seconds) for client in clients]
    return any(given_up)
