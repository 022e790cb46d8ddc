"""Clients that are slow or hostile: nobody else notices, and memory is bounded."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from blocklayer.qmp.channels import DescriptorChannel, NullChannel, SocketChannel
from blocklayer.qmp.daemon import Daemon
from blocklayer.qmp.monitor import ANSWERS_MAX, EVENTS_MAX, Monitor, Outbox
from blocklayer.qmp.types import Command, Nothing


@contextmanager
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    try:
        yield made
    finally:
        made.close()


class Peer:
    """The other end of a monitor in this process."""

    def __init__(self, daemon: Daemon) -> None:
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.socket.settimeout(30)
        self.monitor = Monitor(daemon.context, SocketChannel(theirs))
        self.thread = threading.Thread(target=self.monitor.run)
        self.thread.start()
        self.file = ours.makefile("rwb")

    def read(self) -> Any:
        line = self.file.readline()
        return json.loads(line) if line else None

    def send(self, text: str) -> None:
        self.file.write(text.encode())
        self.file.flush()

    def say(self, text: str) -> Any:
        self.send(text)
        return self.read()

    def negotiate(self) -> None:
        assert "QMP" in self.read()
        assert self.say('{"execute": "qmp_capabilities"}') == {"return": {}}

    def close(self) -> None:
        self.file.close()
        self.socket.close()
        self.thread.join(30)
        assert not self.thread.is_alive()


@contextmanager
def peers(daemon: Daemon, count: int) -> Iterator[list[Peer]]:
    made = [Peer(daemon) for _ in range(count)]
    try:
        yield made
    finally:
        for peer in made:
            peer.close()


EVENT = {"id": "x" * 1000, "status": "running"}


def test_events_are_for_those_who_have_negotiated() -> None:
    with daemon() as one, peers(one, 2) as (early, late):
        early.negotiate()
        one.context.events.emit("BLOCK_EXPORT_DELETED", {"id": "e"})
        event = early.read()
        assert event["data"] == {"id": "e"}
        assert abs(event["timestamp"]["seconds"] - time.time()) < 60
        assert 0 <= event["timestamp"]["microseconds"] < 10**6
        late.negotiate()  # and the first thing it reads is the answer


def test_a_client_that_reads_no_events_is_disconnected_and_delays_nobody() -> None:
    with daemon() as one, peers(one, 2) as (deaf, good):
        deaf.negotiate()
        good.negotiate()
        heard = 0
        total = 2 * EVENTS_MAX // 1000
        begin = time.monotonic()
        for _ in range(total):
            one.context.events.emit("JOB_STATUS_CHANGE", EVENT)
            heard += good.read()["event"] == "JOB_STATUS_CHANGE"
        assert heard == total
        assert time.monotonic() - begin < 60
        assert good.say('{"execute": "query-status"}')["return"]["running"] is True
        deaf.thread.join(30)
        assert not deaf.thread.is_alive()
        assert good.thread.is_alive()


def test_a_client_that_reads_no_answers_is_not_listened_to() -> None:
    with daemon() as one, peers(one, 2) as (deaf, good):
        deaf.negotiate()
        good.negotiate()
        deaf.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            deaf.socket.sendall(b'{"execute": "query-qmp-schema"}' * 1_000_000)
        # Its answers, a hundred times as long as its commands, wait in memory to a bound.
        assert good.say('{"execute": "query-status"}')["return"]["running"] is True
        waiting = deaf.monitor._outbox._bytes
        assert waiting < ANSWERS_MAX + 200_000


def test_garbage_from_one_client_is_its_own_affair() -> None:
    with daemon() as one, peers(one, 2) as (hostile, good):
        hostile.negotiate()
        good.negotiate()
        sender = threading.Thread(
            target=lambda: hostile.socket.sendall(b'{"x": [' * 100 + b"\xff" + b"}]" * 100_000)
        )
        sender.start()
        for _ in range(20):
            assert good.say('{"execute": "query-status"}')["return"]["running"] is True
        assert "error" in hostile.read()
        hostile.socket.shutdown(socket.SHUT_RDWR)
        sender.join(30)


def test_a_deeply_nested_id_comes_back() -> None:
    with daemon() as one, peers(one, 1) as (peer,):
        peer.negotiate()
        deep = "[" * 500 + "]" * 500
        answer = peer.say(f'{{"execute": "query-status", "id": {deep}}}')
        assert json.dumps(answer["id"]).replace(" ", "") == deep
        deeper = '{"driver": "raw", "file": ' * 300 + "1" + "}" * 300
        answer = peer.say(f'{{"execute": "blockdev-add", "arguments": {deeper}}}')
        assert "nested too deeply" in answer["error"]["desc"]


def test_names_that_are_no_utf8_can_be_told() -> None:
    with daemon() as one, peers(one, 1) as (peer,):
        peer.negotiate()
        answer = peer.say('{"execute": "blockdev-del", "arguments": {"node-name": "\\u0000é"}}')
        assert answer["error"]["desc"] == "Failed to find node with node-name='\0é'"


def fail(kind: type[Exception]) -> Any:
    def run(context: Any, arguments: Any) -> None:
        raise kind(2, "No such file or directory", "x")

    return run


def test_a_command_that_fails_unforeseen_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    with daemon() as one, peers(one, 1) as (peer,):
        for name, kind in (("lost", FileNotFoundError), ("wrong", ArithmeticError)):
            one.context.commands[name] = Command(name, Nothing, None, fail(kind))
        peer.negotiate()
        answer = peer.say('{"execute": "lost", "id": 7}')
        assert answer["error"]["desc"] == "x: No such file or directory"
        answer = peer.say('{"execute": "wrong", "id": 7}')
        assert answer["error"]["desc"].startswith("Internal error: ArithmeticError")
        assert answer["id"] == 7
        assert "nobody foresaw" in caplog.text
        assert peer.say('{"execute": "query-status"}')["return"]["running"] is True


def test_a_monitor_of_a_daemon_that_ends() -> None:
    one = Daemon()
    peer = Peer(one)
    peer.negotiate()
    one._monitors.add(peer.monitor)
    one.close()
    assert peer.read()["event"] == "SHUTDOWN"
    assert peer.read() is None
    peer.close()


def test_the_outbox_forgets_what_nobody_will_read() -> None:
    box = Outbox()
    box.put_answer(b"a")
    box.close()
    box.put_answer(b"b" * 2 * ANSWERS_MAX)
    box.put_answer(b"c")
    assert box.take() == b""


def test_a_null_channel_says_nothing() -> None:
    channel = NullChannel()
    timer = threading.Timer(0.05, channel.close)
    timer.start()
    assert channel.read() == b""
    channel.write(b"x")
    timer.join()


def test_a_descriptor_channel_is_woken_by_closing() -> None:
    import os

    reading, writing = os.pipe()
    channel = DescriptorChannel(reading, writing, owned=True)
    channel.write(b"x" * 1000)
    assert channel.read() == b"x" * 1000
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(channel.read()))
    reader.start()
    time.sleep(0.05)
    channel.close()
    channel.close()
    reader.join(30)
    assert found == [b""]
    with pytest.raises(BrokenPipeError):
        channel.write(b"x" * (1 << 20))


def test_a_writer_that_waits_is_woken_by_closing() -> None:
    import os

    reading, writing = os.pipe()
    channel = DescriptorChannel(-1, writing, owned=True)
    failed: list[BaseException] = []

    def write() -> None:
        try:
            channel.write(b"x" * (1 << 20))
        except OSError as error:
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.1)
    channel.close()
    writer.join(30)
    assert len(failed) == 1
    os.close(reading)
