# SPDX-License-Identifier: Apache-2.0
"""Whoever wants to stop does not wait for a server that hangs."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import Cancelled, IoError, OpenError
from blocklayer.base.progress import CancelToken
from blocklayer.nbd import client_waits, wire
from blocklayer.ops.convert import convert
from blocklayer.ops.open_image import open_disk
from tests.nbd.server_bytes import FLAGS, MiB, info_export, negotiation, simple
from tests.support.fake_nbd import FakeServer, fake_server, receive, requests, skip_options
from tests.support.nbd_process import BlkNbd
from tests.support.waiting import wait_until

SIZE = 64 * MiB
SOON = 4.0
"""A second of patience, and what a busy machine adds; servers stay silent for much longer."""

RUN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from blocklayer.cli.main import main; sys.exit(main())"
)
"""`blk`, also below a shell that has it ignore Ctrl-C."""


class Hanging:
    """Answers some reads, and then nothing any more."""

    def __init__(self, reads: int = 2) -> None:
        self._reads = reads
        self.silent = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(negotiation("simple", export=info_export(SIZE, FLAGS)))
        skip_options(connection)
        reads = 0
        for head, _ in requests(connection):
            if head.command == wire.CMD_READ:
                reads += 1
            if reads > self._reads or head.command in (wire.CMD_WRITE, wire.CMD_FLUSH):
                self.silent.set()
                receive(connection, 1 << 30)
            data = b"s" * head.length if head.command == wire.CMD_READ else b""
            connection.sendall(simple(head.cookie) + data)


class Mute:
    """Accepts connections, and says nothing."""

    def __init__(self) -> None:
        self.silent = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        self.silent.set()
        receive(connection, 1 << 30)


@contextlib.contextmanager
def blk(*words: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal; what the command says, when it has ended as it should."""
    started = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    assert time.monotonic() - started < SOON
    assert process.returncode == 128 + number, said
    assert said.startswith("blk: interrupted\n")
    return said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, "convert -f raw -O qed URI TARGET"),
        (signal.SIGTERM, "convert -f raw -O qed URI TARGET"),
        (signal.SIGINT, "convert -n -f raw -O raw SOURCE URI"),
        (signal.SIGTERM, "digest -f raw URI"),
        (signal.SIGINT, "compare -f raw -F raw SOURCE URI"),
        (signal.SIGTERM, "compare -f raw -F raw URI SOURCE"),
        (signal.SIGTERM, "dd -f raw bs=1M if=URI of=TARGET"),
        (signal.SIGINT, "mirror -f raw URI TARGET"),
        (signal.SIGTERM, "bench -f raw URI"),
    ],
)
def test_a_command_is_stopped(number: signal.Signals, words: str, tmp_path: Path) -> None:
    hanging = Hanging()
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"s" * SIZE)
    with fake_server(tmp_path / "s", hanging) as server:
        places = {"URI": server.uri, "SOURCE": source, "TARGET": target}
        with blk(*words_of(words, places)) as process:
            assert hanging.silent.wait(20)
            stop(process, number)
    assert not target.exists()
    assert source.stat().st_size == SIZE


def words_of(text: str, places: dict[str, Any]) -> list[str]:
    """With places also behind ``if=`` and ``of=``."""
    for name, place in places.items():
        text = text.replace(name, str(place))
    return text.split()


def test_a_command_that_connects_is_stopped(tmp_path: Path) -> None:
    mute = Mute()
    with fake_server(tmp_path / "s", mute) as server, blk("digest", server.uri) as process:
        assert mute.silent.wait(20)
        stop(process, signal.SIGINT)


def test_a_command_that_tries_again_to_connect_is_stopped(tmp_path: Path) -> None:
    options = f"driver=nbd,path={tmp_path}/nobody,open-timeout=60"
    with blk("digest", "--image-opts", options) as process:
        time.sleep(1)
        stop(process, signal.SIGTERM)


def test_a_server_process_that_is_stopped(tmp_path: Path) -> None:
    image, target, path = tmp_path / "image", tmp_path / "target", tmp_path / "s"
    image.write_bytes(b"s" * SIZE)
    server = BlkNbd("-t", "-k", path, "-f", "raw", image, waits_for=path)
    uri = f"nbd+unix:///?socket={path}"
    try:
        with blk("convert", "-f", "raw", "-O", "qed", "-r", "8M", uri, target) as process:
            wait_until(lambda: target.exists() and target.stat().st_size >= MiB)
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(0.3)
            said = stop(process, signal.SIGINT)
    finally:
        server.process.send_signal(signal.SIGCONT)
        server.process.kill()
        server.process.communicate()
    assert said == f"blk: interrupted\n'{target}' was not complete, and has been removed\n"
    assert not target.exists()


# --- the library --------------------------------------------------------------------------------


def until_interrupted() -> None:
    deadline = time.monotonic() + 10
    while not client_waits.interrupt_silent(0):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def interrupted_when(silent: threading.Event, cancel: CancelToken | None = None) -> Iterator[None]:
    """Another thread gives up the server that has gone silent; the rest of it has to be quick."""
    started = 0.0

    def interrupt() -> None:
        nonlocal started
        assert silent.wait(20)
        started = time.monotonic()
        if cancel is not None:
            cancel.cancel()
        until_interrupted()

    other = threading.Thread(target=interrupt)
    other.start()
    try:
        yield
    finally:
        other.join()
    assert time.monotonic() - started < SOON


def test_a_waiting_thread_is_told_and_closing_does_not_wait(tmp_path: Path) -> None:
    hanging = Hanging(reads=0)
    with fake_server(tmp_path / "s", hanging) as server:
        disk = open_disk(server.uri, format="raw", mode="r+")
        with interrupted_when(hanging.silent):
            with pytest.raises(IoError, match="interrupted"):
                disk.read(0, 4096)
            with pytest.raises(IoError, match="interrupted"):
                disk.write(0, b"more")
            with pytest.raises(IoError, match="interrupted"):
                disk.close()
        assert disk.closed
        assert server.accepted == 1


def test_nobody_connects_again(tmp_path: Path) -> None:
    hanging = Hanging(reads=0)
    with fake_server(tmp_path / "s", hanging) as server:
        file = {"driver": "nbd", "reconnect-delay": 60, "path": str(server.path)}
        with (
            blocklayer.open({"driver": "raw", "file": file}) as disk,
            interrupted_when(hanging.silent),
            pytest.raises(IoError, match="interrupted"),
        ):
            disk.read(0, 4096)
        assert server.accepted == 1


def test_opening_is_told(tmp_path: Path) -> None:
    mute = Mute()
    with (
        fake_server(tmp_path / "s", mute) as server,
        interrupted_when(mute.silent),
        pytest.raises(OpenError, match="interrupted"),
    ):
        open_disk(server.uri, format="raw")


def test_a_cancelled_copy_leaves_nothing(tmp_path: Path) -> None:
    hanging, cancel, target = Hanging(), CancelToken(), tmp_path / "target"
    with (
        fake_server(tmp_path / "s", hanging) as server,
        interrupted_when(hanging.silent, cancel),
        # Who is given up may be heard of before the cancellation is.
        pytest.raises((Cancelled, IoError)),
    ):
        convert([server.uri], target, source_format="raw", format="qed", cancel=cancel)
    assert not target.exists()


def test_servers_that_answer_are_left_alone(tmp_path: Path) -> None:
    with fake_server(tmp_path / "s", Hanging()) as server, _opened(server) as disk:
        assert not client_waits.interrupt_silent(0)
        assert disk.read(0, 4) == b"ssss"


def _opened(server: FakeServer) -> Any:
    return open_disk(server.uri, format="raw")
