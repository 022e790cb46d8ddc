# SPDX-License-Identifier: Apache-2.0
"""What every negotiation of a client is made of: options asked, replies read, refusals named.

A negotiation is a generator that asks for bytes by yielding their number. Whoever drives it may
have received them cut anywhere, and with others attached:

    engine = Handshake(wish)                      or another Negotiation
    while engine.state != DONE:
        send(engine.outgoing())
        if engine.state == STARTTLS:              encrypt the connection, then
            engine.secured()
        else:
            engine.receive(recv())                raises ProtocolError, RemoteError

A server can make an engine keep no more than one reply of `REPLY_MAX` bytes and what its result
is bounded to, and read no more than `REPLIES_MAX` replies.
"""

from __future__ import annotations

import errno
from collections.abc import Generator

from blocklayer.base.errors import ProtocolError, RemoteError
from blocklayer.base.record import Record
from blocklayer.nbd import wire

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Final, TypeAlias, TypeVar

    T = TypeVar("T")
    Script: TypeAlias = Generator[int, bytes, T]

HAGGLING: Final = "haggling"
STARTTLS: Final = "starttls"
DONE: Final = "done"

REPLY_MAX: Final = 4 + 2 * wire.MAX_STRING
"""Bytes of the longest reply there is: an export's name and its description."""

REPLIES_MAX: Final = 300_000
"""Replies to one option: the longest listing, and an end to a server that has none."""

_SECURE: Final = -1
"""Asked for in place of bytes: an encrypted connection."""


class Reply(Record, frozen=True):
    """A reply to an option: its kind (`wire.REP_…`) and its data."""

    kind: int
    data: bytes

    @property
    def is_error(self) -> bool:
        """Whether the option was refused."""
        return bool(self.kind & wire.REP_ERROR)


def wrong(rule: str) -> ProtocolError:
    """The error for a server that breaks a rule."""
    return ProtocolError(f"The server broke the NBD protocol: {rule}")


def printable(data: bytes) -> str:
    """A server's text for people: what moves a terminal's cursor is escaped."""
    text = data.decode("utf-8", "replace").strip("\n")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_QUOTED_NAMES = {
    wire.OPT_EXPORT_NAME: "export name",
    wire.OPT_ABORT: "abort",
    wire.OPT_LIST: "list",
    wire.OPT_STARTTLS: "starttls",
    wire.OPT_INFO: "info",
    wire.OPT_GO: "go",
    wire.OPT_STRUCTURED_REPLY: "structured reply",
    wire.OPT_LIST_META_CONTEXT: "list meta context",
    wire.OPT_SET_META_CONTEXT: "set meta context",
    wire.OPT_EXTENDED_HEADERS: "extended headers",
}

# As QEMU's users know them.
_REFUSALS = {
    wire.REP_ERR_UNSUP: ("Unsupported option type {}", errno.ENOTSUP),
    wire.REP_ERR_POLICY: ("Denied by server for option {}", errno.EACCES),
    wire.REP_ERR_INVALID: ("Invalid parameters for option {}", errno.EINVAL),
    wire.REP_ERR_PLATFORM: ("Server lacks support for option {}", errno.ENOTSUP),
    wire.REP_ERR_TLS_REQD: ("TLS negotiation required before option {}", errno.EACCES),
    wire.REP_ERR_UNKNOWN: ("Requested export not available", errno.ENOENT),
    wire.REP_ERR_SHUTDOWN: ("Server shutting down before option {}", errno.ESHUTDOWN),
    wire.REP_ERR_BLOCK_SIZE_REQD: ("Server requires INFO_BLOCK_SIZE for option {}", errno.EINVAL),
    wire.REP_ERR_TOO_BIG: ("Request too large for option {}", errno.EINVAL),
    wire.REP_ERR_EXT_HEADER_REQD: ("Server requires extended headers for option {}", errno.ENOTSUP),
}


def refusal(option: int, reply: Reply) -> RemoteError:
    """The error for an option that was refused, with what the server says of it."""
    template, code = _REFUSALS.get(
        reply.kind, ("Unknown error code when asking for option {}", errno.EINVAL)
    )
    text = template.format(f"{option} ({_QUOTED_NAMES.get(option, 'unknown')})")
    if reply.kind == wire.REP_ERR_TLS_REQD:
        text += "\nDid you forget a valid tls-creds?"
    if reply.data:
        text += f"\nserver reported: {printable(reply.data)}"
    return RemoteError(text, code)


class Greeted(Record, frozen=True):
    """How a server introduced itself; an oldstyle one tells size and flags at once."""

    fixed: bool
    zeroes: bool
    """Answers to EXPORT_NAME are padded."""
    oldstyle: tuple[int, int] | None = None


class Negotiation:
    """Base of engines: bytes in, bytes out."""

    def __init__(self, *, tls: bool = False) -> None:
        self._tls = tls
        self._received = bytearray()
        self._out = bytearray()
        self._script = self._negotiate()
        self.state = HAGGLING
        self._wanted = next(self._script)

    def _negotiate(self) -> Script[None]:
        raise NotImplementedError

    def outgoing(self) -> bytes:
        """What to send now."""
        data = bytes(self._out)
        self._out.clear()
        return data

    @property
    def rest(self) -> bytes:
        """What was received behind the end of the negotiation."""
        return bytes(self._received)

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes of the server, cut anywhere. Raises `ProtocolError`, `RemoteError`."""
        self._received += data
        while self.state == HAGGLING and len(self._received) >= self._wanted:
            piece = bytes(self._received[: self._wanted])
            del self._received[: self._wanted]
            self._resume(piece)

    def ended(self) -> RemoteError:
        """The error for a server that closed the connection in the middle of the negotiation.

        The protocol allows that: a server may be going down, or not know an export's name.
        """
        return RemoteError(
            "The server closed the connection during the negotiation", errno.ECONNRESET
        )

    def secured(self) -> None:
        """The connection is encrypted."""
        self.state = HAGGLING
        self._resume(b"")

    def _resume(self, piece: bytes) -> None:
        try:
            self._wanted = self._script.send(piece)
        except StopIteration:
            self.state = DONE
            return
        if self._wanted == _SECURE:
            if self._received:
                # Somebody between us and the server could have put it there, to be taken for a
                # part of what the server sends encrypted.
                raise wrong("it sent plain text behind its consent to TLS")
            self.state = STARTTLS

    # --- greeting -------------------------------------------------------------------------------

    def _greet(self) -> Script[Greeted]:
        """Read the server's greeting, answer it, and go over to TLS if that is wanted."""
        magic = int.from_bytes((yield 8), "big")
        if magic != wire.MAGIC:
            raise wrong(f"Bad initial magic received: {magic:#018x}, so it may be no NBD server")
        style = int.from_bytes((yield 8), "big")
        if style == wire.OLDSTYLE_MAGIC:
            return (yield from self._greet_oldstyle())
        if style != wire.OPTION_MAGIC:
            raise wrong(f"Bad server magic received: {style:#018x}")
        flags = int.from_bytes((yield 2), "big")
        fixed, no_zeroes = bool(flags & wire.FIXED_NEWSTYLE), bool(flags & wire.NO_ZEROES)
        answer = flags & (wire.FIXED_NEWSTYLE | wire.NO_ZEROES)
        self._out += answer.to_bytes(4, "big")
        if self._tls:
            if not fixed:
                raise RemoteError("Server does not support STARTTLS", errno.ENOTSUP)
            yield from self._start_tls()
        return Greeted(fixed, not no_zeroes)

    def _greet_oldstyle(self) -> Script[Greeted]:
        if self._tls:
            raise RemoteError("Server does not support STARTTLS", errno.ENOTSUP)
        size = int.from_bytes((yield 8), "big")
        flags = int.from_bytes((yield 4), "big")
        yield wire.EXPORT_NAME_PADDING
        if flags >> 16:
            raise wrong(f"Unexpected export flags {flags:#x}")
        return Greeted(False, True, (size, flags))

    def _start_tls(self) -> Script[None]:
        reply = yield from self._single(wire.OPT_STARTTLS)
        if reply.is_error:
            if reply.kind == wire.REP_ERR_UNSUP:
                raise RemoteError("Server does not support STARTTLS", errno.ENOTSUP)
            raise refusal(wire.OPT_STARTTLS, reply)
        yield _SECURE

    # --- options --------------------------------------------------------------------------------

    def _ask(self, option: int, data: bytes = b"") -> None:
        head = wire.OptionHeader(magic=wire.OPTION_MAGIC, option=option, length=len(data))
        self._out += head.pack() + data

    def _read(self, option: int) -> Script[Reply]:
        """One reply to an option."""
        head = wire.OptionReply.unpack_from((yield wire.OptionReply.SIZE))
        if head.magic != wire.OPTION_REPLY_MAGIC:
            raise wrong(f"Unexpected option reply magic {head.magic:#x}")
        if head.option != option:
            raise wrong(f"Unexpected option type {head.option}, expected {option}")
        name = wire.OPTION_NAMES.get(option, str(option))
        if head.length > (wire.MAX_STRING if head.kind & wire.REP_ERROR else REPLY_MAX):
            raise wrong(f"its reply to {name} has {head.length} bytes, which is too long")
        data = yield head.length
        if head.kind == wire.REP_ACK and data:
            raise wrong(f"its NBD_REP_ACK to {name} carries {len(data)} bytes")
        return Reply(head.kind, data)

    def _single(self, option: int) -> Script[Reply]:
        """Ask for what is answered by one reply: consent, or an error."""
        self._ask(option)
        reply = yield from self._read(option)
        if reply.kind != wire.REP_ACK and not reply.is_error:
            raise self._unexpected(option, reply.kind)
        return reply

    def _several(self, option: int, kind: int, data: bytes = b"") -> Script[list[bytes] | Reply]:
        """Ask for what is answered by replies of a kind, then by consent; or by an error.

        Each reply is looked at by `_accept` before the next one is read, which bounds them.
        """
        self._ask(option, data)
        found: list[bytes] = []
        for _ in range(REPLIES_MAX):
            reply = yield from self._read(option)
            if reply.kind == wire.REP_ACK:
                return found
            if reply.is_error:
                return reply
            if reply.kind != kind:
                raise self._unexpected(option, reply.kind)
            self._accept(option, len(found), reply.data)
            found.append(reply.data)
        raise wrong(f"it answers {wire.OPTION_NAMES[option]} by more than {REPLIES_MAX} replies")

    def _accept(self, option: int, count: int, data: bytes) -> None:
        """Another reply has come behind `count` others: raise if that is too much."""

    @staticmethod
    def _unexpected(option: int, kind: int) -> ProtocolError:
        shown = wire.REPLY_NAMES.get(kind, f"reply type {kind}")
        return wrong(f"it answers {wire.OPTION_NAMES[option]} by {shown}")


def text_field(data: bytes, what: str) -> str:
    """A string of a server: bounded, UTF-8, without NUL. Raises `ProtocolError`."""
    if len(data) > wire.MAX_STRING:
        raise wrong(f"{what} has {len(data)} bytes, more than {wire.MAX_STRING}")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise wrong(f"{what} is not valid UTF-8") from None
    if "\0" in text:
        raise wrong(f"{what} has NUL characters in it")
    return text


def counted(text: str) -> bytes:
    """A string behind its length, as options carry it."""
    data = text.encode()
    return len(data).to_bytes(4, "big") + data
