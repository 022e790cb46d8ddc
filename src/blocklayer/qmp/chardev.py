# SPDX-License-Identifier: Apache-2.0
"""Character devices: where monitors' clients are. Each has a name, and is opened at once.

A listening socket may have several clients at a time, each with a conversation of its own; the
others (stdio, pipes, a socket that connects) have one.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable

from blocklayer.export.listen import InetAddress, UnixAddress, listen
from blocklayer.qmp.channels import Channel, DescriptorChannel, NullChannel, SocketChannel
from blocklayer.qmp.types import QmpError

_log = logging.getLogger(__name__)

CLIENTS_MAX = 32
"""Clients of one socket: more are turned away, since each has two threads."""

Talk = Callable[[Channel], None]
"""Holds a conversation, to its end."""


class Chardev:
    """A device with one client for good."""

    def __init__(self, label: str, filename: str, channel: Channel) -> None:
        self.label = label
        self.filename = filename
        self._channel = channel
        self.used = False
        """A monitor has it."""

    @property
    def is_open(self) -> bool:
        """Whether somebody is at the other end."""
        return self.used

    def start(self, talk: Talk) -> None:
        """Let a monitor talk to whoever is, or will be, at the other end."""
        self.used = True
        _run(talk, self._channel)

    def stop_listening(self) -> None:
        """No new clients."""

    def close(self) -> None:
        """Release it."""
        self._channel.close()


class SocketServer:
    """A socket that clients connect to."""

    def __init__(
        self, label: str, address: UnixAddress | InetAddress, *, wait: bool = False
    ) -> None:
        self.label = label
        self.used = False
        self._address = address
        self._listeners = listen(address)
        kind = "unix" if isinstance(address, UnixAddress) else "tcp"
        port = "" if kind == "unix" else f":{self._listeners[0].getsockname()[1]}"
        where = address.path if isinstance(address, UnixAddress) else address.host + port
        self._listening = f"{kind}:{where},server=on"
        self._clients: dict[SocketChannel, None] = {}
        """In the order of their coming."""
        self._lock = threading.Lock()
        self._closed = False
        self._first: socket.socket | None = None
        if wait:
            sys.stderr.write(f"info: waiting for connection on: {self.filename}\n")
            self._first = self._listeners[0].accept()[0]

    @property
    def filename(self) -> str:
        """Where it is, and whether, or by whom, it is used: the client that came first."""
        with self._lock:
            first = next(iter(self._clients), None)
        if first is None:
            return f"disconnected:{self._listening}"
        if not first.ends:
            return self._listening
        here, arrow, there = first.ends.partition(" <-> ")
        return f"tcp:{here},server=on{arrow}{there}"

    @property
    def is_open(self) -> bool:
        """Whether there are clients."""
        return bool(self._clients)

    def start(self, talk: Talk) -> None:
        """Let a monitor talk to every client, each in a conversation of its own."""
        self.used = True
        if self._first is not None:
            self._welcome(self._first, talk)
        for listener in self._listeners:
            thread = threading.Thread(
                target=self._accept, args=(listener, talk), name="qmp listener", daemon=True
            )
            thread.start()

    def _accept(self, listener: socket.socket, talk: Talk) -> None:
        while not self._closed:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._closed:
                    return
                _log.warning("cannot accept a monitor's client: %s", error.strerror or error)
                threading.Event().wait(0.1)  # out of descriptors, say: others may go soon
                continue
            self._welcome(connection, talk)

    def _welcome(self, connection: socket.socket, talk: Talk) -> None:
        channel = SocketChannel(connection)
        with self._lock:
            crowded = self._closed or len(self._clients) >= CLIENTS_MAX
            if not crowded:
                self._clients[channel] = None
        if crowded:
            channel.close()
            return
        _run(talk, channel, lambda: self._leave(channel))

    def _leave(self, channel: SocketChannel) -> None:
        with self._lock:
            self._clients.pop(channel, None)

    def stop_listening(self) -> None:
        """No new clients."""
        self._closed = True
        for listener in self._listeners:
            try:
                listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
            except OSError:
                pass  # TCP listeners say that they are not connected, and wake all the same
            listener.close()
        if isinstance(self._address, UnixAddress):
            try:
                os.unlink(self._address.path)
            except OSError:
                pass  # somebody else has removed it

    def close(self) -> None:
        """Release it, and whoever is connected."""
        with self._lock:
            clients = list(self._clients)
        for channel in clients:
            channel.close()


def _run(talk: Talk, channel: Channel, at_end: Callable[[], None] | None = None) -> None:
    def run() -> None:
        try:
            talk(channel)
        except Exception:
            _log.exception("a monitor has failed")
        finally:
            channel.close()
            if at_end is not None:
                at_end()

    threading.Thread(target=run, name="qmp monitor", daemon=True).start()


AnyChardev = Chardev | SocketServer


# --- from options -------------------------------------------------------------------------------


def open_chardev(options: dict[str, str]) -> AnyChardev:
    """The device that ``socket,id=m,path=…`` describes: `backend` and the others. Raises."""
    options = dict(options)
    backend = options.pop("backend", "")
    label = options.pop("id", "")
    if not label:
        raise QmpError("chardev: no id specified")
    if backend not in _MAKERS:
        raise QmpError(f"'{backend}' is not a valid char driver name")
    options.pop("logfile", None)
    made = _MAKERS[backend](label, options)
    if options:
        made.stop_listening()
        made.close()
        raise QmpError(f"Invalid parameter '{next(iter(options))}'")
    return made


def _flag(options: dict[str, str], name: str, default: bool) -> bool:
    value = options.pop(name, "on" if default else "off")
    if value not in ("on", "off"):
        raise QmpError(f"Parameter '{name}' expects 'on' or 'off'")
    return value == "on"


def _stdio(label: str, options: dict[str, str]) -> AnyChardev:
    _flag(options, "signal", True)
    return Chardev(label, "stdio", DescriptorChannel(0, 1))


def _null(label: str, options: dict[str, str]) -> AnyChardev:
    return Chardev(label, "null", NullChannel())


def _file(label: str, options: dict[str, str]) -> AnyChardev:
    """Output only."""
    path = _path(options, "file")
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    flags |= os.O_APPEND if _flag(options, "append", False) else os.O_TRUNC
    writing = _open(path, flags)
    return Chardev(label, "file", DescriptorChannel(-1, writing, owned=True))


def _pipe(label: str, options: dict[str, str]) -> AnyChardev:
    """A pair of pipes, PATH.in and PATH.out."""
    path = _path(options, "pipe")
    reading = _open(f"{path}.in", os.O_RDWR | os.O_CLOEXEC)
    try:
        writing = _open(f"{path}.out", os.O_RDWR | os.O_CLOEXEC)
    except QmpError:
        os.close(reading)
        raise
    return Chardev(label, "pipe", DescriptorChannel(reading, writing, owned=True))


def _path(options: dict[str, str], kind: str) -> str:
    path = options.pop("path", "")
    if not path:
        raise QmpError(f"chardev: {kind}: no filename given")
    return path


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise QmpError(f"Could not open '{path}': {error.strerror}") from None


def _socket(label: str, options: dict[str, str]) -> AnyChardev:
    nowait = options.pop("nowait", "off") == "on"
    server = _flag(options, "server", False)
    if nowait and not server:
        raise QmpError("'wait' option is incompatible with socket in client connect mode")
    wait = _flag(options, "wait", server and not nowait)
    if wait and not server:
        raise QmpError("'wait' option is incompatible with socket in client connect mode")
    descriptor = options.pop("fd", None)
    if descriptor is not None:
        return _given_socket(label, descriptor)
    address = _socket_address(options)
    if server:
        return SocketServer(label, address, wait=wait)
    return _connect(label, address)


def _socket_address(options: dict[str, str]) -> UnixAddress | InetAddress:
    path = options.pop("path", None)
    if path is not None:
        return UnixAddress(path)
    host, port = options.pop("host", ""), options.pop("port", None)
    options.pop("nodelay", None)
    if port is None:
        raise QmpError("chardev: socket: no port or path given")
    if not port.isdecimal() or int(port) > 65535:
        raise QmpError(f"address resolution failed for {host}:{port}")
    return InetAddress(host, int(port))


def _given_socket(label: str, text: str) -> AnyChardev:
    """A socket that is connected already, or listens, by the number of its descriptor."""
    if not text.isdecimal():
        raise QmpError(f"Unable to parse FD number {text}")
    try:
        connection = socket.socket(fileno=int(text))
    except OSError as error:
        raise QmpError(f"Cannot use file descriptor {text}: {error.strerror}") from None
    if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        connection.detach()
        raise QmpError(f"File descriptor {text} listens: give the address, or a connected socket")
    return Chardev(label, f"fd:{text}", SocketChannel(connection))


def _connect(label: str, address: UnixAddress | InetAddress) -> AnyChardev:
    try:
        if isinstance(address, UnixAddress):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(address.path)
            except BaseException:
                connection.close()
                raise
        else:
            connection = socket.create_connection((address.host, address.port))
    except OSError as error:
        raise QmpError(f"Failed to connect to '{address}': {error.strerror or error}") from None
    channel = SocketChannel(connection)
    where = f"tcp:{channel.ends}" if channel.ends else f"unix:{address}"
    return Chardev(label, where, channel)


_MAKERS: dict[str, Callable[[str, dict[str, str]], AnyChardev]] = {
    "file": _file,
    "null": _null,
    "pipe": _pipe,
    "socket": _socket,
    "stdio": _stdio,
}

KINDS = tuple(_MAKERS)
"""Of devices, by the names that `open_chardev` and users have for them."""
