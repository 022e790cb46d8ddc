# SPDX-License-Identifier: Apache-2.0
"""The server is killed in the middle of writes: what it promised to keep is there.

Each connection writes to blocks of its own, with a number that grows, and notes which numbers were
promised: by an answer to a write with FUA, or by a flush that was sent after the write's answer.
"""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from tests.support import needs
from tests.support.nbd_peer import EXTENDED, FLUSH, FUA, MODES, WRITE, ZERO, NbdPeer
from tests.support.nbd_process import blk_nbd

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


def kill_in_the_middle(tmp_path: Path, kind: str, rng: random.Random, seconds: float) -> int:
    """One life and death; how much was promised."""
    image, format, below = prepare(tmp_path, kind)
    path = tmp_path / "sock"
    blocks = list(range(SIZE // BLOCK))
    rng.shuffle(blocks)
    share = len(blocks) // CONNECTIONS
    with blk_nbd(path, "-t", "-e", "0", "-f", format, image) as server:
        writers = [
            Writer(
                server.connect(mode=rng.choice(MODES)),
                blocks[share * number : share * (number + 1)],
                rng.getrandbits(32),
            )
            for number in range(CONNECTIONS)
        ]
        threads = [threading.Thread(target=writer.run) for writer in writers]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        assert all(thread.is_alive() for thread in threads), "a writer has stopped"
        server.end(signal.SIGKILL)
        for thread in threads:
            thread.join(30)
        for writer in writers:
            writer.peer.close()
    with blocklayer.open(str(image), mode="r+", format=format) as disk:
        for writer in writers:
            writer.check(disk, below)
    if format == "qed":
        blocklayer.check(str(image), repair="all")
        assert blocklayer.check(str(image)).clean
        with blocklayer.open(str(image), format=format) as disk:
            for writer in writers:
                writer.check(disk, below)
    if kind == "backed":
        assert (tmp_path / "base").read_bytes() == below, "the backing file was changed"
    return sum(writer.promises for writer in writers)


@pytest.mark.parametrize("kind", ["qed", "backed", "raw"])
def test_killed_in_the_middle(tmp_path: Path, seed: int, kind: str) -> None:
    rng = random.Random(seed)
    promises = kill_in_the_middle(tmp_path, kind, rng, rng.uniform(0.3, 1.5))
    assert promises, "nothing was promised: this shows nothing"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["qed", "backed", "raw"])
def test_killed_again_and_again(tmp_path: Path, seed: int, kind: str) -> None:
    rng = random.Random(seed)
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        kill_in_the_middle(folder, kind, rng, rng.uniform(0.01, 2))


@needs("fio")
@pytest.mark.parametrize("kind", ["qed", "backed"])
def test_killed_under_fio(tmp_path: Path, kind: str) -> None:
    """As fast as fio can: the image is sound afterwards, and what lies below it untouched."""
    image, format, below = prepare(tmp_path, kind)
    path = tmp_path / "sock"
    with blk_nbd(path, "-t", "-e", "0", "-f", format, image) as server:
        fio = subprocess.Popen(
            [
                *("fio", "--name=f", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={path}"),
                *("--rw=randwrite", "--bs=4k", "--iodepth=16", f"--size={SIZE}", "--fsync=20"),
                *("--time_based", "--runtime=30"),
            ],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(1)
        assert fio.poll() is None, "fio has ended"
        server.end(signal.SIGKILL)
        fio.wait(30)
    blocklayer.check(str(image), repair="all")
    assert blocklayer.check(str(image)).clean
    with blocklayer.open(str(image), format=format) as disk:
        assert disk.read(0, SIZE) != below, "nothing was written"
    if kind == "backed":
        assert (tmp_path / "base").read_bytes() == below


def test_a_promise_with_zeroes(tmp_path: Path) -> None:
    """WRITE_ZEROES with FUA counts, too."""
    image, format, _ = prepare(tmp_path, "backed")
    path = tmp_path / "sock"
    with blk_nbd(path, "-t", "-f", format, image) as server, server.connect(mode=EXTENDED) as peer:
        peer.write(0, b"x" * MiB)
        assert not peer.do(ZERO, 0, MiB, flags=FUA).error
        assert not peer.do(ZERO, 3 * MiB, MiB, flags=FUA).error
        server.end(signal.SIGKILL)
    with blocklayer.open(str(image), format=format, mode="r+") as disk:
        assert disk.read(0, MiB) == bytes(MiB)
        assert disk.read(3 * MiB, MiB) == bytes(MiB)
