# SPDX-License-Identifier: Apache-2.0
"""`qemu-storage-daemon` and its jobs on our images, and we on what they leave behind."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blocklayer
from blocklayer.base.units import KiB, MiB
from tests.foreign import qemu, views
from tests.foreign.operations import Generator
from tests.support import needs

pytestmark = needs("qemu-img", "qemu-io", "qemu-storage-daemon")

SIZE = 6 * MiB + 512


class Daemon:
    """A running daemon with its monitor."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._events: list[dict[str, Any]] = []
        self._receive()
        self.execute("qmp_capabilities")

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the daemon has ended"
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        """Have a command done; its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        while True:
            message = self._receive()
            if "event" in message:
                self._events.append(message)
                continue
            assert "return" in message, message
            return message["return"]

    def wait_for(self, event: str) -> dict[str, Any]:
        """The data of the next event of that name."""
        while True:
            message = self._events.pop(0) if self._events else self._receive()
            if message.get("event") == event:
                data: dict[str, Any] = message["data"]
                return data

    def job(self, command: str, **arguments: Any) -> None:
        """Run a block job to its good end."""
        self.execute(command, **{"job-id": "job", **arguments})
        ended = self.wait_for("BLOCK_JOB_COMPLETED")
        assert "error" not in ended, ended

    def open(self, name: str, path: Path, *, format: str = "qed", **options: Any) -> None:
        """Open an image under a node name, without what it is backed by."""
        file = {"driver": "file", "filename": str(path)}
        if format == "qed":
            options.setdefault("backing", None)
        self.execute("blockdev-add", driver=format, file=file, **{"node-name": name}, **options)


@contextmanager
def daemon() -> Iterator[Daemon]:
    with subprocess.Popen(
        ["qemu-storage-daemon", "--chardev", "stdio,id=monitor", "--monitor", "monitor"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        try:
            running = Daemon(process)
            yield running
            running.execute("quit")
            assert process.wait(qemu.TIMEOUT) == 0
        finally:
            process.kill()


def change(path: Path, rng: random.Random, count: int, *, cluster_size: int = 64 * KiB) -> None:
    with blocklayer.open(path, mode="r+") as disk:
        for request in Generator(rng, disk.size, cluster_size).many(count):
            request.tell_disk(disk)


def chain(directory: Path, rng: random.Random) -> list[Path]:
    """Three layers that we made, the base first."""
    paths: list[Path] = []
    for number, cluster_size in enumerate((64 * KiB, 16 * KiB, 16 * KiB)):
        path = directory / f"layer{number}"
        blocklayer.create(
            path,
            format="qed",
            size=SIZE,
            cluster_size=cluster_size,
            backing=paths[-1].name if paths else None,
        )
        change(path, rng, 25, cluster_size=cluster_size)
        paths.append(path)
    return paths


def open_chain(running: Daemon, paths: list[Path]) -> None:
    running.open("layer0", paths[0])
    for number, path in enumerate(paths[1:], 1):
        running.open(f"layer{number}", path, backing=f"layer{number - 1}")


def test_stream(tmp_path: Path, rng: random.Random) -> None:
    paths = chain(tmp_path, rng)
    before = views.content(paths[2])
    with daemon() as running:
        open_chain(running, paths)
        running.job("block-stream", device="layer2")
    assert blocklayer.info(paths[2]).backing_filename is None
    views.assert_same(paths[2], expected=before)
    views.assert_clean(paths[2])
    change(paths[2], rng, 25)
    views.assert_same(paths[2])
    views.assert_clean(paths[2])


def test_stream_down_to_a_layer(tmp_path: Path, rng: random.Random) -> None:
    paths = chain(tmp_path, rng)
    before = views.content(paths[2])
    with daemon() as running:
        open_chain(running, paths)
        running.job("block-stream", device="layer2", **{"base-node": "layer0"})
    assert blocklayer.info(paths[2]).full_backing_filename == str(paths[0])
    views.assert_same(paths[2], expected=before)
    views.assert_clean(paths[2])


def test_commit_of_a_middle_layer(tmp_path: Path, rng: random.Random) -> None:
    paths = chain(tmp_path, rng)
    before = [views.content(path) for path in paths]
    with daemon() as running:
        open_chain(running, paths)
        nodes = {"top-node": "layer1", "base-node": "layer0"}
        running.job("block-commit", device="layer2", **nodes)
    assert blocklayer.info(paths[2]).full_backing_filename == str(paths[0])
    views.assert_same(paths[2], expected=before[2])
    views.assert_same(paths[0], expected=before[1])
    for path in paths:
        views.assert_clean(path)


def test_backup(tmp_path: Path, rng: random.Random) -> None:
    paths = chain(tmp_path, rng)
    target = tmp_path / "target"
    blocklayer.create(target, format="raw", size=SIZE)
    with daemon() as running:
        open_chain(running, paths)
        running.open("target", target, format="raw")
        running.job("blockdev-backup", device="layer2", target="target", sync="full")
    assert target.read_bytes() == views.content(paths[2])


def test_mirror(tmp_path: Path, rng: random.Random) -> None:
    paths = chain(tmp_path, rng)
    target = tmp_path / "target"
    blocklayer.create(target, format="raw", size=SIZE)
    with daemon() as running:
        open_chain(running, paths)
        running.open("target", target, format="raw")
        mirror = {"job-id": "job", "device": "layer2", "target": "target", "sync": "full"}
        running.execute("blockdev-mirror", **mirror)
        running.wait_for("BLOCK_JOB_READY")
        running.execute("block-job-complete", device="job")
        running.wait_for("BLOCK_JOB_COMPLETED")
    assert target.read_bytes() == views.content(paths[2])


def test_new_images(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    blocklayer.create(tmp_path / "base", format="raw", size=SIZE)
    theirs.touch()
    options = {
        "driver": "qed",
        "file": "file",
        "size": SIZE,
        "backing-file": "base",
        "backing-fmt": "raw",
        "cluster-size": 16 * KiB,
        "table-size": 8,
    }
    with daemon() as running:
        file = {"driver": "file", "node-name": "file", "filename": str(theirs)}
        running.execute("blockdev-add", **file)
        running.execute("blockdev-create", **{"job-id": "create", "options": options})
        while running.wait_for("JOB_STATUS_CHANGE")["status"] != "concluded":
            pass
        assert "error" not in running.execute("query-jobs")[0]
        running.execute("job-dismiss", id="create")
    blocklayer.create(
        ours, format="qed", size=SIZE, backing="base", cluster_size=16 * KiB, table_size=8
    )
    assert ours.read_bytes() == theirs.read_bytes()
