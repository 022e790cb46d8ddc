# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps see every write that reaches their node, from whatever stands above it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import blocklayer
from blocklayer.base.units import KiB, MiB
from blocklayer.core.graph import Graph

GRANULE = 64 * KiB


@pytest.fixture
def graph() -> Iterator[Graph]:
    made = Graph()
    yield made
    made.close()


def stack(graph: Graph, path: Path, image_format: str) -> None:
    """copy-on-read over a format over a file."""
    if image_format == "qed":
        blocklayer.create(path, format="qed", size=4 * MiB)
        with blocklayer.open(path, mode="r+") as disk:
            disk.write(0, b"x" * (4 * MiB))
    else:
        path.write_bytes(b"x" * (4 * MiB))
    file = {"driver": "file", "filename": str(path), "node-name": "file"}
    graph.add({"driver": image_format, "node-name": "format", "file": file})
    graph.add({"driver": "copy-on-read", "node-name": "filter", "file": "format"})


@pytest.mark.parametrize("image_format", ["raw", "qed"])
@pytest.mark.parametrize("above", ["filter", "format"])
@pytest.mark.parametrize("recorded", ["format", "file"])
def test_writes_from_above_are_recorded(
    graph: Graph, tmp_path: Path, image_format: str, above: str, recorded: str
) -> None:
    stack(graph, tmp_path / "a", image_format)
    disk = graph.open_disk(above, writable=True)
    disk.write(0, b"1" * 512)  # the inline path is open before anybody records
    with graph.recording_changes(graph.find(recorded)) as beside:
        bitmap = beside.add_bitmap("b", GRANULE)
    assert bitmap.count == 0
    disk.write(MiB, b"2" * 4096)
    assert bitmap.count >= GRANULE
    seen = bitmap.count
    disk.write_many([(2 * MiB, b"3" * 4096), (2 * MiB + GRANULE, b"3" * 4096)])
    assert bitmap.count == seen + 2 * GRANULE
    disk.write_zeroes(3 * MiB, GRANULE)
    assert bitmap.count == seen + 3 * GRANULE
    with graph.recording_changes(graph.find(recorded)) as beside:
        beside.remove_bitmap("b")
    disk.write(MiB + 2 * GRANULE, b"4" * 4096)
    assert bitmap.count == seen + 3 * GRANULE
    disk.close()


def test_bitmaps_grow_with_a_file_that_is_written_from_above(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "a.qed"
    blocklayer.create(path, format="qed", size=4 * MiB)
    file = {"driver": "file", "filename": str(path), "node-name": "file"}
    graph.add({"driver": "qed", "node-name": "format", "file": file})
    with graph.recording_changes(graph.find("file")) as beside:
        bitmap = beside.add_bitmap("b", GRANULE)
    disk = graph.open_disk("format", writable=True)
    disk.write(MiB, b"2" * 4096)
    assert bitmap.size == graph.find("file").size
    assert bitmap.is_set(bitmap.size - GRANULE) or bitmap.count
    disk.close()


def test_a_disk_that_the_graph_does_not_know_follows_its_node(graph: Graph, tmp_path: Path) -> None:
    """A node gets another tracker when its disks move away; others on it go on."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode() * 1024)
        file = {"driver": "file", "filename": str(tmp_path / name)}
        graph.add({"driver": "raw", "node-name": name, "file": file})
    guest = graph.open_disk("one")
    stranger = blocklayer.Disk(graph.find("one"), owns_node=False)
    graph.replace(graph.find("one"), graph.find("two"))
    assert guest.read(0, 3) == b"two"
    assert stranger.read(0, 3) == b"one"
    guest.close()
