# SPDX-License-Identifier: Apache-2.0
"""Every command of a client, in every shape of replies: its effect, its answer, its errors."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.export import commands
from blocklayer.export.export import UNKNOWN
from blocklayer.nbd import wire
from tests.export.conftest import Serve
from tests.support.nbd_peer import (
    CACHE,
    DF,
    DISC,
    EXTENDED,
    FAST_ZERO,
    FLUSH,
    FUA,
    MODES,
    NO_HOLE,
    PAYLOAD_LEN,
    READ,
    REQ_ONE,
    SIMPLE,
    STATUS,
    STRUCTURED,
    TRIM,
    WRITE,
    ZERO,
    Reply,
    go_data,
    option_bytes,
    request_bytes,
)

Make = Callable[..., Disk]
SIZE = 4 * MiB
BASE, DEPTH = wire.BASE_ALLOCATION, wire.ALLOCATION_DEPTH
HOLE = wire.STATE_HOLE | wire.STATE_ZERO
modes = pytest.mark.parametrize("mode", MODES)
structured_modes = pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])


def is_error(reply: Reply, code: int, mode: str) -> bool:
    """Whether it is this error, told in words where there is room for them."""
    return reply.error == code and bool(reply.words) == (mode != SIMPLE)


@modes
@pytest.mark.parametrize("format", ["qed", "raw"])
def test_what_is_written_is_read(make: Make, serve: Serve, mode: str, format: str) -> None:
    served = serve(make(SIZE, format=format))
    with served.connect(mode=mode) as peer:
        assert peer.size == SIZE
        assert peer.read(0, SIZE) == bytes(SIZE)
        expected = bytearray(SIZE)
        for offset, length in ((0, 1), (511, 3), (65_530, 70_000), (SIZE - 1, 1), (MiB, 2 * MiB)):
            data = os.urandom(length)
            peer.write(offset, data)
            expected[offset : offset + length] = data
        for offset, length in ((0, SIZE), (0, 1), (SIZE - 1, 1), (12_345, 100_000), (5, 31 * KiB)):
            assert peer.read(offset, length) == expected[offset : offset + length]
            if mode != SIMPLE:
                assert peer.read(offset, length, DF) == expected[offset : offset + length]
    assert served.disk.read(0, SIZE) == expected


@modes
@pytest.mark.parametrize("format", ["qed", "raw"])
def test_large_reads_and_writes(make: Make, serve: Serve, mode: str, format: str) -> None:
    served = serve(make(80 * MiB, format=format))
    data = os.urandom(32 * MiB)
    with served.connect(mode=mode) as peer:
        peer.write(3 * MiB + 5, data, FUA)
        assert peer.read(3 * MiB + 5, 32 * MiB) == data
        assert peer.read(20 * MiB, 32 * MiB)[: 15 * MiB + 5] == data[17 * MiB - 5 :]
        assert peer.read(34 * MiB, 30 * MiB)[2 * MiB :] == bytes(28 * MiB)
        too_much = 32 * MiB + 1
        assert is_error(peer.do(READ, 0, too_much), wire.EINVAL, mode)
        written = peer.do(WRITE, 40 * MiB, payload=b"\1" * too_much)
        assert is_error(written, wire.EINVAL, mode)
        assert peer.read(40 * MiB, MiB) == bytes(MiB)
        assert peer.read(3 * MiB + 5, 10) == data[:10], "the stream is out of step"


@modes
def test_requests_of_no_length(make: Make, serve: Serve, mode: str) -> None:
    served = serve(make(SIZE))
    with served.connect(mode=mode, contexts=[] if mode == SIMPLE else [BASE]) as peer:
        for command in (READ, WRITE, FLUSH, TRIM, CACHE, ZERO):
            for offset in (0, 100, SIZE):
                for flags in (0, FUA):
                    assert peer.do(command, offset, 0, flags=flags).error == 0
        if mode != SIMPLE:
            assert peer.do(READ, 0, 0, flags=DF).error == 0
        assert is_error(peer.do(STATUS, 0, 0), wire.EINVAL, mode)
        assert peer.read(0, 512) == bytes(512)


OUTSIDE = [(SIZE, 1), (SIZE - 1, 2), (SIZE + 1, 0), (1 << 63, 1), ((1 << 64) - 1, 1), (0, SIZE + 1)]


@modes
@pytest.mark.parametrize(("offset", "length"), OUTSIDE)
def test_beyond_the_end(make: Make, serve: Serve, mode: str, offset: int, length: int) -> None:
    served = serve(make(SIZE))
    with served.connect(mode=mode, contexts=[] if mode == SIMPLE else [BASE]) as peer:
        codes = {READ: wire.EINVAL, TRIM: wire.EINVAL, CACHE: wire.EINVAL, ZERO: wire.ENOSPC}
        for command, code in codes.items():
            assert is_error(peer.do(command, offset, length), code, mode), command
        written = peer.do(WRITE, offset, payload=bytes(length))
        assert is_error(written, wire.ENOSPC, mode)
        assert is_error(peer.do(STATUS, offset, length), wire.EINVAL, mode)
        assert peer.read(0, 512) == bytes(512)
    assert served.disk.size == SIZE


@modes
def test_read_only(make: Make, serve: Serve, mode: str) -> None:
    disk = make(SIZE)
    disk.write(0, b"x" * 512)
    served = serve(disk, writable=False)
    with served.connect(mode=mode) as peer:
        assert peer.flags & wire.FLAG_READ_ONLY
        assert not peer.flags & (wire.FLAG_SEND_TRIM | wire.FLAG_SEND_WRITE_ZEROES)
        for flags in (0, FUA):
            small = peer.do(WRITE, 0, payload=b"y", flags=flags)
            large = peer.do(WRITE, 0, payload=b"y" * 3 * MiB, flags=flags)
            assert is_error(small, wire.EPERM, mode)
            assert is_error(large, wire.EPERM, mode)
            assert is_error(peer.do(TRIM, 0, 512, flags=flags), wire.EPERM, mode)
            assert is_error(peer.do(ZERO, 0, 512, flags=flags), wire.EPERM, mode)
        assert peer.do(FLUSH).error == 0
        assert peer.do(CACHE, 0, 512).error == 0
        assert peer.read(0, 512) == b"x" * 512


ALLOWED = {
    READ: FUA | DF,
    WRITE: FUA,
    FLUSH: FUA,
    TRIM: FUA,
    CACHE: FUA,
    ZERO: FUA | NO_HOLE | FAST_ZERO,
    STATUS: FUA | REQ_ONE,
}


@modes
@pytest.mark.parametrize("command", sorted(ALLOWED))
def test_flags_that_a_command_has_not(make: Make, serve: Serve, mode: str, command: int) -> None:
    served = serve(make(SIZE))
    allowed = ALLOWED[command]
    if mode == SIMPLE:
        allowed &= ~DF
    with served.connect(mode=mode, contexts=[] if mode == SIMPLE else [BASE]) as peer:
        for bit in range(16):
            flag = 1 << bit
            if flag == PAYLOAD_LEN and mode == EXTENDED:
                continue
            length = 0 if command == FLUSH else 4096
            payload = b"\1" * length if command == WRITE else b""
            reply = peer.do(command, 0, length, flags=flag, payload=payload)
            if flag & allowed and not (command == STATUS and mode == SIMPLE):
                assert reply.error in (0, wire.ENOTSUP), hex(flag)
            else:
                assert is_error(reply, wire.EINVAL, mode), hex(flag)
        assert peer.do(FLUSH).error == 0


@modes
@pytest.mark.parametrize("command", [8, 9, 1000, 0xFFFF])
def test_unknown_commands(make: Make, serve: Serve, mode: str, command: int) -> None:
    served = serve(make(SIZE))
    with served.connect(mode=mode) as peer:
        assert is_error(peer.do(command, 0, 512), wire.EINVAL, mode)
        assert peer.read(0, 512) == bytes(512)


def test_unknown_commands_are_counted_as_one(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE))
    with served.connect() as peer:
        for command in range(100, 200):
            peer.do(command)
        # One more than the commands there are: whoever sends them must not fill our memory.
        assert len(served.export.stats.requests) <= len(wire.COMMAND_NAMES) + 1
    assert served.export.stats.errors == 100


@modes
def test_disconnecting_answers_what_came_before(make: Make, serve: Serve, mode: str) -> None:
    served = serve(make(SIZE))
    with served.connect(mode=mode) as peer:
        asked = []
        stream = b""
        for cookie, (command, length) in enumerate(
            [(READ, 512), (WRITE, 512), (FLUSH, 0), (TRIM, 512), (READ, 100_000), (ZERO, MiB)]
        ):
            payload = b"z" * length if command == WRITE else b""
            peer.note(cookie, command, 0, length)
            asked.append(cookie)
            stream += peer.packed(cookie, command, 0, length, payload=payload)
        peer.send(stream + peer.packed(99, DISC, 0, 0) + b"nobody reads this")
        for cookie in asked:
            assert peer.wait(cookie).error == 0
        assert peer.ended()
    served.wait_until_alone()


# --- zeroing and trimming -----------------------------------------------------------------------


@modes
def test_zeroing(make: Make, serve: Serve, mode: str) -> None:
    served = serve(make(SIZE))
    with served.connect(mode=mode) as peer:
        for flags in (0, FUA, NO_HOLE, NO_HOLE | FUA, FAST_ZERO, FAST_ZERO | FUA):
            for offset, length in ((0, SIZE), (65_536, 65_536), (1000, 300_000), (5, 7)):
                peer.write(0, b"\xaa" * SIZE)
                reply = peer.do(ZERO, offset, length, flags=flags)
                assert reply.error in ((0, wire.ENOTSUP) if flags & FAST_ZERO else (0,))
                expected = bytearray(b"\xaa" * SIZE)
                if not reply.error:
                    expected[offset : offset + length] = bytes(length)
                assert peer.read(0, SIZE) == expected
    served.server.stop()
    served.disk.close()
    assert blocklayer.check(served.disk.filename).clean


def test_zeroing_without_holes_allocates(make: Make, serve: Serve, tmp_path: Path) -> None:
    served = serve(make(SIZE, format="raw"))
    with served.connect(contexts=[BASE]) as peer:
        assert peer.do(ZERO, 0, MiB, flags=NO_HOLE).error == 0
        assert peer.do(FLUSH).error == 0
        assert os.stat(tmp_path / "disk.raw").st_blocks * 512 >= MiB


@modes
@pytest.mark.parametrize("discard", ["ignore", "unmap"])
def test_refused_zeroing_changes_nothing(
    make: Make,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    discard: str,
) -> None:
    """The first part could be zeroed, the last only written; also where it is done in pieces."""
    monkeypatch.setattr(commands, "CHANGE_PIECE", 131_072)
    content = random.Random(3).randbytes(SIZE)
    with make(SIZE, format="raw", name="base") as base:
        base.write(0, content)
    options = {"backing": str(tmp_path / "base"), "backing_format": "raw", "discard": discard}
    served = serve(make(SIZE, **options))
    with served.connect(mode=mode) as peer:
        peer.write(0, content[:65_536])
        for length in (70_000, 140_000, 300_000):
            for flags in (FAST_ZERO, FAST_ZERO | FUA, FAST_ZERO | NO_HOLE):
                assert peer.do(ZERO, 1000, length, flags=flags).error == wire.ENOTSUP
                assert peer.read(0, SIZE) == content
        assert peer.do(ZERO, 0, 65_536 * 4, flags=FAST_ZERO).error == 0
        assert peer.read(0, SIZE) == bytes(65_536 * 4) + content[65_536 * 4 :]


def test_fast_zeroing_that_would_be_slow_is_refused(make: Make, serve: Serve) -> None:
    # A part of a cluster that has data can be zeroed by writing zeroes only, where the file
    # below cannot do better.
    options = {"driver": "raw", "file": {"driver": "memory", "size": SIZE}}
    disk = blocklayer.open(options, mode="r+")
    disk.write(0, b"\xbb" * 4096)
    served = serve(disk)
    with served.connect(mode=EXTENDED) as peer:
        assert peer.flags & wire.FLAG_SEND_FAST_ZERO
        reply = peer.do(ZERO, 0, 4096, flags=FAST_ZERO)
        assert reply.error in (0, wire.ENOTSUP)
        expected = bytes(4096) if not reply.error else b"\xbb" * 4096
        assert peer.read(0, 4096) == expected


@pytest.mark.parametrize("discard", ["ignore", "unmap"])
def test_trimming_gives_space_back_if_the_disk_may(
    make: Make, serve: Serve, tmp_path: Path, discard: str
) -> None:
    served = serve(make(SIZE, format="raw", discard=discard))
    path = tmp_path / "disk.raw"
    with served.connect() as peer:
        peer.write(0, b"\xaa" * SIZE, FUA)
        before = os.stat(path).st_blocks
        assert peer.do(TRIM, MiB, MiB, flags=FUA).error == 0
        assert (os.stat(path).st_blocks < before) == (discard == "unmap")
        rest = peer.read(MiB, MiB)
        assert rest in (bytes(MiB), b"\xaa" * MiB)
        assert peer.read(0, MiB) == peer.read(2 * MiB, MiB) == b"\xaa" * MiB


# --- holes --------------------------------------------------------------------------------------


@structured_modes
@pytest.mark.parametrize("format", ["qed", "raw"])
def test_holes_are_told_not_sent(make: Make, serve: Serve, mode: str, format: str) -> None:
    served = serve(make(64 * MiB, format=format))
    with served.connect(mode=mode) as peer:
        peer.write(MiB, b"d" * 65_536)
        for length in (8 * MiB, 32 * MiB):
            reply = peer.do(READ, 0, length)
            assert sum(map(len, reply.data.values())) <= 2 * 65_536
            assert sum(reply.holes.values()) >= length - 2 * 65_536
            content = reply.content(0, length)
            assert content[MiB : MiB + 65_536] == b"d" * 65_536
            whole = peer.do(READ, 0, length, flags=DF)
            assert whole.content(0, length) == content


@modes
def test_a_read_of_very_many_pieces(make: Make, serve: Serve, mode: str) -> None:
    served = serve(make(40 * MiB, format="raw"))
    expected = bytearray(32 * MiB)
    for offset in range(0, 32 * MiB, 8 * KiB):  # every other block: 4096 holes
        served.disk.write(offset, b"\xcd" * 4096)
        expected[offset : offset + 4096] = b"\xcd" * 4096
    with served.connect(mode=mode) as peer:
        assert peer.read(0, 32 * MiB) == expected
        assert peer.read(4096, 16 * MiB) == expected[4096 : 16 * MiB + 4096]


# --- block status -------------------------------------------------------------------------------


def test_status_needs_a_context(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE))
    for mode in MODES:
        with served.connect(mode=mode) as peer:
            assert is_error(peer.do(STATUS, 0, 512), wire.EINVAL, mode)


@structured_modes
def test_base_allocation(make: Make, serve: Serve, mode: str) -> None:
    served = serve(make(SIZE))
    with served.connect(mode=mode, contexts=[BASE]) as peer:
        number = peer.contexts[BASE]
        assert peer.do(STATUS, 0, SIZE).status == {number: [(SIZE, HOLE)]}
        peer.write(MiB, b"x" * 65_536)
        extents = peer.do(STATUS, 0, SIZE).status[number]
        assert extents == [(MiB, HOLE), (65_536, 0), (3 * MiB - 65_536, HOLE)]
        assert peer.do(STATUS, MiB - 1, 2).status[number] == [(1, HOLE), (1, 0)]
        assert peer.do(STATUS, 0, SIZE, flags=REQ_ONE).status[number] == [(MiB, HOLE)]
        assert peer.do(STATUS, SIZE - 1, 1).status[number] == [(1, HOLE)]


@structured_modes
def test_all_contexts_at_once(make: Make, serve: Serve, mode: str, tmp_path: Path) -> None:
    make(SIZE, name="base.qed").close()
    with blocklayer.open(str(tmp_path / "base.qed"), mode="r+") as base:
        base.write(0, b"b" * MiB)
    disk = make(SIZE, backing=str(tmp_path / "base.qed"), backing_format="qed")
    disk.add_bitmap("b0", granularity=65_536)
    disk.write(MiB // 2, b"o" * MiB)
    contexts = [BASE, DEPTH, wire.DIRTY_BITMAP_PREFIX + "b0"]
    served = serve(disk, allocation_depth=True, bitmaps=["b0"])
    with served.connect(mode=mode, contexts=contexts) as peer:
        status = peer.do(STATUS, 0, SIZE).status
        found = {name: status[number] for name, number in peer.contexts.items()}
        half, rest = MiB // 2, SIZE - 3 * MiB // 2
        assert found == {
            BASE: [(3 * half, 0), (rest, HOLE)],
            DEPTH: [(half, 2), (MiB, 1), (rest, 0)],
            contexts[2]: [(half, 0), (MiB, 1), (rest, 0)],
        }
        first = peer.do(STATUS, 0, SIZE, flags=REQ_ONE).status
        assert {name: first[number][0] for name, number in peer.contexts.items()} == {
            name: extents[0] for name, extents in found.items()
        }
        peer.write(3 * MiB, b"new")
        late = peer.do(STATUS, 3 * MiB, 65_536).status
        assert late[peer.contexts[contexts[2]]] == [(65_536, 1)]


@structured_modes
def test_a_bitmap_that_goes_while_it_is_asked_for(make: Make, serve: Serve, mode: str) -> None:
    disk = make(SIZE)
    disk.add_bitmap("b0")
    context = wire.DIRTY_BITMAP_PREFIX + "b0"
    served = serve(disk, bitmaps=["b0"])
    with served.connect(mode=mode, contexts=[context]) as peer:
        assert peer.do(STATUS, 0, SIZE).status[1] == [(SIZE, 0)]
        disk.remove_bitmap("b0")
        assert peer.do(STATUS, 0, SIZE).status[1] == [(SIZE, wire.STATE_DIRTY)]


def status_payload(length: int, *numbers: int) -> bytes:
    return length.to_bytes(8, "big") + b"".join(number.to_bytes(4, "big") for number in numbers)


def test_choosing_contexts_for_one_question(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE), allocation_depth=True)
    with served.connect(mode=EXTENDED, contexts=[BASE, DEPTH]) as peer:
        assert peer.flags & wire.FLAG_BLOCK_STATUS_PAYLOAD
        base, depth = peer.contexts[BASE], peer.contexts[DEPTH]

        def ask(payload: bytes, offset: int = 0, length: int = SIZE) -> Reply:
            cookie = peer.ask(
                *(STATUS, offset, length), flags=PAYLOAD_LEN, payload=payload, announce=len(payload)
            )
            return peer.wait(cookie)

        assert ask(status_payload(SIZE, depth)).status == {depth: [(SIZE, 0)]}
        assert ask(status_payload(SIZE, base)).status == {base: [(SIZE, HOLE)]}
        assert set(ask(status_payload(SIZE, base, depth)).status) == {base, depth}
        assert ask(status_payload(10, base), offset=SIZE - 10).status == {base: [(10, HOLE)]}
        for payload in (
            b"",
            b"\0" * 7,
            status_payload(SIZE),
            status_payload(SIZE, base)[:-1],
            status_payload(SIZE, base) + b"\0",
            status_payload(SIZE, 77),
            status_payload(SIZE, base, base),
            status_payload(SIZE, base, depth, 77),
            status_payload(0, base),
            status_payload(SIZE + 1, base),
            status_payload((1 << 64) - 1, base),
            bytes(MiB),
        ):
            assert is_error(ask(payload), wire.EINVAL, EXTENDED), payload[:20]
        assert ask(status_payload(1, base), offset=SIZE).error == wire.EINVAL
        assert peer.read(0, 512) == bytes(512), "the stream is out of step"


@pytest.mark.parametrize("command", [READ, FLUSH, TRIM, CACHE, ZERO, DISC + 100])
def test_payloads_where_there_are_none(make: Make, serve: Serve, command: int) -> None:
    served = serve(make(SIZE))
    with served.connect(mode=EXTENDED) as peer:
        for size in (0, 1, 5000, MiB):
            cookie = peer.ask(
                command, 0, size, flags=PAYLOAD_LEN, payload=bytes(size), announce=size
            )
            assert is_error(peer.wait(cookie), wire.EINVAL, EXTENDED)
        assert peer.read(0, 512) == bytes(512)


def test_a_write_that_does_not_announce_its_payload(make: Make, serve: Serve) -> None:
    # The document wants PAYLOAD_LEN there, and servers to bear with clients that forget it.
    served = serve(make(SIZE))
    with served.connect(mode=EXTENDED) as peer:
        peer.note(5, WRITE, 0, 4)
        peer.send(request_bytes(WRITE, 0, 4, cookie=5, payload=b"data", extended=True))
        assert peer.wait(5).error == 0
        assert peer.read(0, 4) == b"data"


def test_requests_of_more_than_32_bits(make: Make, serve: Serve) -> None:
    size = 1 << 40
    served = serve(make(size))
    with served.connect(mode=EXTENDED, contexts=[BASE]) as peer:
        assert peer.size == size
        peer.write(size - 5, b"12345")
        status = peer.do(STATUS, 0, size).status[1]
        assert status == [(size - 65_536, HOLE), (65_536, 0)]
        assert peer.do(ZERO, 0, size).error == 0
        assert peer.read(size - 5, 5) == bytes(5)
        assert peer.do(TRIM, 0, size).error == 0
        assert peer.do(CACHE, 0, size).error == 0
    with served.connect(mode=STRUCTURED, contexts=[BASE]) as peer:
        extents = peer.do(STATUS, 0, 0xFFFFFFFF).status[1]
        assert sum(length for length, _ in extents) <= 0xFFFFFFFF
        assert all(flags == HOLE for _, flags in extents)


# --- errors of the storage ----------------------------------------------------------------------


def test_numbers_of_errors() -> None:
    told = {
        errno.EPERM: 1,
        errno.EACCES: 1,
        errno.EROFS: 1,
        errno.EIO: 5,
        errno.ENOMEM: 12,
        errno.EINVAL: 22,
        errno.ENOSPC: 28,
        errno.EDQUOT: 28,
        errno.EFBIG: 28,
        errno.EOVERFLOW: 75,
        errno.EOPNOTSUPP: 95,
        errno.ESHUTDOWN: 108,
        errno.ENOENT: 5,
        errno.ETIMEDOUT: 5,
        9999: 5,
    }
    assert {code: wire.wire_error(code) for code in told} == told


def test_statistics(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE))
    with served.connect(contexts=[BASE]) as peer:
        peer.write(0, b"a" * 1000)
        peer.write(0, b"a" * 3 * MiB, FUA)
        peer.read(0, 1000)
        peer.read(0, 2 * MiB)
        peer.do(FLUSH)
        peer.do(TRIM, 0, 512)
        peer.do(ZERO, 0, 512)
        peer.do(CACHE, 0, 512)
        peer.do(STATUS, 0, 512)
        peer.do(READ, SIZE, 1)
        peer.do(WRITE, SIZE, payload=b"x")
        stats = served.export.stats
        assert stats.requests == {0: 3, 1: 3, 2: 0, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, UNKNOWN: 0}
        assert (stats.bytes_read, stats.bytes_written) == (1000 + 2 * MiB, 1000 + 3 * MiB)
        assert (stats.errors, stats.clients, stats.connections) == (2, 1, 1)
    served.wait_until_alone()
    assert (stats.clients, stats.connections) == (0, 1)


# --- beginnings and ends ------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [False, True])
def test_export_name_and_requests_behind_it(make: Make, serve: Serve, pad: bool) -> None:
    """All in one piece: what comes behind the choice is transmission already."""
    served = serve(make(SIZE), name="disk")
    with served.connect(mode=None) as peer:
        flags = wire.FIXED_NEWSTYLE | (0 if pad else wire.NO_ZEROES)
        stream = flags.to_bytes(4, "big") + option_bytes(wire.OPT_EXPORT_NAME, b"disk")
        peer.note(1, WRITE, 5, 3)
        peer.note(2, READ, 5, 3)
        peer.note(3, FLUSH, 0, 0)
        stream += request_bytes(WRITE, 5, 3, cookie=1, payload=b"abc")
        peer.send(stream)
        peer.take(18)
        assert int.from_bytes(peer.take(8), "big") == SIZE
        peer.take(2 + (124 if pad else 0))
        assert not peer.wait(1).error
        peer.send(request_bytes(READ, 5, 3, cookie=2) + request_bytes(FLUSH, cookie=3))
        assert peer.wait(2).content(5, 3) == b"abc"
        assert not peer.wait(3).error


@modes
def test_everything_in_one_piece(make: Make, serve: Serve, mode: str) -> None:
    served = serve(make(SIZE))
    extended = mode == EXTENDED
    with served.connect(mode=None) as peer:
        stream = (3).to_bytes(4, "big")
        if mode != SIMPLE:
            stream += option_bytes(
                wire.OPT_EXTENDED_HEADERS if extended else wire.OPT_STRUCTURED_REPLY
            )
        stream += option_bytes(wire.OPT_GO, go_data(""))
        flags = PAYLOAD_LEN if extended else 0
        data = os.urandom(2 * MiB)
        for cookie in range(1, 4):
            peer.note(cookie, WRITE, 0, len(data))
            stream += request_bytes(
                WRITE, 0, len(data), flags=flags, cookie=cookie, payload=data, extended=extended
            )
        peer.mode = mode
        peer.send(stream)
        peer.take(18 + (20 if mode != SIMPLE else 0))
        assert peer.option_answer(wire.OPT_GO).kind == wire.REP_ACK
        for cookie in range(1, 4):
            assert not peer.wait(cookie).error
        assert peer.read(0, len(data)) == data


@modes
def test_who_says_no_more_hears_the_rest(make: Make, serve: Serve, mode: str) -> None:
    served = serve(make(SIZE))
    with served.connect(mode=mode) as peer:
        asked = [peer.ask(WRITE, n * 4096, payload=b"h" * 4096, flags=FUA) for n in range(20)]
        asked += [peer.ask(READ, 0, 100_000), peer.ask(ZERO, MiB, MiB), peer.ask(CACHE, 0, SIZE)]
        peer.socket.shutdown(socket.SHUT_WR)
        for cookie in asked:
            assert not peer.wait(cookie).error
        assert peer.ended()


def test_a_flush_is_for_the_writes_of_all_connections(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make(SIZE, format="raw", cache="writeback")
    served = serve(disk)
    order: list[str] = []
    node_flush = disk.node.flush

    def noted() -> None:
        order.append("flush")
        node_flush()

    monkeypatch.setattr(disk.node, "flush", noted)
    with served.connect() as one, served.connect() as other:
        one.write(0, b"written by one")
        order.append("answered")
        assert not other.do(FLUSH).error
    assert order == ["answered", "flush"]
