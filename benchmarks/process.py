# SPDX-License-Identifier: Apache-2.0
"""Run a program and read from the kernel what it cost.

The program is started by `launch`, a process of its own that is small; its docstring says why.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = Path(__file__).with_name("launch.py")
TIMEOUT_SECONDS = 900.0  # a hung side must not hang the run
MESSAGE_MAX = 600  # characters of a failed program's stderr that are worth showing


class CommandFailed(Exception):
    """A program did not start, or ended with an exit code that was not allowed."""

    def __init__(self, argv: Sequence[str], reason: str, stderr: str) -> None:
        shown = " ".join(argv[:12]) + (" ..." if len(argv) > 12 else "")
        super().__init__(f"`{shown}` {reason}: {stderr.strip()[-MESSAGE_MAX:]}")


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
    with tempfile.TemporaryDirectory(prefix="bench-run-") as name:
        result, out, err = (Path(name, each) for each in ("result", "out", "err"))
        command = [sys.executable, "-I", "-S", str(LAUNCH), str(result), str(out), str(err)]
        launcher = subprocess.Popen(
            [*command, *argv], stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True
        )
        try:
            _, complaint = launcher.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise CommandFailed(argv, "was ended", f"no end after {timeout} s") from None
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
                launcher.communicate()
        if not result.exists():
            raise CommandFailed(argv, "did not start", complaint.decode(errors="replace"))
        wall, user, system, peak_rss, status = result.read_text(encoding="ascii").split()
        code = os.waitstatus_to_exitcode(int(status))
        stdout = out.read_text(encoding="utf-8", errors="replace")
        if code not in allowed:
            stderr = err.read_text(encoding="utf-8", errors="replace")
            raise CommandFailed(argv, f"ended with {code}", stderr or stdout)
    return Usage(
        wall=float(wall),
        user=float(user),
        system=float(system),
        peak_rss=int(peak_rss),
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
