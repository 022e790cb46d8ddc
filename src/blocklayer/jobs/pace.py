# SPDX-License-Identifier: Apache-2.0
"""How fast a job may go: its speed limit, and what it leaves to guests who are busy."""

from __future__ import annotations

import time

from blocklayer.base.errors import InvalidArgument

SLICE_SECONDS = 0.1
"""How much may be done at once: the limit holds for averages over this time."""

REST_FACTOR = 8.0
"""Between two steps a job rests so many times the CPU time of a step, if guests are busy."""

BUSY_RATE = 4000.0
"""Requests a second of guests who need all that they can get; who asks less is given way less."""

REQUESTS_MIN = 16
"""Guests' requests between two looks at how busy they are."""


def check_speed(speed: int) -> None:
    """Raise `InvalidArgument` unless it may be a limit."""
    if speed < 0:
        raise InvalidArgument("Parameter 'speed' expects a non-negative value")


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


class Courtesy:
    """Rests between a job's steps, so that busy guests have most of the machine."""

    def __init__(self) -> None:
        self._requests = 0
        self._since = time.monotonic()
        self._worked = 0.0

    def worked(self, seconds: float) -> None:
        """A step took so much CPU time; one thread at a time calls this."""
        self._worked += seconds

    def is_due(self, requests: int) -> bool:
        """Whether guests have been there: `requests` are all that there were until now."""
        return requests >= self._requests + REQUESTS_MIN and self._worked > 0

    def rest(self, requests: int) -> float:
        """Seconds to rest after what was worked since the last time; no step is in flight."""
        now = time.monotonic()
        rate = (requests - self._requests) / max(now - self._since, 1e-6)
        worked = self._worked
        self._requests, self._since, self._worked = requests, now, 0.0
        return worked * REST_FACTOR * min(1.0, rate / BUSY_RATE)
