# SPDX-License-Identifier: Apache-2.0
"""The three strengths of zeroing in a file, on file systems that can do more and less.

default    what is allocated stays allocated, holes stay holes
unmap      allocated space may become a hole
allocate   everything is allocated afterwards
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import IoError, NotSupported
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.node import EMULATE, NATIVE
from blocklayer.protocols import file_zero
from blocklayer.protocols.file import FileNode
from tests.support.filesystems import mounted, on

__all__ = ["mounted"]

SIZE = 4 * MiB
DATA_START, DATA_END = MiB, 2 * MiB
"""What is written; the rest of the file is a hole."""
REAL = ("ext4", "xfs", "btrfs", "ext2", "shared memory")
"""Three that can do everything; one that only punches holes; tmpfs, which can also allocate."""
NOTHING = frozenset[str]()
ABILITIES = frozenset({"zero_range", "punch_hole", "allocate"})


everywhere = pytest.mark.parametrize("mounted", [on(kind) for kind in REAL], indirect=True)


@pytest.fixture
def limited(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """fallocate as a file system has it that can only do so much; what it was asked for."""
    able: frozenset[str] = request.param
    return limit(monkeypatch, able)


def limit(monkeypatch: pytest.MonkeyPatch, able: frozenset[str], code: int = 0) -> list[str]:
    asked: list[str] = []
    real = file_zero._fallocate

    def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
        bare = mode & ~1
        name = {0: "allocate", 2: "punch_hole", 16: "zero_range"}[bare]
        asked.append(name)
        if name not in able:
            raise OSError(code or errno.EOPNOTSUPP, os.strerror(code or errno.EOPNOTSUPP))
        real(descriptor, mode, offset, length)

    monkeypatch.setattr(file_zero, "_fallocate", fallocate)
    return asked


def prepared(directory: Path) -> tuple[Path, bytearray]:
    path = directory / "disk.raw"
    content = bytearray(SIZE)
    content[DATA_START:DATA_END] = random.Random(1).randbytes(DATA_END - DATA_START)
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(DATA_START)
        file.write(content[DATA_START:DATA_END])
        file.flush()
        os.fsync(file.fileno())
    return path, content


def opened(path: Path) -> Disk:
    return blocklayer.open(path, mode="r+", format="raw", discard="unmap")


def file_of(disk: Disk) -> FileNode:
    node = disk.node.children["file"]
    assert isinstance(node, FileNode)
    return node


def holes(path: Path) -> list[tuple[int, int]]:
    """(start, end) of the holes that the file system tells of."""
    found = []
    with path.open("rb") as file:
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
        position = 0
        while (start := os.lseek(descriptor, position, os.SEEK_HOLE)) < size:
            try:
                position = os.lseek(descriptor, start, os.SEEK_DATA)
            except OSError:  # no more data
                position = size
            found.append((start, position))
            if position == size:
                break
    return found


def occupied(path: Path) -> int:
    os.sync()
    return path.stat().st_blocks * 512


ZEROED = {
    "inside data": (DATA_START + 256 * KiB, 512 * KiB),
    "over its borders": (DATA_START - 128 * KiB, MiB + 256 * KiB),
    "in a hole": (2 * MiB + 512 * KiB, MiB),
    "all of it": (0, SIZE),
    "odd": (DATA_START + 1, 300001),
}
BLOCK = 64 * KiB
"""No file system here has larger blocks."""


@everywhere
@pytest.mark.parametrize("where", ZEROED)
@pytest.mark.parametrize("strength", ["default", "unmap", "allocate"])
def test_three_strengths(mounted: Path, strength: str, where: str) -> None:
    path, content = prepared(mounted)
    offset, length = ZEROED[where]
    before, space = holes(path), occupied(path)
    with opened(path) as disk:
        disk.write_zeroes(offset, length, **({} if strength == "default" else {strength: True}))
        content[offset : offset + length] = bytes(length)
        assert disk.read(0, SIZE) == content
    assert path.read_bytes() == content
    assert path.stat().st_size == SIZE
    after = occupied(path)
    if strength == "default":
        # What SEEK_DATA says of zeroed space differs between file systems; the space does not.
        assert abs(after - space) <= 2 * BLOCK
        assert all(covered(hole, holes(path)) for hole in before)
    elif strength == "unmap":
        inside = max(0, min(offset + length, DATA_END) - max(offset, DATA_START))
        assert after <= space - inside + 3 * BLOCK
    else:
        outside = length - max(0, min(offset + length, DATA_END) - max(offset, DATA_START))
        assert after >= space + outside - 2 * BLOCK
    path.unlink()


def covered(hole: tuple[int, int], found: list[tuple[int, int]]) -> bool:
    return any(start <= hole[0] and hole[1] <= end for start, end in found)


@everywhere
def test_many_small_zeroes(mounted: Path, rng: random.Random) -> None:
    path, content = prepared(mounted)
    with opened(path) as disk:
        for _ in range(120):
            offset = rng.randrange(SIZE)
            length = min(rng.choice([1, 511, 4096, 70000]), SIZE - offset)
            flags = {rng.choice(["unmap", "allocate"]): rng.random() < 0.6}
            if rng.random() < 0.3:
                data = rng.randbytes(length)
                disk.write(offset, data)
                content[offset : offset + length] = data
            else:
                disk.write_zeroes(offset, length, **flags)
                content[offset : offset + length] = bytes(length)
        assert disk.read(0, SIZE) == content
    assert path.read_bytes() == content
    path.unlink()


@everywhere
def test_discards_give_space_back(mounted: Path) -> None:
    path, content = prepared(mounted)
    space = occupied(path)
    with opened(path) as disk:
        disk.discard(DATA_START + 4096, 512 * KiB)
        content[DATA_START + 4096 : DATA_START + 4096 + 512 * KiB] = bytes(512 * KiB)
        assert disk.read(0, SIZE) == content
        disk.discard(SIZE - 4096, 4096)
    assert path.stat().st_size == SIZE
    assert occupied(path) <= space - 512 * KiB + 2 * BLOCK
    path.unlink()


@everywhere
def test_zeroes_behind_the_end_of_the_file(mounted: Path) -> None:
    """A file whose length is no multiple of 512: its tail may be zeroed, and grows it."""
    path = mounted / "odd.raw"
    path.write_bytes(b"x" * 700)
    with opened(path) as disk:
        assert disk.size == 1024
        disk.write_zeroes(600, 424)
        assert disk.read(0, 1024) == b"x" * 600 + bytes(424)
    assert path.read_bytes() == b"x" * 600 + bytes(424)
    path.unlink()


# --- file systems with less -----------------------------------------------------------------------

LESS = [
    NOTHING,
    frozenset({"punch_hole"}),
    frozenset({"allocate"}),
    frozenset({"punch_hole", "allocate"}),
    frozenset({"zero_range"}),
    frozenset({"zero_range", "punch_hole"}),
    ABILITIES,
]


def name_of(able: frozenset[str]) -> str:
    return "+".join(sorted(able)) or "nothing"


@pytest.mark.parametrize("limited", LESS, ids=name_of, indirect=True)
@pytest.mark.parametrize("strength", ["default", "unmap", "allocate"])
@pytest.mark.parametrize("where", ZEROED)
def test_the_bytes_are_zero_whatever_the_file_system_can(
    tmp_path: Path, limited: list[str], strength: str, where: str
) -> None:
    path, content = prepared(tmp_path)
    offset, length = ZEROED[where]
    with opened(path) as disk:
        disk.write_zeroes(offset, length, **({} if strength == "default" else {strength: True}))
        content[offset : offset + length] = bytes(length)
        assert disk.read(0, SIZE) == content
    assert path.read_bytes() == content
    if strength == "allocate":
        assert not [h for h in holes(path) if h[0] < offset + length and offset < h[1]]


@pytest.mark.parametrize("able", LESS, ids=name_of)
def test_what_was_refused_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: frozenset[str]
) -> None:
    path, _ = prepared(tmp_path)
    asked = limit(monkeypatch, able)
    with opened(path) as disk:
        abilities = file_of(disk).abilities
        for _ in range(5):
            disk.write(DATA_START, b"x" * 8192)
            disk.write_zeroes(DATA_START, 8192)
            disk.write_zeroes(DATA_START, 8192, unmap=True)
            disk.write_zeroes(DATA_START, 8192, allocate=True)
            disk.discard(DATA_START, 8192)
        for name in ABILITIES - able:
            assert asked.count(name) <= 1, name
            assert getattr(abilities, name) is not (name in asked)
        for name in able:
            assert getattr(abilities, name)
        expected = NATIVE if able & {"zero_range", "punch_hole"} else EMULATE
        assert disk.node.zero_ability == expected


def test_each_file_finds_out_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = prepared(tmp_path)
    with monkeypatch.context() as patch:
        limit(patch, NOTHING)
        with opened(path) as disk:
            disk.write_zeroes(DATA_START, 4096)
            disk.write_zeroes(DATA_START, 4096, unmap=True)
            assert disk.node.zero_ability == EMULATE
    with opened(path) as disk:
        disk.write_zeroes(DATA_START, 4096)
        assert disk.node.zero_ability == NATIVE


@everywhere
def test_asking_whether_zeroing_is_fast_leaves_what_others_append(mounted: Path) -> None:
    path, _ = prepared(mounted)
    with opened(path) as disk:
        with open(path, "ab") as other:
            other.write(b"x" * 8192)
        disk.check_zero(0, SIZE)
        assert path.stat().st_size == SIZE + 8192
        assert path.read_bytes()[SIZE:] == b"x" * 8192
    path.unlink()


def test_a_file_as_long_as_files_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = prepared(tmp_path)
    monkeypatch.setattr(file_zero, "PROBE_DISTANCE", 2**63 - 1 - SIZE)
    with opened(path) as disk:
        with pytest.raises(NotSupported):
            disk.check_zero(0, SIZE)
        assert disk.node.zero_ability == NATIVE
        assert disk.read(0, SIZE) == content


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL])
def test_every_way_of_refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path, content = prepared(tmp_path)
    limit(monkeypatch, NOTHING, code)
    with opened(path) as disk:
        with pytest.raises(NotSupported):
            disk.write_zeroes(DATA_START, 4096, no_fallback=True)
        assert disk.read(0, SIZE) == content
        disk.write_zeroes(DATA_START, 4096)
        content[DATA_START : DATA_START + 4096] = bytes(4096)
        disk.discard(DATA_START, 8192)
        assert disk.read(0, SIZE) == content


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_failures_are_no_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path, _ = prepared(tmp_path)
    limit(monkeypatch, NOTHING, code)
    with opened(path) as disk:
        for flags in ({}, {"unmap": True}, {"allocate": True}):
            with pytest.raises(IoError) as caught:
                disk.write_zeroes(DATA_START, 4096, **flags)
            assert caught.value.errno == code
            assert caught.value.operation == "write_zeroes"
        with pytest.raises(IoError) as caught:
            disk.discard(DATA_START, 4096)
        assert (caught.value.errno, caught.value.operation) == (code, "discard")
        assert disk.node.zero_ability == NATIVE


def test_holes_stay_holes_where_zeroes_must_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data and holes alternate, and nothing can be zeroed but by writing."""
    path = tmp_path / "striped.raw"
    with path.open("wb") as file:
        file.truncate(8 * MiB)
        for start in range(0, 8 * MiB, 2 * MiB):
            file.seek(start)
            file.write(b"d" * MiB)
    limit(monkeypatch, NOTHING)
    before = occupied(path)
    with opened(path) as disk:
        disk.write_zeroes(0, 8 * MiB)
        assert disk.read(0, 8 * MiB) == bytes(8 * MiB)
    assert occupied(path) <= before + 2 * BLOCK


def test_a_file_system_that_does_not_know_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = prepared(tmp_path)
    real = os.lseek

    def lseek(descriptor: int, offset: int, how: int) -> int:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, offset, how)

    with opened(path) as disk:
        monkeypatch.setattr(os, "lseek", lseek)
        disk.write_zeroes(DATA_START - 5000, 20000)
        content[DATA_START - 5000 : DATA_START + 15000] = bytes(20000)
        assert disk.read(0, SIZE) == content
        assert not file_of(disk).abilities.seek_data
        (extent,) = disk.extents()
        assert extent.data
    monkeypatch.undo()
    assert path.read_bytes() == content
