# SPDX-License-Identifier: Apache-2.0
"""An NBD server of a few lines, which does what a test wants: also what no server may do."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blocklayer.nbd import wire

Behaviour = Callable[[socket.socket], None]
"""What the server does with a connection, which it closes afterwards."""

PATIENCE_SECONDS = 20.0


class FakeServer:
    """Accepts connections on a Unix socket; the n-th one is for the n-th behaviour, or the last."""

    def __init__(self, path: Path, *behaviours: Behaviour) -> None:
        self.path = path
        self.accepted = 0
        self.failures: list[BaseException] = []
        self._behaviours = behaviours
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, name="fake-accept")
        self._accepting.start()

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.path}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                connection.settimeout(PATIENCE_SECONDS)
                behaviour = self._behaviours[min(self.accepted, len(self._behaviours) - 1)]
                self.accepted += 1
                self._open.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection, behaviour))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket, behaviour: Behaviour) -> None:
        try:
            behaviour(connection)
        except OSError:
            return  # the client has gone
        except BaseException as error:
            self.failures.append(error)
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def hang_up(self) -> None:
        """End the connections that there are; others may come."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def forget_ended(self) -> None:
        """Wait for the connections that there have been."""
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._open.clear()

    def close(self) -> None:
        """Nothing is left, and nothing has failed."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self.path.unlink(missing_ok=True)
        assert self.failures == []


@contextmanager
def fake_server(path: Path, *behaviours: Behaviour) -> Iterator[FakeServer]:
    server = FakeServer(path, *behaviours)
    try:
        yield server
    finally:
        server.close()


def receive(connection: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes; `ConnectionError` at the end."""
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionResetError
        data += piece
    return data


def skip_options(connection: socket.socket) -> None:
    """Read what the client sends up to its choice of an export: the answers were sent already."""
    receive(connection, 4)
    while True:
        option = wire.OptionHeader.unpack_from(receive(connection, wire.OptionHeader.SIZE))
        receive(connection, option.length)
        if option.option in (wire.OPT_GO, wire.OPT_EXPORT_NAME):
            return


def requests(connection: socket.socket) -> Iterator[tuple[wire.RequestHeader, bytes]]:
    """The client's requests with their payloads, until it disconnects."""
    while True:
        head = wire.RequestHeader.unpack_from(receive(connection, wire.RequestHeader.SIZE))
        assert head.magic == wire.REQUEST_MAGIC
        if head.command == wire.CMD_DISC:
            return
        payload = receive(connection, head.length) if head.command == wire.CMD_WRITE else b""
        yield head, payload
