# SPDX-License-Identifier: Apache-2.0
"""Run a program and read from the kernel what it cost.

`wait4` gives the CPU time and the peak RSS of that child alone. One trap: on Linux the peak RSS
survives `exec`, so a child is charged with the size its parent had when it started it. The process
that calls `run` must therefore stay small; `rss_floor` measures how small it is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 900.0  # a hung side must not hang the run
MESSAGE_MAX = 600  # characters of a failed program's stderr that are worth showing


class CommandFailed(Exception):
    """A program ended with an exit code that was not allowed."""

    def __init__(self, argv: Sequence[str], code: int, stderr: str) -> None:
        shown = " ".join(argv[:12]) + (" ..." if len(argv) > 12 else "")
        super().__init__(f"`{shown}` ended with {code}: {stderr.strip()[-MESSAGE_MAX:]}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run of a program cost (seconds and bytes), and what it printed."""

    wall: float
    user: float
    system: float
    peak_rss: int
    stdout: str
    code: int

    @property
    def cpu(self) -> float:
        return self.user + self.system


def run(
    argv: Sequence[str], *, allowed: Sequence[int] = (0,), timeout: float = TIMEOUT_SECONDS
) -> Usage:
    """Run a program to its end; its output goes to files, so that no pipe slows it down."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT)
        watchdog = threading.Timer(timeout, os.kill, (process.pid, signal.SIGKILL))
        watchdog.daemon = True
        watchdog.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        watchdog.cancel()
        code = process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout = out.read().decode(errors="replace")
        stderr = err.read().decode(errors="replace")
    if code not in allowed:
        raise CommandFailed(argv, code, stderr or stdout)
    return Usage(
        wall=wall,
        user=usage.ru_utime,
        system=usage.ru_stime,
        peak_rss=usage.ru_maxrss * 1024,
        stdout=stdout,
        code=code,
    )


def run_worker(name: str, job: Mapping[str, Any]) -> tuple[Usage, dict[str, Any]]:
    """Run a program of `benchmarks.workers`; answer what it cost and what it said."""
    usage = run([sys.executable, "-m", f"benchmarks.workers.{name}", json.dumps(job)])
    answer: dict[str, Any] = json.loads(usage.stdout)
    return usage, answer


def rss_floor() -> int:
    """The peak RSS that is reported for a program that needs nothing."""
    return run(["true"]).peak_rss
