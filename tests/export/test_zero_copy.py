# SPDX-License-Identifier: Apache-2.0
"""Large reads that the kernel sends: only what is in memory, and never less than was asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocklayer.base.errors import IoError
from blocklayer.base.units import KiB, MiB
from blocklayer.core.disk import Disk
from blocklayer.export.channel import Channel
from blocklayer.nbd import wire
from tests.export.conftest import Serve
from tests.support.nbd_peer import MODES, READ, SIMPLE
from tests.support.waiting import wait_until

Make = Callable[..., Disk]
SIZE = 8 * MiB
modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that each call has sent from a file."""
    counts: list[int] = []
    original = os.sendfile

    def sendfile(out: int, source: int, offset: int, count: int) -> int:
        taken = original(out, source, offset, count)
        counts.append(taken)
        return taken

    monkeypatch.setattr(os, "sendfile", sendfile)
    return counts


def forget(path: Path) -> bool:
    """Drop a file from the page cache; whether that is possible here."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            # The kernel may begin to read what this asks for, so not where the test reads.
            os.preadv(file.fileno(), [bytearray(1)], path.stat().st_size - 1, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


@modes
@pytest.mark.parametrize("format", ["qed", "raw"])
def test_what_is_in_memory_is_sent_from_there(
    make: Make, serve: Serve, sent: list[int], mode: str, format: str
) -> None:
    served = serve(make(SIZE, format=format))
    data = os.urandom(SIZE)
    served.disk.write(0, data)
    with served.connect(mode=mode) as peer:
        for offset, length in ((0, SIZE), (12_345, 100_000), (MiB - 1, 64 * KiB)):
            sent.clear()
            assert peer.read(offset, length) == data[offset : offset + length]
            wait_until(lambda: sum(sent) > 0, "nothing was sent by the kernel")


@modes
def test_what_is_not_in_memory_is_read_first(
    make: Make, serve: Serve, sent: list[int], mode: str, tmp_path: Path
) -> None:
    """Reading can fail, and success cannot be taken back once it was told."""
    served = serve(make(SIZE, format="raw", cache="writeback"))
    data = os.urandom(SIZE)
    served.disk.write(0, data)
    served.disk.flush()
    if not forget(tmp_path / "disk.raw"):
        pytest.skip("this file system does not forget, or does not tell")
    with served.connect(mode=mode) as peer:
        assert peer.read(0, 256 * KiB) == data[: 256 * KiB]
        assert sent == []


@modes
def test_an_error_of_the_storage_is_an_answer(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch, mode: str, tmp_path: Path
) -> None:
    served = serve(make(SIZE, format="raw", cache="writeback"))
    served.disk.write(0, os.urandom(SIZE))
    served.disk.flush()
    if not forget(tmp_path / "disk.raw"):
        pytest.skip("this file system does not forget, or does not tell")

    def fail(*_: Any) -> Any:
        raise IoError("Input/output error", "disk.raw", 5, "read", 0, 512)

    monkeypatch.setattr(served.disk, "read_into", fail)
    monkeypatch.setattr(served.disk, "read_sparse", fail)
    with served.connect(mode=mode) as peer:
        reply = peer.do(READ, 0, 256 * KiB)
        assert reply.error == wire.EIO
        monkeypatch.undo()
        assert len(peer.read(0, 256 * KiB)) == 256 * KiB


@modes
def test_the_rest_of_an_answer_is_copied(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The client takes a little at once, again and again, wherever the kernel stops."""
    served = serve(make(SIZE))
    data = os.urandom(3 * MiB)
    served.disk.write(MiB, data)
    expected = bytes(MiB) + data + bytes(SIZE - 4 * MiB)
    original = os.sendfile
    with served.connect(mode=mode) as peer:
        for stop in (0, 1, 4095, 65_536, 100_000, MiB):
            calls = iter([stop, 0])

            def sendfile(out: int, source: int, offset: int, count: int) -> int:
                allowed = min(count, next(calls, count))  # noqa: B023
                if not allowed:
                    raise BlockingIOError
                return original(out, source, offset, allowed)

            monkeypatch.setattr(os, "sendfile", sendfile)
            assert peer.read(MiB + 100, 2 * MiB) == expected[MiB + 100 : 3 * MiB + 100]
            calls = iter([stop, 0])
            assert peer.read(0, SIZE) == expected


@modes
def test_a_head_that_the_client_does_not_take_at_once(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    served = serve(make(SIZE))
    served.disk.write(MiB, b"d" * MiB)
    original = Channel.try_send
    most = [0]

    def try_send(self: Channel, data: bytes) -> int:
        return original(self, data[: most[0]]) if most[0] else 0

    monkeypatch.setattr(Channel, "try_send", try_send)
    with served.connect(mode=mode) as peer:
        for cut in (0, 1, 15, 16, 19, 20, 27, 28, 100):
            most[0] = cut
            assert peer.read(MiB, MiB) == b"d" * MiB
            if mode != SIMPLE:
                content = peer.read(0, 4 * MiB)
                assert content == bytes(MiB) + b"d" * MiB + bytes(2 * MiB)


@modes
def test_a_shorter_file_is_noticed(make: Make, serve: Serve, mode: str, tmp_path: Path) -> None:
    served = serve(make(SIZE, format="raw"))
    served.disk.write(0, b"e" * SIZE)
    with served.connect(mode=mode) as peer:
        os.truncate(tmp_path / "disk.raw", 100_000)
        reply = peer.do(READ, 0, 256 * KiB)
        if not reply.error:
            content = reply.content(0, 256 * KiB)
            assert content == b"e" * 100_000 + bytes(256 * KiB - 100_000)
