# SPDX-License-Identifier: Apache-2.0
"""Progress and cancellation of everything that takes long."""

from __future__ import annotations

import threading
from collections.abc import Callable

from blocklayer.base.errors import Cancelled
from blocklayer.base.record import Record


class Progress(Record, frozen=True):
    """How far an operation is, in bytes of its own work: `done` never runs backwards.

    operation  what is going on; what has several stages gives each a name and counts anew
    zero       of the bytes done, those known or found to be zeroes: they were not moved
    skipped    of the bytes done, those left alone for another reason: nothing had to change
    """

    operation: str
    done: int
    total: int
    zero: int = 0
    skipped: int = 0

    @property
    def fraction(self) -> float:
        """0.0 to 1.0."""
        return min(1.0, self.done / self.total) if self.total else 1.0


ProgressCallback = Callable[[Progress], None]


class CancelToken:
    """Ask a running operation to stop: `cancel()` from any thread or signal handler.

    The operation raises `Cancelled` at its next step and leaves nothing half made behind.
    """

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask; returns at once."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()


class Reporter:
    """What an operation holds: counts its work, tells whoever listens, and stops when asked."""

    def __init__(
        self,
        operation: str,
        total: int,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self.operation = operation
        self.total = total
        self.done = self.zero = self.skipped = 0
        self._progress = progress
        self._cancel = cancel
        self.advance(0)

    def check(self) -> None:
        """Raise `Cancelled` if somebody asked for it."""
        if self._cancel is not None and self._cancel.cancelled:
            raise Cancelled(f"{self.operation} was cancelled")

    def advance(self, amount: int, *, zero: int = 0, skipped: int = 0) -> None:
        """`amount` more bytes are done, some of them zeroes, some left alone."""
        self.check()
        self.done += amount
        self.zero += zero
        self.skipped += skipped
        if self._progress is not None:
            done = min(self.done, self.total)
            self._progress(Progress(self.operation, done, self.total, self.zero, self.skipped))

    def reach(self, position: int) -> None:
        """All bytes up to `position` are done."""
        self.advance(max(0, position - self.done))

    def finish(self) -> None:
        """Everything is done, whatever was estimated before."""
        self.done = self.total
        self.advance(0)


class Watch(Record, frozen=True):
    """Who wants to know of, and to stop, what a node does on its own: checking, giving space back.

    Whoever starts that sets it on the node before.
    """

    progress: ProgressCallback | None = None
    cancel: CancelToken | None = None

    def reporter(self, operation: str, total: int) -> Reporter:
        """For one stage of the work."""
        return Reporter(operation, total, self.progress, self.cancel)

    def check(self) -> None:
        """Raise `Cancelled` if somebody asked for it."""
        if self.cancel is not None and self.cancel.cancelled:
            raise Cancelled("The operation was cancelled")
