# SPDX-License-Identifier: Apache-2.0
"""The costs of a child process are those of that child."""

from __future__ import annotations

import sys

import pytest

from benchmarks.process import CommandFailed, rss_floor, run

MiB = 1024 * 1024


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_and_exit_code() -> None:
    usage = run(python("print('hello'); raise SystemExit(3)"), allowed=(0, 3))
    assert (usage.stdout, usage.code) == ("hello\n", 3)


def test_an_exit_code_that_is_not_allowed() -> None:
    with pytest.raises(CommandFailed, match="ended with 3: why"):
        run(python("import sys; sys.stderr.write('why'); sys.exit(3)"))


def test_a_program_that_hangs_is_ended() -> None:
    with pytest.raises(CommandFailed, match="was ended: no end after"):
        run(["sleep", "60"], timeout=0.3)


def test_a_program_that_does_not_exist() -> None:
    with pytest.raises(CommandFailed, match="did not start"):
        run(["/nonexistent/program"])


def test_cpu_time_is_not_wall_time() -> None:
    usage = run(["sleep", "0.3"])
    assert usage.wall >= 0.3
    assert usage.cpu < 0.2


def test_peak_rss_is_that_of_the_child() -> None:
    assert run(python(f"b'x' * (64 * {MiB})")).peak_rss > 64 * MiB


def test_peak_rss_is_not_that_of_the_harness() -> None:
    large = b"x" * (100 * MiB)
    assert rss_floor() < 40 * MiB
    del large
