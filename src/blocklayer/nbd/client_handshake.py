# SPDX-License-Identifier: Apache-2.0
"""The client's side of the handshake: from a greeting to an agreement on one export.

What is asked for, in this order, each a step that a server may decline:

    TLS                     declined: the end, never plain text instead
    extended headers        declined: structured replies; declined: simple ones
    metadata contexts       declined: the export's block status is not known
    GO                      not known to the server: LIST, to learn of a wrong name, and EXPORT_NAME

Source: "The NBD protocol", sections on newstyle and oldstyle negotiation. See `client_options` for
how the engine is driven.
"""

from __future__ import annotations

import errno

from blocklayer.base.errors import ProtocolError, RemoteError
from blocklayer.base.record import Record, fresh
from blocklayer.base.units import INT64_MAX
from blocklayer.nbd import wire
from blocklayer.nbd.client_options import (
    Greeted,
    Negotiation,
    Reply,
    counted,
    refusal,
    text_field,
    wrong,
)

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Final

    from blocklayer.nbd.client_options import Script

SIMPLE: Final = "simple"
STRUCTURED: Final = "structured"
EXTENDED: Final = "extended"

INFOS_MAX = 64
"""Pieces of information about one export; there are four kinds."""

CONTEXTS_MAX = 4096
"""Metadata contexts of one export: QEMU has one for each dirty bitmap."""

MINIMUM_MAX = 64 * 1024
"""Largest minimum block size there may be."""


class Wish(Record, frozen=True):
    """What a client wants.

    contexts     metadata contexts, if the server has them
    richest      the best shape of replies that is asked for
    """

    export: str = ""
    tls: bool = False
    contexts: tuple[str, ...] = (wire.BASE_ALLOCATION,)
    richest: str = EXTENDED


class ExportInfo(Record):
    """What a server tells of an export; bytes. Without block sizes, what the protocol assumes."""

    size: int = 0
    flags: int = 0
    told_block_sizes: bool = False
    block_minimum: int = 1
    block_preferred: int = 4096
    block_maximum: int = wire.MAX_PAYLOAD
    name: str | None = None
    """Its canonical one."""
    description: str | None = None


class Agreement(Record, frozen=True):
    """The outcome: transmission begins.

    mode      SIMPLE, STRUCTURED or EXTENDED: the shape of replies, and of requests
    contexts  metadata contexts by their ids
    secure    the connection is encrypted
    """

    info: ExportInfo
    mode: str
    contexts: dict[int, str] = fresh(factory=dict)
    secure: bool = False

    def has(self, flag: int) -> bool:
        """Whether a transmission flag is set."""
        return bool(self.info.flags & flag)


class Handshake(Negotiation):
    """Negotiation for transmission."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self.agreement: Agreement | None = None
        super().__init__(tls=wish.tls)

    def _negotiate(self) -> Script[None]:
        greeted = yield from self._greet()
        if greeted.oldstyle is not None:
            if self._wish.export:
                raise RemoteError("Server does not support non-empty export names", errno.EINVAL)
            size, flags = greeted.oldstyle
            self.agreement = Agreement(sized(ExportInfo(size, flags)), SIMPLE)
            return
        mode, contexts, info = SIMPLE, dict[int, str](), None
        if greeted.fixed:
            mode = yield from self._agree_on_mode(self._wish.richest)
            if mode != SIMPLE and self._wish.contexts:
                contexts = yield from self._set_contexts()
            info = yield from self._go()
        if info is None:
            contexts = {}  # they hold for what GO chooses
            if greeted.fixed:
                yield from self._look_for_export()
            info = yield from self._choose_by_name(greeted)
        self.agreement = Agreement(info, mode, contexts, self._tls)

    def _agree_on_mode(self, richest: str) -> Script[str]:
        if richest == EXTENDED:
            reply = yield from self._single(wire.OPT_EXTENDED_HEADERS)
            if reply.kind == wire.REP_ACK:
                return EXTENDED
        if richest != SIMPLE:
            reply = yield from self._single(wire.OPT_STRUCTURED_REPLY)
            if reply.kind == wire.REP_ACK:
                return STRUCTURED
        return SIMPLE

    def _set_contexts(self) -> Script[dict[int, str]]:
        """Choose metadata contexts by exact names; the ids of those that the server has."""
        wanted = self._wish.contexts
        data = context_queries(self._wish.export, wanted)
        option = wire.OPT_SET_META_CONTEXT
        found = yield from self._several(option, wire.REP_META_CONTEXT, data)
        if isinstance(found, Reply):
            return {}  # GO tells the reason if it is a wrong name
        contexts: dict[int, str] = {}
        for number, name in map(parse_context, found):
            if name not in wanted:
                raise wrong(f"it chose a metadata context that was not asked for: {name!r}")
            if number in contexts or name in contexts.values():
                raise wrong(f"it chose the metadata context {name!r} twice, or its id {number}")
            contexts[number] = name
        return contexts

    def _accept(self, option: int, count: int, data: bytes) -> None:
        limit = {
            wire.OPT_SET_META_CONTEXT: len(self._wish.contexts),
            wire.OPT_GO: INFOS_MAX,
        }.get(option)
        if limit is not None and count >= limit:
            raise wrong(f"it answers {wire.OPTION_NAMES[option]} by more than {limit} replies")

    def _go(self) -> Script[ExportInfo | None]:
        """Choose the export; None if the server does not know how."""
        found = yield from self._several(
            wire.OPT_GO, wire.REP_INFO, info_request(self._wish.export)
        )
        if isinstance(found, Reply):
            if found.kind == wire.REP_ERR_UNSUP:
                return None
            raise refusal(wire.OPT_GO, found)
        return parse_infos(found)

    def _look_for_export(self) -> Script[None]:
        """EXPORT_NAME has no error reply: see whether the server lists the name."""
        option, wanted = wire.OPT_LIST, self._wish.export.encode()
        self._ask(option)
        listed = False
        for _ in range(LISTED_MAX):
            reply = yield from self._read(option)
            if reply.is_error:
                return  # a server need not tell
            if reply.kind == wire.REP_ACK:
                if not listed and wanted:
                    raise RemoteError(
                        f"Requested export not available\nserver lists no '{self._wish.export}'",
                        errno.ENOENT,
                    )
                return
            if reply.kind != wire.REP_SERVER:
                raise self._unexpected(option, reply.kind)
            listed = listed or parse_listed(reply.data)[0].encode() == wanted
        raise wrong(f"it lists more than {LISTED_MAX} exports")

    def _choose_by_name(self, greeted: Greeted) -> Script[ExportInfo]:
        self._ask(wire.OPT_EXPORT_NAME, self._wish.export.encode())
        answer = wire.ExportReply.unpack_from((yield wire.ExportReply.SIZE))
        if greeted.zeroes:
            yield wire.EXPORT_NAME_PADDING
        return sized(ExportInfo(answer.size, answer.flags))


LISTED_MAX = 100_000
"""Exports of one server that are looked at."""


# --- fields of options, for every negotiation ---------------------------------------------------


def info_request(export: str) -> bytes:
    """The data of INFO and GO: tell everything there is."""
    kinds = (wire.INFO_NAME, wire.INFO_DESCRIPTION, wire.INFO_BLOCK_SIZE)
    return counted(export) + b"".join(n.to_bytes(2, "big") for n in (len(kinds), *kinds))


def context_queries(export: str, queries: tuple[str, ...]) -> bytes:
    """The data of SET_META_CONTEXT and LIST_META_CONTEXT."""
    return counted(export) + len(queries).to_bytes(4, "big") + b"".join(map(counted, queries))


def parse_context(data: bytes) -> tuple[int, str]:
    """(id, name) of a metadata context."""
    if len(data) < 5:
        raise wrong(f"a metadata context of {len(data)} bytes is too short")
    return int.from_bytes(data[:4], "big"), text_field(data[4:], "a metadata context's name")


def parse_listed(data: bytes) -> tuple[str, str]:
    """(name, description) of a listed export."""
    length = int.from_bytes(data[:4], "big")
    if len(data) < 4 or length > len(data) - 4:
        raise wrong("the name of a listed export reaches beyond its reply")
    name = text_field(data[4 : 4 + length], "an export's name")
    return name, text_field(data[4 + length :], "an export's description")


def parse_infos(replies: list[bytes]) -> ExportInfo:
    """What the replies to INFO or GO tell. Raises `ProtocolError`."""
    info = ExportInfo()
    known = False
    for data in replies:
        kind = int.from_bytes(data[:2], "big")
        if len(data) < 2:
            raise wrong(f"a piece of information of {len(data)} bytes is too short")
        if kind == wire.INFO_EXPORT:
            _require_length(data, wire.ExportInfo.SIZE, "NBD_INFO_EXPORT")
            found = wire.ExportInfo.unpack_from(data)
            info.size, info.flags, known = found.size, found.flags, True
        elif kind == wire.INFO_BLOCK_SIZE:
            _require_length(data, wire.BlockSizeInfo.SIZE, "NBD_INFO_BLOCK_SIZE")
            _take_block_sizes(info, wire.BlockSizeInfo.unpack_from(data))
        elif kind == wire.INFO_NAME:
            info.name = text_field(data[2:], "an export's canonical name")
        elif kind == wire.INFO_DESCRIPTION:
            info.description = text_field(data[2:], "an export's description")
    if not known:
        raise wrong("it never told the export's size: NBD_INFO_EXPORT is missing")
    return sized(info)


def _require_length(data: bytes, length: int, what: str) -> None:
    if len(data) != length:
        raise wrong(f"{what} has {len(data)} bytes instead of {length}")


def _take_block_sizes(info: ExportInfo, told: wire.BlockSizeInfo) -> None:
    smallest, preferred, largest = told.minimum, told.preferred, told.maximum
    if not _is_power_of_2(smallest) or smallest > MINIMUM_MAX:
        raise wrong(
            f"server minimum block size {smallest} is not a power of two up to {MINIMUM_MAX}"
        )
    if not _is_power_of_2(preferred) or preferred < smallest:
        raise wrong(
            f"server preferred block size {preferred} is not a power of two from {smallest} on"
        )
    unlimited = 0xFFFFFFFF
    if largest < smallest or (largest != unlimited and largest % smallest):
        raise wrong(
            f"server maximum block size {largest} is not a multiple of its minimum {smallest}"
        )
    info.told_block_sizes = True
    info.block_minimum, info.block_preferred, info.block_maximum = smallest, preferred, largest


def _is_power_of_2(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def sized(info: ExportInfo) -> ExportInfo:
    """The same information, if the size makes sense. Raises `ProtocolError`."""
    problem: ProtocolError | None = None
    if info.size > INT64_MAX:
        problem = wrong(f"export length {info.size} is too large")
    elif info.size % info.block_minimum:
        problem = wrong(
            f"export size {info.size} is not multiple of minimum block size {info.block_minimum}"
        )
    if problem is not None:
        raise problem
    return info
