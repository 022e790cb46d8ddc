# SPDX-License-Identifier: Apache-2.0
"""Names of NBD exports: URIs, QEMU's older ``nbd:`` names, and addresses as options.

    nbd://host[:port][/export]                nbds://…            TCP, and TCP with TLS
    nbd+unix:///[export]?socket=PATH          nbds+unix:///…      a Unix socket
    nbd+vsock://cid[:port][/export]           nbds+vsock://…      a virtual machine's host or guest
    nbd:host:port[:exportname=NAME]           nbd:unix:PATH[:exportname=NAME]

Source: "The NBD Uniform Resource Indicator (URI) format" (`doc/uri.md` of NetworkBlockDevice/nbd);
the parameters ``tls-…`` are libnbd's.
"""

from __future__ import annotations

from collections.abc import Callable

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.options import OptionTree, parse_bool
from blocklayer.base.record import Record
from blocklayer.nbd import wire

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import TypeAlias

SCHEMES = {
    "nbd": ("inet", False),
    "nbd+tcp": ("inet", False),
    "nbds": ("inet", True),
    "nbds+tcp": ("inet", True),
    "nbd+unix": ("unix", False),
    "nbds+unix": ("unix", True),
    "nbd+vsock": ("vsock", False),
    "nbds+vsock": ("vsock", True),
}
"""(transport, whether TLS is required) by scheme."""

_TLS_PARAMETERS = ("tls-certificates", "tls-hostname", "tls-verify-peer")
_PATH_MAX = 107
"""Bytes of a Unix socket's name, without the NUL behind it (Linux: struct sockaddr_un)."""


class InetAddress(Record, frozen=True):
    """A TCP server; `family` 4 or 6 wants this version of IP, 0 takes what there is."""

    host: str
    port: int = wire.DEFAULT_PORT
    family: int = 0

    def __str__(self) -> str:
        return f"{self.bracketed}:{self.port}"

    @property
    def bracketed(self) -> str:
        """The host as URIs write it."""
        return f"[{self.host}]" if ":" in self.host else self.host


class UnixAddress(Record, frozen=True):
    """A Unix socket; names that begin with NUL are Linux's abstract ones."""

    path: str

    def __str__(self) -> str:
        return self.path.replace("\0", "@", 1)


class VsockAddress(Record, frozen=True):
    """A socket between a virtual machine and its host."""

    cid: int
    port: int = wire.DEFAULT_PORT

    def __str__(self) -> str:
        return f"vsock:{self.cid}:{self.port}"


class DescriptorAddress(Record, frozen=True):
    """A connected socket that this process was given."""

    descriptor: int

    def __str__(self) -> str:
        return f"fd:{self.descriptor}"


Address: TypeAlias = "InetAddress | UnixAddress | VsockAddress | DescriptorAddress"


class Location(Record, frozen=True):
    """An export: where its server is, its name, and what the URI wants of TLS.

    certificates   a folder with the files of `nbd/tls.py`; None for the system's authorities
    tls_hostname   whom the certificate must name, if not the host
    """

    address: Address
    export: str = ""
    secure: bool = False
    certificates: str | None = None
    tls_hostname: str | None = None
    verify_peer: bool = True

    @property
    def shown(self) -> str:
        """A name for people, which can be opened again unless it is of a descriptor."""
        from urllib.parse import quote

        scheme = "nbds" if self.secure else "nbd"
        export = quote(self.export, safe="/:@!$'()*+,;=-._~")
        address = self.address
        if isinstance(address, UnixAddress):
            path = f"/{export}" if export else ""
            socket = quote(address.path, safe="/:@!$'()*,;-._~")
            return f"{scheme}+unix://{path}?socket={socket}"
        path = f"/{export}" if export else ""
        if isinstance(address, VsockAddress):
            return f"{scheme}+vsock://{address.cid}:{address.port}{path}"
        if isinstance(address, InetAddress):
            return f"{scheme}://{address}{path}"
        return f"{scheme}:{address}{path}"


def parse(text: str) -> Location:
    """The export that a URI or an ``nbd:`` name means. Raises `InvalidArgument`."""
    scheme = text.partition(":")[0]
    if text.startswith(f"{scheme}://") or scheme != "nbd":
        return _parse_uri(text)
    return _parse_legacy(text)


def _parse_uri(text: str) -> Location:
    from urllib.parse import urlsplit

    scheme = text.partition(":")[0].lower()
    if scheme not in SCHEMES:
        raise InvalidArgument(f"'{scheme}' is not a scheme of NBD URIs")
    if not text.isprintable() or " " in text:
        raise _invalid(text, "it holds characters that URIs cannot have")
    transport, secure = SCHEMES[scheme]
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise _invalid(text, str(error)) from None
    if parts.fragment or "#" in text:
        raise _invalid(text, "a fragment means nothing here")
    if parts.username is not None:
        raise _invalid(text, "user names mean nothing here")
    parameters = _parameters(text, parts.query)
    export = check_export(_decoded(text, parts.path.removeprefix("/")))
    socket = parameters.pop("socket", None)
    if (socket is not None) != (transport == "unix"):
        raise _invalid(text, "'socket' is the parameter that 'nbd+unix' has, and needs")
    address: Address
    if socket is not None:
        if parts.netloc:
            raise _invalid(text, "a Unix socket is on no other host: write 'nbd+unix:///'")
        address = UnixAddress(_socket_path(socket))
    elif transport == "vsock":
        address = VsockAddress(_number(host or "", "CID"), _port(port))
    else:
        # `hostname` is in lower case; names of hosts are the same in any, but %zones are not.
        address = InetAddress(_decoded(text, host or "localhost"), _port(port))
    if parameters and not secure:
        raise _invalid(text, f"'{next(iter(parameters))}' is a parameter of 'nbds' alone")
    return Location(
        address,
        export,
        secure,
        parameters.get("tls-certificates"),
        parameters.get("tls-hostname"),
        parse_bool(_as_bool(parameters.get("tls-verify-peer", "true")), "tls-verify-peer"),
    )


def _as_bool(value: str) -> str:
    return {"0": "off", "1": "on"}.get(value, value)


def _parameters(text: str, query: str) -> dict[str, str]:
    from urllib.parse import unquote

    known = ("socket", *_TLS_PARAMETERS)
    found: dict[str, str] = {}
    for item in query.split("&") if query else ():
        name, _, value = item.partition("=")
        # libnbd escapes only what it must: a "+" is itself, as in paths.
        name = unquote(name)
        if name not in known:
            raise _invalid(text, f"there is no parameter '{name}', only {', '.join(known)}")
        if name in found:
            raise _invalid(text, f"the parameter '{name}' is given twice")
        found[name] = _decoded(text, value)
    return found


def _decoded(text: str, part: str) -> str:
    from urllib.parse import unquote

    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise _invalid(text, "its percent-encoded bytes are not UTF-8") from None


def _invalid(text: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"No valid URL specified: '{text}': {reason}")


def _parse_legacy(text: str) -> Location:
    place, found, export = text.removeprefix("nbd:").partition(":exportname=")
    if place.startswith("unix:"):
        return Location(UnixAddress(_socket_path(place[5:])), check_export(export))
    if not place:
        raise InvalidArgument("NBD server address missing")
    host, colon, port = place.rpartition(":")
    if not colon:
        raise InvalidArgument(f"error parsing address '{place}': it needs a port, nbd:host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return Location(
        InetAddress(host or "localhost", _number(port, "port")),
        check_export(export if found else ""),
    )


def check_export(name: object) -> str:
    """An export's name as the protocol can send it. Raises `InvalidArgument`."""
    if not isinstance(name, str):
        raise InvalidArgument("Invalid parameter type for 'export', expected: string")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"The export name {name!r} is not valid UTF-8") from None
    if length > wire.MAX_STRING:
        raise InvalidArgument("export name too long to send to server")
    if "\0" in name:
        raise InvalidArgument(f"The export name {name!r} has NUL characters in it")
    return name


def address_of(server: object) -> Address:
    """The address that QEMU's `SocketAddress` options describe. Raises `InvalidArgument`."""
    if not isinstance(server, dict):
        raise InvalidArgument("Invalid parameter type for 'server', expected: object")
    options = dict(server)
    kind = options.pop("type", None)
    make = _ADDRESSES.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise InvalidArgument(
            "Parameter 'type' is missing"
            if kind is None
            else f"Parameter 'type' does not accept value '{kind}'"
        )
    address = make(options)
    if options:
        raise InvalidArgument(f"Parameter '{next(iter(options))}' is unexpected")
    return address


def _inet(options: OptionTree) -> InetAddress:
    host = _text(options, "host")
    port = _number(options.pop("port", wire.DEFAULT_PORT), "port")
    wanted = {
        family
        for family, name in ((4, "ipv4"), (6, "ipv6"))
        if name in options and parse_bool(options.pop(name), f"server.{name}")
    }
    return InetAddress(host, port, wanted.pop() if len(wanted) == 1 else 0)


def _unix(options: OptionTree) -> UnixAddress:
    path = _text(options, "path")
    abstract = parse_bool(options.pop("abstract", False), "server.abstract")
    tight = parse_bool(options.pop("tight", True), "server.tight")
    if abstract and not tight:
        raise InvalidArgument("Abstract sockets are supported with 'tight' alone")
    return UnixAddress(_socket_path("\0" + path if abstract else path))


def _vsock(options: OptionTree) -> VsockAddress:
    return VsockAddress(
        _number(_text(options, "cid"), "server.cid"), _number(_text(options, "port"), "server.port")
    )


def _descriptor(options: OptionTree) -> DescriptorAddress:
    return DescriptorAddress(_number(_text(options, "str"), "server.str"))


_ADDRESSES: dict[str, Callable[[OptionTree], Address]] = {
    "inet": _inet,
    "unix": _unix,
    "vsock": _vsock,
    "fd": _descriptor,
}


def _text(options: OptionTree, name: str) -> str:
    value = options.pop(name, None)
    if value is None:
        raise InvalidArgument(f"Parameter '{name}' is missing")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InvalidArgument(f"Invalid parameter type for '{name}', expected: string")
    return str(value)


def _socket_path(path: str) -> str:
    """Raises `InvalidArgument` for what the system could not take as a socket's name."""
    import os

    name = path.removeprefix("\0")
    if not name or "\0" in name:
        raise InvalidArgument(f"'{path}' cannot be the name of a Unix socket")
    if len(os.fsencode(path)) > _PATH_MAX:
        raise InvalidArgument(
            f"UNIX socket path '{path}' is too long: path must be less than {_PATH_MAX + 1} bytes"
        )
    return path


def _port(number: int | None) -> int:
    return wire.DEFAULT_PORT if number is None else _number(number, "port")


def _number(value: object, what: str) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()):
        raise InvalidArgument(f"'{value}' is no number for '{what}'")
    number = int(text) if len(text) < 20 else 1 << 64
    if number > (65535 if what == "port" else 2**32 - 1):
        raise InvalidArgument(f"{text} is too large for '{what}'")
    return number
