# SPDX-License-Identifier: Apache-2.0
"""An NBD server: listens, negotiates, and gives each client a thread of its own.

server = NbdServer([UnixAddress("/run/disk.sock")])
server.add(Export("", disk, writable=True))
server.start()
…
server.stop()
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence

from blocklayer.base.errors import BlocklayerError, InvalidArgument
from blocklayer.export.channel import Channel
from blocklayer.export.export import Export
from blocklayer.export.listen import Address, UnixAddress, listen
from blocklayer.nbd.offers import Choice, Offer, Offers
from blocklayer.nbd.server_handshake import (
    CHOSEN,
    ENDED,
    HAGGLING,
    STARTTLS,
    TLS_OFF,
    TLS_REQUIRED,
    ServerHandshake,
)

TYPE_CHECKING = False  # importing ssl costs start-up time
if TYPE_CHECKING:
    import ssl

HANDSHAKE_SECONDS = 10.0
"""For how long a client may negotiate."""

STOP_SECONDS = 10.0
"""For how long clients may take their last answers when the server stops."""

HANDSHAKE_PIECE = 64 * 1024

log = logging.getLogger("blocklayer.nbd")

Authorise = Callable[[str], bool]
"""Whether a client with this distinguished name may connect."""


class _Offers(Offers):
    def __init__(self, exports: dict[str, Export]) -> None:
        self._exports = exports

    def names(self) -> list[tuple[str, str]]:
        return [(export.name, export.description) for export in list(self._exports.values())]

    def find(self, name: str) -> Offer | None:
        export = self._exports.get(name)
        return export.offer() if export is not None else None


class _Client:
    """A connection, its thread, and the export it has chosen."""

    def __init__(self, channel: Channel, name: str) -> None:
        self.channel = channel
        self.name = name
        self.thread: threading.Thread | None = None
        self.export: Export | None = None
        self.handshake: ServerHandshake | None = None
        self.deadline: float | None = time.monotonic() + HANDSHAKE_SECONDS
        """When it is cut off, on the clock of `time.monotonic`; None once it has negotiated."""


class NbdServer:
    """Serves exports on addresses.

    tls              an `ssl.SSLContext`: clients must encrypt before anything else
    authorise        asked with the distinguished name of an encrypted client's certificate
    max_connections  clients at a time; others wait to be accepted. 0: any number
    on_leave         called when a client that was served has gone, with the number of the others
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        tls: ssl.SSLContext | None = None,
        authorise: Authorise | None = None,
        max_connections: int = 0,
        on_leave: Callable[[int], None] | None = None,
    ) -> None:
        if not addresses:
            raise InvalidArgument("An NBD server needs an address")
        self._addresses = list(addresses)
        self._tls = tls
        self._authorise = authorise
        self._maximum = max_connections
        self._on_leave = on_leave
        self._exports: dict[str, Export] = {}
        self._listeners: list[socket.socket] = []
        self._paths: list[str] = []
        """Unix sockets that this server has made."""
        self._clients: set[_Client] = set()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._wake: tuple[int, int] | None = None
        """The ends of a pipe whose closing wakes who waits for clients."""
        self._stopping = False

    # --- exports ----------------------------------------------------------------------------------

    @property
    def exports(self) -> list[Export]:
        """What is served now."""
        return list(self._exports.values())

    @property
    def clients(self) -> int:
        """Clients that are connected."""
        return len(self._clients)

    def add(self, export: Export) -> None:
        """Serve an export from now on."""
        with self._changed:
            if export.name in self._exports:
                raise InvalidArgument(f"NBD server already has export named '{export.name}'")
            self._exports[export.name] = export

    def remove(self, name: str, *, hard: bool = False, called: str | None = None) -> None:
        """Stop serving an export; with `hard`, its clients are disconnected, else it is refused.

        called  what it is called by who wants this, if not by its name
        """
        with self._changed:
            export = self._exports.get(name)
            if export is None:
                raise InvalidArgument(f"Export '{name}' is not found")
            users = [client for client in self._clients if client.export is export]
            if users and not hard:
                raise InvalidArgument(f"export '{called or name}' still in use")
            del self._exports[name]
        export.gone.set()
        for client in users:
            client.channel.abort()
        self._wait_for(lambda: not any(c.export is export for c in self._clients), None)

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen. Raises `ListenError`."""
        try:
            for address in self._addresses:
                self._listeners += listen(address)
                if isinstance(address, UnixAddress):
                    self._paths.append(address.path)
        except BaseException:
            self._close_listeners()
            raise
        self._wake = os.pipe()
        for listener in self._listeners:
            thread = threading.Thread(
                target=self._accept, args=(listener,), name="nbd listener", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    @property
    def ports(self) -> list[int]:
        """The TCP ports it listens on."""
        inet = (socket.AF_INET, socket.AF_INET6)
        return [one.getsockname()[1] for one in self._listeners if one.family in inet]

    def stop(self, *, patience: float = STOP_SECONDS) -> None:
        """Accept nobody, answer what was asked already, disconnect everybody, return."""
        with self._changed:
            self._stopping = True
            clients = list(self._clients)
            self._changed.notify_all()
        if self._wake is not None:
            os.close(self._wake[1])
        for thread in self._threads:
            thread.join()
        if self._wake is not None:
            os.close(self._wake[0])
            self._wake = None
        self._close_listeners()
        for client in clients:
            if client.handshake is not None:
                client.handshake.shutting_down = True
            client.channel.stop_receiving()
        if not self._wait_for(lambda: not self._clients, patience):
            for client in list(self._clients):
                client.channel.abort()  # it does not read its answers
            self._wait_for(lambda: not self._clients, None)

    def _wait_for(self, condition: Callable[[], bool], seconds: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, seconds)

    def _close_listeners(self) -> None:
        # Closed, not shut down: a socket of systemd's goes on to listen for the next server.
        for listener in self._listeners:
            listener.close()
        for path in self._paths:
            try:
                os.unlink(path)
            except OSError:
                pass  # somebody else has removed it
        self._listeners, self._paths = [], []

    # --- clients ----------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        assert self._wake is not None
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._wake[0], select.POLLIN)
        while True:
            seconds = self._cut_off_slow()
            with self._changed:
                if not self._has_room():
                    self._changed.wait(seconds)
                    continue
                if self._stopping:
                    return
            if not poll.poll(None if seconds is None else seconds * 1000) or self._stopping:
                continue
            try:
                connection, peer = listener.accept()
            except OSError as error:
                log.warning("cannot accept a client: %s", error.strerror or error)
                time.sleep(0.1)  # out of descriptors, say: others may go soon
                continue
            self._begin(connection, _peer_name(peer))

    def _cut_off_slow(self) -> float | None:
        """End what negotiates for too long; when to look again, in seconds from now."""
        with self._changed:
            now = time.monotonic()
            nearest: float | None = None
            for client in self._clients:
                if client.deadline is None:
                    continue
                if client.deadline <= now:
                    log.info("client %s: took too long to negotiate", client.name)
                    client.deadline = None
                    client.channel.abort()
                elif nearest is None or client.deadline < nearest:
                    nearest = client.deadline
            return None if nearest is None else nearest - now

    def _has_room(self) -> bool:
        return self._stopping or not self._maximum or len(self._clients) < self._maximum

    def _begin(self, connection: socket.socket, name: str) -> None:
        client = _Client(Channel(connection), name)
        with self._changed:
            self._changed.wait_for(self._has_room)  # another listener may have been faster
            if self._stopping:
                client.channel.close()
                return
            self._clients.add(client)
        client.thread = threading.Thread(
            target=self._run, args=(client,), name=f"nbd client {name}", daemon=True
        )
        try:
            client.thread.start()
        except RuntimeError as error:  # no more threads
            log.warning("cannot serve client %s: %s", name, error)
            self._end(client)

    def _run(self, client: _Client) -> None:
        try:
            self._serve(client)
        except (OSError, BlocklayerError) as error:
            log.info("client %s: %s", client.name, error)
        except Exception:
            log.exception("client %s: serving it failed", client.name)
        finally:
            self._end(client)

    def _end(self, client: _Client) -> None:
        client.channel.close()
        with self._changed:
            self._clients.discard(client)
            served = client.export is not None
            if client.export is not None:
                client.export.stats.clients -= 1
                client.export = None
            count = len(self._clients)
            self._changed.notify_all()
        if served and self._on_leave is not None:
            self._on_leave(count)

    def _serve(self, client: _Client) -> None:
        from blocklayer.export.session import Session

        agreed = self._negotiate(client)
        if agreed is None:
            return
        choice, rest = agreed
        export = client.export
        assert export is not None
        log.info("client %s: connected to export '%s'", client.name, export.name)
        client.channel.begin_transmission()
        session = Session(client.channel, export, choice)
        session.run(rest)
        if session.problem:
            log.info("client %s: %s", client.name, session.problem)
        else:
            log.info("client %s: disconnected", client.name)

    def _negotiate(self, client: _Client) -> tuple[Choice, bytes] | None:
        """The handshake; what was agreed on, or None if the client goes."""
        engine = ServerHandshake(
            _Offers(self._exports), tls=TLS_OFF if self._tls is None else TLS_REQUIRED
        )
        client.handshake = engine
        buffer = memoryview(bytearray(HANDSHAKE_PIECE))
        while True:
            while answers := engine.outgoing():
                choice = engine.choice
                if choice is not None and not (client.export or self._take_export(client, choice)):
                    return None
                client.channel.send(answers)
            if engine.state == CHOSEN:
                assert engine.choice is not None
                return engine.choice, engine.rest
            if engine.state == ENDED:
                if engine.problem:
                    log.info("client %s: %s", client.name, engine.problem)
                return None
            if engine.state == STARTTLS:
                self._encrypt(client)
                engine.secured()
            assert engine.state == HAGGLING
            count = client.channel.receive_into(buffer)
            if not count:
                return None
            engine.receive(buffer[:count])

    def _take_export(self, client: _Client, choice: Choice) -> bool:
        """Before the client hears that the export is its: whether it is still there."""
        with self._changed:
            export = self._exports.get(choice.offer.name)
            if export is None or self._stopping:
                return False
            client.deadline = None
            client.export = export
            export.stats.clients += 1
            export.stats.connections += 1
            return True

    def _encrypt(self, client: _Client) -> None:
        assert self._tls is not None
        client.channel = client.channel.encrypted(self._tls)
        name = client.channel.peer_name
        if self._authorise is not None and not self._authorise(name):
            raise PermissionError(f"TLS x509 authz check for {name or 'nobody'} is denied")


def _peer_name(peer: object) -> str:
    """How a log calls a client."""
    if isinstance(peer, tuple) and len(peer) >= 2:
        return f"{peer[0]}:{peer[1]}"
    return str(peer or "on a unix socket")
