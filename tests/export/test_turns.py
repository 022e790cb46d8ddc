# SPDX-License-Identifier: Apache-2.0
"""Large writes of one client: two threads take turns, and no byte or answer gets lost between."""

from __future__ import annotations

import contextlib
import errno
import gc
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.export.channel import Channel
from blocklayer.export.export import Export
from blocklayer.export.session import Session
from blocklayer.nbd import wire
from blocklayer.nbd.offers import Choice
from blocklayer.nbd.server_transmission import Item
from tests.export.conftest import Gate, Serve, threads_of_servers, wait_until
from tests.support.crew import run_together
from tests.support.nbd_peer import (
    FLUSH,
    FUA,
    MODES,
    READ,
    SIMPLE,
    WRITE,
    ZERO,
    NbdPeer,
    request_bytes,
)

Make = Callable[..., Disk]
SIZE = 24 * MiB
LARGE = 256 * KiB

modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The threads that have written while another received."""
    seen: set[int] = set()
    original = Session._may_hand_over

    def watched(self: Session, items: list[Item]) -> bool:
        handed_over = original(self, items)
        if handed_over:
            seen.add(threading.get_ident())
        return handed_over

    monkeypatch.setattr(Session, "_may_hand_over", watched)
    return seen


def packed(peer: NbdPeer, cookie: int, offset: int, payload: bytes, flags: int = 0) -> bytes:
    """A write, to be sent together with others."""
    peer.note(cookie, WRITE, offset, len(payload), flags=flags)
    return peer.packed(cookie, WRITE, offset, len(payload), flags, payload)


@modes
@pytest.mark.parametrize("kind", ["qed", "raw", "small clusters"])
def test_random_writes(
    make: Make, serve: Serve, seed: int, writers: set[int], mode: str, kind: str
) -> None:
    options = {"cluster_size": 4 * KiB} if kind == "small clusters" else {}
    disk = make(SIZE, format="raw" if kind == "raw" else "qed", **options)
    served = serve(disk)
    expected = bytearray(SIZE)
    own = SIZE // 3

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        with served.connect(mode=mode) as peer:
            for _ in range(6):
                quiet = (number + 1) * own - 8 * KiB
                edges = sorted(rng.sample(range(number * own, quiet), 16))
                expects = []
                stream = b""
                for index in range(0, 16, 2):
                    offset = edges[index]
                    length = min(edges[index + 1] - offset, rng.choice([700, 90_000, MiB + 9]))
                    flags = rng.choice([0, 0, 0, FUA])
                    cookie = 1000 + index
                    if rng.random() < 0.1:
                        peer.note(cookie, ZERO, offset, length)
                        stream += peer.packed(cookie, ZERO, offset, length)
                        payload = bytes(length)
                    else:
                        payload = rng.randbytes(length)
                        stream += packed(peer, cookie, offset, payload, flags)
                    expects.append((cookie, offset, payload))
                    if rng.random() < 0.3:
                        peer.note(cookie + 1, READ, quiet, 4 * KiB)
                        stream += peer.packed(cookie + 1, READ, quiet, 4 * KiB)
                        expects.append((cookie + 1, quiet, b""))
                peer.note(999, FLUSH, 0, 0)
                peer.send(stream + peer.packed(999, FLUSH, 0, 0))
                for cookie, offset, payload in expects:
                    reply = peer.wait(cookie)
                    assert reply.error == 0
                    if not payload:
                        assert reply.content(offset, 4 * KiB) == bytes(4 * KiB)
                    expected[offset : offset + len(payload)] = payload
                assert peer.wait(999).error == 0
                offset = rng.randrange(number * own, (number + 1) * own - 70_000)
                content = peer.read(offset, 70_000)
                assert content == expected[offset : offset + 70_000]

    run_together(*(lambda number=number: work(number) for number in range(3)))
    served.wait_until_alone()
    assert served.disk.read(0, SIZE) == expected
    assert writers, "nobody took turns"
    assert served.export.stats.requests[wire.CMD_WRITE] > 60
    served.server.stop()
    served.disk.close()
    if kind != "raw":
        assert blocklayer.check(served.disk.filename).clean


@modes
def test_a_read_before_a_large_write_is_answered(
    make: Make, serve: Serve, writers: set[int], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    wanted = [1]

    def receive_into(self: Channel, view: memoryview) -> int:
        """Not before so much has come."""
        while True:
            try:
                found = self._socket.recv(wanted[0], socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                found = b"not yet"
            if not found or (found != b"not yet" and len(found) >= wanted[0]):
                count = min(len(view), wanted[0]) if wanted[0] > 1 else len(view)
                wanted[0] = 1
                return self._socket.recv_into(view, count)
            time.sleep(0.001)

    monkeypatch.setattr(Channel, "receive_into", receive_into)
    served = serve(make(SIZE))
    served.disk.write(0, b"r" * 4096)
    with served.connect(mode=mode) as peer:
        peer.note(1, READ, 0, 4096)
        first = peer.packed(1, READ, 0, 4096) + packed(peer, 2, MiB, b"a" * 150 * KiB)
        other = packed(peer, 3, 2 * MiB, b"b" * 150 * KiB)
        wanted[0] = len(first) + 20
        sending = threading.Thread(target=peer.send, args=[first + other])
        sending.start()
        assert peer.wait(1).content(0, 4096) == b"r" * 4096
        for cookie, place, letter in ((2, MiB, b"a"), (3, 2 * MiB, b"b")):
            assert peer.wait(cookie).error == 0
            assert served.disk.read(place, 150 * KiB) == letter * 150 * KiB
        sending.join()
    served.wait_until_alone()


@modes
def test_a_client_that_leaves_in_the_middle(
    make: Make, serve: Serve, writers: set[int], mode: str
) -> None:
    served = serve(make(SIZE))
    for cut in (1, 20, 28, 40, 100_000, LARGE - 1):
        with served.connect(mode=mode) as peer:
            stream = b"".join(
                packed(peer, number, number * LARGE, bytes([number]) * LARGE)
                for number in range(1, 10)
            )
            peer.send(stream)
            peer.send(packed(peer, 10, 10 * LARGE, b"?" * LARGE)[:cut])
            for number in range(1, 10):
                assert peer.wait(number).error == 0
        served.wait_until_alone()
        wait_until(lambda: len(threads_of_servers()) <= 1, "the second thread is left")
        for number in range(1, 10):
            assert served.disk.read(number * LARGE, LARGE) == bytes([number]) * LARGE
        assert not any(served.disk.read(10 * LARGE, LARGE))
    assert writers


@modes
def test_a_write_that_fails_is_answered_alone(
    serve: Serve, tmp_path: Path, writers: set[int], mode: str
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    rule = {"event": "pwritev", "iotype": "write", "sector": 10 * LARGE // 512, "errno": 28}
    fault = {
        "driver": "fault",
        "image": {"driver": "file", "filename": str(path)},
        "inject-error": [rule],
    }
    disk = blocklayer.open({"driver": "raw", "file": fault}, mode="r+")
    served = serve(disk)
    with served.connect(mode=mode) as peer:
        for _ in range(5):
            # They do not touch, so that none of them is merged with the one that fails.
            stream = b"".join(
                packed(peer, number, 2 * number * LARGE, bytes([number]) * LARGE)
                for number in range(1, 12)
            )
            peer.send(stream)
            errors = {number: peer.wait(number).error for number in range(1, 12)}
            assert {number for number, error in errors.items() if error} == {5}
            assert errors[5] == wire.ENOSPC
        assert peer.read(8 * LARGE, LARGE) == bytes([4]) * LARGE
    served.wait_until_alone()
    assert writers


def test_what_is_in_flight_is_answered_before_the_server_stops(
    make: Make, serve: Serve, writers: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(make(SIZE, format="raw"))
    with served.connect() as peer:
        gate = Gate(served.disk, "write_each", monkeypatch)
        peer.send(packed(peer, 1, 0, b"a" * LARGE) + packed(peer, 2, LARGE, b"b" * LARGE))
        # Both are being written: one thread has handed over, the other one has what followed.
        for _ in range(2):
            assert gate.begun.acquire(timeout=10)
        stopping = threading.Thread(target=served.server.stop)
        stopping.start()
        gate.opened.set()
        assert [peer.wait(cookie).error for cookie in (1, 2)] == [0, 0]
        assert peer.ended()
        stopping.join(10)
        assert not stopping.is_alive()
    assert writers
    assert served.disk.read(0, 2 * LARGE) == b"a" * LARGE + b"b" * LARGE


def test_a_client_that_does_not_listen(make: Make, serve: Serve, writers: set[int]) -> None:
    """Its answers cannot be sent; when it goes, both threads end."""
    served = serve(make(SIZE, format="raw"))
    with served.connect() as peer:
        for first in range(0, 2000, 50):
            writes = [packed(peer, first + n, n * LARGE, bytes(LARGE)) for n in range(8)]
            peer.note(first + 40, READ, 0, 4 * KiB)
            peer.send(b"".join(writes) + peer.packed(first + 40, READ, 0, 4 * KiB))
    served.wait_until_alone()
    assert writers


def test_who_takes_over_after_an_error_does_not_go_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a write was lost: the other thread, which waits, must not answer the rest of it."""
    export = Export("", make(SIZE), writable=True)
    ours, theirs = socket.socketpair()
    session = Session(Channel(ours), export, Choice(export.offer(), SIMPLE, {}))
    request = request_bytes(WRITE, 0, 2 * MiB, payload=b"x" * 2 * MiB)

    def send() -> None:
        with contextlib.suppress(OSError):
            theirs.sendall(request)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(export.disk, "write", broken)
            with pytest.raises(MemoryError):
                session._receive_in_turn()
        session._receive_in_turn()
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
    finally:
        ours.close()
        sender.join()
        theirs.close()
        export.disk.close()


def broken(*arguments: object) -> None:
    raise MemoryError


def test_one_request_at_a_time_needs_no_second_thread(
    make: Make, serve: Serve, writers: set[int]
) -> None:
    served = serve(make(SIZE))
    with served.connect() as peer:
        for number in range(20):
            peer.write(number * LARGE, bytes([number]) * LARGE)
    served.wait_until_alone()
    assert not writers


def test_a_connection_that_fails_keeps_no_memory(
    make: Make, serve: Serve, writers: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its buffers go with it, and do not wait for the collector of cycles."""
    served = serve(make(SIZE, format="raw"))
    sessions: list[weakref.ref[Session]] = []
    original = Session._finish_writes

    def broken(self: Session, items: list[Item]) -> None:
        if threading.current_thread() is self._partner:
            sessions.append(weakref.ref(self))
            raise OSError(errno.EPIPE, "the client is gone")
        original(self, items)

    monkeypatch.setattr(Session, "_finish_writes", broken)
    gc.disable()
    try:
        for _ in range(5):
            with served.connect() as peer, contextlib.suppress(OSError):
                for number in range(40):
                    peer.send(packed(peer, number, LARGE * (number % 8), bytes(LARGE)))
            served.wait_until_alone()
        wait_until(lambda: not any(ref() for ref in sessions), "sessions are kept")
    finally:
        gc.enable()
    assert sessions
