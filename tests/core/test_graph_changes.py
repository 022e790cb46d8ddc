# SPDX-License-Identifier: Apache-2.0
"""Changes of a graph in use: children that become others, snapshots, and what forbids them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import blocklayer
from blocklayer.base.buffers import Vector
from blocklayer.base.units import KiB, MiB
from blocklayer.core import objects
from blocklayer.core.filter import FilterNode
from blocklayer.core.graph import Graph
from blocklayer.core.node import Node
from blocklayer.filters.throttle import ThrottleNode
from tests.support.refusals import refusal

SIZE = MiB


class Counting(FilterNode):
    """Counts the writes that pass."""

    def __init__(self, child: Node) -> None:
        super().__init__(child)
        self.writes = 0

    def writev(self, offset: int, vector: Vector) -> None:
        self.writes += 1
        super().writev(offset, vector)


@pytest.fixture
def graph() -> Iterator[Graph]:
    made = Graph()
    yield made
    made.close()


def stored(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    path = folder / name
    if not path.exists():
        path.write_bytes(bytes(SIZE))
    return {"driver": "file", "node-name": name, "filename": str(path), **more}


def raw(node: str, file: str, **more: Any) -> dict[str, Any]:
    return {"driver": "raw", "node-name": node, "file": file, **more}


def test_a_filter_comes_below_a_disk_in_use_and_goes(graph: Graph, tmp_path: Path) -> None:
    graph.add(stored(tmp_path, "f"))
    graph.add(raw("r", "f"))
    counting = Counting(graph.find("f"))
    graph.add_node(counting, "c")
    over, done = threading.Event(), [0]
    disk = graph.open_disk("r", writable=True)

    def work() -> None:
        while not over.is_set():
            disk.write(done[0] % 256 * KiB, bytes([done[0] % 251]) * KiB)
            done[0] += 1

    guest = threading.Thread(target=work, daemon=True)
    guest.start()
    for number in range(30):
        graph.reopen([raw("r", "c" if number % 2 == 0 else "f")])
        before, counted = done[0], counting.writes
        while done[0] < before + 3:
            pass
        assert (counting.writes > counted) == (number % 2 == 0)
    over.set()
    guest.join(20)
    count = done[0]
    for block in range(min(256, count)):
        last = count - 1 - (count - 1 - block) % 256
        assert disk.read(block * KiB, KiB) == bytes([last % 251]) * KiB
    disk.close()
    assert refusal(lambda: graph.remove("f")) == "Block device f is in use"
    graph.remove("c")


def test_all_nodes_are_reopened_or_none(graph: Graph, tmp_path: Path) -> None:
    for name in ("a", "b"):
        graph.add(stored(tmp_path, name))
    graph.add(raw("r", "a"))
    graph.add(raw("s", "b"))
    words = refusal(
        lambda: graph.reopen([raw("r", "b", **{"read-only": True, "discard": "unmap"}),
                              raw("s", "s")])
    )  # fmt: skip
    assert words == "Making 's' a file child of 's' would create a cycle"
    assert [edge.child for edge in graph.children(graph.find("r"))] == [graph.find("a")]
    assert not graph.find("r").read_only
    assert graph.entry("r").settings.discard == "ignore"
    graph.reopen([raw("r", "b"), raw("s", "a")])
    with graph.open_disk("r", writable=True) as disk:
        disk.write(0, b"r")
    assert (tmp_path / "b").read_bytes()[:1] == b"r"
    assert graph.find("r").filename == str(tmp_path / "b")


def test_children_that_were_opened_for_the_node_are_closed(graph: Graph, tmp_path: Path) -> None:
    inline = stored(tmp_path, "inline")
    graph.add({**raw("r", ""), "file": inline})
    graph.add(stored(tmp_path, "other"))
    graph.reopen([raw("r", "other")])
    assert graph.names == ["r", "other"]
    words = "Cannot change the option 'file.filename'"
    wrong = stored(tmp_path, "other", filename="elsewhere")
    assert refusal(lambda: graph.reopen([{**raw("r", ""), "file": wrong}])) == words


def test_an_image_finds_itself_in_its_new_file(graph: Graph, tmp_path: Path) -> None:
    for name in ("q", "same", "other"):
        blocklayer.create(str(tmp_path / name), size=SIZE, format="qed")
    with blocklayer.open(str(tmp_path / "other"), mode="r+") as disk:
        disk.write(0, b"x")
    for name in ("q", "same", "other"):
        graph.add(stored(tmp_path, name))
    options = {"driver": "qed", "node-name": "disk", "backing": None}
    graph.add({**options, "file": "q"})
    graph.add({"driver": "raw", "node-name": "long", "file": "other"})
    assert "of another size" in refusal(lambda: graph.reopen([{**options, "file": "long"}]))
    wrong = tmp_path / "wrong"
    wrong.write_bytes(bytes((tmp_path / "q").stat().st_size))
    graph.add(stored(tmp_path, "wrong"))
    words = refusal(lambda: graph.reopen([{**options, "file": "wrong"}]))
    assert words.startswith("The new file does not hold the image")
    graph.reopen([{**options, "file": "same"}])
    with graph.open_disk("disk", writable=True) as opened:
        opened.write(0, b"new")
    graph.close()
    with blocklayer.open(str(tmp_path / "same")) as opened:
        assert opened.read(0, 3) == b"new"
    with blocklayer.open(str(tmp_path / "q")) as opened:
        assert opened.read(0, 3) == bytes(3)


def test_nobody_writes_to_what_is_read_only(graph: Graph, tmp_path: Path) -> None:
    graph.add(stored(tmp_path, "f", **{"read-only": True}))
    graph.add(raw("r", "f"))
    graph.add(raw("s", "r"))
    assert refusal(lambda: graph.open_disk("s", writable=True)) == "Block node is read-only"
    graph.open_disk("s").close()
    blocklayer.create(str(tmp_path / "q"), size=SIZE, format="qed")
    graph.add(stored(tmp_path, "q", **{"read-only": True}))
    graph.add(raw("rq", "q"))
    qed = {"driver": "qed", "node-name": "disk", "file": "rq"}
    assert refusal(lambda: graph.add(qed)) == "Block node is read-only"
    graph.add({**qed, "read-only": True})


def test_an_overlay_minds_changes_as_its_users_do(graph: Graph, tmp_path: Path) -> None:
    graph.add(stored(tmp_path, "f"))
    graph.add(raw("r", "f"))
    blocklayer.create(str(tmp_path / "q"), size=SIZE, format="qed")
    graph.add({"driver": "qed", "node-name": "disk", "file": stored(tmp_path, "q"), "backing": "r"})
    writer = graph.open_disk("r", writable=True)
    with graph.open_disk("disk") as reader:
        writer.write(0, b"1")
        assert reader.read(0, 1) == b"1"
    alone = frozenset({"consistent read"})
    words = refusal(lambda: graph.open_disk("disk", shares=alone, user="a job"))
    assert words == (
        "Permission conflict on node 'r': permissions 'write' are both required by an unnamed"
        " block device (uses node 'r' as 'root' child) and unshared by node 'disk' (uses node 'r'"
        " as 'backing' child)."
    )
    writer.close()
    with graph.open_disk("disk", shares=alone):
        assert "unshared by node 'disk'" in refusal(lambda: graph.open_disk("r", writable=True))


def test_what_lies_below_a_snapshot_is_only_read(graph: Graph, tmp_path: Path) -> None:
    for name in ("base", "top"):
        blocklayer.create(str(tmp_path / name), size=SIZE, format="qed")
        options = {"driver": "qed", "node-name": f"{name}-image", "backing": None}
        graph.add({**options, "file": stored(tmp_path, name)})
    base, top = graph.find("base-image"), graph.find("top-image")
    guest = graph.open_disk("base-image", writable=True)
    guest.write(0, b"old")
    undo = graph.snapshot(base, top)
    assert base.read_only
    assert graph.find("base").read_only
    guest.write(0, b"new")
    words = refusal(lambda: graph.open_disk("base-image", writable=True))
    assert words == "Block node is read-only: 'base-image'"
    guest.close()
    undo()
    with graph.open_disk("base-image", writable=True) as disk:
        assert disk.read(0, 3) == b"old"
        disk.write(0, b"and")
    assert graph.backing_chain(top) == [top]


def test_storage_that_others_write_to_stays_writable(graph: Graph, tmp_path: Path) -> None:
    graph.add(stored(tmp_path, "f"))
    graph.add(raw("r", "f"))
    graph.add(raw("s", "f"))
    blocklayer.create(str(tmp_path / "q"), size=SIZE, format="qed")
    options = {"driver": "qed", "node-name": "over", "backing": None}
    over = graph.add({**options, "file": stored(tmp_path, "q")})
    graph.snapshot(graph.find("r"), over)
    with graph.open_disk("s", writable=True) as disk:
        disk.write(0, b"s")


def test_what_waits_goes_on_waiting_when_its_disk_is_moved(graph: Graph, tmp_path: Path) -> None:
    """Until all is done: a snapshot that is undone meanwhile takes no write with it."""
    blocklayer.create(str(tmp_path / "o.qed"), format="qed", size=SIZE)
    node = graph.add(stored(tmp_path, "s.raw"))
    overlay = graph.add(
        {"driver": "qed", "node-name": "o", "file": stored(tmp_path, "o.qed"), "backing": None}
    )
    staying = graph.open_disk(node, follows=False)
    with staying, graph.open_disk(node, writable=True) as disk:
        guest = threading.Thread(target=disk.write, args=(4096, b"kept"), daemon=True)
        reader = threading.Thread(target=staying.read, args=(0, 512), daemon=True)
        with graph.drained(node):
            guest.start()
            undo = graph.snapshot(node, overlay)
            guest.join(0.3)
            assert guest.is_alive(), "it has written to the overlay"
            reader.start()
            reader.join(0.3)
            assert reader.is_alive(), "the node it stays on is not drained any more"
            undo()
            guest.join(0.3)
            assert guest.is_alive(), "what else is to be undone has met a write"
        for thread in (guest, reader):
            thread.join(20)
            assert not thread.is_alive()
        assert disk.node is node
        assert disk.read(4096, 4) == b"kept"


def test_filters_upon_filters(graph: Graph, tmp_path: Path) -> None:
    """They come between what is there, and go in any order; who comes later is above them all."""
    node = graph.add(stored(tmp_path, "s.raw"))
    for order in itertools.permutations(range(3)):
        first = Counting(node)
        second = Counting(first)
        below = Counting(node)
        graph.insert_filter(first, node)
        graph.insert_filter(second, first)
        graph.insert_filter(below, node)
        filters = [below, first, second]  # from the storage upwards
        here = list(filters)
        for number in order:
            before = [each.writes for each in filters]
            with graph.open_disk(node, writable=True) as disk:
                assert disk.node is here[-1]
                disk.write(0, b"x")
            passed = [each.writes - old for each, old in zip(filters, before, strict=True)]
            assert passed == [int(each in here) for each in filters]
            graph.remove_filter(filters[number])
            here.remove(filters[number])
        assert graph.find_top("s.raw") is node


def test_a_throttle_goes_to_another_group(graph: Graph) -> None:
    """All or nothing, and requests wait for the limits of the group that there is."""
    graph.add({"driver": "memory", "node-name": "m", "size": SIZE})
    for name, most in (("slow", 10), ("fast", 10**9)):
        objects.add("throttle-group", name, {"limits": {"iops-total": most}})

    def throttle(group: str) -> dict[str, Any]:
        return {"driver": "throttle", "node-name": "t", "file": "m", "throttle-group": group}

    try:
        graph.add(throttle("slow"))
        node = graph.find("t")
        assert isinstance(node, ThrottleNode)
        assert refusal(lambda: graph.reopen([throttle("fast"), raw("m", "t")]))
        assert node.group.definition is objects.find("slow")
        assert graph.entry("t").settings.options["throttle-group"] == "slow"
        words = "Throttle group 'zz' does not exist"
        assert refusal(lambda: graph.reopen([throttle("zz")])) == words
        with graph.open_disk("t", writable=True) as disk:
            graph.reopen([throttle("fast")])
            start = time.monotonic()
            for _ in range(100):
                disk.write(0, b"x")
            assert time.monotonic() - start < 5
        assert node.group.definition is objects.find("fast")
        assert graph.entry("t").settings.options["throttle-group"] == "fast"
    finally:
        for name in ("slow", "fast"):
            objects.forget(name)


def test_a_raw_node_that_nobody_uses_gets_another_window(graph: Graph, tmp_path: Path) -> None:
    content = bytes(range(256)) * 16
    (tmp_path / "f").write_bytes(content)
    graph.add({"driver": "file", "node-name": "f", "filename": str(tmp_path / "f")})
    options = {"driver": "raw", "node-name": "r", "file": "f"}
    graph.add({**options, "offset": 0})

    def shown() -> bytes:
        with graph.open_disk("r") as disk:
            return bytes(disk.read(0, disk.size))

    for window in ({"offset": 512}, {"offset": 512, "size": 1024}, {"size": 512}, {}):
        graph.reopen([{**options, **window}])
        start = window.get("offset", 0)
        expected = content[start : start + window.get("size", len(content))]
        assert shown() == expected
    for wrong in ({"offset": 8192}, {"size": 1000}, {"offset": 512, "size": 4096}):
        assert refusal(lambda: graph.reopen([{**options, **wrong}]))  # noqa: B023
        assert shown() == content
    other = {"driver": "raw", "node-name": "s", "file": "f", "offset": 512}
    graph.add(other)
    broken = {"driver": "raw", "node-name": "s", "file": "s"}
    assert refusal(lambda: graph.reopen([{**options, "size": 512}, broken]))
    assert shown() == content
    words = "Cannot change the option 'offset' of a node that is in use"
    with graph.open_disk("r") as disk:
        assert refusal(lambda: graph.reopen([{**options, "offset": 512}])) == words
        graph.reopen([{**options, "discard": "unmap"}])
        assert disk.size == len(content)
    graph.add({"driver": "raw", "node-name": "above", "file": "r"})
    assert refusal(lambda: graph.reopen([{**options, "offset": 512}])) == words


# --- a backing file that is given inline ---


def chain_of(folder: Path) -> dict[str, Any]:
    """Options of top over base, each image and each file with a name."""
    below: dict[str, Any] | None = None
    for name in ("base", "top"):
        path = folder / f"{name}.qed"
        backing = None if below is None else folder / "base.qed"
        blocklayer.create(path, format="qed", size=SIZE, backing=backing)
        file = {"driver": "file", "node-name": f"{name}-file", "filename": str(path)}
        options: dict[str, Any] = {"driver": "qed", "node-name": name, "file": file}
        below = options if below is None else {**options, "backing": below}
    assert below is not None
    return below


def test_reopening_with_the_options_of_before(graph: Graph, tmp_path: Path) -> None:
    options = chain_of(tmp_path)
    graph.add(options)
    before = graph.names
    graph.reopen([options])
    nameless = {**options, "backing": {**options["backing"]}}
    del nameless["backing"]["node-name"]
    nameless["backing"]["file"] = {"driver": "file", "filename": str(tmp_path / "base.qed")}
    nameless["file"] = {"driver": "file", "filename": str(tmp_path / "top.qed")}
    graph.reopen([nameless])
    assert graph.names == before
    with graph.open_disk("top", writable=True) as disk:
        disk.write(0, b"x")
    assert graph.find("base").read_only


def test_a_backing_file_that_the_header_names_is_given_inline(graph: Graph, tmp_path: Path) -> None:
    options = chain_of(tmp_path)
    below = options.pop("backing")
    graph.add(options)
    below = {"driver": "qed", "file": {"driver": "file", "filename": below["file"]["filename"]}}
    graph.reopen([{**options, "backing": below}])
    other = {"driver": "file", "filename": str(tmp_path / "top.qed")}
    words = refusal(lambda: graph.reopen([{**options, "backing": {**below, "file": other}}]))
    assert words == "Cannot change the option 'file.filename'"


def test_settings_of_a_backing_file_that_is_given_inline(graph: Graph, tmp_path: Path) -> None:
    options = chain_of(tmp_path)
    graph.add(options)
    below = options["backing"]
    graph.reopen([{**options, "backing": {**below, "read-only": False, "discard": "unmap"}}])
    assert graph.entry("base").settings.discard == "unmap"
    assert not graph.find("base").read_only
    graph.reopen([options])
    assert graph.entry("base").settings.discard == "ignore"
    assert graph.find("base").read_only


def test_what_is_below_cannot_be_another_one_inline(graph: Graph, tmp_path: Path) -> None:
    options = chain_of(tmp_path)
    graph.add(options)
    below = options["backing"]

    def refused(**changes: Any) -> str:
        return refusal(lambda: graph.reopen([{**options, "backing": {**below, **changes}}]))

    assert refused(**{"node-name": "other"}) == "Cannot change the option 'backing.node-name'"
    assert refused(driver="raw") == "Cannot change the option 'driver'"
    graph.reopen([{**options, "backing": None}])
    assert refused() == "Cannot change the option 'backing.driver'"
    graph.add(below)
    graph.reopen([{**options, "backing": "base"}])
    assert refused() == "Cannot change the option 'backing.driver'"  # it is not the overlay's
