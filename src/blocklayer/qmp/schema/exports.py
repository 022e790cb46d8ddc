# SPDX-License-Identifier: Apache-2.0
"""Arguments and results of the commands about exports and the NBD server."""

from __future__ import annotations

from typing import Literal, TypeAlias

from blocklayer.qmp.schema.bitmaps import BitmapSource
from blocklayer.qmp.schema.sockets import LegacyAddresses, SocketAddress
from blocklayer.qmp.types import Answer, Members, UInt32

RemoveMode: TypeAlias = Literal["safe", "hard"]


class NbdServerStart(Members, kw_only=True):
    """Where the NBD server listens.

    addr             the address
    tls-creds        object with the credentials for TLS
    tls-authz        object that tells which clients may connect
    max-connections  clients at the same time; 0: no limit
    """

    addr: LegacyAddresses
    tls_creds: str | None = None
    tls_authz: str | None = None
    max_connections: UInt32 | None = None


class NbdServerOptions(Members, kw_only=True):
    """The same on a command line.

    addr             the address
    tls-creds        object with the credentials for TLS
    tls-authz        object that tells which clients may connect
    max-connections  clients at the same time; 0: no limit
    """

    addr: SocketAddress
    tls_creds: str | None = None
    tls_authz: str | None = None
    max_connections: UInt32 | None = None


class NbdServerAdd(Members, kw_only=True):
    """A node to export.

    name         name of the export (default: device)
    description  told to clients
    device       the node
    writable     clients may write
    bitmap       a dirty bitmap that clients may look at
    """

    name: str | None = None
    description: str | None = None
    device: str
    writable: bool | None = None
    bitmap: str | None = None


class NbdServerRemove(Members, kw_only=True):
    """Which export to remove.

    name  its name
    mode  safe: only if it has no clients (default)
    """

    name: str
    mode: RemoveMode | None = None


class BlockExport(Members, kw_only=True, tag_field="type"):
    """What every export has.

    id              its name for block-export-del
    fixed-iothread  accepted; there are no I/O threads to choose
    iothread        accepted
    node-name       the node
    writable        clients may write
    writethrough    every write is flushed
    """

    id: str
    fixed_iothread: bool | None = None
    iothread: str | None = None
    node_name: str
    writable: bool | None = None
    writethrough: bool | None = None


class NbdExport(BlockExport, kw_only=True, tag="nbd"):
    """An export of the NBD server.

    name              its name for clients (default: node-name)
    description       told to clients
    bitmaps           dirty bitmaps that clients may look at
    allocation-depth  clients may ask how many layers lie above the data
    """

    name: str | None = None
    description: str | None = None
    bitmaps: list[BitmapSource] | None = None
    allocation_depth: bool | None = None


class ExportDel(Members, kw_only=True):
    """Which export to delete.

    id    its name
    mode  safe: only if it has no clients (default)
    """

    id: str
    mode: RemoveMode | None = None


class ExportInfo(Answer, kw_only=True):
    """An export."""

    id: str
    type: Literal["nbd"]
    node_name: str
    shutting_down: bool
