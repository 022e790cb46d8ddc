# SPDX-License-Identifier: Apache-2.0
"""Bring the machine into the same state before each run.

On a virtual machine a free page of the guest may have no page of the host behind it, and the first
touch of such a page costs several times more than the copy into it: 1 GiB written to the page
cache took 1.3 s then, and 0.15 s from the second time on. Whoever comes first would pay for all.
Touching all free memory once does not help where the balloon driver reports free pages to the
host: they are gone again two seconds later. So right before each run a scratch file of the size
that the run needs, and a quarter more, is written and deleted, until that goes as fast as it has
gone before.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

MiB = 1024 * 1024
TRIES_MAX = 5
TRIES_FIRST = 3  # as long as nothing is known about the speed
FAST_ENOUGH = 0.7  # of the best rate seen


class Settler:
    """Writes out what is dirty and touches free memory, in the directory the sides work in."""

    def __init__(self, directory: Path) -> None:
        self._scratch = directory / "touch.scratch"
        self._best_rate = 0.0

    def __call__(self, length: int) -> None:
        """Settle for a run that will fill about `length` bytes of the page cache."""
        os.sync()
        if length == 0:
            return
        tries_min = 1 if self._best_rate else TRIES_FIRST
        for number in range(1, TRIES_MAX + 1):
            rate = self._touch(length + length // 4)
            fast = rate >= FAST_ENOUGH * self._best_rate
            self._best_rate = max(rate, self._best_rate)
            if fast and number >= tries_min:
                break

    def _touch(self, length: int) -> float:
        """Write a file and delete it before it reaches the disk; answer bytes a second."""
        filler = bytes(MiB)
        start = time.perf_counter()
        with self._scratch.open("wb", buffering=0) as file:
            for _ in range(-(-length // MiB)):
                file.write(filler)
        seconds = time.perf_counter() - start
        self._scratch.unlink()
        return length / max(seconds, 1e-9)
