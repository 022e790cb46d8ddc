# SPDX-License-Identifier: Apache-2.0
"""Receiving from a client that waits for each answer: quickly, and asleep when it is not quick."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from blocklayer.export import channel as module
from blocklayer.export.channel import Channel

pytestmark = pytest.mark.skipif(not module._MAY_POLL, reason="nobody polls on this machine")


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, theirs
    theirs.close()
    channel.close()


def test_what_is_there_and_the_end(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    view = memoryview(bytearray(8))
    for _ in range(3):
        peer.sendall(b"request!")
        assert channel.receive_soon(view) == 8
        assert bytes(view) == b"request!"
        assert channel._is_quick
    peer.close()
    assert channel.receive_soon(view) == 0


def test_a_slow_client_is_waited_for_asleep(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    view = memoryview(bytearray(8))
    peer.sendall(b"one")
    assert channel.receive_soon(view) == 3
    timer = threading.Timer(0.3, peer.sendall, (b"two",))
    timer.start()
    before = time.thread_time()
    assert channel.receive_soon(view) == 3
    assert time.thread_time() - before < 0.1
    timer.join()
    assert not channel._is_quick
    assert not module._awake.locked()


def test_one_connection_at_a_time_stays_awake(
    pair: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, peer = pair
    channel._is_quick = True

    def poll(view: memoryview) -> int:
        raise AssertionError("another one is awake")

    monkeypatch.setattr(channel, "_poll", poll)
    view = memoryview(bytearray(8))
    peer.sendall(b"data")
    with module._awake:
        assert channel.receive_soon(view) == 4
