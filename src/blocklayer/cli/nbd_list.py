# SPDX-License-Identifier: Apache-2.0
"""`blk nbd --list`: what another server exports, in qemu-nbd's words."""

from __future__ import annotations

from blocklayer.base.errors import BlocklayerError
from blocklayer.cli.failures import Failure
from blocklayer.cli.output import print_json
from blocklayer.cli.parsing import Arguments, wants_json
from blocklayer.nbd.client_list import Listed, Listing, flag_names, list_exports

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.nbd.client_connect import Encryption
    from blocklayer.nbd.uri import Location

_FILE_OPTIONS = ("export-name", "description", "offset", "bitmap", "allocation-depth")
_EXPORT_OPTIONS = ("tls-authz", "metrics")


def run_list(arguments: Arguments) -> int:
    """The command, with --list."""
    if arguments.names:
        raise Failure("List mode is incompatible with a file name")
    if any(key in arguments for key in _FILE_OPTIONS):
        raise Failure("List mode is incompatible with per-device settings")
    if "fork" in arguments:
        raise Failure("List mode is incompatible with forking")
    if any(key in arguments for key in _EXPORT_OPTIONS):
        raise Failure("List mode is incompatible with exporting settings")
    location = _location(arguments)
    listing = list_exports(location, _encryption(arguments, location))
    if wants_json(arguments):
        print_json({"exports": [_members(listed) for listed in listing.exports]})
    else:
        _print(listing)
    return 0


def _location(arguments: Arguments) -> Location:
    from blocklayer.cli.nbd import addresses_of
    from blocklayer.export.listen import InetAddress, UnixAddress
    from blocklayer.nbd import uri

    address = addresses_of(arguments)[0]
    hostname = arguments.last("tls-hostname") or None
    if isinstance(address, UnixAddress):
        return uri.Location(uri.UnixAddress(address.path), tls_hostname=hostname)
    if not isinstance(address, InetAddress):
        raise Failure("List mode is incompatible with socket activation")
    host = arguments.last("bind", "localhost")
    return uri.Location(uri.InetAddress(host, address.port), tls_hostname=hostname)


def _encryption(arguments: Arguments, location: Location) -> Encryption | None:
    name = arguments.optional("tls-creds")
    if name is None:
        return None
    from blocklayer.core import objects
    from blocklayer.nbd import tls
    from blocklayer.nbd.client_connect import encryption

    try:
        found, password = objects.tls_credentials(name)
        creds = tls.credentials(
            found.kind, found.properties, endpoint=tls.CLIENT, password=password
        )
    except BlocklayerError as error:
        raise Failure(f"Failed to get TLS creds: {error}") from None
    return encryption(location, creds)


def _print(listing: Listing) -> None:
    print(f"exports available: {len(listing.exports)}")
    for listed in listing.exports:
        print(f" export: '{listed.name}'")
        if listed.description:
            print(f"  description: {listed.description}")
        if listed.problem:
            print(f"  error: {listed.problem}")
        info = listed.info
        if info is None:
            continue
        print(f"  size:  {info.size}")
        names = "".join(f" {name}" for name in flag_names(info.flags))
        print(f"  flags: {info.flags:#x} ({names} )")
        if info.told_block_sizes:
            print(f"  min block: {info.block_minimum}")
            print(f"  opt block: {info.block_preferred}")
            print(f"  max block: {info.block_maximum}")
        if listed.contexts is not None:
            print(f"  available meta contexts: {len(listed.contexts)}")
            for context in listed.contexts:
                print(f"   {context}")


def _members(listed: Listed) -> dict[str, Any]:
    members: dict[str, Any] = {"name": listed.name}
    if listed.description:
        members["description"] = listed.description
    if listed.problem:
        members["error"] = listed.problem
    info = listed.info
    if info is not None:
        members |= {"size": info.size, "flags": flag_names(info.flags)}
        if info.told_block_sizes:
            members |= {
                "min-block": info.block_minimum,
                "opt-block": info.block_preferred,
                "max-block": info.block_maximum,
            }
    if listed.contexts is not None:
        members["contexts"] = listed.contexts
    return members
