"""Daemons, ours and QEMU's, and the conversation that qemu.qmp's client has with them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu.qmp import ConnectError, ExecuteError, QMPClient

OURS = (sys.executable, "-m", "blocklayer", "daemon")
QEMUS = ("qemu-storage-daemon",)

SECONDS = 30.0

T = TypeVar("T")


class Client:
    """QEMU's client library, used from tests that are not asynchronous."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("test")
        try:
            self._run(self._client.connect(str(path)))
        except BaseException:
            self._loop.close()
            raise

    def _run(self, task: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(task, SECONDS))

    def ask(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The answer to a command: a return, or an error with its class and words."""
        try:
            return {"return": self._run(self._client.execute(name, arguments))}
        except ExecuteError as error:
            return {"error": {"class": error.error_class, "desc": str(error)}}

    def next_event(self) -> dict[str, Any]:
        """The next event."""
        return dict(self._run(self._client.events.get()))

    def events_so_far(self) -> list[dict[str, Any]]:
        """Those that are there already."""
        return [dict(event) for event in self._client.events.clear()]

    def close(self) -> None:
        """Disconnect."""
        try:
            self._run(self._client.disconnect())
        except EOFError:
            pass  # the daemon was first
        finally:
            self._loop.close()


def connected(path: Path, daemon: subprocess.Popen[bytes]) -> Client:
    """A client of a daemon that will listen soon."""
    deadline = time.monotonic() + SECONDS
    while True:
        if path.exists():
            try:
                return Client(path)
            except ConnectError:  # it is bound, and does not listen yet
                assert time.monotonic() < deadline
        assert daemon.poll() is None, daemon.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Conversation:
    """A running daemon and a client of it, in a folder of their own."""

    def __init__(
        self,
        folder: Path,
        program: tuple[str, ...] = OURS,
        options: tuple[str, ...] = (),
        *,
        killed: bool = False,
    ) -> None:
        self.folder = folder
        self._killed = killed
        self.socket = folder / "qmp.sock"
        monitor = ("--chardev", f"socket,id=m,path={self.socket},server=on,wait=off")
        self.process = subprocess.Popen(
            [*program, *options, *monitor, "--monitor", "chardev=m"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            self.client = self.connect()
        except BaseException:
            self.process.kill()
            raise
        self.seen: list[dict[str, Any]] = []

    def connect(self) -> Client:
        """One more client."""
        return connected(self.socket, self.process)

    def errors(self) -> str:
        """What an ended daemon has complained about."""
        return self.process.communicate(timeout=SECONDS)[1].decode()

    def ask(self, name: str, /, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """The whole answer to a command."""
        return self.client.ask(name, arguments or {})

    def do(self, command: str, /, **arguments: Any) -> Any:
        """What a command returns; names of arguments with ``_`` for ``-``. Fails on an error."""
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        answer = self.ask(command, given)
        assert "return" in answer, (command, given, answer)
        return answer["return"]

    def refused(self, command: str, /, **arguments: Any) -> str:
        """Why a command is refused."""
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        answer = self.ask(command, given)
        assert "error" in answer, (command, given, answer)
        return str(answer["error"]["desc"])

    def event(self, name: str, /, **members: Any) -> dict[str, Any]:
        """The data of the next event of a name, and with these members."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for number, event in enumerate(self.seen):
                data: dict[str, Any] = event.get("data", {})
                if event["event"] == name and members.items() <= data.items():
                    del self.seen[number]
                    return data
            self.seen.append(self.client.next_event())
        raise AssertionError(f"no event {name}: {self.seen}")

    def events_to(self, name: str, /, **members: Any) -> list[dict[str, Any]]:
        """All events up to the next one of a name, and with these members."""
        found = []
        while True:
            found.append(self.seen.pop(0) if self.seen else self.client.next_event())
            event = found[-1]
            if event["event"] == name and members.items() <= event["data"].items():
                return found

    def events_so_far(self) -> list[dict[str, Any]]:
        """Events that the client has already."""
        found, self.seen = self.seen, []
        return found + self.client.events_so_far()

    def close(self) -> None:
        """End the daemon in order; it must not have complained. Or kill it, as was wanted."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL if self._killed else signal.SIGTERM)
        errors = self.errors()
        self.client.close()
        if self._killed:
            return
        assert self.process.returncode == 0, errors
        assert not errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        self.process.kill()
        error.add_note(self.errors())
        self.client.close()


@contextmanager
def conversation(folder: Path, *options: str) -> Iterator[Conversation]:
    """With our daemon."""
    with Conversation(folder, OURS, options) as talk:
        yield talk
