# SPDX-License-Identifier: Apache-2.0
"""The gate: what is refused, what is passed on and how, and the disk's life."""

from __future__ import annotations

import array
import errno
import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.errors import (
    BlocklayerError,
    Closed,
    InvalidArgument,
    IoError,
    NotSupported,
    OutOfRange,
    ReadOnly,
)
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import FormatNode
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import FLUSH, READ, InjectError
from blocklayer.testing.liar import Liar
from blocklayer.testing.recorder import Recorder
from tests.support.graphs import memory, open_disk, open_node, tree
from tests.support.qed_image import CLUSTER, QedImage

SIZE = MiB

Verb = Callable[[Disk, int, int], object]

READS: dict[str, Verb] = {
    "read": lambda disk, offset, length: disk.read(offset, length),
    "read_into": lambda disk, offset, length: disk.read_into(offset, bytearray(max(length, 0))),
    "read_many": lambda disk, offset, length: disk.read_many([(0, 1), (offset, length)]),
    "extents": lambda disk, offset, length: list(disk.extents(offset, length)),
}
WRITES: dict[str, Verb] = {
    "write": lambda disk, offset, length: disk.write(offset, bytes(max(length, 0))),
    "write_many": lambda disk, offset, length: disk.write_many([(offset, bytes(max(length, 0)))]),
    "write_zeroes": lambda disk, offset, length: disk.write_zeroes(offset, length),
    "discard": lambda disk, offset, length: disk.discard(offset, length),
}
VERBS = {**READS, **WRITES}


@pytest.fixture(params=["raw file", "qed file", "memory", "qed over memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A disk with the inline path, or without."""
    kind = str(request.param)
    if kind.endswith("file"):
        path = tmp_path / "image"
        format = kind.removesuffix(" file")
        blocklayer.create(path, format=format, size=SIZE)
        opened = blocklayer.open(path, mode="r+", format=format, discard="unmap")
    elif kind == "memory":
        opened = Disk(memory(size=SIZE), discard="unmap")
    else:
        opened = QedImage(SIZE).open()
    opened.write(0, b"x" * 3 * 64 * KiB)
    yield opened
    opened.close()


# --- ranges ---


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("offset", "length"),
    [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (-1, 0), (1 << 63, 1), (1 << 64, 0), (SIZE + 1, 0)],
)
def test_outside(disk: Disk, verb: str, offset: int, length: int) -> None:
    before = disk.read(0, SIZE)
    with pytest.raises(OutOfRange) as caught:
        VERBS[verb](disk, offset, length)
    assert "image" in str(caught.value) or "memory" in str(caught.value)
    assert disk.read(0, SIZE) == before


@pytest.mark.parametrize("verb", ["read", "read_many", "write_zeroes", "discard", "extents"])
@pytest.mark.parametrize("offset", [0, 5, 64 * KiB])
def test_negative_lengths(disk: Disk, verb: str, offset: int) -> None:
    with pytest.raises(OutOfRange):
        VERBS[verb](disk, offset, -1)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("offset", [0, 77, SIZE])
def test_nothing_is_done_to_nothing(disk: Disk, verb: str, offset: int) -> None:
    before = disk.read(0, SIZE)
    VERBS[verb](disk, offset, 0)
    assert disk.read(0, SIZE) == before


def test_many_of_which_one_is_outside(disk: Disk) -> None:
    with pytest.raises(OutOfRange):
        disk.write_many([(0, b"no"), (SIZE - 1, b"no")])
    assert disk.read(0, 2) == b"xx"


# --- buffers ---


@pytest.mark.parametrize(
    "buffer",
    [
        b"data",
        bytearray(b"data"),
        memoryview(b"data"),
        memoryview(b"-data-")[1:5],
        array.array("H", b"data"),
        memoryview(array.array("H", b"data")),
    ],
)
def test_whatever_has_bytes_can_be_written(disk: Disk, buffer: object) -> None:
    for offset in (0, 900 * KiB):
        disk.write(offset, buffer)
        assert disk.read(offset, 4) == b"data"
        disk.write_many([(offset + 10, buffer), (offset + 14, buffer)])
        assert disk.read(offset + 10, 8) == b"datadata"


@pytest.mark.parametrize("offset", [0, 5, 900 * KiB])
def test_whatever_is_writable_can_be_read_into(disk: Disk, offset: int) -> None:
    disk.write(offset, b"data")
    numbers = array.array("H", bytes(4))
    assert disk.read_into(offset, numbers) == 4
    assert numbers.tobytes() == b"data"
    buffer = bytearray(8)
    assert disk.read_into(offset, memoryview(buffer)[2:6]) == 4
    assert buffer == b"\0\0data\0\0"
    with pytest.raises(InvalidArgument, match="writable"):
        disk.read_into(offset, b"data")
    with pytest.raises(ValueError, match="not contiguous"):
        disk.read_into(offset, memoryview(buffer)[::2])


def test_the_caller_s_buffer_is_not_kept(disk: Disk) -> None:
    buffer = bytearray(b"data")
    disk.write(900 * KiB, buffer)
    buffer[:] = b"else"
    assert disk.read(900 * KiB, 4) == b"data"
    buffer.extend(b"can grow: nobody holds it")


# --- permission and state ---


@pytest.mark.parametrize("verb", [*WRITES, "resize"])
def test_reading_only(verb: str) -> None:
    image = QedImage(SIZE)
    before = image.content
    with image.open(read_only=True) as disk:
        assert disk.read_only
        assert "r>" in repr(disk)
        with pytest.raises(ReadOnly) as caught:
            disk.resize(0) if verb == "resize" else WRITES[verb](disk, 0, 1)
        assert caught.value.errno == errno.EACCES
        assert disk.read(0, 10) == bytes(10)
        disk.flush()
    assert image.content == before


@pytest.mark.parametrize("verb", [*VERBS, "flush", "resize", "reopen", "drain"])
def test_after_closing(disk: Disk, verb: str) -> None:
    disk.close()
    assert disk.closed
    others: dict[str, Callable[[], object]] = {
        "flush": disk.flush,
        "resize": lambda: disk.resize(5 * 512),
        "reopen": lambda: disk.reopen("r"),
        "drain": lambda: disk.drain().__enter__(),
    }
    with pytest.raises(Closed):
        others[verb]() if verb in others else VERBS[verb](disk, 0, 1)
    disk.close()
    assert "closed" in repr(disk)


def test_modes_that_do_not_exist(disk: Disk) -> None:
    with pytest.raises(InvalidArgument):
        disk.reopen("w")
    with pytest.raises(InvalidArgument, match="both unmap and allocate"):
        disk.write_zeroes(0, 1, unmap=True, allocate=True)
    with pytest.raises(InvalidArgument):
        disk.resize(-1)
    for discard, detect in (("maybe", "off"), ("ignore", "maybe"), ("ignore", "unmap")):
        with pytest.raises(InvalidArgument):
            Disk(memory(size=SIZE), discard=discard, detect_zeroes=detect)


def test_between_modes(disk: Disk) -> None:
    disk.reopen("r")
    with pytest.raises(ReadOnly):
        disk.write(0, b"y")
    assert disk.read(0, 1) == b"x"
    disk.reopen("r")
    disk.reopen("r+")
    disk.write(0, b"y")
    assert disk.read(0, 2) == b"yx"


def test_a_disk_in_a_with_statement(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, size=SIZE)
    with pytest.raises(ZeroDivisionError), blocklayer.open(path) as disk:
        raise ZeroDivisionError
    assert disk.closed


def test_a_failure_to_close_does_not_hide_the_first_one() -> None:
    fault = FaultNode(memory(size=SIZE), [InjectError(iotypes=frozenset({FLUSH}))])
    with pytest.raises(ZeroDivisionError) as caught, Disk(fault):
        raise ZeroDivisionError
    assert "closing 'memory' failed as well" in caught.value.__notes__[0]


def test_a_failure_to_flush_is_reported_and_everything_is_closed_all_the_same() -> None:
    node = memory(size=SIZE)
    disk = Disk(FaultNode(node, [InjectError(iotypes=frozenset({FLUSH}))]))
    with pytest.raises(IoError, match="flush failed"):
        disk.close()
    assert node.tracker.closed
    disk.close()


def test_a_forgotten_disk_is_closed_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, size=SIZE)

    def forget() -> None:
        blocklayer.open(path, mode="r+").write(0, b"x")
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed disk"):
        forget()
    assert path.read_bytes()[:1] == b"x"


def test_a_forgotten_disk_is_closed_where_warnings_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=SIZE)
    code = "import blocklayer, sys; blocklayer.open(sys.argv[1], mode='r+').write(0, b'x')"
    words = [sys.executable, "-W", "error::ResourceWarning", "-c", code, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert "unclosed disk" in done.stderr
    with blocklayer.open(path) as disk:
        assert disk.read(0, 1) == b"x"
    assert blocklayer.check(path).clean


# --- durability ---


def verbs_of(recorder: Recorder) -> list[str]:
    return [request.verb for request in recorder.take("write", "zero", "flush", "discard")]


def test_fua_is_one_flush_at_the_end() -> None:
    recorder = Recorder(memory(size=SIZE))
    disk = open_disk(recorder, "raw")
    disk.write(0, b"x", fua=True)
    disk.write_zeroes(0, 1, fua=True)
    disk.write_many([(0, b"x"), (10, b"y")], fua=True)
    assert verbs_of(recorder) == ["write", "flush", "zero", "flush", "write", "write", "flush"]
    disk.write(0, b"", fua=True)
    assert verbs_of(recorder) == ["flush"]
    disk.close()


def test_writethrough_flushes_every_write() -> None:
    recorder = Recorder(memory(size=SIZE))
    disk = Disk(open_node(tree(recorder, "raw")), writethrough=True)
    disk.write(0, b"x")
    disk.write_zeroes(0, 1)
    disk.write_many([(0, b"x"), (10, b"y")])
    assert verbs_of(recorder) == ["write", "flush", "zero", "flush", "write", "write", "flush"]
    disk.close()


def test_a_flush_that_fails_fails_the_write() -> None:
    disk = Disk(FaultNode(memory(size=SIZE), [InjectError(iotypes=frozenset({FLUSH}), once=True)]))
    with pytest.raises(IoError, match="flush failed"):
        disk.write(0, b"x", fua=True)
    assert disk.read(0, 1) == b"x"
    disk.close()


# --- zeroes and discards ---


def test_zeroing_falls_back_to_writing_in_bounded_pieces() -> None:
    recorder = Recorder(Liar(memory(size=5 * MiB), zeroes=0.0))
    disk = Disk(recorder)
    disk.write(0, b"x" * 5 * MiB)
    recorder.take()
    disk.write_zeroes(1, 5 * MiB - 2)
    writes = recorder.take("write")
    assert max(length for _, _, length in writes) <= MiB
    assert disk.read(0, 5 * MiB) == b"x" + bytes(5 * MiB - 2) + b"x"
    with pytest.raises(NotSupported):
        disk.write_zeroes(0, MiB, no_fallback=True)
    assert disk.read(0, 1) == b"x"
    disk.close()


def test_discards_are_ignored_unless_asked_for() -> None:
    for mode, expected in (("ignore", []), ("unmap", [("discard", 0, SIZE)])):
        recorder = Recorder(memory(size=SIZE))
        disk = Disk(recorder, discard=mode)
        disk.discard(0, SIZE)
        assert recorder.take() == expected
        disk.close()


# --- errors of the system ---


def test_errors_of_reading_are_the_package_s_own() -> None:
    image = QedImage(SIZE)
    with image.open() as disk:
        disk.write(0, b"x")
    disk = open_disk(FaultNode(image.node, [InjectError("read_aio", iotypes=frozenset({READ}))]))
    for verb in ("read", "read_into", "read_many"):
        with pytest.raises(IoError):
            READS[verb](disk, 0, 10)
    disk.close()


def test_errors_on_the_inline_path_are_told_by_the_slow_one(tmp_path: Path) -> None:
    """The descriptor has gone bad under an open disk."""
    import os

    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=SIZE)
    disk = blocklayer.open(path, mode="r+")
    disk.write(0, b"x")
    assert isinstance(disk.node, FormatNode)
    descriptor = disk.node.file.descriptor  # type: ignore[attr-defined]
    spare = os.dup(descriptor)
    hole = os.open(os.devnull, os.O_WRONLY)
    os.dup2(hole, descriptor)
    try:
        for verb in ("read", "read_into", "read_many"):
            with pytest.raises(IoError, match="Bad file descriptor"):
                READS[verb](disk, 0, 10)
    finally:
        os.dup2(spare, descriptor)
        os.close(spare)
        os.close(hole)
    disk.write(0, b"y")
    assert disk.read(0, 1) == b"y"
    disk.close()


# --- looking ---


def test_what_a_disk_tells(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    blocklayer.create(base, size=SIZE)
    blocklayer.create(top, format="qed", backing=base)
    with blocklayer.open(top) as disk:
        assert (disk.size, disk.format, disk.filename) == (SIZE, "qed", str(top))
        assert disk.info()["cluster-size"] == 64 * KiB
        below = disk.backing
        assert below is not None
        assert (below.format, below.filename, below.backing) == ("raw", str(base), None)
        assert below.read(0, 5) == bytes(5)
        below.close()
        assert disk.read(0, 5) == bytes(5)


def test_a_filter_has_no_backing() -> None:
    with Disk(FilterNode(memory(size=SIZE))) as disk:
        assert disk.backing is None


def test_a_graph_that_somebody_listens_to_has_no_inline_path(tmp_path: Path) -> None:
    """Or the listener would not hear of what passes there."""
    from blocklayer.core.events import add_tracer, remove_tracer

    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=SIZE)
    heard: list[str] = []

    def tracer(node: object, name: str, fields: object) -> None:
        heard.append(name)

    add_tracer(tracer)
    try:
        with blocklayer.open(path, mode="r+") as disk:
            disk.write(0, b"x")
            heard.clear()
            disk.write(0, b"x")
            disk.read(0, 1)
            assert heard == ["write_aio", "read_aio"]
    finally:
        remove_tracer(tracer)


def test_every_error_is_one_of_ours() -> None:
    assert all(
        issubclass(error, BlocklayerError)
        for error in (Closed, InvalidArgument, IoError, NotSupported, OutOfRange, ReadOnly)
    )


def test_clusters_of_a_disk_and_bytes_of_its_file(tmp_path: Path) -> None:
    """The inline path and the slow one write to the same place."""
    path = tmp_path / "image"
    blocklayer.create(path, format="qed", size=SIZE, cluster_size=CLUSTER)
    with blocklayer.open(path, mode="r+") as disk:
        for offset in range(0, 20 * CLUSTER, CLUSTER):
            disk.write(offset, bytes(CLUSTER - 1) + b"s")
            disk.write(offset + 5, b"inline")
            disk.write(offset + 20, bytearray(b"slow"))
        for offset in range(0, 20 * CLUSTER, CLUSTER):
            expected = bytes(5) + b"inline" + bytes(9) + b"slow" + bytes(CLUSTER - 25) + b"s"
            assert disk.read(offset, CLUSTER) == expected
            buffer = bytearray(2 * CLUSTER)
            if offset < 19 * CLUSTER:
                disk.read_into(offset, buffer)
                assert buffer == expected * 2
