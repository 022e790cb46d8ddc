# SPDX-License-Identifier: Apache-2.0
"""Waiting for what comes soon, and failing in words where it does not."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 30.0
"""Seconds: long enough for the slowest machine, and an end for a test that would hang."""


def wait_until(
    condition: Callable[[], object],
    words: str = "it does not happen",
    seconds: float = PATIENCE,
    *,
    every: float = 0.01,
) -> None:
    """Until it is true; fail with `words` if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, words
        time.sleep(every)
