# SPDX-License-Identifier: Apache-2.0
"""The server's side of the handshake: bytes in, bytes out, and at the end a choice of export.

    engine = ServerHandshake(offers)
    while True:
        while data := engine.outgoing():
            send(data)
        if engine.state != HAGGLING:
            break
        engine.receive(recv())

Source: "The NBD protocol", sections on fixed newstyle negotiation and TLS. A client can make the
engine keep no more than what it is given at once and `OPTION_LENGTH_MAX` bytes, and answer no more
than `OPTIONS_MAX` options; an option is answered when the answers before it were taken.
"""

from __future__ import annotations

from collections.abc import Callable

from blocklayer.nbd import wire
from blocklayer.nbd.offers import (
    EXTENDED,
    SIMPLE,
    STRUCTURED,
    Choice,
    Offer,
    Offers,
    matching_contexts,
)
from blocklayer.nbd.option_data import OptionReader, Refusal, require_empty, text_of

HAGGLING = "haggling"
STARTTLS = "starttls"
"""Send what is outgoing, then encrypt the connection and call `secured`."""
CHOSEN = "chosen"
"""Transmission begins with what `rest` holds."""
ENDED = "ended"
"""Send what is outgoing and close the connection; `problem` says what was wrong, if anything."""

TLS_OFF = "off"
TLS_REQUIRED = "required"
TLS_OFFERED = "offered"

OPTION_LENGTH_MAX = 64 * 1024
"""Bytes of an option's data that are looked at; longer ones are skipped and refused."""

OPTION_SKIP_MAX = wire.MAX_PAYLOAD
"""Bytes of an option's data that are worth being skipped."""

OPTIONS_MAX = 256
"""Options of one client; a real one sends about ten."""

CONTEXTS_MAX = 64
"""Contexts that one client may choose."""

LIST_MAX = 100_000
"""Exports told to one client."""

ANSWERS_MAX = 64 * 1024
"""Bytes of answers that wait for being taken; beyond them no option is looked at."""


class _Violation(Exception):
    """The client breaks a rule that no reply can answer."""


class ServerHandshake:
    """Negotiation with one client."""

    def __init__(self, offers: Offers, *, tls: str = TLS_OFF) -> None:
        self._offers = offers
        self._tls = tls
        self._secure = False
        self._received = bytearray()
        self._out = bytearray(
            wire.Greeting(
                magic=wire.MAGIC,
                style=wire.OPTION_MAGIC,
                flags=wire.FIXED_NEWSTYLE | wire.NO_ZEROES,
            ).pack()
        )
        self._flags_known = False
        self._pad = True
        self._skip = 0
        self._options = 0
        self._mode = SIMPLE
        self._contexts: dict[int, str] = {}
        self._contexts_of: str | None = None
        self.state = HAGGLING
        self.choice: Choice | None = None
        self.problem = ""
        self.shutting_down = False

    def outgoing(self) -> bytes:
        """What to send now; there may be more until it is empty."""
        data = bytes(self._out)
        self._out.clear()
        self._advance()
        return data

    @property
    def rest(self) -> bytes:
        """What the client has sent behind the option that began transmission."""
        return bytes(self._received)

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes of the client, cut anywhere."""
        self._received += data
        self._advance()

    def _advance(self) -> None:
        try:
            while self.state == HAGGLING and len(self._out) < ANSWERS_MAX and self._step():
                pass
        except _Violation as violation:
            self.problem = str(violation)
            self.state = ENDED

    def secured(self) -> None:
        """The connection is encrypted: negotiation begins anew, as the protocol wants."""
        self._secure = True
        self._mode = SIMPLE
        self._contexts, self._contexts_of = {}, None
        self.state = HAGGLING

    # --- reading what the client sends --------------------------------------------------------

    def _step(self) -> bool:
        """Take one piece of what was received; False if it is not complete."""
        if self._skip:
            dropped = min(self._skip, len(self._received))
            del self._received[:dropped]
            self._skip -= dropped
            return not self._skip
        if not self._flags_known:
            return self._take_flags()
        head = wire.OptionHeader
        if len(self._received) < head.SIZE:
            return False
        option = head.unpack_from(self._received)
        if option.magic != wire.OPTION_MAGIC:
            raise _Violation(f"client option has wrong magic number {option.magic:#x}")
        if option.length > OPTION_LENGTH_MAX:
            self._skip_option(option.option, option.length)
            return True
        if len(self._received) < head.SIZE + option.length:
            return False
        data = bytes(self._received[head.SIZE : head.SIZE + option.length])
        del self._received[: head.SIZE + option.length]
        self._count_option()
        self._answer(option.option, data)
        return True

    def _take_flags(self) -> bool:
        if len(self._received) < 4:
            return False
        flags = int.from_bytes(self._received[:4], "big")
        del self._received[:4]
        unknown = flags & ~(wire.FIXED_NEWSTYLE | wire.NO_ZEROES)
        if unknown:
            raise _Violation(f"unknown client flags {unknown:#x}")
        # A client without FIXED_NEWSTYLE may still send any option: servers may honour it.
        self._pad = not flags & wire.NO_ZEROES
        self._flags_known = True
        return True

    def _skip_option(self, option: int, length: int) -> None:
        if length > OPTION_SKIP_MAX or option == wire.OPT_EXPORT_NAME:
            raise _Violation(f"client option {_option_name(option)} is too long: {length} bytes")
        self._count_option()
        del self._received[: wire.OptionHeader.SIZE]
        self._skip = length
        words = f"Option data of {length} bytes is too long"
        self._reply(option, wire.REP_ERR_TOO_BIG, words.encode())

    def _count_option(self) -> None:
        self._options += 1
        if self._options > OPTIONS_MAX:
            raise _Violation(f"client sent more than {OPTIONS_MAX} options")

    # --- answering --------------------------------------------------------------------------------

    def _answer(self, option: int, data: bytes) -> None:
        try:
            if self._tls == TLS_REQUIRED and not self._secure:
                self._insist_on_tls(option)
            if self.shutting_down and option != wire.OPT_ABORT:
                raise Refusal(wire.REP_ERR_SHUTDOWN, "The server is shutting down")
            action = _ACTIONS.get(option)
            if action is None:
                raise Refusal(
                    wire.REP_ERR_UNSUP, f"Unsupported option {option} ({_option_name(option)})"
                )
            action(self, data)
        except Refusal as refusal:
            if option == wire.OPT_EXPORT_NAME:
                raise _Violation(refusal.words) from None  # it has no error reply
            self._reply(option, refusal.kind, wire.message(refusal.words))

    def _insist_on_tls(self, option: int) -> None:
        if option in (wire.OPT_STARTTLS, wire.OPT_ABORT):
            return
        raise Refusal(
            wire.REP_ERR_TLS_REQD,
            f"Option {option:#x} not permitted before TLS",
        )

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        head = wire.OptionReply(
            magic=wire.OPTION_REPLY_MAGIC, option=option, kind=kind, length=len(data)
        )
        self._out += head.pack()
        self._out += data

    def _export_name(self, data: bytes) -> None:
        offer = self._find(text_of(data, "export name"))
        self._out += wire.ExportReply(size=offer.size, flags=self._flags(offer)).pack()
        if self._pad:
            self._out += bytes(wire.EXPORT_NAME_PADDING)
        self._choose(offer)

    def _abort(self, data: bytes) -> None:
        self._reply(wire.OPT_ABORT, wire.REP_ACK)
        self.state = ENDED

    def _list(self, data: bytes) -> None:
        require_empty(data, "NBD_OPT_LIST")
        for name, description in self._offers.names()[:LIST_MAX]:
            encoded = name.encode()
            self._reply(
                wire.OPT_LIST,
                wire.REP_SERVER,
                len(encoded).to_bytes(4, "big") + encoded + description.encode(),
            )
        self._reply(wire.OPT_LIST, wire.REP_ACK)

    def _starttls(self, data: bytes) -> None:
        require_empty(data, "NBD_OPT_STARTTLS")
        if self._tls == TLS_OFF:
            raise Refusal(wire.REP_ERR_POLICY, "TLS not configured")
        if self._secure:
            raise Refusal(wire.REP_ERR_INVALID, "TLS has been started already")
        if self._received:
            # Somebody between client and server could have put it there, to be taken for a part
            # of what the client sends encrypted.
            raise _Violation("client sent plain text behind its request for TLS")
        self._reply(wire.OPT_STARTTLS, wire.REP_ACK)
        self.state = STARTTLS

    def _structured_reply(self, data: bytes) -> None:
        require_empty(data, "NBD_OPT_STRUCTURED_REPLY")
        if self._mode == EXTENDED:
            raise Refusal(wire.REP_ERR_EXT_HEADER_REQD, "extended headers already negotiated")
        if self._mode == STRUCTURED:
            raise Refusal(wire.REP_ERR_INVALID, "structured reply already negotiated")
        self._mode = STRUCTURED
        self._reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ACK)

    def _extended_headers(self, data: bytes) -> None:
        require_empty(data, "NBD_OPT_EXTENDED_HEADERS")
        if self._mode == EXTENDED:
            raise Refusal(wire.REP_ERR_INVALID, "extended headers already negotiated")
        self._mode = EXTENDED
        self._reply(wire.OPT_EXTENDED_HEADERS, wire.REP_ACK)

    def _info(self, data: bytes) -> None:
        self._tell(wire.OPT_INFO, data)

    def _go(self, data: bytes) -> None:
        self._choose(self._tell(wire.OPT_GO, data))

    def _tell(self, option: int, data: bytes) -> Offer:
        """Answer INFO and GO."""
        reader = OptionReader(data)
        name = reader.string("export name")
        wanted = {reader.number(2) for _ in range(reader.number(2))}
        reader.end()
        offer = self._find(name)
        if (
            option == wire.OPT_INFO
            and offer.block_minimum > 1
            and (wire.INFO_BLOCK_SIZE not in wanted)
        ):
            raise Refusal(
                wire.REP_ERR_BLOCK_SIZE_REQD,
                f"request NBD_INFO_BLOCK_SIZE to use this export: its minimum block size is"
                f" {offer.block_minimum}",
            )
        if wire.INFO_NAME in wanted:
            self._tell_text(option, wire.INFO_NAME, offer.name)
        if wire.INFO_DESCRIPTION in wanted and offer.description:
            self._tell_text(option, wire.INFO_DESCRIPTION, offer.description)
        self._reply(
            option,
            wire.REP_INFO,
            wire.BlockSizeInfo(
                kind=wire.INFO_BLOCK_SIZE,
                minimum=offer.block_minimum,
                preferred=offer.block_preferred,
                maximum=offer.block_maximum,
            ).pack(),
        )
        self._reply(
            option,
            wire.REP_INFO,
            wire.ExportInfo(
                kind=wire.INFO_EXPORT, size=offer.size, flags=self._flags(offer)
            ).pack(),
        )
        self._reply(option, wire.REP_ACK)
        return offer

    def _tell_text(self, option: int, kind: int, text: str) -> None:
        self._reply(option, wire.REP_INFO, kind.to_bytes(2, "big") + text.encode())

    def _list_contexts(self, data: bytes) -> None:
        name, queries = self._context_queries(data)
        for context in matching_contexts(self._find(name).contexts, queries, listing=True):
            self._tell_context(wire.OPT_LIST_META_CONTEXT, 0, context)
        self._reply(wire.OPT_LIST_META_CONTEXT, wire.REP_ACK)

    def _set_contexts(self, data: bytes) -> None:
        self._contexts, self._contexts_of = {}, None  # even if the new ones are refused
        name, queries = self._context_queries(data)
        offer = self._find(name)
        for context in matching_contexts(offer.contexts, queries, listing=False)[:CONTEXTS_MAX]:
            number = len(self._contexts) + 1
            self._contexts[number] = context
            self._tell_context(wire.OPT_SET_META_CONTEXT, number, context)
        self._contexts_of = offer.name
        self._reply(wire.OPT_SET_META_CONTEXT, wire.REP_ACK)

    def _context_queries(self, data: bytes) -> tuple[str, list[str]]:
        if self._mode == SIMPLE:
            raise Refusal(
                wire.REP_ERR_INVALID,
                "Structured replies must be negotiated before metadata contexts",
            )
        reader = OptionReader(data)
        name = reader.string("export name")
        queries = [reader.string("query") for _ in range(reader.number(4))]
        reader.end()
        return name, queries

    def _tell_context(self, option: int, number: int, name: str) -> None:
        self._reply(option, wire.REP_META_CONTEXT, number.to_bytes(4, "big") + name.encode())

    # --- the outcome ------------------------------------------------------------------------------

    def _find(self, name: str) -> Offer:
        offer = self._offers.find(name)
        if offer is None:
            raise Refusal(wire.REP_ERR_UNKNOWN, f"export '{name}' not present")
        return offer

    def _flags(self, offer: Offer) -> int:
        flags = offer.flags | wire.FLAG_HAS_FLAGS
        if self._mode != SIMPLE:
            flags |= wire.FLAG_SEND_DF
        if self._mode == EXTENDED and self._contexts and self._contexts_of == offer.name:
            flags |= wire.FLAG_BLOCK_STATUS_PAYLOAD
        return flags

    def _choose(self, offer: Offer) -> None:
        contexts = self._contexts if self._contexts_of == offer.name else {}
        self.choice = Choice(offer=offer, mode=self._mode, contexts=contexts)
        self.state = CHOSEN


_ACTIONS: dict[int, Callable[[ServerHandshake, bytes], None]] = {
    wire.OPT_EXPORT_NAME: ServerHandshake._export_name,
    wire.OPT_ABORT: ServerHandshake._abort,
    wire.OPT_LIST: ServerHandshake._list,
    wire.OPT_STARTTLS: ServerHandshake._starttls,
    wire.OPT_INFO: ServerHandshake._info,
    wire.OPT_GO: ServerHandshake._go,
    wire.OPT_STRUCTURED_REPLY: ServerHandshake._structured_reply,
    wire.OPT_LIST_META_CONTEXT: ServerHandshake._list_contexts,
    wire.OPT_SET_META_CONTEXT: ServerHandshake._set_contexts,
    wire.OPT_EXTENDED_HEADERS: ServerHandshake._extended_headers,
}


def _option_name(option: int) -> str:
    return wire.OPTION_NAMES.get(option, "<unknown>")
