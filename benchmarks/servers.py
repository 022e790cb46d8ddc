# SPDX-License-Identifier: Apache-2.0
"""NBD servers as contestants: started before a run, asked what they cost, stopped after it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.process import CommandFailed

START_SECONDS = 10.0
STOP_SECONDS = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


class NbdServer:
    """A server on a unix socket; `argv` has the socket's path in it."""

    def __init__(self, argv: Sequence[str], path: Path) -> None:
        self.argv = list(argv)
        self.path = path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.path}"

    def start(self) -> None:
        self.stop()
        self.path.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            self.argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                _, complaint = self._process.communicate()
                self._process = None
                raise CommandFailed(self.argv, "did not start", complaint.decode(errors="replace"))
            time.sleep(0.01)

    def _listens(self) -> bool:
        if not self.path.exists():
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self.path)) == 0

    def cpu(self) -> float:
        """Seconds it has used so far."""
        assert self._process is not None
        text = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii")
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise CommandFailed(self.argv, "did not stop", "") from None
