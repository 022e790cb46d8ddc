# SPDX-License-Identifier: Apache-2.0
"""One client's monitor: a thread that reads and answers, and a thread that writes.

Between them is the outbox, which is bounded. Answers wait until there is room in it, so a client
that does not read is not listened to either; events cannot wait, so a client that lets too many of
them pile up is disconnected. Nobody else notices.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from typing import Any

from blocklayer.qmp.channels import Channel
from blocklayer.qmp.context import Context
from blocklayer.qmp.dispatch import Session
from blocklayer.qmp.framing import Splitter

_log = logging.getLogger(__name__)

ANSWERS_MAX = 1 << 20
"""Bytes that wait to be written before the client's next command is looked at."""

EVENTS_MAX = 8 << 20
"""Bytes that wait to be written before a client is given up: forty thousand events or more."""

FLUSH_SECONDS = 2.0
"""For how long a client that is told goodbye may take its last answers."""


class Outbox:
    """Lines to be written."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._writing = False
        self._closed = False
        self._changed = threading.Condition()

    def put_answer(self, line: bytes) -> None:
        """Add a line when there is room; dropped if nobody will ever read it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._bytes < ANSWERS_MAX)
            self._append(line)

    def put_event(self, line: bytes) -> bool:
        """Add a line at once; False if there are too many."""
        with self._changed:
            if self._bytes > EVENTS_MAX:
                return False
            self._append(line)
            return True

    def _append(self, line: bytes) -> None:
        if not self._closed:
            self._lines.append(line)
            self._bytes += len(line)
            self._changed.notify_all()

    def take(self) -> bytes:
        """What waits, when there is something; nothing when there will be no more."""
        with self._changed:
            self._writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._lines or self._closed)
            data = b"".join(self._lines)
            self._lines.clear()
            self._bytes = 0
            self._writing = bool(data)
            self._changed.notify_all()
            return data

    def flush(self, seconds: float) -> None:
        """Wait until everything is written, but not for ever."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not (self._lines or self._writing), seconds
            )

    def close(self) -> None:
        """Nobody takes anything any more."""
        with self._changed:
            self._closed = True
            self._lines.clear()
            self._bytes = 0
            self._changed.notify_all()


class Monitor:
    """A conversation over a channel, from the greeting to the end."""

    def __init__(self, context: Context, channel: Channel, *, pretty: bool = False) -> None:
        self._context = context
        self._channel = channel
        self._pretty = pretty
        self._session = Session(context)
        self._outbox = Outbox()
        self._given_up = False
        self._answering = threading.Lock()
        """Held from a command to its answer's place in the outbox."""
        self._writer = threading.Thread(target=self._write, name="qmp writer", daemon=True)

    def run(self) -> None:
        """Talk until the client goes, or `close` is called."""
        self._context.events.listen(self._hear)
        try:
            self._writer.start()
            self._say(self._session.greeting())
            self._listen()
            self._outbox.flush(FLUSH_SECONDS)
        finally:
            self.close()

    def _listen(self) -> None:
        splitter = Splitter()
        while data := self._channel.read():
            for message in splitter.feed(data):
                self._answer(message)

    def _answer(self, message: Any) -> None:
        with self._answering:
            self._say(self._session.answer(message))

    def _say(self, message: dict[str, Any]) -> None:
        self._outbox.put_answer(self._line(message))

    def _hear(self, event: dict[str, Any]) -> None:
        if not self._session.negotiated or self._given_up:
            return
        if not self._outbox.put_event(self._line(event)):
            self._given_up = True
            _log.warning("a monitor's client does not read its events: it is disconnected")
            # In another thread: closing takes the lock of the listeners, which is held.
            threading.Thread(target=self.close, name="qmp closer", daemon=True).start()

    def _line(self, message: dict[str, Any]) -> bytes:
        text = json.dumps(message, indent=4 if self._pretty else None)
        return text.encode() + b"\r\n"

    def _write(self) -> None:
        try:
            while data := self._outbox.take():
                self._channel.write(data)
        except OSError as error:
            _log.info("a monitor's client is gone: %s", error.strerror or error)
        finally:
            self._outbox.close()
            self._channel.close()

    def finish_answer(self, deadline: float) -> None:
        """Wait until the command that is being carried out is answered, but not for ever."""
        if self._answering.acquire(timeout=max(0, deadline - time.monotonic())):
            self._answering.release()

    def finish(self, deadline: float) -> None:
        """End the conversation when the client has got what it was told, or at the deadline."""
        self._outbox.flush(max(0, deadline - time.monotonic()))
        self.close()

    def close(self) -> None:
        """End the conversation."""
        self._context.events.leave(self._hear)
        self._outbox.close()
        self._channel.close()
