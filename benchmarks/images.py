# SPDX-License-Identifier: Apache-2.0
"""Test images, the same bytes for the same arguments on every machine.

An image is made once a scratch directory and found again by its name, which says everything that
its content depends on. It is written under another name and renamed, so that a half-made one is
never found. The QED images are made by qemu-img: blocklayer is not asked to prepare its own exam.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from benchmarks.harness import VerificationFailed
from benchmarks.process import run

KiB = 1024
MiB = 1024 * KiB
GRAIN = 4 * KiB  # runs start and end where filesystems and zero detection can see them
RUN_MIN = 64 * KiB
RUN_MAX = 1 * MiB


class Content(Enum):
    DATA = "data"
    ZERO = "zero"  # zeroes that are written, not left out
    HOLE = "hole"


SHARES = {Content.DATA: 0.4, Content.ZERO: 0.1, Content.HOLE: 0.5}


@dataclass(frozen=True, slots=True)
class Run:
    offset: int
    length: int
    content: Content


def mixed_runs(size: int, seed: int) -> Iterator[Run]:
    """Runs of 64 KiB to 1 MiB that cover `size` and have the shares of `SHARES`."""
    rng = random.Random(seed)
    left = {content: int(size * share) for content, share in SHARES.items()}
    offset = 0
    while offset < size:
        weights = [max(left[content], 0) for content in SHARES]
        content = rng.choices(list(SHARES), weights if any(weights) else None)[0]
        length = rng.randrange(RUN_MIN, RUN_MAX + 1, GRAIN)
        length = min(length, size - offset)
        left[content] -= length
        yield Run(offset, length, content)
        offset += length


def write_random(path: Path, size: int, seed: int) -> None:
    rng = random.Random(seed)
    with path.open("wb") as file:
        for offset in range(0, size, MiB):
            file.write(rng.randbytes(min(MiB, size - offset)))


def write_mixed(path: Path, size: int, seed: int) -> None:
    rng = random.Random(seed + 1)
    with path.open("wb") as file:
        file.truncate(size)
        for piece in mixed_runs(size, seed):
            if piece.content is not Content.HOLE:
                data = piece.content is Content.DATA
                file.seek(piece.offset)
                file.write(rng.randbytes(piece.length) if data else bytes(piece.length))


def make_qed(path: Path, source: Path) -> None:
    run(["qemu-img", "convert", "-f", "raw", "-O", "qed", str(source), str(path)])


def write_fragmented(path: Path, size: int, seed: int) -> None:
    """A QED image with every other cluster allocated, out of order; the clusters are holes.

    Written by hand: no tool makes such an image in reasonable time.
    """
    cluster, table_clusters = 64 * KiB, 4
    table = cluster * table_clusters
    entries = table // 8
    tables = -(-size // (entries * cluster))
    first_table = cluster + table
    data = first_table + tables * table
    order = list(range(0, size // cluster, 2))
    random.Random(seed).shuffle(order)
    l2 = array("Q", bytes(tables * table))
    for number, index in enumerate(order):
        l2[index] = data + number * cluster
    l1 = array("Q", range(first_table, data, table))
    fields = (0x00444551, cluster, table_clusters, 1, 0, 0, 0, cluster, size, 0, 0)
    with path.open("wb") as file:
        file.write(struct.pack("<4I5Q2I", *fields))
        for offset, entries_of in ((cluster, l1), (first_table, l2)):
            if sys.byteorder == "big":
                entries_of.byteswap()
            file.seek(offset)
            file.write(entries_of.tobytes())
        file.truncate(data + len(order) * cluster)


@dataclass(frozen=True, slots=True)
class Images:
    """The images of one scratch directory."""

    directory: Path

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self.directory / name
        if not path.exists():
            partial = path.with_name(f"{name}.partial")
            partial.unlink(missing_ok=True)
            make(partial)
            partial.rename(path)
        return path

    def random(self, size: int, *, seed: int = 1) -> Path:
        """A raw image full of random bytes."""
        name = f"random-{size // MiB}m-{seed}.raw"
        return self._made(name, lambda path: write_random(path, size, seed))

    def mixed(self, size: int, *, seed: int = 1) -> Path:
        """A raw image of data, written zeroes and holes."""
        name = f"mixed-{size // MiB}m-{seed}.raw"
        return self._made(name, lambda path: write_mixed(path, size, seed))

    def fragmented(self, size: int, *, seed: int = 1) -> Path:
        """A QED image of scattered clusters."""
        name = f"fragmented-{size // MiB}m-{seed}.qed"
        return self._made(name, lambda path: write_fragmented(path, size, seed))

    def qed(self, source: Path) -> Path:
        """The same guest bytes as a QED image."""
        return self._made(f"{source.stem}.qed", lambda path: make_qed(path, source))

    def scratch(self, name: str) -> Path:
        """A path for a target; what was there is gone."""
        path = self.directory / name
        path.unlink(missing_ok=True)
        return path


def warm(path: Path) -> None:
    """Read a file, so that it is in the page cache for whoever reads it next."""
    buffer = bytearray(MiB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def warm_data(path: Path) -> None:
    """The same for a sparse file: only what is not a hole."""
    with path.open("rb", buffering=0) as file:
        position = 0
        while True:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                return  # no more data
            end = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            while position < end:
                position += len(os.pread(file.fileno(), min(MiB, end - position), position))


def write_out(path: Path) -> None:
    """Flush one file: its pages are clean afterwards, and still cached."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_guest_bytes(
    expected: Path, expected_format: str, actual: Path, actual_format: str
) -> None:
    """Ask qemu-img whether two images have the same content; complain if not."""
    argv = ["qemu-img", "compare", "-f", expected_format, "-F", actual_format]
    usage = run([*argv, str(expected), str(actual)], allowed=(0, 1))
    if usage.code:
        raise VerificationFailed(f"{actual.name} differs from {expected.name}: {usage.stdout}")


def sound(path: Path, format_name: str) -> None:
    """Ask qemu-img whether the metadata of an image is consistent: no error, no leak."""
    usage = run(["qemu-img", "check", "-f", format_name, str(path)], allowed=range(256))
    if usage.code:
        raise VerificationFailed(f"qemu-img check {path.name}: {usage.stdout.strip()}")


def allocated_mib(path: Path) -> float:
    """What a file occupies, holes excluded."""
    return path.stat().st_blocks * 512 / MiB
