# SPDX-License-Identifier: Apache-2.0
"""Commands about exports and the NBD server."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from blocklayer.core import objects
from blocklayer.export.authorise import authoriser
from blocklayer.export.export import Export
from blocklayer.export.listen import Address, GivenSocket, InetAddress, UnixAddress
from blocklayer.export.server import NbdServer
from blocklayer.nbd import wire
from blocklayer.qmp.commands.export_bitmaps import give_back, take_bitmaps
from blocklayer.qmp.commands.nodes import find_by_name
from blocklayer.qmp.schema import exports as schema
from blocklayer.qmp.schema import sockets
from blocklayer.qmp.schema.nodes import NodeStats
from blocklayer.qmp.types import Family, Nothing, QmpError

if TYPE_CHECKING:
    import ssl

    from blocklayer.core.bitmap import DirtyBitmap
    from blocklayer.core.disk import Disk
    from blocklayer.core.graph import Graph
    from blocklayer.core.node import Node
    from blocklayer.qmp.context import Context

FAMILY = Family("Exports")

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


def _require_iothread(name: str) -> None:
    """Raise `QmpError` unless there is such an object; it has no other meaning."""
    found = objects.find(name)
    if found is None or found.kind != "iothread":
        raise QmpError(f'iothread "{name}" not found')


class _Entry:
    """An export with what the server does not know of it."""

    def __init__(
        self, identity: str, export: Export, disk: Disk, bitmaps: Sequence[DirtyBitmap]
    ) -> None:
        self.identity = identity
        self.export = export
        self.disk = disk
        self.bitmaps = bitmaps


class Exports:
    """The NBD server of a daemon and its exports, by id."""

    def __init__(self, graph: Graph, deleted: Callable[[str], None]) -> None:
        self._graph = graph
        self._deleted = deleted
        self._server: NbdServer | None = None
        self._entries: dict[str, _Entry] = {}

    # --- the server -----------------------------------------------------------------------------

    def start(self, addr: Any, tls_creds: str | None, authz: str | None, maximum: int) -> None:
        """Listen. `addr` is a declared address of either form."""
        if self._server is not None:
            raise QmpError("NBD server already running")
        if authz is not None and tls_creds is None:
            raise QmpError("TLS authorization is only possible with TLS credentials")
        server = NbdServer(
            [_address(getattr(addr, "data", addr))],
            tls=None if tls_creds is None else _tls(tls_creds),
            authorise=None if authz is None else authoriser(authz),
            max_connections=maximum,
        )
        server.start()
        self._server = server

    def stop(self) -> None:
        """Disconnect everybody; all exports are gone."""
        if self._server is None:
            raise QmpError("NBD server not running")
        self.close()

    def close(self) -> None:
        """The same, where nothing may run."""
        server, self._server = self._server, None
        if server is None:
            return
        server.stop()
        for entry in reversed(list(self._entries.values())):
            self._forget(entry)

    @property
    def ports(self) -> Sequence[int]:
        """TCP ports of the server."""
        return [] if self._server is None else self._server.ports

    # --- exports --------------------------------------------------------------------------------

    def add(self, options: schema.NbdExport) -> None:
        """A new export."""
        if not _IDENTIFIER.fullmatch(options.id):
            raise QmpError("Invalid block export id")
        if options.id in self._entries:
            raise QmpError(f"Block export id '{options.id}' is already in use")
        node = find_by_name(self._graph, options.node_name)
        writable = bool(options.writable)
        if writable and node.read_only:
            raise QmpError("Cannot export read-only node as writable")
        if options.iothread is not None:
            _require_iothread(options.iothread)
        if self._server is None:
            raise QmpError("NBD server not running")
        disk = self._graph.open_disk(
            options.node_name, writable=writable, user=f"export '{options.id}'"
        )
        bitmaps: list[DirtyBitmap] = []
        try:
            bitmaps = take_bitmaps(self._graph, node, options.bitmaps or (), writable=writable)
            disk.writethrough = bool(options.writethrough)
            export = Export(
                options.node_name if options.name is None else options.name,
                disk,
                description=options.description or "",
                writable=writable,
                bitmaps=bitmaps,
                allocation_depth=bool(options.allocation_depth),
            )
            self._server.add(export)
        except BaseException:
            give_back(bitmaps)
            disk.close()
            raise
        self._entries[options.id] = _Entry(options.id, export, disk, bitmaps)

    def remove(self, identity: str, mode: str | None) -> None:
        """Delete an export; its clients are disconnected if `mode` is hard."""
        entry = self._entries.get(identity)
        if entry is None:
            raise QmpError(f"Export '{identity}' is not found")
        assert self._server is not None
        self._server.remove(entry.export.name, hard=mode == "hard", called=identity)
        self._forget(entry)

    def _forget(self, entry: _Entry) -> None:
        del self._entries[entry.identity]
        give_back(entry.bitmaps)
        entry.disk.close()
        self._deleted(entry.identity)

    def infos(self) -> list[schema.ExportInfo]:
        """What query-block-exports tells; the newest first."""
        with self._graph.looking():  # else the filter of a job that ends has no name any more
            return [
                schema.ExportInfo(
                    id=entry.identity,
                    type="nbd",
                    node_name=self._graph.name_of(entry.disk.node),
                    shutting_down=False,  # nobody can ask while one does
                )
                for entry in reversed(self._entries.values())
            ]

    def stats_of(self, node: Node) -> NodeStats:
        """What clients have asked of a node."""
        total = NodeStats()
        for entry in self._entries.values():
            if entry.disk.node is node:
                stats = entry.export.stats
                total.rd_bytes += stats.bytes_read
                total.wr_bytes += stats.bytes_written
                total.rd_operations += stats.requests[wire.CMD_READ]
                total.wr_operations += stats.requests[wire.CMD_WRITE]
                total.wr_operations += stats.requests[wire.CMD_WRITE_ZEROES]
                total.flush_operations += stats.requests[wire.CMD_FLUSH]
                total.unmap_operations += stats.requests[wire.CMD_TRIM]
        return total


def _address(data: Any) -> Address:
    if isinstance(data, sockets.Inet):
        if data.to is not None or data.ipv4 is not None or data.ipv6 is not None:
            raise QmpError(
                "Ranges of ports, and the choice between IPv4 and IPv6, are not supported"
            )
        where = f"{data.host}:{data.port}"
        if not data.port.isdecimal() or int(data.port) > 65535:
            raise QmpError(
                f"address resolution failed for {where}: Servname not supported for ai_socktype"
            )
        return InetAddress(data.host, int(data.port))
    if isinstance(data, sockets.Unix):
        if data.abstract:
            raise QmpError("Abstract socket names are not supported")
        return UnixAddress(data.path)
    if not data.str_.isdecimal():
        raise QmpError("File descriptors have numbers here: names are for 'getfd'")
    return GivenSocket(int(data.str_))


def _tls(name: str) -> ssl.SSLContext:
    """The server's side of the credentials called `name`."""
    from blocklayer.nbd import tls

    found, password = objects.tls_credentials(name)
    if found.properties.get("endpoint", tls.CLIENT) != tls.SERVER:
        raise QmpError("Expecting TLS credentials with a server endpoint")
    return tls.server_context(
        tls.credentials(found.kind, found.properties, endpoint=tls.SERVER, password=password)
    )


# --- commands -----------------------------------------------------------------------------------


@FAMILY.command("nbd-server-start", schema.NbdServerStart)
def nbd_server_start(context: Context, arguments: schema.NbdServerStart) -> None:
    """Start the NBD server. Nodes are exported by block-export-add."""
    context.exports.start(
        arguments.addr, arguments.tls_creds, arguments.tls_authz, arguments.max_connections or 0
    )


@FAMILY.command("nbd-server-stop")
def nbd_server_stop(context: Context, arguments: Nothing) -> None:
    """Stop the NBD server: clients are disconnected, exports are deleted."""
    context.exports.stop()


@FAMILY.command("nbd-server-add", schema.NbdServerAdd, features=("deprecated",))
def nbd_server_add(context: Context, arguments: schema.NbdServerAdd) -> None:
    """Export a node. block-export-add can do more."""
    name = arguments.device if arguments.name is None else arguments.name
    node = context.graph.find(arguments.device)
    options = schema.NbdExport(
        id=name,
        node_name=arguments.device,
        name=name,
        description=arguments.description,
        writable=bool(arguments.writable) and not node.read_only,
        bitmaps=[arguments.bitmap] if arguments.bitmap is not None else None,
    )
    context.exports.add(options)


@FAMILY.command("nbd-server-remove", schema.NbdServerRemove, features=("deprecated",))
def nbd_server_remove(context: Context, arguments: schema.NbdServerRemove) -> None:
    """Delete an export that nbd-server-add made."""
    context.exports.remove(arguments.name, arguments.mode)


@FAMILY.command("block-export-add", schema.NbdExport)
def block_export_add(context: Context, arguments: schema.NbdExport) -> None:
    """Export a node over NBD."""
    context.exports.add(arguments)


@FAMILY.command("block-export-del", schema.ExportDel)
def block_export_del(context: Context, arguments: schema.ExportDel) -> None:
    """Delete an export. When it is gone, there is an event BLOCK_EXPORT_DELETED."""
    context.exports.remove(arguments.id, arguments.mode)


@FAMILY.command("query-block-exports", Nothing, list[schema.ExportInfo])
def query_block_exports(context: Context, arguments: Nothing) -> Any:
    """List the exports."""
    return context.exports.infos()
