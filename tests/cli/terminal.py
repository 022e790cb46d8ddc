# SPDX-License-Identifier: Apache-2.0
"""A command on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence

TIMEOUT = 30


class Terminal:
    """Runs `blk` with a terminal; which of its streams are the terminal can be chosen.

    With `keys`, Ctrl-C and the like are signals, as on the terminal somebody has logged in on.
    Nothing is remembered between sessions unless the environment names a place for it.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        stdout: bool = True,
        keys: bool = False,
        environment: Mapping[str, str] | None = None,
        columns: int = 80,
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [*(["setsid", "--ctty"] if keys else []), sys.executable, "-m", "blocklayer", *words],
            stdin=slave,
            stdout=slave if stdout else subprocess.PIPE,
            stderr=slave,
            start_new_session=not keys,
            env={
                **os.environ,
                "TERM": "dumb",
                "XDG_STATE_HOME": os.devnull,
                "INPUTRC": os.devnull,
                **(environment or {}),
            },
        )
        os.close(slave)
        self.shown = ""
        self._seen = 0

    def type(self, text: str) -> None:
        """Somebody types."""
        os.write(self._master, text.encode())

    def wait_for_prompt(self) -> None:
        """Read until there is a prompt, and whoever shows it is ready to read."""
        self.wait_for("blk> ")
        time.sleep(0.3)

    def wait_a_moment(self) -> None:
        """Let a command get under way that shows nothing of it."""
        time.sleep(0.3)

    def wait_for(self, text: str) -> None:
        """Read until the terminal shows `text` after what was waited for before."""
        deadline = time.monotonic() + TIMEOUT
        while (found := self.shown.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.shown!r}"
            assert self._read(1.0), f"{text!r} is not in {self.shown!r}"
        self._seen = found + len(text)

    def finish(self) -> int:
        """Read until the command ends; its exit code."""
        deadline = time.monotonic() + TIMEOUT
        while self._read(1.0):
            assert time.monotonic() < deadline, self.shown
        os.close(self._master)
        return self.process.wait(TIMEOUT)

    def _read(self, seconds: float) -> bool:
        """Read what is there; whether there can be more."""
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False  # the last one who had the terminal open is gone
        self.shown += data.decode("utf-8", "replace")
        return bool(data)
