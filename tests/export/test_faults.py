# SPDX-License-Identifier: Apache-2.0
"""Storage that fails: who asked is told so, with the protocol's number, and the rest goes on."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.units import MiB
from blocklayer.core.node import Node
from blocklayer.filters.fault import FaultNode
from blocklayer.filters.fault_rules import InjectError
from blocklayer.nbd import wire
from tests.export.conftest import Gate, Serve, Served
from tests.support.nbd_peer import (
    CACHE,
    DF,
    EXTENDED,
    FLUSH,
    FUA,
    MODES,
    READ,
    SIMPLE,
    STRUCTURED,
    TRIM,
    WRITE,
    ZERO,
)

SIZE = 8 * MiB
CONTENT = bytes(range(256)) * (SIZE // 256)
modes = pytest.mark.parametrize("mode", MODES)
kinds = pytest.mark.parametrize("kind", ["raw", "qed"])


def fault_of(node: Node) -> FaultNode:
    """The filter in a graph."""
    if isinstance(node, FaultNode):
        return node
    return next(fault_of(child) for _, child in node.children.items())


@pytest.fixture
def broken(tmp_path: Path, serve: Serve) -> Callable[[str], tuple[Served, FaultNode]]:
    """A served disk full of data above storage that can be made to fail."""

    def begin(kind: str) -> tuple[Served, FaultNode]:
        path = str(tmp_path / "image")
        blocklayer.create(path, format=kind, size=SIZE)
        with blocklayer.open(path, mode="r+", format=kind, cache="unsafe") as disk:
            disk.write(0, CONTENT)
        options: dict[str, Any] = {
            "driver": kind,
            "file": {"driver": "fault", "image": {"driver": "file", "filename": path}},
        }
        disk = blocklayer.open(options, mode="r+")
        return serve(disk), fault_of(disk.node)

    return begin


Broken = Callable[[str], tuple[Served, FaultNode]]


@kinds
@modes
@pytest.mark.parametrize("length", [512, 40_000, MiB])
def test_reads_that_fail(broken: Broken, mode: str, kind: str, length: int) -> None:
    served, fault = broken(kind)
    with served.connect(mode=mode) as peer:
        fault.add_rule(InjectError(iotypes=frozenset({"read"})))
        for flags in (0,) if mode == SIMPLE else (0, DF):
            reply = peer.do(READ, 4096, length, flags=flags)
            assert reply.error == wire.EIO
            if mode != SIMPLE:
                assert "read failed" in reply.words
                assert str(served.disk.filename) not in reply.words
        assert peer.do(CACHE, 0, length).error == wire.EIO
        fault.clear_rules()
        assert peer.read(4096, length) == CONTENT[4096 : 4096 + length]
    assert served.export.stats.errors >= 2


@kinds
@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
@pytest.mark.parametrize("flags", [0, DF])
def test_reads_that_fail_in_the_middle(broken: Broken, mode: str, kind: str, flags: int) -> None:
    served, fault = broken(kind)
    with served.connect(mode=mode) as peer:
        bad = 3 * MiB + 100_000
        host = next(iter(served.disk.extents(bad, 512))).host_offset
        assert host is not None
        fault.add_rule(InjectError(iotypes=frozenset({"read"}), sector=host // 512))
        reply = peer.do(READ, 0, SIZE, flags=flags)
        assert reply.error == wire.EIO
        if reply.place is not None:
            assert reply.place <= bad
            for start, data in reply.data.items():
                sure = max(0, min(start + len(data), reply.place) - start)
                assert data[:sure] == CONTENT[start : start + sure]
        assert peer.read(4 * MiB, MiB) == CONTENT[4 * MiB : 5 * MiB], "the stream is out of step"


@kinds
def test_a_simple_read_that_fails_in_the_middle_ends_the_connection(
    broken: Broken, kind: str
) -> None:
    # There is no other way to take back the success that was told already.
    served, fault = broken(kind)
    with served.connect(mode=SIMPLE) as peer:
        host = next(iter(served.disk.extents(3 * MiB, 512))).host_offset
        assert host is not None
        fault.add_rule(InjectError(iotypes=frozenset({"read"}), sector=host // 512))
        cookie = peer.ask(READ, 0, SIZE)
        with pytest.raises(EOFError):
            peer.wait(cookie)
    served.wait_until_alone()
    fault.clear_rules()
    with served.connect(mode=SIMPLE) as peer:
        assert peer.read(0, SIZE) == CONTENT


@kinds
@modes
@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.EIO, wire.EIO),
        (errno.ENOSPC, wire.ENOSPC),
        (errno.EDQUOT, wire.ENOSPC),
        (errno.EFBIG, wire.ENOSPC),
        (errno.ENOMEM, wire.ENOMEM),
        (errno.ETIMEDOUT, wire.EIO),
    ],
)
def test_writes_that_fail(broken: Broken, mode: str, kind: str, code: int, told: int) -> None:
    served, fault = broken(kind)
    with served.connect(mode=mode) as peer:
        fault.add_rule(InjectError(iotypes=frozenset({"write"}), errno=code))
        for length in (1, 512, 100_000, 3 * MiB):
            for flags in (0, FUA):
                reply = peer.do(WRITE, 1000, payload=b"\xee" * length, flags=flags)
                assert reply.error == told
                assert bool(reply.words) == (mode != SIMPLE)
        fault.clear_rules()
        peer.write(1000, b"now")
        assert peer.read(999, 5) == CONTENT[999:1000] + b"now" + CONTENT[1003:1004]


@kinds
@modes
def test_only_those_fail_that_are_concerned(broken: Broken, mode: str, kind: str) -> None:
    served, fault = broken(kind)
    with served.connect(mode=mode) as peer:
        host = next(iter(served.disk.extents(20 * 4096, 512))).host_offset
        assert host is not None
        fault.add_rule(InjectError(iotypes=frozenset({"write"}), sector=host // 512))
        stream = b""
        for number in range(64):
            peer.note(number, WRITE, number * 4096, 4096)
            stream += peer.packed(number, WRITE, number * 4096, 0, payload=b"\xdd" * 4096)
        peer.send(stream)
        errors = {number: peer.wait(number).error for number in range(64)}
        assert errors[20] == wire.EIO
        # Neighbours that were written with it may fail with it; none is lost without a word.
        fault.clear_rules()
        for number, error in errors.items():
            if not error:
                assert peer.read(number * 4096, 4096) == b"\xdd" * 4096


@kinds
@modes
def test_flushes_that_fail(broken: Broken, mode: str, kind: str) -> None:
    served, fault = broken(kind)
    with served.connect(mode=mode) as peer:
        fault.add_rule(InjectError(iotypes=frozenset({"flush"})))
        assert peer.do(FLUSH).error == wire.EIO
        for command, length in ((WRITE, 512), (WRITE, 3 * MiB), (ZERO, 4096), (TRIM, 65_536)):
            payload = bytes(length) if command == WRITE else b""
            reply = peer.do(command, 0, length, flags=FUA, payload=payload)
            assert reply.error == wire.EIO, command
        peer.write(0, b"without FUA")
        fault.clear_rules()
        assert peer.do(FLUSH).error == 0
        assert served.export.stats.errors == 5


@kinds
@modes
def test_zeroing_and_trimming_that_fail(broken: Broken, mode: str, kind: str) -> None:
    served, fault = broken(kind)
    with served.connect(mode=mode) as peer:
        types = frozenset({"write-zeroes", "discard", "write"})
        fault.add_rule(InjectError(iotypes=types))
        assert peer.do(ZERO, 1000, MiB).error == wire.EIO
        fault.clear_rules()
        assert peer.do(ZERO, 1000, MiB).error == 0
        assert peer.read(1000, MiB) == bytes(MiB)


@modes
def test_a_table_that_cannot_be_read(broken: Broken, mode: str) -> None:
    served, fault = broken("qed")
    with served.connect(mode=mode) as peer:
        peer.read(0, 512)
        for number in range(20):
            fault.clear_rules()
            fault.add_rule(InjectError(event="l2_update", iotypes=frozenset({"write"}), once=True))
            offset = number * 65_536
            reply = peer.do(ZERO, offset, 65_536)
            assert reply.error in (0, wire.EIO)
            fault.clear_rules()
            assert peer.do(ZERO, offset, 65_536).error == 0
            assert peer.read(offset, 65_536) == bytes(65_536)


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_was_cut_by_somebody(tmp_path: Path, serve: Serve, mode: str) -> None:
    """Reads behind the new end of the file: zeroes or errors, never less than was asked for."""
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    served = serve(blocklayer.open(str(path), mode="r+", format="raw"))
    with served.connect(mode=mode) as peer:
        assert peer.read(0, SIZE) == CONTENT
        os.truncate(path, MiB)
        for offset, length in ((2 * MiB, 512), (2 * MiB, 4 * MiB), (MiB - 512, 4096)):
            cookie = peer.ask(READ, offset, length)
            try:
                reply = peer.wait(cookie)
            except EOFError:
                assert mode == SIMPLE
                return
            if not reply.error:
                kept = max(0, MiB - offset)
                expected = CONTENT[offset : offset + kept] + bytes(length - kept)
                assert reply.content(offset, length) == expected
        assert peer.read(0, 4096) == CONTENT[:4096]


@kinds
@modes
def test_what_is_durable_was_flushed_before_its_answer(
    broken: Broken, mode: str, kind: str
) -> None:
    served, fault = broken(kind)
    with served.connect(mode=mode) as peer:
        for command, length in ((WRITE, 1), (WRITE, 70_000), (WRITE, 3 * MiB), (ZERO, 4096)):
            for flags in (0, FUA):
                before = fault.requests["flush"]
                payload = b"\x77" * length if command == WRITE else b""
                assert not peer.do(command, 4096, length, flags=flags, payload=payload).error
                flushed = fault.requests["flush"] - before
                assert flushed if flags else not flushed
        before = fault.requests["flush"]
        assert not peer.do(FLUSH).error
        assert fault.requests["flush"] > before


@modes
def test_one_flush_for_all_writes_of_a_batch(broken: Broken, mode: str) -> None:
    served, fault = broken("raw")
    with served.connect(mode=mode) as peer:
        stream = b""
        for number in range(200):
            peer.note(number, WRITE, number * 512, 512)
            stream += peer.packed(number, WRITE, number * 512, 0, FUA, payload=b"f" * 512)
        peer.send(stream)
        for number in range(200):
            assert not peer.wait(number).error
    assert 0 < fault.requests["flush"] <= 100


@pytest.mark.parametrize("kind", ["raw", "qed"])
def test_nothing_follows_an_answer_that_was_cut(
    broken: Broken, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whatever came after it would be taken for the rest of its data."""
    served, fault = broken(kind)
    gate = Gate(served.disk, "flush", monkeypatch)
    with served.connect(mode=SIMPLE) as peer:
        flushes = [peer.ask(FLUSH) for _ in range(10)]
        assert gate.begun.acquire(timeout=10)
        host = next(iter(served.disk.extents(3 * MiB, 512))).host_offset
        assert host is not None
        fault.add_rule(InjectError(iotypes=frozenset({"read"}), sector=host // 512))
        peer.ask(READ, 0, SIZE)
        said = bytearray(peer.take(16 + MiB))
        threading.Timer(0.3, gate.opened.set).start()
        while piece := peer.socket.recv(MiB):
            said += piece
        assert bytes(said[16:]) == CONTENT[: len(said) - 16]
        assert len(said) < 16 + SIZE
        assert flushes
    served.wait_until_alone()


@modes
@pytest.mark.parametrize("method", ["flush", "read_sparse", "read_into", "write_each"])
def test_a_mistake_of_ours_ends_the_connection_and_nothing_else(
    broken: Broken, monkeypatch: pytest.MonkeyPatch, mode: str, method: str
) -> None:
    """Nobody waits for an answer that will not come, and the threads are still there."""
    served, _ = broken("qed")
    with served.connect() as other:
        for _ in range(20):
            with served.connect(mode=mode) as peer:

                def fail(*_: Any, **__: Any) -> Any:
                    raise ZeroDivisionError("a mistake")

                with monkeypatch.context() as patch:
                    patch.setattr(served.disk, method, fail)
                    with suppress(EOFError, ConnectionError):
                        asked = [peer.ask(FLUSH), peer.ask(READ, 0, 100_000), peer.ask(READ, 0, 9)]
                        asked += [peer.ask(WRITE, 0, payload=b"x"), peer.ask(CACHE, 0, 4096)]
                        for cookie in asked:
                            peer.wait(cookie)
        served_still = other.read(0, 100_000)
        assert len(served_still) == 100_000
