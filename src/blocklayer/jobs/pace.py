# SPDX-License-Identifier: Apache-2.0
"""A job's speed limit, which may be changed while it holds somebody back."""

from __future__ import annotations

import time

SLICE_SECONDS = 0.1
"""How much may be done at once: the limit holds for averages over this time."""


class SpeedLimit:
    """Bytes per second; 0 is no limit. The caller holds the job's lock."""

    def __init__(self, speed: int = 0) -> None:
        self.speed = speed
        self._due = 0.0

    def set(self, speed: int) -> None:
        """Another limit, from now on: what was done before is forgotten."""
        self.speed = speed
        self._due = 0.0

    def account(self, amount: int) -> None:
        """So many bytes are going to be moved."""
        if self.speed:
            earliest = time.monotonic() - SLICE_SECONDS
            self._due = max(self._due, earliest) + amount / self.speed

    def wait(self) -> float:
        """Seconds until more may be done."""
        return max(0.0, self._due - time.monotonic()) if self.speed else 0.0
