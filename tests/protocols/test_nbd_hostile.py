# SPDX-License-Identifier: Apache-2.0
"""Servers that lie, flood, stall or send noise: an error that names them, and no more than that."""

import gc
import os
import random
import resource
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import BlocklayerError, IoError, OpenError, ProtocolError, RemoteError
from blocklayer.core.disk import Disk
from blocklayer.nbd import wire
from blocklayer.nbd.client_connect import connect
from blocklayer.nbd.client_handshake import Wish
from blocklayer.nbd.client_list import list_exports
from blocklayer.nbd.uri import parse
from tests.nbd.server_bytes import (
    FLAGS,
    MiB,
    chunk,
    content,
    error,
    greeting,
    hole,
    info_blocks,
    info_export,
    infos,
    listed,
    mode,
    negotiation,
    number,
    option,
    simple,
    status,
)
from tests.support.fake_nbd import Behaviour, fake_server, receive, requests, skip_options

NOT_LONG: dict[str, Any] = {"request-timeout": 1}
DATA = wire.REPLY_OFFSET_DATA


def opened(path: Path, mode: str = "r", **options: Any) -> Disk:
    file = {"driver": "nbd", "server": {"type": "unix", "path": str(path)}, **options}
    return blocklayer.open({"driver": "raw", "file": file}, mode=mode)


def answering(reply: bytes, which: str = "structured") -> Behaviour:
    """Answers the first request by bytes that name the cookie 1."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(negotiation(which, export=info_export(flags=FLAGS)))
        skip_options(connection)
        for _ in requests(connection):
            connection.sendall(reply)

    return behave


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"\0" * 64, "invalid magic"),
        (simple(), "simple reply when structured reply chunk was expected"),
        (chunk(DATA, content(4, b"abcd")), "outside the request"),
        (chunk(DATA, content(0, b"abcdefgh")), "content chunk of 16 bytes"),
        (chunk(wire.REPLY_OFFSET_HOLE, hole(0, 2)), "2 bytes of content were never sent"),
        (chunk(), "4 bytes of content were never sent"),
        (chunk(cookie=2), "request that was not made"),
        (chunk(99), "unexpected reply type 99"),
        (chunk(wire.REPLY_BLOCK_STATUS, status((4, 0))), "block status that was not asked for"),
        (chunk(wire.REPLY_ERROR, error(0)), "an error without a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lie_is_told(reply: bytes, words: str, tmp_path: Path) -> None:
    with fake_server(tmp_path / "s", answering(reply)) as server:
        disk = opened(server.path)
        with pytest.raises(IoError, match="The server broke the NBD protocol: ") as failure:
            disk.read(0, 4)
        assert words in str(failure.value)
        disk.close()


def test_a_lie_about_block_status(tmp_path: Path) -> None:
    reply = chunk(wire.REPLY_BLOCK_STATUS, status((0, 0)))
    with fake_server(tmp_path / "s", answering(reply)) as server:
        disk = opened(server.path)
        with pytest.raises(IoError, match="an extent has no length"):
            list(disk.extents())
        disk.close()


def test_a_block_status_that_does_not_reach_what_was_asked_for(tmp_path: Path) -> None:
    def behave(connection: socket.socket) -> None:
        blocks, export = info_blocks(4096), info_export(flags=FLAGS)
        connection.sendall(negotiation("structured", blocks, export=export))
        skip_options(connection)
        for head, _ in requests(connection):
            extents = status((100, 0))
            connection.sendall(chunk(wire.REPLY_BLOCK_STATUS, extents, cookie=head.cookie))

    with (
        fake_server(tmp_path / "s", behave) as server,
        opened(server.path) as disk,
        pytest.raises(IoError, match="status that ends at 4196"),
    ):
        list(disk.extents(6000, 100))


def test_escapes_of_a_server_do_not_reach_the_terminal(tmp_path: Path) -> None:
    reply = chunk(wire.REPLY_ERROR, error(wire.EIO, "\x1b]0;owned\a"))
    with fake_server(tmp_path / "s", answering(reply)) as server:
        disk = opened(server.path)
        with pytest.raises(IoError) as failure:
            disk.read(0, 4)
        assert "server reported: \\x1b]0;owned\\x07" in str(failure.value)
        disk.close()


# --- handshakes that do not end -----------------------------------------------------------------


def dripping(connection: socket.socket) -> None:
    """Sound bytes, but one at a time."""
    for byte in negotiation("structured"):
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def silent(connection: socket.socket) -> None:
    receive(connection, 1 << 20)


def flooding(connection: socket.socket) -> None:
    """Information about the export, without end."""
    piece = option(wire.OPT_GO, wire.REP_INFO, number(99, 2) + b"x" * 4000)
    connection.sendall(greeting() + mode("simple"))
    for _ in range(1000):
        connection.sendall(piece * 100)


def test_a_handshake_has_a_deadline(tmp_path: Path) -> None:
    for behaviour in (dripping, silent):
        with fake_server(tmp_path / "s", behaviour) as server:
            started = time.monotonic()
            with pytest.raises(RemoteError, match="did not answer in time"):
                connect(parse(server.uri), None, Wish(), seconds=0.5)
            assert time.monotonic() - started < 3


def test_a_flood_of_information_ends(tmp_path: Path) -> None:
    words = "NBD_OPT_GO by more than 64 replies"
    with fake_server(tmp_path / "s", flooding) as server, pytest.raises(OpenError, match=words):
        opened(server.path)


def test_a_listing_without_end(tmp_path: Path) -> None:
    def listing(connection: socket.socket) -> None:
        connection.sendall(greeting() + mode("simple"))
        piece = listed("x" * 4096, "y" * 4096) * 100
        for _ in range(1000):
            connection.sendall(piece)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = "have no end"
    with fake_server(tmp_path / "s", listing) as server, pytest.raises(ProtocolError, match=words):
        list_exports(parse(server.uri))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 128 * 1024  # KiB


# --- noise --------------------------------------------------------------------------------------


def noisy(rng: random.Random) -> Behaviour:
    """Sound answers, of which some bits are not; sometimes an end."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(negotiation("structured", export=info_export(flags=FLAGS)))
        skip_options(connection)
        for head, _ in requests(connection):
            if head.command == wire.CMD_READ:
                half = head.length // 2
                reply = chunk(
                    DATA, content(head.offset, bytes(half)), cookie=head.cookie, done=False
                )
                rest = hole(head.offset + half, head.length - half)
                reply += chunk(wire.REPLY_OFFSET_HOLE, rest, cookie=head.cookie)
            elif head.command == wire.CMD_BLOCK_STATUS:
                pairs = ((head.length // 2, 0), (head.length - head.length // 2, 3))
                reply = chunk(wire.REPLY_BLOCK_STATUS, status(*pairs), cookie=head.cookie)
            else:
                reply = simple(head.cookie)
            data = bytearray(reply)
            if rng.random() < 0.1:
                place = rng.choice([rng.randrange(len(data)), rng.randrange(min(40, len(data)))])
                data[place] ^= 1 << rng.randrange(8)
            elif rng.random() < 0.03:
                data = data[: rng.randrange(len(data))]
                connection.sendall(data)
                return
            for start in range(0, len(data), 1000):
                connection.sendall(data[start : start + 1000])

    return behave


def test_noise_gives_errors_and_nothing_else(tmp_path: Path, rng: random.Random) -> None:
    """A length that noise has made larger is waited for until the silence has lasted too long."""
    failures: list[BaseException] = []
    errors = [0]

    with fake_server(tmp_path / "s", noisy(rng)) as server:
        disk = opened(server.path, "r+", **NOT_LONG)
        until = time.monotonic() + 6

        def work(seed: int) -> None:
            mine = random.Random(seed)
            while time.monotonic() < until:
                offset = mine.randrange(MiB - 8192)
                try:
                    verb = mine.randrange(4)
                    if verb == 0:
                        disk.read(offset, mine.randrange(2, 8192))
                    elif verb == 1:
                        disk.write(offset, b"x" * mine.randrange(1, 8192))
                    elif verb == 2:
                        disk.write_zeroes(offset, 4096)
                    else:
                        list(disk.extents(offset, 8192))
                except BlocklayerError:
                    errors[0] += 1
                except BaseException as failure:
                    failures.append(failure)
                    return

        workers = [threading.Thread(target=work, args=(rng.random(),)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(40)
            assert not worker.is_alive()
        try:
            disk.close()
        except IoError:
            errors[0] += 1
    assert failures == []
    assert errors[0]
    assert not [thread for thread in threading.enumerate() if thread.name == "blocklayer-nbd"]


def test_noise_in_handshakes(tmp_path: Path, rng: random.Random) -> None:
    sound = greeting() + mode("structured") + infos(wire.OPT_GO, info_export())

    def behave(connection: socket.socket) -> None:
        data = bytearray(sound)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        connection.sendall(data)

    refused = 0
    with fake_server(tmp_path / "s", behave) as server:
        for _ in range(100):
            try:
                session = connect(parse(server.uri), None, Wish(contexts=()), seconds=5)
                session.stream.close()
            except (RemoteError, ProtocolError):
                refused += 1
    assert refused > 50


def test_openings_that_fail_leave_nothing(tmp_path: Path, rng: random.Random) -> None:
    """No descriptor, no thread; whatever the server does in the handshake, or after it."""
    sound = negotiation("structured", export=info_export(flags=FLAGS))

    def partly(connection: socket.socket) -> None:
        connection.sendall(sound[: rng.randrange(len(sound) + 20)])

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    with fake_server(tmp_path / "s", partly) as server:
        for attempt in range(120):
            try:
                opened(server.path).close()
            except BlocklayerError:
                pass
            if attempt == 20:
                server.forget_ended()
                before = descriptors()
        server.forget_ended()
        assert descriptors() <= before
    assert not [thread for thread in threading.enumerate() if thread.name == "blocklayer-nbd"]
