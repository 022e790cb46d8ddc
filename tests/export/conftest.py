# SPDX-License-Identifier: Apache-2.0
"""Images, and servers on unix sockets, for tests of exports; whatever leaks is a failure."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.core.disk import Disk
from blocklayer.export.export import Export
from blocklayer.export.listen import UnixAddress
from blocklayer.export.server import NbdServer
from tests.support.nbd_peer import NbdPeer
from tests.support.waiting import wait_until

"""For how long threads and descriptors of clients that have gone may last."""


class Served:
    """A server of one disk."""

    def __init__(self, server: NbdServer, export: Export, path: Path) -> None:
        self.server = server
        self.export = export
        self.path = path

    @property
    def disk(self) -> Disk:
        return self.export.disk

    def connect(self, **options: Any) -> NbdPeer:
        """A client that has negotiated, unless told otherwise."""
        return NbdPeer(self.path, **options)

    def wait_until_alone(self) -> None:
        """Until no client is left."""
        wait_until(lambda: not self.server.clients, "clients are still there")


class Gate:
    """Lets a method of a disk begin, and holds it until it is opened."""

    def __init__(self, disk: Disk, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Semaphore(0)
        self.opened = threading.Event()
        original = getattr(disk, method)

        def held(*arguments: Any, **options: Any) -> Any:
            self.begun.release()
            assert self.opened.wait(30)
            return original(*arguments, **options)

        monkeypatch.setattr(disk, method, held)


def threads_of_servers() -> list[str]:
    """Names of threads that servers have started."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("nbd")]


def descriptors() -> int:
    """How many are open."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No thread and no descriptor of a test is left behind."""
    before = descriptors()
    yield
    wait_until(lambda: not threads_of_servers(), "threads are left")
    if descriptors() > before:
        gc.collect()  # slow: only where something may be left
        wait_until(lambda: descriptors() <= before, "descriptors are left")


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Begin to serve a disk; everything is stopped and closed at the end."""
    served: list[Served] = []

    def begin(
        disk: Disk, *, name: str = "", options: dict[str, Any] | None = None, **settings: Any
    ) -> Served:
        settings.setdefault("writable", not disk.read_only)
        path = tmp_path / f"nbd{len(served)}.sock"
        server = NbdServer([UnixAddress(str(path))], **(options or {}))
        export = Export(name, disk, **settings)
        server.add(export)
        server.start()
        served.append(Served(server, export, path))
        return served[-1]

    yield begin
    for one in served:
        one.server.stop(patience=1)
        one.disk.close()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Disk]:
    """A new image, open for writing."""

    def create(size: int, *, format: str = "qed", name: str = "", **options: Any) -> Disk:
        path = tmp_path / (name or f"disk.{format}")
        open_options = {
            key: options.pop(key) for key in ("discard", "detect_zeroes", "cache") if key in options
        }
        blocklayer.create(str(path), format=format, size=size, **options)
        # What flushes do is seen elsewhere; here they would wait for the machine's disk.
        open_options.setdefault("cache", "unsafe")
        return blocklayer.open(str(path), mode="r+", format=format, **open_options)

    return create
