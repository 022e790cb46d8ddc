# SPDX-License-Identifier: Apache-2.0
"""Large writes of one client, sent as fast as it can: no byte and no answer gets lost."""

from __future__ import annotations

import contextlib
import errno
import gc
import random
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.export.session import Session
from blocklayer.nbd import wire
from blocklayer.nbd.server_transmission import Item
from tests.export.conftest import Gate, Serve, threads_of_servers
from tests.support.crew import run_together
from tests.support.nbd_peer import (
    FLUSH,
    FUA,
    MODES,
    READ,
    WRITE,
    ZERO,
    NbdPeer,
)
from tests.support.waiting import wait_until

Make = Callable[..., Disk]
SIZE = 24 * MiB
LARGE = 256 * KiB

modes = pytest.mark.parametrize("mode", MODES)


def packed(peer: NbdPeer, cookie: int, offset: int, payload: bytes, flags: int = 0) -> bytes:
    """A write, to be sent together with others."""
    peer.note(cookie, WRITE, offset, len(payload), flags=flags)
    return peer.packed(cookie, WRITE, offset, len(payload), flags, payload)


@modes
@pytest.mark.parametrize("kind", ["qed", "raw", "small clusters"])
def test_random_writes(make: Make, serve: Serve, seed: int, mode: str, kind: str) -> None:
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
    assert served.export.stats.requests[wire.CMD_WRITE] > 60
    served.server.stop()
    served.disk.close()
    if kind != "raw":
        assert blocklayer.check(served.disk.filename).clean


@modes
def test_a_client_that_leaves_in_the_middle(make: Make, serve: Serve, mode: str) -> None:
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
        wait_until(lambda: len(threads_of_servers()) <= 1, "a thread is left")
        for number in range(1, 10):
            assert served.disk.read(number * LARGE, LARGE) == bytes([number]) * LARGE
        assert not any(served.disk.read(10 * LARGE, LARGE))


@modes
def test_a_write_that_fails_is_answered_alone(serve: Serve, tmp_path: Path, mode: str) -> None:
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


def test_what_is_in_flight_is_answered_before_the_server_stops(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(make(SIZE, format="raw"))
    with served.connect() as peer:
        gate = Gate(served.disk, "write_each", monkeypatch)
        peer.send(packed(peer, 1, 0, b"a" * LARGE))
        assert gate.begun.acquire(timeout=10)
        stopping = threading.Thread(target=served.server.stop)
        stopping.start()
        gate.opened.set()
        assert peer.wait(1).error == 0
        assert peer.ended()
        stopping.join(10)
        assert not stopping.is_alive()
    assert served.disk.read(0, LARGE) == b"a" * LARGE


def test_a_client_that_does_not_listen(make: Make, serve: Serve) -> None:
    """Its answers cannot be sent; when it goes, its threads end."""
    served = serve(make(SIZE, format="raw"))
    with served.connect() as peer:
        for first in range(0, 2000, 50):
            writes = [packed(peer, first + n, n * LARGE, bytes(LARGE)) for n in range(8)]
            peer.note(first + 40, READ, 0, 4 * KiB)
            peer.send(b"".join(writes) + peer.packed(first + 40, READ, 0, 4 * KiB))
    served.wait_until_alone()


def test_a_connection_that_fails_keeps_no_memory(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its buffers go with it, and do not wait for the collector of cycles."""
    served = serve(make(SIZE, format="raw"))
    sessions: list[weakref.ref[Session]] = []
    original = Session._finish_writes

    def broken(self: Session, items: list[Item]) -> None:
        original(self, items)
        if items and items[-1][2] == 5:
            sessions.append(weakref.ref(self))
            raise OSError(errno.EPIPE, "the client is gone")

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
