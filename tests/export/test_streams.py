# SPDX-License-Identifier: Apache-2.0
"""Many requests in flight: every answer is whole, none is missing, none stands inside another."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.export import offload
from blocklayer.export.offload import Offload
from blocklayer.nbd import wire
from blocklayer.testing.model import ModelDisk
from tests.export.conftest import Serve, Served
from tests.support.crew import run_together
from tests.support.nbd_peer import (
    CACHE,
    DF,
    EXTENDED,
    FAST_ZERO,
    FLUSH,
    FUA,
    MODES,
    NO_HOLE,
    READ,
    SIMPLE,
    STATUS,
    TRIM,
    WRITE,
    ZERO,
    NbdPeer,
    Reply,
)

Make = Callable[..., Disk]
BASE = wire.BASE_ALLOCATION


@pytest.mark.parametrize("format", ["qed", "raw"])
@pytest.mark.parametrize(("mode", "flags"), [(SIMPLE, 0), ("structured", DF), (EXTENDED, DF)])
def test_no_answer_stands_inside_another(
    make: Make, serve: Serve, mode: str, flags: int, format: str
) -> None:
    # The pieces of a large answer without chunks have no heads: flushes must wait for its end.
    served = serve(make(32 * MiB, format=format))
    data = os.urandom(MiB)
    served.disk.write(15 * MiB, data)
    with served.connect(mode=mode) as peer:
        for _ in range(3):
            asked = []
            for _ in range(10):
                asked += [peer.ask(FLUSH), peer.ask(ZERO, 31 * MiB, MiB), peer.ask(TRIM, 0, 512)]
                asked += [peer.ask(READ, 12 * MiB, 8 * MiB, flags=flags)]
            for cookie in asked:
                reply = peer.wait(cookie)
                assert not reply.error
                if reply.data or reply.holes:
                    content = reply.content(12 * MiB, 8 * MiB)
                    assert content[3 * MiB : 4 * MiB] == data
                    assert not any(content[: 3 * MiB])


@pytest.mark.parametrize("format", ["qed", "raw"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flags", [0, DF])
def test_small_and_large_reads_in_one_packet(
    make: Make, serve: Serve, mode: str, flags: int, format: str
) -> None:
    # The answers of small reads are put together in memory that the pieces of large ones go
    # through, too, where the kernel cannot send them: over holes, or as one chunk.
    served = serve(make(8 * MiB, format=format))
    data = os.urandom(2 * MiB)
    served.disk.write(0, data)
    expected = data + bytes(6 * MiB)
    if mode == SIMPLE:
        flags = 0
    for length in (5 * KiB, 40 * KiB, 256 * KiB, 3 * MiB):
        places = [(4 * KiB * number, 4 * KiB) for number in range(4)]
        places += [(2 * MiB - 4 * KiB, length), (512 * KiB, 512), (4 * MiB, length)]
        places += [(MiB, length), (MiB - 512, 1024)]
        with served.connect(mode=mode) as peer:
            asked = dict(enumerate(places, 1000))
            for cookie, (offset, count) in asked.items():
                peer.note(cookie, READ, offset, count, flags=flags)
            peer.send(
                b"".join(
                    peer.packed(cookie, READ, *place, flags=flags)
                    for cookie, place in asked.items()
                )
            )
            for cookie, (offset, count) in asked.items():
                reply = peer.wait(cookie)
                assert reply.content(offset, count) == expected[offset : offset + count]


# --- random requests against a model ------------------------------------------------------------


class Worker:
    """One connection, at work on the stripes of the disk that are its own."""

    STRIPE = 9 * 512
    DEPTH = 12

    def __init__(self, peer: NbdPeer, model: ModelDisk, stripes: list[int], seed: int) -> None:
        self.peer = peer
        self.model = model
        self.lock = threading.Lock()
        self.rng = random.Random(seed)
        self.free = stripes
        self.open: dict[int, tuple[int, Callable[[Reply], None]]] = {}

    def run(self, steps: int) -> None:
        """So many requests, several at a time."""
        for _ in range(steps):
            while len(self.open) >= self.rng.randrange(1, self.DEPTH):
                self.finish_one()
            self.ask_something()
        while self.open:
            self.finish_one()

    def finish_one(self) -> None:
        cookie, reply = self.peer.any_reply()
        stripe, finish = self.open.pop(cookie)
        finish(reply)
        self.free.append(stripe)

    def ask_something(self) -> None:
        rng = self.rng
        stripe = self.free.pop(rng.randrange(len(self.free)))
        start = stripe * self.STRIPE
        first = rng.choice([0, rng.randrange(self.STRIPE)])
        offset = start + first
        length = rng.choice([self.STRIPE - first, rng.randrange(1, self.STRIPE - first + 1)])
        fua = rng.choice([0, 0, 0, FUA])
        command = rng.choice([READ] * 6 + [WRITE] * 6 + [ZERO, ZERO, TRIM, FLUSH, CACHE, STATUS])
        payload, flags = b"", fua
        finish: Callable[[Reply], None]
        if command == READ:
            flags |= rng.choice([0, DF]) if self.peer.mode != SIMPLE else 0
            finish = lambda reply: self.compare(offset, length, reply)  # noqa: E731
        elif command == WRITE:
            payload = rng.choice([rng.randbytes(length), bytes(length)])
            finish = lambda reply: self.change(reply, self.model.write, offset, payload)  # noqa: E731
        elif command == ZERO:
            flags |= rng.choice([0, NO_HOLE, FAST_ZERO])
            finish = lambda reply: self.zeroed(reply, offset, length)  # noqa: E731
        elif command == TRIM:
            finish = lambda reply: self.change(reply, self.model.maybe_zero, offset, length)  # noqa: E731
        elif command == STATUS and self.peer.contexts:
            finish = lambda reply: self.compare_status(offset, length, reply)  # noqa: E731
        else:
            command = rng.choice([FLUSH, CACHE])
            finish = lambda reply: self.change(reply, lambda: None)  # noqa: E731
        if command == FLUSH:
            offset = length = 0
        cookie = self.peer.ask(command, offset, length, flags=flags, payload=payload)
        self.open[cookie] = (stripe, finish)

    def change(self, reply: Reply, change: Callable[..., None], *arguments: object) -> None:
        assert reply.error == 0, reply
        with self.lock:
            change(*arguments)

    def zeroed(self, reply: Reply, offset: int, length: int) -> None:
        if reply.error != wire.ENOTSUP:
            self.change(reply, self.model.write_zeroes, offset, length)

    def compare(self, offset: int, length: int, reply: Reply) -> None:
        assert reply.error == 0, reply
        with self.lock:
            assert self.model.difference(offset, reply.content(offset, length)) is None

    def compare_status(self, offset: int, length: int, reply: Reply) -> None:
        assert reply.error == 0, reply
        position = offset
        for count, flags in reply.status[self.peer.contexts[BASE]]:
            inside = min(count, offset + length - position)
            if flags & wire.STATE_ZERO:
                with self.lock:
                    assert self.model.difference(position, bytes(inside)) is None
            position += count


def exercise(served: Served, model: ModelDisk, *, seed: int, connections: int, steps: int) -> None:
    """Random requests over many connections; the disk is what the model says all along."""
    rng = random.Random(seed)
    stripes = model.size // Worker.STRIPE
    lock = threading.Lock()
    workers = []
    peers = []
    for number in range(connections):
        mode = rng.choice(MODES)
        peer = served.connect(mode=mode, contexts=[] if mode == SIMPLE else [BASE])
        peers.append(peer)
        own = list(range(number, stripes, connections))
        worker = Worker(peer, model, own, rng.getrandbits(32))
        worker.lock = lock
        workers.append(worker)
    try:
        run_together(*(lambda worker=worker: worker.run(steps) for worker in workers))
    finally:
        for peer in peers:
            peer.close()
    served.wait_until_alone()
    assert model.difference(0, served.disk.read(0, model.size)) is None


SIZE = 2 * MiB + 512


@pytest.mark.parametrize("discard", ["ignore", "unmap"])
@pytest.mark.parametrize("kind", ["qed", "raw", "qed over qed", "qed over raw", "small clusters"])
def test_random_requests_of_many_connections(
    make: Make, serve: Serve, tmp_path: Path, seed: int, kind: str, discard: str
) -> None:
    options: dict[str, object] = {"discard": discard}
    model = ModelDisk(SIZE)
    if " over " in kind:
        below = kind.rsplit(maxsplit=1)[-1]
        with make(SIZE - 70_000, format=below, name="base") as base:
            content = random.Random(seed).randbytes(MiB)
            base.write(0, content)
            model.write(0, content)
        model = model.overlay()
        options.update(backing=str(tmp_path / "base"), backing_format=below)
    elif kind == "small clusters":
        options.update(cluster_size=4 * KiB)
    disk = make(SIZE, format="raw" if kind == "raw" else "qed", **options)
    served = serve(disk)
    exercise(served, model, seed=seed, connections=6, steps=150)
    served.server.stop()
    served.disk.close()
    if kind != "raw":
        assert blocklayer.check(str(tmp_path / "disk.qed")).clean


@pytest.mark.parametrize(
    "kind", ["zero detection", "bitmaps", "listener", "direct", "writethrough"]
)
def test_random_requests_off_the_short_path(make: Make, serve: Serve, seed: int, kind: str) -> None:
    cache = {"direct": "none", "writethrough": "writethrough"}.get(kind, "writeback")
    disk = make(SIZE, cache=cache, detect_zeroes="on" if kind == "zero detection" else "off")
    if kind == "bitmaps":
        disk.add_bitmap("all", granularity=4096)
    served = serve(disk)
    model = ModelDisk(SIZE)
    exercise(served, model, seed=seed, connections=4, steps=120)
    if kind == "bitmaps":
        dirty = bytearray(SIZE)
        for offset, length in disk.bitmaps["all"].runs():
            dirty[offset : offset + length] = b"\1" * length
        assert all(dirty[i] for i in range(SIZE) if model.content[i]), "a change was not noted"


@pytest.mark.long
def test_64_connections_for_minutes(make: Make, serve: Serve, seed: int) -> None:
    served = serve(make(64 * MiB))
    model = ModelDisk(64 * MiB)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        exercise(served, model, seed=seed, connections=64, steps=100)
        seed += 1


def test_64_connections_at_once(make: Make, serve: Serve, seed: int) -> None:
    served = serve(make(16 * MiB))
    exercise(served, ModelDisk(16 * MiB), seed=seed, connections=64, steps=25)


def test_nobody_is_starved_by_greedy_neighbours(make: Make, serve: Serve) -> None:
    served = serve(make(64 * MiB, format="raw"))
    served.disk.write(0, os.urandom(64 * MiB))
    over = threading.Event()

    def greedy() -> None:
        with served.connect() as peer:
            while not over.is_set():
                asked = [peer.ask(READ, number * MiB, MiB) for number in range(16)]
                for cookie in asked:
                    assert not peer.wait(cookie).error

    def modest() -> None:
        try:
            with served.connect() as peer:
                for number in range(100):
                    assert len(peer.read(number * 4096, 4096)) == 4096
        finally:
            over.set()

    run_together(greedy, greedy, greedy, modest)


# --- several connections see each other's writes ------------------------------------------------


@pytest.mark.parametrize("cache", ["writeback", "writethrough"])
def test_writes_are_seen_on_every_connection(make: Make, serve: Serve, cache: str) -> None:
    served = serve(make(SIZE, cache=cache))
    peers = [served.connect(mode=mode) for mode in MODES * 2]
    assert all(peer.flags & wire.FLAG_CAN_MULTI_CONN for peer in peers)
    rng = random.Random(1)
    for step in range(200):
        data = rng.randbytes(rng.choice([1, 4096, 5000, 70_000]))
        offset = rng.randrange(SIZE - len(data))
        rng.choice(peers).write(offset, data)
        assert rng.choice(peers).read(offset, len(data)) == data, step
    for peer in peers:
        peer.close()


# --- the threads of one connection --------------------------------------------------------------


def test_threads_end_with_their_connection(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE))
    for _ in range(30):
        with served.connect() as peer:
            for cookie in [peer.ask(FLUSH) for _ in range(20)]:
                assert not peer.wait(cookie).error
    served.wait_until_alone()
    # They were idle for a while before: whoever connects again and again would fill the machine.
    others = [
        t for t in threading.enumerate() if t.name.startswith("nbd") and t.name != "nbd listener"
    ]
    for thread in others:
        thread.join(2)
    assert not any(thread.is_alive() for thread in others)


def test_a_machine_without_threads_serves_on(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(make(SIZE))

    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with served.connect() as peer:
        peer.read(0, 512)
        monkeypatch.setattr(threading, "Thread", NoThread)
        for cookie in [peer.ask(FLUSH), peer.ask(WRITE, 0, payload=b"x", flags=FUA)]:
            assert not peer.wait(cookie).error
        monkeypatch.undo()
        assert peer.read(0, 1) == b"x"


def test_every_job_is_done_once() -> None:
    pool = Offload("nbd test")
    done: list[int] = []
    for number in range(500):
        pool.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    pool.close()
    assert sorted(done) == list(range(500))


def test_jobs_find_threads_that_are_about_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "IDLE_SECONDS", 0.001)
    pool = Offload("nbd test")
    for _ in range(300):
        done = threading.Event()
        pool.submit(done.set)
        assert done.wait(10)
        threading.Event().wait(random.random() * 0.002)
    pool.close()
