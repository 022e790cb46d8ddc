# SPDX-License-Identifier: Apache-2.0
"""`blk nbd` as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.nbd_peer import NbdPeer

PATIENCE = 20.0


def listens(path: Path) -> bool:
    """Whether somebody listens on a unix socket: between binding and that, clients are refused."""
    lines = Path("/proc/net/unix").read_text("utf-8", "surrogateescape").splitlines()
    sockets = (line.split(maxsplit=7) for line in lines[1:])
    return any(each[7:] == [str(path)] and int(each[3], 16) & 0x10000 for each in sockets)


def words_of(*words: object) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "blocklayer", "nbd", *map(str, words)]


class BlkNbd:
    """A server that clients can connect to."""

    def __init__(
        self, *words: object, waits_for: Path | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, *words_of(*words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.path = waits_for
        if waits_for is not None:
            self.wait_for_socket(waits_for)

    def wait_for_socket(self, path: Path) -> None:
        """Until it listens there."""
        deadline = time.monotonic() + PATIENCE
        while not listens(path):
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, "no socket"
            time.sleep(0.01)

    def connect(self, **options: object) -> NbdPeer:
        """A client."""
        assert self.path is not None
        return NbdPeer(self.path, **options)  # type: ignore[arg-type]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; the exit code and what it has said on stderr."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        """Wait until it ends by itself."""
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said


@contextmanager
def blk_nbd(path: Path, *words: object, prefix: Sequence[str] = ()) -> Iterator[BlkNbd]:
    """A server on a unix socket."""
    server = BlkNbd("-k", path, *words, waits_for=path, prefix=prefix)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()
