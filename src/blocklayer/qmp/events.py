# SPDX-License-Identifier: Apache-2.0
"""Telling every monitor what has happened, without waiting for any of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from blocklayer.qmp.schema.events import EVENTS

Listener = Callable[[dict[str, Any]], None]
"""Gets the whole message; must not wait."""


class Events:
    """Listeners to events. Emitting is safe in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every event from now on."""
        with self._lock:
            self._listeners.append(listener)

    def leave(self, listener: Listener) -> None:
        """No more."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)

    def emit(self, name: str, data: Mapping[str, Any]) -> None:
        """Tell of an event; `data` must be what the event declares."""
        members = msgspec.convert(dict(data), EVENTS[name])
        message = event_message(name, msgspec.to_builtins(members))
        # In the lock, so that all hear the same order.
        with self._lock:
            for listener in self._listeners:
                listener(message)


def event_message(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """An event as it goes over the wire, now."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    stamp = {"seconds": seconds, "microseconds": nanoseconds // 1000}
    return {"timestamp": stamp, "event": name, "data": data}
