# SPDX-License-Identifier: Apache-2.0
"""Clients of a server that is going to be killed: what they wrote, and what they were promised.

Each connection writes to blocks of its own, with a number that grows, and notes which numbers were
promised: by an answer to a write with FUA, or by a flush that was sent after the write's answer.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import blocklayer
from blocklayer.base.units import KiB, MiB
from tests.support.nbd_peer import FLUSH, FUA, MODES, WRITE, NbdPeer

SIZE = 64 * MiB
BLOCK = 4 * KiB
CONNECTIONS = 4
DEPTH = 16


def stamp(block: int, number: int) -> bytes:
    """A block's content after its write number so much; number 0 is zeroes."""
    if not number:
        return bytes(BLOCK)
    head = block.to_bytes(8, "big") + number.to_bytes(8, "big")
    return head * (BLOCK // len(head))


class Writer:
    """One connection; its blocks, and what it was promised about them."""

    def __init__(self, peer: NbdPeer, blocks: list[int], seed: int) -> None:
        self.peer = peer
        self.rng = random.Random(seed)
        self.free = blocks
        self.sent = dict.fromkeys(blocks, 0)
        """The newest number that was sent."""
        self.answered = dict.fromkeys(blocks, 0)
        self.promised = dict.fromkeys(blocks, 0)
        """The newest number that must be there."""
        self.open: dict[int, tuple[str, object]] = {}
        self.promises = 0

    def run(self) -> None:
        """Write until the server is gone."""
        with suppress(OSError, EOFError):
            while True:
                while len(self.open) >= DEPTH:
                    self.finish_one()
                self.ask_something()

    def ask_something(self) -> None:
        if self.rng.random() < 0.03:
            seen = {block: number for block, number in self.answered.items() if number}
            self.open[self.peer.ask(FLUSH)] = ("flush", seen)
            return
        block = self.free.pop(self.rng.randrange(len(self.free)))
        number = self.sent[block] = self.sent[block] + 1
        fua = FUA if self.rng.random() < 0.05 else 0
        data = stamp(block, number)
        cookie = self.peer.ask(WRITE, block * BLOCK, payload=data, flags=fua)
        self.open[cookie] = ("durable" if fua else "write", (block, number))

    def finish_one(self) -> None:
        cookie, reply = self.peer.any_reply()
        assert reply.error == 0
        kind, about = self.open.pop(cookie)
        if kind == "flush":
            assert isinstance(about, dict)
            for block, number in about.items():
                self.promised[block] = max(self.promised[block], number)
            self.promises += 1
            return
        assert isinstance(about, tuple)
        block, number = about
        self.answered[block] = number
        if kind == "durable":
            self.promised[block] = number
            self.promises += 1
        self.free.append(block)

    def check(self, disk: blocklayer.Disk, below: bytes) -> None:
        """Each block has a number that was sent, and no older one than was promised."""
        for block, sent in self.sent.items():
            data = disk.read(block * BLOCK, BLOCK)
            before = below[block * BLOCK : (block + 1) * BLOCK]
            if not self.promised[block] and data == before:
                continue
            number = int.from_bytes(data[8:16], "big")
            assert data == stamp(block, number), f"block {block} has something else"
            assert self.promised[block] <= number <= sent, (
                f"block {block}: {number}, promised {self.promised[block]}, sent {sent}"
            )


class Writers:
    """Several connections that write, each in a thread, until the server is gone."""

    def __init__(self, connect: Callable[..., NbdPeer], rng: random.Random) -> None:
        blocks = list(range(SIZE // BLOCK))
        rng.shuffle(blocks)
        share = len(blocks) // CONNECTIONS
        self._writers: list[Writer] = []
        try:
            for number in range(CONNECTIONS):
                peer = connect(mode=rng.choice(MODES))
                part = blocks[share * number : share * (number + 1)]
                self._writers.append(Writer(peer, part, rng.getrandbits(32)))
        except BaseException:
            for writer in self._writers:
                writer.peer.close()
            raise
        self._threads = [threading.Thread(target=writer.run) for writer in self._writers]
        for thread in self._threads:
            thread.start()

    def require_alive(self) -> None:
        """None of them has stopped early."""
        assert all(thread.is_alive() for thread in self._threads), "a writer has stopped"

    def end(self) -> None:
        """The server is gone."""
        for thread in self._threads:
            thread.join(30)
        for writer in self._writers:
            writer.peer.close()

    @property
    def promises(self) -> int:
        """How many there were."""
        return sum(writer.promises for writer in self._writers)

    def check(self, image: Path, format: str, below: bytes) -> None:
        """What was promised is there, before and after a repair, which has no error to repair."""
        self._check_contents(image, format, below)
        if format == "qed":
            assert not blocklayer.check(str(image)).corruptions
            blocklayer.check(str(image), repair="all")
            assert blocklayer.check(str(image)).clean
            self._check_contents(image, format, below)

    def _check_contents(self, image: Path, format: str, below: bytes) -> None:
        with blocklayer.open(str(image), mode="r+", format=format) as disk:
            for writer in self._writers:
                writer.check(disk, below)


def prepare(tmp_path: Path, kind: str) -> tuple[Path, str, bytes]:
    """An image, its format, and what it shows before anything is written."""
    image = tmp_path / "image"
    if kind == "raw":
        blocklayer.create(str(image), format="raw", size=SIZE)
        return image, "raw", bytes(SIZE)
    if kind == "qed":
        blocklayer.create(str(image), format="qed", size=SIZE)
        return image, "qed", bytes(SIZE)
    base = tmp_path / "base"
    below = random.Random(1).randbytes(MiB) * (SIZE // MiB)
    base.write_bytes(below)
    blocklayer.create(str(image), format="qed", size=SIZE, backing=str(base), backing_format="raw")
    return image, "qed", below
