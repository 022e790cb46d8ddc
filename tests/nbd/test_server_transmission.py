# SPDX-License-Identifier: Apache-2.0
"""The server's transmission engine: requests out of a stream cut anywhere, answers into bytes."""

import random
import struct

import pytest

from blocklayer.nbd import wire
from blocklayer.nbd.offers import EXTENDED, SIMPLE, STRUCTURED
from blocklayer.nbd.server_transmission import (
    BUFFER_LARGE,
    BUFFER_SMALL,
    LARGE,
    PIECE,
    SKIP_MAX,
    WHOLE_MAX,
    Item,
    Replies,
    RequestReader,
)
from tests.support.nbd_peer import FUA, PAYLOAD_LEN, READ, STATUS, TRIM, WRITE, request_bytes

Request = tuple[int, int, int, int, int, bytes]
"""(command, flags, cookie, offset, length, payload)"""


class Listener:
    """Puts a stream together again, as a session would."""

    def __init__(self, *, extended: bool) -> None:
        self.reader = RequestReader(extended=extended)
        self.requests: list[Request] = []
        self._large: tuple[int, int, int, int] | None = None
        self._collected = bytearray()

    def give(self, data: bytes) -> None:
        """Receive, in as many steps as the reader's space wants."""
        while data:
            space = self.reader.space()
            assert len(space), "no room: this would be taken for the end"
            count = min(len(space), len(data))
            space[:count] = data[:count]
            for item in self.reader.received(count):
                self._note(item)
            data = data[count:]

    def _note(self, item: Item) -> None:
        command, flags, cookie, offset, length, view = item
        if command == LARGE:
            assert self._large is None
            assert view is None
            self._large = (flags, cookie, offset, length)
            self._collected.clear()
        elif command == PIECE:
            assert self._large is not None
            assert view is not None
            assert 0 < len(view) <= WHOLE_MAX
            assert (flags, cookie) == self._large[:2]
            assert offset == self._large[2] + len(self._collected)
            self._collected += view
            assert length == self._large[3] - len(self._collected)
            if not length:
                whole = (WRITE, *self._large, bytes(self._collected))
                self.requests.append(whole)
                self._large = None
        else:
            payload = b"" if view is None else bytes(view)
            self.requests.append((command, flags, cookie, offset, length, payload))


def pack(request: Request, *, extended: bool) -> bytes:
    command, flags, cookie, offset, length, payload = request
    return request_bytes(
        command, offset, length, flags=flags, cookie=cookie, payload=payload, extended=extended
    )


def random_requests(rng: random.Random, count: int, *, extended: bool) -> list[Request]:
    """Requests of every kind, known or not; some are large."""
    requests: list[Request] = []
    for cookie in range(count):
        command = rng.choice([0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xFFFF])
        flags = rng.choice([0, FUA, rng.getrandbits(16)])
        length = rng.getrandbits(rng.randrange(1, 64 if extended else 32))
        payload = b""
        if command == WRITE or (extended and flags & PAYLOAD_LEN):
            most = 12 if rng.random() < 0.9 else 22 if command == WRITE else 20
            length = rng.randrange((1 << most) + 1)
            payload = rng.randbytes(length)
        number = rng.getrandbits(64) if rng.random() < 0.1 else cookie
        requests.append((command, flags, number, rng.getrandbits(64), length, payload))
    return requests


@pytest.mark.parametrize("extended", [False, True])
def test_every_command_at_every_cut(extended: bool) -> None:
    requests: list[Request] = [
        (command, flags, 0x1122334455667788, (1 << 64) - 1, 7, b"payload" if command == 1 else b"")
        for command in (0, 1, 2, 3, 4, 5, 6, 7, 8, 0xFFFF)
        for flags in (0, 0xFFFF & ~PAYLOAD_LEN)
    ]
    requests.append((WRITE, 0, 1, 2, 0, b""))
    stream = b"".join(pack(request, extended=extended) for request in requests)
    for cut in range(len(stream) + 1):
        listener = Listener(extended=extended)
        listener.give(stream[:cut])
        assert listener.reader.idle == (cut in boundaries(requests, extended))
        listener.give(stream[cut:])
        assert listener.requests == requests
        assert listener.reader.idle
    listener = Listener(extended=extended)
    for at in range(len(stream)):
        listener.give(stream[at : at + 1])
    assert listener.requests == requests


def boundaries(requests: list[Request], extended: bool) -> set[int]:
    """Offsets in a stream between requests."""
    ends, end = {0}, 0
    for request in requests:
        end += len(pack(request, extended=extended))
        ends.add(end)
    return ends


@pytest.mark.parametrize("extended", [False, True])
def test_random_streams_in_random_pieces(rng: random.Random, extended: bool) -> None:
    for _ in range(20):
        requests = random_requests(rng, 40, extended=extended)
        stream = b"".join(pack(request, extended=extended) for request in requests)
        listener = Listener(extended=extended)
        while stream:
            size = rng.choice([1, 10, 27, 28, 29, 1000, 100_000, 3_000_000])
            listener.give(stream[:size])
            stream = stream[size:]
        assert listener.reader.problem == ""
        assert listener.requests == requests


@pytest.mark.parametrize("extended", [False, True])
def test_feeding_keeps_payloads(rng: random.Random, extended: bool) -> None:
    # The buffer is used again and again inside one call: what was handed out must not change.
    requests = [
        (WRITE, 0, cookie, 0, size, rng.randbytes(size))
        for cookie, size in enumerate([10, BUFFER_SMALL - 50, 5, 100_000, 200_000, 3, 0, 70_000])
    ]
    stream = b"".join(pack(request, extended=extended) for request in requests)
    for cut in (0, 1, 28, 300, BUFFER_SMALL, len(stream) - 1):
        reader = RequestReader(extended=extended)
        items: list[Request] = []
        for piece in (stream[:cut], stream[cut:]):
            for item in reader.feed(piece):
                payload = b"" if item[5] is None else bytes(item[5])
                items.append((*item[:5], payload))
        assert items == requests


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize(
    "size",
    [WHOLE_MAX - 1, WHOLE_MAX, WHOLE_MAX + 1, 2 * WHOLE_MAX, 5 * WHOLE_MAX - 7, 32 << 20],
)
def test_payloads_around_what_is_handed_over_whole(size: int, extended: bool) -> None:
    payload = random.Random(size).randbytes(size)
    flags = PAYLOAD_LEN if extended else 0
    large: Request = (WRITE, flags, 7, 1 << 50, size, payload)
    small: Request = (READ, 0, 8, 0, 512, b"")
    stream = pack(large, extended=extended) + pack(small, extended=extended)
    for step in (len(stream), 1_000_003, 65_536):
        listener = Listener(extended=extended)
        for at in range(0, len(stream), step):
            listener.give(stream[at : at + step])
        assert listener.requests == [large, small]


def test_memory_does_not_depend_on_what_is_announced() -> None:
    reader = RequestReader()
    for length in (0, 1000, WHOLE_MAX, 32 << 20, 0xFFFFFFFF):
        reader = RequestReader()
        reader.feed(request_bytes(WRITE, 0, length))
        assert len(reader.space()) <= BUFFER_LARGE
        reader.feed(bytes(min(length, 5 << 20) // 2))
        assert len(reader.space()) <= BUFFER_LARGE


@pytest.mark.parametrize("extended", [False, True])
def test_a_wrong_magic_number_ends_it_behind_what_was_right(extended: bool) -> None:
    good = request_bytes(READ, 0, 512, extended=extended)
    other = request_bytes(READ, 0, 512, extended=not extended)
    for bad in (other + other, bytes(32), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        reader = RequestReader(extended=extended)
        items = reader.feed(good + good + bad)
        assert [item[0] for item in items] == [READ, READ]
        assert "magic" in reader.problem


@pytest.mark.parametrize(
    ("command", "length"),
    [(WRITE, SKIP_MAX + 1), (WRITE, (1 << 64) - 1), (STATUS, WHOLE_MAX + 1), (TRIM, 1 << 63)],
)
def test_payloads_that_nobody_would_send_end_it(command: int, length: int) -> None:
    reader = RequestReader(extended=True)
    items = reader.feed(request_bytes(command, 0, length, flags=PAYLOAD_LEN, extended=True))
    assert items == []
    assert str(length) in reader.problem


def test_payloads_of_other_commands_are_taken_off_the_stream() -> None:
    reader = RequestReader(extended=True)
    stream = request_bytes(READ, 5, 3, flags=PAYLOAD_LEN, payload=b"abc", extended=True)
    stream += request_bytes(READ, 6, 3, extended=True)
    items = reader.feed(stream)
    assert [(item[3], item[5] and bytes(item[5])) for item in items] == [(5, b"abc"), (6, None)]


def test_the_flag_means_nothing_where_headers_are_compact() -> None:
    reader = RequestReader()
    stream = request_bytes(READ, 5, 3, flags=PAYLOAD_LEN) + request_bytes(READ, 6, 3)
    assert [item[3] for item in reader.feed(stream)] == [5, 6]


# --- answers ------------------------------------------------------------------------------------


def test_simple_replies() -> None:
    replies = Replies(SIMPLE)
    magic = bytes.fromhex("67446698")
    assert replies.done(0x0102030405060708, 9) == magic + bytes(4) + bytes(range(1, 9))
    assert replies.simple_data(1) == magic + bytes(4) + (1).to_bytes(8, "big")
    error = replies.error(1, 0, wire.ENOSPC, "words for nobody")
    assert error == magic + b"\0\0\0\x1c" + (1).to_bytes(8, "big")


def test_structured_replies() -> None:
    replies = Replies(STRUCTURED)

    def chunk(flags: int, kind: int, payload: bytes) -> bytes:
        return struct.pack(">IHHQI", 0x668E33EF, flags, kind, 7, len(payload)) + payload

    assert replies.end(7, 0) == chunk(1, 0, b"")
    assert replies.data(7, 0, 4096, 10, last=False) == chunk(0, 1, bytes(8) + bytes(10))[:20] + (
        4096
    ).to_bytes(8, "big")
    assert replies.hole(7, 0, 4096, 10, last=True) == chunk(1, 2, struct.pack(">QI", 4096, 10))
    words = "zu groß"
    payload = struct.pack(">IH", 5, 8) + words.encode()
    assert replies.error(7, 0, 5, words) == chunk(1, 0x8001, payload)
    assert replies.error_at(7, 0, 5, words, 99) == chunk(
        1, 0x8002, payload + (99).to_bytes(8, "big")
    )
    assert replies.status(7, 0, 3, [(512, 0), (1024, 3)], last=True) == chunk(
        1, 5, struct.pack(">IIIII", 3, 512, 0, 1024, 3)
    )


def test_extended_replies() -> None:
    replies = Replies(EXTENDED)

    def chunk(flags: int, kind: int, payload: bytes) -> bytes:
        return struct.pack(">IHHQQQ", 0x6E8A278C, flags, kind, 7, 1 << 40, len(payload)) + payload

    offset = 1 << 40
    assert replies.done(7, offset) == replies.end(7, offset) == chunk(1, 0, b"")
    assert replies.hole(7, offset, offset, 10, last=False) == chunk(
        0, 2, struct.pack(">QI", offset, 10)
    )
    assert replies.error(7, offset, 5, "") == chunk(1, 0x8001, struct.pack(">IH", 5, 0))
    assert replies.status(7, offset, 3, [(1 << 35, 1), (1, 2)], last=True) == chunk(
        1, 6, struct.pack(">IIQQQQ", 3, 2, 1 << 35, 1, 1, 2)
    )


@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_long_messages_are_cut_between_characters(mode: str) -> None:
    replies = Replies(mode)
    head = 20 if mode == STRUCTURED else 32
    for data, tail in (
        (replies.error(7, 0, 5, "é" * 5000), 0),
        (replies.error_at(7, 0, 5, "x" + "é" * 5000, 3), 8),
    ):
        (count,) = struct.unpack_from(">H", data, head + 4)
        assert count <= wire.MAX_STRING
        assert len(data) == head + 6 + count + tail
        data[head + 6 : head + 6 + count].decode()
