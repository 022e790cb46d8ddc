# SPDX-License-Identifier: Apache-2.0
"""What a flush means when the connection was another one before.

A server may keep what it has acknowledged in memory until it is told to flush, and lose it when it
dies. The flush that a later connection brings succeeds all the same: nobody told the new server of
the old one's debts. So the client keeps count of losses since the first change that no flush has
covered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Final

ALL_FLUSHED: Final = -1


class Unflushed:
    """Whether changes that were acknowledged may be gone.

    losses  how many connections have been lost and replaced until now
    """

    def __init__(self, losses: Callable[[], int]) -> None:
        self._losses = losses
        self._oldest = ALL_FLUSHED
        """Losses at the first acknowledged change that no flush has covered."""
        self._lock = threading.Lock()
        self.lost = False
        """Something may be gone. That stays so: no later flush brings it back."""

    def note(self, losses: int) -> None:
        """A change was acknowledged; it was asked for when there had been so many losses."""
        with self._lock:
            if self._oldest == ALL_FLUSHED or losses < self._oldest:
                self._oldest = losses

    def flush(self, action: Callable[[], None]) -> bool:
        """Flush by `action`; whether everything that was acknowledged before is safe now."""
        with self._lock:
            oldest, self._oldest = self._oldest, ALL_FLUSHED
        try:
            action()
        except BaseException:
            if oldest != ALL_FLUSHED:
                self.note(oldest)
            raise
        if oldest not in (ALL_FLUSHED, self._losses()):
            self.lost = True
        return not self.lost
