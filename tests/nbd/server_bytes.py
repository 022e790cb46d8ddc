# SPDX-License-Identifier: Apache-2.0
"""What NBD servers send, put together by hand: right or wrong, as a test wants it."""

from blocklayer.nbd import wire

FIXED = wire.FIXED_NEWSTYLE | wire.NO_ZEROES
MiB = 1024 * 1024

FLAGS = (
    wire.FLAG_HAS_FLAGS
    | wire.FLAG_SEND_FLUSH
    | wire.FLAG_SEND_FUA
    | wire.FLAG_SEND_TRIM
    | wire.FLAG_SEND_WRITE_ZEROES
    | wire.FLAG_SEND_FAST_ZERO
)


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


def greeting(flags: int = FIXED) -> bytes:
    return wire.Greeting(magic=wire.MAGIC, style=wire.OPTION_MAGIC, flags=flags).pack()


def oldstyle(size: int = MiB, flags: int = FLAGS) -> bytes:
    head = number(wire.MAGIC, 8) + number(wire.OLDSTYLE_MAGIC, 8)
    return head + number(size, 8) + number(flags, 4) + bytes(124)


def option(asked: int, kind: int = wire.REP_ACK, data: bytes = b"") -> bytes:
    head = wire.OptionReply(
        magic=wire.OPTION_REPLY_MAGIC, option=asked, kind=kind, length=len(data)
    )
    return head.pack() + data


def refused(asked: int, kind: int = wire.REP_ERR_UNSUP, words: str = "") -> bytes:
    return option(asked, kind, words.encode())


def info_export(size: int = MiB, flags: int = FLAGS) -> bytes:
    return wire.ExportInfo(kind=wire.INFO_EXPORT, size=size, flags=flags).pack()


def info_blocks(minimum: int = 1, preferred: int = 4096, maximum: int = 32 * MiB) -> bytes:
    return wire.BlockSizeInfo(
        kind=wire.INFO_BLOCK_SIZE, minimum=minimum, preferred=preferred, maximum=maximum
    ).pack()


def info_text(kind: int, text: str) -> bytes:
    return number(kind, 2) + text.encode()


def infos(asked: int, *pieces: bytes) -> bytes:
    return b"".join(option(asked, wire.REP_INFO, piece) for piece in pieces) + option(asked)


def context(name: str = wire.BASE_ALLOCATION, identity: int = 1, *, listing: bool = False) -> bytes:
    asked = wire.OPT_LIST_META_CONTEXT if listing else wire.OPT_SET_META_CONTEXT
    return option(asked, wire.REP_META_CONTEXT, number(identity, 4) + name.encode())


def listed(name: str, description: str = "") -> bytes:
    data = number(len(name.encode()), 4) + name.encode() + description.encode()
    return option(wire.OPT_LIST, wire.REP_SERVER, data)


def mode(which: str) -> bytes:
    """Consent to extended headers, to structured replies, or to neither."""
    if which == "extended":
        return option(wire.OPT_EXTENDED_HEADERS)
    no = refused(wire.OPT_EXTENDED_HEADERS)
    if which == "structured":
        return no + option(wire.OPT_STRUCTURED_REPLY)
    return no + refused(wire.OPT_STRUCTURED_REPLY)


def negotiation(which: str = "structured", *pieces: bytes, export: bytes = b"") -> bytes:
    """All of a server's handshake up to transmission."""
    contexts = b""
    if which != "simple":
        contexts = context() + option(wire.OPT_SET_META_CONTEXT)
    found = infos(wire.OPT_GO, export or info_export(), *pieces)
    return greeting() + mode(which) + contexts + found


# --- transmission -------------------------------------------------------------------------------


def simple(cookie: int = 1, error: int = 0, data: bytes = b"") -> bytes:
    head = wire.SimpleReply(magic=wire.SIMPLE_REPLY_MAGIC, error=error, cookie=cookie)
    return head.pack() + data


def chunk(
    kind: int = wire.REPLY_NONE, data: bytes = b"", *, cookie: int = 1, done: bool = True
) -> bytes:
    head = wire.ChunkHeader(
        magic=wire.STRUCTURED_REPLY_MAGIC,
        flags=int(done),
        kind=kind,
        cookie=cookie,
        length=len(data),
    )
    return head.pack() + data


def extended(
    kind: int = wire.REPLY_NONE,
    data: bytes = b"",
    *,
    cookie: int = 1,
    done: bool = True,
    offset: int = 0,
) -> bytes:
    head = wire.ExtendedChunkHeader(
        magic=wire.EXTENDED_REPLY_MAGIC,
        flags=int(done),
        kind=kind,
        cookie=cookie,
        offset=offset,
        length=len(data),
    )
    return head.pack() + data


def content(offset: int, data: bytes) -> bytes:
    return number(offset, 8) + data


def hole(offset: int, length: int) -> bytes:
    return number(offset, 8) + number(length, 4)


def error(code: int = wire.EIO, words: str = "", offset: int | None = None) -> bytes:
    text = words.encode()
    tail = b"" if offset is None else number(offset, 8)
    return number(code, 4) + number(len(text), 2) + text + tail


def status(*pairs: tuple[int, int], identity: int = 1) -> bytes:
    numbers = (value for pair in pairs for value in pair)
    return number(identity, 4) + b"".join(number(value, 4) for value in numbers)


def wide_status(*pairs: tuple[int, int], count: int | None = None) -> bytes:
    numbers = (value for pair in pairs for value in pair)
    head = number(1, 4) + number(len(pairs) if count is None else count, 4)
    return head + b"".join(number(value, 8) for value in numbers)
