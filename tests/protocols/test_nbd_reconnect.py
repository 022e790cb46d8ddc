# SPDX-License-Identifier: Apache-2.0
"""Connections that break: what waits, what fails, and when; nothing hangs."""

import contextlib
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import IoError, OpenError
from blocklayer.core.disk import Disk
from blocklayer.nbd import wire
from blocklayer.testing.exercise import Exercise
from blocklayer.testing.model import ModelDisk
from tests.nbd.server_bytes import (
    FLAGS,
    MiB,
    chunk,
    content,
    info_blocks,
    info_export,
    negotiation,
    simple,
)
from tests.support import needs
from tests.support.fake_nbd import Behaviour, fake_server, receive, requests, skip_options
from tests.support.nbd_servers import nbdkit, running
from tests.support.waiting import wait_until


def opened(path: Path, mode: str = "r+", **options: Any) -> Disk:
    file = {"driver": "nbd", "server": {"type": "unix", "path": str(path)}, **options}
    return blocklayer.open({"driver": "raw", "file": file}, mode=mode)


def only(name: str, seconds: int) -> dict[str, Any]:
    """One option."""
    return {name: seconds}


def greet(connection: socket.socket) -> None:
    connection.sendall(negotiation("structured", export=info_export(flags=FLAGS)))
    skip_options(connection)


def serve(connection: socket.socket, *, limit: int = 1 << 60) -> None:
    """Answer reads with the letter ``s`` and everything else with consent, so many times."""
    greet(connection)
    for count, (head, _) in enumerate(requests(connection)):
        if count >= limit:
            return
        if head.command == wire.CMD_READ:
            data = content(head.offset, b"s" * head.length)
            connection.sendall(chunk(wire.REPLY_OFFSET_DATA, data, cookie=head.cookie))
        else:
            connection.sendall(simple(head.cookie))


def until_lost(limit: int) -> Behaviour:
    return lambda connection: serve(connection, limit=limit)


def silent(connection: socket.socket) -> None:
    """Say nothing until the client goes."""
    receive(connection, 1 << 30)


# --- waiting for another connection -------------------------------------------------------------


@pytest.mark.parametrize("verb", ["read", "write", "zero", "discard", "flush"])
def test_a_request_in_flight_is_sent_again(verb: str, tmp_path: Path) -> None:
    with fake_server(tmp_path / "s", until_lost(1), serve) as server:
        with opened(server.path, **only("reconnect-delay", 10)) as disk:
            assert disk.read(0, 4) == b"ssss"
            actions: dict[str, Callable[[], object]] = {
                "read": lambda: disk.read(0, 4),
                "write": lambda: disk.write(0, b"data"),
                "zero": lambda: disk.write_zeroes(0, 4096),
                "discard": lambda: disk.node.discard(0, 4096),
                "flush": disk.flush,
            }
            actions[verb]()
        assert server.accepted == 2


def test_many_threads_wait_for_one_connection(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    with (
        fake_server(tmp_path / "s", until_lost(100), until_lost(50), serve) as server,
        opened(server.path, **only("reconnect-delay", 20)) as disk,
    ):

        def work() -> None:
            try:
                for _ in range(40):
                    assert disk.read(512, 512) == b"s" * 512
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert server.accepted == 3
    assert failures == []


@needs("nbdkit")
def test_a_server_killed_and_started_again(tmp_path: Path) -> None:
    """Writing goes on while the server dies twice; everything that was written is there."""
    image = tmp_path / "image"
    image.write_bytes(bytes(4 * MiB))
    failures: list[BaseException] = []
    stop = threading.Event()
    with running(nbdkit(tmp_path / "s", "file", str(image)), tmp_path / "s") as peer:
        with opened(peer.socket, **only("reconnect-delay", 30)) as disk:
            written = [0] * 4

            def work(number: int) -> None:
                try:
                    while not stop.is_set():
                        count = written[number] % 256
                        disk.write(number * MiB + count * 4096, bytes([number + 1]) * 4096)
                        written[number] += 1
                except BaseException as error:
                    failures.append(error)

            workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
            for worker in workers:
                worker.start()
            for _ in range(2):
                before = list(written)
                while any(now <= then for now, then in zip(written, before, strict=True)):
                    time.sleep(0.01)
                peer.kill()
                time.sleep(0.2)
                peer.start()
            before = list(written)
            while any(now <= then for now, then in zip(written, before, strict=True)):
                time.sleep(0.01)
            stop.set()
            for worker in workers:
                worker.join()
            assert failures == []
        data = image.read_bytes()
        for number in range(4):
            for count in range(min(written[number], 256)):
                start = number * MiB + count * 4096
                assert data[start : start + 4096] == bytes([number + 1]) * 4096


# --- flushing over the end of a connection ------------------------------------------------------


@pytest.mark.parametrize("verb", ["write", "zero", "discard", "many"])
def test_what_was_not_flushed_when_the_connection_was_lost(verb: str, tmp_path: Path) -> None:
    """Nobody knows whether it is still there: no flush may say that it is."""
    with fake_server(tmp_path / "s", serve, serve) as server:
        disk = opened(server.path)
        change: dict[str, Callable[[], object]] = {
            "write": lambda: disk.write(0, b"data" * 128),
            "zero": lambda: disk.write_zeroes(0, 4096),
            "discard": lambda: disk.node.discard(0, 4096),
            "many": lambda: disk.write_many([(0, b"data" * 128), (4096, b"data" * 128)]),
        }
        change[verb]()
        server.hang_up()
        wait_for_loss(disk)
        assert disk.read(0, 4) == b"ssss"
        assert server.accepted == 2
        for _ in range(2):
            with pytest.raises(IoError, match="not flushed, so data may be lost"):
                disk.flush()
        with pytest.raises(IoError, match="data may be lost"):
            disk.close()


def test_what_was_flushed_before_is_safe(tmp_path: Path) -> None:
    with fake_server(tmp_path / "s", serve, serve, serve) as server:
        with opened(server.path) as disk:
            disk.write(0, b"data" * 128)
            disk.flush()
            server.hang_up()
            wait_for_loss(disk)
            disk.flush()
            disk.write(0, b"data" * 128)
            disk.flush()
        assert server.accepted == 2


def test_a_disk_that_is_to_survive_its_server_trusts_it(tmp_path: Path) -> None:
    with fake_server(tmp_path / "s", serve, serve) as server:
        with opened(server.path, **only("reconnect-delay", 10)) as disk:
            disk.write(0, b"data" * 128)
            server.hang_up()
            wait_for_loss(disk)
            disk.flush()
        assert server.accepted == 2


def wait_for_loss(disk: Disk) -> None:
    """Until the client knows that its server has gone."""
    client = disk.node.children["file"].client  # type: ignore[attr-defined]
    wait_until(lambda: client._lanes[0]._connection.lost is not None, every=0.001)


# --- giving up ----------------------------------------------------------------------------------


def test_without_a_delay_a_request_in_flight_fails(tmp_path: Path) -> None:
    with (
        fake_server(tmp_path / "s", until_lost(1), serve) as server,
        opened(server.path) as disk,
    ):
        disk.read(0, 4)
        with pytest.raises(IoError, match="closed the connection") as failure:
            disk.read(0, 4)
        assert failure.value.errno == 5
        assert disk.read(0, 4) == b"ssss"  # a new one connects again


def test_when_the_delay_is_over_requests_fail(tmp_path: Path) -> None:
    disk = opened_then_gone(tmp_path, **only("reconnect-delay", 1))
    started = time.monotonic()
    with pytest.raises(IoError, match="Failed to connect"):
        disk.read(0, 4)
    assert 0.5 < time.monotonic() - started < 5
    started = time.monotonic()
    with pytest.raises(IoError, match="Failed to connect"):
        disk.read(0, 4)
    assert time.monotonic() - started < 0.5
    with pytest.raises(IoError):  # the flush
        disk.close()


def opened_then_gone(tmp_path: Path, mode: str = "r+", **options: Any) -> Disk:
    with fake_server(tmp_path / "s", serve) as server:
        disk = opened(server.path, mode, **options)
        assert disk.read(0, 4) == b"ssss"
    return disk


def test_another_export_is_not_taken_for_the_same(tmp_path: Path) -> None:
    def smaller(connection: socket.socket) -> None:
        connection.sendall(negotiation("structured", export=info_export(MiB // 2)))
        skip_options(connection)
        silent(connection)

    with fake_server(tmp_path / "s", until_lost(1), smaller) as server:
        disk = opened(server.path, "r", **only("reconnect-delay", 1))
        disk.read(0, 4)
        with pytest.raises(IoError, match="is not what it was"):
            disk.read(0, 4)
        disk.close()


def test_a_server_that_breaks_the_protocol_is_not_asked_again(tmp_path: Path) -> None:
    def liar(connection: socket.socket) -> None:
        greet(connection)
        for head, _ in requests(connection):
            connection.sendall(chunk(cookie=head.cookie))

    with fake_server(tmp_path / "s", liar) as server:
        disk = opened(server.path, "r", **only("reconnect-delay", 60))
        with pytest.raises(IoError, match="broke the NBD protocol: 4 bytes of content were never"):
            disk.read(0, 4)
        disk.close()
        assert server.accepted == 1


def test_a_server_that_dies_of_a_request_is_not_asked_for_ever(tmp_path: Path) -> None:
    with fake_server(tmp_path / "s", until_lost(0)) as server:
        disk = opened(server.path, "r", **only("reconnect-delay", 60))
        with pytest.raises(IoError, match="connection"):
            disk.read(0, 4)
        disk.close()
        assert server.accepted <= 12


def test_silence_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    def deaf(connection: socket.socket) -> None:
        greet(connection)
        silent(connection)

    with fake_server(tmp_path / "s", deaf) as server:
        disk = opened(server.path, "r", **only("request-timeout", 1))
        started = time.monotonic()
        with pytest.raises(IoError, match="has not answered for 1 seconds"):
            disk.read(0, 4)
        assert time.monotonic() - started < 6
        disk.close()


@pytest.mark.slow
def test_a_request_that_the_server_has_forgotten_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """It answers all others meanwhile, so that there is no silence."""

    def forgetful(connection: socket.socket) -> None:
        greet(connection)
        for head, _ in requests(connection):
            if head.offset:
                data = content(head.offset, b"s" * head.length)
                connection.sendall(chunk(wire.REPLY_OFFSET_DATA, data, cookie=head.cookie))

    with fake_server(tmp_path / "s", forgetful) as server:
        disk = opened(server.path, "r", **only("request-timeout", 1))
        failures: list[IoError] = []

        def ask_in_vain() -> None:
            with pytest.raises(IoError) as failure:
                disk.read(0, 4)
            failures.append(failure.value)

        thread = threading.Thread(target=ask_in_vain)
        thread.start()
        started = time.monotonic()
        while thread.is_alive():
            with contextlib.suppress(IoError):  # when the connection is given up
                disk.read(512, 4)
            assert time.monotonic() - started < 25
        thread.join()
        assert "has not answered" in str(failures[0])
        disk.close()


def test_a_server_that_takes_no_data_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    def stuffed(connection: socket.socket) -> None:
        greet(connection)
        threading.Event().wait(4)

    with fake_server(tmp_path / "s", stuffed) as server:
        disk = opened(server.path, **only("request-timeout", 1))
        started = time.monotonic()
        with pytest.raises(IoError, match=r"timed out|has not answered"):
            disk.write(0, bytes(MiB))
        assert time.monotonic() - started < 6
        with pytest.raises(IoError):
            disk.close()


# --- interrupts ---------------------------------------------------------------------------------


def interrupt_soon(seconds: float) -> threading.Timer:
    """Ctrl-C for the main thread."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    return timer


def test_waiting_can_be_interrupted(tmp_path: Path) -> None:
    """The bytes that come nonetheless do not go where nobody expects them any more."""
    go_on = threading.Event()

    def slow(connection: socket.socket) -> None:
        greet(connection)
        for count, (head, _) in enumerate(requests(connection)):
            if not count:
                go_on.wait(20)
            data = content(head.offset, b"s" * head.length)
            connection.sendall(chunk(wire.REPLY_OFFSET_DATA, data, cookie=head.cookie))

    with fake_server(tmp_path / "s", slow) as server, opened(server.path, "r") as disk:
        buffer = bytearray(1 << 19)
        timer = interrupt_soon(0.3)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            disk.read_into(0, buffer)
        assert time.monotonic() - started < 3
        timer.join()
        go_on.set()
        assert disk.read(4, 4) == b"ssss"
        assert not any(buffer)
        assert server.accepted == 1


def test_an_interrupted_read_leaves_its_memory_alone(tmp_path: Path) -> None:
    """Even if the server was in the middle of its answer."""
    go_on = threading.Event()

    def halting(connection: socket.socket) -> None:
        greet(connection)
        for head, _ in requests(connection):
            reply = chunk(
                wire.REPLY_OFFSET_DATA,
                content(head.offset, b"s" * head.length),
                cookie=head.cookie,
            )
            connection.sendall(reply[:1000])
            go_on.wait(20)
            connection.sendall(reply[1000:])

    with fake_server(tmp_path / "s", halting, serve) as server, opened(server.path, "r") as disk:
        buffer = bytearray(1 << 16)
        others: list[bytes] = []
        timer = interrupt_soon(0.4)
        other = threading.Timer(0.2, lambda: others.append(disk.read(8, 4)))
        other.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            disk.read_into(0, buffer)
        assert time.monotonic() - started < 3
        timer.join()
        other.join()
        assert others == [b"ssss"]
        before = bytes(buffer)
        assert before.endswith(bytes(1 << 15))
        go_on.set()
        assert disk.read(4, 4) == b"ssss"
        assert buffer == before
        assert server.accepted == 2


def test_waiting_for_a_connection_can_be_interrupted(tmp_path: Path) -> None:
    disk = opened_then_gone(tmp_path, "r", **only("reconnect-delay", 60))
    timer = interrupt_soon(0.3)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        disk.read(0, 4)
    assert time.monotonic() - started < 3
    timer.join()
    disk.close()


# --- opening ------------------------------------------------------------------------------------


def test_opening_waits_for_a_server(tmp_path: Path) -> None:
    servers = []

    def start() -> None:
        time.sleep(0.7)
        servers.append(fake_server(tmp_path / "s", serve))
        servers[0].__enter__()

    thread = threading.Thread(target=start)
    thread.start()
    with opened(tmp_path / "s", **only("open-timeout", 20)) as disk:
        assert disk.read(0, 1) == b"s"
    thread.join()
    servers[0].__exit__(None, None, None)


def test_opening_does_not_wait_for_ever(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(OpenError, match="No such file or directory"):
        opened(tmp_path / "s", **only("open-timeout", 1))
    assert 0.9 < time.monotonic() - started < 4
    started = time.monotonic()
    with pytest.raises(OpenError, match="No such file or directory"):
        opened(tmp_path / "s")
    assert time.monotonic() - started < 0.5


def test_several_connections_only_where_the_server_says_so(tmp_path: Path) -> None:
    multi = FLAGS | wire.FLAG_CAN_MULTI_CONN

    def consistent(connection: socket.socket) -> None:
        connection.sendall(negotiation("simple", info_blocks(), export=info_export(flags=multi)))
        skip_options(connection)
        for head, _ in requests(connection):
            connection.sendall(simple(head.cookie))

    with fake_server(tmp_path / "a", consistent) as server:
        with opened(server.path, connections=4) as disk:
            disk.write(0, bytes(MiB))
        assert server.accepted == 4

    def enough(connection: socket.socket) -> None:
        """More than it has room for."""

    with fake_server(tmp_path / "c", consistent, consistent, enough) as server:
        with opened(server.path, connections=4) as disk:
            disk.write(0, bytes(MiB))
        assert server.accepted == 3
    with fake_server(tmp_path / "b", serve) as server:
        with opened(server.path, connections=4) as disk:
            disk.write(0, bytes(MiB))
        assert server.accepted == 1


def test_nothing_is_left_when_a_disk_is_closed(tmp_path: Path) -> None:
    with fake_server(tmp_path / "s", serve) as server:
        opened(server.path).close()
        assert [t.name for t in threading.enumerate() if t.name == "blocklayer-nbd"] == []


# --- chaos --------------------------------------------------------------------------------------


def cutting(target: Path, rng: random.Random) -> Behaviour:
    """Pass bytes on in both directions, and cut the connection after some of them."""

    def behave(connection: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(target))
        left = [rng.randrange(100, rng.choice([3000, 300000, 30000000, 30000000]))]

        def pass_on(source: socket.socket, sink: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while left[0] > 0 and (data := source.recv(65536)):
                    sink.sendall(data[: max(left[0], 0)])
                    left[0] -= len(data)
            for end in (connection, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        back = threading.Thread(target=pass_on, args=(server, connection))
        back.start()
        pass_on(connection, server)
        back.join()
        server.close()

    return behave


@needs("nbdkit")
@pytest.mark.parametrize("connections", [1, 3])
def test_random_requests_over_connections_that_break(
    connections: int, tmp_path: Path, seed: int, rng: random.Random
) -> None:
    size = 2 * MiB
    command = nbdkit(tmp_path / "real", "memory", str(size))
    with (
        running(command, tmp_path / "real") as peer,
        fake_server(tmp_path / "s", cutting(peer.socket, rng)) as server,
        opened_patiently(server.path, connections) as disk,
    ):
        exercise = Exercise(disk, ModelDisk(size), seed=seed)
        while server.accepted < 10:
            exercise.run(100)


def opened_patiently(path: Path, connections: int) -> Disk:
    """The proxy may cut the handshake as well, where nothing but trying again helps."""
    options: dict[str, Any] = {"reconnect-delay": 60, "open-timeout": 60}
    return opened(path, connections=connections, **options)
