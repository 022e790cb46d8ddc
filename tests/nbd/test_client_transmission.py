# SPDX-License-Identifier: Apache-2.0
"""Replies to the client: every shape and every cut of them, and every rule that a server breaks."""

import random
from itertools import pairwise

import pytest

from blocklayer.base.errors import ProtocolError
from blocklayer.nbd import wire
from blocklayer.nbd.client_command import GAPS_MAX, Command
from blocklayer.nbd.client_handshake import EXTENDED, SIMPLE, STRUCTURED, Agreement, ExportInfo
from blocklayer.nbd.client_transmission import Replies
from tests.nbd.server_bytes import (
    MiB,
    chunk,
    content,
    error,
    extended,
    hole,
    number,
    simple,
    status,
    wide_status,
)

DATA, HOLE = wire.REPLY_OFFSET_DATA, wire.REPLY_OFFSET_HOLE
STATUS, WIDE = wire.REPLY_BLOCK_STATUS, wire.REPLY_BLOCK_STATUS_EXT
ERROR, ERROR_OFFSET = wire.REPLY_ERROR, wire.REPLY_ERROR_OFFSET
BASE = wire.BASE_ALLOCATION
UNTOUCHED = b"\xee"


def agreement(mode: str, contexts: dict[int, str] | None = None) -> Agreement:
    contexts = {1: BASE} if contexts is None else contexts
    return Agreement(ExportInfo(1 << 40, 0), mode, contexts)


def read(offset: int = 0, length: int = 16, pieces: int = 1) -> tuple[Command, list[bytearray]]:
    """A read into memory of several pieces."""
    sizes = [length // pieces] * (pieces - 1)
    sizes.append(length - sum(sizes))
    memory = [bytearray(UNTOUCHED * size) for size in sizes]
    return Command(0, offset, length, vector=[memoryview(m) for m in memory]), memory


def put(engine: Replies, data: bytes) -> list[Command]:
    """Have the engine receive bytes as a socket would: into the buffers that it names."""
    done: list[Command] = []
    while data:
        count = 0
        for view in engine.buffers():
            piece = data[count : count + len(view)]
            view[: len(piece)] = piece
            count += len(piece)
        done += engine.received(count)
        data = data[count:]
    return done


def put_all(engine: Replies, pieces: list[bytes]) -> None:
    for piece in pieces:
        put(engine, piece)


def cuts(data: bytes, rng: random.Random) -> list[list[bytes]]:
    """The same bytes whole, one by one, and cut at random."""
    points = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(6))})
    return [
        [data],
        [data[n : n + 1] for n in range(len(data))],
        [data[a:b] for a, b in pairwise(points)],
    ]


def receive(mode: str, command: Command, data: bytes, rng: random.Random) -> None:
    """Feed the reply in every way; the last one is left in `command`."""
    behind = simple(cookie=2) if mode != EXTENDED else extended(cookie=2)
    for pieces in cuts(data + behind, rng):
        command.restart()
        engine = Replies(agreement(mode))
        other = Command(wire.CMD_FLUSH)
        engine.encode(command)
        engine.encode(other)
        done = [found for piece in pieces for found in put(engine, piece)]
        assert done == [command, other]
        assert engine.pending == {}


# --- requests -----------------------------------------------------------------------------------


def test_requests() -> None:
    engine = Replies(agreement(STRUCTURED))
    command = Command(wire.CMD_WRITE, 512, 4096, flags=wire.CMD_FLAG_FUA, vector=[])
    sent = wire.RequestHeader.unpack_from(engine.encode(command))
    assert (sent.magic, sent.flags, sent.command) == (wire.REQUEST_MAGIC, 1, 1)
    assert (sent.cookie, sent.offset, sent.length) == (command.cookie, 512, 4096)
    assert engine.pending == {command.cookie: command}


def test_requests_with_extended_headers() -> None:
    engine = Replies(agreement(EXTENDED))
    write = wire.ExtendedRequestHeader.unpack_from(
        engine.encode(Command(wire.CMD_WRITE, 0, 4096, vector=[]))
    )
    assert write.flags == wire.CMD_FLAG_PAYLOAD_LEN
    trim = wire.ExtendedRequestHeader.unpack_from(
        engine.encode(Command(wire.CMD_TRIM, 1 << 40, 1 << 40))
    )
    assert (trim.magic, trim.flags) == (wire.EXTENDED_REQUEST_MAGIC, 0)
    assert (trim.offset, trim.length) == (1 << 40, 1 << 40)
    assert write.cookie != trim.cookie


# --- sound replies ------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 3])
def test_simple_reads(pieces: int, rng: random.Random) -> None:
    command, memory = read(pieces=pieces)
    receive(SIMPLE, command, simple(data=b"0123456789abcdef"), rng)
    assert b"".join(memory) == b"0123456789abcdef"
    assert command.error == 0


@pytest.mark.parametrize("pieces", [1, 5])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 2, 0], [2, 0, 3, 1]])
def test_structured_reads(pieces: int, order: list[int], rng: random.Random) -> None:
    command, memory = read(100, 16, pieces)
    parts = [
        (DATA, content(100, b"01234")),
        (HOLE, hole(105, 3)),
        (DATA, content(108, b"abc")),
        (DATA, content(111, b"defgh")),
    ]
    data = b"".join(chunk(*parts[n], done=False) for n in order) + chunk()
    receive(STRUCTURED, command, data, rng)
    assert b"".join(memory) == b"01234\0\0\0abcdefgh"
    parts_extended = b"".join(extended(*parts[n], done=n == order[-1], offset=100) for n in order)
    receive(EXTENDED, command, parts_extended, rng)
    assert b"".join(memory) == b"01234\0\0\0abcdefgh"


def test_content_lands_in_the_memory_of_the_reader() -> None:
    command, memory = read(0, MiB)
    engine = Replies(agreement(STRUCTURED))
    engine.encode(command)
    whole = chunk(DATA, content(0, bytes(range(256)) * 4096))
    put(engine, whole[:28])
    first = engine.buffers()[0]
    first[:3] = b"abc"
    assert memory[0][:4] == b"abc" + UNTOUCHED
    assert list(engine.received(3)) == []
    assert put(engine, whole[31:]) == [command]
    assert memory[0][3:] == (bytes(range(256)) * 4096)[3:]


def test_content_that_nobody_waits_for_is_dropped() -> None:
    command, memory = read(0, MiB)
    engine = Replies(agreement(STRUCTURED))
    engine.encode(command)
    whole = chunk(DATA, content(0, b"x" * MiB))
    put(engine, whole[:1000])
    command.vector = None
    assert put(engine, whole[1000:] + simple(2)[:8]) == [command]
    assert memory[0][1000:] == UNTOUCHED * (MiB - 1000)


def test_errors(rng: random.Random) -> None:
    command, _ = read()
    receive(SIMPLE, command, simple(error=wire.EIO), rng)
    assert (command.error, command.message) == (wire.EIO, "")
    receive(STRUCTURED, command, chunk(ERROR, error(wire.ENOSPC, "bad\x1b[2J")), rng)
    assert (command.error, command.message) == (wire.ENOSPC, "bad\\x1b[2J")
    data = chunk(DATA, content(0, b"0123"), done=False)
    data += chunk(ERROR_OFFSET, error(wire.EIO, "first", 4), done=False)
    data += chunk(ERROR, error(wire.EPERM, "second"))
    receive(STRUCTURED, command, data, rng)
    assert (command.error, command.message) == (wire.EIO, "first")
    unknown = wire.REPLY_ERROR_BIT + 77
    receive(STRUCTURED, command, chunk(unknown, error(wire.EIO, "new") + b"tail"), rng)
    assert (command.error, command.message) == (wire.EIO, "new")
    receive(EXTENDED, command, extended(ERROR, error(wire.EINVAL, "no")), rng)
    assert (command.error, command.message) == (wire.EINVAL, "no")


def test_block_status(rng: random.Random) -> None:
    command = Command(wire.CMD_BLOCK_STATUS, 1000, 100)
    receive(
        STRUCTURED, command, chunk(STATUS, status((10, 0), (20, 3), (70, 3), (5000, 0))[:28]), rng
    )
    found = command.extents[BASE]
    assert [found.find(n) for n in (1000, 1009, 1010, 1099)] == [
        (1010, 0),
        (1010, 0),
        (1100, 3),
        (1100, 3),
    ]
    wide = wide_status((10, 0), (1 << 40, 1 << 33))
    receive(EXTENDED, command, extended(WIDE, wide, offset=1000), rng)
    assert command.extents[BASE].find(1010) == (1010 + (1 << 40), 1 << 33)


def test_a_block_status_for_each_context() -> None:
    engine = Replies(agreement(STRUCTURED, {1: BASE, 7: "qemu:dirty-bitmap:b"}))
    command = Command(wire.CMD_BLOCK_STATUS, 0, 100)
    engine.encode(command)
    assert put(engine, chunk(STATUS, status((100, 1), identity=7), done=False)) == []
    assert put(engine, chunk(STATUS, status((50, 0)))) == [command]
    assert command.extents["qemu:dirty-bitmap:b"].find(99) == (100, 1)


def test_answers_in_any_order() -> None:
    engine = Replies(agreement(STRUCTURED))
    commands = [read(n, 1)[0] for n in range(5)]
    for command in commands:
        engine.encode(command)
    order = [3, 0, 4, 2, 1]
    data = b"".join(chunk(DATA, content(n, bytes([n])), cookie=n + 1) for n in order)
    assert put(engine, data) == [commands[n] for n in order]


def test_chunks_of_several_answers_mixed() -> None:
    engine = Replies(agreement(STRUCTURED))
    (one, first), (two, second) = read(0, 4), read(4, 4)
    engine.encode(one)
    engine.encode(two)
    data = chunk(DATA, content(0, b"ab"), cookie=1, done=False)
    data += chunk(DATA, content(4, b"EFGH"), cookie=2, done=False)
    data += chunk(DATA, content(2, b"cd"), cookie=1) + chunk(cookie=2)
    assert put(engine, data) == [one, two]
    assert first + second == [b"abcd", b"EFGH"]


def test_what_came_with_the_handshake() -> None:
    command = Command(wire.CMD_FLUSH)
    engine = Replies(agreement(SIMPLE), simple()[:10])
    engine.encode(command)
    assert put(engine, simple()[10:]) == [command]


# --- wrong replies ------------------------------------------------------------------------------

FLUSH = Command(wire.CMD_FLUSH)
LOOK = Command(wire.CMD_BLOCK_STATUS, 1000, 100)
LOOK_ONE = Command(wire.CMD_BLOCK_STATUS, 1000, 100, flags=wire.CMD_FLAG_REQ_ONE)
WHOLE = Command(wire.CMD_READ, 0, 16, flags=wire.CMD_FLAG_DF)
READ = Command(wire.CMD_READ, 0, 16)
MORE = {"done": False}

WRONG: list[tuple[str, Command, bytes, str]] = [
    (SIMPLE, FLUSH, b"\1\2\3\4" + bytes(12), "invalid magic 0x01020304"),
    (SIMPLE, FLUSH, simple(cookie=99), "a request that was not made, or was answered: 0x63"),
    (SIMPLE, FLUSH, simple() + simple(), "a request that was not made, or was answered"),
    (SIMPLE, FLUSH, chunk(), "structured reply that was not agreed on"),
    (SIMPLE, FLUSH, extended(), "extended header that was not agreed on"),
    (STRUCTURED, FLUSH, extended(), "extended header that was not agreed on"),
    (EXTENDED, FLUSH, chunk(), "structured reply that was not agreed on"),
    (EXTENDED, FLUSH, simple(), "simple reply after extended headers"),
    (EXTENDED, LOOK, extended(offset=1), "says that the request's offset is 1"),
    (STRUCTURED, READ, simple(), "simple reply when structured reply chunk was expected"),
    (STRUCTURED, LOOK, simple(), "simple reply when structured reply chunk was expected"),
    (STRUCTURED, FLUSH, chunk(77), "unexpected reply type 77"),
    (STRUCTURED, FLUSH, chunk(done=False), "without NBD_REPLY_FLAG_DONE"),
    (STRUCTURED, FLUSH, chunk(wire.REPLY_NONE, b"x"), "payload of 1 bytes for reply type 0"),
    (STRUCTURED, FLUSH, chunk(DATA, content(0, b"x")), "which only reads can have"),
    (STRUCTURED, FLUSH, chunk(HOLE, hole(0, 1)), "which only reads can have"),
    (STRUCTURED, READ, chunk(STATUS, status((1, 1))), "block status that was not asked for"),
    (STRUCTURED, READ, chunk(DATA, content(0, b"")), "content chunk of 8 bytes"),
    (STRUCTURED, READ, chunk(DATA, bytes(3)), "content chunk of 3 bytes"),
    (STRUCTURED, READ, chunk(DATA, content(0, bytes(17))), "content chunk of 25 bytes"),
    (STRUCTURED, READ, chunk(DATA, content(1, bytes(16))), "outside the request"),
    (STRUCTURED, READ, chunk(DATA, content(1 << 63, bytes(16))), "outside the request"),
    (STRUCTURED, READ, chunk(HOLE, hole(16, 1)), "outside the request"),
    (STRUCTURED, READ, chunk(HOLE, hole(0, 0)), "a hole without length"),
    (STRUCTURED, READ, chunk(HOLE, hole(0, 1) + b"x"), "payload of 13 bytes"),
    (STRUCTURED, READ, chunk(DATA, content(0, bytes(15))), "1 bytes of content were never sent"),
    (STRUCTURED, READ, chunk(DATA, content(4, bytes(4))), "12 bytes of content were never sent"),
    (STRUCTURED, READ, chunk(), "16 bytes of content were never sent"),
    (
        STRUCTURED,
        READ,
        chunk(DATA, content(0, bytes(16)), **MORE) + chunk(HOLE, hole(15, 1)),
        "sent before",
    ),
    (
        STRUCTURED,
        READ,
        chunk(HOLE, hole(8, 4), **MORE) + chunk(DATA, content(6, bytes(3))),
        "sent before",
    ),
    (
        STRUCTURED,
        WHOLE,
        chunk(DATA, content(0, bytes(8)), **MORE) + chunk(DATA, content(8, bytes(8))),
        "fragments where none were allowed",
    ),
    (STRUCTURED, FLUSH, chunk(ERROR, b"123"), "payload of 3 bytes"),
    (STRUCTURED, FLUSH, chunk(ERROR, bytes(4200)), "payload of 4200 bytes"),
    (STRUCTURED, FLUSH, chunk(ERROR, error(5, "x") + b"y"), "does not fit its payload"),
    (STRUCTURED, FLUSH, chunk(ERROR, number(5, 4) + number(9, 2) + b"x"), "does not fit"),
    (STRUCTURED, FLUSH, chunk(ERROR, error(5, "x" * 4097)), "too long"),
    (STRUCTURED, FLUSH, chunk(ERROR, error(0)), "an error without a number"),
    (STRUCTURED, READ, chunk(ERROR_OFFSET, error(5, "", 16)), "outside the request"),
    (STRUCTURED, READ, chunk(ERROR_OFFSET, error(5)), "payload of 6 bytes"),
    (STRUCTURED, LOOK, chunk(STATUS, status()), "payload of 4 bytes"),
    (STRUCTURED, LOOK, chunk(STATUS, status((1, 1)) + b"xxxx"), "payload of 16 bytes"),
    (STRUCTURED, LOOK, chunk(STATUS, status((0, 1))), "an extent has no length"),
    (STRUCTURED, LOOK, chunk(STATUS, status((100, 0), (1, 0))), "behind the end of the request"),
    (STRUCTURED, LOOK, chunk(STATUS, status((100, 0), identity=9)), "which was not chosen"),
    (STRUCTURED, LOOK, chunk(WIDE, wide_status((1, 0))), "of the wrong width"),
    (STRUCTURED, LOOK, chunk(), "block status of base:allocation was never sent"),
    (
        STRUCTURED,
        LOOK,
        chunk(STATUS, status((100, 0)), **MORE) + chunk(STATUS, status((100, 0))),
        "was sent before",
    ),
    (STRUCTURED, LOOK_ONE, chunk(STATUS, status((1, 0), (1, 1))), "one extent was asked for"),
    (STRUCTURED, LOOK_ONE, chunk(STATUS, status((101, 0))), "longer than the request"),
    (EXTENDED, LOOK, extended(STATUS, status((1, 0)), offset=1000), "of the wrong width"),
    (
        EXTENDED,
        LOOK,
        extended(WIDE, wide_status((1, 0), count=2), offset=1000),
        "does not hold the 2 extents",
    ),
]


@pytest.mark.parametrize(
    ("mode", "command", "data", "words"), WRONG, ids=[f"{m}-{w}" for m, _, _, w in WRONG]
)
def test_wrong_replies_are_named_wrong(
    mode: str, command: Command, data: bytes, words: str, rng: random.Random
) -> None:
    for pieces in cuts(data, rng):
        again = Command(command.kind, command.offset, command.length, flags=command.flags)
        if command.kind == wire.CMD_READ:
            again.vector = [memoryview(bytearray(command.length))]
        engine = Replies(agreement(mode))
        engine.encode(again)
        with pytest.raises(ProtocolError, match="The server broke the NBD protocol: ") as failure:
            put_all(engine, pieces)
        assert words in str(failure.value)


def test_the_command_is_named() -> None:
    engine = Replies(agreement(STRUCTURED))
    engine.encode(read(4096, 512)[0])
    with pytest.raises(ProtocolError, match=r"\(reply to read of 512 bytes at offset 4096\)"):
        put(engine, chunk())


def test_a_read_in_too_many_pieces() -> None:
    engine = Replies(agreement(STRUCTURED))
    engine.encode(read(0, 4 * GAPS_MAX)[0])

    def go_on() -> None:
        for n in range(GAPS_MAX + 1):
            put(engine, chunk(HOLE, hole(2 * n + 1, 1), done=False))

    with pytest.raises(ProtocolError, match="in more than"):
        go_on()


def test_errors_without_end() -> None:
    engine = Replies(agreement(STRUCTURED))
    engine.encode(Command(wire.CMD_FLUSH))
    flood = chunk(ERROR, error(5, "again"), done=False) * 5000
    with pytest.raises(ProtocolError, match="more than 4096 errors"):
        put(engine, flood)


def test_a_huge_block_status_is_refused_before_memory_is_taken() -> None:
    engine = Replies(agreement(STRUCTURED))
    engine.encode(Command(wire.CMD_BLOCK_STATUS, 0, 1 << 31))
    head = wire.ChunkHeader(
        magic=wire.STRUCTURED_REPLY_MAGIC, kind=STATUS, cookie=1, length=0xFFFFFFFC
    )
    with pytest.raises(ProtocolError, match="payload of 4294967292 bytes"):
        put(engine, head.pack())


def test_who_was_answered_before_the_server_went_wrong_is_told() -> None:
    engine = Replies(agreement(STRUCTURED))
    commands = [Command(wire.CMD_FLUSH), Command(wire.CMD_FLUSH)]
    for command in commands:
        engine.encode(command)
    data = simple(1) + simple(7)
    engine.buffers()[0][: len(data)] = data
    done = engine.received(len(data))
    assert next(done) is commands[0]
    with pytest.raises(ProtocolError):
        next(done)
    assert list(engine.pending.values()) == [commands[1]]


# --- noise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [SIMPLE, STRUCTURED, EXTENDED])
def test_noise_gives_errors_of_ours(mode: str, rng: random.Random) -> None:
    failed = 0
    for _ in range(1500):
        engine = Replies(agreement(mode))
        commands = [read(0, 64)[0], Command(wire.CMD_FLUSH), Command(wire.CMD_BLOCK_STATUS, 0, 99)]
        for command in commands:
            engine.encode(command)
        if mode == SIMPLE:
            data = simple(1, data=bytes(64)) + simple(2) + simple(3, error=5)
        elif mode == STRUCTURED:
            data = chunk(HOLE, hole(0, 60), done=False) + chunk(DATA, content(60, b"last"))
            data += simple(2) + chunk(STATUS, status((50, 0), (49, 3)), cookie=3)
        else:
            data = extended(DATA, content(0, bytes(64))) + extended(cookie=2)
            data += extended(WIDE, wide_status((50, 0), (49, 3)), cookie=3)
        noisy = bytearray(data)
        for _ in range(rng.randrange(1, 3)):
            noisy[rng.randrange(len(noisy))] ^= 1 << rng.randrange(8)
        try:
            put(engine, bytes(noisy))
        except ProtocolError:
            failed += 1
    assert failed
