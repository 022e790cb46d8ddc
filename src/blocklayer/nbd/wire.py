# SPDX-License-Identifier: Apache-2.0
"""Numbers and structures of the NBD protocol, for both sides.

Source: "The NBD protocol" (`doc/proto.md` of NetworkBlockDevice/nbd), with its extension of 64-bit
(*extended*) headers. All integers are big-endian.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

from blocklayer.base.buffers import Buffer
from blocklayer.base.layout import Layout, u16, u32, u64

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Final

DEFAULT_PORT: Final = 10809

MAX_STRING: Final = 4096
"""Bytes of a name, a description, a query or a message."""

MAX_PAYLOAD: Final = 32 * 1024 * 1024
"""Bytes that one request may carry or ask for, unless something else is advertised."""

# --- handshake ----------------------------------------------------------------------------------

MAGIC: Final = 0x4E42444D41474943
"""NBDMAGIC: the first bytes of every server."""
OPTION_MAGIC: Final = 0x49484156454F5054
"""IHAVEOPT: newstyle, and every option of a client."""
OLDSTYLE_MAGIC: Final = 0x00420281861253
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9

# Handshake flags, and the client's answers (the same bits).
FIXED_NEWSTYLE: Final = 1 << 0
NO_ZEROES: Final = 1 << 1

EXPORT_NAME_PADDING: Final = 124
"""Zero bytes behind the answer to EXPORT_NAME, unless NO_ZEROES was agreed on."""

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10
OPT_EXTENDED_HEADERS: Final = 11

OPTION_NAMES: Final = {
    OPT_EXPORT_NAME: "NBD_OPT_EXPORT_NAME",
    OPT_ABORT: "NBD_OPT_ABORT",
    OPT_LIST: "NBD_OPT_LIST",
    OPT_STARTTLS: "NBD_OPT_STARTTLS",
    OPT_INFO: "NBD_OPT_INFO",
    OPT_GO: "NBD_OPT_GO",
    OPT_STRUCTURED_REPLY: "NBD_OPT_STRUCTURED_REPLY",
    OPT_LIST_META_CONTEXT: "NBD_OPT_LIST_META_CONTEXT",
    OPT_SET_META_CONTEXT: "NBD_OPT_SET_META_CONTEXT",
    OPT_EXTENDED_HEADERS: "NBD_OPT_EXTENDED_HEADERS",
}

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR: Final = 1 << 31
"""Set in every reply that is an error."""
REP_ERR_UNSUP: Final = REP_ERROR + 1
REP_ERR_POLICY: Final = REP_ERROR + 2
REP_ERR_INVALID: Final = REP_ERROR + 3
REP_ERR_PLATFORM: Final = REP_ERROR + 4
REP_ERR_TLS_REQD: Final = REP_ERROR + 5
REP_ERR_UNKNOWN: Final = REP_ERROR + 6
REP_ERR_SHUTDOWN: Final = REP_ERROR + 7
REP_ERR_BLOCK_SIZE_REQD: Final = REP_ERROR + 8
REP_ERR_TOO_BIG: Final = REP_ERROR + 9
REP_ERR_EXT_HEADER_REQD: Final = REP_ERROR + 10

REPLY_NAMES: Final = {
    REP_ACK: "NBD_REP_ACK",
    REP_SERVER: "NBD_REP_SERVER",
    REP_INFO: "NBD_REP_INFO",
    REP_META_CONTEXT: "NBD_REP_META_CONTEXT",
    REP_ERR_UNSUP: "NBD_REP_ERR_UNSUP",
    REP_ERR_POLICY: "NBD_REP_ERR_POLICY",
    REP_ERR_INVALID: "NBD_REP_ERR_INVALID",
    REP_ERR_PLATFORM: "NBD_REP_ERR_PLATFORM",
    REP_ERR_TLS_REQD: "NBD_REP_ERR_TLS_REQD",
    REP_ERR_UNKNOWN: "NBD_REP_ERR_UNKNOWN",
    REP_ERR_SHUTDOWN: "NBD_REP_ERR_SHUTDOWN",
    REP_ERR_BLOCK_SIZE_REQD: "NBD_REP_ERR_BLOCK_SIZE_REQD",
    REP_ERR_TOO_BIG: "NBD_REP_ERR_TOO_BIG",
    REP_ERR_EXT_HEADER_REQD: "NBD_REP_ERR_EXT_HEADER_REQD",
}

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

# --- transmission flags: what an export can do --------------------------------------------------

FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_FUA: Final = 1 << 3
FLAG_ROTATIONAL: Final = 1 << 4
FLAG_SEND_TRIM: Final = 1 << 5
FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
FLAG_SEND_DF: Final = 1 << 7
FLAG_CAN_MULTI_CONN: Final = 1 << 8
FLAG_SEND_RESIZE: Final = 1 << 9
FLAG_SEND_CACHE: Final = 1 << 10
FLAG_SEND_FAST_ZERO: Final = 1 << 11
FLAG_BLOCK_STATUS_PAYLOAD: Final = 1 << 12

FLAG_NAMES: Final = {
    FLAG_READ_ONLY: "readonly",
    FLAG_SEND_FLUSH: "flush",
    FLAG_SEND_FUA: "fua",
    FLAG_ROTATIONAL: "rotational",
    FLAG_SEND_TRIM: "trim",
    FLAG_SEND_WRITE_ZEROES: "zeroes",
    FLAG_SEND_DF: "df",
    FLAG_CAN_MULTI_CONN: "multi",
    FLAG_SEND_RESIZE: "resize",
    FLAG_SEND_CACHE: "cache",
    FLAG_SEND_FAST_ZERO: "fast-zero",
    FLAG_BLOCK_STATUS_PAYLOAD: "block-status-payload",
}
"""As `qemu-nbd --list` calls them."""

# --- transmission -------------------------------------------------------------------------------

REQUEST_MAGIC: Final = 0x25609513
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

COMMAND_NAMES: Final = {
    CMD_READ: "read",
    CMD_WRITE: "write",
    CMD_DISC: "disconnect",
    CMD_FLUSH: "flush",
    CMD_TRIM: "trim",
    CMD_CACHE: "cache",
    CMD_WRITE_ZEROES: "write zeroes",
    CMD_BLOCK_STATUS: "block status",
}

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4
CMD_FLAG_PAYLOAD_LEN: Final = 1 << 5

REPLY_FLAG_DONE: Final = 1 << 0

REPLY_NONE: Final = 0
REPLY_OFFSET_DATA: Final = 1
REPLY_OFFSET_HOLE: Final = 2
REPLY_BLOCK_STATUS: Final = 5
REPLY_BLOCK_STATUS_EXT: Final = 6
REPLY_ERROR_BIT: Final = 1 << 15
REPLY_ERROR: Final = REPLY_ERROR_BIT + 1
REPLY_ERROR_OFFSET: Final = REPLY_ERROR_BIT + 2

# --- metadata contexts --------------------------------------------------------------------------

BASE_ALLOCATION: Final = "base:allocation"
ALLOCATION_DEPTH: Final = "qemu:allocation-depth"
DIRTY_BITMAP_PREFIX: Final = "qemu:dirty-bitmap:"

STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1
STATE_DIRTY: Final = 1 << 0
"""Of a dirty bitmap's context."""

# --- errors -------------------------------------------------------------------------------------

EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108

ERROR_NAMES: Final = {
    EPERM: "EPERM",
    EIO: "EIO",
    ENOMEM: "ENOMEM",
    EINVAL: "EINVAL",
    ENOSPC: "ENOSPC",
    EOVERFLOW: "EOVERFLOW",
    ENOTSUP: "ENOTSUP",
    ESHUTDOWN: "ESHUTDOWN",
}

_TO_WIRE = {
    errno.EPERM: EPERM,
    errno.EACCES: EPERM,
    errno.EROFS: EPERM,
    errno.ENOMEM: ENOMEM,
    errno.EINVAL: EINVAL,
    errno.ENOSPC: ENOSPC,
    errno.EDQUOT: ENOSPC,
    errno.EFBIG: ENOSPC,
    errno.EOVERFLOW: EOVERFLOW,
    errno.ENOTSUP: ENOTSUP,
    errno.ESHUTDOWN: ESHUTDOWN,
}
_FROM_WIRE = {
    EPERM: errno.EPERM,
    EIO: errno.EIO,
    ENOMEM: errno.ENOMEM,
    EINVAL: errno.EINVAL,
    ENOSPC: errno.ENOSPC,
    EOVERFLOW: errno.EOVERFLOW,
    ENOTSUP: errno.ENOTSUP,
    ESHUTDOWN: errno.ESHUTDOWN,
}


def wire_error(code: int) -> int:
    """The protocol's number for a system's error; EIO for what it has none for."""
    return _TO_WIRE.get(code, EIO)


def system_error(code: int) -> int:
    """The system's number for an error of the protocol; EINVAL for unknown ones, as advised."""
    return _FROM_WIRE.get(code, errno.EINVAL)


def message(words: str) -> bytes:
    """Words for people as a string of the protocol: valid, and not too long."""
    encoded = words.encode(errors="backslashreplace")[:MAX_STRING]
    return encoded.decode(errors="ignore").encode()  # no half character at the end


# --- structures ---------------------------------------------------------------------------------


class Greeting(Layout, byte_order=">"):
    """What a newstyle server says first; the client answers with 32 bits of flags."""

    magic = u64("NBDMAGIC")
    style = u64("IHAVEOPT")
    flags = u16("handshake flags")


class OptionHeader(Layout, byte_order=">"):
    """An option of the client, before its data."""

    magic = u64("IHAVEOPT")
    option = u32("number")
    length = u32("bytes of data")


class OptionReply(Layout, byte_order=">"):
    """A server's answer to an option, before its data."""

    magic = u64("magic number")
    option = u32("number")
    kind = u32("reply type")
    length = u32("bytes of data")


class ExportReply(Layout, byte_order=">"):
    """The answer to EXPORT_NAME, before its padding."""

    size = u64("bytes")
    flags = u16("transmission flags")


class ExportInfo(Layout, byte_order=">"):
    """INFO_EXPORT, whole."""

    kind = u16("information type")
    size = u64("bytes")
    flags = u16("transmission flags")


class BlockSizeInfo(Layout, byte_order=">"):
    """INFO_BLOCK_SIZE, whole."""

    kind = u16("information type")
    minimum = u32("bytes")
    preferred = u32("bytes")
    maximum = u32("bytes")


class RequestHeader(Layout, byte_order=">"):
    """A compact request, before its payload."""

    magic = u32("magic number")
    flags = u16("command flags")
    command = u16("number")
    cookie = u64("the client's name for the request")
    offset = u64("bytes")
    length = u32("bytes")


class ExtendedRequestHeader(Layout, byte_order=">"):
    """A request where extended headers are agreed on."""

    magic = u32("magic number")
    flags = u16("command flags")
    command = u16("number")
    cookie = u64("the client's name for the request")
    offset = u64("bytes")
    length = u64("bytes of payload with PAYLOAD_LEN, else of the request's effect")


class SimpleReply(Layout, byte_order=">"):
    """A simple reply, before the data of a read."""

    magic = u32("magic number")
    error = u32("0, or one of the protocol's")
    cookie = u64("of the request")


class ChunkHeader(Layout, byte_order=">"):
    """A chunk of a structured reply, before its payload."""

    magic = u32("magic number")
    flags = u16("DONE on the last")
    kind = u16("chunk type")
    cookie = u64("of the request")
    length = u32("bytes of payload")


class ExtendedChunkHeader(Layout, byte_order=">"):
    """A chunk of a reply where extended headers are agreed on."""

    magic = u32("magic number")
    flags = u16("DONE on the last")
    kind = u16("chunk type")
    cookie = u64("of the request")
    offset = u64("of the request")
    length = u64("bytes of payload")


class Hole(Layout, byte_order=">"):
    """The payload of OFFSET_HOLE."""

    offset = u64("bytes")
    length = u32("bytes")


class ErrorChunk(Layout, byte_order=">"):
    """The head of an error's payload: the message follows, then the offset of ERROR_OFFSET."""

    error = u32("one of the protocol's")
    length = u16("bytes of the message")


class Extent(Layout, byte_order=">"):
    """A descriptor of BLOCK_STATUS; they follow a 32-bit context id."""

    length = u32("bytes")
    flags = u32("meaning depends on the context")


class ExtendedExtent(Layout, byte_order=">"):
    """A descriptor of BLOCK_STATUS_EXT; they follow a 32-bit context id and their 32-bit count."""

    length = u64("bytes")
    flags = u64("meaning depends on the context")


class DataChunkHeader(Layout, byte_order=">"):
    """A chunk of OFFSET_DATA up to its data: header and offset in one."""

    magic = u32("magic number")
    flags = u16("DONE on the last")
    kind = u16("chunk type")
    cookie = u64("of the request")
    length = u32("bytes of payload: data and offset")
    offset = u64("bytes")


class ExtendedDataChunkHeader(Layout, byte_order=">"):
    """The same where extended headers are agreed on."""

    magic = u32("magic number")
    flags = u16("DONE on the last")
    kind = u16("chunk type")
    cookie = u64("of the request")
    request_offset = u64("of the request")
    length = u64("bytes of payload: data and offset")
    offset = u64("bytes")


def pack_numbers(numbers: Sequence[int], size: int) -> bytes:
    """Integers of `size` bytes (4 or 8), one after the other."""
    return struct.pack(f">{len(numbers)}{'I' if size == 4 else 'Q'}", *numbers)


def unpack_numbers(data: Buffer, size: int) -> list[int]:
    """As many integers of `size` bytes (4 or 8) as `data` holds, which must come out even."""
    count = len(memoryview(data)) // size
    return list(struct.unpack(f">{count}{'I' if size == 4 else 'Q'}", data))
