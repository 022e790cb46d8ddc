# SPDX-License-Identifier: Apache-2.0
"""Connected sockets, plain and encrypted, as one thread reads from them and others write.

Nothing waits for ever: `receive` comes back from time to time without bytes, so that its caller
can look at the clock, and `send` fails when the other side has taken nothing for as long as it may.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Sequence

from blocklayer.base.buffers import Buffer, Vector
from blocklayer.base.errors import InvalidArgument, RemoteError
from blocklayer.nbd import tls
from blocklayer.nbd.client_waits import Waits
from blocklayer.nbd.uri import Address, DescriptorAddress, InetAddress, UnixAddress

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    import ssl

TICK_SECONDS = 1.0
"""How long `receive` waits at most."""

SEND_SECONDS = 60.0
"""A server that reads nothing for so long is taken for dead, unless the caller knows better."""

IOV_MAX = 1024
"""Buffers in one vectored call (Linux: UIO_MAXIOV)."""

KEEPALIVE_SECONDS = 60
"""TCP asks a silent peer after so long whether it is still there …"""
KEEPALIVE_INTERVAL_SECONDS = 15
"""… and again after so long, a few times."""


class Stream:
    """A plain socket. One thread receives, one at a time sends; closing ends both."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self.send_seconds = SEND_SECONDS

    def begin(self) -> None:
        """The handshake is over: from now on `receive` and `send` wait by themselves."""
        self._socket.settimeout(None)
        self._set_timeout(socket.SO_RCVTIMEO, TICK_SECONDS)
        self._set_timeout(socket.SO_SNDTIMEO, TICK_SECONDS)

    def _set_timeout(self, option: int, seconds: float) -> None:
        # struct timeval: the kernel waits, which costs no further system call as polling would.
        whole, fraction = divmod(seconds, 1)
        value = b"".join(
            number.to_bytes(8, "little" if _LITTLE else "big")
            for number in (int(whole), int(fraction * 1e6))
        )
        self._socket.setsockopt(socket.SOL_SOCKET, option, value)

    def receive(self, buffers: Vector) -> int | None:
        """Bytes that have arrived in `buffers`; 0 at the end, None if none came for a while."""
        try:
            return self._socket.recvmsg_into(buffers)[0]
        except (BlockingIOError, InterruptedError):
            return None

    def send(self, buffers: Sequence[Buffer]) -> None:
        """All bytes of `buffers`. Raises `OSError`."""
        vector = [memoryview(buffer).cast("B") for buffer in buffers]
        started = time.monotonic()
        while vector:
            try:
                count = self._socket.sendmsg(vector[:IOV_MAX])
                started = time.monotonic()
            except (BlockingIOError, InterruptedError):
                self._check_patience(started)
                continue
            _drop(vector, count)

    def _check_patience(self, started: float) -> None:
        if self.send_seconds and time.monotonic() - started > self.send_seconds:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def shut_down(self) -> None:
        """Whoever receives or sends comes back."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Release the descriptor; nobody may be receiving or sending."""
        self._socket.close()


class TlsStream(Stream):
    """An encrypted socket.

    OpenSSL's connections are for one thread at a time, so its operations are made under a lock
    without waiting, and who has to wait does so outside of it.
    """

    def __init__(self, secured: ssl.SSLSocket) -> None:
        super().__init__(secured)
        self._secured = secured
        self._one = threading.Lock()

    def begin(self) -> None:
        """See `Stream`."""
        self._secured.setblocking(False)

    def receive(self, buffers: Vector) -> int | None:
        """See `Stream`; one buffer is filled."""
        import ssl

        try:
            with self._one:
                return self._secured.recv_into(buffers[0])
        except ssl.SSLWantReadError:
            self._wait(select.POLLIN)
        except ssl.SSLWantWriteError:
            self._wait(select.POLLOUT)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return 0
        return None

    def send(self, buffers: Sequence[Buffer]) -> None:
        """See `Stream`."""
        import ssl

        started = time.monotonic()
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while view:
                try:
                    with self._one:
                        count = self._secured.send(view)
                    view = view[count:]
                    started = time.monotonic()
                except ssl.SSLWantWriteError:
                    self._wait(select.POLLOUT)
                    self._check_patience(started)
                except ssl.SSLWantReadError:
                    self._wait(select.POLLIN)
                    self._check_patience(started)

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._secured.fileno(), event)
        poll.poll(TICK_SECONDS * 1000)

    def shut_down(self) -> None:
        """See `Stream`; the socket's descriptor stays valid for who still waits for it."""
        with contextlib.suppress(OSError):
            # SSLSocket.shutdown would drop the encryption under the feet of the others.
            socket.socket.shutdown(self._secured, socket.SHUT_RDWR)


_LITTLE = (1).to_bytes(2, "little") == memoryview(b"\1\0").tobytes()


def _drop(vector: list[memoryview], count: int) -> None:
    """Take `count` bytes from the front of a vector."""
    done = 0
    for view in vector:
        if count < len(view):
            break
        count -= len(view)
        done += 1
    del vector[:done]
    if count:
        vector[0] = vector[0][count:]


# --- connecting ---------------------------------------------------------------------------------


def dial(address: Address, deadline: float, waits: Waits) -> socket.socket:
    """A connected socket. Raises `RemoteError` in QEMU's words, `InvalidArgument`.

    deadline  on the clock of `time.monotonic`
    waits     holds the socket while it connects, and from then on
    """
    if isinstance(address, DescriptorAddress):
        return _adopt(address.descriptor)
    if isinstance(address, InetAddress):
        return _dial_inet(address, deadline, waits)
    if isinstance(address, UnixAddress):
        return _dial_one(address, socket.AF_UNIX, address.path, deadline, waits)
    if not hasattr(socket, "AF_VSOCK"):
        raise InvalidArgument("socket family AF_VSOCK unsupported")
    return _dial_one(address, socket.AF_VSOCK, (address.cid, address.port), deadline, waits)


def _adopt(descriptor: int) -> socket.socket:
    try:
        return socket.socket(fileno=os.dup(descriptor))
    except OSError as error:
        raise RemoteError(
            f"File descriptor '{descriptor}' is not a socket", error.errno or errno.EBADF
        ) from None


def _dial_inet(address: InetAddress, deadline: float, waits: Waits) -> socket.socket:
    family = {4: socket.AF_INET, 6: socket.AF_INET6}.get(address.family, socket.AF_UNSPEC)
    try:
        found = socket.getaddrinfo(
            address.host, address.port, family=family, type=socket.SOCK_STREAM
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RemoteError(
            f"address resolution failed for {address}: {reason}", errno.EHOSTUNREACH
        ) from None
    failure: RemoteError | None = None
    for each in found:
        try:
            connected = _dial_one(address, each[0], each[4], deadline, waits)
        except RemoteError as error:
            waits.check()
            failure = error
            continue
        _tune(connected)
        return connected
    raise failure or RemoteError(f"address resolution failed for {address}", errno.EHOSTUNREACH)


def _dial_one(
    address: Address, family: int, place: object, deadline: float, waits: Waits
) -> socket.socket:
    connected = socket.socket(family, socket.SOCK_STREAM)
    try:
        waits.hold(connected)
        connected.settimeout(max(deadline - time.monotonic(), 0.001))
        connected.connect(place)  # type: ignore[arg-type]  # of the family's kind
    except BaseException as error:
        waits.release(connected)
        connected.close()
        if not isinstance(error, OSError):
            raise
        code = error.errno or errno.ETIMEDOUT
        reason = os.strerror(code)
        raise RemoteError(f"Failed to connect to '{address}': {reason}", code) from None
    return connected


def _tune(connected: socket.socket) -> None:
    """Requests are not held back, and a peer that has vanished is noticed."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_SECONDS),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
    ):
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def encrypt(
    connected: socket.socket,
    context: ssl.SSLContext,
    hostname: str | None,
    deadline: float,
    waits: Waits,
) -> ssl.SSLSocket:
    """The same connection, encrypted. Raises `RemoteError`."""
    connected.settimeout(max(deadline - time.monotonic(), 0.001))
    waits.release(connected)
    secured: ssl.SSLSocket | None = None
    try:
        secured = context.wrap_socket(
            connected, server_hostname=hostname, do_handshake_on_connect=False
        )
        waits.hold(secured)
        secured.do_handshake()
        return secured
    except BaseException as error:
        if secured is not None:
            waits.release(secured)
            secured.close()
        connected.close()
        if not isinstance(error, OSError):
            raise
        if getattr(error, "verify_code", 0) in _OTHER_NAME:
            raise RemoteError(
                f"Certificate does not match the hostname {hostname}", errno.EACCES
            ) from None
        raise RemoteError(f"TLS handshake failed: {tls.reason_of(error)}", errno.EIO) from None


_OTHER_NAME = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
