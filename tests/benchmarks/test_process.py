# SPDX-License-Identifier: Apache-2.0
"""The costs of a child process are those of that child."""

from __future__ import annotations

import sys

import pytest

from benchmarks.process import CommandFailed, run

MiB = 1024 * 1024


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_and_exit_code() -> None:
    usage = run(python("print('hello'); raise SystemExit(3)"), allowed=(0, 3))
    assert (usage.stdout, usage.code) == ("hello\n", 3)


def test_an_exit_code_that_is_not_allowed() -> None:
    with pytest.raises(CommandFailed, match="ended with 3: why") as caught:
        run(python("import sys; sys.stderr.write('why'); sys.exit(3)"))
    assert caught.value.code == 3


def test_a_program_that_hangs_is_ended() -> None:
    with pytest.raises(CommandFailed, match="ended with -9"):
        run(["sleep", "60"], timeout=0.2)


def test_cpu_time_is_not_wall_time() -> None:
    usage = run(["sleep", "0.3"])
    assert usage.wall >= 0.3
    assert usage.cpu < 0.2


def test_peak_rss_is_that_of_the_child() -> None:
    small = run(python("pass")).peak_rss
    large = run(python(f"bytearray(b'x') * (200 * {MiB})")).peak_rss
    assert large - small > 150 * MiB or large > 200 * MiB
