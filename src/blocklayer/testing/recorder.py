# SPDX-License-Identifier: Apache-2.0
"""A filter that notes which requests reached it, in their order.

    recorder = Recorder(MemoryNode(0))
    ...
    assert recorder.take() == [("write", 0, 512), ("flush", 0, 0)]

Events of the parent can be noted among the requests, which shows what belongs to what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from blocklayer.base.buffers import Vector, vector_length
from blocklayer.core.filter import FilterNode
from blocklayer.core.node import Mapped, Node


class Recorded(NamedTuple):
    """A request (read, write, zero, discard, flush, truncate, map) or ``event:…``.

    In bytes; the `offset` of a truncate is the new size.
    """

    verb: str
    offset: int = 0
    length: int = 0


class Recorder(FilterNode):
    """Notes requests before they are passed on, so that failed ones are noted as well."""

    driver = "recorder"

    def __init__(self, child: Node, *, events: bool = False, status: bool = False) -> None:
        super().__init__(child)
        self.requests: list[Recorded] = []
        self._events = events
        self._status = status

    def take(self, *verbs: str) -> list[Recorded]:
        """What was noted since the last time, all of it or only some verbs; forgets it."""
        taken, self.requests = self.requests, []
        return [request for request in taken if not verbs or request.verb in verbs]

    @property
    def hears(self) -> bool:  # type: ignore[override]
        """If events are noted, or the child hears."""
        return self._events or super().hears

    def on_event(self, node: Node, name: str, fields: dict[str, Any]) -> None:
        """Note an event."""
        if self._events:
            self._note(f"event:{name}", fields.get("offset", 0), fields.get("length", 0))
        super().on_event(node, name, fields)

    def _note(self, verb: str, offset: int = 0, length: int = 0) -> None:
        self.requests.append(Recorded(verb, offset, length))

    def readv(self, offset: int, vector: Vector) -> None:
        """Note and read."""
        self._note("read", offset, vector_length(vector))
        super().readv(offset, vector)

    def writev(self, offset: int, vector: Vector) -> None:
        """Note and write."""
        self._note("write", offset, vector_length(vector))
        super().writev(offset, vector)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Note and zero."""
        self._note("zero", offset, length)
        super().zero(offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        """Note and discard."""
        self._note("discard", offset, length)
        super().discard(offset, length)

    def flush(self) -> None:
        """Note and flush."""
        self._note("flush")
        super().flush()

    def truncate(self, size: int, preallocation: str = "off") -> None:
        """Note and resize."""
        self._note("truncate", size)
        super().truncate(size, preallocation)

    def map(self, offset: int, length: int) -> Mapped:
        """Note, if asked for, and map."""
        if self._status:
            self._note("map", offset, length)
        return super().map(offset, length)
