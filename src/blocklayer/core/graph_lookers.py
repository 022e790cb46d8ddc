# SPDX-License-Identifier: Apache-2.0
"""Those who only look at a graph, beside those who change it.

Changes exclude each other and lookers, by a lock. A change may take long: it copies the last of a
mirror, say. Where it says that the graph stays as it is for now (`unchanged`), who only looks does
not wait for its end; the change goes on when all lookers are done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

LOOK_SECONDS = 0.05
"""How often who only wants to look asks whether it may, while somebody changes the graph."""


class Lookers:
    """How many look while somebody else holds the lock of changes."""

    def __init__(self, changing: threading.RLock) -> None:
        self._changing = changing
        self._changed = threading.Condition()
        self._count = 0
        self._allowed = 0
        """Sections in which nothing changes."""

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """For who holds the lock: nothing changes for now, and `looking` does not wait."""
        with self._changed:
            self._allowed += 1
        try:
            yield
        finally:
            with self._changed:
                self._allowed -= 1
                self._changed.wait_for(lambda: not self._count)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Nothing changes meanwhile; for who is soon done, and changes nothing."""
        while not self._changing.acquire(timeout=LOOK_SECONDS):
            with self._changed:
                if self._allowed:
                    self._count += 1
                    break
        else:
            try:
                yield
            finally:
                self._changing.release()
            return
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()
