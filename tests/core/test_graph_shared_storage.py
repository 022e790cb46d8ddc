# SPDX-License-Identifier: Apache-2.0
"""Storage of several nodes: what one of them is reopened as, the others need not be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocklayer.base.errors import BlocklayerError
from blocklayer.base.units import MiB
from blocklayer.core.graph import Graph


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    made = Graph()
    for name in ("f", "g"):
        path = tmp_path / name
        path.write_bytes(bytes(MiB))
        made.add({"driver": "file", "node-name": name, "filename": str(path)})
    yield made
    made.close()


def raw(name: str, file: str, **more: Any) -> dict[str, Any]:
    return {"driver": "raw", "node-name": name, "file": file, **more}


def is_read_only(graph: Graph, *names: str) -> list[bool]:
    return [graph.find(name).read_only for name in names]


def refuse_writing(read_only: bool) -> None:
    assert read_only


READ_ONLY = {"read-only": True}


def test_a_file_that_another_node_writes_to_stays_writable(graph: Graph) -> None:
    graph.add(raw("a", "f"))
    graph.add(raw("b", "f"))
    with graph.open_disk("b", writable=True) as disk:
        graph.reopen([raw("a", "f", **READ_ONLY)])
        assert is_read_only(graph, "a", "b", "f") == [True, False, False]
        disk.write(0, b"x" * 512)
        disk.write_zeroes(512, 512)
        disk.flush()
    graph.reopen([raw("b", "f", **READ_ONLY)])
    assert is_read_only(graph, "a", "b", "f") == [True, True, True]
    graph.reopen([raw("a", "f")])
    assert is_read_only(graph, "a", "b", "f") == [False, True, False]


def test_a_file_that_is_written_to_itself_stays_writable(graph: Graph) -> None:
    graph.add(raw("a", "f"))
    with graph.open_disk("f", writable=True) as disk:
        graph.reopen([raw("a", "f", **READ_ONLY)])
        disk.write(0, b"x" * 512)
        disk.flush()
    assert is_read_only(graph, "a", "f") == [True, False]


def test_files_that_are_given_have_modes_of_their_own(graph: Graph) -> None:
    graph.add(raw("a", "f"))
    graph.reopen([raw("a", "g", **READ_ONLY)])
    assert is_read_only(graph, "a", "f", "g") == [True, False, False]


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("given", ["r", "r+"])
@pytest.mark.parametrize("wanted", ["r", "r+"])
@pytest.mark.parametrize("file", ["f", "g"])
def test_modes_are_as_before_when_a_later_node_is_refused(
    graph: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    given: str,
    wanted: str,
    file: str,
) -> None:
    """Also of files that cannot be opened for writing."""
    path = tmp_path / "short"
    path.write_bytes(bytes(512))
    graph.add({"driver": "file", "node-name": "short", "filename": str(path)})
    graph.add(raw("last", "short"))
    graph.add(raw("a", "f"))
    graph.reopen([raw("a", "f", **(READ_ONLY if mode == "r" else {}))])
    if given == "r":
        path = tmp_path / "g"
        options: dict[str, Any] = {"driver": "file", "node-name": "g", "filename": str(path)}
        graph.reopen([options | READ_ONLY])
        if wanted == "r":
            monkeypatch.setattr(graph.find("g"), "reopen", refuse_writing)
    names = ("a", "f", "g", "last", "short")
    before = is_read_only(graph, *names)
    more = READ_ONLY if wanted == "r" else {}
    with pytest.raises(BlocklayerError):
        graph.reopen([raw("a", file, **more), raw("last", "f")])
    assert is_read_only(graph, *names) == before
    assert [edge.child for edge in graph.children(graph.find("a"))] == [graph.find("f")]
    if mode == "r+":
        with graph.open_disk("a", writable=True) as disk:
            disk.write(0, b"x" * 512)
            disk.flush()
