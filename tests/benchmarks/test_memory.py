# SPDX-License-Identifier: Apache-2.0
"""Free memory is touched until it is as fast as it was, and not for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.memory import TRIES_FIRST, TRIES_MAX, Settler


class Scripted(Settler):
    """The rates come from a list."""

    def __init__(self, rates: Iterator[float]) -> None:
        super().__init__(Path("unused"))
        self.rates = rates
        self.tries = 0

    def _touch(self, length: int) -> float:
        self.tries += 1
        return next(self.rates)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sync", lambda: None)


def test_the_first_time_one_try_says_nothing() -> None:
    settle = Scripted(iter([1.0, 9.0, 9.0]))
    settle(1)
    assert settle.tries == TRIES_FIRST


def test_slow_memory_is_touched_again() -> None:
    settle = Scripted(iter([1.0, 9.0, 9.0, 1.0, 1.0, 8.0]))
    settle(1)
    settle(1)
    assert settle.tries == TRIES_FIRST + 3


def test_it_ends() -> None:
    settle = Scripted(iter([9.0, 9.0, 9.0] + [1.0] * TRIES_MAX))
    settle(1)
    settle(1)
    assert settle.tries == TRIES_FIRST + TRIES_MAX


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    Settler(tmp_path)(3 * 1024 * 1024)
    assert list(tmp_path.iterdir()) == []
