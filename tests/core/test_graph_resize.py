# SPDX-License-Identifier: Apache-2.0
"""Another size for a node that others stand on: they wait meanwhile, and know of it afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.buffers import Vector
from blocklayer.base.errors import BlocklayerError
from blocklayer.base.units import MiB
from blocklayer.core.filter import FilterNode
from blocklayer.core.graph import Graph
from blocklayer.jobs import mirror
from blocklayer.jobs.manager import Jobs

PATIENCE = 60


@pytest.fixture
def graph() -> Iterator[Graph]:
    made = Graph()
    yield made
    made.close()


class Slow(FilterNode):
    """Writes are on their way until somebody lets them go on."""

    driver = "slow"

    def __init__(self, graph: Graph, below: str) -> None:
        super().__init__(graph.find(below))
        self.arrived = threading.Event()
        self.go_on = threading.Event()

    def writev(self, offset: int, vector: Vector) -> None:
        self.arrived.set()
        assert self.go_on.wait(PATIENCE)
        super().writev(offset, vector)


def resize(graph: Graph, name: str, size: int) -> None:
    with graph.open_disk(name, writable=True, resizes=True) as disk:
        disk.resize(size)


def test_requests_of_those_above_are_waited_for(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "a.qed"
    blocklayer.create(path, format="qed", size=2 * MiB)
    file = {"driver": "file", "filename": str(path)}
    graph.add({"driver": "qed", "node-name": "a", "file": file})
    slow = Slow(graph, "a")
    graph.add_node(slow, "slow")
    with graph.open_disk("slow", writable=True) as disk:
        writer = threading.Thread(target=lambda: disk.write(0, b"x" * 4096))
        writer.start()
        assert slow.arrived.wait(PATIENCE)
        resizer = threading.Thread(target=lambda: resize(graph, "a", MiB))
        resizer.start()
        resizer.join(0.3)
        assert graph.find("a").size == 2 * MiB
        slow.go_on.set()
        writer.join(PATIENCE)
        resizer.join(PATIENCE)
        assert (disk.size, disk.read(0, 4096)) == (MiB, b"x" * 4096)


@pytest.mark.parametrize(("offset", "seen"), [(0, MiB), (512, MiB - 512), (2 * MiB, 0)])
def test_a_raw_node_follows_its_file(graph: Graph, offset: int, seen: int) -> None:
    graph.add({"driver": "memory", "node-name": "m", "size": 2 * MiB})
    graph.add({"driver": "raw", "node-name": "r", "file": "m", "offset": offset})
    graph.add({"driver": "copy-on-read", "node-name": "t", "file": "r"})
    with graph.recording_changes(graph.find("t")) as recorded:
        bitmap = recorded.add_bitmap("b")
    with graph.open_disk("t", writable=True) as disk:
        resize(graph, "m", MiB)
        assert (disk.size, bitmap.size) == (seen, seen)
        with pytest.raises(BlocklayerError):
            disk.write(seen, b"x")
        resize(graph, "m", 4 * MiB)
        assert (disk.size, bitmap.size) == (4 * MiB - offset, 4 * MiB - offset)
        disk.write(disk.size - 512, b"x" * 512)
        assert bitmap.is_set(disk.size - 1)


def test_a_window_of_a_given_size_keeps_it(graph: Graph) -> None:
    graph.add({"driver": "memory", "node-name": "m", "size": 2 * MiB})
    graph.add({"driver": "raw", "node-name": "r", "file": "m", "size": MiB})
    resize(graph, "m", 4 * MiB)
    assert graph.find("r").size == MiB


def test_bitmaps_below_follow_as_well(graph: Graph) -> None:
    graph.add({"driver": "memory", "node-name": "m", "size": MiB})
    graph.add({"driver": "raw", "node-name": "r", "file": "m"})
    graph.add({"driver": "copy-on-read", "node-name": "t", "file": "r"})
    bitmaps = []
    for name in ("m", "r", "t"):
        with graph.recording_changes(graph.find(name)) as recorded:
            bitmaps.append(recorded.add_bitmap("b"))
    for size in (2 * MiB, MiB // 2):
        resize(graph, "t", size)
        assert [bitmap.size for bitmap in bitmaps] == [size] * 3


def test_what_a_mirror_reads_keeps_its_size(graph: Graph) -> None:
    jobs = Jobs()
    graph.add({"driver": "memory", "node-name": "m", "size": MiB})
    graph.add({"driver": "raw", "node-name": "r", "file": "m"})
    graph.add({"driver": "copy-on-read", "node-name": "t", "file": "r"})
    graph.add({"driver": "memory", "node-name": "target", "size": MiB})
    job = mirror.start(graph, jobs, device="t", target="target", sync="full")
    for name in ("m", "r"):
        for size in (MiB // 2, 2 * MiB):
            with pytest.raises(BlocklayerError, match="resize' are both required"):
                resize(graph, name, size)
    assert job.wait_for_status("ready", timeout=PATIENCE) == "ready"
    job.cancel(force=True)
    assert job.wait(PATIENCE)
    resize(graph, "m", 2 * MiB)
    assert graph.find("t").size == 2 * MiB
