# SPDX-License-Identifier: Apache-2.0
"""What drivers announce: named events with fields, for tracing and for fault rules.

A driver guards every announcement with `if self.sink is not None`, so that events which nobody
listens to cost one attribute load; none are announced on the inline data path, which is closed
while somebody listens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any, TextIO, TypeAlias

    from blocklayer.core.node import Node

Sink: TypeAlias = "Callable[[Node, str, dict[str, Any]], None]"
"""Called with the announcing node, the event's name and its fields; may raise to inject a fault."""

EVENTS = {
    "padded": (
        *("pwritev_rmw_head", "pwritev_rmw_after_head"),
        *("pwritev_rmw_tail", "pwritev_rmw_after_tail"),
    ),
    "qed": (
        *("l1_update", "l2_load", "l2_update", "need_check_set", "need_check_clear"),
        *("read_aio", "read_backing_aio", "cow_write", "write_aio"),
        *("flush_to_os", "flush_to_disk"),
    ),
    "raw": ("read_aio", "write_aio", "flush_to_os", "flush_to_disk"),
}
"""What each driver announces; the others announce nothing."""

_tracers: list[Sink] = []


def full_names() -> list[str]:
    """Every event that there is, as tracers call it: ``qed_l2_update``."""
    return [f"{driver}_{name}" for driver, names in EVENTS.items() for name in names]


def add_tracer(tracer: Sink) -> None:
    """Send the events of every node that is opened from now on to `tracer`."""
    _tracers.append(tracer)


def remove_tracer(tracer: Sink) -> None:
    """Undo `add_tracer`; nodes that are open keep their listeners."""
    _tracers.remove(tracer)


def combined_sink(listeners: list[Sink]) -> Sink | None:
    """One callable for all tracers and `listeners`; None when there is nobody."""
    sinks = [*_tracers, *listeners]
    if not sinks:
        return None
    if len(sinks) == 1:
        return sinks[0]

    def announce(node: Node, name: str, fields: dict[str, Any]) -> None:
        for sink in sinks:
            sink(node, name, fields)

    return announce


class Tracer:
    """Prints events whose full name (``qed_l2_update``) matches a shell pattern.

    but  patterns of those that it does not print after all
    """

    def __init__(self, pattern: str, stream: TextIO | None = None) -> None:
        self._pattern = pattern
        self.but: list[str] = []
        self._stream = stream if stream is not None else sys.stderr
        self._start = time.monotonic()

    def __call__(self, node: Node, name: str, fields: dict[str, Any]) -> None:
        """Print one line: seconds since the tracer was made, event, file, fields."""
        import fnmatch  # behind it is re, which costs start-up time

        full_name = f"{node.driver}_{name}"
        if not fnmatch.fnmatchcase(full_name, self._pattern):
            return
        if any(fnmatch.fnmatchcase(full_name, pattern) for pattern in self.but):
            return
        text = " ".join(
            f"{key}={value:#x}" if isinstance(value, int) else f"{key}={value}"
            for key, value in fields.items()
        )
        elapsed = time.monotonic() - self._start
        self._stream.write(f"{elapsed:.6f} {full_name} {node.filename} {text}\n")
