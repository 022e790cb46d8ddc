# SPDX-License-Identifier: Apache-2.0
"""The options of the `nbd` protocol, with QEMU's names, and two of our own.

filename                     a URI or an ``nbd:`` name, in place of server and export
server.type, server.host …   where: inet, unix, vsock, fd; also flat: host, port, path
export, tls-creds, tls-hostname, reconnect-delay, open-timeout, x-dirty-bitmap

connections                  how many to use where the server allows several (1)
request-timeout              seconds of silence after which a server that owes an answer is
                             taken for dead (300; 0: never)
"""

from __future__ import annotations

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.options import OptionTree
from blocklayer.base.record import Record
from blocklayer.core import objects
from blocklayer.nbd import tls, uri, wire
from blocklayer.nbd.client import CONNECTIONS_MAX
from blocklayer.nbd.client_connect import Encryption, encryption
from blocklayer.nbd.client_lane import PATIENCE_SECONDS, Settings

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

SECONDS_MAX = 2**32 - 1


class NbdOptions(Record, frozen=True):
    """What the options mean; `context` is what block status is asked of."""

    location: uri.Location
    encrypted: Encryption | None
    settings: Settings
    context: str
    connections: int


def take_options(options: OptionTree) -> NbdOptions:
    """Take out and understand what is there. Raises `InvalidArgument`, `NotSupported`."""
    location = _location(options)
    creds_name = options.pop("tls-creds", None)
    hostname = options.pop("tls-hostname", None)
    if hostname is not None:
        if creds_name is None and not location.secure:
            raise InvalidArgument("tls-hostname can only be used with tls-creds")
        location = location.replace(tls_hostname=str(hostname))
    context = options.pop("x-dirty-bitmap", wire.BASE_ALLOCATION)
    if not isinstance(context, str) or len(context.encode()) > wire.MAX_STRING:
        raise InvalidArgument("x-dirty-bitmap name too long or no text")
    connections = _number(options, "connections", 1)
    if not 1 <= connections <= CONNECTIONS_MAX:
        raise InvalidArgument(f"'connections' can be 1 to {CONNECTIONS_MAX}")
    settings = Settings(
        open_timeout=_number(options, "open-timeout", 0),
        reconnect_delay=_number(options, "reconnect-delay", 0),
        patience=_number(options, "request-timeout", int(PATIENCE_SECONDS)),
    )
    creds = None if creds_name is None else credentials(creds_name, tls.CLIENT)
    if creds is not None:
        location = location.replace(secure=True)
    return NbdOptions(location, encryption(location, creds), settings, context, connections)


def credentials(name: object, endpoint: str) -> tls.TlsCredentials:
    """The object that `tls-creds` names. Raises `InvalidArgument`, `NotSupported`."""
    found, password = objects.tls_credentials(name)
    return tls.credentials(found.kind, found.properties, endpoint=endpoint, password=password)


def _location(options: OptionTree) -> uri.Location:
    places: list[str] = [name for name in ("server", "path", "host", "port") if name in options]
    filename = options.pop("filename", None)
    if filename is not None:
        if places or "export" in options:
            raise InvalidArgument(
                "host/port/path and file names may not be specified at the same time"
            )
        if not isinstance(filename, str):
            raise InvalidArgument("Invalid parameter type for 'filename', expected: string")
        return uri.parse(filename)
    export = uri.check_export(options.pop("export", ""))
    return uri.Location(_address(options, places), export)


def _address(options: OptionTree, places: list[str]) -> uri.Address:
    if places[:1] == ["server"]:
        if len(places) > 1:
            raise InvalidArgument("'server' and path/host/port options cannot be used together")
        return uri.address_of(options.pop("server"))
    if "path" in places:
        if len(places) > 1:
            raise InvalidArgument("path and host may not be used at the same time")
        return uri.address_of({"type": "unix", "path": options.pop("path")})
    if "host" in places:
        port = options.pop("port", wire.DEFAULT_PORT)
        return uri.address_of({"type": "inet", "host": options.pop("host"), "port": port})
    raise InvalidArgument("NBD server address missing")


def _number(options: OptionTree, name: str, default: int) -> int:
    value: Any = options.pop(name, default)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(f"Parameter '{name}' expects a number")
    if not 0 <= value <= SECONDS_MAX:
        raise InvalidArgument(f"Parameter '{name}' is out of range")
    return value
