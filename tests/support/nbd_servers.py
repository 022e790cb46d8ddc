# SPDX-License-Identifier: Apache-2.0
"""NBD servers of others, each on a Unix socket of its own."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.nbd_process import listens

START_SECONDS = 20.0


def uri(socket: Path, export: str = "", scheme: str = "nbd+unix") -> str:
    return f"{scheme}:///{export}?socket={socket}"


class Peer:
    """A server process that can be killed and started again on the same socket."""

    def __init__(self, command: list[str], socket: Path) -> None:
        self.socket = socket
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        with (self.socket.parent / f"{self.socket.name}.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            log_text = (self.socket.parent / f"{self.socket.name}.log").read_text("utf-8")
            assert self._process.poll() is None, log_text
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        """It listens on its socket, or has written the file with its pid, if that is waited for."""
        return listens(self.socket) or self.socket.is_file()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def uri(self) -> str:
        return uri(self.socket)


@contextmanager
def running(command: list[str], socket: Path) -> Iterator[Peer]:
    peer = Peer(command, socket)
    peer.start()
    try:
        yield peer
    finally:
        peer.kill()


def nbdkit(socket: Path, *arguments: str) -> list[str]:
    return ["nbdkit", "-f", "-U", str(socket), *arguments]


def qemu_nbd(socket: Path, image: Path, *arguments: str) -> list[str]:
    return ["qemu-nbd", "-k", str(socket), "-t", "-e", "16", *arguments, str(image)]
