# SPDX-License-Identifier: Apache-2.0
"""The write log: its format, replaying it, and the reference's own log of the same requests."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import blocklayer
from blocklayer.base.errors import FormatError, InvalidArgument
from blocklayer.base.units import SECTOR, KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.node import Node
from blocklayer.core.opening import Opener, OpenFlags
from blocklayer.filters.write_log import (
    FLAG_DISCARD,
    FLAG_FLUSH,
    MAGIC,
    Entry,
    Superblock,
    WriteLogNode,
)
from blocklayer.protocols.memory import MemoryNode
from blocklayer.testing.liar import storage
from tests.support import needs
from tests.support.graphs import memory, open_disk, snapshot
from tests.support.qed_image import QedImage

SIZE = MiB


class Logged(NamedTuple):
    sector: int
    sectors: int
    flags: int
    data: bytes


def entries(log: bytes) -> Iterator[Logged]:
    """What the superblock counts."""
    head = Superblock.unpack_from(log)
    assert (head.magic, head.version) == (MAGIC, 1)
    position = head.sector_size
    for _ in range(head.entries):
        entry = Entry.unpack_from(log, position)
        assert entry.data_length == 0
        position += head.sector_size
        length = 0 if entry.flags & FLAG_DISCARD else entry.sectors * head.sector_size
        yield Logged(entry.sector, entry.sectors, entry.flags, log[position : position + length])
        position += length


def logged(log: Node, **options: int) -> tuple[Disk, MemoryNode]:
    child = memory("child", SIZE)
    node = WriteLogNode(child, log, **options)  # type: ignore[arg-type]
    return Disk(storage(node), discard="unmap"), child


def test_the_structures_are_those_of_the_kernel() -> None:
    assert [(f.name, f.offset, f.size) for f in Superblock.FIELDS] == [
        *(("magic", 0, 8), ("version", 8, 8), ("entries", 16, 8), ("sector_size", 24, 4)),
    ]
    assert [(f.offset, f.size) for f in Entry.FIELDS] == [(0, 8), (8, 8), (16, 8), (24, 8)]
    assert MAGIC.to_bytes(8, "little").rstrip(b"\0") == b"rhswfsj"


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_every_request_is_an_entry(sector_size: int) -> None:
    log = memory("log")
    disk, _ = logged(log, sector_size=sector_size)
    unit = sector_size
    disk.write(2 * unit, b"x" * 3 * unit)
    disk.write_zeroes(8 * unit, 2 * unit)
    disk.flush()
    disk.discard(16 * unit, 4 * unit)
    disk.write(unit - 1, b"ab")
    disk.close()
    assert list(entries(snapshot(log))) == [
        (2, 3, 0, b"x" * 3 * unit),
        (8, 2, 0, bytes(2 * unit)),
        (0, 0, FLAG_FLUSH, b""),
        (16, 4, FLAG_DISCARD, b""),
        (0, 2, 0, bytes(unit - 1) + b"ab" + bytes(unit - 1)),
        (0, 0, FLAG_FLUSH, b""),
    ]


def test_a_log_replays_to_what_was_there_at_every_flush(rng: random.Random) -> None:
    """QED over the log: each state that was flushed is an image that reads as it did."""
    image = QedImage(SIZE)
    start = image.content
    log = memory("log")
    states = []
    with open_disk(storage(WriteLogNode(image.node, log))) as disk:
        for _ in range(20):
            disk.write(rng.randrange(SIZE - 9000), rng.randbytes(rng.randrange(1, 9000)))
            if rng.random() < 0.3:
                disk.flush()
                states.append(disk.read(0, SIZE))
        disk.flush()
        states.append(disk.read(0, SIZE))
    replayed = memory("replayed")
    replayed.writev(0, [memoryview(start)])
    replayed.truncate(len(image.content))  # the log does not tell of sizes
    seen = []
    for entry in entries(snapshot(log)):
        if entry.flags & FLAG_FLUSH:
            with open_disk(replayed, read_only=True) as disk:
                seen.append(disk.read(0, SIZE))
        elif entry.data:
            replayed.writev(entry.sector * SECTOR, [memoryview(entry.data)])
    assert [state for state in states if state in seen] == states
    assert snapshot(replayed) == image.content


def test_the_superblock_is_true_at_flushes_and_now_and_then() -> None:
    log = memory("log")
    disk, _ = logged(log, interval=3)

    def count() -> int:
        return Superblock.unpack_from(snapshot(log)[:28] or bytes(28)).entries

    counts = []
    for _ in range(7):
        disk.write(0, b"x" * SECTOR)
        counts.append(count())
    assert counts == [0, 0, 3, 3, 3, 6, 6]
    disk.flush()
    assert count() == 8
    disk.write(0, b"x")
    disk.close()
    # Closing flushes the disk, and then the log.
    assert count() == 10


def test_a_log_can_be_continued() -> None:
    log = memory("log")
    for turn in range(3):
        disk, _ = logged(log, sector_size=4096 if not turn else SECTOR, append=True)
        disk.write(4096 * turn, bytes([turn + 1]) * 4096)
        disk.close()
    found = [entry for entry in entries(snapshot(log)) if entry.sectors]
    # An empty log begins with the sector size asked for; afterwards its own is kept.
    assert Superblock.unpack_from(snapshot(log)).sector_size == 4096
    assert [(e.sector, e.sectors, e.data[:1]) for e in found] == [
        *((0, 1, b"\1"), (1, 1, b"\2"), (2, 1, b"\3")),
    ]


def test_without_append_a_log_starts_anew() -> None:
    log = memory("log")
    for _ in range(2):
        disk, _ = logged(log)
        disk.write(0, b"x" * SECTOR)
        disk.close()
    assert len(list(entries(snapshot(log)))) == 2


def test_nothing_is_logged_while_nothing_may_be_written() -> None:
    log = memory("log")
    disk, _ = logged(log)
    disk.write(0, b"x")
    disk.reopen("r")
    before = snapshot(log)
    disk.read(0, SIZE)
    disk.flush()
    assert snapshot(log) == before
    disk.reopen("r+")
    disk.write(0, b"y")
    disk.close()
    assert len([entry for entry in entries(snapshot(log)) if entry.sectors]) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"magic": 1}, "Invalid log superblock magic"),
        ({"version": 2}, "Unsupported log version 2"),
        ({"sector_size": 1000}, "Invalid log sector size 1000"),
        ({"sector_size": 0}, "Invalid log sector size 0"),
        ({"entries": 3}, "ends before its 3 entries"),
        ({"entries": 1 << 63}, "ends before its"),
    ],
)
def test_logs_that_cannot_be_continued(changes: dict[str, int], words: str) -> None:
    log = memory("log")
    head = Superblock(magic=MAGIC, version=1, entries=1, sector_size=SECTOR).replace(**changes)
    log.writev(0, [memoryview(head.pack() + bytes(2 * SECTOR - Superblock.SIZE))])
    with pytest.raises((FormatError, InvalidArgument), match=words):
        WriteLogNode(memory("child", SIZE), log, append=True)


@pytest.mark.parametrize("size", [0, 256, 1000, 16 * MiB])
def test_sector_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(InvalidArgument, match=f"Invalid log sector size {size}"):
        WriteLogNode(memory("child", SIZE), memory("log"), sector_size=size)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"log-append": True, "log-sector-size": 512}, "mutually exclusive"),
        ({"log-super-update-interval": 0}, "update interval 0"),
        ({"log": None}, "expected: object"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], words: str) -> None:
    tree = {"driver": "blklogwrites", "file": memory("c", SIZE), "log": memory("log"), **options}
    with pytest.raises(InvalidArgument, match=words):
        Opener(OpenFlags(read_only=False)).open_options(tree)


def test_by_name(tmp_path: Path) -> None:
    blocklayer.create(tmp_path / "raw", size=SIZE)
    (tmp_path / "log").touch()
    options = {
        "driver": "write_log",
        "file": str(tmp_path / "raw"),
        "log": str(tmp_path / "log"),
        "log-sector-size": "4k",
    }
    with blocklayer.open(options, mode="r+") as disk:
        disk.write(5, b"data")
    assert (tmp_path / "raw").read_bytes()[5:9] == b"data"
    [entry, flush] = entries((tmp_path / "log").read_bytes())
    assert entry.data[5:9] == b"data"
    assert flush.flags == FLAG_FLUSH


@needs("qemu-io")
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_the_reference_logs_the_same_requests_in_the_same_way(
    tmp_path: Path, sector_size: int
) -> None:
    unit = sector_size
    blocklayer.create(tmp_path / "raw", size=SIZE)
    (tmp_path / "log").touch()
    options = {
        "driver": "blklogwrites",
        "log-sector-size": unit,
        "file": {"driver": "file", "filename": str(tmp_path / "raw")},
        "log": {"driver": "file", "filename": str(tmp_path / "log")},
    }
    commands = [
        f"write -P 0xaa {2 * unit} {3 * unit}",
        "flush",
        f"write -z {8 * unit} {2 * unit}",
        f"discard {64 * KiB} {64 * KiB}",
        f"write -P 3 {unit - 1} 2",
    ]
    arguments = [argument for command in commands for argument in ("-c", command)]
    subprocess.run(
        ["qemu-io", "-d", "unmap", *arguments, "json:" + json.dumps(options)],
        check=True,
        capture_output=True,
    )
    log = memory("log")
    disk, _ = logged(log, sector_size=unit)
    disk.write(2 * unit, b"\xaa" * 3 * unit)
    disk.flush()
    disk.write_zeroes(8 * unit, 2 * unit)
    disk.discard(64 * KiB, 64 * KiB)
    disk.write(unit - 1, b"\3\3")
    disk.close()
    theirs = [entry for entry in entries((tmp_path / "log").read_bytes()) if entry.sectors]
    ours = [entry for entry in entries(snapshot(log)) if entry.sectors]
    # It gives the lengths of discards in sectors of 512 bytes, whatever the log's are.
    assert [e[:3] for e in ours if not e.flags] == [e[:3] for e in theirs if not e.flags]
    assert [e.data for e in ours] == [e.data for e in theirs]
    assert [e.flags for e in ours] == [e.flags for e in theirs]
