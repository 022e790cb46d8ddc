# SPDX-License-Identifier: Apache-2.0
"""Clients that are slow, greedy, mad or gone: nobody else notices, nothing is kept for them."""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.nbd import wire
from tests.export.conftest import Serve, Served, threads_of_servers
from tests.support.nbd_peer import (
    DISC,
    EXTENDED,
    FLUSH,
    FUA,
    MODES,
    PAYLOAD_LEN,
    READ,
    SIMPLE,
    STATUS,
    STRUCTURED,
    TRIM,
    WRITE,
    ZERO,
    context_data,
    go_data,
    option_bytes,
    request_bytes,
)

Make = Callable[..., Disk]
SIZE = 64 * MiB


@pytest.fixture
def served(make: Make, serve: Serve) -> Served:
    """A raw disk full of data."""
    disk = make(SIZE, format="raw")
    disk.write(0, os.urandom(MiB) * 64)
    return serve(disk)


def memory() -> int:
    """The most that this process has ever used, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KiB


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What happens inside does not take longer."""
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took < seconds, f"it took {took:.1f} s"


@contextmanager
def reading_slowly(served: Served, mode: str, pause: float, piece: int) -> Iterator[None]:
    """Somebody reads much, and takes it in small pieces; the socket holds little."""
    peer = served.connect(mode=mode)
    over = threading.Event()
    for number in range(8):
        peer.ask(READ, (number % 2) * 32 * MiB, 32 * MiB)

    def sip() -> None:
        with suppress(OSError):
            while not over.wait(pause):
                peer.socket.recv(piece)

    thread = threading.Thread(target=sip)
    thread.start()
    time.sleep(0.3)
    try:
        yield
    finally:
        over.set()
        thread.join()
        peer.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pause", [0.01, 1000.0])
def test_a_drain_does_not_wait_for_slow_readers(served: Served, mode: str, pause: float) -> None:
    with reading_slowly(served, mode, min(pause, 5.0), 1000):
        for _ in range(3):
            with within(2), served.disk.drain():
                pass
        with served.connect() as other, within(2):
            other.write(0, b"meanwhile")
            assert other.read(0, 9) == b"meanwhile"


@pytest.mark.parametrize("mode", MODES)
def test_resizing_under_slow_readers(served: Served, mode: str) -> None:
    with reading_slowly(served, mode, 0.01, 5000):
        for size in (SIZE // 2, SIZE, 100, SIZE):
            with within(2):
                served.disk.resize(size)
        with served.connect() as other:
            assert other.size == SIZE
            assert other.read(SIZE - 512, 512) == bytes(512)


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_bounded_for_clients_that_never_read(served: Served, mode: str) -> None:
    peers = []
    before = memory()
    for _ in range(8):
        peer = served.connect(mode=mode)
        peer.socket.settimeout(0.2)
        with suppress(OSError):
            for _ in range(5000):
                peer.ask(READ, 0, 32 * MiB)
                peer.ask(FLUSH)
                peer.ask(WRITE, 0, payload=bytes(100_000), flags=FUA)
        peers.append(peer)
    with served.connect() as other, within(5):
        for _ in range(50):
            other.read(0, 4096)
    assert memory() - before < 8 * 24 * MiB
    assert len(threads_of_servers()) <= 8 * 17 + 10
    for peer in peers:
        peer.close()
    served.wait_until_alone()


@pytest.mark.parametrize("mode", MODES)
def test_announcing_much_and_sending_little(served: Served, mode: str) -> None:
    before = memory()
    peers = []
    for _ in range(32):
        peer = served.connect(mode=mode)
        length = 32 * MiB
        flags = PAYLOAD_LEN if mode == EXTENDED else 0
        extended = mode == EXTENDED
        peer.send(request_bytes(WRITE, 0, length, flags=flags, cookie=1, extended=extended))
        peer.send(bytes(1000))
        peers.append(peer)
    with served.connect() as other, within(3):
        other.write(0, b"x")
        with served.disk.drain():
            pass
    assert memory() - before < 32 * 4 * MiB
    for peer in peers:
        peer.close()
    served.wait_until_alone()


def test_one_byte_at_a_time(served: Served) -> None:
    with served.connect(mode=None) as peer:
        stream = b"".join(
            (
                (3).to_bytes(4, "big"),
                option_bytes(wire.OPT_STRUCTURED_REPLY),
                option_bytes(wire.OPT_GO, go_data("")),
                request_bytes(WRITE, 0, 10, cookie=1, payload=b"0123456789"),
                request_bytes(READ, 2, 5, cookie=2),
                request_bytes(DISC),
            )
        )
        for at in range(len(stream)):
            peer.send(stream[at : at + 1])
            time.sleep(0.001)
        peer.mode = STRUCTURED
        peer.take(18 + 20)
        assert peer.option_answer(wire.OPT_GO).kind == wire.REP_ACK
        peer.note(1, WRITE, 0, 10)
        peer.note(2, READ, 2, 5)
        assert peer.wait(1).error == 0
        assert peer.wait(2).content(2, 5) == b"23456"
        assert peer.ended()


def conversation(mode: str) -> bytes:
    """All that a client could say, from its first byte on."""
    extended = mode == EXTENDED
    shape = {STRUCTURED: wire.OPT_STRUCTURED_REPLY, EXTENDED: wire.OPT_EXTENDED_HEADERS}.get(mode)
    flags = PAYLOAD_LEN if extended else 0
    parts = [(3).to_bytes(4, "big")]
    if shape is not None:
        parts += [option_bytes(shape)]
        parts += [option_bytes(wire.OPT_SET_META_CONTEXT, context_data("", ["base:allocation"]))]
    parts += [option_bytes(wire.OPT_LIST), option_bytes(wire.OPT_GO, go_data(""))]
    for number, (command, length) in enumerate(
        [(READ, 100), (READ, 5 * MiB), (FLUSH, 0), (ZERO, 700_000), (TRIM, 512), (STATUS, SIZE)]
    ):
        parts.append(request_bytes(command, 0, length, cookie=number, extended=extended))
    for size in (100, 3 * MiB):
        parts.append(
            request_bytes(WRITE, 0, size, flags=flags, payload=bytes(size), extended=extended)
        )
    return b"".join([*parts, request_bytes(DISC, extended=extended)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reads", [False, True])
def test_leaving_at_every_moment(served: Served, mode: str, reads: bool) -> None:
    stream = conversation(mode)
    cuts = [*range(0, 400, 7), *range(400, len(stream), len(stream) // 20), len(stream)]
    for cut in cuts:
        peer = served.connect(mode=None)
        with suppress(OSError):
            if reads:
                peer.take(18)
            peer.send(stream[:cut])
            if reads:
                peer.socket.settimeout(0.02)
                peer.socket.recv(random.Random(cut).choice([1, 100, 100_000]))
        peer.close()
    served.wait_until_alone()
    assert served.export.stats.clients == 0
    with served.connect(mode=mode) as peer:
        assert len(peer.read(0, MiB)) == MiB


def test_a_flood_of_nonsense(served: Served) -> None:
    with served.connect(mode=STRUCTURED) as peer:
        before = memory()
        bad = request_bytes(77, (1 << 64) - 1, 0xFFFFFFFF, flags=0xFFFF, cookie=5) * 100
        answers = threading.Thread(target=lambda: peer.take(1_000_000))
        answers.start()
        for _ in range(300):
            peer.send(bad)
        answers.join(20)
        assert not answers.is_alive()
        assert memory() - before < 64 * MiB


@pytest.mark.parametrize("mode", MODES)
def test_nonsense_instead_of_requests_ends_the_connection(served: Served, mode: str) -> None:
    with served.connect(mode=mode) as peer:
        cookie = peer.ask(READ, 0, 512)
        peer.send(b"\0" * 64)
        assert not peer.wait(cookie).error
        assert peer.ended()


def test_the_same_cookie_for_everything(served: Served) -> None:
    # The document forbids it; two answers come all the same.
    with served.connect(mode=SIMPLE) as peer:
        peer.send(request_bytes(READ, 0, 512, cookie=7) * 2)
        for _ in range(2):
            peer.note(7, READ, 0, 512)
            assert not peer.wait(7).error


def test_many_connections_come_and_go(served: Served) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(300):
        with served.connect(mode=None) as peer:
            peer.greet()
    for _ in range(100):
        with served.connect() as peer:
            peer.ask(READ, 0, 100_000)
    served.wait_until_alone()
    assert len(os.listdir("/proc/self/fd")) <= before
