# SPDX-License-Identifier: Apache-2.0
"""A server's life: starting, stopping with requests in flight, adding and removing exports."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from blocklayer.base.errors import InvalidArgument
from blocklayer.base.units import MiB
from blocklayer.core.disk import Disk
from blocklayer.export import server as server_module
from blocklayer.export.export import Export
from blocklayer.export.listen import GivenSocket, InetAddress, ListenError, UnixAddress
from blocklayer.export.metrics import serve_metrics
from blocklayer.export.server import NbdServer
from blocklayer.nbd import wire
from tests.export.conftest import Gate, Serve
from tests.support.nbd_peer import (
    CACHE,
    EXTENDED,
    FLUSH,
    FUA,
    MODES,
    READ,
    TRIM,
    WRITE,
    ZERO,
    NbdPeer,
    go_data,
    option_bytes,
)
from tests.support.waiting import wait_until

Make = Callable[..., Disk]
SIZE = 4 * MiB


# --- stopping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_stopping_answers_what_is_in_flight(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    served = serve(make(SIZE))
    gate = Gate(served.disk, "flush", monkeypatch)
    with served.connect(mode=mode) as peer:
        asked = [peer.ask(FLUSH) for _ in range(5)]
        asked += [peer.ask(WRITE, n * 4096, payload=b"x" * 4096, flags=FUA) for n in range(5)]
        asked += [peer.ask(TRIM, 0, 512, flags=FUA), peer.ask(ZERO, MiB, MiB, flags=FUA)]
        for _ in range(5):
            assert gate.begun.acquire(timeout=10)
        stopper = threading.Thread(target=served.server.stop)
        stopper.start()
        wait_until(lambda: not served.path.exists(), "it does not stop")
        time.sleep(0.1)
        gate.opened.set()
        for cookie in asked:
            assert peer.wait(cookie).error == 0
        assert peer.ended()
        stopper.join(10)
        assert not stopper.is_alive()
    assert served.disk.read(0, 5 * 4096) == b"x" * 5 * 4096


def test_stopping_answers_what_was_sent(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE))
    for _ in range(20):
        peers = [served.connect(mode=mode) for mode in MODES]
        asked = [
            (peer, peer.ask(WRITE, n * 512, payload=b"y" * 512))
            for peer in peers
            for n in range(50)
        ]
        served.server.stop()
        for peer, cookie in asked:
            assert peer.wait(cookie).error == 0
        for peer in peers:
            assert peer.ended()
            peer.close()
        server = NbdServer([UnixAddress(str(served.path))])
        server.add(served.export)
        server.start()
        served.server = server


def test_stopping_does_not_wait_for_clients_that_do_not_read(make: Make, serve: Serve) -> None:
    served = serve(make(64 * MiB, format="raw"))
    served.disk.write(0, os.urandom(64 * MiB))
    peers = [served.connect(mode=mode) for mode in MODES]
    for peer in peers:
        for _ in range(20):
            peer.ask(READ, 0, 32 * MiB)
    time.sleep(0.3)
    started = time.monotonic()
    served.server.stop(patience=0.5)
    assert time.monotonic() - started < 5
    assert served.server.clients == 0
    for peer in peers:
        peer.close()


def test_stopping_tells_those_who_negotiate(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE))
    idle = served.connect(mode=None)
    idle.greet()
    silent = served.connect(mode=None)
    wait_until(lambda: served.server.clients == 2, "they are not there")
    served.server.stop(patience=5)
    assert idle.ended()
    silent.take(18)
    assert silent.ended()
    idle.close()
    silent.close()


@pytest.mark.parametrize("command", [CACHE, ZERO, TRIM])
def test_nobody_waits_for_what_would_take_a_day(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch, command: int
) -> None:
    """64-bit requests are done in parts, and end when the client goes or the server stops."""
    size = 1 << 50
    disk = make(1 << 40, format="raw")
    monkeypatch.setattr(disk.node, "size", size)
    pause = lambda *_, **__: time.sleep(0.02)  # noqa: E731
    for name in ("read_into", "write_zeroes", "discard"):
        monkeypatch.setattr(disk, name, pause)
    row = (0, size, True, False, True, 0, 0, "x")
    monkeypatch.setattr(disk, "extent_rows", lambda *_: iter([[row]]))
    served = serve(disk)
    with served.connect(mode=EXTENDED) as peer:
        peer.ask(command, 0, size)
        time.sleep(0.2)
    served.wait_until_alone()
    with served.connect(mode=EXTENDED) as peer:
        cookie = peer.ask(command, 0, size)
        time.sleep(0.2)
        started = time.monotonic()
        served.server.stop(patience=5)
        assert time.monotonic() - started < 2
        assert peer.wait(cookie).error == (0 if command == CACHE else wire.ESHUTDOWN)


def test_stopping_twice_and_before_starting(make: Make, tmp_path: Path) -> None:
    server = NbdServer([UnixAddress(str(tmp_path / "s"))])
    server.stop()
    server = NbdServer([UnixAddress(str(tmp_path / "s"))])
    server.start()
    server.stop()
    server.stop()


# --- exports ------------------------------------------------------------------------------------


def test_several_exports(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE, name="one.qed"), name="one")
    other = make(2 * SIZE, name="two.qed")
    served.server.add(Export("two", other, description="zweite", writable=True, shared=False))
    with served.connect(export="one") as one, served.connect(export="two") as two:
        assert (one.size, two.size) == (SIZE, 2 * SIZE)
        assert one.flags & wire.FLAG_CAN_MULTI_CONN
        assert not two.flags & wire.FLAG_CAN_MULTI_CONN
        two.write(0, b"two")
        assert one.read(0, 3) == bytes(3)
        listing = served.connect(mode=None)
        listing.greet()
        answer = listing.option(wire.OPT_LIST)
        listing.close()
    names = [data[4 : 4 + int.from_bytes(data[:4], "big")] for _, data in answer.replies[:-1]]
    assert names == [b"one", b"two"]
    served.server.remove("two", hard=True)
    other.close()


def test_removing(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE), name="disk")
    server = served.server
    with pytest.raises(InvalidArgument, match="not found"):
        server.remove("other")
    with served.connect(export="disk") as peer:
        with pytest.raises(InvalidArgument, match="still in use"):
            server.remove("disk")
        peer.write(0, b"served on")
        with pytest.raises(InvalidArgument, match="already has export"):
            server.add(served.export)
        server.remove("disk", hard=True)
        assert peer.ended()
        assert server.clients == 0
        assert server.exports == []
    with served.connect(mode=None) as late:
        late.greet()
        assert late.option(wire.OPT_GO, go_data("disk")).kind == wire.REP_ERR_UNKNOWN
    server.add(Export("disk", served.disk, writable=True))
    with served.connect(export="disk") as peer:
        assert peer.read(0, 9) == b"served on"
    served.wait_until_alone()
    server.remove("disk")


def test_removing_does_not_wait_for_clients_that_do_not_read(make: Make, serve: Serve) -> None:
    served = serve(make(64 * MiB, format="raw"))
    served.disk.write(0, os.urandom(64 * MiB))
    with served.connect() as peer:
        for _ in range(20):
            peer.ask(READ, 0, 32 * MiB)
        time.sleep(0.3)
        started = time.monotonic()
        served.server.remove("", hard=True)
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("name", "words"),
    [("x" * 4097, "too long"), ("a\0b", "NUL"), ("\udcff", "UTF-8"), ("é" * 2049, "too long")],
)
def test_names_that_the_protocol_has_not(make: Make, name: str, words: str) -> None:
    with make(SIZE) as disk:
        for options in ({"name": name}, {"name": "", "description": name}):
            with pytest.raises(InvalidArgument, match=words):
                Export(disk=disk, **options)  # type: ignore[arg-type]


def test_exports_that_cannot_be(make: Make) -> None:
    with make(SIZE) as disk:
        with pytest.raises(InvalidArgument, match="Bitmap 'none' is not found"):
            Export("", disk, bitmaps=["none"])
        disk.reopen("r")
        with pytest.raises(InvalidArgument, match="read-only"):
            Export("", disk, writable=True)


def test_the_longest_name_can_be_chosen(make: Make, serve: Serve) -> None:
    name = "x" * 4096
    served = serve(make(SIZE), name=name, description="d" * 4096)
    with served.connect(export=name) as peer:
        assert peer.size == SIZE


# --- how many -----------------------------------------------------------------------------------


def test_others_wait_for_their_turn(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE), options={"max_connections": 2})
    first, second = served.connect(), served.connect()
    third = served.connect(mode=None)
    third.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        third.take(1)
    first.close()
    third.socket.settimeout(10)
    third.begin("", "structured")
    assert third.read(0, 512) == second.read(0, 512)
    second.close()
    third.close()


def test_several_addresses_share_the_number_of_clients(make: Make, tmp_path: Path) -> None:
    paths = [tmp_path / f"s{number}" for number in range(4)]
    disk = make(SIZE)
    server = NbdServer([UnixAddress(str(path)) for path in paths], max_connections=1)
    server.add(Export("", disk))
    server.start()
    peers = [NbdPeer(path, mode=None) for path in paths]
    wait_until(lambda: server.clients == 1, "nobody was accepted")
    time.sleep(0.2)
    assert server.clients == 1
    while peers:
        greeted = None
        deadline = time.monotonic() + 10
        while greeted is None and time.monotonic() < deadline:
            for peer in peers:
                peer.socket.settimeout(0.05)
                try:
                    peer.begin("", "structured")
                    greeted = peer
                    break
                except TimeoutError:
                    continue
        assert greeted is not None, "somebody waits in vain"
        greeted.socket.settimeout(10)
        assert greeted.read(0, 512) == bytes(512)
        assert server.clients == 1
        greeted.close()
        peers.remove(greeted)
    server.stop()
    disk.close()


def test_who_leaves_is_told(make: Make, serve: Serve) -> None:
    left: list[int] = []
    served = serve(make(SIZE), options={"on_leave": left.append})
    served.connect(mode=None).close()  # has not chosen anything
    served.wait_until_alone()
    assert left == []
    with served.connect(), served.connect():
        pass
    wait_until(lambda: len(left) == 2, "leaving was not told")
    assert left[-1] == 0


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", ""])
def test_tcp(make: Make, host: str) -> None:
    if host == "::1":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("there is no IPv6 here")
    server = NbdServer([InetAddress(host, 0)])
    disk = make(SIZE)
    server.add(Export("", disk, writable=True))
    server.start()
    port = server.ports[0]
    assert set(server.ports) == {port}, "one port for all addresses of a host"
    with NbdPeer((host or "127.0.0.1", port)) as peer:
        peer.write(0, b"over TCP")
        assert peer.read(0, 8) == b"over TCP"
        with pytest.raises(ListenError, match="in use"):
            NbdServer([InetAddress(host, port)]).start()
    server.stop()
    again = NbdServer([InetAddress(host, port)])
    again.start()  # the port is free again at once
    again.stop()
    disk.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_given_socket_listens_on_for_the_next_server(
    make: Make, tmp_path: Path, kind: str
) -> None:
    """systemd keeps the socket, and starts another server when somebody connects."""
    where: Any
    if kind == "unix":
        where = str(tmp_path / "activated")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(where)
        listener.listen()
    else:
        listener = socket.create_server(("127.0.0.1", 0))
        where = listener.getsockname()
    disk = make(SIZE)
    for _ in range(2):
        server = NbdServer([GivenSocket(os.dup(listener.fileno()))])
        server.add(Export("", disk))
        server.start()
        with NbdPeer(where) as peer:
            assert peer.read(0, 512) == bytes(512)
        server.stop()
    waiting = socket.socket(listener.family)
    waiting.settimeout(5)
    waiting.connect(where)
    listener.settimeout(5)
    listener.accept()[0].close()
    waiting.close()
    listener.close()
    disk.close()


def test_a_descriptor_that_does_not_listen() -> None:
    ours, theirs = socket.socketpair()
    with pytest.raises(InvalidArgument, match="not a listening socket"):
        NbdServer([GivenSocket(ours.fileno())]).start()
    ours.close()
    theirs.close()


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="too long"):
        NbdServer([UnixAddress("/" + "x" * 107)]).start()
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(ListenError, match="in use"):
        NbdServer([UnixAddress(str(file))]).start()
    assert file.read_text() == "precious"
    with pytest.raises(ListenError, match="No such file"):
        NbdServer([UnixAddress(str(tmp_path / "no" / "where"))]).start()
    with pytest.raises(InvalidArgument, match="needs an address"):
        NbdServer([])


def test_a_path_in_use_is_left_alone_and_a_stale_one_is_taken(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    first = NbdServer([UnixAddress(path)])
    first.start()
    with pytest.raises(ListenError, match="in use"):
        NbdServer([UnixAddress(path)]).start()
    NbdPeer(path, mode=None).close()
    first.stop()
    assert not os.path.exists(path)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    second = NbdServer([UnixAddress(path)])
    second.start()
    NbdPeer(path, mode=None).close()
    second.stop()


def test_a_server_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    good = tmp_path / "good"
    addresses = [UnixAddress(str(good)), UnixAddress(str(tmp_path / "no" / "where"))]
    with pytest.raises(ListenError):
        NbdServer(addresses).start()
    assert not good.exists()


# --- clients that never finish negotiating ------------------------------------------------------


def drip(peer: NbdPeer, data: bytes, pause: float, seconds: float) -> bool:
    """Send byte by byte; whether the server has had enough of it in that time."""
    deadline = time.monotonic() + seconds
    for at in range(len(data)):
        if time.monotonic() > deadline:
            return False
        try:
            peer.send(data[at : at + 1])
        except OSError:
            return True
        time.sleep(pause)
    return False


def test_negotiating_has_an_end(make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_SECONDS", 0.5)
    served = serve(make(SIZE))
    started = time.monotonic()
    silent = served.connect(mode=None)
    slow = served.connect(mode=None)
    chosen = served.connect()
    slow.greet()
    assert drip(slow, option_bytes(wire.OPT_LIST, length=60_000) + bytes(1000), 0.01, 5)
    silent.take(18)
    assert silent.ended()
    assert time.monotonic() - started < 3
    time.sleep(0.3)
    assert chosen.read(0, 512) == bytes(512), "it had chosen an export"
    for peer in (silent, slow, chosen):
        peer.close()


def test_negotiating_has_an_end_for_who_does_not_read(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_SECONDS", 0.5)
    served = serve(make(SIZE))
    for number in range(2000):
        name = f"{number:05}" + "n" * 3000
        served.server.add(Export(name, served.disk))
    peer = served.connect(mode=None)
    peer.greet()
    peer.send(option_bytes(wire.OPT_LIST) * 100)
    started = time.monotonic()
    served.wait_until_alone()
    assert time.monotonic() - started < 3
    peer.close()


def test_a_slow_client_does_not_keep_the_only_place(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_SECONDS", 0.5)
    served = serve(make(SIZE), options={"max_connections": 1})
    with served.connect(mode=None), served.connect() as other:
        assert other.read(0, 512) == bytes(512)


# --- a machine that has no more of something ----------------------------------------------------


def test_without_descriptors_the_server_lives_on(make: Make, serve: Serve) -> None:
    served = serve(make(SIZE))
    keep = served.connect()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    peers = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, limits[1]))
        with suppress(OSError):
            while True:
                peers.append(served.connect(mode=None))
        time.sleep(0.2)
        assert keep.read(0, 512) == bytes(512)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for peer in peers:
            peer.close()
    assert peers
    with served.connect() as late:
        assert late.read(0, 512) == bytes(512)
    keep.close()


def test_without_threads_the_server_lives_on(
    make: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(make(SIZE))
    keep = served.connect()

    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", NoThread)
        with served.connect(mode=None) as peer:
            assert peer.ended()
        assert keep.read(0, 512) == bytes(512)
    with served.connect() as peer:
        assert peer.read(0, 512) == bytes(512)
    keep.close()


# --- metrics ------------------------------------------------------------------------------------


def test_metrics_of_several_exports(make: Make, serve: Serve) -> None:
    pytest.importorskip("prometheus_client")
    served = serve(make(SIZE), name="one")
    other = make(SIZE, name="two.qed")
    served.server.add(Export("two\n\\", other))
    with serve_metrics(served.server, "127.0.0.1", 0) as port:
        with served.connect(export="one") as peer:
            peer.write(0, b"x" * 100)
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        assert 'blocklayer_nbd_bytes_total{direction="write",export="one"} 100.0' in text
        assert 'export="two\\n\\\\"' in text
        again = serve_metrics(served.server, "127.0.0.1", port)
        with pytest.raises(InvalidArgument, match="Cannot serve metrics"):
            again.__enter__()
    served.server.remove("two\n\\")
    other.close()
