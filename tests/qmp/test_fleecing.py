"""Pull backups: clients read the moment over NBD while others write, whole or what has changed.

The same conversation is held with QEMU's daemon: what is said here is what its users say.
"""

from __future__ import annotations

import json
import random
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from tests.qmp.daemons import OURS, QEMUS, Conversation
from tests.support import needs

MIB = 1 << 20
SIZE = 4 * MIB
ROUNDS = 5


class Guests:
    """Write over NBD, except at the moments that are looked at from outside."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.still = threading.Lock()
        self.over = threading.Event()
        self.failures: list[BaseException] = []

    def work(self, seed: int) -> None:
        chooser = random.Random(seed)
        try:
            with blocklayer.open(self._uri, mode="r+", format="raw") as disk:
                while not self.over.is_set():
                    with self.still:
                        self._step(disk, chooser)
        except BaseException as error:
            self.failures.append(error)

    def _step(self, disk: Any, chooser: random.Random) -> None:
        offset = chooser.randrange(SIZE - 70000)
        verb = chooser.randrange(4)
        length = chooser.randrange(1, 70000)
        if verb == 0:
            disk.write_zeroes(offset, length)
        elif verb == 1:
            disk.write(chooser.randrange(0, SIZE, 4096), chooser.randbytes(4096))
        else:
            disk.write(offset, chooser.randbytes(length))


@contextmanager
def guests(uri: str) -> Iterator[Guests]:
    crew = Guests(uri)
    threads = [threading.Thread(target=crew.work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield crew
    finally:
        crew.over.set()
        for thread in threads:
            thread.join(30)
    assert not crew.failures


def begin(talk: Conversation, crew: Guests, number: int) -> bytes:
    """A moment: what the disk holds. From now on `tmp` shows it, and a new bitmap records."""
    name = f"tmp{number}.qed"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qed", name, str(SIZE)], cwd=talk.folder, check=True
    )
    file = {"driver": "file", "filename": name}
    talk.do("blockdev-add", driver="qed", node_name="tmp", file=file, backing="src")
    actions: list[dict[str, Any]] = [
        {"type": "block-dirty-bitmap-add", "data": {"node": "src", "name": f"b{number + 1}"}},
        {"type": "blockdev-backup",
         "data": {"job-id": "j", "device": "src", "target": "tmp", "sync": "none"}},
    ]  # fmt: skip
    if number:
        old = {"node": "src", "name": f"b{number}"}
        actions.insert(1, {"type": "block-dirty-bitmap-disable", "data": old})
    with crew.still:
        content = (talk.folder / "src.raw").read_bytes()
        talk.do("transaction", actions=actions)
    bitmaps = {"bitmaps": [f"b{number}"]} if number else {}
    talk.do("block-export-add", type="nbd", id="pull", node_name="tmp", **bitmaps)
    return content


def end(talk: Conversation, number: int) -> None:
    talk.do("block-export-del", id="pull", mode="hard")
    talk.event("BLOCK_EXPORT_DELETED", id="pull")
    talk.do("job-cancel", id="j")
    talk.event("JOB_STATUS_CHANGE", id="j", status="null")
    talk.do("blockdev-del", node_name="tmp")
    if number:
        talk.do("block-dirty-bitmap-remove", node="src", name=f"b{number}")


def pull_all(uri: str, folder: Path) -> bytearray:
    subprocess.run(["nbdcopy", uri, "copy.raw"], cwd=folder, check=True, timeout=60)
    return bytearray((folder / "copy.raw").read_bytes())


def pull_changes(uri: str, name: str, copy: bytearray) -> int:
    """Bring a copy up to date; bytes read for that."""
    context = f"--map=qemu:dirty-bitmap:{name}"
    done = subprocess.run(
        ["nbdinfo", "--json", context, uri], capture_output=True, check=True, timeout=60
    )
    read = 0
    with blocklayer.open(uri, format="raw") as disk:
        for each in json.loads(done.stdout):
            if each["type"] == 1:
                offset, length = each["offset"], each["length"]
                copy[offset : offset + length] = disk.read(offset, length)
                read += length
    return read


@needs("nbdcopy", "nbdinfo", "qemu-img")
@pytest.mark.parametrize(
    "program", [OURS, pytest.param(QEMUS, marks=needs("qemu-storage-daemon"))], ids=["ours", "QEMU"]
)
def test_pull_backups(tmp_path: Path, program: tuple[str, ...]) -> None:
    (tmp_path / "src.raw").write_bytes(random.Random(1).randbytes(SIZE // 2) + bytes(SIZE // 2))
    socket = tmp_path / "nbd"
    with Conversation(tmp_path, program) as talk:
        file = {"driver": "file", "filename": "src.raw"}
        talk.do("blockdev-add", driver="raw", node_name="src", file=file)
        talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": str(socket)}})
        talk.do("block-export-add", type="nbd", id="g", node_name="src", name="g", writable=True)
        uri = f"nbd+unix:///tmp?socket={socket}"
        with guests(f"nbd+unix:///g?socket={socket}") as crew:
            copy = bytearray()
            for number in range(ROUNDS):
                moment = begin(talk, crew, number)
                if number:
                    pull_changes(uri, f"b{number}", copy)
                else:
                    copy = pull_all(uri, tmp_path)
                assert copy == moment, number
                again = pull_all(uri, tmp_path)
                assert again == moment, number
                end(talk, number)
        with crew.still:
            assert (tmp_path / "src.raw").read_bytes() != moment


@needs("nbdinfo", "qemu-img")
def test_only_what_has_changed_is_pulled(tmp_path: Path) -> None:
    (tmp_path / "src.raw").write_bytes(bytes(SIZE))
    socket = tmp_path / "nbd"
    with Conversation(tmp_path) as talk:
        file = {"driver": "file", "filename": "src.raw"}
        talk.do("blockdev-add", driver="raw", node_name="src", file=file)
        talk.do("nbd-server-start", addr={"type": "unix", "data": {"path": str(socket)}})
        talk.do("block-export-add", type="nbd", id="g", node_name="src", name="g", writable=True)
        crew = Guests("")
        begin(talk, crew, 0)
        end(talk, 0)
        with blocklayer.open(f"nbd+unix:///g?socket={socket}", mode="r+", format="raw") as disk:
            disk.write(MIB, b"1")
            moment = begin(talk, crew, 1)
            disk.write(MIB, b"2")
            disk.write(2 * MIB, b"2")
            copy = bytearray(SIZE)
            assert pull_changes(f"nbd+unix:///tmp?socket={socket}", "b1", copy) == 65536
            assert copy == moment
        words = talk.refused("block-dirty-bitmap-clear", node="src", name="b1")
        assert "currently in use" in words
        end(talk, 1)
