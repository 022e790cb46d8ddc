# SPDX-License-Identifier: Apache-2.0
"""Sockets that clients connect to: unix, TCP over IPv4 and IPv6, or handed over by systemd."""

from __future__ import annotations

import errno
import os
import socket
import stat

from blocklayer.base.errors import InvalidArgument, OpenError
from blocklayer.base.record import Record
from blocklayer.nbd.wire import DEFAULT_PORT

ACTIVATION_FIRST = 3
"""The first descriptor that systemd passes (sd_listen_fds)."""

BACKLOG = 128


class UnixAddress(Record, frozen=True):
    """A path."""

    path: str

    def __str__(self) -> str:
        return self.path


class InetAddress(Record, frozen=True):
    """A host and a port; no host is every address of this machine, port 0 any free one."""

    host: str = ""
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"{self.host or '0.0.0.0'}:{self.port}"


class GivenSocket(Record, frozen=True):
    """A descriptor that listens already."""

    descriptor: int

    def __str__(self) -> str:
        return f"descriptor {self.descriptor}"


Address = UnixAddress | InetAddress | GivenSocket


class ListenError(OpenError, eq=False):
    """Nobody can connect."""

    template = "{message}"


def listen(address: Address) -> list[socket.socket]:
    """Listening sockets for an address: a host may have several. Raises `ListenError`."""
    try:
        if isinstance(address, UnixAddress):
            return [_listen_unix(address.path)]
        if isinstance(address, GivenSocket):
            return [_adopt(address.descriptor)]
        return _listen_inet(address)
    except socket.gaierror as error:
        why = f"address resolution failed for {address}: {error.strerror or error}"
        raise ListenError(why, str(address), errno.EINVAL) from None
    except (OSError, OverflowError, ValueError) as error:
        code = getattr(error, "errno", None) or errno.EINVAL
        what = f"socket to {address}" if isinstance(address, UnixAddress) else f"to {address}"
        raise ListenError(
            f"Failed to bind {what}: {os.strerror(code)}", str(address), code
        ) from None


def _listen_unix(path: str) -> socket.socket:
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        raise InvalidArgument(f"Invalid UNIX socket path {path!r}") from None
    if len(encoded) > 107 or not encoded:  # sun_path, with its end
        raise InvalidArgument(f"UNIX socket path '{path}' is too long: 107 bytes at most")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more; never anything else."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except OSError:
        return


def _listen_inet(address: InetAddress) -> list[socket.socket]:
    if not 0 <= address.port <= 65535:
        raise InvalidArgument(f"Invalid port number {address.port}: use 1 to 65535")
    listeners: list[socket.socket] = []
    port = address.port
    try:
        for family, where in _hosts(address.host, port):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((*where[:1], port or where[1], *where[2:]))
            listener.listen(BACKLOG)
            port = listener.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _hosts(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """(family, address) of a host; without one all of this machine, IPv6 where there is any."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    hosts = {(family, where): None for family, _, _, _, where in found}
    return [(family, where) for family, where in hosts if host or _usable(family)]  # type: ignore[misc]


def _usable(family: int) -> bool:
    if family != socket.AF_INET6:
        return True
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _adopt(descriptor: int) -> socket.socket:
    listener = socket.socket(fileno=descriptor)
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        raise InvalidArgument(f"File descriptor {descriptor} is not a listening socket")
    listener.setblocking(True)
    return listener


def activation_sockets() -> list[int]:
    """Descriptors that systemd has passed (LISTEN_PID, LISTEN_FDS); none usually.

    The variables are removed, so that children do not take them for theirs.
    """
    pid, count = os.environ.get("LISTEN_PID"), os.environ.get("LISTEN_FDS")
    if pid is None or count is None:
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    try:
        if int(pid) != os.getpid():
            return []
        passed = int(count)
    except ValueError:
        return []
    descriptors: list[int] = []
    for descriptor in range(ACTIVATION_FIRST, ACTIVATION_FIRST + passed):
        try:
            os.set_inheritable(descriptor, False)
        except OSError as error:
            raise InvalidArgument(
                f"Socket activation failed: invalid file descriptor fd = {descriptor}:"
                f" {error.strerror}"
            ) from None
        descriptors.append(descriptor)
    return descriptors
