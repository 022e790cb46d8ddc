# SPDX-License-Identifier: Apache-2.0
"""What a server has to offer: its exports with their sizes, flags, block sizes and contexts.

    LIST -> for each export INFO and LIST_META_CONTEXT -> ABORT

A server that tells nothing of an export (it is not there any more, or the server is old) has it
listed by its name alone.
"""

from __future__ import annotations

import errno
import time

from blocklayer.base.errors import RemoteError
from blocklayer.base.record import Record
from blocklayer.base.units import MiB
from blocklayer.nbd import wire
from blocklayer.nbd.client_connect import CONNECT_SECONDS, Encryption, negotiate
from blocklayer.nbd.client_handshake import (
    CONTEXTS_MAX,
    EXTENDED,
    INFOS_MAX,
    LISTED_MAX,
    SIMPLE,
    STRUCTURED,
    ExportInfo,
    context_queries,
    info_request,
    parse_context,
    parse_infos,
    parse_listed,
    sized,
)
from blocklayer.nbd.client_options import Negotiation, Reply, refusal, wrong
from blocklayer.nbd.uri import Location

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.nbd.client_options import Script

LISTING_MAX = 16 * MiB
"""Bytes of names and descriptions that a server may make us keep."""


class Listed(Record):
    """An export of a server.

    info      None if the server tells no more than the name
    contexts  its metadata contexts; None if the server does not tell
    problem   why the server does not tell, if it says so
    """

    name: str
    description: str = ""
    info: ExportInfo | None = None
    contexts: list[str] | None = None
    problem: str = ""


class Listing(Record):
    """All exports, and the richest replies that the server offers (`client_handshake`)."""

    exports: list[Listed]
    mode: str = SIMPLE
    oldstyle: bool = False


class Survey(Negotiation):
    """Negotiation that only looks; see `client_options` for how it is driven."""

    def __init__(self, *, tls: bool = False) -> None:
        self.listing = Listing([])
        self._kept = 0
        super().__init__(tls=tls)

    def _negotiate(self) -> Script[None]:
        listing = self.listing
        greeted = yield from self._greet()
        if greeted.oldstyle is not None:
            size, flags = greeted.oldstyle
            listing.oldstyle = True
            listing.exports.append(Listed("", info=sized(ExportInfo(size, flags))))
            return
        if not greeted.fixed:
            raise RemoteError("Server does not support export lists", errno.ENOTSUP)
        listing.mode = yield from self._find_mode()
        found = yield from self._several(wire.OPT_LIST, wire.REP_SERVER)
        if isinstance(found, Reply):
            raise refusal(wire.OPT_LIST, found)
        listing.exports += [Listed(*parse_listed(data)) for data in found]
        for export in listing.exports:
            yield from self._describe(export)
        self._ask(wire.OPT_ABORT)

    def _find_mode(self) -> Script[str]:
        for option, mode in (
            (wire.OPT_EXTENDED_HEADERS, EXTENDED),
            (wire.OPT_STRUCTURED_REPLY, STRUCTURED),
        ):
            reply = yield from self._single(option)
            if reply.kind == wire.REP_ACK:
                return mode
        return SIMPLE

    def _describe(self, export: Listed) -> Script[None]:
        request = info_request(export.name)
        found = yield from self._several(wire.OPT_INFO, wire.REP_INFO, request)
        if isinstance(found, Reply):
            export.problem = str(refusal(wire.OPT_INFO, found))
            return
        export.info = parse_infos(found)
        if export.info.description:
            export.description = export.info.description
        if self.listing.mode == SIMPLE:
            return
        option = wire.OPT_LIST_META_CONTEXT
        found = yield from self._several(
            option, wire.REP_META_CONTEXT, context_queries(export.name, ())
        )
        if not isinstance(found, Reply):
            export.contexts = [parse_context(data)[1] for data in found]

    def _accept(self, option: int, count: int, data: bytes) -> None:
        limit = {
            wire.OPT_LIST: LISTED_MAX,
            wire.OPT_INFO: INFOS_MAX,
            wire.OPT_LIST_META_CONTEXT: CONTEXTS_MAX,
        }[option]
        self._kept += len(data)
        if count >= limit or self._kept > LISTING_MAX:
            raise wrong(f"its answers to {wire.OPTION_NAMES[option]} have no end")


def list_exports(location: Location, encrypted: Encryption | None = None) -> Listing:
    """Ask a server. Raises `RemoteError`, `ProtocolError`. The location's export does not matter.

    For `encrypted` see `client_connect.encryption`.
    """
    engine = Survey(tls=encrypted is not None)
    connected = negotiate(location, encrypted, engine, time.monotonic() + CONNECT_SECONDS)
    connected.close()
    return engine.listing


def flag_names(flags: int) -> list[str]:
    """The transmission flags as `qemu-nbd --list` names them."""
    return [name for flag, name in wire.FLAG_NAMES.items() if flags & flag]
