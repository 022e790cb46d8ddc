# SPDX-License-Identifier: Apache-2.0
"""The file protocol: ends of files, holes, growth, what the system refuses, and modes."""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.buffers import Vector, vector_length
from blocklayer.base.errors import InvalidArgument, IoError, LockError, NotSupported, OpenError
from blocklayer.base.extent import DATA, ZERO
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.node import ALLOCATE, UNMAP, Node
from blocklayer.core.opening import CacheMode, Opener, OpenFlags
from blocklayer.core.padding import Padded
from blocklayer.core.zeroing import zero_range
from blocklayer.protocols import file_io, file_zero
from blocklayer.protocols.file import FOLIO_MAX, IOV_MAX, FileNode
from blocklayer.testing.exercise import Exercise
from blocklayer.testing.model import ModelDisk

WRITE = OpenFlags(read_only=False)
DIRECT = OpenFlags(read_only=False, cache=CacheMode(direct=True))
RUNGS = ("zero_range", "punch_hole", "allocate", "seek_data")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of a megabyte: data, a hole, data."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"a" * 64 * KiB)
        file.seek(MiB - 64 * KiB)
        file.write(b"z" * 64 * KiB)
    return path


@pytest.fixture
def node(path: Path) -> Iterator[FileNode]:
    node = FileNode(str(path), WRITE)
    yield node
    node.close()


def read(node: Node, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xa5") * length
    node.readv(offset, [memoryview(buffer)])
    return bytes(buffer)


# --- reading and writing ---


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 1),
        (64 * KiB - 3, 10),
        (MiB - 5, 5),
        (MiB - 5, 100),
        (MiB, 10),
        (5 * MiB, 3),
        (0, 2 * MiB),
    ],
)
def test_reads_and_what_lies_behind_the_end(
    node: FileNode, path: Path, offset: int, length: int
) -> None:
    expected = path.read_bytes()[offset : offset + length].ljust(length, b"\0")
    assert read(node, offset, length) == expected
    parts = [bytearray(b"\xa5") * (length // 3 + 1), bytearray(b"\xa5") * (length * 2 // 3 + 1)]
    node.readv(offset, [memoryview(part) for part in parts])
    assert b"".join(parts)[:length] == expected


def test_vectors_of_more_parts_than_the_system_takes(node: FileNode, path: Path) -> None:
    count = 2 * IOV_MAX + 5
    parts = [memoryview(bytes([i % 251]) * 3) for i in range(count)]
    node.writev(100, parts)
    expected = b"".join(parts)
    assert path.read_bytes()[100 : 100 + len(expected)] == expected
    buffers = [bytearray(3) for _ in range(count)]
    node.readv(100, [memoryview(buffer) for buffer in buffers])
    assert b"".join(buffers) == expected


@pytest.mark.parametrize("vectored", [True, False])
def test_calls_that_do_less_than_asked_are_continued(
    node: FileNode, monkeypatch: pytest.MonkeyPatch, vectored: bool, rng: random.Random
) -> None:
    monkeypatch.setattr(file_io, "VECTORED", vectored)

    def short(call: Callable[..., int]) -> Callable[..., int]:
        def cut(descriptor: int, vector: list[memoryview], offset: int) -> int:
            return call(descriptor, [vector[0][: rng.randint(1, len(vector[0]))]], offset)

        return cut

    monkeypatch.setattr(file_io, "readv", short(file_io.readv))
    monkeypatch.setattr(file_io, "writev", short(file_io.writev))
    data = rng.randbytes(5000)
    node.writev(10, [memoryview(data)[:7], memoryview(data)[7:3000], memoryview(data)[3000:]])
    parts = [bytearray(2500), bytearray(2500)]
    node.readv(10, [memoryview(part) for part in parts])
    assert b"".join(parts) == data


def test_a_write_of_nothing_is_no_endless_loop(
    node: FileNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_io, "writev", lambda descriptor, vector, offset: 0)
    with pytest.raises(IoError, match="nothing was written"):
        node.writev(0, [memoryview(b"x")])


@pytest.mark.parametrize("offset", [0, 7, 64 * KiB, 2 * FOLIO_MAX])
@pytest.mark.parametrize("views", [1, 3, 2000])
def test_no_call_writes_what_becomes_a_huge_folio(
    node: FileNode, monkeypatch: pytest.MonkeyPatch, offset: int, views: int
) -> None:
    calls = []
    real = file_io.writev

    def watched(descriptor: int, vector: Vector, offset: int) -> int:
        calls.append((offset, vector_length(vector)))
        return real(descriptor, vector, offset)

    monkeypatch.setattr(file_io, "writev", watched)
    data = os.urandom(6 * FOLIO_MAX + 5)
    step = -(-len(data) // views)
    node.writev(offset, [memoryview(data)[at : at + step] for at in range(0, len(data), step)])
    for place, length in calls:
        first_border = -(-place // (2 * FOLIO_MAX)) * 2 * FOLIO_MAX
        assert place + length - first_border < 2 * FOLIO_MAX
    assert sum(length for _, length in calls) == len(data)
    assert read(node, offset, len(data)) == data


def test_writes_behind_the_end_grow_the_file(node: FileNode, path: Path) -> None:
    node.writev(MiB - 1, [memoryview(b"12")])
    assert node.size == path.stat().st_size == MiB + 1
    node.writev(2 * MiB, [memoryview(b"3")])
    assert node.size == path.stat().st_size == 2 * MiB + 1
    assert read(node, MiB - 1, 3) == b"12\0"
    node.truncate(5)
    assert node.size == path.stat().st_size == 5
    assert node.grows_zeroed


@pytest.mark.parametrize(
    ("operation", "action"),
    [
        ("read", lambda node: read(node, 0, 10)),
        ("write", lambda node: node.writev(0, [memoryview(b"x")])),
        ("write", lambda node: node.writev(2 * MiB, [memoryview(b"x")])),
        ("write_zeroes", lambda node: node.zero(0, 10)),
        ("discard", lambda node: node.discard(0, 10)),
        ("truncate", lambda node: node.truncate(10)),
        ("flush", lambda node: node.flush()),
    ],
)
def test_what_the_system_refuses_is_told_with_its_place(
    node: FileNode, operation: str, action: Callable[[FileNode], object]
) -> None:
    good = node.descriptor
    node.descriptor = 987654
    try:
        with pytest.raises(IoError) as caught:
            action(node)
    finally:
        node.descriptor = good
    error = caught.value
    assert error.code == error.errno == errno.EBADF
    assert error.operation == operation
    assert f"{operation} failed on '{node.filename}'" in str(error)
    assert error.reason == "Bad file descriptor"


def test_no_space_left(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk."""
    import resource
    import signal

    path = tmp_path / "file"
    path.write_bytes(b"")
    node = FileNode(str(path), WRITE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * KiB, hard))
    try:
        with pytest.raises(IoError) as caught:
            node.writev(0, [memoryview(bytes(100 * KiB))])
        assert caught.value.errno == errno.EFBIG
        with pytest.raises(IoError):
            node.truncate(MiB)
        with pytest.raises(IoError):
            node.truncate(MiB, "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    # What was written before the end of space is there, and the node knows.
    assert node.size == 0
    node.writev(0, [memoryview(b"x")])
    assert read(node, 0, 2) == b"x\0"
    node.close()


# --- flushing ---


def test_a_flush_that_failed_once_fails_for_ever(
    node: FileNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel forgets: the next fdatasync would succeed over data that was lost."""

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    node.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(IoError, match="flush failed"):
            node.flush()
    for _ in range(2):
        with pytest.raises(IoError, match="an earlier flush failed"):
            node.flush()


def test_no_flush_where_none_is_wanted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    unsafe = OpenFlags(read_only=False, cache=CacheMode(no_flush=True))
    for flags, expected in ((unsafe, 0), (OpenFlags(), 0), (WRITE, 1)):
        node = FileNode(str(path), flags)
        node.flush()
        node.close()
        assert len(calls) == expected


def test_writing_begins_before_a_flush_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    begin = file_io.begin_writeback

    def note(descriptor: int) -> bool:
        begun.append(descriptor)
        return begin(descriptor)

    monkeypatch.setattr(file_io, "begin_writeback", note)
    for format in ("raw", "qed"):
        image = tmp_path / format
        blocklayer.create(image, format=format, size=MiB)
        with blocklayer.open(image, format=format, mode="r+") as disk:
            disk.write(0, b"x" * MiB)
            assert disk.node.begin_flush() is sys.platform.startswith("linux")
            assert len(begun) == 1
            begun.clear()
        with blocklayer.open(image, format=format, mode="r+", cache="unsafe") as disk:
            assert disk.node.begin_flush()
        with blocklayer.open(image, format=format) as disk:
            assert disk.node.begin_flush()
        assert not begun  # nobody will flush these


def test_what_the_system_does_not_begin_is_no_error() -> None:
    reading, writing = os.pipe()
    try:
        assert not file_io.begin_writeback(writing)
    finally:
        os.close(reading)
        os.close(writing)


# --- holes ---


def test_the_map_of_a_file_with_holes(node: FileNode) -> None:
    assert node.map(0, MiB) == (DATA, 64 * KiB, None, 0)
    assert node.map(100, 50) == (DATA, 50, None, 100)
    assert node.map(64 * KiB, MiB) == (ZERO, MiB - 128 * KiB, None, 64 * KiB)
    assert node.map(64 * KiB - 1, MiB) == (DATA, 1, None, 64 * KiB - 1)
    assert node.map(MiB - 1, 1) == (DATA, 1, None, MiB - 1)
    assert node.map(MiB, 77) == (ZERO, 77, None, MiB)


def test_the_file_system_is_asked_once_for_a_run_of_data(
    node: FileNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some look at all pages of it, each time; but no hole of ours is missed."""
    asked: list[int] = []
    seek = os.lseek

    def note(descriptor: int, offset: int, whence: int) -> int:
        asked.append(offset)
        return seek(descriptor, offset, whence)

    monkeypatch.setattr(os, "lseek", note)
    for offset in range(0, 64 * KiB, 4 * KiB):
        assert node.map(offset, MiB) == (DATA, 64 * KiB - offset, None, offset)
    assert asked == [0, 0]
    node.zero(8 * KiB, 8 * KiB, UNMAP)
    assert node.map(8 * KiB, MiB) == (ZERO, 8 * KiB, None, 8 * KiB)
    assert node.map(24 * KiB, MiB) == (DATA, 40 * KiB, None, 24 * KiB)
    node.discard(24 * KiB, 8 * KiB)
    assert node.map(24 * KiB, MiB) == (ZERO, 8 * KiB, None, 24 * KiB)
    node.writev(8 * KiB, [memoryview(b"x" * 8 * KiB)])
    assert node.map(8 * KiB, MiB) == (DATA, 16 * KiB, None, 8 * KiB)
    node.truncate(12 * KiB)
    assert node.map(8 * KiB, MiB) == (DATA, 4 * KiB, None, 8 * KiB)
    node.truncate(MiB)
    assert node.map(8 * KiB, MiB) == (DATA, 4 * KiB, None, 8 * KiB)
    assert node.map(12 * KiB, MiB)[0] == ZERO


def test_a_hole_up_to_the_end(node: FileNode) -> None:
    node.truncate(3 * MiB)
    assert node.map(MiB, 2 * MiB) == (ZERO, 2 * MiB, None, MiB)
    assert node.map(3 * MiB - 1, 1) == (ZERO, 1, None, 3 * MiB - 1)


def test_without_seek_data_everything_is_data(
    node: FileNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for once."""
    calls = []
    lseek = os.lseek

    def refuse(descriptor: int, offset: int, whence: int) -> int:
        calls.append(whence)
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "Invalid argument")
        return lseek(descriptor, offset, whence)

    monkeypatch.setattr(os, "lseek", refuse)
    for _ in range(3):
        assert node.map(64 * KiB, 2 * MiB) == (DATA, MiB - 64 * KiB, None, 64 * KiB)
    assert calls == [os.SEEK_DATA]


@pytest.mark.parametrize(
    "switched_off",
    [off for count in range(len(RUNGS) + 1) for off in itertools.combinations(RUNGS, count)],
)
@pytest.mark.parametrize("flags", [0, UNMAP, ALLOCATE])
def test_zeroing_with_whatever_is_left(
    path: Path, switched_off: tuple[str, ...], flags: int
) -> None:
    """Every set of abilities: the same bytes, and where asked for the same space."""
    node = FileNode(str(path), WRITE)
    for rung in switched_off:
        setattr(node.abilities, rung, False)
    for start, end in ((60 * KiB, 70 * KiB), (1, 2), (MiB - 64 * KiB, MiB), (MiB - 9, MiB + 9)):
        expected = bytearray(path.read_bytes().ljust(end, b"\0"))
        expected[start:end] = bytes(end - start)
        before = path.stat().st_blocks
        zero_range(node, start, end - start, flags)
        assert path.read_bytes() == expected
        assert node.size == len(expected)
        if flags == ALLOCATE:
            assert path.stat().st_blocks >= before
            assert node.map(start, end - start)[1] > 0
    node.close()


def test_discarding_is_a_hint(node: FileNode, path: Path) -> None:
    before = path.read_bytes()
    node.abilities.punch_hole = False
    node.discard(0, MiB)
    assert path.read_bytes() == before
    node.abilities.punch_hole = True
    node.discard(4 * KiB, 8 * KiB)
    node.discard(MiB - KiB, MiB)  # as much of it as there is
    node.discard(2 * MiB, 5)
    assert path.stat().st_size == MiB
    after = path.read_bytes()
    assert after[: 4 * KiB] == b"a" * 4 * KiB
    assert set(after[4 * KiB : 12 * KiB]) <= {0, ord("a")}


# --- preallocation ---


@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
def test_preallocation(path: Path, mode: str) -> None:
    node = FileNode(str(path), WRITE)
    allocated = path.stat().st_blocks
    node.truncate(2 * MiB, mode)
    assert node.size == path.stat().st_size == 2 * MiB
    assert read(node, MiB, MiB) == bytes(MiB)
    grown = (path.stat().st_blocks - allocated) * 512
    assert grown >= MiB if mode != "off" else grown < MiB
    node.truncate(MiB, mode)
    assert node.size == MiB
    with pytest.raises(InvalidArgument):
        node.truncate(MiB, "nonsense")
    node.close()


def test_preallocation_that_fails_gives_its_space_back(
    node: FileNode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        os.pwrite(descriptor, b"x", offset + length // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(IoError, match=r"preallocate failed.*No space left on device"):
            node.truncate(2 * MiB, "falloc")
    assert node.size == path.stat().st_size == MiB


def test_a_disk_that_is_too_small_is_not_filled_first(
    node: FileNode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written before there is space for all of it."""
    free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
    with monkeypatch.context() as patch:
        patch.setattr(file_zero, "write_zeroes", lambda *_: pytest.fail("something was written"))
        with pytest.raises(IoError, match=r"preallocate failed"):
            node.truncate(4 * free + 2**50, "full")
    assert node.size == path.stat().st_size == MiB


def test_all_of_it_is_written_where_no_space_can_be_set_aside(
    node: FileNode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(file_zero, "_fallocate", refuse)
        node.truncate(2 * MiB, "full")
    assert path.stat().st_blocks * 512 >= MiB
    assert read(node, MiB, MiB) == bytes(MiB)


# --- O_DIRECT ---


@pytest.fixture
def direct(path: Path) -> Path:
    """A file on a file system that takes O_DIRECT."""
    try:
        FileNode(str(path), DIRECT).close()
    except OpenError as error:
        pytest.skip(f"no O_DIRECT here: {error}")
    return path


def test_direct_requests_must_be_aligned_and_padding_sees_to_it(direct: Path) -> None:
    node = FileNode(str(direct), DIRECT)
    assert node.limits.request_alignment >= 512
    assert node.inline_descriptor is None
    node.close()
    padded = Opener(DIRECT).open_options({"driver": "file", "filename": str(direct)})
    assert isinstance(padded, Padded)
    padded.writev(3, [memoryview(b"data")])
    assert read(padded, 2, 6) == b"adataa"
    padded.close()
    assert direct.read_bytes()[:8] == b"aaadataa"


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1000, 4096, 70000])
def test_direct_files_of_any_length(direct: Path, size: int) -> None:
    direct.write_bytes(b"x" * size)
    padded = Opener(DIRECT).open_options({"driver": "file", "filename": str(direct)})
    assert read(padded, 0, size + 5000) == b"x" * size + bytes(5000)
    padded.writev(size, [memoryview(b"y" * 10)])
    assert padded.size == size + 10
    padded.close()
    assert direct.read_bytes() == b"x" * size + b"y" * 10


def test_a_direct_disk_is_a_byte_array(direct: Path, seed: int) -> None:
    direct.write_bytes(bytes(2 * MiB))
    disk = blocklayer.open(direct, mode="r+", format="raw", cache="none", discard="unmap")
    Exercise(disk, ModelDisk(2 * MiB), seed=seed, grain=4 * KiB, size_max=3 * MiB).run(150)
    disk.close()


def test_without_o_direct(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(OpenError, match="does not support O_DIRECT"):
            FileNode(str(path), DIRECT)
    monkeypatch.delattr(os, "O_DIRECT")
    with pytest.raises(NotSupported, match="O_DIRECT does not exist here"):
        FileNode(str(path), DIRECT)


# --- what can be opened ---


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, read_only: bool) -> None:
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path = Path(os.devnull)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OpenError):
        FileNode(str(path), OpenFlags(read_only=read_only))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("name", "code"),
    [("missing", errno.ENOENT), ("a\0b", errno.EINVAL), ("x" * 300, errno.ENAMETOOLONG)],
)
def test_names_that_lead_nowhere(tmp_path: Path, name: str, code: int) -> None:
    with pytest.raises(OpenError) as caught:
        FileNode(str(tmp_path / name), OpenFlags())
    assert caught.value.errno == code


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "requires a file name"),
        ({"filename": 5}, "requires a file name"),
        ({"filename": ""}, "requires a file name"),
        ({"locking": "sometimes"}, "'locking'"),
        ({"aio": "posix"}, "Invalid parameter 'aio'"),
        ({"colour": "red"}, "Invalid parameter 'colour'"),
    ],
)
def test_options_that_cannot_be(path: Path, options: dict[str, object], words: str) -> None:
    tree = {"driver": "file", "filename": str(path), **options} if options else {"driver": "file"}
    with pytest.raises(InvalidArgument, match=words):
        Opener(OpenFlags()).open_options(tree)


@pytest.mark.parametrize("aio", ["threads", "native", "io_uring"])
def test_options_of_the_field_that_change_nothing_here(path: Path, aio: str) -> None:
    node = Opener(OpenFlags()).open_options({"driver": "file", "filename": str(path), "aio": aio})
    assert read(node, 0, 1) == b"a"
    node.close()


# --- locks and modes ---


def test_one_writer(path: Path) -> None:
    node = FileNode(str(path), WRITE)
    for flags in (WRITE, OpenFlags()):
        with pytest.raises(LockError):
            FileNode(str(path), flags)
    FileNode(str(path), OpenFlags(force_share=True)).close()
    FileNode(str(path), OpenFlags(locking="off")).close()
    node.close()
    readers = [FileNode(str(path), OpenFlags()) for _ in range(2)]
    with pytest.raises(LockError):
        FileNode(str(path), WRITE)
    for reader in readers:
        reader.close()
    FileNode(str(path), WRITE).close()


def test_reopening(path: Path) -> None:
    node = FileNode(str(path), OpenFlags())
    with pytest.raises(IoError):
        node.writev(0, [memoryview(b"x")])
    node.reopen(False)
    node.writev(0, [memoryview(b"x")])
    with pytest.raises(LockError):
        FileNode(str(path), OpenFlags())
    descriptor = node.descriptor
    node.reopen(False)
    assert node.descriptor == descriptor
    node.reopen(True)
    assert node.read_only
    other = FileNode(str(path), OpenFlags())
    with pytest.raises(LockError):
        node.reopen(False)
    # Nothing has changed, and another reader is welcome still.
    assert node.read_only
    FileNode(str(path), OpenFlags()).close()
    other.close()
    node.reopen(False)
    assert read(node, 0, 2) == b"xa"
    node.close()
    node.close()


def test_reopening_a_file_that_may_not_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = FileNode(str(path), OpenFlags())

    def refuse(*arguments: object) -> int:
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(OpenError, match="Permission denied"):
            node.reopen(False)
    assert node.read_only
    assert read(node, 0, 1) == b"a"
    node.close()


def test_what_a_file_tells(node: FileNode, path: Path) -> None:
    assert node.info() == {"actual-size": path.stat().st_blocks * 512}


def test_a_file_under_a_disk(path: Path) -> None:
    with Disk(FileNode(str(path), OpenFlags())) as disk:
        assert disk.format == "file"
        assert disk.read(0, 3) == b"aaa"
        assert [(e.status, e.end) for e in disk.extents()] == [
            *(("data", 64 * KiB), ("zero", MiB - 64 * KiB), ("data", MiB)),
        ]
