# SPDX-License-Identifier: Apache-2.0
"""From an address to a negotiated connection, within a deadline."""

from __future__ import annotations

import errno
import socket
import time

from blocklayer.base.errors import RemoteError
from blocklayer.base.record import Record
from blocklayer.base.units import KiB
from blocklayer.nbd import tls
from blocklayer.nbd.client_handshake import Agreement, Handshake, Wish
from blocklayer.nbd.client_options import DONE, STARTTLS, Negotiation
from blocklayer.nbd.client_stream import Stream, TlsStream, dial, encrypt
from blocklayer.nbd.client_waits import Waits
from blocklayer.nbd.uri import InetAddress, Location

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    import ssl

CONNECT_SECONDS = 30.0
"""Connecting, TLS and negotiation together may take as long: servers answer in milliseconds."""

RECEIVE_SIZE = 64 * KiB


class Encryption(Record, frozen=True):
    """How to encrypt: with what, and whom the server's certificate must name (None: anybody)."""

    context: ssl.SSLContext
    hostname: str | None


class Session(Record, frozen=True):
    """A connection in transmission, and what came behind the negotiation's end."""

    stream: Stream
    agreement: Agreement
    rest: bytes


def encryption(location: Location, creds: tls.TlsCredentials | None) -> Encryption | None:
    """What a location wants of TLS, with credentials that the user named. Raises `InvalidArgument`.

    Of a server on a Unix socket nobody knows what its name should be, unless the user says so.
    """
    if creds is None and not location.secure:
        return None
    address = location.address
    host = address.host.partition("%")[0] if isinstance(address, InetAddress) else None
    hostname = location.tls_hostname or host
    if creds is None and location.certificates is not None:
        creds = tls.TlsCredentials(location.certificates, tls.CLIENT, location.verify_peer)
    if creds is None:
        context = tls.public_context(check_hostname=hostname is not None)
        if not location.verify_peer:
            import ssl

            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    else:
        context = tls.client_context(creds, check_hostname=hostname is not None)
    return Encryption(context, hostname)


def connect(
    location: Location,
    encrypted: Encryption | None,
    wish: Wish,
    *,
    seconds: float = CONNECT_SECONDS,
    waits: Waits | None = None,
) -> Session:
    """Connect and agree on the export. Raises `RemoteError`, `ProtocolError`.

    waits  how to give up meanwhile
    """
    deadline = time.monotonic() + seconds
    engine = Handshake(wish.replace(export=location.export, tls=encrypted is not None))
    connected = negotiate(location, encrypted, engine, deadline, waits)
    try:
        assert engine.agreement is not None
        stream = Stream(connected) if encrypted is None else _tls_stream(connected)
        stream.begin()
        return Session(stream, engine.agreement, engine.rest)
    except BaseException:
        connected.close()
        raise


def _tls_stream(connected: socket.socket) -> TlsStream:
    import ssl

    assert isinstance(connected, ssl.SSLSocket)
    return TlsStream(connected)


def negotiate(
    location: Location,
    encrypted: Encryption | None,
    engine: Negotiation,
    deadline: float,
    waits: Waits | None = None,
) -> socket.socket:
    """Connect and drive any negotiation to its end; the socket. Raises as `connect`."""
    waits = waits or Waits()
    waits.check()
    try:
        return _negotiate(location, encrypted, engine, deadline, waits)
    except RemoteError:
        waits.check()  # it broke because somebody gave up
        raise


def _negotiate(
    location: Location,
    encrypted: Encryption | None,
    engine: Negotiation,
    deadline: float,
    waits: Waits,
) -> socket.socket:
    connected = dial(location.address, deadline, waits)
    try:
        waits.hold(connected)
        while engine.state != DONE:
            _set_deadline(connected, deadline)
            data = engine.outgoing()
            if data:
                connected.sendall(data)
            if engine.state == STARTTLS:
                assert encrypted is not None
                connected = encrypt(
                    connected, encrypted.context, encrypted.hostname, deadline, waits
                )
                engine.secured()
                continue
            _set_deadline(connected, deadline)
            data = connected.recv(RECEIVE_SIZE)
            if not data:
                raise engine.ended()
            engine.receive(data)
        data = engine.outgoing()
        if data:
            connected.sendall(data)
    except BaseException as error:
        connected.close()
        if isinstance(error, OSError):
            raise _failure(error) from None
        raise
    finally:
        waits.release(connected)
    return connected


def _set_deadline(connected: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connected.settimeout(left)


def _failure(error: OSError) -> RemoteError:
    if isinstance(error, TimeoutError):
        return RemoteError("The server did not answer in time", errno.ETIMEDOUT)
    return RemoteError(
        f"The connection broke during the negotiation: {tls.reason_of(error)}",
        error.errno or errno.EIO,
    )
