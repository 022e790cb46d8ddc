# SPDX-License-Identifier: Apache-2.0
"""The graph of named nodes: adding, removing, permissions, and replacement under load."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.errors import BlocklayerError
from blocklayer.base.units import KiB, MiB
from blocklayer.core.filter import FilterNode
from blocklayer.core.graph import Graph
from blocklayer.core.node import FormatNode
from blocklayer.core.requests import Tracker
from blocklayer.protocols.memory import MemoryNode
from blocklayer.testing.model import ModelDisk
from tests.support.crew import run_together
from tests.support.refusals import refusal

SIZE = MiB


@pytest.fixture
def graph() -> Iterator[Graph]:
    made = Graph()
    yield made
    made.close()
    assert made.names == []


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("base", "top", "other"):
        blocklayer.create(tmp_path / f"{name}.qed", format="qed", size=SIZE)
    return tmp_path


def qed(files: Path, name: str, **more: Any) -> dict[str, Any]:
    file = {"driver": "file", "filename": str(files / f"{name}.qed")}
    return {"driver": "qed", "node-name": name, "file": file, **more}


# --- adding and removing ---


def test_names_of_a_tree(graph: Graph, files: Path) -> None:
    options = qed(files, "top")
    options["file"]["node-name"] = "storage"
    options["backing"] = qed(files, "base")
    top = graph.add(options)
    assert [name for name in graph.names if name[0] != "#"] == ["top", "storage", "base"]
    assert [name[:6] for name in graph.names if name[0] == "#"] == ["#block"]
    assert graph.find("top") is top
    assert [graph.name_of(node) for node in graph.backing_chain(top)] == ["top", "base"]
    assert [edge.role for edge in graph.children(top)] == ["file", "backing"]


def test_a_backing_file_that_the_header_names_is_in_the_graph(graph: Graph, files: Path) -> None:
    path = files / "over.qed"
    blocklayer.create(path, format="qed", backing=files / "base.qed")
    graph.add(qed(files, "over"))
    assert len(graph.names) == 4
    graph.remove("over")
    assert graph.names == []


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_image_without_the_backing_file_its_header_names(
    graph: Graph, files: Path, nothing: str | None
) -> None:
    blocklayer.create(files / "over.qed", format="qed", backing=files / "base.qed")
    graph.add(qed(files, "over", backing=nothing))
    assert len(graph.names) == 2
    assert refusal(lambda: graph.add(qed(files, "other", backing={"driver": "raw", "file": ""})))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"driver": "memory", "size": 512, "node-name": "1a"}, "Invalid node-name: '1a'"),
        ({"driver": "memory", "size": 512, "node-name": "a" * 32}, "Node name too long"),
        ({"driver": "memory", "size": 512, "node-name": "m"}, "Duplicate nodes with node-name='m'"),
        ({"node-name": "a"}, "Parameter 'driver' is missing"),
        ({"driver": "nix", "node-name": "a"}, "Unknown driver 'nix'"),
        ({"driver": "raw", "file": "nobody"}, "Cannot find device='nobody' nor node-name='nobody'"),
        ({"driver": "raw", "file": 5}, "Invalid parameter type for 'file', expected: BlockdevRef"),
        (
            {"driver": "memory", "size": 512, "detect-zeroes": "unmap"},
            (
                "setting detect-zeroes to unmap is not allowed without setting discard operation to"
                " unmap"
            ),
        ),
    ],
)
def test_bad_options(graph: Graph, options: dict[str, Any], words: str) -> None:
    graph.add({"driver": "memory", "size": 512, "node-name": "m"})
    assert refusal(lambda: graph.add(options)) == words
    assert graph.names == ["m"]


def test_a_tree_that_fails_leaves_nothing_open(graph: Graph, files: Path) -> None:
    options = qed(files, "top", backing=qed(files, "base"), nonsense=1)
    assert refusal(lambda: graph.add(options)) == "Invalid parameter 'nonsense'"
    assert graph.names == []
    del options["nonsense"]
    graph.add(options)  # its locks are free again


@pytest.mark.parametrize("driver", ["qed", "copy-on-read", "raw", "throttle"])
def test_a_node_that_fails_leaves_those_below_it_open(
    graph: Graph, tmp_path: Path, driver: str
) -> None:
    """The driver closes its children, but they have other users."""
    path = tmp_path / "a.raw"
    path.write_bytes(b"content" + bytes(KiB))
    graph.add({"driver": "file", "node-name": "f", "filename": str(path), "read-only": True})
    graph.add({"driver": "raw", "node-name": "r", "file": "f", "read-only": True})
    wrong = {"raw": {"offset": MiB}, "throttle": {"frob": 1}, "copy-on-read": {"frob": 1}}
    with pytest.raises(BlocklayerError):
        graph.add({"driver": driver, "node-name": "x", "file": "r", **wrong.get(driver, {})})
    with graph.open_disk("r") as disk:
        assert disk.read(0, 7) == b"content"
    graph.remove("r")
    graph.remove("f")


def test_removing(graph: Graph, files: Path) -> None:
    graph.add(qed(files, "base"))
    graph.add(qed(files, "top", backing="base"))
    words = "Node 'base' is busy: node is used as backing hd of 'top'"
    assert refusal(lambda: graph.remove("base")) == words
    words = "Failed to find node with node-name='x'"
    assert refusal(lambda: graph.remove("x")) == words
    disk = graph.open_disk("top")
    assert refusal(lambda: graph.remove("top")) == "Node top is in use"
    disk.close()
    graph.remove("top")
    assert "base" in graph
    graph.remove("base")


def test_a_shared_node_lives_as_long_as_somebody_uses_it(graph: Graph) -> None:
    graph.add({"driver": "memory", "size": SIZE, "node-name": "m"})
    graph.add({"driver": "raw", "node-name": "a", "file": "m", "read-only": True})
    graph.add({"driver": "raw", "node-name": "b", "file": "m", "read-only": True})
    graph.remove("a")
    disk = graph.open_disk("b")
    assert disk.read(0, 5) == bytes(5)
    disk.close()
    graph.remove("b")
    graph.remove("m")


# --- permissions ---


def test_a_writer_below_a_format_is_refused(graph: Graph, files: Path) -> None:
    options = qed(files, "top")
    options["file"]["node-name"] = "storage"
    graph.add(options)
    words = refusal(lambda: graph.open_disk("storage", writable=True))
    assert words == (
        "Permission conflict on node 'storage': permissions 'write' are both required by an unnamed"
        " block device (uses node 'storage' as 'root' child) and unshared by node 'top' (uses node"
        " 'storage' as 'file' child)."
    )


def test_who_does_not_share_is_alone(graph: Graph) -> None:
    graph.add({"driver": "memory", "size": SIZE, "node-name": "m"})
    alone = graph.open_disk("m", writable=True, user="mirror job 'j'", shares=frozenset())
    assert "unshared by mirror job 'j'" in refusal(lambda: graph.open_disk("m"))
    alone.close()
    with graph.open_disk("m", writable=True), graph.open_disk("m", writable=True):
        words = refusal(lambda: graph.open_disk("m", shares=frozenset({"consistent read"})))
        assert "permissions 'write'" in words


def test_a_reader_cannot_write(graph: Graph) -> None:
    graph.add({"driver": "memory", "size": SIZE, "node-name": "m"})
    with graph.open_disk("m") as disk:
        assert disk.read_only
        assert "open read-only" in refusal(lambda: disk.write(0, b"x"))
    graph.add({"driver": "raw", "node-name": "r", "read-only": True, "file": "m"})
    words = "Block node is read-only: 'r'"
    assert refusal(lambda: graph.open_disk("r", writable=True)) == words


# --- replacing ---


class Counted(FilterNode):
    """Notes what runs on it, and complains of what runs while it must not."""

    def __init__(self, size: int) -> None:
        super().__init__(MemoryNode(size))
        self.allowed = True
        self.requests = 0
        self.wrong = 0

    def _note(self) -> None:
        self.requests += 1
        if not self.allowed:
            self.wrong += 1

    def readv(self, offset: int, vector: list[memoryview]) -> None:
        self._note()
        super().readv(offset, vector)
        self._note()

    def writev(self, offset: int, vector: list[memoryview]) -> None:
        self._note()
        super().writev(offset, vector)
        self._note()


def test_disks_are_switched_under_load(graph: Graph) -> None:
    """Two nodes take turns; every request is done, in the right one, and tracked there."""
    nodes = [Counted(SIZE), Counted(SIZE)]
    for name, node in zip("ab", nodes, strict=True):
        graph.add_node(node, name)
    disks = [graph.open_disk("a", writable=True) for _ in range(3)]
    over = threading.Event()

    def guest(number: int) -> None:
        disk, model = disks[number], ModelDisk(SIZE)
        start, end = SIZE * number // 3, SIZE * (number + 1) // 3
        chooser = random.Random(number)
        while not over.is_set():
            offset = chooser.randrange(start, end)
            length = min(chooser.randrange(1, 9000), end - offset)
            if chooser.random() < 0.5:
                data = chooser.randbytes(length)
                disk.write(offset, data)
                model.write(offset, data)
            else:
                model.require(offset, disk.read(offset, length))
        model.require(start, disk.read(start, end - start))

    def switch() -> None:
        try:
            for turn in range(60):
                old, new = nodes[turn % 2], nodes[1 - turn % 2]
                with graph.drained(old, new):
                    old.allowed = new.allowed = False
                    copy = bytearray(SIZE)
                    old.child.readv(0, [memoryview(copy)])
                    new.child.writev(0, [memoryview(copy)])
                    graph.replace(old, new)
                    new.allowed = True
                time.sleep(0.003)
        finally:
            over.set()

    run_together(switch, *(lambda number=number: guest(number) for number in range(3)))
    assert sum(node.wrong for node in nodes) == 0
    assert min(node.requests for node in nodes) > 50
    for disk in disks:
        assert disk.node is nodes[0]
        disk.close()


def test_a_request_that_waited_is_tracked_at_its_new_place(graph: Graph) -> None:
    one = graph.add_node(MemoryNode(SIZE), "one")
    other = graph.add_node(MemoryNode(SIZE), "other")
    disk = graph.open_disk("one", writable=True)
    entered, go_on = threading.Event(), threading.Event()

    def slow(offset: int, length: int) -> None:
        entered.set()
        assert go_on.wait(10)

    holder = graph.open_disk("other", writable=True)
    holder.add_before_write(slow)
    with graph.drained(one, other):
        thread = threading.Thread(target=disk.write, args=(0, b"x"), daemon=True)
        thread.start()
        time.sleep(0.05)
        graph.replace(one, other)
    assert entered.wait(10)
    assert len(other.tracker.requests) == 1
    assert not one.tracker.requests
    drained = threading.Event()

    def drain() -> None:
        with other.tracker.drained_section():
            drained.set()

    waiter = threading.Thread(target=drain, daemon=True)
    waiter.start()
    assert not drained.wait(0.1), "a drain must wait for it"
    go_on.set()
    assert drained.wait(10)
    thread.join(10)
    assert holder.read(0, 1) == b"x"
    holder.remove_before_write(slow)
    disk.close()
    holder.close()


def test_the_inline_path_follows(graph: Graph, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * SIZE)
        file = {"driver": "file", "filename": str(tmp_path / name)}
        graph.add({"driver": "raw", "node-name": name, "file": file})
    disk = graph.open_disk("a", writable=True)
    assert disk.read(5, 3) == b"aaa"
    graph.replace(graph.find("a"), graph.find("b"))
    assert disk.read(5, 3) == b"bbb"
    disk.write(5, b"x")
    disk.close()
    graph.close()
    assert (tmp_path / "a").read_bytes() == b"a" * SIZE
    assert (tmp_path / "b").read_bytes()[5:6] == b"x"


def test_parents_are_turned_too(graph: Graph, files: Path) -> None:
    """The storage below a format is replaced; the format's tables know."""
    options = qed(files, "top")
    options["file"]["node-name"] = "storage"
    top = graph.add(options)
    other = graph.add_node(MemoryNode(0), "memory")
    with graph.open_disk("top", writable=True) as disk:
        disk.write(0, b"before")
        storage = graph.find("storage")
        with graph.drained(storage):
            copy = bytearray(storage.size)
            storage.readv(0, [memoryview(copy)])
            other.writev(0, [memoryview(copy)])
            graph.replace(storage, other)
        disk.write(300 * KiB, b"after")
        assert disk.read(0, 6) == b"before"
        assert disk.read(300 * KiB, 5) == b"after"
    assert [graph.name_of(edge.child) for edge in graph.children(top)] == ["memory"]
    before = (files / "top.qed").stat().st_size
    assert other.size > before
    graph.close()


def test_a_retired_tracker_lets_nobody_in() -> None:
    from blocklayer.core.requests import Retired

    tracker = Tracker()
    with tracker.drained_section():
        tracker.retire()
    with pytest.raises(Retired):
        tracker.run(lambda: None)
    with pytest.raises(Retired), tracker.drained_section():
        pass


# --- snapshots and reopening ---


def test_snapshot(graph: Graph, files: Path) -> None:
    graph.add(qed(files, "base"))
    disk = graph.open_disk("base", writable=True)
    disk.write(0, b"old")
    overlay = graph.add(qed(files, "top", backing=None))
    graph.snapshot(graph.find("base"), overlay)
    assert disk.node is overlay
    disk.write(1, b"X")
    assert disk.read(0, 3) == b"oXd"
    with graph.open_disk("base") as below:
        assert below.read(0, 3) == b"old"
    disk.close()


def test_snapshots_that_cannot_be(graph: Graph, files: Path) -> None:
    base = graph.add(qed(files, "base"))
    memory = graph.add({"driver": "memory", "size": SIZE, "node-name": "m"})
    words = "The overlay does not support backing images"
    assert refusal(lambda: graph.snapshot(base, memory)) == words
    top = graph.add(qed(files, "top", backing=None))
    disk = graph.open_disk("top")
    assert refusal(lambda: graph.snapshot(base, top)) == "The overlay is already in use"
    disk.close()
    assert isinstance(top, FormatNode)
    graph.set_backing(top, base)
    other = graph.add(qed(files, "other"))
    words = "The overlay already has a backing image"
    assert refusal(lambda: graph.snapshot(other, top)) == words


def test_reopen(graph: Graph, files: Path) -> None:
    node = graph.add(qed(files, "top"))
    options = qed(files, "top", **{"read-only": True, "discard": "unmap"})
    graph.reopen([options])
    assert node.read_only
    assert graph.entry("top").settings.discard == "unmap"
    options["read-only"] = False
    graph.reopen([options])
    with graph.open_disk("top", writable=True) as disk:
        disk.write(0, b"x")
        assert disk.discard_mode == "unmap"
        words = refusal(lambda: graph.reopen([options | {"read-only": True}]))
        assert words == "Read-only block node 'top' cannot support read-write users"
    assert refusal(lambda: graph.reopen([{"driver": "qed"}])) == "node-name not specified"
