# SPDX-License-Identifier: Apache-2.0
"""Madmen on a live server: it serves the sane ones all along, and nothing is left of the others."""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.export.export import Export
from tests.export.conftest import Serve, Served, threads_of_servers
from tests.export.test_hostile import conversation
from tests.nbd.test_server_fuzz import mutated, pieces, random_option
from tests.support.crew import run_together
from tests.support.nbd_peer import MODES
from tests.support.waiting import wait_until

Make = Callable[..., Disk]
SANE = 4 * MiB
"""Bytes of the sane client's export; the madmen may write, so they have another."""


def be_mad(served: Served, rng: random.Random, over: threading.Event, export: str) -> None:
    """Send nonsense that is nearly right, read or do not, and leave."""
    while not over.is_set():
        peer = served.connect(mode=None, patience=0.05)
        stream = conversation(rng.choice(MODES))[: rng.choice([300, 500, 2000, 4 * MiB])]
        if rng.random() < 0.3:
            options = b"".join(random_option(rng) for _ in range(rng.randrange(10)))
            stream = (3).to_bytes(4, "big") + options + stream[4:]
        stream = mutated(rng, stream)
        reads = rng.random() < 0.5
        with suppress(OSError):
            for piece in pieces(rng, stream)[:200]:
                peer.send(piece)
                if reads:
                    peer.socket.recv(100_000)
        peer.close()


def be_sane(served: Served, rng: random.Random, over: threading.Event) -> None:
    try:
        expected = bytearray(SANE)
        with served.connect(export="sane") as peer:
            while not over.is_set():
                length = rng.choice([1, 512, 4096, 100_000])
                offset = rng.randrange(SANE - length)
                data = rng.randbytes(length)
                peer.write(offset, data)
                expected[offset : offset + length] = data
                offset = rng.randrange(SANE - length)
                assert peer.read(offset, length) == expected[offset : offset + length]
    finally:
        over.set()


@pytest.mark.parametrize("seconds", [3.0, pytest.param(50.0, marks=pytest.mark.long)])
def test_madmen_do_not_disturb(make: Make, serve: Serve, seed: int, seconds: float) -> None:
    rng = random.Random(seed)
    served = serve(make(8 * MiB, name="mad.qed"))
    served.disk.write(0, os.urandom(4 * MiB))
    sane_disk = make(SANE, name="sane.qed")
    served.server.add(Export("sane", sane_disk, writable=True))
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.start()
    before = 0
    seeds = [rng.getrandbits(32) for _ in range(5)]

    def note_memory() -> None:
        nonlocal before
        over.wait(seconds / 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    started = time.monotonic()
    run_together(
        *(lambda s=s: be_mad(served, random.Random(s), over, "") for s in seeds[:4]),
        lambda: be_sane(served, random.Random(seeds[4]), over),
        note_memory,
    )
    timer.cancel()
    timer.join()
    assert time.monotonic() - started > seconds / 3
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # Four madmen may have sixteen threads each at large reads; more is a leak.
    assert grown * KiB < 128 * MiB, f"memory grows: {grown} KiB"
    served.wait_until_alone()
    # A thread that has told of its client's end lives on for a moment.
    wait_until(lambda: set(threads_of_servers()) <= {"nbd listener"}, "threads are left")
    served.server.remove("sane")
    sane_disk.close()
    served.disk.resize(8 * MiB)
