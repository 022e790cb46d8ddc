# SPDX-License-Identifier: Apache-2.0
"""Random and mutated streams into the server's engines: no exception and no growth."""

from __future__ import annotations

import random
import struct
import time

import pytest

from blocklayer.nbd import wire
from blocklayer.nbd.offers import Offer, Offers
from blocklayer.nbd.server_handshake import (
    CHOSEN,
    ENDED,
    HAGGLING,
    OPTION_LENGTH_MAX,
    STARTTLS,
    TLS_OFF,
    TLS_REQUIRED,
    ServerHandshake,
)
from blocklayer.nbd.server_transmission import BUFFER_LARGE, RequestReader
from tests.support.nbd_peer import context_data, go_data, option_bytes, request_bytes

SECONDS = 1.5
LONG_SECONDS = 60.0
NAMES = ["", "disk", "é", "x" * 4096, "no", "x" * 5000]
CONTEXTS = ["base:allocation", "base:", "qemu:", "qemu:dirty-bitmap:b", "", "x" * 300]


class Shelf(Offers):
    def names(self) -> list[tuple[str, str]]:
        return [("", ""), ("disk", "text"), ("é", "x" * 4096)]

    def find(self, name: str) -> Offer | None:
        if name not in dict(self.names()):
            return None
        return Offer(name=name, size=1 << 62, flags=3, contexts=CONTEXTS[:1] + CONTEXTS[3:4])


def random_option(rng: random.Random) -> bytes:
    """Something like an option."""
    option = rng.choice([*wire.OPTION_NAMES, rng.getrandbits(32)])
    name = rng.choice(NAMES)
    data = rng.choice(
        [
            b"",
            name.encode(),
            go_data(name, [rng.randrange(5) for _ in range(rng.randrange(4))]),
            context_data(name, [rng.choice(CONTEXTS) for _ in range(rng.randrange(4))]),
            rng.randbytes(rng.randrange(60)),
        ]
    )
    length = len(data)
    if rng.random() < 0.05:
        length = rng.choice([0, length + 1, 70_000, 1 << 25, 0xFFFFFFFF])
    return option_bytes(option, data, length=length)


def mutated(rng: random.Random, stream: bytes) -> bytes:
    """Some bytes changed, cut out or put in."""
    data = bytearray(stream)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 10])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                del data[at : at + rng.randrange(20)]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(20))
            case _:
                data[at : at + 4] = struct.pack(">I", rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))
    return bytes(data)


def pieces(rng: random.Random, stream: bytes) -> list[bytes]:
    """A stream cut at random."""
    result = []
    while stream:
        size = rng.choice([1, 3, 16, 100, 5000, 1 << 20])
        result.append(stream[:size])
        stream = stream[size:]
    return result


def negotiate_at_random(rng: random.Random) -> str:
    """One negotiation with a mad client; how it ended."""
    handshake = ServerHandshake(Shelf(), tls=rng.choice([TLS_OFF, TLS_OFF, TLS_REQUIRED]))
    stream = struct.pack(">I", rng.choice([0, 1, 2, 3, 3, 3, 3, rng.getrandbits(32)]))
    stream = mutated(rng, stream + b"".join(random_option(rng) for _ in range(rng.randrange(20))))
    if rng.random() < 0.05:
        stream = rng.randbytes(2000)
    for piece in pieces(rng, stream):
        before = len(handshake.rest)
        handshake.receive(piece)
        while handshake.outgoing():
            pass
        assert handshake.state in (HAGGLING, STARTTLS, CHOSEN, ENDED)
        if handshake.state == HAGGLING:
            assert len(handshake.rest) <= OPTION_LENGTH_MAX + 16
        if handshake.state == STARTTLS:
            assert not handshake.rest
            handshake.secured()
        if handshake.state in (CHOSEN, ENDED):
            assert len(handshake.rest) <= before + len(piece)
            break
    assert (handshake.choice is not None) == (handshake.state == CHOSEN)
    return handshake.state


def transmit_at_random(rng: random.Random) -> bool:
    """One transmission with a mad client; whether the engine found it broken."""
    extended = rng.random() < 0.5
    reader = RequestReader(extended=extended)
    stream = b""
    for _ in range(rng.randrange(1, 40)):
        payload = rng.randbytes(rng.choice([0, 1, 512, 5000]))
        command = rng.choice([0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, rng.getrandbits(16)])
        flags = rng.choice([0, 0, 1, 32, rng.getrandbits(16)])
        carries = command == 1 or (extended and flags & 32)
        length = len(payload) if carries else rng.getrandbits(rng.choice([8, 24, 32]))
        if rng.random() < 0.02:
            length = rng.choice([1 << 20, (1 << 20) + 1, 1 << 25, 0xFFFFFFFF])
        stream += request_bytes(
            *(command, rng.getrandbits(64), length),
            flags=flags,
            cookie=rng.getrandbits(64),
            payload=payload if carries else b"",
            extended=extended,
        )
    taken = 0
    for piece in pieces(rng, mutated(rng, stream)):
        while piece:
            space = reader.space()
            assert 0 < len(space) <= BUFFER_LARGE
            count = min(len(space), len(piece))
            space[:count] = piece[:count]
            for item in reader.received(count):
                view = item[5]
                taken += 0 if view is None else len(view)
            piece = piece[count:]
            if reader.problem:
                return True
    assert taken <= len(stream) + 200
    return False


@pytest.mark.parametrize("seconds", [SECONDS, pytest.param(LONG_SECONDS, marks=pytest.mark.long)])
def test_negotiating_with_madmen(seed: int, seconds: float) -> None:
    rng = random.Random(seed)
    deadline = time.monotonic() + seconds
    ends: dict[str, int] = {}
    while time.monotonic() < deadline:
        end = negotiate_at_random(rng)
        ends[end] = ends.get(end, 0) + 1
    assert {CHOSEN, ENDED, HAGGLING} <= ends.keys(), "the streams are too mad to reach anything"


@pytest.mark.parametrize("seconds", [SECONDS, pytest.param(LONG_SECONDS, marks=pytest.mark.long)])
def test_transmitting_for_madmen(seed: int, seconds: float) -> None:
    rng = random.Random(seed)
    deadline = time.monotonic() + seconds
    ends = {True: 0, False: 0}
    while time.monotonic() < deadline:
        ends[transmit_at_random(rng)] += 1
    assert all(ends.values())
